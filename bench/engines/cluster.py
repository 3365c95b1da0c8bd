"""A cluster as a file describes it."""

from pathlib import Path

from pydantic import Field

from bench.options.options import checked, read_toml
from bench.spec import Data, Name, UsageError

MOST_GPUS = 100_000


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

    @property
    def ready_seconds(self) -> float:
        """When they take their first runs."""
        return self.available_from_seconds + self.start_seconds


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
