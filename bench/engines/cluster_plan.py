"""What the runs would take on a cluster that a file describes: schedule, makespan, GPU-hours, cost, scaling limit.

The real Schedule places the runs on GPUs in virtual time, one run on each GPU at a time. Nothing is measured here, and
no clock runs: the times are those of bench.runs.plan for the measured machine, changed by each node's stated speed.
"""

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.engines.cluster import Cluster, Gpu, Nodes, Placed, VirtualCluster, all_gpus
from bench.engines.queue import TRIES, Job, Schedule
from bench.runs.plan import START_SECONDS, Measured, estimate
from bench.spec import RunSpec

HOUR = 3600.0
GAIN = 0.01  # of the makespan: what further GPUs must bring to be worth naming


def faster(measured: Measured, speed: float) -> Measured:
    """What would have been measured on a machine ``speed`` times as fast."""
    return measured.model_copy(
        update={
            "update_seconds": measured.update_seconds / speed,
            "warm_up_seconds": measured.warm_up_seconds / speed,
            "passes": {protocol: (a / speed, b / speed) for protocol, (a, b) in measured.passes.items()},
        }
    )


def with_preemptions(seconds: float, per_hour: float, back_seconds: float, checkpoint_seconds: float) -> float:
    """Expected seconds of work that is preempted at random times and goes on from its last checkpoint.

    Daly 2006 (Future Generation Computer Systems 22), eq. 13, without the time to write: a stretch of t seconds between
    two checkpoints takes (e^(r t) - 1) (1 / r + back), where r is the rate and ``back`` is until the run goes on.
    Evaluation is taken to be saved as often as training.
    """
    if not per_hour or not seconds:
        return seconds
    rate, stretches = per_hour / HOUR, math.ceil(seconds / checkpoint_seconds)
    return stretches * math.expm1(rate * seconds / stretches) * (1 / rate + back_seconds)


def place(jobs: list[Job], gpus: list[Gpu], seconds: dict[str, dict[str, float]]) -> list[Placed]:
    """Every job on a GPU, as the scheduler does it; ``seconds`` by the name of the nodes, then by that of the job."""
    cluster = VirtualCluster(Schedule(jobs, len(gpus)), gpus, lambda name, gpu: seconds[gpu.kind.name][name])
    cluster.run()
    return cluster.placed


@dataclass(frozen=True)
class Bill:
    """What a placement takes. Every node is paid from ``available_from_seconds`` to the makespan, busy or not."""

    gpus: int
    makespan_seconds: float
    gpu_hours: float  # paid
    cost: float
    utilization: float  # share of the paid GPU time in which a run runs


def bill(placed: list[Placed], kinds: Sequence[Nodes], gpus: int) -> Bill:
    """The bill of a placement on ``gpus`` GPUs of these nodes."""
    makespan = max(each.end for each in placed)
    paid = [(kind, kind.count * max(0.0, makespan - kind.available_from_seconds) / HOUR) for kind in kinds]
    gpu_hours = sum(kind.gpus * hours for kind, hours in paid)
    return Bill(
        gpus=gpus,
        makespan_seconds=makespan,
        gpu_hours=gpu_hours,
        cost=sum(kind.price_per_hour * hours for kind, hours in paid),
        utilization=sum(each.end - each.start for each in placed) / HOUR / gpu_hours,
    )


@dataclass(frozen=True)
class Scaling:
    """Other numbers of GPUs of one kind alone. No number brings the makespan below the longest run."""

    kind: Nodes
    longest_run: str
    least_seconds: float  # start of the node and longest run: the makespan with a GPU for each run
    enough_gpus: int  # the fewest whose makespan is within 1 % of that
    bills: list[Bill]  # over 1, 2, 4, ... GPUs, those of the cluster, and enough_gpus


