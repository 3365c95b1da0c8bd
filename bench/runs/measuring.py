"""What the plan is made from: a few steps of the method of every row, measured in fresh processes.

A method that raises, ends its process or takes too long costs its own estimate and no other's.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.engines.child import started
from bench.runs.child_main import task_of
from bench.runs.plan import Estimate, Measured, estimate
from bench.spec import RunSpec, UsageError

POLL = 1.0  # seconds between two looks at the processes
MOST_SECONDS = 120.0  # that the few updates of one method may take


def measure_plan(specs: list[RunSpec], log: Path, say: Callable[[str], None], at_once: int = 1) -> list[Estimate]:
    """What each run will take on this machine, from a few measured steps of every method.

    Of a run whose method could not be measured there is no estimate, and ``say`` hears why. Raises UsageError.
    """
    outcomes = measure_rows(specs, log, at_once)
    for row, why in outcomes.items():
        if isinstance(why, str):
            say(f"{row}: no estimate: {why}")
    measured = {row: value for row, value in outcomes.items() if isinstance(value, Measured)}
    return [estimate(spec, measured[spec.row]) for spec in specs if spec.row in measured]


def measure_rows(specs: list[RunSpec], log: Path, at_once: int = 1) -> dict[str, Measured | str]:
    """A few steps of the method of every row, or why that method could not be measured.

    ``at_once``: processes that measure side by side, as the runs themselves will be: each finds the pace that a run has
    beside others. Those of a GPU are measured one after the other. Raises UsageError where it is the fault of no
    method.
    """
    rows = {spec.row: spec for spec in reversed(specs)}
    slots = at_once if all(spec.device == "cpu" for spec in specs) else 1
    outcomes: dict[str, Measured | str] = {}
    left = [lane for lane in (dict(list(rows.items())[place::slots]) for place in range(slots)) if lane]
    while left:
        with contextlib.ExitStack() as processes:
            lanes = [Lane(lane, processes.enter_context(started(task(lane), log)), log) for lane in left]
            running = lanes
            while running:
                running = [lane for lane in running if lane.listen(outcomes, POLL / len(running))]
        left = [lane.rows for lane in lanes if lane.rows]
    return {row: outcomes[row] for row in rows}


def task(rows: dict[str, RunSpec]) -> dict[str, Any]:
    """What the process of a lane is told."""
    return task_of("measure", specs=[spec.model_dump(mode="json") for spec in rows.values()])


class Lane:
    """A process that measures rows one after the other. ``rows`` are those that are left."""

    def __init__(self, rows: dict[str, RunSpec], child: Any, log: Path) -> None:
        self.rows, self._child, self._log = rows, child, log
        self._running: str | None = None  # the row that is being measured
        self._since = 0.0
        self._why = ""

    def listen(self, outcomes: dict[str, Measured | str], seconds: float) -> bool:
        """Wait at most so long for what the process says, and put it into ``outcomes``: whether it goes on.

        Raises UsageError where the process ends while it measures no row.
        """
        events = self._child.heard(seconds)
        for event in events or ():
            if event["event"] == "about":
                self._running, self._since = event["name"], time.monotonic()
            elif event["event"] == "measured":
                measured = Measured.model_validate(event["found"])
                outcomes[measured.row] = measured
                self.rows.pop(measured.row)
                self._running = None
            elif event["event"] == "error":
                self._why = event["message"]
        if events is not None and self._running is not None and time.monotonic() - self._since > MOST_SECONDS:
            self._leave_out(outcomes, f"a few updates took longer than {MOST_SECONDS:g} s")
            return False
        if events is not None:
            return True
        code = self._child.ended()
        why = self._why or f"the process ended with code {code}; see {self._log}"
        if self._running is not None:
            self._leave_out(outcomes, why)
        elif self.rows:
            raise UsageError(f"the plan could not be measured: {why}")
        return False

    def _leave_out(self, outcomes: dict[str, Measured | str], why: str) -> None:
        row = self._running
        assert row is not None
        outcomes[row] = why
        self.rows.pop(row)
