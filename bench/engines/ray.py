"""Runs on a Ray cluster, one task each (Ray Core, the extra ``[ray]``); without an address one is started here.

A task is tried once by Ray: what was lost is started again by the conductor, as with every engine.
"""

import contextlib
import itertools
import logging
import math
import os
import time
from pathlib import Path
from textwrap import shorten
from typing import Any

from bench.engines.parcel import Parcel, names, pack
from bench.engines.worker import TELL_EVERY, Order, Outcome, answer, common, ended
from bench.events import Event
from bench.identity.source import source_hash
from bench.runs.child_main import PATIENCE
from bench.spec import RunSpec, UsageError
from bench.storage.store import RunFolder

ANSWER = 10.0  # seconds in which the mailbox answers; a worker that is cut off saves and ends
SILENT = 30.0  # seconds without a word from a worker: by then it has ended with all that it has started
ARRIVAL = 600.0  # seconds that the files of a run may be on their way home
SAME_MODE = "head, nodes and this command need the same RAY_AUTH_MODE, token or disabled (docs/cluster.md)"
AHEAD = 2  # tasks in flight for each that can run: the next is there when one ends


class Mailbox:
    """An actor beside the conductor: workers leave events, and learn whether to stop.

    Only the worker of a run's newest try is heard. One that was given up, and was only asleep, is told to stop.
    """

    def __init__(self) -> None:
        self.letters: list[tuple[str, list[Event]]] = []
        self.tries: dict[str, int] = {}  # name of a run -> its newest try
        self.stopping = False

    def expect(self, name: str, attempt: int) -> None:
        self.letters = [letter for letter in self.letters if letter[0] != name]
        self.tries[name] = attempt

    def put(self, name: str, attempt: int, events: list[Event]) -> bool:
        if self.tries.get(name) != attempt:
            return True
        self.letters.append((name, events))
        return self.stopping

    def take(self) -> list[tuple[str, list[Event]]]:
        taken, self.letters = self.letters, []
        return taken

    def stop(self) -> None:
        self.stopping = True


def task(
    order: dict[str, Any], name: str, attempt: int, mailbox: Any, parcel: list[Any]
) -> tuple[dict[str, Any], Parcel]:
    """What runs on a worker. ``parcel`` holds a reference, so that its content travels only where it is asked for.

    Nothing here calls ray.get: while a task waits in it, Ray gives its cores to another one.
    """
    import ray

    if order["visible"] is None:  # Ray has said it to this process; what this process starts has to hear of it too
        order = order | {"visible": os.environ.get("CUDA_VISIBLE_DEVICES")}

    def tell(events: list[Event]) -> bool:
        try:
            return bool(mailbox.put.remote(name, attempt, events).future().result(ANSWER))
        except (TimeoutError, ray.exceptions.RayError) as error:
            raise ConnectionError(f"no answer from the command: {type(error).__name__}") from error

    def fetch() -> Parcel:
        content: Parcel = parcel[0].future().result() if parcel else {}
        return content

    return answer(order, fetch, tell)


