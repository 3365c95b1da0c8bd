"""What the tests of processes share: a small run, the child's main function in this process, and who listens to it."""

import contextlib
import io
import json
import signal
import sys

from evaluation_fixtures import FEW_STEPS
from rich.console import Console

from bench.runs.child_main import main
from bench.runs.progress import Display
from bench.spec import Budget, DataSpec, EvalSpec, RunSpec
from bench.storage.signals import EXIT_INTERRUPTED
from bench.storage.store import RunFolder

EVAL = EvalSpec(
    attacks=("pgd",),
    attack_settings=FEW_STEPS,
    protocols=("linear",),
    eps=(0.05,),
    main_eps=0.05,
    curve=(0.5,),
    band_images=4,
)
CELLS = [("linear", "none", 0.0), ("linear", "pgd", 0.025), ("linear", "pgd", 0.05)]


def spec(budget="4up", **changes):
    values = {
        "method": "emp_ssl",
        "settings": {"batch": 16, "views": 2},
        "data": DataSpec(name="synthetic", train_images=32, test_images=16),
        "budget": Budget.parse(budget),
        "threads": 1,
        "eval": EVAL,
    }
    return RunSpec(**values | changes)


def task(out, run):
    return {"task": "run", "out": str(out), "spec": run.model_dump(mode="json")}


class Listener(io.StringIO):
    """The standard output of a child in this process: its events, and what to do at each."""

    def __init__(self, on=lambda event: None):
        super().__init__()
        self.events, self.on = [], on

    def write(self, text):
        if text.strip():
            self.events.append(json.loads(text))
            self.on(self.events[-1])
        return len(text)


def in_process(out, run, on=lambda event: None, **told):
    """(exit code, events) of the child's main function; ``told`` is more of its task."""
    listener = Listener(on)
    return main(io.StringIO(json.dumps(task(out, run) | told)), listener), listener.events


@contextlib.contextmanager
def handlers_given_back():
    """The child takes the handlers of its process; here they are given back."""
    before = {signum: signal.getsignal(signum) for signum in (*EXIT_INTERRUPTED, signal.SIGALRM)}
    hook = sys.unraisablehook
    yield
    sys.unraisablehook = hook
    for signum, handler in before.items():
        signal.signal(signum, handler)


def weights(out, run):
    return (RunFolder(out, run).path / "encoder.safetensors").read_bytes()


class Shown(Display):
    """A display that hands the events on."""

    def __init__(self, on):
        super().__init__(Console(file=io.StringIO()))
        self.on = on

    def event(self, spec, event):
        self.on(spec, event)


METHOD = """
from dataclasses import dataclass
from methods import emp_ssl

@dataclass(frozen=True)
class Config(emp_ssl.Config):
    pass

class Method(emp_ssl.Method):
    def loss(self, views):
        {body}
"""


def own_method(folder, body):
    file = folder / "mine.py"
    file.write_text(METHOD.format(body=body), encoding="utf-8")
    return {"method": "mine", "method_path": str(file)}
