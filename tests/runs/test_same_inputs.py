"""Code or images that are not those of the command: refused before anything is done, wherever a run is made."""

import pytest
from cluster_fixtures import IMAGES, Heard, cells, opened
from process_fixtures import handlers_given_back, in_process
from ranks_fixtures import on_ranks

from bench.engines import worker
from bench.engines.local import LocalEngine
from bench.identity.source import source_hash
from bench.record import Record
from bench.runs.child_main import SAVE_EVERY, UNFIT
from bench.runs.conduct import conclude, run_all
from bench.runs.same_inputs import check_copies
from bench.spec import UsageError
from bench.storage.store import RunFolder

(RUN,) = cells(1)
OTHER = IMAGES.model_copy(update={"train_sha256": "b" * 64})
OWN = f"train {IMAGES.train_sha256[:12]}, test {IMAGES.test_sha256[:12]}"  # of the synthetic images of cells()
WRONG = f"train {'b' * 12}, test {IMAGES.test_sha256[:12]}"


def refused(asked, got):
    return (
        rf"expected the images of the command \({asked}\) on every machine, got others \({got}\) on \S+; copy the same"
    )


def test_the_hashes_alone_decide():
    check_copies(RUN, OTHER)
    check_copies(RUN, OTHER, OTHER.model_copy(update={"label": "elsewhere", "train": 31}))
    with pytest.raises(UsageError, match=refused(OWN, WRONG)):
        check_copies(RUN, OTHER, IMAGES)
    with pytest.raises(UsageError, match=r"test dddddddddddd\) on every"):
        check_copies(RUN, IMAGES, IMAGES.model_copy(update={"test_sha256": "d" * 64}))


def complaints(ranks):
    """What a rank says where both have the same images, where the second has others, where they have but those."""
    said = []
    for data, expected in (((IMAGES, IMAGES), None), ((IMAGES, OTHER), None), ((OTHER, OTHER), IMAGES)):
        try:
            check_copies(RUN, data[ranks.rank], expected if ranks.rank == 0 else None, ranks)
            said.append("")
        except UsageError as error:
            said.append(str(error))
    return said


def complaint_of_other_code(ranks):
    """What a rank says where the second has changed a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.identity.source.packages", lambda: f"those of rank {ranks.rank}")
        try:
            check_copies(RUN, IMAGES, ranks=ranks)
        except UsageError as error:
            return str(error)


def test_all_ranks_refuse_code_that_is_not_that_of_the_first():
    first, second = on_ranks(2, complaint_of_other_code)
    assert first == second
    assert "expected the code of the command (" in first


def test_all_ranks_refuse_what_one_of_them_has():
    first, second = on_ranks(2, complaints)
    assert first == second
    assert first[0] == ""
    assert all(f"({OWN}) on every machine, got others ({WRONG})" in each for each in first[1:])


def test_the_process_of_a_run_refuses_and_leaves_everything_as_it_was(tmp_path):
    (run,) = cells(1)
    folder = RunFolder(tmp_path, run)
    folder.save_record(Record(spec=run, data=IMAGES, status="preempted"))
    before = (folder.path / "run.json").read_bytes()
    with handlers_given_back():
        code, events = in_process(tmp_path, run, images=OTHER.model_dump(mode="json"))
    assert (code, len(events), events[0]["event"]) == (UNFIT, 1, "error")
    assert f"got others ({OWN})" in events[0]["message"]
    assert [each.name for each in folder.path.iterdir()] == ["run.json"]
    assert (folder.path / "run.json").read_bytes() == before


def test_here_the_run_has_failed_and_what_was_finished_stays(tmp_path):
    done, run = cells(2, updates=1)
    out = opened(tmp_path / "out", [done, run], OTHER)
    RunFolder(out, done).save_record(Record(spec=done, status="finished"))
    assert run_all(out, [done, run], Heard(), None, LocalEngine(out, SAVE_EVERY, None)) == [run.name]
    assert RunFolder(out, done).record().status == "finished"
    record = RunFolder(out, run).record()
    assert (record.status, record.train, record.data) == ("failed", None, None)
    assert f"({WRONG}) on every machine, got others ({OWN})" in record.message


def test_a_worker_sends_home_why_it_refuses(tmp_path, monkeypatch):
    """Also where nobody hears its events, as with Slurm; a run that was finished but for more time stays as it is."""
    (run,) = cells(1, updates=1)
    out = opened(tmp_path / "out", [run], OTHER)
    folder = RunFolder(out, run)
    folder.save_record(Record(spec=run, status="finished", missing="the evaluation's 1 s are spent"))
    monkeypatch.setattr(worker, "user_cache_path", lambda name: tmp_path / "cache")
    told = worker.common(out, 1.0) | {"manifest": "0" * 64, "spec": run, "source": source_hash(run)}
    outcome, files = worker.work(worker.Order(**told), dict, lambda events: False)
    last = worker.ended(outcome, files, folder, stopping=False)
    assert (last["event"], last["code"], files) == ("exit", UNFIT, {})
    assert f"({WRONG}) on every machine, got others ({OWN})" in last["message"]
    assert conclude(folder, last, []) == folder.record()
    assert folder.record().status == "finished"
