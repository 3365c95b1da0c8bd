"""The options of ``bench run`` that say where runs are made, and the engine that follows from them."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.engines import NAMES, Engine, Name
from bench.spec import RunSpec, UsageError

if TYPE_CHECKING:
    from bench.options.options import Options


def command_line() -> list[str]:
    """The command as it was given, to be kept with its results; also one that a script gives to ``bench.cli.main``."""
    context = click.get_current_context(silent=True)
    given = context.find_root().obj if context else None
    return ["bench", *(sys.argv[1:] if given is None else given)]


@dataclass(frozen=True)
class Where:
    """Where runs are made. Raises UsageError for options that do not go together."""

    engine: Name
    jobs: int | None
    address: str | None
    slurm: tuple[str, ...]
    deadline: str | None

    def __post_init__(self) -> None:
        for option, given, engine in (
            ("--jobs", self.jobs is not None, "local"),
            ("--address", self.address is not None, "ray"),
            ("--slurm", bool(self.slurm), "slurm"),
        ):
            if given and self.engine != engine:
                raise UsageError(f"expected {option} with --engine {engine}, got --engine {self.engine}")

    @property
    def here(self) -> bool:
        """Whether this machine is the one, or one like those, that makes the runs."""
        return self.engine == "local" or (self.engine == "ray" and self.address is None)

    def until(self) -> float:
        """The deadline on time.monotonic; infinity without one. Raises UsageError."""
        from bench.options.options import parse_seconds

        return time.monotonic() + parse_seconds(self.deadline, "--deadline") if self.deadline else float("inf")


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """They reach the command as ``where``, a Where."""
    options = [
        click.option("--engine", type=click.Choice(NAMES), default="local", show_default=True, help="what makes runs"),
        click.option("--jobs", type=int, help="local: runs at a time  [one for each GPU, else for each core]"),
        click.option("--address", help="ray: auto or host:port of a cluster  [one is started here]"),
        click.option("--slurm", multiple=True, help="slurm: partition=gpu, account=..., time=MINUTES, ..."),
        click.option("--deadline", help="when runs save and stop, from now: 6h"),
    ]

    def gathered(
        *args: Any, engine: Name, jobs: int | None, address: str | None, slurm: tuple[str, ...], deadline: str | None,
        **given: Any,
    ) -> Any:  # fmt: skip
        return command(*args, where=Where(engine, jobs, address, slurm, deadline), **given)

    gathered.__name__, gathered.__doc__ = command.__name__, command.__doc__
    gathered.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(options):
        gathered = option(gathered)
    return gathered


@contextlib.contextmanager
def engine(
    where: Where, options: "Options", out: Path, specs: list[RunSpec], save_every: float, lock: int | None
) -> Iterator[Engine]:
    """The engine, closed at the end. Raises UsageError."""
    made_by: Engine
    if where.engine == "ray":
        from bench.engines.ray import RayEngine

        made_by = RayEngine(out, save_every, specs, where.address)
    elif where.engine == "slurm":
        from bench.engines.slurm import SlurmEngine, parse_parameters

        made_by = SlurmEngine(out, save_every, specs, parse_parameters(where.slurm))
    else:
        from bench.engines.local import LocalEngine, local_jobs

        jobs, gpus = local_jobs(specs, options.device, where.jobs)
        made_by = LocalEngine(out, save_every, lock, jobs, gpus)
    with contextlib.closing(made_by):
        yield made_by
