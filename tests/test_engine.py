"""The engine with real children and, where a process adds nothing, with the child's main function in this one."""

import contextlib
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench import calibration, disk, engine
from bench.disk import Disk, DiskError
from bench.engine import SAVE_EVERY, main, run_child
from bench.engines.local import LocalEngine
from bench.lock import owned
from bench.progress import Display
from bench.run import run_all
from bench.signals import EXIT_INTERRUPTED, Interrupted
from bench.spec import Budget, DataSpec, EvalSpec, RunSpec, UsageError
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
    with handlers_given_back():
        yield


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


def whole(out, run):
    """Every file of a run: its content, and its time of change where nothing may write it again."""
    files = {str(p.relative_to(RunFolder(out, run).path)): p for p in RunFolder(out, run).path.rglob("*")}
    again = ("run.json", "examples/")  # settings and pictures, which come out the same
    times = {name: 0 if name.startswith(again) else p.stat().st_mtime_ns for name, p in files.items()}
    return {name: (p.read_bytes(), times[name]) for name, p in files.items() if p.is_file()}


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
    assert [name for name in sorted(before) if not name.startswith(("results/", "adversarial/", "examples/"))] == [
        "encoder.safetensors",
        "probes/linear.json",
        "probes/linear.safetensors",
        "probes/multi_patch.json",
        "probes/multi_patch.safetensors",
        "run.json",
        "train.json",
    ]
    code, events = in_process(tmp_path, run)
    assert code == 0
    assert [event["event"] for event in events] == ["trained", "ended"]
    assert whole(tmp_path, run) == before


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


# ---------------------------------------------------------------- the clock probe


def readings(monkeypatch, *units):
    """Let each reading of the machine be the next of these; returns those that are left."""
    left = list(units)

    def read(budget, device, precision, *, stop):
        return {"unit": left.pop(0), "load_average": 0.5, "processes": None, "throttling": None}

    monkeypatch.setattr(calibration, "read_machine", read)
    return left


def test_a_run_in_seconds_is_probed_before_and_after(tmp_path):
    code, events = in_process(tmp_path, spec("1s"))
    train = RunFolder(tmp_path, spec("1s")).record().train
    assert code == 0
    assert all(0 < seconds < 0.5 for seconds in train.calibration)
    assert train.load_average >= 0
    assert (train.gpu_processes, train.throttling) == (None, None)
    (event,) = [event for event in events if event["event"] == "trained"]
    assert event["disturbed"] == calibration.complaint(train)


def test_a_run_in_updates_is_not(tmp_path):
    assert in_process(tmp_path, spec("1up"))[0] == 0
    train = RunFolder(tmp_path, spec("1up")).record().train
    assert (train.calibration, train.load_average, train.disturbed()) == (None, None, None)


def test_a_probe_decides_nothing_of_the_result(tmp_path, monkeypatch):
    run = spec()
    assert in_process(tmp_path / "a", run)[0] == 0
    monkeypatch.setattr(calibration, "probe_seconds", lambda budget: 0.05)
    assert in_process(tmp_path / "b", run)[0] == 0
    quiet, probed = (RunFolder(tmp_path / side, run).record() for side in "ab")
    assert (quiet.train.calibration, len(probed.train.calibration)) == (None, 2)
    assert weights(tmp_path / "a", run) == weights(tmp_path / "b", run)
    assert [r.outcomes for r in quiet.results] == [r.outcomes for r in probed.results]


def test_a_resumed_run_keeps_the_reading_of_its_first_start(tmp_path, monkeypatch):
    run, left, sent = spec("20up"), readings(monkeypatch, 1.0, 1.12, 9.0), []

    def once(event):
        if event["event"] == "train" and not sent:
            sent.append(event)
            os.kill(os.getpid(), signal.SIGTERM)

    assert in_process(tmp_path, run, once)[0] == 143
    assert left == [1.12, 9.0]
    code, events = in_process(tmp_path, run)
    train = RunFolder(tmp_path, run).record().train
    assert (code, train.calibration, left) == (0, (1.0, 1.12), [9.0])
    (event,) = [event for event in events if event["event"] == "trained"]
    assert event["disturbed"].startswith("disturbed: this machine was 12 % slower")


