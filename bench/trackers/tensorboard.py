"""TensorBoard, by torch's own writer: event files in OUT/tensorboard/<run>; steps are updates."""

from typing import Any

from bench.record import Record
from bench.tracking.hooks import Accuracy, Hook, Progress, Run, costs, settings

PACKAGE = "tensorboard"


class Tracker(Hook):
    """A run that goes on continues its curves: what it repeats replaces what was there."""

    def __init__(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open = SummaryWriter
        self._writer: Any = None

    def started(self, run: Run) -> None:
        self._writer = None

    def progress(self, run: Run, at: Progress) -> None:
        writer = self._of(run, purge_step=at.updates)
        writer.add_scalar("train/loss", at.loss, at.updates)
        writer.add_scalar("train/images_per_second", at.images_per_second, at.updates)
        writer.add_scalar("train/seconds", at.seconds, at.updates)
        writer.flush()

    def evaluated(self, run: Run, found: Accuracy) -> None:
        writer = self._of(run)
        writer.add_scalar(found.name, found.value, found.updates)
        writer.flush()

    def ended(self, run: Run, record: Record) -> None:
        writer, step = self._of(run), record.train.updates if record.train else 0
        for name, value in costs(record).items():
            writer.add_scalar(name, value, step)
        lines = [f"    {name} = {value}" for name, value in settings(record).items()]  # indented: Markdown's code
        writer.add_text("run", "\n".join([f"    status = {record.status}", *lines]), step)
        writer.close()

    def _of(self, run: Run, purge_step: int | None = None) -> Any:
        """The writer of a run; the first of its files after a start hides earlier points from ``purge_step`` on."""
        if self._writer is None:
            self._writer = self._open(str(run.out / "tensorboard" / run.spec.name), purge_step=purge_step)
        return self._writer