def scaling(kind: Nodes, jobs: list[Job], seconds: dict[str, dict[str, float]]) -> Scaling:
    """How makespan and cost change with the number of GPUs of this kind; whole nodes are paid.

    The makespan never grows with a GPU more: equal GPUs take independent jobs from one list (Graham 1969).
    """

    def of(count: int) -> Bill:
        nodes = kind.model_copy(update={"count": math.ceil(count / kind.gpus)})
        return bill(place(jobs, all_gpus([nodes])[:count], seconds), [nodes], count)

    own = seconds[kind.name]
    longest = max(own, key=lambda name: own[name])
    least = all_gpus([kind])[0].ready + own[longest]
    counts = range(1, len(jobs) + 1)
    near = (1 + GAIN) * least
    enough = counts[bisect.bisect_left(counts, True, key=lambda count: of(count).makespan_seconds <= near)]
    powers = itertools.takewhile(lambda count: count < enough, (2**power for power in itertools.count()))
    return Scaling(kind, longest, least, enough, [of(n) for n in sorted({*powers, enough, kind.count * kind.gpus})])


@dataclass(frozen=True)
class ClusterPlan:
    """The runs on a cluster."""

    cluster: Cluster
    placed: list[Placed]  # in the order of their ends
    bill: Bill
    scalings: list[Scaling]  # of each kind of nodes
    warnings: list[str]

    def document(self) -> dict[str, Any]:
        """The plan for JSON: seconds from the start of the command, costs in the file's currency."""
        scalings = [
            {"nodes": s.kind.name, "gpu": s.kind.gpu, "longest_run": s.longest_run, "least_seconds": s.least_seconds}
            | {"enough_gpus": s.enough_gpus, "bills": [vars(each) for each in s.bills]}
            for s in self.scalings
        ]
        placed = [
            {"run": p.run, "node": p.gpu.node, "gpu": p.gpu.place, "model": p.gpu.kind.gpu}
            | {"start_seconds": p.start, "end_seconds": p.end}
            for p in self.placed
        ]
        document = {"spec": self.cluster.model_dump(), "currency": self.cluster.currency, **vars(self.bill)}
        return document | {"schedule": placed, "scaling": scalings, "warnings": self.warnings}


def plan_cluster(cluster: Cluster, specs: list[RunSpec], measured: dict[str, Measured]) -> ClusterPlan:
    """The schedule and the bill of these runs on this cluster; ``measured`` by row.

    A budget in time takes its time on every GPU. Updates, warm-up and passes of the evaluation scale with the speed of
    a node; the start of a run does not.
    """
    seconds: dict[str, dict[str, float]] = {}
    for kind in cluster.nodes:
        quick = {row: faster(each, kind.speed) for row, each in measured.items()}
        back = kind.start_seconds + START_SECONDS
        seconds[kind.name] = {
            spec.name: with_preemptions(
                estimate(spec, quick[spec.row]).seconds, kind.preemptions_per_hour, back, cluster.checkpoint_seconds
            )
            for spec in specs
        }
    jobs = [Job(spec.name, spec.seed, estimate(spec, measured[spec.row]).seconds) for spec in specs]
    gpus = all_gpus(cluster.nodes)
    placed = place(jobs, gpus, seconds)
    return ClusterPlan(
        cluster,
        placed,
        bill(placed, cluster.nodes, len(gpus)),
        [scaling(kind, jobs, seconds) for kind in cluster.nodes],
        warnings(cluster, specs, placed),
    )


def warnings(cluster: Cluster, specs: list[RunSpec], placed: list[Placed]) -> list[str]:
    """What a reader of the plan should know before paying."""
    found = []
    if len(cluster.models) > 1:
        timed = any(spec.budget.unit == "seconds" for spec in specs)
        more = "; under a budget in time the faster one makes more updates" if timed else ""
        found.append(
            f"the cluster mixes GPU models ({', '.join(cluster.models)}): times of different hardware are never put "
            f"in one column{more}"
        )
    every = len(all_gpus(cluster.nodes))
    idle = every - len({each.gpu for each in placed})
    if idle:
        found.append(f"{idle} of {every} GPUs never get a run")
    losses = max((p.end - p.start) / HOUR * p.gpu.kind.preemptions_per_hour for p in placed)
    if losses > TRIES / 2:
        found.append(f"a run is expected to be preempted {losses:.0f} times, and is given up after {TRIES}")
    return found
