"""Repair: what is damaged is put aside with all that was made from it, and nothing else is touched."""

import pytest
import torch
from store_fixtures import RECORD, SPEC, TRAINED, files, one_line, probe, result, spoil

from bench.record import Audit, Check
from bench.spec import UsageError
from bench.storage.files import save
from bench.storage.repair import repair, settle
from bench.storage.store import Beat, RunFolder, images_file

IMAGES = {eps: torch.full((2, 3, 4, 4), eps) for eps in (0.05, 0.1)}


@pytest.fixture
def run(tmp_path):
    """A finished run of two protocols, with PGD at two eps and at one of the curve."""
    run = RunFolder(tmp_path, SPEC)
    run.save_record(RECORD)
    run.save_trained(TRAINED, {"w": torch.arange(3.0)})
    for protocol in ("linear", "multi_patch"):
        run.save_probe(probe(protocol), {"weight": torch.arange(4.0)})
        run.save_result(result(protocol, "none", 0.0))
        for eps, images in IMAGES.items():
            stored = run.save_adversarial(protocol, "pgd", images)
            run.save_result(result(protocol, "pgd", eps, images_sha256=stored))
        run.save_result(result(protocol, "pgd", 0.2))
    run.save_audits([Audit(protocol="linear", level="core", eps=0.1, checks=[Check(id="S2", verdict="PASS")])])
    return run


def tree(run):
    """path -> content, of every file in the folder of the run."""
    return {str(path.relative_to(run.path)): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def test_a_whole_run_is_left_as_it_is(run):
    before = tree(run)
    assert len(before) == 18
    assert repair(run) == []
    assert tree(run) == before


def test_a_run_that_has_not_begun_is_left_as_it_is(tmp_path):
    assert repair(RunFolder(tmp_path, SPEC)) == []
    assert files(tmp_path) == []


PGD = [f"results/linear-pgd-{eps}.json" for eps in ("0.050000", "0.100000", "0.200000")]
CASES = {  # the file that is spoilt: what goes with it, but for images
    "run.json": [],
    "audit.json": [],
    "results/linear-none-0.000000.json": ["audit.json"],
    "results/linear-pgd-0.050000.json": [*PGD, "audit.json"],
    "results/linear-pgd-0.200000.json": [*PGD, "audit.json"],
    "probes/linear.json": ["probes/linear.safetensors", *PGD, "results/linear-none-0.000000.json", "audit.json"],
    "probes/linear.safetensors": ["probes/linear.json", *PGD, "results/linear-none-0.000000.json", "audit.json"],
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("harm", [spoil, lambda file: file.write_bytes(b"")], ids=["spoilt", "emptied"])
def test_a_damaged_file_goes_with_all_that_was_made_from_it(run, name, harm):
    before = tree(run)
    images = images_file(run.result("linear", "pgd", 0.1))
    harm(run.path / name)
    spoilt = (run.path / name).read_bytes()
    (damage,) = repair(run)
    assert damage.path == run.path / name
    assert "\n" not in str(damage)
    gone = {name, *CASES[name]} | ({images} if "pgd" in str([name, CASES[name]]) else set())
    after = {f"{each}.damaged" if each in gone else each: data for each, data in before.items()}
    assert tree(run) == after | {f"{name}.damaged": spoilt}
    assert repair(run) == []  # and once is enough


@pytest.mark.parametrize("harm", [spoil, lambda file: file.unlink()], ids=["spoilt", "removed"])
def test_images_that_are_damaged_or_lost_go_with_the_results_of_their_attack(run, harm):
    images = images_file(run.result("linear", "pgd", 0.1))
    harm(run.path / images)
    (damage,) = repair(run)
    assert images in str(damage)
    assert [run.result("linear", "pgd", eps) for eps in (0.05, 0.1, 0.2)] == [None] * 3
    assert run.adversarial("linear", "pgd") is None
    assert run.result("linear", "none", 0.0) is not None
    assert run.adversarial("multi_patch", "pgd") is not None


@pytest.mark.parametrize("name", ["train.json", "encoder.safetensors"])
def test_a_damaged_encoder_takes_everything_with_it(run, name):
    spoil(run.path / name)
    (damage,) = repair(run)
    assert damage.path == run.path / name
    assert {each for each in tree(run) if not each.endswith(".damaged")} == {"run.json"}
    assert run.record() == RECORD


def test_what_was_lost_is_named(run):
    (run.path / "encoder.safetensors").unlink()
    (damage,) = repair(run)
    assert one_line(type("", (), {"value": damage}), run.path / "encoder.safetensors")
    assert "it is missing" in str(damage)


def test_two_damages_are_both_named(run):
    names = ["results/linear-none-0.000000.json", "probes/multi_patch.json"]
    for name in names:
        spoil(run.path / name)
    assert {each.path for each in repair(run)} == {run.path / name for name in names}


def test_what_a_killed_process_had_begun_is_removed(run):
    before = tree(run)
    for name in ("run.json", "probes/linear.json", "adversarial/linear-pgd-0.safetensors"):
        path = run.path / name
        (path.parent / f".{path.name}.123.tmp").write_bytes(b"half")
    run.save_adversarial("linear", "pgd", torch.zeros(2, 3, 4, 4))  # no result names it
    run.save_checkpoint({"updates": 4})  # the training has ended
    run.save_beat(Beat(seconds=1.0, updates=4))
    (run.path / "adversarial" / "linear-transfer-0123456789abcdef.safetensors").write_bytes(b"of another stage")
    assert repair(run) == []
    assert tree(run) == before | {"adversarial/linear-transfer-0123456789abcdef.safetensors": b"of another stage"}
    assert not (run.path / "checkpoints").exists()


@pytest.mark.parametrize(("status", "kept"), [("diverged", 1), ("oom", None)])
def test_only_a_run_that_diverged_keeps_its_checkpoints(tmp_path, status, kept):
    run = RunFolder(tmp_path, SPEC)
    run.save_checkpoint({"updates": 1})
    run.save_trained(TRAINED.model_copy(update={"status": status}), {"w": torch.ones(1)})
    assert repair(run) == []
    assert (run.checkpoint()[0] or {}).get("updates") == kept


def test_settling_removes_only_what_a_writer_left(tmp_path):
    for name in (".a.json.1.tmp", ".lock", "a.tmp", ".hidden"):
        (tmp_path / name).touch()
    settle(tmp_path, tmp_path / "missing")
    assert files(tmp_path) == [".hidden", ".lock", "a.tmp"]


def test_two_results_for_one_cell_are_for_the_user_to_sort_out(run):
    save(run.path / "results" / "linear-none-0.100000.json", result(attack="none", eps=0.0))
    with pytest.raises(UsageError, match="expected one result per cell"):
        run.record()
