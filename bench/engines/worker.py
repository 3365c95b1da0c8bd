"""What a machine of a cluster does for one run: in the shared folder if it sees it, else in a folder of its own.

A run has one owner wherever it is made (bench.storage.lock), so the worker that takes the place of a lost one waits for
what is left of it, and goes on from what that one has saved.
"""

import contextlib
import hashlib
import platform
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path
from pydantic import Field, ValidationError

from bench.engines import codes_of, images_of, run_task
from bench.engines.child import Child
from bench.engines.parcel import Parcel, pack, unpack
from bench.events import Event, Last
from bench.identity.source import Unfit, difference, source_hash
from bench.record import DataInfo
from bench.runs.child_main import PATIENCE, UNFIT
from bench.spec import Data, RunSpec, UsageError
from bench.storage.disk import DiskError, cannot
from bench.storage.lock import owned
from bench.storage.signals import EXIT_INTERRUPTED
from bench.storage.store import MANIFEST, RunFolder

TELL_EVERY = 2.0  # seconds between two calls home: thousands of workers have one home
LOUD = ("train", "attack", "probe")  # events of progress: of several in a row only the last is told


class Order(Data):
    """One run as it is sent to a worker."""

    spec: RunSpec
    out: str  # the folder of all runs, where the worker may or may not see it
    manifest: str  # SHA-256 of the manifest that is there
    source: str  # hash of the code that the worker has to have (bench.identity.source)
    images: DataInfo | None  # that the worker has to have
    codes: dict[str, str] = Field(default_factory=dict)  # row -> hash of the code of its runs, when the command began
    folder: str  # where the command was given: relative names of data and of the user's files start there
    save_every: float
    reached: int = 0  # how much of the run there is at home (RunFolder.reached)
    visible: str | None = None  # what CUDA_VISIBLE_DEVICES is to be; None: as it is


def common(out: Path, save_every: float) -> dict[str, Any]:
    """What all orders of one command say. Raises UsageError."""
    return {
        "out": str(out.resolve()),
        "manifest": manifest_hash(out),
        "images": images_of(out),
        "codes": codes_of(out),
        "folder": str(Path.cwd()),
        "save_every": save_every,
    }


class Outcome(Data):
    """How a run has ended on a worker."""

    code: int
    message: str = ""
    node: str = ""


def answer(
    order: dict[str, Any], parcel: Callable[[], Parcel], tell: Callable[[list[Event]], bool]
) -> tuple[dict[str, Any], Parcel]:
    """What a worker gives back for an order as it came, of which another version may understand nothing; see work."""
    try:
        understood = Order.model_validate(order)
    except ValidationError as error:
        wrong = ", ".join(str(part) for part in error.errors()[0]["loc"])
        message = f"expected an order of the version of bench that is installed here, got another's ({wrong}); "
        message += "install the same version on every machine"
        return Outcome(code=UNFIT, message=message, node=platform.node()).model_dump(), {}
    outcome, files = work(understood, parcel, tell)
    return outcome.model_dump(), files


def work(order: Order, parcel: Callable[[], Parcel], tell: Callable[[list[Event]], bool]) -> tuple[Outcome, Parcel]:
    """Make one run: how it ended, and its files where the folder is not shared.

    ``parcel`` gives what the asking side has of it; ``tell`` takes events and says whether to stop, or raises
    ConnectionError when nobody has answered: the run saves and ends here, since it is about to start elsewhere.
    """
    out, node = Path(order.out), platform.node()
    shared = manifest_hash(out) == order.manifest
    if not shared:
        out = user_cache_path("robust-ssl-bench") / "cells" / order.manifest[:16]
    folder = RunFolder(out, order.spec)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot("write", folder.path, error) from error
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # not there, or not for this user to see
            held.enter_context(contextlib.chdir(order.folder))
        try:
            complaint = difference(node, source_hash(order.spec), order.source)
        except Unfit as unfit:
            complaint = str(unfit)
        if complaint:
            return Outcome(code=UNFIT, message=complaint, node=node), {}
        try:
            lock = held.enter_context(owned(folder.path, moves=True))
        except UsageError as error:  # what is left of a lost worker takes longer to end than this one waits
            return Outcome(code=EXIT_INTERRUPTED[signal.SIGTERM], message=str(error), node=node), {}
        if not shared and folder.reached() < order.reached:  # another machine has come further than this one
            unpack(folder.path, parcel())
        try:
            code, message = attend(order, out, folder.path / "log.txt", lock, tell)
        except DiskError as error:
            return Outcome(code=1, message=str(error), node=node), {}
        files = {} if shared or code == UNFIT else pack(folder.path)  # unfit: nothing was made
        return Outcome(code=code, message=message, node=node), files


def ended(outcome: Outcome, files: Parcel, folder: RunFolder, stopping: bool) -> Last:
    """The last event of a run whose worker has come back, its files brought home first. Raises DiskError, UsageError.

    One that a signal has stopped there, while nobody here is ``stopping``, goes on elsewhere.
    """
    if files:
        unpack(folder.path, files)
    if outcome.code in EXIT_INTERRUPTED.values() and not stopping:
        return {"event": "lost", "message": outcome.message or f"it was stopped on {outcome.node}"}
    return {"event": "exit", "code": outcome.code, "message": outcome.message, "node": outcome.node}


def attend(order: Order, out: Path, log: Path, lock: int, tell: Callable[[list[Event]], bool]) -> tuple[int, str]:
    """Run the child and tell what it says: its exit code and its last error, since not all who ask hear events.

    Cut off from those, it is stopped, and has the exit code of a run that a signal has stopped.
    """
    code = order.codes.get(order.spec.row, "")
    child = Child(run_task(out, order.spec, order.save_every, order.images, order.visible, code), log, lock)
    try:
        untold: list[Event] = []
        message = ""
        told = 0.0
        stopping = False
        while True:
            ready = wait([child.events], TELL_EVERY)
            events = child.heard() if ready else []
            for event in events or ():
                message = event["message"] if event["event"] == "error" else message
                if untold and untold[-1]["event"] == event["event"] in LOUD:
                    untold.pop()
                untold.append(event)
            if events is None:
                untold.append({"event": "home"})
            if events is None or time.monotonic() - told >= TELL_EVERY:
                stop, untold, told = tell(untold), [], time.monotonic()
                if stop and not stopping:
                    stopping = True
                    child.pass_on(signal.SIGTERM)
            if events is None:
                return child.ended(), message
    except BaseException as error:
        child.pass_on(signal.SIGTERM)
        child.leave(PATIENCE)
        if isinstance(error, ConnectionError):
            return child.ended() if events is None else EXIT_INTERRUPTED[signal.SIGTERM], message
        raise
    finally:
        child.close()


def manifest_hash(out: Path) -> str:
    """SHA-256 of the manifest in a folder of runs; "" where there is none."""
    try:
        return hashlib.sha256((out / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return ""
