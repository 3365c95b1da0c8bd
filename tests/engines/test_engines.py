"""What the engines share on a worker's return, when a worker or the command is silent, what the local one refuses."""

import signal
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import pytest
from cluster_fixtures import Heard, cells

from bench.engines import local, worker
from bench.engines.local import LocalEngine, check_cores, local_jobs
from bench.engines.parcel import pack, unpack
from bench.engines.ray import ANSWER, ARRIVAL, SILENT, Mailbox, RayEngine, task
from bench.engines.worker import TELL_EVERY, Outcome, ended
from bench.identity.source import source_hash
from bench.record import Record
from bench.runs.child_main import PATIENCE, UNFIT
from bench.runs.conduct import run_all
from bench.spec import Budget, UsageError
from bench.storage.lock import owned
from bench.storage.store import RunFolder


@pytest.mark.parametrize(
    ("code", "stopping", "event"),
    [(0, False, "exit"), (1, False, "exit"), (143, False, "lost"), (130, False, "lost"), (143, True, "exit")],
)
def test_a_signal_on_a_worker_is_a_loss_unless_it_came_from_here(tmp_path, code, stopping, event):
    folder = RunFolder(tmp_path, cells(1)[0])
    last = ended(Outcome(code=code, node="far"), {"train.json": b"{}"}, folder, stopping)
    assert last["event"] == event
    assert (folder.path / "train.json").read_bytes() == b"{}"


class Losing:
    """Loses its run ``losses`` times before it ends, and saves ``moves`` updates more before each loss."""

    slots = 1

    def __init__(self, out, losses, moves):
        self.out, self.losses, self.moves = out, losses, moves
        self.folders, self.starts = [], 0

    def start(self, spec):
        self.folders.append(RunFolder(self.out, spec))
        self.starts += 1

    def poll(self, seconds):
        folder = self.folders.pop()
        if self.starts <= self.losses:
            folder.save_checkpoint({"updates": 5 + self.moves * self.starts})
            return [(folder.spec.name, {"event": "lost", "message": "the node is gone"})]
        folder.save_record(Record(spec=folder.spec, status="finished"))
        return [(folder.spec.name, {"event": "exit", "code": 0})]


def test_a_run_that_moves_on_between_its_losses_is_not_given_up(tmp_path):
    spec, engine = cells(1)[0], Losing(tmp_path, losses=30, moves=1)
    assert run_all(tmp_path, [spec], Heard(), None, engine) == []
    assert engine.starts == 31


def test_a_run_that_is_lost_ten_times_at_one_place_has_failed(tmp_path):
    spec, engine = cells(1)[0], Losing(tmp_path, losses=30, moves=0)
    assert run_all(tmp_path, [spec], Heard(), None, engine) == [spec.name]
    record = RunFolder(tmp_path, spec).record()
    assert (engine.starts, record.status) == (10, "failed")
    assert record.message == (
        "lost 10 times in a row and no further than the first time; the last time: the node is gone; "
        "the same command goes on from what is saved"
    )


@pytest.mark.parametrize(("there", "home", "goes_on_from"), [(7, 5, 7), (5, 7, 7), (5, 5, 5), (None, 5, 5), (5, 0, 5)])
def test_a_worker_goes_on_from_whichever_is_further(tmp_path, monkeypatch, there, home, goes_on_from):
    """``there``: updates that are saved on its machine, from an earlier visit; ``home``: where the command runs."""
    (spec,) = cells(1)
    monkeypatch.setattr(worker, "user_cache_path", lambda name: tmp_path / "cache")
    monkeypatch.setattr(worker, "attend", lambda *arguments: (0, ""))
    asking = RunFolder(tmp_path / "home", spec)
    made = RunFolder(tmp_path / "cache" / "cells" / ("0" * 16), spec)
    for folder, updates in ((asking, home), (made, there)):
        if updates is not None:
            folder.save_record(Record(spec=spec, status="preempted"))
            folder.save_checkpoint({"updates": updates})
    asked = order(tmp_path, spec=spec, out="/nowhere", manifest="0" * 64, reached=asking.reached())
    outcome, files = worker.work(asked, lambda: pack(asking.path), lambda events: False)
    assert outcome.code == 0
    unpack(asking.path, files)
    assert asking.checkpoint()[0] == {"updates": goes_on_from}


