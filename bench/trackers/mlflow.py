"""MLflow: a run for each run, found again by its tag; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME are heeded."""

import os
import time
from typing import Any

from bench.record import Record
from bench.tracking.hooks import Accuracy, Hook, Progress, Run, asked, costs, settings

PACKAGE = "mlflow"
EXPERIMENT = "robust-ssl-bench"
TAG = "bench.id"
STATUS = {"finished": "FINISHED", "preempted": "KILLED"}  # all else: FAILED


class Tracker(Hook):
    """What was asked and set are tags, which may be written again, as parameters may not."""

    def __init__(self) -> None:
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        known = self._client.get_experiment_by_name(name)
        self._experiment: str = known.experiment_id if known else self._client.create_experiment(name)
        self._id = ""

    def started(self, run: Run) -> None:
        known = self._client.search_runs([self._experiment], f"tags.`{TAG}` = '{run.id}'")
        if known:
            self._id = known[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            tags = {TAG: run.id, **asked(run)}
            self._id = self._client.create_run(self._experiment, run_name=run.spec.name, tags=tags).info.run_id

    def progress(self, run: Run, at: Progress) -> None:
        self._log({"train/loss": at.loss, "train/images_per_second": at.images_per_second}, at.updates)

    def evaluated(self, run: Run, found: Accuracy) -> None:
        self._log({found.name: found.value}, found.updates)

    def ended(self, run: Run, record: Record) -> None:
        self._log(costs(record), record.train.updates if record.train else 0)
        for name, value in settings(record).items():
            self._client.set_tag(self._id, name, value)
        self._client.set_terminated(self._id, STATUS.get(record.status, "FAILED"))

    def _log(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])
