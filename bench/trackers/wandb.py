"""Weights & Biases: a run for each run, found again by its id; WANDB_PROJECT, WANDB_MODE and WANDB_DIR are heeded."""

import os
from typing import Any

from bench.record import Record
from bench.tracking.hooks import Accuracy, Hook, Progress, Run, asked, costs, settings

PACKAGE = "wandb"
PROJECT = "robust-ssl-bench"


class Tracker(Hook):
    """The axis of every curve is ``updates``, because a run that goes on may repeat some."""

    def __init__(self) -> None:
        import wandb

        self._wandb: Any = wandb
        self._run: Any = None

    def started(self, run: Run) -> None:
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.id,
            name=run.spec.name,
            group=run.out.name,
            config=asked(run),
            resume="allow",
            settings=self._wandb.Settings(console="off"),
        )
        self._run.define_metric("updates")
        self._run.define_metric("*", step_metric="updates")

    def progress(self, run: Run, at: Progress) -> None:
        speed = {"train/images_per_second": at.images_per_second, "train/seconds": at.seconds}
        self._run.log({"updates": at.updates, "train/loss": at.loss} | speed)

    def evaluated(self, run: Run, found: Accuracy) -> None:
        self._run.log({"updates": found.updates, found.name: found.value})

    def ended(self, run: Run, record: Record) -> None:
        self._run.config.update(settings(record), allow_val_change=True)
        self._run.summary.update(costs(record) | {"status": record.status})
        self._run.finish(exit_code=0 if record.status == "finished" else 1)
