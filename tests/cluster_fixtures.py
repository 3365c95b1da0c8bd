"""Runs that take seconds, what is measured in them, a display that counts, and the command on a cluster of Ray."""

import io
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console

from bench import registry
from bench.data.images import data_info, load_data
from bench.record import DataInfo
from bench.runs.conduct import make_manifest, open_folder
from bench.runs.progress import Display
from bench.spec import Budget, DataSpec, EvalSpec, RunSpec
from bench.storage.store import RunFolder

EVAL = EvalSpec(attacks=("pgd",), eps=(0.05,), main_eps=0.05, curve=(0.5,), crops=2, band_images=4)
DATA = DataSpec(name="synthetic", train_images=32, test_images=16)
IMAGES = data_info(*load_data(registry.load("dataset", "synthetic").Dataset(), DATA))
HELD = Path(__file__).parent / "cluster" / "held.py"  # a method whose runs wait in the training while a file is there
LIMIT = 600.0  # seconds, on whatever machine: only so that what hangs ends


def cells(count: int, updates: int = 200, method: Path | None = None) -> list[RunSpec]:
    """Runs of one method, or of one in a file, that differ in their seeds."""
    return [
        RunSpec(
            method=method.stem if method else "emp_ssl",
            method_path=str(method) if method else None,
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


def bench_run(out: Path, address: str, *more: str) -> list[str]:
    """The words of a command that makes runs of HELD on the Ray cluster at ``address``."""
    given = "--seeds 1 --data synthetic --train-images 32 --test-images 16 --encoder resnet8 "
    given += "--set held.batch=16 --set held.views=2 --protocols linear --attacks pgd --eps 0.05 --audit off "
    given += "--curve off --device cpu --threads 1 --checkpoint-every 0.1s --engine ray"
    words = [sys.executable, "-m", "bench", "run", "--methods", str(HELD), *given.split()]
    return [*words, "--address", address, "--out", str(out), *more]


def updates_saved(run: RunFolder) -> int:
    """In its newest checkpoint; 0 without one."""
    state, _ = run.checkpoint()
    return state["updates"] if state else 0


def wait_for(what: Callable[[], bool], seconds: float = LIMIT) -> None:
    """Raises AssertionError when it does not come true."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.1)


class Once(SimpleNamespace):
    """A clock for a deadline at 1.0, which passes once all of these runs have saved something of their training."""

    def __init__(self, out: Path, specs: list[RunSpec]) -> None:
        self.folders = [RunFolder(out, spec) for spec in specs]

    def monotonic(self) -> float:
        return float(all(updates_saved(folder) > 0 for folder in self.folders))