class Training:
    """A child that reports, until a signal ends it or it has ``left`` nothing to do."""

    def __init__(self, left: int) -> None:
        self.left, self.signals = left, []
        self.events, self.sender = Pipe(duplex=False)
        self.sender.send("something to hear")

    def heard(self):
        self.left -= 1
        return [{"event": "train"}] if self.left >= 0 else None

    def pass_on(self, signum):
        self.signals.append(signum)

    def leave(self, seconds):
        assert seconds == PATIENCE

    def ended(self):
        return 0

    def close(self):
        self.events.close()
        self.sender.close()


@pytest.mark.parametrize(("left", "code"), [(1000, 143), (0, 0)])
def test_a_worker_that_is_cut_off_saves_and_ends(tmp_path, monkeypatch, left, code):
    child = Training(left)
    monkeypatch.setattr(worker, "Child", lambda *given: child)

    def tell(events):
        raise ConnectionError("no answer")

    outcome, _ = worker.work(order(tmp_path), dict, tell)
    assert outcome.code == code  # what had ended by itself is a result all the same
    assert child.signals == [signal.SIGTERM]
    assert child.events.closed


def order(tmp_path, **changes):
    """One run of a command that is given where its folder is."""
    told = {"spec": cells(1)[0], "out": str(tmp_path), "manifest": "", "save_every": 1.0, "images": None, "folder": "."}
    return worker.Order(**told | {"source": source_hash(cells(1)[0])} | changes)


def test_a_run_whose_folder_is_still_held_is_lost_not_failed(tmp_path, monkeypatch):
    """A worker that was given up may take longer to end than the next one waits."""
    monkeypatch.setattr(worker, "owned", lambda folder, moves: owned(folder, patience=0.0, moves=moves))
    asked = order(tmp_path)
    folder = RunFolder(tmp_path, asked.spec)
    folder.path.mkdir(parents=True)
    with owned(folder.path):
        outcome, files = worker.work(asked, dict, lambda events: False)
    last = ended(outcome, files, folder, stopping=False)
    assert last["event"] == "lost"
    assert "is in use by process" in last["message"]


def test_a_worker_with_other_code_refuses(tmp_path):
    outcome, files = worker.work(order(tmp_path, source="c" * 64), dict, lambda events: False)
    own = source_hash(cells(1)[0])
    assert (outcome.code, files) == (UNFIT, {})
    assert f"the code of the command (cccccccccccc) on every machine, got other ({own[:12]}) on" in outcome.message


def test_a_worker_without_the_users_own_file_refuses(tmp_path):
    spec = cells(1)[0].model_copy(update={"method": "mine", "method_path": "mine.py"})
    outcome, _ = worker.work(order(tmp_path, spec=spec, folder=str(tmp_path)), dict, lambda events: False)
    assert (outcome.code, outcome.message) == (
        UNFIT,
        "cannot read mine.py: No such file or directory; copy it to where the run is made",
    )


def test_relative_names_start_where_the_command_was_given(tmp_path, monkeypatch):
    seen, before = [], Path.cwd()

    def attend(*given):
        seen.append(Path.cwd())
        return 0, ""

    monkeypatch.setattr(worker, "attend", attend)
    worker.work(order(tmp_path, folder=str(tmp_path)), dict, lambda events: False)
    worker.work(order(tmp_path, folder="/not/on/this/machine"), dict, lambda events: False)
    assert [path.resolve() for path in seen] == [tmp_path.resolve(), before.resolve()]
    assert Path.cwd() == before


def test_a_worker_of_another_version_says_so():
    told, files = worker.answer({"spec": {}, "speed": "fast"}, dict, lambda events: False)
    outcome = worker.Outcome.model_validate(told)
    assert (outcome.code, files) == (UNFIT, {})
    assert outcome.message.endswith("; install the same version on every machine")


def test_after_a_refusal_no_other_run_is_begun(tmp_path):
    """The machine that refuses is idle again at once, and would be handed one run after the other."""

    class Refusing(Losing):
        def poll(self, seconds):
            folder = self.folders.pop()
            return [(folder.spec.name, {"event": "exit", "code": UNFIT, "message": "other images", "node": "far"})]

    runs, display = cells(3), Heard()
    engine = Refusing(tmp_path, losses=0, moves=0)
    assert run_all(tmp_path, runs, display, None, engine) == [run.name for run in runs]
    assert engine.starts == 1
    assert [RunFolder(tmp_path, run).record().status for run in runs] == ["failed", "pending", "pending"]
    assert RunFolder(tmp_path, runs[0]).record().message == "other images (on far)"
    assert f"{runs[0].name}: other images (on far); no other run is begun" in display.lines


