"""The process of one task: it reads one JSON document and writes one JSON event per line. Results go to the store only.

Events are progress for whoever shows it, never a result. The process notices when its parent dies, and stops as by
SIGTERM.
"""

import contextlib
import io
import json
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, TextIO

from bench import registry
from bench.events import Event
from bench.record import DataInfo
from bench.spec import RunSpec, UsageError
from bench.storage.disk import DiskError
from bench.storage.signals import EXIT_INTERRUPTED, Interrupted, StopFlag

PATIENCE = 6.0  # seconds that an interrupted child has to save: the whole command ends within 10
UNFIT = 5  # exit code of a process whose machine cannot make the run, while another may (bench.identity.source)
SAVE_EVERY = 300.0  # seconds of training between two checkpoints
Task = Literal["run", "rank", "measure", "transfer", "fixed", "evaluate_foreign"]


def task_of(kind: Task, **told: Any) -> dict[str, Any]:
    """A task as its process reads it, with what it is told, all of which JSON can carry."""
    return {"task": kind, **told}


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


def main(stdin: TextIO, stdout: TextIO, lock: Connection | None = None) -> int:
    """The child process: one task in, events out. Exit codes as everywhere. ``lock`` is for the ranks of a run."""
    flag = StopFlag()

    def report(event: Event) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(event), file=stdout, flush=True)

    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, EXIT_INTERRUPTED)  # one may have come while it was starting
        task = json.loads(stdin.read())
        if "visible" in task:  # torch is loaded, and asks when it first needs a GPU
            os.environ["CUDA_VISIBLE_DEVICES"] = task["visible"]
        if task["task"] == "measure":
            from bench.runs.plan import measure

            specs = [RunSpec.model_validate(spec) for spec in task["specs"]]
            measure(specs, report)
        elif task["task"] == "evaluate_foreign":
            from bench.options.external_request import Request
            from bench.runs.external import evaluate_foreign

            evaluate_foreign(Request.model_validate(task["request"]), report)
        elif task["task"] == "transfer":
            from bench.audit.transfer import transfer

            transfer(Path(task["out"]), report)
        elif task["task"] == "fixed":
            from bench.gate.stored_weights import score_all

            score_all(task["fixed"], Path(task["weights"]), Path(task["out"]), report)
        elif task["task"] == "rank":
            from bench.runs.launch import take_part

            return take_part(task, report, flag)
        elif task["spec"].get("gpus_per_run", 1) > 1:
            from bench.runs.launch import launch

            return launch(task, report, stdout.fileno(), lock)
        else:
            from bench.runs.execute import execute

            spec = RunSpec.model_validate(task["spec"])
            every, images = task.get("save_every", SAVE_EVERY), expected_images(task)
            execute(Path(task["out"]), spec, report, flag, every, images=images, code=task.get("code", ""))
    except Interrupted as interrupted:
        return EXIT_INTERRUPTED[signal.Signals(interrupted.signum)]
    except UsageError as error:
        from bench.identity.source import Unfit  # which the command line need not load

        report({"event": "error", "message": str(error)})
        return UNFIT if isinstance(error, Unfit) else 2
    except DiskError as error:
        report({"event": "disk", "message": str(error)})
        return 1
    except Exception as error:
        if flag.came is not None:  # code that is not Python's makes an error of its own of what the handler raises
            return EXIT_INTERRUPTED[signal.Signals(flag.came)]
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
