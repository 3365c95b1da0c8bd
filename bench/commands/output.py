"""What the command line prints for people: tables, the plan, the leaderboard. Text is data, never markup."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.fairness import LEARNING_UPDATES
from bench.spec import Budget, RunSpec, UsageError
from bench.text import plain, say

if TYPE_CHECKING:
    from rich.table import Table

    from bench.engines.cluster import Cluster
    from bench.runs.plan import Estimate

NOT_ALL = 3  # exit code where some rows have no estimate


def say_log(log: Path) -> None:
    """The log of a child process, on standard error; a method of the user's own may have printed anything."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        say(line, err=True)


def table(title: str, heads: list[str], rows: list[list[str]]) -> "Table":
    """A table for the terminal; text is data, never markup."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(plain(title)), title_justify="left", title_style="bold")
    for place, head in enumerate(heads):
        drawn.add_column(Text(plain(head)), justify="left" if place == 0 else "right", no_wrap=place == 0)
    for row in rows:
        drawn.add_row(*[Text(plain(cell)) for cell in row])
    return drawn


def show(drawn: "Table") -> None:
    """Print a table on standard output, as wide as the terminal or 120 columns into a file."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=120)).print(drawn)


def print_leaderboard(folder: Path) -> None:
    """The leaderboard of a folder, as it stands in its CSV."""
    import pandas

    from reports.cells import interval, number, percent, rank, whole
    from reports.limits import sentence
    from reports.titled import flagged

    file = folder / "leaderboard.csv"
    if not file.is_file():
        return
    board = flagged(pandas.read_csv(file, dtype={"rank_lo": "Int64", "rank_hi": "Int64"}))
    pairs = pandas.read_csv(folder / "claims.csv") if (folder / "claims.csv").is_file() else None

    for (protocol, budget), part in board.groupby(["protocol", "budget"], sort=False, dropna=False):
        rows = [
            [
                rank(line),
                str(line["method"]),
                *(percent(line[name]) for name in ("clean", "pgd", "autoattack")),
                "{} [{}]".format(*interval(line, "worst")) if pandas.notna(line["worst"]) else "",
                whole(line["n"]),
                number(line["train_seconds"], ".0f"),
                "" if pandas.isna(line["audit"]) else f"{line['audit']} ({line['audit_level']})",
                str(line["status"]),
            ]
            for line in part.to_dict("records")
        ]
        heads = ["rank", "method", "clean %", "PGD %", "AA %", "worst %", "n", "train s", "audit", "status"]
        first = part.iloc[0]
        quick = " (quick, not comparable)" if first["eval"] == "quick" else ""
        within = f", budget {budget}" if isinstance(budget, str) else ""
        show(table(f"{first['dataset']}, {protocol}{within}{quick}", heads, rows))
        for said in (first["standing"], sentence(first)):
            if isinstance(said, str) and said:
                say(said)
        if pairs is not None:
            same = pairs["budget"] == budget if isinstance(budget, str) else pairs["budget"].isna()
            say(_counted(pairs[(pairs["protocol"] == protocol) & same]))


def _counted(pairs: Any) -> str:
    """How many pairs of methods, and of encoders where there are any, are told apart."""
    counts = [
        f"{(part['verdict'] != 'tie').sum()} of {len(part)} pairs of {kind}s"
        for kind, part in pairs.groupby("kind", sort=False)
    ]
    return f"Claims: {', '.join(counts) or 'none'} (claims.csv)."


