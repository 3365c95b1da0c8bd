"""``bench baseline update``: the only way to a new baseline of the regression gate."""

import contextlib
import tempfile
from pathlib import Path

import click

from bench.commands.output import show, table
from bench.spec import UsageError
from bench.text import say


@click.group("baseline")
def baseline() -> None:
    """The baseline of the regression gate."""


@baseline.command()
@click.argument("finished_run", metavar="[RUN]", required=False, type=click.Path(path_type=Path))
@click.option("--reason", required=True, help="why numbers change; it is stored")
@click.option("--suite", default="ci", show_default=True, help="the suite to run when no RUN is given")
@click.option("--baseline", "file", type=click.Path(path_type=Path), help="the file to write  [the project's own]")
@click.option("--out", type=click.Path(path_type=Path), help="keep the runs in this new folder")
def update(finished_run: Path | None, reason: str, suite: str, file: Path | None, out: Path | None) -> int:
    """Write a baseline from a finished RUN, or from 12 seeds of the suite, and print what changes."""
    if not reason.strip():
        raise UsageError("expected a reason for the new baseline, got none; say why numbers change")

    from bench.gate.baseline import SEEDS, changes, make_baseline
    from bench.gate.check import ask_suite, run_suite
    from bench.runs.progress import Display
    from reports.regression import Baseline, default_baseline

    file = file or default_baseline(suite)
    before = Baseline.read(file) if file.is_file() else None
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(Display())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-baseline-")))
        folder = finished_run or run_suite(ask_suite(suite, str(SEEDS)), out, stack, display)
        after = make_baseline(folder, file, reason.strip(), scratch, display)
    show(table(f"{file.name}: {after.reason}", ["cell", "metric", "before", "after"], changes(before, after)))
    say(f"baseline written: {file}, {len(after.seeds)} seeds, weights of {len(after.fixed)} methods")
    return 0
