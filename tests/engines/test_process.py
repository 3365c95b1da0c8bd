"""Processes of runs: real children and, where a process adds nothing, with the child's main function in this one."""

import errno
import os
import re
import signal

import pytest
import torch
from process_fixtures import CELLS, handlers_given_back, in_process, own_method, spec, task, weights

from bench.device import clock_probe as calibration
from bench.engines.child import run_child
from bench.fairness import disturbed, remarks
from bench.spec import Budget, DataSpec
from bench.storage import disk
from bench.storage.disk import Disk, DiskError
from bench.storage.store import RunFolder


@pytest.fixture(autouse=True)
def own_signal_handlers():
    with handlers_given_back():
        yield


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
    assert kinds.count("probe") == 1
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
        "run.json",
        "shift.json",
        "train.json",
    ]
    code, events = in_process(tmp_path, run)
    assert code == 0
    assert [event["event"] for event in events] == ["trained", "ended"]
    assert whole(tmp_path, run) == before


@pytest.mark.ci
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


@pytest.mark.ci
def test_a_run_in_seconds_is_probed_before_and_after(tmp_path):
    code, events = in_process(tmp_path, spec("1s"))
    train = RunFolder(tmp_path, spec("1s")).record().train
    assert code == 0
    assert all(seconds > 0 for seconds in train.calibration)
    assert train.load_average >= 0
    assert (train.gpu_processes, train.throttling) == (None, None)
    (event,) = [event for event in events if event["event"] == "trained"]
    assert event["remarks"] == remarks(train, Budget.parse("1s"), torch.get_num_threads())


def test_a_run_in_updates_is_not(tmp_path):
    assert in_process(tmp_path, spec("1up"))[0] == 0
    train = RunFolder(tmp_path, spec("1up")).record().train
    assert (train.calibration, train.load_average, disturbed(train)) == (None, None, None)


@pytest.mark.ci
def test_a_probe_decides_nothing_of_the_result(tmp_path, monkeypatch):
    run = spec()
    assert in_process(tmp_path / "a", run)[0] == 0
    monkeypatch.setattr(calibration, "probe_seconds", lambda budget: 0.05)
    assert in_process(tmp_path / "b", run)[0] == 0
    quiet, probed = (RunFolder(tmp_path / side, run).record() for side in "ab")
    assert (quiet.train.calibration, len(probed.train.calibration)) == (None, 2)
    assert weights(tmp_path / "a", run) == weights(tmp_path / "b", run)
    assert [r.outcomes for r in quiet.results] == [r.outcomes for r in probed.results]


@pytest.mark.ci
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
    assert event["remarks"][0].startswith("disturbed: this machine was 12 % slower")


def test_a_run_that_diverged_has_no_second_reading(tmp_path, monkeypatch):
    left = readings(monkeypatch, 1.0, 1.0)
    run = spec(**own_method(tmp_path, "return super().loss(views) * float('nan')"))
    assert in_process(tmp_path, run)[0] == 0
    assert left == [1.0]
    assert RunFolder(tmp_path, run).record().train.calibration is None


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


@pytest.mark.ci
@pytest.mark.parametrize("name", ["state.json", "linear-pgd"])  # in training and in the evaluation
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


# ---------------------------------------------------------------- methods that fail


def test_a_method_of_the_users_own_that_raises_is_a_failure_with_its_message(tmp_path, capsys):
    run = spec(**own_method(tmp_path, "raise ArithmeticError('no such loss')"))
    code, events = in_process(tmp_path, run)
    assert code == 1
    (event,) = events
    assert re.fullmatch(r"ArithmeticError: no such loss \(\w+\.py, line \d+\)", event["message"])
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
    assert events[0]["event"] == "error"
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
