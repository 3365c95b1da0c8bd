"""The engine: runs each cell of the plan in a fresh process, so that memory peaks and generators are its own.

The process is forked from a server that has imported torch and has run nothing, which saves seconds per run. It reads
one JSON document and writes one JSON event per line: progress for whoever shows it, never a result. Results go to the
store only. ``python -m bench.engine`` does the same without a server, from standard input to standard output.
"""

import contextlib
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from bench.spec import RunSpec, UsageError

Report = Callable[[dict[str, Any]], None]
EXIT_INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: 143}
PRELOAD = ["torch", "torchvision.models", "sklearn.datasets", "pydantic"]  # what a run imports slowly


class Interrupted(BaseException):
    """A signal asked to stop; not an Exception, so that nothing takes it for a failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


# ---------------------------------------------------------------- the parent's side


def run_child(task: dict[str, Any], report: Report, log: Path) -> int:
    """Do one task in a fresh process: its exit code, 0 when it went well. Its complaints go to the file ``log``.

    A signal that reaches the parent is passed on, and the child is given time to save.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    events, sender = context.Pipe(duplex=False)
    child = context.Process(target=forked, args=(json.dumps(task), sender, str(log)))
    # the server keeps them blocked, so that a signal to the group does not end it; a child takes them once it listens
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_INTERRUPTED)
    try:
        child.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        sender.close()
    assert child.pid is not None
    try:
        with open(events.fileno(), encoding="utf-8", closefd=False) as lines:
            for line in lines:
                with contextlib.suppress(json.JSONDecodeError):
                    report(json.loads(line))
        child.join()
        return child.exitcode if child.exitcode is not None else 1
    except Interrupted as interrupted:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, interrupted.signum)
        child.join(timeout=30)
        raise
    finally:
        child.kill()
        child.join()
        events.close()


@contextlib.contextmanager
def signals_raise() -> Any:
    """SIGINT and SIGTERM raise Interrupted in the main thread, once; a second one ends the process at once."""

    def handler(signum: int, frame: FrameType | None) -> None:
        for each in EXIT_INTERRUPTED:
            signal.signal(each, signal.SIG_DFL)
        raise Interrupted(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, handler) for signum in EXIT_INTERRUPTED}
    try:
        yield
    finally:
        for signum, previous in before.items():
            signal.signal(signum, previous)


# ---------------------------------------------------------------- the child's side


