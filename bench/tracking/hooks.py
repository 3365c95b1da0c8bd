"""The callback: four methods that hear of a run. A tracker (bench/trackers) is one, and so is a file of your own.

A hook lives in a process of its own (bench/tracking/tracking.py), so none of it is on the clock, and it can fail no
run.
"""

from pathlib import Path

from bench.record import Record
from bench.spec import Data, RunSpec, format_eps

COSTS = ("train_seconds", "updates", "epochs", "images_per_second", "peak_memory_bytes", "energy_joules", "last_loss")


class Run(Data):
    """The run that is spoken of."""

    id: str  # 16 hex digits: the same when the run goes on, another in every other folder
    spec: RunSpec
    out: Path  # the folder of all runs


class Progress(Data):
    """How far a training is."""

    updates: int
    share: float  # of the budget, in [0, 1]
    seconds: float  # charged so far
    loss: float
    images_per_second: float


class Accuracy(Data):
    """One cell of the evaluation: before the audit, so whether it may be ranked is in the report alone."""

    protocol: str
    attack: str  # none: clean
    eps: float
    correct: int
    total: int
    updates: int  # of the training

    @property
    def name(self) -> str:
        """``accuracy/linear/pgd/8-255``."""
        return f"accuracy/{self.protocol}/{self.attack}/{format_eps(self.eps).replace('/', '-')}"

    @property
    def value(self) -> float:
        """In [0, 1]; 0 where no image was attacked."""
        return self.correct / self.total if self.total else 0.0


class Hook:
    """Overwrite what you want to hear of. Each call may take a minute; one that raises or takes longer was the last.

    A run that goes on is started again under the same id, and what was heard before a kill may be heard once more;
    a run that has ended is not spoken of again.
    """

    def started(self, run: Run) -> None:
        """A run begins, or goes on."""

    def progress(self, run: Run, at: Progress) -> None:
        """Every two seconds of training, and at its end; some are left out for a hook that is slow."""

    def evaluated(self, run: Run, found: Accuracy) -> None:
        """A cell has been measured."""

    def ended(self, run: Run, record: Record) -> None:
        """A run has ended, well or not: ``record`` has its status, settings, costs and results."""


def costs(record: Record) -> dict[str, float]:
    """``cost/<name>`` -> what is known of the cost of a training, for a tracker."""
    known = {name: getattr(record.train, name) for name in COSTS} if record.train is not None else {}
    return {f"cost/{name}": float(value) for name, value in known.items() if value is not None}


def settings(record: Record) -> dict[str, str]:
    """Name -> value of every setting of a run, and of the machine that it ran on, for a tracker."""
    machine = record.environment.model_dump(include={"device_name", "torch", "commit"}) if record.environment else {}
    return {setting.name: str(setting.value) for setting in record.settings} | {k: str(v) for k, v in machine.items()}


def asked(run: Run) -> dict[str, str]:
    """Name -> value of what was asked of a run, known when it starts, for a tracker."""
    spec = run.spec
    known = {"method": spec.method, "row": spec.row, "seed": spec.seed, "budget": spec.budget, "data": spec.data.name}
    return {name: str(value) for name, value in known.items()}
