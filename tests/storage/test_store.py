"""The store: what was saved comes back, of two files the one that names the other is last, and damage is named."""

import hashlib
from pathlib import Path

import pytest
import torch
from evaluation_fixtures import tiny_encoder
from store_fixtures import DATA, RECORD, SPEC, TRAINED, files, manifest, one_line, probe, result, spoil

from bench.audit.audit import runs_of
from bench.engines import codes_of, images_of
from bench.record import Audit, Check, EncoderShift, Record
from bench.spec import UsageError
from bench.storage import disk, store
from bench.storage.disk import Disk, DiskError
from bench.storage.files import Damaged, load_tensors, read, save, sha256
from bench.storage.store import Beat, RunFolder, images_file, load_manifest, load_records


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path, SPEC)


# ---------------------------------------------------------------- records


def test_record_of_a_run_that_has_not_begun():
    assert RunFolder(Path("/nonexistent"), SPEC).record() == Record(spec=SPEC)
    assert Record(spec=SPEC).status == "pending"


def test_every_part_of_a_run_comes_back(run):
    encoder = tiny_encoder()
    run.save_record(RECORD)
    run.save_trained(TRAINED, encoder.state_dict())
    weights = {"weight": torch.randn(10, 24), "bias": torch.randn(10)}
    run.save_probe(probe(), weights)
    results = [result(attack="autoattack"), result(eps=0.05), result(), result("multi_patch")]
    for each in reversed(results):
        run.save_result(each)
    assert run.path == run.out / "runs" / "emp_ssl-s3"
    whole = run.record()
    hashed = probe().model_copy(update={"sha256": sha256(weights)})
    trained = TRAINED.model_copy(update={"encoder_sha256": sha256(encoder.state_dict())})
    assert whole == RECORD.model_copy(update={"train": trained, "probes": [hashed], "results": results})
    found = run.probe("linear")
    assert found[0] == hashed
    assert all(torch.equal(found[1][name], weights[name]) for name in weights)
    assert run.probe("multi_patch") is None
    assert run.result("linear", "pgd", 0.05) == results[1]
    assert run.result("linear", "pgd", 0.02) is None
    run.save_record(whole)  # with its parts: they stay where they are
    assert read(Record, run.path / "run.json") == RECORD
    assert run.record() == whole


def test_record_of_a_run_that_is_in_training(run):
    run.save_record(RECORD.model_copy(update={"status": "preempted", "message": "stopped"}))
    run.save_checkpoint({"updates": 2})
    record = run.record()
    assert (record.train, record.probes, record.results, record.status) == (None, [], [], "preempted")
    assert run.trained() is None


def test_how_far_a_run_has_come_grows_with_all_that_is_stored(run):
    """A checkpoint of the same updates, which every start of a training saves, is no step."""
    steps = [
        (lambda: run.save_record(RECORD), 0),
        (lambda: run.save_checkpoint({"updates": 0, "method": {"weight": torch.ones(2)}}), 0),
        (lambda: run.save_checkpoint({"updates": 2, "method": {"weight": torch.ones(2)}}), 2),
        (lambda: run.save_checkpoint({"updates": 2, "method": {"weight": torch.ones(2)}}), 2),
        (lambda: run.save_beat(Beat(seconds=9.0, updates=3)), 2),  # not saved, so it is made again
        (lambda: run.save_trained(TRAINED, {"weight": torch.ones(2)}), 4),
        (lambda: run.save_probe(probe(), {"weight": torch.ones(2)}), 5),
        (lambda: run.save_result(result()), 6),
        (lambda: run.save_result(result(attack="autoattack", complete=False, stages=[("apgd-ce", 2)])), 8),
        (lambda: run.save_result(result(attack="autoattack", stages=[("apgd-ce", 2), ("square", 1)])), 9),
        (lambda: run.save_audits([Audit(protocol="linear", level="core", eps=0.1, checks=[])]), 10),
    ]
    assert run.reached() == 0
    for step, expected in steps:
        step()
        assert run.reached() == expected


