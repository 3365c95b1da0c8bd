"""Hooks hear of runs and can do them no harm; the trackers say the right thing to their packages."""

import io
import json
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from click.testing import CliRunner
from process_fixtures import CELLS, spec
from rich.console import Console
from store_fixtures import MACHINE, RECORD, SPEC, TRAINED

from bench.cli import cli
from bench.engines.local import LocalEngine
from bench.registry import load, names
from bench.runs.child_main import SAVE_EVERY
from bench.runs.conduct import run_all
from bench.runs.progress import Display
from bench.spec import UsageError
from bench.storage.signals import Interrupted
from bench.storage.store import RunFolder
from bench.tracking import tracking
from bench.tracking.hooks import Accuracy, Hook, Progress, Run, costs
from bench.tracking.tracking import Tracking, parse_trackers

HEARD = '''
import json
from pathlib import Path
from bench.tracking.hooks import Hook


class Tracker(Hook):
    """Writes down what it hears."""

    def write(self, *what):
        with open(Path(__file__).with_suffix(".jsonl"), "a") as file:
            file.write(json.dumps(what) + "\\n")

    def started(self, run):
        self.write("started", run.spec.name, run.id, str(run.out))

    def progress(self, run, at):
        self.write("progress", run.spec.name, at.updates, at.share)

    def evaluated(self, run, found):
        self.write("evaluated", run.spec.name, found.name, found.correct, found.total, found.updates)

    def ended(self, run, record):
        self.write("ended", run.spec.name, record.status, len(record.results))
'''
BAD = """
import os, signal, sys, time
from bench.tracking.hooks import Hook


class Tracker(Hook):
    def progress(self, *what):
        pass

    def {method}(self, *what):
        {act}
"""
ACTS = {  # name -> (method, what it does, what is said of it)
    "raising": ("progress", "raise ValueError('first line\\nsecond')", "ValueError: first line;"),
    "unborn": ("__init__", "1 / 0", "ZeroDivisionError: division by zero;"),
    "leaving": ("started", "sys.exit(3)", "SystemExit: 3;"),
    "gone": ("started", "os._exit(0)", "its process has ended;"),
    "killed": ("evaluated", "os.kill(os.getpid(), signal.SIGKILL)", "its process has ended;"),
    "deaf": ("started", "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)", "no answer for 1 s;"),
}
LIMIT = 300.0  # seconds, on whatever machine: half of what a hook that hangs would take
TRAIN = {"event": "train", "progress": 0.5, "loss": 1.5, "updates": 2, "seconds": 3.0, "images_per_second": 9.0}
CELL = {"event": "cell", "protocol": "linear", "attack": "pgd", "eps": 8 / 255, "correct": 3, "total": 4, "note": ""}


@pytest.fixture
def hook(tmp_path):
    """``hook("name", text)``: the path of a hook file."""

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        return str(tmp_path / f"{name}.py")

    return write


@pytest.fixture
def impatient(monkeypatch):
    """``impatient("name", seconds)``: for an answer of that hook; on a slow machine those of others may take long."""
    monkeypatch.setattr(tracking, "CALL", LIMIT)
    monkeypatch.setattr(tracking, "CLOSE", LIMIT)

    def allow(name, seconds):
        real = tracking.Follower._answer

        def answer(self, given):
            real(self, seconds if given == LIMIT and Path(self._name).stem == name else given)

        monkeypatch.setattr(tracking.Follower, "_answer", answer)

    return allow


