"""What the runs would take on a cluster that a file describes: bounds of makespan, GPU-hours and cost, scaling limit.

Nothing is measured here, and no clock runs: the times are those of bench.runs.plan for the measured machine, changed by
each node's stated speed. One run is on each GPU at a time.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.engines.cluster import Cluster, Nodes
from bench.engines.queue import TRIES
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


@dataclass(frozen=True)
class Bill:
    """What the nodes cost. Each is paid from ``available_from_seconds`` to the makespan, busy or not."""

    makespan_seconds: float
    gpu_hours: float
    cost: float


@dataclass(frozen=True)
class Bounds:
    """Between which the bill lies."""

    gpus: int
    least: Bill  # no order of the runs ends earlier
    most: Bill  # none that leaves no GPU idle while a run waits ends later (Graham 1966)


def bounds(kinds: Sequence[Nodes], gpus: Sequence[int], seconds: Sequence[Sequence[float]]) -> Bounds:
    """Of runs on so many GPUs of each kind; ``seconds``: by kind, then by run."""
    places = [(kind.ready_seconds, count) for kind, count in zip(kinds, gpus, strict=True)]
    ends = [[kind.ready_seconds + length for length in own] for kind, own in zip(kinds, seconds, strict=True)]
    quickest, slowest, first_ends = (
        [pick(run) for run in zip(*times, strict=True)] for pick, times in ((min, seconds), (max, seconds), (min, ends))
    )
    least = max(worked(places, sum(quickest)), *first_ends)
    most = worked(places, sum(slowest) - max(slowest)) + max(slowest)  # as if the longest came last
    return Bounds(sum(gpus), bill(kinds, least), bill(kinds, most))


def worked(places: Sequence[tuple[float, int]], gpu_seconds: float) -> float:
    """When so much is done if every GPU works from when it is ready; ``places``: when, and how many."""
    alive = 0
    for (ready, count), (until, _) in itertools.pairwise([*sorted(places), (math.inf, 0)]):
        alive += count
        if gpu_seconds <= alive * (until - ready):
            return ready + gpu_seconds / alive
        gpu_seconds -= alive * (until - ready)
    raise ValueError("expected at least one GPU")


def bill(kinds: Sequence[Nodes], makespan: float) -> Bill:
    """The bill of all these nodes."""
    paid = [(kind, kind.count * max(0.0, makespan - kind.available_from_seconds) / HOUR) for kind in kinds]
    return Bill(makespan, sum(kind.gpus * hours for kind, hours in paid), sum(k.price_per_hour * h for k, h in paid))


@dataclass(frozen=True)
class Scaling:
    """Other numbers of GPUs of one kind alone. No number brings the makespan below the longest run."""

    kind: Nodes
    longest_run: str
    least_seconds: float  # start of the node and longest run: the makespan with a GPU for each run
    enough_gpus: int  # with fewer it is more than 1 % above that, whatever the order
    bounds: list[Bounds]  # of 1, 2, 4, ... GPUs, those of the cluster, and enough_gpus


def scaling(kind: Nodes, seconds: dict[str, float]) -> Scaling:
    """How makespan and cost change with the number of GPUs of this kind, by the seconds of each run; whole nodes."""
    longest = max(seconds, key=lambda run: seconds[run])
    least = kind.ready_seconds + seconds[longest]
    room = (1 + GAIN) * least - kind.ready_seconds  # of each GPU
    enough = min(len(seconds), max(1, math.ceil(sum(seconds.values()) / room)))

    def of(count: int) -> Bounds:
        nodes = kind.model_copy(update={"count": math.ceil(count / kind.gpus)})
        return bounds([nodes], [count], [list(seconds.values())])

    powers = itertools.takewhile(lambda count: count < enough, (2**power for power in itertools.count()))
    return Scaling(kind, longest, least, enough, [of(n) for n in sorted({*powers, enough, kind.count * kind.gpus})])


@dataclass(frozen=True)
class ClusterPlan:
    """The runs on a cluster."""

    cluster: Cluster
    runs: int
    bounds: Bounds
    scalings: list[Scaling]  # of each kind of nodes
    warnings: list[str]

    def document(self) -> dict[str, Any]:
        """The plan for JSON: seconds from the start of the command, costs in the file's currency."""
        scalings = [
            {"nodes": s.kind.name, "gpu": s.kind.gpu, "longest_run": s.longest_run, "least_seconds": s.least_seconds}
            | {"enough_gpus": s.enough_gpus, "bounds": [asdict(bound) for bound in s.bounds]}
            for s in self.scalings
        ]
        document = {"spec": self.cluster.model_dump(), "currency": self.cluster.currency, **asdict(self.bounds)}
        return document | {"scaling": scalings, "warnings": self.warnings}


def plan_cluster(cluster: Cluster, specs: list[RunSpec], measured: dict[str, Measured]) -> ClusterPlan:
    """The bounds of these runs on this cluster; ``measured`` by row.

    A budget in time takes its time on every GPU. Updates, warm-up and passes of the evaluation scale with the speed of
    a node; the start of a run does not.
    """
    seconds: list[dict[str, float]] = []  # of each kind, by run
    for kind in cluster.nodes:
        quick = {row: faster(costs, kind.speed) for row, costs in measured.items()}
        per_hour, back = kind.preemptions_per_hour, kind.start_seconds + START_SECONDS
        alone = {spec.name: estimate(spec, quick[spec.row]).seconds for spec in specs}
        seconds.append(
            {run: with_preemptions(length, per_hour, back, cluster.checkpoint_seconds) for run, length in alone.items()}
        )
    gpus = [kind.count * kind.gpus for kind in cluster.nodes]
    return ClusterPlan(
        cluster,
        len(specs),
        bounds(cluster.nodes, gpus, [list(own.values()) for own in seconds]),
        [scaling(kind, own) for kind, own in zip(cluster.nodes, seconds, strict=True)],
        warnings(cluster, specs, seconds),
    )


def warnings(cluster: Cluster, specs: list[RunSpec], seconds: list[dict[str, float]]) -> list[str]:
    """What a reader of the plan should know before paying."""
    said = []
    if len(cluster.models) > 1:
        timed = any(spec.budget.unit == "seconds" for spec in specs)
        more = "; under a budget in time the faster one makes more updates" if timed else ""
        said.append(
            f"the cluster mixes GPU models ({', '.join(cluster.models)}): times of different hardware are never put "
            f"in one column{more}"
        )
    every = sum(kind.count * kind.gpus for kind in cluster.nodes)
    if every > len(specs):
        said.append(f"{every - len(specs)} of {every} GPUs never get a run")
    losses = max(
        max(own.values()) / HOUR * kind.preemptions_per_hour for kind, own in zip(cluster.nodes, seconds, strict=True)
    )
    if losses > TRIES / 2:
        said.append(f"a run is expected to be preempted {losses:.0f} times, and is given up after {TRIES}")
    return said
