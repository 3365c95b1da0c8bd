"""What the command line prints of the plan for a cluster: the scaling, the bill, and what to know before paying."""

from bench.commands.output import show, table
from bench.engines.cluster_plan import GAIN, Bounds, ClusterPlan, Scaling
from bench.runs.plan import duration
from bench.text import say


def show_cluster(plan: ClusterPlan, measured_on: str) -> None:
    """Every kind of nodes alone, then the cluster."""
    for scaling in plan.scalings:
        show_scaling(scaling, plan.cluster.currency)
    makespan, gpu_hours, cost = ranges(plan.bounds, plan.cluster.currency)
    say(
        f"cluster: {plan.runs} runs on {plan.bounds.gpus} GPUs, makespan {makespan}, {gpu_hours} GPU-hours paid, "
        f"cost {cost}"
    )
    speeds = ", ".join(f"{kind.name} {kind.speed:g}" for kind in plan.cluster.nodes)
    say(f"measured here: {measured_on}; stated in the file, not measured: speed relative to it ({speeds})")
    for warning in plan.warnings:
        say(f"warning: {warning}", err=True)


def show_scaling(scaling: Scaling, currency: str) -> None:
    """Makespan and cost over numbers of GPUs of one kind."""
    kind, own = scaling.kind, scaling.kind.count * scaling.kind.gpus
    lines = [
        [f"{bound.gpus}{' (stated)' if bound.gpus == own else ''}", *ranges(bound, currency)]
        for bound in scaling.bounds
    ]
    title = f"numbers of GPUs: {kind.name} alone ({kind.gpu}, {kind.gpus} a node)"
    show(table(title, ["GPUs", "makespan", "GPU-hours", "cost"], lines))
    say(
        f"{kind.name}: the makespan cannot fall below {duration(scaling.least_seconds)}, the start of a node and the "
        f"longest run ({scaling.longest_run}); with fewer than {scaling.enough_gpus} GPUs it is more than {GAIN:.0%} "
        f"above that"
    )


def ranges(bounds: Bounds, currency: str) -> tuple[str, str, str]:
    """Makespan, GPU-hours and cost, each as ``least to most``; ``-`` for a cost where there are no prices."""
    least, most = bounds.least, bounds.most
    cost = f"{least.cost:,.2f} to {most.cost:,.2f} {currency}" if currency else "-"
    makespan = f"{duration(least.makespan_seconds)} to {duration(most.makespan_seconds)}"
    return makespan, f"{least.gpu_hours:,.2f} to {most.gpu_hours:,.2f}", cost
