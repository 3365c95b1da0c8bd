"""Runs that take seconds, what is measured in them, and a display that counts."""

import io
from collections import Counter
from pathlib import Path

from rich.console import Console

from bench import registry
from bench.data import data_info, load_data
from bench.progress import Display
from bench.run import make_manifest, open_folder
from bench.spec import Budget, DataInfo, DataSpec, EvalSpec, RunSpec
from bench.store import RunFolder

EVAL = EvalSpec(attacks=("pgd",), eps=(0.05,), main_eps=0.05, curve=(0.5,), crops=2, band_images=4)
DATA = DataSpec(name="synthetic", train_images=32, test_images=16)
IMAGES = data_info(*load_data(registry.load("dataset", "synthetic").Dataset(), DATA))


def cells(count: int, updates: int = 200) -> list[RunSpec]:
    """Runs of one method that differ in their seeds."""
    return [
        RunSpec(
            method="emp_ssl",
            seed=seed,
            settings={"batch": 16, "views": 2},
            data=DATA,
            budget=Budget.parse(f"{updates}up"),
            threads=1,
            eval=EVAL,
        )
        for seed in range(count)
    ]


class Heard(Display):
    """A display that counts."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.finished: Counter[str] = Counter()
        self.lines: list[str] = []

    def ended(self, spec, status, message):
        self.finished[f"{spec.name} {status}"] += 1
        super().ended(spec, status, message)

    def line(self, text, style=""):
        self.lines.append(text)


def measured(out: Path, specs: list[RunSpec]) -> dict[str, object]:
    """What does not depend on where and when a run was made."""
    found = {}
    for spec in specs:
        record = RunFolder(out, spec).record()
        assert record.train is not None, (spec.name, record.status, record.message)
        results = {(r.protocol, r.attack, r.eps): r.outcomes for r in record.results}
        found[spec.name] = (record.status, record.train.encoder_sha256, record.train.updates, results)
    return found


def opened(out: Path, specs: list[RunSpec], images: DataInfo = IMAGES) -> Path:
    """A folder with a manifest, by which a worker knows it and what its images have to be."""
    out.mkdir()
    open_folder(out, make_manifest(specs, specs[0].budget, None, images, ["bench", "run"]))
    return out