def test_a_run_that_diverged_has_no_second_reading(tmp_path, monkeypatch):
    left = readings(monkeypatch, 1.0, 1.0)
    run = spec(**own_method(tmp_path, "return super().loss(views) * float('nan')"))
    assert in_process(tmp_path, run)[0] == 0
    assert left == [1.0]
    assert RunFolder(tmp_path, run).record().train.calibration is None


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
    done = folder.checkpoint()[0]["updates"]
    assert 0 < done < 80
    assert (record.status, record.train) == ("preempted", None)
    assert record.message == "stopped in the training; the same command goes on from there"
    assert folder.trained() is None

    assert in_process(tmp_path / "a", run)[0] == 0
    assert in_process(tmp_path / "b", run)[0] == 0
    assert folder.checkpoint() == (None, [])
    assert folder.record().status == "finished"
    assert folder.record().train.updates == 80
    assert weights(tmp_path / "a", run) == weights(tmp_path / "b", run)
    results = [RunFolder(tmp_path / side, run).record().results for side in "ab"]
    assert [r.outcomes for r in results[0]] == [r.outcomes for r in results[1]]


@pytest.mark.parametrize(("signum", "code"), sorted(EXIT_INTERRUPTED.items()))
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
    assert RunFolder(tmp_path, run).checkpoint()[0]["updates"] == sent[0] == 1


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
    assert RunFolder(tmp_path, run).checkpoint()[0]["updates"] > 0
    assert (tmp_path / "log.txt").read_text() == ""


def test_a_signal_to_the_child_alone_leaves_it_preempted(tmp_path):
    """Whoever stops one process, the command goes on with the next run, and the same command with this one."""
    runs, said = [spec("200up"), spec("2up", seed=1)], []

    def once(run, event):
        if event["event"] == "train" and not said:
            said.append(event)
            os.kill(child_of_this_process(), signal.SIGTERM)

    assert run_all(tmp_path, runs, Shown(once), None, LocalEngine(tmp_path, SAVE_EVERY, None)) == [runs[0].name]
    assert [RunFolder(tmp_path, run).record().status for run in runs] == ["preempted", "finished"]


# ---------------------------------------------------------------- processes that die


class Shown(Display):
    """A display that hands the events on."""

    def __init__(self, on):
        super().__init__(Console(file=io.StringIO()))
        self.on = on

    def event(self, spec, event):
        self.on(spec, event)


def child_of_this_process():
    """The pid of the process that the server of this one has made."""
    server = forkserver._forkserver._forkserver_pid
    return int(Path(f"/proc/{server}/task/{server}/children").read_text().split()[0])


def blocked(pid):
    """The signals that a process does not take now."""
    mask = int(re.search(r"SigBlk:\s(\w+)", Path(f"/proc/{pid}/status").read_text())[1], 16)
    return {signum for signum in EXIT_INTERRUPTED if mask >> (signum - 1) & 1}


def test_the_server_takes_no_signal_to_the_group_and_the_child_takes_all(tmp_path):
    found = {}

    def look(event):
        if event["event"] == "train":
            found["server"] = blocked(forkserver._forkserver._forkserver_pid)
            found["child"] = blocked(child_of_this_process())

    resource_tracker._resource_tracker._stop()
    forkserver._forkserver._stop()  # so that both are started here
    assert run_child(task(tmp_path, spec("1up")), look, tmp_path / "log.txt") == 0
    assert found == {"server": set(EXIT_INTERRUPTED), "child": set()}
    assert blocked(os.getpid()) == set()


def test_a_killed_server_costs_nothing(tmp_path):
    runs, killed = [spec("20up"), spec("2up", seed=1)], []

    def once(run, event):
        if event["event"] == "train" and not killed:
            killed.append(forkserver._forkserver._forkserver_pid)
            os.kill(killed[0], signal.SIGKILL)

    assert run_all(tmp_path, runs, Shown(once), None, LocalEngine(tmp_path, SAVE_EVERY, None)) == []
    assert [RunFolder(tmp_path, run).record().status for run in runs] == ["finished", "finished"]
    assert len(killed) == 1


