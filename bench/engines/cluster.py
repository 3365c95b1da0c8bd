"""A cluster as a file describes it, and the runs of a Schedule on its GPUs in virtual time."""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import Field

from bench.engines.queue import Schedule
from bench.options.options import checked, read_toml
from bench.spec import Data, Name, UsageError

MOST_GPUS = 100_000

# ---------------------------------------------------------------- the file


class Nodes(Data):
    """``count`` equal nodes. They take runs from ``available_from_seconds + start_seconds`` on, and are paid from
    ``available_from_seconds`` on; one that is preempted is back after ``start_seconds``."""

    name: Name
    count: int = Field(default=1, ge=1)
    gpus: int = Field(ge=1)  # of each node
    gpu: str = Field(min_length=1)  # the model
    speed: float = Field(ge=1e-4, le=1e5)  # relative to the machine that measured
    price_per_hour: float = Field(default=0, ge=0, le=1e9)  # of each node
    preemptions_per_hour: float = Field(default=0, ge=0, le=60)  # of each node
    start_seconds: float = Field(default=0, ge=0, le=1e9)
    available_from_seconds: float = Field(default=0, ge=0, le=1e9)


class Cluster(Data):
    """What a cluster file holds. ``currency`` is that of every price."""

    nodes: tuple[Nodes, ...] = ()
    currency: str = ""
    checkpoint_seconds: float = Field(default=300, gt=0, le=3600)  # between two, as --checkpoint-every

    @property
    def models(self) -> list[str]:
        """The GPU models, each once."""
        return list(dict.fromkeys(kind.gpu for kind in self.nodes))


def load_cluster(path: Path) -> Cluster:
    """The cluster in a TOML file. Raises UsageError for what is not there, not known, or not possible."""
    values, where = read_toml(path, "cluster"), str(path)
    nodes = values.get("nodes")
    if isinstance(nodes, list) and all(isinstance(kind, dict) for kind in nodes):  # so that each names its own keys
        values["nodes"] = [checked(Nodes, kind, f"{where}: [[nodes]] {place}") for place, kind in enumerate(nodes, 1)]
    cluster = checked(Cluster, values, where)
    kinds = cluster.nodes
    if not kinds:
        raise UsageError(
            f"{where}: expected at least one [[nodes]], got none; its keys: " + ", ".join(Nodes.model_fields)
        )
    names = [kind.name for kind in kinds]
    if len(set(names)) != len(names):
        raise UsageError(f"{where}: expected [[nodes]] of different names, got {', '.join(names)}")
    if sum(kind.count * kind.gpus for kind in kinds) > MOST_GPUS:
        raise UsageError(f"{where}: expected at most {MOST_GPUS} GPUs in all")
    if not cluster.currency and any(kind.price_per_hour for kind in kinds):
        raise UsageError(f'{where}: expected the currency of the prices, such as currency = "EUR", got none')
    return cluster


@dataclass(frozen=True, eq=False)
class Gpu:
    """One GPU, equal to itself alone, which takes a run from ``ready`` seconds on."""

    node: str
    number: int  # of its node among those of its kind, from 1
    place: int  # on its node
    kind: Nodes

    @property
    def ready(self) -> float:
        return self.kind.available_from_seconds + self.kind.start_seconds


def all_gpus(kinds: Sequence[Nodes]) -> list[Gpu]:
    """Every GPU of these nodes; node i of several is ``name-i``, from 1."""
    return [
        Gpu(kind.name if kind.count == 1 else f"{kind.name}-{number}", number, place, kind)
        for kind in kinds
        for number in range(1, kind.count + 1)
        for place in range(kind.gpus)
    ]


# ---------------------------------------------------------------- virtual time


@dataclass(frozen=True)
class Placed:
    """A run on a GPU, from ``start`` to ``end``, in seconds from the start of the command."""

    run: str
    gpu: Gpu
    start: float
    end: float


class VirtualCluster:
    """The jobs of a schedule on GPUs in virtual time: what has waited longest on the fastest free GPU.

    A run takes ``seconds(run, gpu)``. What else may happen is put in by ``at``.
    """

    def __init__(self, schedule: Schedule, gpus: Sequence[Gpu], seconds: Callable[[str, Gpu], float]) -> None:
        self.schedule, self.seconds = schedule, seconds
        self.now = 0.0
        self.placed: list[Placed] = []
        self.queue: deque[str] = deque()  # out, and waiting for a GPU
        self._order = itertools.count()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.idle: list[tuple[float, int, Gpu]] = []
        for gpu in gpus:
            self.at(gpu.ready, partial(self.free, gpu))

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do this at that time; what falls on the same time is done in the order in which it was said."""
        heapq.heappush(self.events, (when, next(self._order), action))

    def run(self) -> None:
        """Go on until every job has ended or is given up. Raises RuntimeError where jobs wait and nothing happens."""
        while not self.schedule.over:
            if not self.events:
                raise RuntimeError(f"{self.schedule.waiting} jobs wait and nothing happens any more")
            self.now = self.events[0][0]
            while self.events and self.events[0][0] == self.now:
                heapq.heappop(self.events)[-1]()
            while (name := self.schedule.next()) is not None:
                self.queue.append(name)
            while self.queue and self.idle:
                self.begin(self.queue.popleft(), heapq.heappop(self.idle)[-1])

    def free(self, gpu: Gpu) -> None:
        """This GPU takes the next run."""
        heapq.heappush(self.idle, (-gpu.kind.speed, next(self._order), gpu))

    def begin(self, name: str, gpu: Gpu) -> None:
        """This run starts here."""
        began = self.now
        self.at(began + self.seconds(name, gpu), lambda: self.end(name, gpu, began))

    def end(self, name: str, gpu: Gpu, began: float) -> None:
        """This run has ended here."""
        self.placed.append(Placed(name, gpu, began, self.now))
        self.schedule.end(name)
        self.free(gpu)