def test_how_far_a_run_has_come_leaves_out_what_is_damaged(run):
    run.save_checkpoint({"updates": 2})
    run.save_checkpoint({"updates": 3})
    spoil(run.path / "checkpoints" / "000002" / "state.json")
    assert run.reached() == 2
    spoil(run.path / "checkpoints" / "000001" / "state.json")
    assert run.reached() == 0


def test_two_results_for_one_cell_are_refused(run):
    run.save_record(RECORD)
    run.save_result(result(outcomes="0110"))
    save(run.path / "results" / "linear-copied-0.1.json", result(outcomes="0111"))
    with pytest.raises(Damaged, match=r"emp_ssl-s3 is damaged .*: .*expected one result per cell"):
        run.record()


def test_a_cell_in_l2_lies_beside_that_in_l_inf(run):
    both = [result(attack="mine", eps=0.5), result(attack="mine", eps=0.5, norm="l2", outcomes="0111")]
    for each in both:
        run.save_result(each)
    assert run.names("results") == ["results/linear-mine-0.500000.json", "results/linear-mine-l2_0.500000.json"]
    assert [run.result("linear", "mine", 0.5, norm) for norm in ("linf", "l2")] == both
    assert {store.cell(name) for name in run.names("results")} == {"linear-mine"}
    run.save_record(RECORD)
    assert len(run.record().results) == 2
    assert '"norm"' not in (run.path / "results" / "linear-mine-0.500000.json").read_text()  # as it always was


def test_load_records_follows_the_manifest(tmp_path):
    other = SPEC.model_copy(update={"method": "simclr"})
    save(tmp_path / store.MANIFEST, manifest(other, SPEC))
    RunFolder(tmp_path, SPEC).save_record(RECORD)
    assert load_manifest(tmp_path) == manifest(other, SPEC)
    assert load_records(tmp_path) == [Record(spec=other), RECORD]


def test_what_is_asked_for_each_run_does_not_walk_the_folder_of_all(tmp_path, monkeypatch):
    """The command looks for links once; the processes of its runs ask for the manifest only."""
    save(tmp_path / store.MANIFEST, manifest(SPEC))
    walked = []
    monkeypatch.setattr(store, "refuse_links", walked.append)
    assert (images_of(tmp_path), codes_of(tmp_path)) == (DATA, {})
    assert runs_of(RunFolder(tmp_path, SPEC)) == [SPEC]
    assert walked == []
    load_manifest(tmp_path)
    assert walked == [tmp_path]


PARTS = {
    "run.json": "status",
    "train.json": "train",
    "probes/linear.json": "probes",
    "results/linear-pgd-0.100000.json": "results",
    "audit.json": "audits",
    "shift.json": "shift",
}


@pytest.mark.parametrize("name", PARTS)
def test_a_damaged_part_is_raised_or_left_out(run, name):
    run.save_record(RECORD)
    run.save_trained(TRAINED, {"w": torch.ones(1)})
    run.save_probe(probe(), {"w": torch.ones(1)})
    run.save_result(result())
    run.save_audits([Audit(protocol="linear", level="core", eps=0.1, checks=[Check(id="S2", verdict="PASS")])])
    run.save_shift(EncoderShift(eps=0.1, images=64, mean=0.5, seconds=1.0))
    whole = run.record()
    spoil(run.path / name)
    with pytest.raises(Damaged, match=name) as error:
        run.record()
    assert one_line(error, run.path / name)
    damaged = []
    rest = run.record(damaged)
    assert [each.path for each in damaged] == [run.path / name]
    assert {field for field in PARTS.values() if getattr(rest, field) != getattr(whole, field)} == {PARTS[name]}
    save(run.out / store.MANIFEST, manifest(SPEC))
    with pytest.raises(Damaged):
        load_records(run.out)
    assert load_records(run.out, damaged) == [rest]


# ---------------------------------------------------------------- training


