"""Which run is next: the bookkeeping that every engine and the simulation of a cluster share.

No clock, no process, no disk: whoever drives it says what has started, ended and been lost.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

TRIES = 10  # of one run at one place: lost workers and nodes are not its fault, so many times in a row they are


@dataclass(frozen=True)
class Job:
    """One run as the schedule sees it; ``seconds`` is what it is expected to take."""

    name: str
    seed: int
    seconds: float = 0.0


class Schedule:
    """Every job once, the first seeds of all methods first, the longest of a seed first, equal ones in their
    order; what was lost goes before all, and is given up once it was lost ``tries`` times at one place.

    Methods are interleaved over seeds, so that whatever is finished at a deadline compares them all; the longest first
    keeps the end short. At most ``in_flight`` jobs are out at a time. Each operation takes O(log n).
    """

    def __init__(self, jobs: Sequence[Job], in_flight: int, tries: int = TRIES) -> None:
        if in_flight < 1 or tries < 1:
            raise ValueError(f"expected at least 1 job in flight and 1 try, got {in_flight} and {tries}")
        self.jobs = {job.name: job for job in jobs}
        self._order = {name: place for place, name in enumerate(self.jobs)}
        if len(self.jobs) != len(jobs):
            raise ValueError("expected every job once")
        self.in_flight = in_flight
        self.tries = tries
        self._losses: dict[str, tuple[float, int]] = {}  # how far a job had come, and how often it was lost there
        self.running: set[str] = set()
        self.ended: set[str] = set()
        self.given_up: set[str] = set()
        self._waiting = [self._place(job.name, lost=False) for job in jobs]
        heapq.heapify(self._waiting)

    @property
    def waiting(self) -> int:
        """How many have not begun, or wait for another try."""
        return len(self._waiting)

    @property
    def over(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._waiting and not self.running

    def next(self) -> str | None:
        """The job to start, which counts as running from here on; None while there is none or too many are out."""
        if not self._waiting or len(self.running) >= self.in_flight:
            return None
        name = heapq.heappop(self._waiting)[-1]
        self.running.add(name)
        return name

    def end(self, name: str) -> None:
        """It has ended by itself, well or not: it is not started again. Raises KeyError if it was not running."""
        self.running.remove(name)
        self.ended.add(name)

    def lose(self, name: str, reached: float) -> bool:
        """Its worker or node is gone: whether it waits for another try. Raises KeyError if it was not running.

        ``reached``: how much of it is kept, in any measure that grows when it moves on. Where it is more than at every
        loss before, the run has all its tries again, and this loss is the first of them.
        """
        self.running.remove(name)
        furthest, losses = self._losses.get(name, (-math.inf, 0))
        losses = 1 if reached > furthest else losses + 1
        self._losses[name] = max(furthest, reached), losses
        if losses >= self.tries:
            self.given_up.add(name)
            return False
        heapq.heappush(self._waiting, self._place(name, lost=True))
        return True

    def _place(self, name: str, lost: bool) -> tuple[bool, int, float, int, str]:
        job = self.jobs[name]
        return not lost, job.seed, -job.seconds, self._order[name], name
