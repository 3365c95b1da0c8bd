"""Live progress on standard error: a line per finished cell, and on a terminal a bar for the run and one for all.

Not a terminal: plain lines only. Names come from users, so nothing is read as markup.
"""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from bench.plan import Estimate, duration
from bench.show import plain
from bench.spec import RunSpec, format_eps


class Display:
    """Shows what happens to each run. ``estimates`` in ``begin`` feed the time that is left over all."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[text]}", markup=False),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._overall: TaskID | None = None
        self._current: TaskID | None = None
        self._estimates: list[Estimate] = []
        self._specs: list[RunSpec] = []
        self._done = self._cells = self._quarter = 0

    def __enter__(self) -> "Display":
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def line(self, text: str, style: str = "") -> None:
        """One line that stays."""
        self._bars.console.print(Text(plain(text), style=style), soft_wrap=True)

    def begin(self, specs: list[RunSpec], estimates: list[Estimate] | None) -> None:
        """These runs are about to be made."""
        self._specs, self._estimates = specs, estimates or []
        self._overall = self._bars.add_task(f"all {len(specs)} runs", total=1.0, text="")

    def skipped(self, spec: RunSpec, status: str) -> None:
        """The store has this run already."""
        self._done += 1
        self.line(f"{spec.name}: {status} before, not repeated", "dim")

    def started(self, spec: RunSpec) -> None:
        """A run begins, or goes on."""
        self._cells = self._quarter = 0
        if self._current is not None:
            self._bars.remove_task(self._current)
        self._current = self._bars.add_task(spec.name, total=1.0, text="starting")
        number = self._done + 1
        self.line(f"{spec.name}: run {number} of {len(self._specs)}, training for {spec.budget}", "bold")

    def event(self, spec: RunSpec, event: dict[str, Any]) -> None:
        """Something happened in a run: an event of the engine."""
        kind = event.get("event")
        if kind == "train":
            text = (
                f"loss {event['loss']:.4g}, {event['images_per_second']:.4g} images/s, "
                f"{duration(event['seconds_left'])} left"
            )
            self._show(event["progress"], "train " + text, event["seconds_left"])
            quarter = int(event["progress"] * 4)
            if quarter > self._quarter and not self.console.is_terminal:
                self._quarter = quarter
                self.line(f"{spec.name}: training {event['progress']:.0%}, {text}")
        elif kind == "trained":
            self.line(f"{spec.name}: trained, {event['updates']} updates in {event['seconds']:.4g} s")
            if event.get("disturbed"):
                self.line(f"{spec.name}: {event['disturbed']}", "yellow")
        elif kind == "damaged":
            self.line(f"{spec.name}: {event['message']}", "yellow")
        elif kind == "probe":
            self._show(0.0, f"{event['protocol']}: fitting the probe")
        elif kind == "attack":
            share = event["done"] / event["total"] if "done" in event else None
            text = event.get("message") or f"{event['done']} of {event['total']} images"
            self._show(share, f"{event['protocol']} {event['attack']} {format_eps(event['eps'])}: {text}")
        elif kind == "cell":
            self._cells += 1
            accuracy = event["correct"] / event["total"]
            what = f"{event['protocol']:<14} {event['attack']:<10} eps {format_eps(event['eps']):<7}"
            note = f"  ({event['note']})" if event["note"] else ""
            count = f"{event['correct']}/{event['total']}"
            self.line(f"{spec.name}: {what} {accuracy:>6.1%}  {count:<12} {event['seconds']:.3g} s{note}")

        elif kind == "curve":
            robust = f", {event['robust']:.1%} under PGD" if event["robust"] is not None else ""
            what = f"at {event['percent']} % of the budget {event['clean']:.1%} of held-out training images{robust}"
            self.line(f"{spec.name}: {what}")
        elif kind == "audit":
            verdict, style = event["verdict"], {"PASS": "", "FLAG": "yellow"}.get(event["verdict"], "red")
            self.line(f"{spec.name}: {event['protocol']} audit {verdict} ({event['level']})", style)

    def ended(self, spec: RunSpec, status: str, message: str) -> None:
        """A run has ended, well or not."""
        self._done += 1
        if message:
            self.line(f"{spec.name}: {status}: {message}", "yellow" if status == "finished" else "red")
        self._show(1.0, status)

    def _show(self, share: float | None, text: str, training_left: float = 0.0) -> None:
        if self._current is not None:
            self._bars.update(self._current, completed=share, text=plain(text))
        if self._overall is not None and self._estimates:
            now = self._estimates[min(self._done, len(self._estimates) - 1)]
            total = sum(each.seconds for each in self._estimates)
            left = sum(each.seconds for each in self._estimates[self._done + 1 :]) + training_left
            left += now.evaluate_seconds * max(0.0, 1 - self._cells / max(now.cells, 1))
            left = 0.0 if self._done >= len(self._specs) else left
            self._bars.update(self._overall, completed=1 - min(left / total, 1), text=f"about {duration(left)} left")