def test_trained_encoder_loads_strictly_and_ends_the_checkpoint(run):
    encoder = tiny_encoder()
    run.save_checkpoint({"updates": 2})
    run.save_beat(Beat(seconds=1.0, updates=2))
    run.save_trained(TRAINED, encoder.state_dict())
    assert run.checkpoint() == (None, [])
    assert files(run.path) == ["encoder.safetensors", "train.json"]
    trained, weights = run.trained()
    assert trained == TRAINED.model_copy(update={"encoder_sha256": sha256(encoder.state_dict())})
    other = tiny_encoder(seed=1)
    other.load_state_dict(weights, strict=True)
    images = torch.rand(4, 3, 16, 16)
    assert torch.equal(other(images), encoder(images))
    weights.pop("backbone.0.weight")
    with pytest.raises(RuntimeError, match=r"Missing key.*backbone\.0\.weight"):
        other.load_state_dict(weights)


class Noted(Disk):
    """Notes what is renamed and what is removed."""

    def __init__(self):
        self.order = []

    def replace(self, old, new):
        super().replace(old, new)
        self.order.append(new.name)

    def remove(self, path):
        if path.exists():
            self.order.append(f"no {path.name}")
        super().remove(path)


def test_of_two_files_the_one_that_names_the_other_is_last(run, monkeypatch):
    run.save_checkpoint({"updates": 2})
    noted = Noted()
    monkeypatch.setattr(disk, "DISK", noted)
    run.save_trained(TRAINED, tiny_encoder().state_dict())
    assert noted.order[:2] == ["encoder.safetensors", "train.json"]
    assert noted.order[2:] == ["no MANIFEST.json", "no state.json", "no tensors.safetensors"]
    noted.order.clear()
    run.save_probe(probe(), {"weight": torch.zeros(1)})
    assert noted.order == ["linear.safetensors", "linear.json"]


@pytest.mark.parametrize("status", ["diverged", "oom", "failed"])
def test_trained_of_a_run_that_did_not_finish_has_no_weights(run, status):
    ended = TRAINED.model_copy(update={"status": status, "last_loss": None})
    run.save_checkpoint({"updates": 2})
    run.save_trained(ended, tiny_encoder().state_dict())
    trained, weights = run.trained()
    assert (trained.model_copy(update={"encoder_sha256": ""}), weights) == (ended, {})
    assert (run.checkpoint()[0] is not None) == (status == "diverged")


def test_weights_that_are_others_than_those_of_the_result_are_not_loaded(run):
    run.save_trained(TRAINED, {"w": torch.arange(3.0)})
    run.save_probe(probe(), {"w": torch.arange(3.0)})
    for name, load in (("encoder", run.trained), ("probes/linear", lambda: run.probe("linear"))):
        store.save_tensors(run.path / f"{name}.safetensors", {"w": torch.arange(3.0) + 1})
        with pytest.raises(Damaged, match=rf"{name}\.safetensors is damaged .*: the hash of its tensors does not fit"):
            load()


def test_a_beat_comes_back_and_one_that_is_damaged_or_lost_is_none(run):
    assert run.beat() is None
    run.save_beat(Beat(seconds=1.5, updates=7))
    assert run.beat() == Beat(seconds=1.5, updates=7)
    spoil(run.path / "beat.json")
    assert run.beat() is None


# ---------------------------------------------------------------- what the attacks returned


def test_audits_and_adversarial_images_come_back(run):
    assert (run.audits(), run.adversarial("linear", "pgd")) == ([], None)
    audits = [
        Audit(protocol=name, level="core", eps=0.1, checks=[Check(id="S2", verdict="PASS", value=5.0)])
        for name in ("multi_patch", "linear")
    ]
    run.save_record(RECORD)
    run.save_audits(audits)
    assert run.audits() == run.record().audits == audits
    images = torch.rand(3, 1, 4, 4)
    stored = run.save_adversarial("linear", "pgd", images)
    assert stored == sha256({"images": images})
    assert run.adversarial("linear", "pgd") is None  # no result names them
    run.save_result(result(images_sha256=stored))
    assert torch.equal(run.adversarial("linear", "pgd"), images)
    assert files(run.path / "adversarial") == [f"linear-pgd-{stored[:16]}.safetensors"]


