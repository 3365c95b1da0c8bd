"""Where runs are made: in processes of this machine (local), on a Ray cluster (ray), as jobs of Slurm (slurm).

One interface. The conductor (bench.runs.conduct) says which run is next, by bench.engines.queue; an engine starts it
somewhere and tells what happens to it. Results are in the store when an engine says that a run has ended.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from bench.events import Event
from bench.spec import RunSpec

if TYPE_CHECKING:
    from bench.record import DataInfo

Name = Literal["local", "ray", "slurm"]
NAMES: tuple[Name, ...] = ("local", "ray", "slurm")


def run_task(
    out: Path, spec: RunSpec, save_every: float, images: "DataInfo | None", visible: str | None = None, code: str = ""
) -> dict[str, Any]:
    """One run as the process that makes it is told (bench.engines.child). ``images``, ``code``: what it must find.

    ``visible`` is what CUDA_VISIBLE_DEVICES is to be; None: as it is.
    """
    from bench.runs.child_main import task_of

    told = task_of("run", out=str(out), spec=spec.model_dump(mode="json"), save_every=save_every)
    told |= {"images": images.model_dump(mode="json")} if images is not None else {}
    told |= {"code": code} if code else {}
    return told | ({"visible": visible} if visible is not None else {})


def images_of(out: Path) -> "DataInfo | None":
    """The images that the runs of a folder are asked for on; None where it has no manifest. Raises UsageError."""
    from bench.storage.store import MANIFEST, load_manifest

    return load_manifest(out, links=False).data if (out / MANIFEST).is_file() else None


def codes_of(out: Path) -> dict[str, str]:
    """Row -> hash of the code that its runs are asked for with; none where it has no manifest. Raises UsageError."""
    from bench.storage.store import MANIFEST, load_manifest

    return load_manifest(out, links=False).code if (out / MANIFEST).is_file() else {}


class Engine(Protocol):
    """Makes runs. Closed by ``with contextlib.closing(engine)``, whatever has happened."""

    @property
    def slots(self) -> int:
        """How many runs it is given at a time; may change when a cluster grows."""
        ...

    def start(self, spec: RunSpec) -> None:
        """Make this run, or go on with it. Raises DiskError and UsageError."""
        ...

    def poll(self, seconds: float) -> Iterable[tuple[str, Event]]:
        """What has happened since the last call: (name of the run, event); waits at most so long for something.

        Each run ends with one ``exit`` or ``lost``. Raises DiskError.
        """
        ...

    def stop(self, signum: int) -> None:
        """Pass a signal on to all that run, and give them time to save."""
        ...

    def close(self) -> None:
        """End everything that still runs."""
        ...
