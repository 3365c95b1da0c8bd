"""The engine with real children and, where a process adds nothing, with the child's main function in this one."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import engine
from bench.engine import Interrupted, StopFlag, main, run_child, signals_raise
from bench.spec import Budget, DataSpec, EvalSpec, RunSpec
from bench.store import RunFolder

EVAL = EvalSpec(attacks=("pgd",), eps=(0.05,), main_eps=0.05, curve=(0.5,), crops=2, band_images=4)
CELLS = [(p, *cell) for p in ("linear", "multi_patch") for cell in (("none", 0.0), ("pgd", 0.025), ("pgd", 0.05))]
ROOT = Path(engine.__file__).parent.parent


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


def in_process(out, run, on=lambda event: None):
    """(exit code, events) of the child's main function."""
    listener = Listener(on)
    return main(io.StringIO(json.dumps(task(out, run))), listener), listener.events


@pytest.fixture(autouse=True)
def own_signal_handlers():
    """The child takes the handlers of its process; here they are given back."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def weights(out, run):
    return (RunFolder(out, run).path / "encoder.safetensors").read_bytes()


def whole(out, run):
    """Every file of a run: (content, time of change); run.json and the log are told apart by the caller."""
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in RunFolder(out, run).path.rglob("*") if p.is_file()}


# ---------------------------------------------------------------- a run


def test_a_child_trains_evaluates_and_stores_and_does_nothing_twice(tmp_path):
    run, events, log = spec(), [], tmp_path / "log.txt"
    assert run_child(task(tmp_path, run), events.append, log) == 0, log.read_text()
    kinds = [event["event"] for event in events]
    assert kinds[0] == "train"
    assert kinds.count("cell") == len(CELLS)
    assert kinds.count("probe") == 2
    assert events[-1] == {"event": "ended", "status": "finished", "message": ""}
    assert log.read_text() == ""
    record = RunFolder(tmp_path, run).record()
    assert (record.status, record.spec, record.adversary) == ("finished", run, "none")
    assert (record.train.status, record.train.updates, record.train.epochs) == ("finished", 4, 2.0)
    assert (record.data.train, record.data.test, record.data.subset) == (32, 16, True)
    assert (record.environment.threads, record.environment.device) == (1, "cpu")
    assert {s.name: (s.value, s.source) for s in record.settings}["batch"] == (16, "--set")
    assert sorted((r.protocol, r.attack, r.eps) for r in record.results) == CELLS
    assert {r.total for r in record.results} == {16}

    before = whole(tmp_path, run)
    names = sorted(before)
    assert [n for n in names if "-" not in n] == [
        "encoder.safetensors",
        "linear.json",
        "linear.safetensors",
        "multi_patch.json",
        "multi_patch.safetensors",
        "run.json",
        "train.json",
    ]
    code, events = in_process(tmp_path, run)
    assert code == 0
    assert [event["event"] for event in events] == ["trained", "ended"]
    after = whole(tmp_path, run)
    content, _ = before.pop("run.json")
    assert after.pop("run.json")[0] == content  # settings and status are written again, and are the same
    assert after == before


def test_the_global_generators_do_not_decide_anything(tmp_path):
    """A child in this process, whose generator is elsewhere, ends with the weights of one in its own."""
    run = spec()
    torch.manual_seed(77)
    code, _ = in_process(tmp_path / "a", run)
    torch.manual_seed(78)
    assert (code, in_process(tmp_path / "b", run)[0]) == (0, 0)
    assert weights(tmp_path / "a", run) == weights(tmp_path / "b", run)
    assert weights(tmp_path / "a", run) != b""
    other = run.model_copy(update={"seed": 1})
    assert in_process(tmp_path / "a", other)[0] == 0
    assert weights(tmp_path / "a", other) != weights(tmp_path / "a", run)


# ---------------------------------------------------------------- signals


def start(out, run):
    """A real child that has been given its task."""
    child = subprocess.Popen(
        [sys.executable, "-m", "bench.engine"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    child.stdin.write(json.dumps(task(out, run)))
    child.stdin.close()
    return child


def test_a_child_that_is_terminated_in_training_goes_on_to_the_same_weights(tmp_path):
    run = spec("80up", method="cf_amc_ssl")  # free training carries a perturbation from batch to batch
    child = start(tmp_path / "a", run)
    with child.stdout:
        assert json.loads(child.stdout.readline())["event"] == "train"
        child.send_signal(signal.SIGTERM)
        rest = [json.loads(line) for line in child.stdout]
    assert child.wait() == 143
    assert rest[-1]["status"] == "preempted"
    folder = RunFolder(tmp_path / "a", run)
    record = folder.record()
    done = folder.checkpoint()["updates"]
    assert 0 < done < 80
    assert (record.status, record.train) == ("preempted", None)
    assert record.message == f"stopped after {done} updates; the same command goes on from there"
    assert folder.trained() is None

    assert in_process(tmp_path / "a", run)[0] == 0
    assert in_process(tmp_path / "b", run)[0] == 0
    assert folder.checkpoint() is None
    assert folder.record().status == "finished"
    assert folder.record().train.updates == 80
    assert weights(tmp_path / "a", run) == weights(tmp_path / "b", run)
    results = [RunFolder(tmp_path / side, run).record().results for side in "ab"]
    assert [r.outcomes for r in results[0]] == [r.outcomes for r in results[1]]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_training_is_a_checkpoint_and_its_exit_code(tmp_path, signum, code):
    run = spec("50up")
    sent = []

    def once(event):
        if event["event"] == "train" and not sent:
            sent.append(event["updates"])
            os.kill(os.getpid(), signum)

    found, events = in_process(tmp_path, run, once)
    assert found == code
    assert events[-1]["status"] == "preempted"
    assert RunFolder(tmp_path, run).checkpoint()["updates"] == sent[0] == 1


def test_a_signal_in_the_evaluation_keeps_the_finished_cells(tmp_path):
    run = spec()

    def at_the_third_cell(event):
        if event["event"] == "cell" and (event["attack"], event["eps"]) == ("pgd", 0.025):
            os.kill(os.getpid(), signal.SIGINT)

    code, events = in_process(tmp_path, run, at_the_third_cell)
    record = RunFolder(tmp_path, run).record()
    assert (code, record.status) == (130, "preempted")
    assert events[-1]["message"] == "stopped in the evaluation; the same command goes on from there"
    assert sorted((r.attack, r.eps) for r in record.results) == [("none", 0.0), ("none", 0.0), ("pgd", 0.025)]
    assert record.train.status == "finished"
    code, events = in_process(tmp_path, run)
    assert code == 0
    assert sum(event["event"] == "cell" for event in events) == len(CELLS) - 3
    assert RunFolder(tmp_path, run).record().status == "finished"


def test_a_signal_to_the_parent_reaches_the_child_which_saves(tmp_path):
    run = spec("80up")

    def interrupted(event):
        raise Interrupted(signal.SIGINT)  # as signals_raise() does in the parent

    with pytest.raises(Interrupted) as raised:
        run_child(task(tmp_path, run), interrupted, tmp_path / "log.txt")
    assert raised.value.signum == signal.SIGINT
    assert RunFolder(tmp_path, run).record().status == "preempted"
    assert RunFolder(tmp_path, run).checkpoint()["updates"] > 0
    assert (tmp_path / "log.txt").read_text() == ""


def test_signals_raise_once_and_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as raised, signals_raise():
        os.kill(os.getpid(), signal.SIGTERM)
    assert raised.value.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_signal_in_training_raises():
    flag = StopFlag()
    flag.training = True
    flag._handle(signal.SIGTERM, None)
    assert flag()
    with pytest.raises(Interrupted):
        flag._handle(signal.SIGINT, None)


# ---------------------------------------------------------------- methods that fail


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


def test_a_method_of_the_users_own_that_raises_is_a_failure_with_its_message(tmp_path, capsys):
    run = spec(**own_method(tmp_path, "raise ArithmeticError('no such loss')"))
    code, events = in_process(tmp_path, run)
    assert code == 1
    assert events == [{"event": "error", "message": "ArithmeticError: no such loss"}]
    assert 'in loss\n    raise ArithmeticError("no such loss")' in capsys.readouterr().err.replace("'", '"')
    assert RunFolder(tmp_path, run).record().status == "pending"  # whoever started it says that it failed


def test_a_method_of_the_users_own_that_cannot_be_imported_is_a_usage_error(tmp_path):
    run = spec(**own_method(tmp_path, "return ("))
    code, events = in_process(tmp_path, run)
    assert code == 2
    assert "mine.py cannot be imported: SyntaxError" in events[0]["message"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"bach": 16}}, "unknown setting 'bach'; did you mean 'batch'"),
        ({"settings": {"batch": 64}}, "expected a batch of at most 32"),
        ({"method": "emp_sl"}, "unknown method 'emp_sl'; did you mean 'emp_ssl'"),
        ({"encoder": "resnet9"}, "unknown encoder 'resnet9'"),
        ({"device": "tpu"}, "expected a device such as auto, cpu or cuda:0, got 'tpu'"),
        ({"data": DataSpec(name="synthetic", train_images=10_000)}, "expected at most 256 train images, got 10000"),
    ],
)
def test_a_mistake_of_the_users_is_exit_code_2_and_one_line(tmp_path, capsys, changes, message):
    code, events = in_process(tmp_path, spec(**changes))
    assert code == 2
    assert len(events) == 1
    assert events[0]["usage"] is True
    assert message in events[0]["message"]
    assert "\n" not in events[0]["message"]
    assert capsys.readouterr().err == ""


def test_a_loss_that_is_not_finite_is_a_result(tmp_path):
    run = spec(**own_method(tmp_path, "return super().loss(views) * float('nan')"))
    code, events = in_process(tmp_path, run)
    assert code == 0
    assert events[-1]["status"] == "diverged"
    record = RunFolder(tmp_path, run).record()
    assert (record.status, record.message) == ("diverged", "after 1 updates")
    assert (record.train.status, record.train.last_loss, record.results) == ("diverged", None, [])
    assert in_process(tmp_path, run)[1][-1] == events[-1]  # found again, not trained again
