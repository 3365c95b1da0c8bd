"""One task in a fresh process, a run above all, so that memory peaks and generators are its own.

The process is forked from a server that has imported torch and has run nothing, which saves seconds per run. What it
does there is bench.runs.child_main.
"""

import contextlib
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.events import Event, Report
from bench.runs.child_main import PATIENCE, forked
from bench.storage.disk import DiskError, cannot
from bench.storage.signals import EXIT_INTERRUPTED, Interrupted

PRELOAD = ["torch", "torchvision.models", "sklearn.datasets", "pydantic"]  # what a run imports slowly


class Child:
    """One task in a fresh process. Its complaints go to the file ``log``.

    ``lock`` is a handle that the child holds too (bench.storage.lock). Raises DiskError where the log cannot be
    written.
    """

    def __init__(self, task: dict[str, Any], log: Path, lock: int | None = None) -> None:
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.touch()
        except OSError as error:
            raise cannot("write", log, error) from error
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self.events, sender = context.Pipe(duplex=False)
        alive, self._our_life = context.Pipe(duplex=False)
        held = None if lock is None else Connection(os.dup(lock))  # so that any handle travels
        self._process = context.Process(target=forked, args=(json.dumps(task), sender, alive, held, str(log)))
        self._rest = b""
        # the server keeps them blocked, so that a signal to the group does not end it; a child takes them once it
        # listens
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_INTERRUPTED)
        try:
            resource_tracker.ensure_running()  # its first start unblocks two of them
            signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_INTERRUPTED)
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            for ours in (sender, alive, held):
                if ours is not None:
                    ours.close()

    def heard(self, seconds: float | None = None) -> list[Event] | None:
        """The events that have come; waits for some, at most so long. None once there are no more: it is ending.

        Raises DiskError where the child could not write.
        """
        if not self.events.poll(seconds):
            return []
        data = os.read(self.events.fileno(), 1 << 16)
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        events: list[Event] = []
        for line in lines:
            with contextlib.suppress(ValueError):  # cut off, or not text
                events.append(json.loads(line))
        for event in events:
            if event["event"] == "disk":
                raise DiskError(event["message"])
        return events

    def ended(self) -> int:
        """The exit code, 0 when it went well; waits for it."""
        self._process.join()
        return self._process.exitcode if self._process.exitcode is not None else 1

    def pass_on(self, signum: int) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signum)

    def leave(self, seconds: float) -> None:
        """Give it so long to end by itself."""
        self._process.join(timeout=max(0.0, seconds))

    def close(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.join()
        self.events.close()
        self._our_life.close()


@contextlib.contextmanager
def started(task: dict[str, Any], log: Path, lock: int | None = None) -> Iterator[Child]:
    """One task in a fresh process, see Child, which has ended at the end.

    A signal that reaches the parent is passed on, and the child is given time to save. Raises DiskError and
    Interrupted.
    """
    child = Child(task, log, lock)
    try:
        yield child
    except Interrupted as interrupted:
        child.pass_on(interrupted.signum)
        child.leave(PATIENCE)
        raise
    finally:
        child.close()


def run_child(task: dict[str, Any], report: Report, log: Path, lock: int | None = None) -> int:
    """Do one task in a fresh process, see ``started``: its exit code, 0 when it went well."""
    with started(task, log, lock) as child:
        while (events := child.heard()) is not None:
            for event in events:
                report(event)
        return child.ended()
