"""The clock: only it knows how much of the budget is spent (protocol: T-on, T-stop, T-sched).

Monotonic nanoseconds; what counts is from the first batch request to the end of the last update that was kept. A
training may have stages, each with its share of the budget: there is one clock over all of them.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.spec import Budget


class Clock:
    """Training time and updates of one run. ``now`` (nanoseconds) and ``synchronize`` are injected: tests use fakes.

    ``total_updates`` is the number of updates of a budget in updates or epochs; None for a budget in time.
    """

    def __init__(
        self,
        budget: Budget,
        total_updates: int | None,
        *,
        now: Callable[[], int] = time.monotonic_ns,
        synchronize: Callable[[], None] = lambda: None,
    ) -> None:
        if (total_updates is None) != (budget.unit == "seconds"):
            raise ValueError(f"expected a number of updates for a budget that is not in seconds, got {total_updates}")
        self.budget, self.total_updates = budget, total_updates
        self.updates = 0
        self.durations: deque[float] = deque(maxlen=200)  # of the newest updates, in seconds
        self.paused: dict[str, float] = {}  # reason -> seconds off the clock
        self.stage = (0.0, 1.0)  # the shares of the budget at which the stage begins and ends
        self._now, self._synchronize = now, synchronize
        self._kept = self._spent = 0.0  # up to the last kept update; up to the last stop
        self._started: int | None = None

    def go_on(self, seconds: float, updates: int, durations: list[float], paused: dict[str, float]) -> None:
        """Continue an interrupted run: durations are restored, never a time stamp."""
        self._kept = self._spent = seconds
        self.updates = updates
        self.durations.extend(durations)
        self.paused = dict(paused)

    def enter(self, begin: float, end: float) -> None:
        """A stage from one share of the budget to another; its updates take another time than those before it."""
        self.stage = (begin, end)
        self.durations.clear()

    def start(self) -> None:
        """The first batch is about to be asked for."""
        self._synchronize()
        self._started = self._now()

    def stop(self) -> None:
        """Charge what has passed since start."""
        self._synchronize()
        self._spent, self._started = self.seconds, None

    @contextmanager
    def pause(self, reason: str) -> Iterator[None]:
        """Time inside is off the clock and logged with its reason."""
        self.stop()
        before = self._now()
        try:
            yield
        finally:
            self.start()
            assert self._started is not None
            self.paused[reason] = self.paused.get(reason, 0.0) + (self._started - before) / 1e9

    @property
    def seconds(self) -> float:
        """Charged so far, the update under way included."""
        if self._started is None:
            return self._spent
        return self._spent + (self._now() - self._started) / 1e9

    @property
    def train_seconds(self) -> float:
        """Charged up to the end of the last update that was kept."""
        return self._kept

    def tick(self) -> bool:
        """An update is complete. False if it ended past the budget: it must be undone and does not count."""
        seconds = self.seconds
        if self.budget.unit == "seconds" and seconds > self.budget.amount:
            return False
        self.updates += 1  # first: an interruption below leaves a number that no copy of the state has
        self.durations.append(seconds - self._kept)
        self._kept = seconds
        return True

    @property
    def median_update(self) -> float:
        """Median duration of the newest updates in seconds; 0 before the first."""
        return statistics.median(self.durations) if self.durations else 0.0

    @property
    def exhausted(self) -> bool:
        """No update of this stage may start: they are done, or the next would probably end past the stage's share.

        Probably: the 95th percentile of the newest durations, but at most 1.5 medians, so that no more than that
        stays unused; an update that takes longer all the same is undone where it ends past the budget (tick).
        """
        if self.total_updates is not None:
            return self.updates >= self._boundary(self.stage[1])
        end = self.stage[1] * self.budget.amount
        if not self.durations:
            return self.seconds >= end
        p95 = sorted(self.durations)[int(0.95 * (len(self.durations) - 1))]
        return self.seconds + min(p95, 1.5 * self.median_update) > end

    def _boundary(self, share: float) -> int:
        """The updates after which a share of the budget is spent."""
        assert self.total_updates is not None
        return updates_at(share, self.total_updates)

    @property
    def stage_progress(self) -> float:
        """Share of the stage spent, in [0, 1]; drives every schedule."""
        begin, end = self.stage
        if (begin, end) == (0.0, 1.0):
            return self.progress
        if self.total_updates is not None:
            first, last = self._boundary(begin), self._boundary(end)
            return min((self.updates - first) / max(last - first, 1), 1.0)
        return min(max((self.progress - begin) / (end - begin), 0.0), 1.0)

    @property
    def progress(self) -> float:
        """Share of the budget spent, in [0, 1]."""
        if self.total_updates is not None:
            return min(self.updates / self.total_updates, 1.0)
        return min(self.seconds / self.budget.amount, 1.0)

    @property
    def kept_progress(self) -> float:
        """Share of the budget spent at the end of the last update that was kept, in [0, 1]."""
        if self.total_updates is not None:
            return self.progress
        return min(self._kept / self.budget.amount, 1.0)

    @property
    def seconds_left(self) -> float:
        """Expected training time left, in seconds."""
        if self.total_updates is not None:
            mean = statistics.fmean(self.durations) if self.durations else 0.0  # replays of a batch differ
            return (self.total_updates - self.updates) * mean
        return max(self.budget.amount - self.seconds, 0.0)


def updates_at(share: float, total: int) -> int:
    """The updates after which a share of ``total`` is spent."""
    return round(share * total)