def put(run, value, attack="pgd", eps=0.1, **changes):
    """A result with images of this value."""
    stored = run.save_adversarial("linear", attack, torch.full((2, 1, 2, 2), value))
    run.save_result(result(attack=attack, eps=eps, images_sha256=stored, **changes))


def test_only_the_images_of_the_last_result_of_each_attack_are_kept(run):
    put(run, 0.1, eps=0.05)
    put(run, 0.9, attack="pgd-100", eps=0.05)  # another attack, whose name begins with the same
    put(run, 0.2, eps=0.1)
    put(run, 0.3, attack="autoattack", complete=False)
    put(run, 0.4, attack="autoattack")
    kept = {attack: float(run.adversarial("linear", attack).max()) for attack in ("pgd", "pgd-100", "autoattack")}
    assert kept == pytest.approx({"pgd": 0.2, "pgd-100": 0.9, "autoattack": 0.4})
    assert len(files(run.path / "adversarial")) == 3
    put(run, 0.7, eps=0.05)  # an earlier cell again: those of the last stay
    assert float(run.adversarial("linear", "pgd").max()) == pytest.approx(0.2)
    assert len(files(run.path / "adversarial")) == 3


def test_images_before_their_result_do_not_replace_those_of_the_result_before(run):
    put(run, 0.1, eps=0.05)
    run.save_adversarial("linear", "pgd", torch.full((2, 1, 2, 2), 0.2))  # and then the process is killed
    assert float(run.adversarial("linear", "pgd").max()) == pytest.approx(0.1)


def test_images_that_are_others_than_those_of_the_result_are_not_loaded(run):
    put(run, 0.1)
    file = run.path / images_file(run.result("linear", "pgd", 0.1))
    store.save_tensors(file, {"images": torch.zeros(2, 1, 2, 2)})
    with pytest.raises(Damaged, match=f"{file.name} is damaged"):
        run.adversarial("linear", "pgd")
    assert load_tensors(file)["images"].shape == (2, 1, 2, 2)


# ---------------------------------------------------------------- the folder


@pytest.mark.parametrize("name", ["empty", "missing", "file"])
def test_a_folder_that_is_none_of_a_run(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    with pytest.raises(UsageError, match=r"expected the folder of a run, got .*: it has no manifest\.json") as error:
        load_manifest(tmp_path / name)
    assert one_line(error, tmp_path / name)


def test_a_folder_that_vanishes_is_not_made_again(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    run = RunFolder(out, SPEC)
    run.save_record(RECORD)
    out.rename(tmp_path / "elsewhere")
    writes = [
        lambda: run.save_record(RECORD),
        lambda: run.save_trained(TRAINED, {"w": torch.ones(1)}),
        lambda: run.save_checkpoint({"updates": 1}),
        lambda: run.save_beat(Beat(seconds=1.0, updates=1)),
        lambda: run.save_probe(probe(), {"w": torch.ones(1)}),
        lambda: run.save_result(result()),
        lambda: run.save_adversarial("linear", "pgd", torch.ones(1)),
        lambda: run.save_audits([]),
    ]
    for write in writes:
        with pytest.raises(
            DiskError, match=rf"^the folder {out} has vanished; with it back, the same command goes on$"
        ):
            write()
    assert not out.exists()
    (tmp_path / "elsewhere").rename(out)
    run.save_result(result())
    assert run.record().results == [result()]


def test_a_run_makes_the_folders_that_it_needs(tmp_path):
    run = RunFolder(tmp_path / "a" / "b", SPEC)
    run.save_result(result())
    assert run.result("linear", "pgd", 0.1) == result()


def test_files_are_the_same_bytes_each_time(run):
    seen = set()
    for _ in range(2):
        run.save_record(RECORD)
        run.save_trained(TRAINED, tiny_encoder().state_dict())
        names = ("run.json", "train.json", "encoder.safetensors")
        seen.add(hashlib.sha256(b"".join((run.path / name).read_bytes() for name in names)).hexdigest())
    assert len(seen) == 1