def heard(path):
    file = Path(path).with_suffix(".jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def speaker():
    """(a list of warnings, the function that fills it)."""
    said = []
    return said, lambda text, style: said.append(text)


# ---------------------------------------------------------------- a hook and a run


@pytest.mark.ci
def test_a_run_is_told_once_and_a_hook_that_hangs_costs_it_nothing(tmp_path, hook, impatient):
    impatient("hangs", 2.0)
    good, hangs = hook("good", HEARD), hook("hangs", BAD.format(method="started", act="time.sleep(600)"))
    run, out, text = spec(), tmp_path / "out", io.StringIO()
    out.mkdir()

    def go():
        display = Display(Console(file=text, width=200))
        with Tracking([good, hangs], out, display.line, "here") as hooks:
            return run_all(out, [run], display, None, LocalEngine(out, SAVE_EVERY, None), tracking=hooks)

    began = time.monotonic()
    assert go() == []
    record = RunFolder(out, run).record()
    assert (record.status, record.train.updates) == ("finished", 4)
    assert record.train.train_seconds < time.monotonic() - began < LIMIT
    assert text.getvalue().count("hangs.py: no answer for 2 s; it hears no more of this command") == 1
    told = heard(good)
    assert [call[0] for call in told[:1] + told[-1:]] == ["started", "ended"]
    assert {call[1] for call in told} == {"emp_ssl-s0"}
    assert told[-1][2:] == ["finished", len(CELLS)]
    shares = [call[3] for call in told if call[0] == "progress"]
    assert shares[-1] == 1.0
    counts = {call[2]: call[3:] for call in told if call[0] == "evaluated"}
    assert counts == {f"accuracy/{r.protocol}/{r.attack}/{r.eps:g}": [r.correct, r.total, 4] for r in record.results}
    assert len(counts) == len(CELLS)

    assert go() == []  # what is finished is not told again
    assert heard(good) == told


def test_what_a_hook_does_costs_a_warning_and_itself(tmp_path, hook, impatient):
    impatient("deaf", 1.0)
    said, say = speaker()
    bad = {name: hook(name, BAD.format(method=method, act=act)) for name, (method, act, _) in ACTS.items()}
    good = hook("good", HEARD)
    with Tracking([*bad.values(), good], tmp_path, say) as hooks:
        for name in ("emp_ssl-s3", "emp_ssl-s4"):
            hooks.started(SPEC.model_copy(update={"seed": int(name[-1])}))
            hooks.event(name, TRAIN)
            hooks.event(name, CELL)
            hooks.ended(RECORD)
            time.sleep(0.3)
    assert sorted(said) == sorted(
        f"warning: {bad[name]}: {words} it hears no more of this command (see {tmp_path / 'track-log.txt'})"
        for name, (_, _, words) in ACTS.items()
    )
    assert [call[0] for call in heard(good)] == 2 * ["started", "progress", "evaluated", "ended"]
    ids = [call[2] for call in heard(good) if call[0] == "started"]
    assert len(set(ids)) == 2
    assert all(len(each) == 16 for each in ids)
    assert "ValueError: first line" in (tmp_path / "track-log.txt").read_text()


def test_telling_never_waits_and_the_end_waits_so_long_and_no_longer(tmp_path, hook, monkeypatch):
    """A hook of 0.1 s per call: thousands of calls are told at once, progress gives way, what counts is heard."""
    slow = hook(
        "slow",
        HEARD.replace("def write(self, *what):", "def write(self, *what):\n        __import__('time').sleep(0.1)"),
    )
    said, say = speaker()
    with Tracking([slow], tmp_path, say) as hooks:
        began = time.monotonic()
        hooks.started(SPEC)
        for n in range(5000):
            hooks.event(SPEC.name, TRAIN | {"seconds": 3.0 * n})
        hooks.event(SPEC.name, CELL)
        hooks.ended(RECORD)
        assert time.monotonic() - began < 100  # of the 500 s that its calls take
    kinds = [call[0] for call in heard(slow)]
    assert kinds[0] == "started"
    assert kinds[-2:] == ["evaluated", "ended"]
    assert kinds.count("progress") <= 100
    assert said == []

    monkeypatch.setattr(tracking, "CLOSE", 0.5)
    hangs, began = hook("hangs", BAD.format(method="ended", act="time.sleep(600)")), time.monotonic()
    with Tracking([hangs], tmp_path, say) as hooks:
        hooks.started(SPEC)
        hooks.ended(RECORD)
    assert time.monotonic() - began < LIMIT
    assert len(said) == 1
    assert "had not heard everything when the command ended" in said[0]


def test_a_signal_ends_the_hooks_within_moments(tmp_path, hook):
    hangs, (said, say) = hook("hangs", BAD.format(method="started", act="time.sleep(600)")), speaker()
    hooks = Tracking([hangs], tmp_path, say)
    hooks.__enter__()
    hooks.started(SPEC)
    began = time.monotonic()
    hooks.__exit__(Interrupted, Interrupted(15), None)
    assert time.monotonic() - began < LIMIT
    assert len(said) == 1


def test_a_signal_while_they_start_leaves_no_process(tmp_path, hook, monkeypatch):
    hangs, (said, say) = hook("hangs", BAD.format(method="__init__", act="time.sleep(600)")), speaker()
    hooks = Tracking([hangs, hangs], tmp_path, say)
    first, second = hooks._followers

    def interrupted():
        raise Interrupted(15)

    monkeypatch.setattr(first.ready, "wait", interrupted)
    with pytest.raises(Interrupted):
        hooks.__enter__()
    assert [each._process.exitcode for each in (first, second)] == [-9, -9]
    assert said == []


def test_progress_is_told_every_two_seconds_of_training_and_at_its_end(tmp_path):
    told = []
    hooks = Tracking([], tmp_path, print, "a")
    hooks._tell = lambda method, name, *what: told.append((method, *what))
    hooks.started(SPEC)
    for seconds in (0.0, 1.9, 2.0, 2.5, 3.9, 4.1, 4.2):
        hooks.event(SPEC.name, TRAIN | {"seconds": seconds, "updates": int(10 * seconds), "progress": seconds / 4.2})
    assert [what[0].updates for method, *what in told if method == "progress"] == [0, 20, 41, 42]
    hooks.event(SPEC.name, {"event": "trained", "updates": 50})
    hooks.event(SPEC.name, CELL)
    assert told[-1] == ("evaluated", ACCURACY.model_copy(update={"updates": 50}))


def test_the_id_is_the_same_when_a_run_goes_on_and_of_no_other(tmp_path):
    def identity(origin, run):
        hooks = Tracking([], tmp_path, print, origin)
        hooks.started(run)
        return hooks._runs[run.name].run.id

    other = SPEC.model_copy(update={"seed": 9})
    assert identity("a", SPEC) == identity("a", SPEC)
    assert len({identity("a", SPEC), identity("b", SPEC), identity("a", other)}) == 3


# ---------------------------------------------------------------- at the door


def test_a_tracker_is_known_and_installed(monkeypatch):
    assert names("tracker") == ["mlflow", "tensorboard", "wandb"]
    with pytest.raises(UsageError, match=r"unknown tracker 'wandbb'; did you mean 'wandb'\? known: mlflow, tensorb"):
        parse_trackers("wandbb")
    with pytest.raises(UsageError, match="expected at least one tracker, got ','"):
        parse_trackers(",")
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    for name in names("tracker"):
        with pytest.raises(UsageError, match=rf"needs {name}: pip install 'robust-ssl-bench\[{name}\]'"):
            parse_trackers(name)
    monkeypatch.setattr(tracking, "find_spec", lambda name: SimpleNamespace(origin=None))
    with pytest.raises(UsageError, match="needs wandb"):  # a folder of that name, as wandb leaves one
        parse_trackers("wandb")
    monkeypatch.setattr(tracking, "find_spec", lambda name: SimpleNamespace(origin=f"{name}/__init__.py"))
    assert parse_trackers("wandb, mlflow,wandb") == ["wandb", "mlflow"]


def test_a_missing_package_is_said_before_anything_is_made(monkeypatch, tmp_path):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    out = tmp_path / "out"
    arguments = ["run", "--data", "digits", "--budget", "1up", "--track", "wandb", "--out", str(out)]
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert isinstance(done.exception, UsageError)
    assert "pip install 'robust-ssl-bench[wandb]'" in str(done.exception)
    assert not out.exists()


def test_every_extra_of_a_tracker_is_in_the_project():
    import tomllib

    project = tomllib.loads((Path(tracking.__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for name in names("tracker"):
        (requirement,) = project["optional-dependencies"][name]
        assert requirement.startswith(load("tracker", name).PACKAGE)
        assert ">=" in requirement


# ---------------------------------------------------------------- the trackers

RUN = Run(id="0123456789abcdef", spec=SPEC, out=Path("out"))
AT = Progress(updates=2, share=0.5, seconds=0.5, loss=1.5, images_per_second=9.0)
ACCURACY = Accuracy(protocol="linear", attack="pgd", eps=8 / 255, correct=3, total=4, updates=4)
ENDED = RECORD.model_copy(update={"train": TRAINED, "environment": MACHINE})


def tell(tracker, run=RUN):
    tracker.started(run)
    tracker.progress(run, AT)
    tracker.evaluated(run, ACCURACY)
    tracker.ended(run, ENDED)


def test_what_trackers_have_in_common():
    assert (ACCURACY.name, ACCURACY.value) == ("accuracy/linear/pgd/8-255", 0.75)
    assert ACCURACY.model_copy(update={"correct": 0, "total": 0}).value == 0
    assert costs(ENDED)["cost/train_seconds"] == TRAINED.train_seconds
    assert "cost/energy_joules" not in costs(ENDED)
    assert costs(RECORD) == {}
    for name in names("tracker"):
        assert issubclass(load("tracker", name).Tracker, Hook)


def test_tensorboard_reads_what_was_written_and_what_goes_on_replaces_what_it_repeats(tmp_path):
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install '.[test]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read():
        events = EventAccumulator(str(run.out / "tensorboard" / SPEC.name))
        events.Reload()
        return events

    run, tracker = RUN.model_copy(update={"out": tmp_path}), load("tracker", "tensorboard").Tracker()
    tell(tracker, run)
    events = read()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(2, 1.5)]
    assert [(e.step, e.value) for e in events.Scalars("accuracy/linear/pgd/8-255")] == [(4, 0.75)]
    assert [(e.step, e.value) for e in events.Scalars("cost/train_seconds")] == [(4, 1.5)]
    assert b"crop_scale = [0.3, 1.0]" in events.Tensors("run/text_summary")[0].tensor_proto.string_val[0]

    time.sleep(1.1)  # the name of an event file has the second
    tracker.started(run)
    tracker.progress(run, AT.model_copy(update={"updates": 1, "loss": 7.0}))
    tracker.progress(run, AT.model_copy(update={"updates": 3, "loss": 6.0}))
    assert [(e.step, e.value) for e in read().Scalars("train/loss")] == [(1, 7.0), (3, 6.0)]


class FakeWandb(ModuleType):
    """Writes down what it is told; one run at a time."""

    def __init__(self):
        super().__init__("wandb")
        self.calls = []

    def Settings(self, **given):
        return given

    def init(self, **given):
        self.calls.append(("init", given))
        note = lambda name: lambda *what, **how: self.calls.append((name, what, how))  # noqa: E731
        config, summary = SimpleNamespace(update=note("config")), SimpleNamespace(update=note("summary"))
        methods = {name: note(name) for name in ("log", "define_metric", "finish")}
        return SimpleNamespace(config=config, summary=summary, **methods)


def test_wandb_gets_a_run_under_our_id_with_curves_over_updates(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    tell(load("tracker", "wandb").Tracker())
    (_, init), *rest = fake.calls
    assert {key: init[key] for key in ("project", "id", "name", "group", "resume")} == {
        "project": "mine",
        "id": RUN.id,
        "name": "emp_ssl-s3",
        "group": "out",
        "resume": "allow",
    }
    assert init["config"]["seed"] == "3"
    assert ("define_metric", ("*",), {"step_metric": "updates"}) in rest
    logged = [what[0] for name, what, _ in rest if name == "log"]
    assert logged[0] == {"updates": 2, "train/loss": 1.5, "train/images_per_second": 9.0, "train/seconds": 0.5}
    assert logged[1] == {"updates": 4, "accuracy/linear/pgd/8-255": 0.75}
    (config,) = [(what[0], how) for name, what, how in rest if name == "config"]
    assert config[0]["crop_scale"] == "[0.3, 1.0]"
    assert config[1] == {"allow_val_change": True}
    (summary,) = [what[0] for name, what, _ in rest if name == "summary"]
    assert (summary["status"], summary["cost/updates"]) == ("finished", 4.0)
    assert rest[-1] == ("finish", (), {"exit_code": 0})


class FakeClient:
    """A server of MLflow in memory."""

    runs: dict  # id -> {tags, metrics, status}

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id="7") if name == "known" else None

    def create_experiment(self, name):
        return f"new {name}"

    def search_runs(self, experiments, wanted):
        found = [key for key, run in self.runs.items() if f"tags.`bench.id` = '{run['tags']['bench.id']}'" == wanted]
        return [SimpleNamespace(info=SimpleNamespace(run_id=key)) for key in found]

    def create_run(self, experiment, run_name, tags):
        self.runs[str(len(self.runs))] = {"name": run_name, "tags": tags, "metrics": [], "status": ["RUNNING"]}
        return SimpleNamespace(info=SimpleNamespace(run_id=str(len(self.runs) - 1)))

    def update_run(self, key, status):
        self.runs[key]["status"].append(status)

    def log_batch(self, key, metrics):
        self.runs[key]["metrics"] += metrics

    def set_tag(self, key, name, value):
        self.runs[key]["tags"][name] = value

    def set_terminated(self, key, status):
        self.runs[key]["status"].append(status)


def test_mlflow_finds_the_run_that_goes_on(monkeypatch):
    client = type("Client", (FakeClient,), {"runs": {}})
    for name, members in {"": {}, ".tracking": {"MlflowClient": client}, ".entities": {"Metric": lambda *a: a}}.items():
        module = ModuleType(f"mlflow{name}")
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, f"mlflow{name}", module)
    tracker = load("tracker", "mlflow").Tracker()
    assert tracker._experiment == "new robust-ssl-bench"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "known")
    assert load("tracker", "mlflow").Tracker()._experiment == "7"

    tell(tracker)
    tell(tracker, RUN.model_copy(update={"id": "f" * 16}))
    tell(tracker)  # goes on
    assert [run["status"] for run in client.runs.values()] == [
        ["RUNNING", "FINISHED", "RUNNING", "FINISHED"],
        ["RUNNING", "FINISHED"],
    ]
    found = client.runs["1"]
    assert (found["name"], found["tags"]["bench.id"], found["tags"]["seed"]) == ("emp_ssl-s3", "f" * 16, "3")
    assert found["tags"]["crop_scale"] == "[0.3, 1.0]"
    values = {(name, step): value for name, value, _, step in found["metrics"]}
    assert values["train/loss", 2] == 1.5
    assert values["accuracy/linear/pgd/8-255", 4] == 0.75
    assert values["cost/train_seconds", 4] == 1.5
    tracker.ended(RUN, ENDED.model_copy(update={"status": "preempted"}))
    tracker.ended(RUN, ENDED.model_copy(update={"status": "diverged"}))
    assert client.runs["0"]["status"][-2:] == ["KILLED", "FAILED"]
