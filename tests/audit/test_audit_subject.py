"""What the audit looks at and says: the subject as it was published, the evidence, the time, and each event."""

import hashlib
from dataclasses import replace

import pytest
import torch
from audit_fixtures import DEVICE, finished, rerun, subject
from evaluation_fixtures import random_images

from bench import registry
from bench.audit import audit as module
from bench.audit.audit import build_subject, evidence, examine, not_run, probe_hash, runs_of, seconds
from bench.data.images import load_data
from bench.evaluation.evaluated import Evaluated
from bench.record import Audit, Check
from bench.storage.files import sha256
from bench.training.build import build_method

EMPTY = Audit(protocol="linear", level="core", eps=0.1, checks=[])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of both protocols, how it was evaluated, its encoder and its test images."""
    both = {"protocols": ("linear", "multi_patch"), "autoattack_images": {"linear": 6, "multi_patch": 4}, "crops": 2}
    folder, spec = finished(tmp_path_factory.mktemp("audit"), **both)
    dataset = registry.load("dataset", "synthetic").Dataset()
    train, test = load_data(dataset, folder.spec.data)
    method, _ = build_method(folder.spec, dataset, 3, train.classes)
    method.encoder.load_state_dict(folder.trained()[1])
    return folder, spec, method.encoder.eval().requires_grad_(False), test


@pytest.fixture
def table(monkeypatch):
    """Two checks that pass; another may be put in their place."""
    found = {name: ("core", lambda subject, name=name: Check(id=name, verdict="PASS")) for name in ("S1", "S2")}
    monkeypatch.setattr(module, "all_checks", lambda protocol: found)
    return found


def subject_of(run, protocol, record=None):
    folder, spec, encoder, test = run
    return build_subject(Evaluated(encoder, test, test, spec, 3, DEVICE, folder), record or folder.record(), protocol)


# ---------------------------------------------------------------- the subject


@pytest.mark.parametrize("protocol", ["linear", "multi_patch"])
def test_the_subject_is_what_was_evaluated_and_published(run, protocol):
    folder, spec, encoder, test = run
    record, audited = folder.record(), spec.autoattack_images[protocol]
    found = subject_of(run, protocol)
    keys = ("none", 0.0), ("pgd", 0.02), ("autoattack", 0.02)
    clean, pgd, autoattack = (folder.result(protocol, *key) for key in keys)
    assert (found.protocol, found.eps, found.classes, found.seed, found.spec) == (protocol, 0.02, 10, 3, spec)
    assert found.chunk == spec.chunk // (2 if protocol == "multi_patch" else 1)
    assert torch.equal(found.images, test.images.float() / 255)
    assert torch.equal(found.labels, test.labels)
    assert found.audited == len(autoattack.outcomes) == audited
    both = [a == b == "1" for a, b in zip(pgd.outcomes, autoattack.outcomes, strict=False)]
    assert found.standing.tolist() == both + [False] * (16 - audited)
    assert found.robust == any(both)
    assert found.correct.tolist() == [outcome == "1" for outcome in clean.outcomes]
    with torch.no_grad():
        assert torch.equal(found.model(found.images).argmax(1) == found.labels, found.correct)
    assert not any(part.training for part in found.model.modules())
    asked = {("none", 0.0), ("pgd", 0.01), ("pgd", 0.02), ("autoattack", 0.02)}
    assert found.results == {key: folder.result(protocol, *key) for key in asked}
    assert found.adversarial.keys() == {"pgd", "autoattack"}
    for attack, images in found.adversarial.items():
        assert torch.equal(images, folder.adversarial(protocol, attack))
    probe, tensors = folder.probe(protocol)
    assert (found.probe, found.band) == (probe, probe.band)
    assert len(found.band) == 3
    assert found.loaded == {"encoder": sha256(encoder.state_dict()), "probe": sha256(tensors), "test": test.sha256}
    assert found.stored == {
        "encoder": record.train.encoder_sha256,
        "probe": probe.sha256,
        "train": record.data.train_sha256,
        "test": record.data.test_sha256,
    }
    assert all(found.stored[name] == found.loaded[name] for name in found.loaded)


def test_a_result_beside_the_main_eps_is_that_of_the_main_eps(run):
    record = run[0].record()
    near = [r.model_copy(update={"eps": r.eps * (1 + 1e-12)}) for r in record.results]
    found = subject_of(run, "linear", record.model_copy(update={"results": near}))
    assert {key for key in found.results if key[0] == "autoattack"} == {("autoattack", 0.02)}


def test_without_a_clean_or_a_ranked_result_or_a_probe_there_is_no_subject(run, monkeypatch):
    folder, record = run[0], run[0].record()
    message = f"{folder.path} has no probe or no ranked number for linear"
    for lacking in ("none", "pgd", "autoattack"):
        results = [r for r in record.results if (r.protocol, r.attack) != ("linear", lacking)]
        with pytest.raises(LookupError) as error:
            subject_of(run, "linear", record.model_copy(update={"results": results}))
        assert str(error.value) == message
    monkeypatch.setattr(Evaluated, "stored_classifier", lambda *args: None)
    with pytest.raises(LookupError) as error:
        subject_of(run, "linear", record)
    assert str(error.value) == message


def test_a_record_without_logs_has_no_hashes_to_compare(run):
    record = run[0].record().model_copy(update={"train": None, "data": None})
    found = subject_of(run, "linear", record)
    assert found.stored == {"encoder": "", "probe": run[0].probe("linear")[0].sha256, "train": "", "test": ""}


# ---------------------------------------------------------------- evidence and time


def test_evidence_is_all_that_is_judged_and_neither_order_nor_time(run):
    record = run[0].record()

    def of(results=record.results, protocol="linear", hashes=("e", "p", "t")):
        return evidence(record.model_copy(update={"results": results}), protocol, *hashes)

    def changed(attack, **update):
        key = "linear", attack
        return [r.model_copy(update=update) if (r.protocol, r.attack) == key else r for r in record.results]

    first = of()
    assert len(first) == len(hashlib.sha256().hexdigest())
    assert of(list(reversed(record.results))) == first
    assert of(changed("pgd", seconds=99.0)) == first
    config = next(r for r in record.results if (r.protocol, r.attack) == ("linear", "autoattack")).config
    assert of(changed("autoattack", config=dict(reversed(config.items())))) == first
    assert of([r for r in record.results if r.protocol == "linear"]) == first  # nothing of another protocol
    others = [
        of(changed("none", outcomes="0" * 16)),
        of(changed("autoattack", complete=False)),
        of(protocol="multi_patch"),
        *(of(hashes=hashes) for hashes in (("x", "p", "t"), ("e", "x", "t"), ("e", "p", "x"))),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_the_hash_of_a_probe_is_of_what_lies_on_disk(run):
    assert probe_hash(run[0], "linear") == sha256(run[0].probe("linear")[1])
    assert probe_hash(run[0], "published_eval") == ""


def test_time_is_that_of_probes_results_and_checks(run):
    record = run[0].record()
    update = {
        "probes": [each.model_copy(update={"seconds": 1.0}) for each in record.probes],
        "results": [each.model_copy(update={"seconds": 10.0}) for each in record.results],
        "shift": record.shift.model_copy(update={"seconds": 3.0}),
    }
    audits = [EMPTY.model_copy(update={"checks": [Check(id="S1", verdict="PASS", seconds=100.0)] * 2})] * 3
    assert (len(record.probes), len(record.results)) == (2, 8)
    assert seconds(record.model_copy(update=update), audits) == 2 + 80 + 3 + 600
    assert seconds(record.model_copy(update=update), []) == 85


def test_time_spent_on_one_check_is_missing_to_the_next(table):
    found = examine(subject(), EMPTY, 1e-9)
    assert [(each.verdict, each.note) for each in found.checks] == [("PASS", ""), ("NOT_RUN", "no time was left")]


# ---------------------------------------------------------------- what is said and kept


def test_a_check_goes_by_the_name_under_which_it_is_listed(table):
    table["S1"] = ("core", lambda subject: Check(id="another", verdict="PASS"))
    assert [each.id for each in examine(subject(), EMPTY, 100.0).checks] == ["S1", "S2"]


def test_images_that_only_a_check_broke_are_kept_where_there_are_any(table):
    def breaking(subject):
        subject.broken |= {"S1": [0, 3], "S2": []}
        return Check(id="S1", verdict="FAIL")

    table["S1"] = ("core", breaking)
    assert examine(subject(), EMPTY, 100.0).broken == {"S1": [0, 3]}


def test_every_check_and_every_verdict_is_reported(run, table):
    folder, spec, *_ = run
    folder.save_audits([])
    events = []
    assert rerun(folder, spec, events.append) == ""
    assert events == [
        event
        for protocol in ("linear", "multi_patch")
        for event in (
            {"event": "attack", "protocol": protocol, "attack": "audit", "eps": 0.02, "message": "check S1"},
            {"event": "attack", "protocol": protocol, "attack": "audit", "eps": 0.02, "message": "check S2"},
            {"event": "audit", "protocol": protocol, "verdict": "PASS", "level": "core"},
        )
    ]


def test_a_check_that_did_not_run_is_asked_again_beside_one_that_failed(run, table):
    folder, spec, *_ = run
    folder.save_audits([])
    table["S1"] = ("core", lambda subject: Check(id="S1", verdict="FAIL"))
    works = table["S2"]
    table["S2"] = ("core", lambda subject: 1 / 0)
    missing = "checks of the audit that did not run: linear S2; multi_patch S2"
    assert rerun(folder, spec) == missing
    table["S2"] = works
    assert rerun(folder, spec) == ""
    assert [[each.verdict for each in audit.checks] for audit in folder.audits()] == [["FAIL", "PASS"]] * 2


def test_transfer_waits_for_the_other_runs_and_is_not_missing_until_then():
    checks = [Check(id=id, verdict="NOT_RUN") for id in ("A13", "A14", "A16")] + [Check(id="S1", verdict="FAIL")]
    assert not_run(EMPTY.model_copy(update={"checks": checks})) == ["A13", "A16"]


def test_a_protocol_without_a_ranked_number_does_not_stop_the_next(run, table, monkeypatch):
    folder, spec, *_ = run
    folder.save_audits([])
    original = module.ranked_pair
    monkeypatch.setattr(module, "ranked_pair", lambda *args: None if args[1] == "linear" else original(*args))
    assert rerun(folder, spec) == ""
    assert [audit.protocol for audit in folder.audits()] == ["multi_patch"]


def test_the_audit_hands_over_duplicates_and_the_runs_beside(run, table, monkeypatch):
    folder, spec, *_ = run
    folder.save_audits([])
    seen = []

    def look(subject):
        seen.append((subject.duplicates, subject.sources))
        return Check(id="S1", verdict="PASS")

    table["S1"] = ("core", look)
    monkeypatch.setattr(module, "duplicates", lambda train, test: 5 if (len(train), len(test)) == (32, 16) else None)
    assert runs_of(folder) == []
    assert rerun(folder, spec) == ""
    assert seen == [(5, {})] * 2


def test_another_label_makes_no_other_picture():
    train = random_images(4, seed=1)
    test = replace(train, labels=(train.labels + 1) % 10)
    assert module.duplicates(train, test) == 4
