"""What the engines share on a worker's return, when a worker or the command is silent, what the local one refuses."""

import signal
from multiprocessing import Pipe
from types import SimpleNamespace

import pytest
from cluster_fixtures import cells

from bench.engine import PATIENCE
from bench.engines import EXIT, LOST, worker
from bench.engines.local import LocalEngine, check_cores
from bench.engines.ray import ANSWER, SILENT, RayEngine
from bench.engines.worker import TELL_EVERY, Outcome, ended
from bench.parcel import pack, unpack
from bench.spec import Budget, UsageError
from bench.store import RunFolder


@pytest.mark.parametrize(
    ("code", "stopping", "event"),
    [(0, False, EXIT), (1, False, EXIT), (143, False, LOST), (130, False, LOST), (143, True, EXIT)],
)
def test_a_signal_on_a_worker_is_a_loss_unless_it_came_from_here(tmp_path, code, stopping, event):
    folder = RunFolder(tmp_path, cells(1)[0])
    last = ended(Outcome(code=code, node="far"), {"train.json": b"{}"}, folder, stopping)
    assert last["event"] == event
    assert (folder.path / "train.json").read_bytes() == b"{}"


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

    order = worker.Order(spec=cells(1)[0], out=str(tmp_path), manifest="", save_every=1.0)
    outcome, _ = worker.work(order, dict, tell)
    assert outcome.code == code  # what had ended by itself is a result all the same
    assert child.signals == [signal.SIGTERM]
    assert child.events.closed


class Quiet:
    """Stands in for Ray and for the mailbox: no task ends, and ``letters`` are what workers have written."""

    def __init__(self) -> None:
        self.letters, self.cancelled = [], []
        self.take = self

    def remote(self):
        taken, self.letters = self.letters, []
        return taken

    def wait(self, refs, num_returns, timeout):
        return [], refs

    def get(self, letters):
        return letters

    def cancel(self, ref, force):
        assert force
        self.cancelled.append(ref)


def test_a_run_is_lost_25_seconds_after_its_last_word_and_one_that_waits_is_not(monkeypatch):
    now, quiet, (talks, silent, waits) = [0.0], Quiet(), cells(3)
    monkeypatch.setattr("bench.engines.ray.time", SimpleNamespace(monotonic=lambda: now[0]))
    engine = object.__new__(RayEngine)
    engine._ray = engine._mailbox = quiet
    engine._refs, engine._heard = {"talks": talks, "silent": silent, "waits": waits}, {}
    quiet.letters = [(talks.name, [{"event": "train"}]), (silent.name, [])]
    assert engine.poll(0.0) == [(talks.name, {"event": "train"})]
    now[0] = 24.9
    quiet.letters = [(talks.name, [])]
    assert engine.poll(0.0) == []
    now[0] = 25.1
    assert engine.poll(0.0) == [(silent.name, {"event": LOST, "message": "silent for 25 s"})]
    assert (quiet.cancelled, list(engine._refs)) == (["silent"], ["talks", "waits"])
    assert ANSWER + PATIENCE + 2 * TELL_EVERY < SILENT  # its worker has ended before


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
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    timed = [spec.model_copy(update={"budget": Budget.parse("10s")}) for spec in cells(1)]
    assert check_cores(timed, 4) == 4
    with pytest.raises(UsageError, match=r"--jobs 5 of 1 threads on 4 cores"):
        check_cores(timed, 5)
    assert check_cores(cells(1), 5) == 5  # in updates
    with pytest.raises(ValueError, match="a GPU for each of 2 jobs"):
        LocalEngine(tmp_path, 1.0, None, jobs=2, gpus=("0",))