class StopFlag:
    """While training, a signal only sets a flag that the loop reads; elsewhere it raises, and the open cell is lost."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.training = False
        for signum in EXIT_INTERRUPTED:
            signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self.training or self.signum is not None:
            raise Interrupted(signum)
        self.signum = signum

    def __call__(self) -> bool:
        return self.signum is not None


def execute(out: Path, spec: RunSpec, report: Report, flag: StopFlag) -> None:
    """Train, evaluate and audit one run; what the store already has is not done again."""
    from bench import device as devices
    from bench import registry
    from bench.audit import audit
    from bench.data import data_info, load_data
    from bench.evaluate import evaluate
    from bench.repro import environment
    from bench.spec import Record
    from bench.store import RunFolder
    from bench.train import train

    folder = RunFolder(out, spec)
    device = devices.resolve(spec.device)
    devices.prepare(device, spec.threads)
    dataset = registry.load("dataset", spec.data.name).Dataset()
    train_set, test_set = load_data(dataset, spec.data)
    method, settings = build_method(spec, dataset, train_set.image_shape[0], train_set.classes)
    record = Record(
        spec=spec,
        adversary=method.config.adversary,
        supervised=method.supervised,
        data=data_info(train_set, test_set),
        settings=settings,
        environment=environment(str(device), spec.precision),
    )
    folder.save_record(record)

    def ended(status: str, message: str = "") -> None:
        folder.save_record(record.model_copy(update={"status": status, "message": message}))
        report({"event": "ended", "status": status, "message": message})

    trained = folder.trained()
    if trained is None:
        flag.training = True
        resume = folder.checkpoint()
        result, state = train(
            method,
            train_set,
            spec.budget,
            spec.seed,
            device,
            precision=spec.precision,
            compiled=spec.compiled,
            resume=resume,
            report=report,
            stop=flag,
        )
        if result.status == "preempted":
            folder.save_checkpoint(state)
            ended("preempted", f"stopped after {result.updates} updates; the same command goes on from there")
            raise Interrupted(flag.signum or signal.SIGTERM)
        folder.save_trained(result, dict(method.encoder.state_dict()))
        flag.training = False
        if flag():
            ended("preempted", "trained; the same command goes on with the evaluation")
            raise Interrupted(flag.signum or signal.SIGTERM)
    else:
        result, weights = trained
        if result.status == "finished":
            method.encoder.load_state_dict(weights)
            devices.place(method.encoder, device)
    if result.status != "finished":
        ended(result.status, result.note or f"after {result.updates} updates")
        return
    report({"event": "trained", "updates": result.updates, "seconds": result.train_seconds, "loss": result.last_loss})
    try:
        missing = [evaluate(method.encoder, train_set, test_set, spec.eval, spec.seed, device, folder, report)]
        missing += [audit(method.encoder, test_set, spec.eval, spec.seed, device, folder, report)]
    except Interrupted:
        ended("preempted", "stopped in the evaluation; the same command goes on from there")
        raise
    except Exception as error:
        if not devices.is_out_of_memory(error):
            raise
        ended("oom", f"out of memory in the evaluation: {error}".splitlines()[0])
        return
    ended("finished", "; ".join(filter(None, missing)))


def build_method(spec: RunSpec, dataset: Any, channels: int, classes: int = 10) -> Any:
    """(the method on its encoder, its settings with their sources); weights are a function of the seed.

    Raises UsageError for an unknown method, encoder or setting, or a bad value.
    """
    import torch

    from bench import registry
    from bench.encoder import build_encoder
    from bench.repro import stream
    from methods.common.base import resolve

    module = registry.load("method", spec.method_path or spec.method)
    config, settings = resolve(module.Config, spec.data.name, dataset.OVERRIDES, spec.settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(spec.seed, "init").initial_seed())
        encoder = build_encoder(spec.encoder or dataset.encoder, channels, config.feature_width)
        return module.Method(config).attach(encoder, classes), settings


def forked(task: str, events: Connection, log: str) -> None:
    """The child process of the server: its own session (Ctrl-C reaches the parent only), its output in the log."""
    os.setsid()
    with open(log, "a", encoding="utf-8") as errors:
        os.dup2(errors.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    with open(events.fileno(), "w", encoding="utf-8", closefd=False) as lines:
        sys.exit(main(io.StringIO(task), lines))


def main(stdin: TextIO = sys.stdin, stdout: TextIO = sys.stdout) -> int:
    """The child process: one task in, events out. Exit codes as everywhere."""
    flag = StopFlag()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, EXIT_INTERRUPTED)

    def report(event: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(event), file=stdout, flush=True)

    try:
        task = json.loads(stdin.read())
        if task["task"] == "measure":
            from bench.plan import measure

            specs = [RunSpec.model_validate(spec) for spec in task["specs"]]
            measure(specs, report)
        elif task["task"] == "evaluate_foreign":
            from bench.foreign import Request, evaluate_foreign

            evaluate_foreign(Request.model_validate(task["request"]), report)
        else:
            execute(Path(task["out"]), RunSpec.model_validate(task["spec"]), report, flag)
    except Interrupted as interrupted:
        return EXIT_INTERRUPTED[signal.Signals(interrupted.signum)]
    except UsageError as error:
        report({"event": "error", "message": str(error), "usage": True})
        return 2
    except Exception as error:
        import traceback

        traceback.print_exc()
        report({"event": "error", "message": f"{type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
