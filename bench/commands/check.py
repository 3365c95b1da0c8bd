"""``bench check``: the statistical regression gate. Exit 0 fine, 2 nothing to compare, 4 a regression."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.commands.output import show, table
from bench.text import say

if TYPE_CHECKING:
    from bench.gate.check import Outcome

REGRESSION = 4


@click.command("check")
@click.argument("finished_run", metavar="[RUN]", required=False, type=click.Path(path_type=Path))
@click.option("--suite", default="ci", show_default=True, help="the small suite to run when no RUN is given")
@click.option("--baseline", type=click.Path(path_type=Path), help="the file to compare with  [the project's own]")
@click.option("--exact", is_flag=True, help="any count that differs fails, where platform and versions are equal")
@click.option("--out", type=click.Path(path_type=Path), help="keep the runs in this new folder")
@click.option("--junit", type=click.Path(path_type=Path), help="write all comparisons to this file as JUnit XML")
@click.option("--sarif", type=click.Path(path_type=Path), help="write what has moved to this file as SARIF 2.1.0")
@click.option("--github", is_flag=True, help="annotations, and a job summary where GitHub asks for one")
@click.option("--json", "as_json", is_flag=True, help="one JSON document instead of the table")
def check(
    finished_run: Path | None,
    suite: str,
    baseline: Path | None,
    exact: bool,
    out: Path | None,
    junit: Path | None,
    sarif: Path | None,
    github: bool,
    as_json: bool,
) -> int:
    """Compare a small fixed suite, or a finished RUN, with a baseline: exit 4 and a line for each loss."""
    from bench.storage.store import check_folder
    from reports.regression import Baseline, default_baseline

    file = baseline or default_baseline(suite)
    Baseline.read(file)
    if finished_run is not None:
        check_folder(finished_run)

    from bench.gate.check import check_run, check_suite
    from bench.runs.progress import Display
    from bench.storage.signals import signals_raise
    from bench.storage.store import write_text
    from reports import announce
    from reports.findings import losses, moved

    with contextlib.ExitStack() as stack:
        display = stack.enter_context(Display())
        if finished_run is None:
            outcome = check_suite(suite, file, exact, out, stack, display)
        else:
            stack.enter_context(signals_raise())
            outcome = check_run(finished_run, file, exact, display)
    lost = losses(outcome.compared)
    if junit is not None:
        write_text(junit, announce.junit(outcome.compared))
    if sarif is not None:
        write_text(sarif, announce.sarif(outcome.compared, os.path.relpath(file)))
    if github:
        announce.write_summary(announce.summary(outcome.compared))
    for line in announce.annotations(outcome.compared) if github else ():
        say(line, err=as_json)
    if as_json:
        click.echo(announce.as_json(outcome.compared))
        return REGRESSION if lost else 0
    print_outcome(outcome, file)
    for change in moved(outcome.compared):
        say(str(change))
    say(f"{len(lost)} losses in {len(outcome.compared)} comparisons with {file}")
    if not moved(outcome.compared):
        seen = f"; smallest visible drop: {outcome.visible}" if outcome.visible else ""
        say(f"ran, all fine{seen}")
    return REGRESSION if lost else 0


def print_outcome(outcome: "Outcome", file: Path) -> None:
    """The comparison table, without the counts that are equal, and the notes."""
    shown = [comparison for comparison in outcome.compared if comparison.gate != "G0"]
    rows = [[line.cell, line.metric, line.before, line.after, line.verdict] for line in shown]
    show(table(f"compared with {file.name}", ["cell", "metric", "before", "after", "verdict"], rows))
    counts = [comparison for comparison in outcome.compared if comparison.gate == "G0"]
    if counts:
        same = sum(count.verdict == "same" for count in counts)
        say(f"G0: {same} of {len(counts)} metrics have equal counts for each seed")
    for note in outcome.notes:
        say(note)
    for alarm in outcome.compared:
        if alarm.verdict == "not confirmed":
            say(f"alarm not confirmed: {alarm.cell}, {alarm.metric}: {alarm.before} -> {alarm.after} ({alarm.rule})")
