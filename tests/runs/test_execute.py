"""One run in a process of its own: what is tried again."""

import pytest
from process_fixtures import handlers_given_back, in_process, own_method, spec

from bench.storage.store import RunFolder


@pytest.fixture(autouse=True)
def own_signal_handlers():
    with handlers_given_back():
        yield


def test_a_run_whose_budget_held_no_update_is_trained_again_by_the_same_command(tmp_path):
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
