"""Signs of life of a training: how far it has come, written down beside it, so that the clock waits for no disk."""

import contextlib
import threading

from bench.events import TrainProgress
from bench.spec import Budget
from bench.storage.disk import DiskError
from bench.storage.store import Beat, RunFolder

SHARE, SHORTEST, LONGEST = 0.01, 0.5, 10.0  # of a budget in time; seconds


def beat_seconds(budget: Budget) -> float:
    """Seconds between two signs: 1 % of a budget in time, within [0.5, 10]; 10 of others."""
    return min(max(SHARE * budget.amount, SHORTEST), LONGEST) if budget.unit == "seconds" else LONGEST


class Heartbeat:
    """Inside, a thread saves the newest of what ``heard`` was told, every so many seconds, if there is news.

    What cannot be written is lost, as in a power cut; a full disk shows at the next checkpoint.
    """

    def __init__(self, folder: RunFolder, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        self._newest: tuple[float, int] | None = None
        self._lock = threading.Lock()  # two threads may not write one file
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)

    def heard(self, event: TrainProgress) -> None:
        """How far the training has come, as its progress says."""
        self._newest = event["seconds"], event["updates"]

    def save(self, seconds: float, updates: int) -> None:
        """Write this one now. Raises DiskError."""
        with self._lock:
            self._folder.save_beat(Beat(seconds=seconds, updates=updates))

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _write(self) -> None:
        written = None
        while not self._over.wait(self._seconds):
            if (newest := self._newest) is not None and newest != written:
                with contextlib.suppress(DiskError):
                    self.save(*newest)
                written = newest
