"""One task in a fresh process, a run above all, so that memory peaks and generators are its own.

The process is forked from a server that has imported torch and has run nothing, which saves seconds per run. It reads
one JSON document and writes one JSON event per line: progress for whoever shows it, never a result. Results go to the
store only. It notices when its parent dies, and stops as by SIGTERM. ``python -m bench.process`` does the same without
a server, from standard input to standard output.
"""

import contextlib
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from bench import registry
from bench.disk import DiskError, cannot
from bench.signals import EXIT_INTERRUPTED, Interrupted, StopFlag
from bench.spec import DataInfo, RunSpec, UsageError

Report = Callable[[dict[str, Any]], None]
PATIENCE = 6.0  # seconds that an interrupted child has to save: the whole command ends within 10
UNFIT = 5  # exit code of a process whose machine cannot make the run, while another may (bench.source)
SAVE_EVERY = 300.0  # seconds of training between two checkpoints
PRELOAD = ["torch", "torchvision.models", "sklearn.datasets", "pydantic"]  # what a run imports slowly


# ---------------------------------------------------------------- the parent's side


class Child:
    """One task in a fresh process. Its complaints go to the file ``log``.

    ``lock`` is a handle that the child holds too (bench.lock). Raises DiskError where the log cannot be written.
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

    def heard(self, seconds: float | None = None) -> list[dict[str, Any]] | None:
        """The events that have come; waits for some, at most so long. None once there are no more: it is ending.

        Raises DiskError where the child could not write.
        """
        if not self.events.poll(seconds):
            return []
        data = os.read(self.events.fileno(), 1 << 16)
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):  # cut off, or not text
                found.append(json.loads(line))
        for event in found:
            if event.get("event") == "disk":
                raise DiskError(event["message"])
        return found

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


@contextlib.contextmanager
def main_hidden() -> Iterator[None]:
    """Inside, no new process runs the main module of this one again, as multiprocessing has it: none needs it.

    A script that calls the command line without ``if __name__ == "__main__"`` would begin the command anew in each
    process; one from standard input is nowhere to be found.
    """
    ours = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = ours


# ---------------------------------------------------------------- the child's side


def forked(task: str, events: Connection, alive: Connection, lock: Connection | None, log: str) -> None:
    """The child process of the server: its own session (Ctrl-C reaches the parent only), its output in the log.

    The lock is held by being there.
    """
    os.setsid()
    threading.Thread(target=follow_parent, args=(alive,), daemon=True).start()
    with open(log, "a", encoding="utf-8") as errors:
        os.dup2(errors.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    code = 1
    with contextlib.suppress(BrokenPipeError), open(events.fileno(), "w", encoding="utf-8", closefd=False) as lines:
        code = main(io.StringIO(task), lines, lock)
    sys.exit(code)


def follow_parent(alive: Connection) -> None:
    """Stop this process when its parent is gone: its end of the pipe closes, whatever has ended it.

    Where the process does not listen, in a long call of a library, it is killed as the parent would have done.
    """
    with contextlib.suppress(EOFError, OSError):
        alive.recv()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os.kill(os.getpid(), signal.SIGKILL)


def main(stdin: TextIO = sys.stdin, stdout: TextIO = sys.stdout, lock: Connection | None = None) -> int:
    """The child process: one task in, events out. Exit codes as everywhere. ``lock`` is for the ranks of a run."""
    flag = StopFlag()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, EXIT_INTERRUPTED)

    def report(event: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(event), file=stdout, flush=True)

    try:
        task = json.loads(stdin.read())
        if "visible" in task:  # torch is loaded, and asks when it first needs a GPU
            os.environ["CUDA_VISIBLE_DEVICES"] = task["visible"]
        if task["task"] == "measure":
            from bench.plan import measure

            specs = [RunSpec.model_validate(spec) for spec in task["specs"]]
            measure(specs, report)
        elif task["task"] == "evaluate_foreign":
            from bench.foreign_request import Request
            from bench.foreign_run import evaluate_foreign

            evaluate_foreign(Request.model_validate(task["request"]), report)
        elif task["task"] == "transfer":
            from bench.transfer import transfer

            transfer(Path(task["out"]), report)
        elif task["task"] == "fixed":
            from bench.fixed import score_all

            score_all(task["fixed"], Path(task["weights"]), Path(task["out"]), report)
        elif task["task"] == "rank":
            from bench.launch import take_part

            return take_part(task, report, flag)
        elif task["spec"].get("gpus_per_run", 1) > 1:
            from bench.launch import launch

            return launch(task, report, stdout.fileno(), lock)
        else:
            from bench.execute import execute

            spec = RunSpec.model_validate(task["spec"])
            every, images = task.get("save_every", SAVE_EVERY), expected_images(task)
            execute(Path(task["out"]), spec, report, flag, every, images=images, code=task.get("code", ""))
    except Interrupted as interrupted:
        return EXIT_INTERRUPTED[signal.Signals(interrupted.signum)]
    except UsageError as error:
        from bench.source import Unfit  # which the command line need not load

        report({"event": "error", "message": str(error), "usage": True})
        return UNFIT if isinstance(error, Unfit) else 2
    except DiskError as error:
        report({"event": "disk", "message": str(error)})
        return 1
    except Exception as error:
        traceback.print_exc()
        report({"event": "error", "message": in_one_line(error)})
        return 1
    return 0


def in_one_line(error: Exception) -> str:
    """What has gone wrong, and in which line of a file of the user's, if it came through one."""
    first = f"{type(error).__name__}: {error}".strip(": ").splitlines()[0]
    places = [
        f"{Path(frame.f_code.co_filename).name}, line {number}"
        for frame, number in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).startswith(registry.FILE)
    ]
    return first + (f" ({places[-1]})" if places else "")


def expected_images(task: dict[str, Any]) -> DataInfo | None:
    """The images that a run is asked for on; None where its task does not say."""
    return DataInfo.model_validate(task["images"]) if task.get("images") else None


if __name__ == "__main__":
    sys.exit(main())
