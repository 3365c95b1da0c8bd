"""Tells hooks of the runs without ever waiting for one: each lives in a process of its own, fed by a thread.

What a hook does there - raise, hang, exit, crash, fill its memory, take over signals - costs a warning and the hook,
never a run. Its process is ready before the first training begins, so its imports are not charged to one. A thread
would not do: nothing ends one that hangs, and one that exits, crashes or holds Python's lock takes the command along.
"""

import hashlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench import registry
from bench.events import Event
from bench.record import Record
from bench.spec import RunSpec, UsageError
from bench.storage.signals import Interrupted
from bench.tracking.hooks import Accuracy, Hook, Progress, Run

START = 60.0  # seconds that its imports may take
CALL = 60.0  # seconds that one call may take
CLOSE = 30.0  # seconds for what is left to say when all runs have ended
STOP = 1.0  # seconds for the same after a signal: the whole command ends within 10
EVERY = 2.0  # seconds of training between two calls of ``progress``
WAITING = 100  # calls that may wait before further ``progress`` is left out
LOG = "track-log.txt"

Say = Callable[[str, str], None]  # a line, and its style


def parse_trackers(text: str) -> list[str]:
    """The trackers in a list with commas, each a name or a path to a .py file, checked without importing its package.

    Raises UsageError for an unknown one, and for one whose package is not installed.
    """
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise UsageError(f"expected at least one tracker, got {text!r}; known: {', '.join(registry.names('tracker'))}")
    for name in names:
        package = getattr(registry.load("tracker", name), "PACKAGE", None)
        spec = find_spec(package) if package else None
        if package and (spec is None or spec.origin is None):  # wandb makes a folder wandb: no package
            known = name in registry.names("tracker")
            wanted = f"'robust-ssl-bench[{name}]'" if known else package
            raise UsageError(f"--track {name} needs {package}: pip install {wanted}")
    return names


@dataclass
class Heard:
    """What was heard of a run."""

    run: Run
    told: float = -EVERY  # seconds of training at the last call of ``progress``
    updates: int = 0


class Tracking:
    """The hooks of one command, to be entered. Every method returns at once."""

    def __init__(self, names: Sequence[str], out: Path, say: Say, origin: str = "") -> None:
        """``say`` shows a warning, from any thread. ``origin`` tells this folder from all others."""
        self._out, self._origin = out.resolve(), origin
        self._followers = [Follower(name, out / LOG, say) for name in names]
        self._runs: dict[str, Heard] = {}

    def __enter__(self) -> "Tracking":
        try:
            for follower in self._followers:
                follower.start()
            for follower in self._followers:
                follower.ready.wait()
        except Interrupted:
            for follower in self._followers:
                follower.end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        until = time.monotonic() + (STOP if kind is not None and issubclass(kind, Interrupted) else CLOSE)
        for follower in self._followers:
            follower.finish()
        for follower in self._followers:
            follower.close(until)

    def started(self, spec: RunSpec) -> None:
        """A run begins, or goes on."""
        identity = hashlib.sha256(f"{spec.name} {self._origin}".encode()).hexdigest()[:16]
        self._runs[spec.name] = Heard(Run(id=identity, spec=spec, out=self._out))
        self._tell("started", spec.name)

    def event(self, name: str, event: Event) -> None:
        """An event of the engine in a run that was started."""
        heard = self._runs[name]
        if event["event"] == "train" or event["event"] == "trained":
            heard.updates = event["updates"]
        if event["event"] == "train" and (event["seconds"] >= heard.told + EVERY or event["progress"] >= 1):
            heard.told = event["seconds"]
            progress = Progress(
                share=event["progress"],
                updates=event["updates"],
                seconds=event["seconds"],
                loss=event["loss"],
                images_per_second=event["images_per_second"],
            )
            self._tell("progress", name, progress)
        elif event["event"] == "cell":
            accuracy = Accuracy(
                updates=heard.updates,
                protocol=event["protocol"],
                attack=event["attack"],
                eps=event["eps"],
                correct=event["correct"],
                total=event["total"],
            )
            self._tell("evaluated", name, accuracy)

    def ended(self, record: Record) -> None:
        """A run that was started has ended, well or not."""
        self._tell("ended", record.spec.name, record)

    def _tell(self, method: str, name: str, *what: Any) -> None:
        for follower in self._followers:
            follower.tell(method, self._runs[name].run, *what)


# ---------------------------------------------------------------- one hook, seen from the command


class HookError(Exception):
    """A hook did not do what it was asked to."""


class Follower:
    """A hook in its process, and the thread that waits for it."""

    def __init__(self, name: str, log: Path, say: Say) -> None:
        self.ready = threading.Event()  # it takes calls, or never will
        self._name, self._log, self._say = name, log, say
        self._calls: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._failed = self._finishing = False
        self._answers, self._theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=serve, args=(name, self._theirs, str(log)), daemon=True)
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def start(self) -> None:
        """Its process begins; ``ready`` is set within START seconds."""
        self._process.start()
        self._theirs.close()
        self._thread.start()

    def tell(self, method: str, *what: Any) -> None:
        """Call this method of the hook when its turn comes."""
        waits = method == "progress" and self._calls.qsize() >= WAITING
        if not (self._failed or waits):
            self._calls.put((method, *what))

    def finish(self) -> None:
        """Nothing more will be told: what is left is heard, but for progress."""
        self._finishing = True
        self._calls.put(None)

    def close(self, until: float) -> None:
        """Wait for the hook until this time, then end its process."""
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._fail("had not heard everything when the command ended")
        self._process.join(max(0.0, until - time.monotonic()))
        self.end()

    def end(self) -> None:
        """End its process, whatever it does."""
        self._failed = True
        if self._process.pid is not None:  # it was started
            self._process.kill()
            self._process.join()

    def _follow(self) -> None:
        try:
            self._answer(START)
            self.ready.set()
            while (call := self._calls.get()) is not None:
                if not (self._finishing and call[0] == "progress"):
                    self._answers.send(call)
                    self._answer(CALL)
        except (HookError, OSError) as error:
            self._fail(str(error))
        finally:
            self.ready.set()
            self._answers.close()  # the process takes this for the end

    def _answer(self, seconds: float) -> None:
        if not self._answers.poll(seconds):
            raise HookError(f"no answer for {seconds:g} s")
        try:
            complaint = self._answers.recv()
        except EOFError:
            raise HookError("its process has ended") from None
        if complaint:
            raise HookError(complaint)

    def _fail(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            self._say(f"warning: {self._name}: {reason}; it hears no more of this command (see {self._log})", "yellow")
        self._process.kill()


# ---------------------------------------------------------------- the process of a hook


def serve(name: str, calls: Connection, log: str) -> None:
    """Make the hook and do what it is told, an answer for each call: nothing, or what went wrong, which is the end.

    In a session of its own, so that Ctrl-C does not reach it; what it prints goes to the log.
    """
    os.setsid()
    try:
        with open(log, "a", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        hook: Hook = registry.load("tracker", name).Tracker()
        calls.send("")
        while True:
            method, *what = calls.recv()
            getattr(hook, method)(*what)
            calls.send("")
    except EOFError:
        pass  # all is said
    except BaseException as error:  # SystemExit too
        import traceback

        traceback.print_exc()
        calls.send(f"{type(error).__name__}: {error}".splitlines()[0])
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(CLOSE))  # what its package still does at the end of Python may hang too