class RayEngine:
    """Runs of the folder ``out`` on the cluster at ``address``: ``auto``, host:port, or None for one on this machine.

    Raises UsageError where Ray is not installed, no cluster is there, or it has not what one run needs.
    """

    def __init__(self, out: Path, save_every: float, specs: list[RunSpec], address: str | None = None) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError("--engine ray needs Ray; pip install 'robust-ssl-bench[ray]'") from None
        ranks = max(spec.gpus_per_run for spec in specs)
        gpus = ranks if specs[0].device.startswith("cuda") else 0
        threads = ranks * max(spec.threads or 1 for spec in specs)  # so many cores are kept for each run
        self._ray: Any = ray
        self._out, self._common = out, common(out, save_every)
        self._needs = {"num_gpus": gpus, "num_cpus": max(1, ranks, threads)}
        self._refs: dict[Any, RunSpec] = {}
        self._due: dict[str, float] = {}  # name of a run that a worker has begun -> when it is silent, time.monotonic
        self._attempts = itertools.count()
        self._stopping = False
        nowhere = f"no Ray cluster at {address or 'this machine'}"
        try:
            ray.init(address=address, include_dashboard=False if address is None else None, log_to_driver=False,
                     logging_level=logging.ERROR)  # fmt: skip
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(f"{nowhere}: {str(error).splitlines()[0]}; {SAME_MODE}") from None
        if not self._capacity():
            there = {name: count for name, count in ray.cluster_resources().items() if name in ("CPU", "GPU")}
            ray.shutdown()
            raise UsageError(f"expected a cluster with {self._needs} for one run, got {there}")
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        mailbox: Any = ray.remote(Mailbox)
        self._mailbox = mailbox.options(num_cpus=0, scheduling_strategy=here).remote()
        try:
            ray.get(self._mailbox.take.remote(), timeout=2 * SILENT)
        except ray.exceptions.RayError as error:
            ray.shutdown()
            raise UsageError(f"{nowhere} that starts a process ({type(error).__name__}); {SAME_MODE}") from None
        self._task = ray.remote(max_retries=0)(task)  # a run has a process of its own under Ray's (bench.engines.child)

    def _capacity(self) -> int:
        """How many runs the cluster can make at a time."""
        there = self._ray.cluster_resources()
        gpus = there.get("GPU", 0) / self._needs["num_gpus"] if self._needs["num_gpus"] else math.inf
        return int(min(gpus, there.get("CPU", 0) / self._needs["num_cpus"]))

    @property
    def slots(self) -> int:
        """See Engine; at least one, so that a cluster that has lost its nodes is waited for."""
        return AHEAD * max(1, self._capacity())

    def start(self, spec: RunSpec) -> None:
        """See Engine."""
        visible = None if self._needs["num_gpus"] else ""  # Ray says which GPU; where none is asked for it hides none
        begun = RunFolder(self._out, spec)
        order = Order(spec=spec, source=source_hash(spec), reached=begun.reached(), visible=visible, **self._common)
        parcel = [self._ray.put(pack(begun.path))] if names(begun.path) else []
        made = self._task.options(**self._needs)
        self._due.pop(spec.name, None)
        attempt = next(self._attempts)
        self._ask(self._mailbox.expect.remote(spec.name, attempt))
        self._refs[made.remote(order.model_dump(mode="json"), spec.name, attempt, self._mailbox, parcel)] = spec

    def poll(self, seconds: float) -> list[tuple[str, Event]]:
        """See Engine. Raises ConnectionError where the cluster is gone."""
        ready, _ = self._ray.wait(list(self._refs), num_returns=1, timeout=seconds)
        if ready:  # and all others that are ready too
            ready, _ = self._ray.wait(list(self._refs), num_returns=len(self._refs), timeout=0)
        heard: list[tuple[str, Event]] = []
        for name, events in self._ask(self._mailbox.take.remote()):
            home = any(event["event"] == "home" for event in events)
            self._due[name] = time.monotonic() + (ARRIVAL if home else SILENT)
            heard += [(name, event) for event in events if event["event"] != "home"]
        heard += self._silent(ready)  # before the files of those that are ready are taken in, which may take long
        for ref in ready:
            spec = self._refs.pop(ref)
            heard.append((spec.name, self._ended(ref, spec)))
        return heard

    def _ask(self, answer: Any) -> Any:
        """What the mailbox answers. Raises ConnectionError where the cluster is gone."""
        try:
            return self._ray.get(answer, timeout=SILENT)
        except self._ray.exceptions.RayError as error:
            raise ConnectionError(
                f"the Ray cluster is gone ({type(error).__name__}); with a cluster, the same command goes on"
            ) from error

    def _silent(self, ready: list[Any]) -> list[tuple[str, Event]]:
        """The runs whose workers are not heard of any more. Ray itself may take minutes to notice a silent node."""
        now = time.monotonic()
        gone = {ref: spec for ref, spec in self._refs.items() if self._due.get(spec.name, now) < now}
        gone = {ref: spec for ref, spec in gone.items() if ref not in ready}
        for ref in gone:
            self._ray.cancel(ref, force=True)  # so that a worker that was only asleep does not go on
            del self._refs[ref]
        return [(spec.name, {"event": "lost", "message": "its worker is silent"}) for spec in gone.values()]

    def _ended(self, ref: Any, spec: RunSpec) -> Event:
        failures = self._ray.exceptions
        try:
            told, files = self._ray.get(ref)
        except failures.RayTaskError as error:
            cause = error.cause or error
            return {"event": "exit", "code": 1, "message": f"{type(cause).__name__}: {cause}".splitlines()[0]}
        except failures.RayError as error:
            return {"event": "lost", "message": shorten(f"{type(error).__name__}: {error}", 140, placeholder=" ...")}
        return ended(Outcome.model_validate(told), files, RunFolder(self._out, spec), self._stopping)

    def stop(self, signum: int) -> None:
        """See Engine: workers learn of it within seconds; files that are on their way are waited for."""
        self._stopping = True
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.get(self._mailbox.stop.remote(), timeout=PATIENCE)
        for ref in [ref for ref, spec in self._refs.items() if spec.name not in self._due]:
            self._ray.cancel(ref)  # waits, or has only just begun
        until = time.monotonic() + 2 * TELL_EVERY + PATIENCE
        while self._refs and (time.monotonic() < until or self._coming()):
            self.poll(0.5)

    def _coming(self) -> bool:
        """Whether files of a run are on their way home."""
        now = time.monotonic()
        return any(self._due.get(spec.name, now) > now + SILENT for spec in self._refs.values())

    def close(self) -> None:
        """See Engine: what still runs is killed with the connection."""
        self._ray.shutdown()