def test_a_run_whose_process_is_stopped_before_it_has_begun_is_preempted_and_has_not_failed(tmp_path):
    class Stopped(Losing):
        def poll(self, seconds):
            return [(self.folders.pop().spec.name, {"event": "exit", "code": 143})]

    (spec,) = cells(1)
    assert run_all(tmp_path, [spec], Heard(), None, Stopped(tmp_path, losses=0, moves=0)) == [spec.name]
    record = RunFolder(tmp_path, spec).record()
    assert record.status == "preempted"
    assert record.message == "stopped before it could save; the same command goes on from what there is"


def test_a_ray_worker_hands_on_the_gpu_that_it_was_given(tmp_path, monkeypatch):
    """Its own process may have had another one before, and what it starts begins with the environment of the first."""
    seen = []
    monkeypatch.setattr("bench.engines.ray.answer", lambda order, fetch, tell: seen.append(order["visible"]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    for visible in (None, ""):
        task(order(tmp_path, visible=visible).model_dump(mode="json"), "run", 0, None, [])
    assert seen == ["3", ""]


def test_only_the_newest_try_of_a_run_is_heard():
    box = Mailbox()
    box.expect("a", 1)
    assert not box.put("a", 1, [{"event": "train"}])
    box.expect("a", 2)  # what the first has left there is of no use now
    assert box.put("a", 1, [{"event": "late"}])  # and it is told to stop
    assert not box.put("a", 2, [])
    assert box.take() == [("a", [])]
    box.stop()
    assert box.put("a", 2, [])


class Quiet:
    """Stands in for Ray and for the mailbox: ``letters`` are what workers have written, ``ready`` whose tasks end."""

    exceptions = SimpleNamespace(RayError=RuntimeError)

    def __init__(self) -> None:
        self.letters, self.cancelled, self.ready = [], [], []
        self.take = self

    def remote(self):
        taken, self.letters = self.letters, []
        return taken

    def wait(self, refs, num_returns, timeout):
        return self.ready, [ref for ref in refs if ref not in self.ready]

    def get(self, letters, timeout):
        if letters is None:
            raise RuntimeError("the actor died")
        return letters

    def cancel(self, ref, force):
        assert force
        self.cancelled.append(ref)


@pytest.fixture
def quiet(monkeypatch):
    """(the engine of three runs that are out, what stands in for Ray, the time)."""
    now, ray = [0.0], Quiet()
    monkeypatch.setattr("bench.engines.ray.time", SimpleNamespace(monotonic=lambda: now[0]))
    engine = object.__new__(RayEngine)
    engine._ray = engine._mailbox = ray
    engine._refs, engine._due = dict(zip(("talks", "silent", "waits"), cells(3), strict=True)), {}
    return engine, ray, now


def test_a_run_is_lost_30_seconds_after_its_last_word_and_one_that_waits_is_not(quiet):
    engine, ray, now = quiet
    talks, silent = engine._refs["talks"], engine._refs["silent"]
    ray.letters = [(talks.name, [{"event": "train"}]), (silent.name, [])]
    assert engine.poll(0.0) == [(talks.name, {"event": "train"})]
    now[0] = 29.9
    ray.letters = [(talks.name, [])]
    assert engine.poll(0.0) == []
    now[0] = 30.1
    assert engine.poll(0.0) == [(silent.name, {"event": "lost", "message": "its worker is silent"})]
    assert (ray.cancelled, list(engine._refs)) == (["silent"], ["talks", "waits"])
    assert ANSWER + 2 * PATIENCE + 2 * TELL_EVERY < SILENT  # worker, launcher and ranks have ended before


def test_a_run_whose_files_are_on_their_way_is_not_silent(quiet):
    engine, ray, now = quiet
    name = engine._refs["talks"].name
    ray.letters = [(name, [{"event": "train"}, {"event": "home"}])]
    assert engine.poll(0.0) == [(name, {"event": "train"})]
    now[0] = ARRIVAL - 0.1
    assert engine.poll(0.0) == []
    now[0] = ARRIVAL + 0.1
    assert engine.poll(0.0) == [(name, {"event": "lost", "message": "its worker is silent"})]


def test_while_large_files_are_taken_in_nobody_is_taken_for_silent(quiet, monkeypatch):
    engine, ray, now = quiet
    ended, talks = engine._refs["waits"], engine._refs["talks"]
    ray.letters, ray.ready = [(talks.name, []), (ended.name, [])], ["waits"]

    def slow(ref, spec):
        now[0] += 100.0
        return {"event": "exit", "code": 0}

    monkeypatch.setattr(engine, "_ended", slow)
    assert engine.poll(0.0) == [(ended.name, {"event": "exit", "code": 0})]
    ray.letters, ray.ready = [(talks.name, [])], []  # has come meanwhile
    assert engine.poll(0.0) == []
    assert ray.cancelled == []


def test_a_cluster_that_is_gone_is_said(quiet):
    engine, ray, _ = quiet
    ray.letters = None
    with pytest.raises(ConnectionError, match=r"the Ray cluster is gone \(RuntimeError\); with a cluster, the same"):
        engine.poll(0.0)


def test_a_parcel_makes_a_folder_what_was_packed_and_nothing_else(tmp_path):
    made, other = tmp_path / "made", tmp_path / "other"
    files = {"run.json": b"1", "results/a.json": b"2", "encoder.safetensors": b"3"}
    unpack(made, files)
    (made / ".lock").write_bytes(b"held")
    (made / "results" / "b.json.damaged").write_bytes(b"?")
    assert pack(made) == files
    unpack(other, {"checkpoints/1/state.json": b"old"})
    unpack(other, pack(made))
    assert pack(other) == files


@pytest.mark.parametrize("name", ["../run.json", "/etc/run.json", "a/../../b", "", "a b", "results/.."])
def test_a_name_that_leads_out_of_the_folder_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(UsageError, match="expected the files of a run from the worker"):
        unpack(tmp_path / "run", {"run.json": b"1", name: b"2"})
    assert not (tmp_path / "run").exists()


def test_runs_in_time_have_their_cores_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "cores", lambda: 4)
    timed = [spec.model_copy(update={"budget": Budget.parse("10s")}) for spec in cells(1)]
    assert check_cores(timed, 4) == 4
    with pytest.raises(UsageError, match=r"--jobs 5 of 1 threads on 4 cores"):
        check_cores(timed, 5)
    assert check_cores(cells(1), 5) == 5  # in updates
    with pytest.raises(UsageError, match=r"--jobs 2 of 4 threads on 4 cores; use --threads 2,"):
        check_cores([spec.model_copy(update={"threads": 4}) for spec in timed], 2)
    with pytest.raises(ValueError, match="a GPU for each of 2 jobs"):
        LocalEngine(tmp_path, 1.0, None, jobs=2, gpus=("0",))


@pytest.mark.parametrize(
    ("there", "runs", "threads", "ranks", "jobs"),
    [
        (4, 9, 1, 1, 4),
        (4, 3, 1, 1, 3),
        (4, 9, 3, 1, 1),
        (4, 9, 2, 1, 2),
        (4, 9, 1, 2, 2),
        (1, 9, 2, 1, 1),
        (4, 9, None, 1, 1),
    ],
)
def test_as_many_runs_as_there_are_cores_for_go_side_by_side_on_a_cpu(monkeypatch, there, runs, threads, ranks, jobs):
    monkeypatch.setattr(local, "cores", lambda: there)
    change = {"threads": threads, "gpus_per_run": ranks, "budget": Budget.parse("10s")}
    specs = [cells(1)[0].model_copy(update=change | {"seed": seed}) for seed in range(runs)]
    assert local_jobs(specs, "cpu", None) == (jobs, ())


def test_a_damaged_file_fails_its_run_and_no_other(tmp_path):
    class Spoiling(Losing):
        def poll(self, seconds):
            if self.starts == 1:
                self.folders[0].path.mkdir(parents=True)
                (self.folders[0].path / "audit.json").write_bytes(b"{}")
            return super().poll(seconds)

    spoilt, sound = cells(2)
    display = Heard()
    assert run_all(tmp_path, [spoilt, sound], display, None, Spoiling(tmp_path, losses=0, moves=0)) == [spoilt.name]
    assert display.finished == {f"{spoilt.name} failed": 1, f"{sound.name} finished": 1}
    message = RunFolder(tmp_path, spoilt).record([]).message
    assert "audit.json is damaged" in message
    assert message.endswith("; the same command makes it again")