def show_plan(
    specs: list[RunSpec],
    jobs: int,
    total: Budget | None,
    label: str,
    as_json: bool,
    cluster: "Cluster | None" = None,
) -> int:
    """Measure and print the plan of so many runs at a time, also on a cluster: the exit code.

    A row that cannot be measured is left out.

    Raises UsageError if the training is above a total budget.
    """
    import tempfile

    from bench.runs.measuring import measure_rows
    from bench.runs.plan import Measured, duration, estimate, total_seconds
    from bench.storage.signals import signals_raise

    with tempfile.TemporaryDirectory() as folder, signals_raise():
        log = Path(folder) / "log.txt"
        try:
            outcomes = measure_rows(specs, log, jobs)
        except UsageError:
            if log.is_file():
                say_log(log)
            raise
        missing = {row: reason for row, reason in outcomes.items() if isinstance(reason, str)}
        if any(str(log) in reason for reason in missing.values()):
            say_log(log)
    measured = {row: outcome for row, outcome in outcomes.items() if isinstance(outcome, Measured)}
    for row, why in missing.items():
        say(f"{row}: no estimate: {why}", err=True)
    specs = [spec for spec in specs if spec.row in measured]
    if not specs:
        return NOT_ALL
    estimates = [estimate(spec, measured[spec.row]) for spec in specs]
    on_cluster, device = None, specs[0].device
    if cluster is not None:
        from bench.engines.cluster_plan import plan_cluster
        from bench.random import environment

        on_cluster = plan_cluster(cluster, specs, measured)
        device = f"{environment(device, specs[0].precision).device_name} ({device}, {specs[0].precision})"
    if as_json:
        runs = [run.model_dump() | {"seconds": run.seconds} for run in estimates]
        document: dict[str, Any] = {"dataset": label, "device": specs[0].device, "jobs": jobs}
        document["seconds"] = total_seconds(estimates, jobs)
        document |= {"cluster": on_cluster.document() | {"measured_on": device}} if on_cluster else {}
        click.echo(json.dumps(document | {"runs": runs}, indent=1))
        check_cap(total, estimates)
        return NOT_ALL if missing else 0
    rows = [
        [
            run.row,
            str(run.seed),
            str(run.cells),
            str(spec.budget),
            duration(run.train_seconds),
            duration(run.evaluate_seconds),
            f"{run.peak_memory_bytes / 2**30:.2f} GiB",
        ]
        for spec, run in zip(specs, estimates, strict=True)
    ]
    heads = ["method", "seed", "cells", "budget", "training", "evaluation", "memory up to"]
    show(table(f"{label}, on {specs[0].device} in {specs[0].precision}", heads, rows))
    say(summary(estimates, jobs))
    for line in too_short(estimates, specs):
        say(line)
    if on_cluster is not None:
        from bench.commands.show_cluster import show_cluster

        show_cluster(on_cluster, device)
    check_cap(total, estimates)
    return NOT_ALL if missing else 0


def check_cap(total: Budget | None, estimates: list["Estimate"]) -> None:
    """Raises UsageError if the planned training is above a total budget; a total that is split is always kept."""
    from bench.runs.plan import duration

    planned = sum(estimate.train_seconds - estimate.warm_up_seconds for estimate in estimates)
    if total is not None and total.unit == "seconds" and planned > 1.01 * total.amount:
        raise UsageError(
            f"the rows need about {duration(planned)} of training, above the total budget of {total}; "
            "pick rows with --methods, or raise --total-budget"
        )


def too_short(estimates: list["Estimate"], specs: list[RunSpec]) -> list[str]:
    """A line about the runs whose budget in time holds too few updates on this machine; none where all hold enough."""
    timed = {spec.row for spec in specs if spec.budget.unit == "seconds"}
    few = {run.row: run.updates for run in estimates if run.row in timed and run.updates < LEARNING_UPDATES}
    if not few:
        return []
    rows = ", ".join(f"{row} about {updates}" for row, updates in few.items())
    return [
        f"too few updates to learn from fit into {specs[0].budget} on this machine ({rows}; {LEARNING_UPDATES} is "
        "little): give a longer budget, or updates, such as --budget 300up"
    ]


def dearest(estimates: list["Estimate"]) -> str:
    """The protocol that takes most of the evaluation, where there are several."""
    from bench.runs.plan import duration

    seconds: dict[str, float] = {}
    for run in estimates:
        for protocol, taken in run.protocols.items():
            seconds[protocol] = seconds.get(protocol, 0.0) + taken
    if len(seconds) < 2:
        return ""
    protocol = max(seconds, key=seconds.__getitem__)
    return f" (most of it {protocol}, {duration(seconds[protocol])})"


def summary(estimates: list["Estimate"], jobs: int) -> str:
    """The plan in one line, with so many runs at a time."""
    from bench.runs.plan import duration, total_seconds

    training = sum(estimate.train_seconds for estimate in estimates)
    evaluation = sum(estimate.evaluate_seconds for estimate in estimates)
    cells = sum(estimate.cells for estimate in estimates)
    memory = max(estimate.peak_memory_bytes for estimate in estimates) / 2**30
    return (
        f"plan: {len(estimates)} runs with {cells} cells, {jobs} at a time; training {duration(training)}, evaluation "
        f"about {duration(evaluation)}{dearest(estimates)}, in all about {duration(total_seconds(estimates, jobs))}, "
        f"memory of each up to {memory:.1f} GiB"
    )
