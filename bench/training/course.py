"""What is decided before the first update: which batch, epoch and replay an update belongs to."""

import math
from dataclasses import dataclass

from bench.spec import Budget, UsageError


@dataclass
class Course:
    """A training set in batches, each of them replayed ``updates_per_batch`` times."""

    images: int
    batch: int
    updates_per_batch: int
    ranks: int = 1  # that share each batch evenly

    def __post_init__(self) -> None:
        if self.batch > self.images:
            raise UsageError(
                f"expected a batch of at most {self.images} (the training images), got {self.batch}; "
                f"take more images or set a smaller batch with --set METHOD.batch={self.images}"
            )
        if self.batch % self.ranks:
            fitting = max(1, round(self.batch / self.ranks)) * self.ranks
            raise UsageError(
                f"expected a batch in {self.ranks} equal parts, one for each GPU of a run, got {self.batch}; "
                f"set another with --set METHOD.batch={fitting}"
            )

    @property
    def batches_per_epoch(self) -> int:
        """One pass over the images, the last incomplete batch dropped."""
        return self.images // self.batch

    @property
    def updates_per_epoch(self) -> int:
        """Each replay of a batch is one."""
        return self.batches_per_epoch * self.updates_per_batch

    def total_updates(self, budget: Budget) -> int | None:
        """Updates of a budget in updates or epochs; None for a budget in time."""
        if budget.unit == "seconds":
            return None
        updates = budget.amount * (self.updates_per_epoch if budget.unit == "epochs" else 1)
        return max(1, math.ceil(round(updates, 6)))  # 0.55 epochs of 100 updates are 55, not 56

    def locate(self, update: int) -> tuple[int, int, int]:
        """(epoch, batch within the epoch, replay) of an update counted from 0."""
        epoch, within = divmod(update, self.updates_per_epoch)
        return epoch, *divmod(within, self.updates_per_batch)
