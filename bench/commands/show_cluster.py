"""What the command line prints of the plan for a cluster: the schedule as a picture in text, the bill, the scaling."""

import string
from collections import defaultdict

from bench.commands.output import show, table
from bench.engines.cluster import Gpu, Placed
from bench.engines.cluster_plan import GAIN, ClusterPlan, Scaling
from bench.runs.plan import duration
from bench.spec import RunSpec
from bench.text import say

MOST_GPUS = 40  # lines of the schedule; --json has all of them
WIDTH = 72  # of a line, in letters


def show_cluster(plan: ClusterPlan, specs: list[RunSpec], measured_on: str) -> None:
    """The schedule, what it takes, how it scales, and what to know before believing it."""
    rows = dict.fromkeys(spec.row for spec in specs)
    letters = dict(zip(rows, string.ascii_letters, strict=False))  # those above 52 have none
    labels = {spec.name: f"{letters.get(spec.row, '#')}{spec.seed}" for spec in specs}
    by_gpu: dict[Gpu, list[Placed]] = defaultdict(list)
    for each in plan.placed:
        by_gpu[each.gpu].append(each)
    order = sorted(by_gpu, key=lambda gpu: (plan.cluster.nodes.index(gpu.kind), gpu.number, gpu.place))
    lines = []
    for gpu in order[:MOST_GPUS]:
        runs = by_gpu[gpu]
        drawn = bar(runs, labels, plan.bill.makespan_seconds, WIDTH)
        lines.append([f"{gpu.node}:{gpu.place}", gpu.kind.gpu, str(len(runs)), duration(runs[-1].end), drawn])
    end = duration(plan.bill.makespan_seconds)
    show(table(f"the schedule: 0 to {end}", ["GPU", "model", "runs", "ends", "method and seed"], lines))
    if len(order) > MOST_GPUS:
        say(f"and {len(order) - MOST_GPUS} more GPUs: --json has all of them")
    say(", ".join(f"{letter} {row}" for row, letter in letters.items()))
    for scaling in plan.scalings:
        show_scaling(scaling, plan.cluster.currency)
    bill = plan.bill
    say(
        f"cluster: {len(plan.placed)} runs on {bill.gpus} GPUs, makespan {end}, {bill.gpu_hours:,.2f} GPU-hours paid, "
        f"{bill.utilization:.0%} of them busy, cost {money(bill.cost, plan.cluster.currency)}"
    )
    speeds = ", ".join(f"{kind.name} {kind.speed:g}" for kind in plan.cluster.nodes)
    say(f"measured here: {measured_on}; stated in the file, not measured: speed relative to it ({speeds})")
    for warning in plan.warnings:
        say(f"warning: {warning}", err=True)


def bar(placed: list[Placed], labels: dict[str, str], seconds: float, width: int) -> str:
    """The runs of one GPU on a line of ``width`` letters from 0 to ``seconds``: ``a0---b0--....``; dots are idle."""
    line = ["."] * width
    for each in placed:
        first, after = (round(when / seconds * width) for when in (each.start, each.end))
        span = max(1, after - first)
        first = min(first, width - 1)
        line[first : first + span] = labels[each.run].ljust(span, "-")[:span]
    return "".join(line[:width])


def show_scaling(scaling: Scaling, currency: str) -> None:
    """Makespan and cost over numbers of GPUs of one kind."""
    kind, own = scaling.kind, scaling.kind.count * scaling.kind.gpus
    first = scaling.bills[0].makespan_seconds
    lines = [
        [
            f"{each.gpus}{' (stated)' if each.gpus == own else ''}",
            duration(each.makespan_seconds),
            f"{first / each.makespan_seconds:.2f}",
            f"{each.gpu_hours:,.2f}",
            money(each.cost, currency),
            f"{each.utilization:.0%}",
        ]
        for each in scaling.bills
    ]
    heads = ["GPUs", "makespan", "times as fast", "GPU-hours", "cost", "busy"]
    show(table(f"other numbers of GPUs: {kind.name} alone ({kind.gpu}, {kind.gpus} a node)", heads, lines))
    say(
        f"{kind.name}: the makespan cannot fall below {duration(scaling.least_seconds)}, the start of a node and the "
        f"longest run ({scaling.longest_run}); beyond {scaling.enough_gpus} GPUs more of them gain less than {GAIN:.0%}"
    )


def money(amount: float, currency: str) -> str:
    """An amount with its currency, where there are prices."""
    return f"{amount:,.2f} {currency}" if currency else "-"
