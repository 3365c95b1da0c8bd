"""The first, exact form of the CI gate: run a small fixed suite, compare correct counts as integers.

Runs of the suite use the same CPU kernels on every x86-64 machine (AVX2, no wider ones), because a training that
differs in the last bit after one update differs in counts after a hundred.
"""

import contextlib
import os
import tempfile
from pathlib import Path

from bench.spec import UsageError

# Read by ATen, oneDNN and MKL when the child process starts.
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
}


def run_suite(suite: str, out: Path | None, stack: contextlib.ExitStack) -> Path:
    """The folder of a finished run of the suite; temporary unless ``out`` is given."""
    from bench.engine import SAVE_EVERY
    from bench.engines.local import LocalEngine
    from bench.options import load_suite, options_of, resolve
    from bench.progress import Display
    from bench.run import make_manifest, opened, run_all
    from bench.signals import signals_raise

    options = options_of(load_suite(suite))
    specs, budget, total, data = resolve(options)
    folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-check-")))
    stack.enter_context(signals_raise())
    os.environ.update(PORTABLE)
    manifest = make_manifest(specs, budget, total, data, ["bench", "check", "--suite", suite])
    lock = stack.enter_context(opened(folder, manifest))
    with Display() as display:
        run_all(folder, specs, display, None, LocalEngine(folder, SAVE_EVERY, lock), lock=lock)
    return folder


def check_run(folder: Path, baseline: Path, update: bool) -> list[str]:
    """Differences between a run and a baseline, a sentence each; ``update`` writes the baseline instead.

    Raises UsageError when there is nothing to compare.
    """
    from bench.store import load_manifest, load_records, write_text
    from reports import regression
    from reports.rows import rows

    manifest, records = load_manifest(folder), load_records(folder)
    found = regression.Baseline.of(manifest, rows(manifest, records))
    if not found.cells:
        raise UsageError(f"nothing to compare: {folder} has no results")
    if update:
        write_text(baseline, found.text())
        return []
    return regression.compare(found, regression.Baseline.read(baseline))
