"""One run in a process of its own: what is tried again, and what is written while the clock runs."""

import threading

import pytest
from process_fixtures import handlers_given_back, in_process, own_method, spec

from bench.device import clock_probe
from bench.storage.store import RunFolder


@pytest.fixture(autouse=True)
def own_signal_handlers():
    with handlers_given_back():
        yield


@pytest.mark.ci
def test_a_run_whose_budget_held_no_update_is_trained_again_by_the_same_command(tmp_path, monkeypatch):
    monkeypatch.setattr(clock_probe, "probe_seconds", lambda budget: 0.02)
    busy = tmp_path / "busy"
    busy.touch()
    slow = f"import pathlib, time; time.sleep(0.5 * pathlib.Path({str(busy)!r}).exists()); return super().loss(views)"
    run = spec("0.4s", **own_method(tmp_path, slow))
    folder = RunFolder(tmp_path / "out", run)
    for _ in range(2):  # it stays as it is as long as nothing changes
        in_process(tmp_path / "out", run)
        record = folder.record()
        assert (record.status, record.train.status, record.train.updates) == ("failed", "failed", 0)
        assert record.message.startswith("not one update fits into 0.4s")
    busy.unlink()
    assert in_process(tmp_path / "out", run)[0] == 0
    record = folder.record()
    assert (record.status, record.train.status, record.train.preemptions) == ("finished", "finished", 0)
    assert record.train.updates > 0
    assert record.results


def test_nothing_is_written_while_the_clock_runs_but_beside_it(tmp_path, monkeypatch):
    """Signs of life come from a thread; the training's own thread writes one with each checkpoint, off the clock."""
    own, kept = [], []
    save_beat, save_checkpoint = RunFolder.save_beat, RunFolder.save_checkpoint
    main = threading.current_thread()

    def beat(self, beat):
        if threading.current_thread() is main:
            own.append(beat.updates)
        save_beat(self, beat)

    def checkpoint(self, state):
        kept.append(state["updates"])
        save_checkpoint(self, state)

    monkeypatch.setattr(RunFolder, "save_beat", beat)
    monkeypatch.setattr(RunFolder, "save_checkpoint", checkpoint)
    code, events = in_process(tmp_path, spec("4up"))
    assert code == 0
    assert [event["updates"] for event in events if event["event"] == "train"] != []
    assert own == kept == [0]