PARENT = """
import json, sys
from pathlib import Path
from bench.engine import run_child
from bench.lock import owned
if __name__ == "__main__":
    out = Path(sys.argv[1])
    with owned(out) as lock:
        run_child(json.loads(sys.argv[2]), lambda event: print(json.dumps(event), flush=True), out / "log.txt", lock)
"""


def test_a_child_whose_parent_is_killed_saves_ends_and_holds_the_lock_until_then(tmp_path):
    run, out = spec("80up", method="cf_amc_ssl"), tmp_path / "a"
    out.mkdir()
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py"), str(out), json.dumps(task(out, run))]
    parent = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True
    )
    with parent, parent.stdout:
        assert json.loads(parent.stdout.readline())["event"] == "train"
        (server, child) = of_the_session(parent.pid)
        parent.kill()
        began = time.monotonic()
        with pytest.raises(UsageError, match=f"in use by process {parent.pid} on "), owned(out, 0):
            pass
        with owned(out):
            assert time.monotonic() - began < 10
            assert not is_running(child)
        assert parent.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while is_running(server):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    folder = RunFolder(out, run)
    assert folder.record().status == "preempted"
    assert 0 < folder.checkpoint()[0]["updates"] < 80
    assert (out / "log.txt").read_text() == ""
    assert in_process(out, run)[0] == 0
    assert in_process(tmp_path / "b", run)[0] == 0
    assert weights(out, run) == weights(tmp_path / "b", run)


def of_the_session(leader):
    """(server, child) of a process that runs a child: the one is its child, the other that of the server."""
    for pid in Path(f"/proc/{leader}/task/{leader}/children").read_text().split():
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(pid), int(children[0])
    raise AssertionError("it has no child")


def is_running(pid):
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---------------------------------------------------------------- disks that refuse


class FullFrom(Disk):
    """A disk that has no room for a file of this name."""

    def __init__(self, name):
        self.name = name

    def create(self, path):
        if self.name in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().create(path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights of a run that nothing has disturbed."""
    out, run = tmp_path_factory.mktemp("undisturbed"), spec("10up")
    with handlers_given_back():
        assert in_process(out, run)[0] == 0
    return weights(out, run)


@pytest.mark.parametrize("name", ["run.json", "state.json", "train.json", "multi_patch-pgd"])
def test_a_full_disk_is_one_line_and_the_same_task_goes_on(tmp_path, monkeypatch, capsys, undisturbed, name):
    run = spec("10up")
    monkeypatch.setattr(disk, "DISK", FullFrom(name))
    code, events = in_process(tmp_path, run)
    assert code == 1
    assert events[-1]["event"] == "disk"
    assert re.fullmatch(r"cannot write .*: No space left on device; mend that, .*", events[-1]["message"])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(disk, "DISK", Disk())
    assert in_process(tmp_path, run)[0] == 0
    assert weights(tmp_path, run) == undisturbed
    assert RunFolder(tmp_path, run).record().status == "finished"
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_disk_error_of_the_child_is_one_of_the_parent(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "emp_ssl-s0").write_text("in the way")
    with pytest.raises(DiskError, match=r"cannot .*emp_ssl-s0"):
        run_child(task(tmp_path, spec()), lambda event: None, tmp_path / "log.txt")


def test_a_folder_that_vanishes_in_training_is_a_disk_error_and_is_not_made_again(tmp_path):
    out = tmp_path / "out"
    out.mkdir()

    def once(run, event):
        if event["event"] == "train" and out.exists():
            out.rename(tmp_path / "elsewhere")

    with pytest.raises(DiskError, match=f"the folder {out} has vanished; with it back, the same command goes on"):
        run_all(out, [spec("2000up"), spec(seed=1)], Shown(once), None, LocalEngine(out, SAVE_EVERY, None))
    assert not out.exists()


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
