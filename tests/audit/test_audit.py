"""The audit around the checks: verdicts, levels, time, what a check that raises costs, and what is not done twice."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from audit_fixtures import finished, rerun, subject
from evaluation_fixtures import random_images

from bench.audit import audit as module
from bench.audit.audit import all_checks, examine, ranked_pair
from bench.audit.checks.structural import CHECKS
from bench.record import Audit, Check

EMPTY = Audit(protocol="linear", level="core", eps=0.1, checks=[])


def check(id="S2", verdict="PASS", **more):
    return Check(id=id, verdict=verdict, **more)


@pytest.fixture
def two(monkeypatch):
    """Two checks that always pass, and how often each was asked; a third that belongs to the full audit."""
    asked = []

    def passing(name):
        def ask(subject):
            asked.append(name)
            return check(name, value=1.0)

        return ask

    table = {name: (level, passing(name)) for name, level in (("S1", "core"), ("S2", "core"), ("A2", "full"))}
    monkeypatch.setattr(module, "all_checks", lambda protocol: table)
    return table, asked


# ---------------------------------------------------------------- the verdict


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["PASS", "N/A", "not in this level"], "PASS"),
        (["PASS", "WARN"], "FLAG"),
        (["WARN", "NOT_RUN", "PASS"], "NOT_RUN"),
        (["NOT_RUN", "WARN", "FAIL"], "FAIL"),
        ([], "NOT_RUN"),
    ],
)
def test_fail_beats_not_run_beats_warn(verdicts, expected):
    assert EMPTY.model_copy(update={"checks": [check(verdict=each) for each in verdicts]}).verdict == expected


def test_an_image_broken_by_two_checks_counts_once():
    audit = EMPTY.model_copy(update={"ranked_correct": 10, "audited": 16, "broken": {"A12": [1, 4], "A13": [4]}})
    assert audit.worst_audited == 8


def test_every_check_of_the_protocol_is_there_once_in_order():
    linear, patches = all_checks(False), all_checks(True)
    assert [id for id in linear if id.startswith("S")] == [f"S{number}" for number in range(1, 17)]
    assert list(linear) == sorted(linear, key=lambda id: ("SAM".index(id[0]), int(id[1:])))
    assert not any(id.startswith("M") for id in linear)
    assert linear.items() <= patches.items()
    core = {id for id, (level, _) in linear.items() if level == "core"}
    assert core >= {"A1", "A4", "A8", "A16", "A17", "A19", "A21", "A22"} | CHECKS.keys()
    assert {f"M{number}" for number in range(1, 7)} <= patches.keys()


# ---------------------------------------------------------------- running checks


def test_a_check_above_the_level_is_named_and_not_asked(two):
    _, asked = two
    found = examine(subject(), EMPTY, 100.0)
    assert [(each.id, each.verdict) for each in found.checks] == [
        ("S1", "PASS"),
        ("S2", "PASS"),
        ("A2", "not in this level"),
    ]
    assert asked == ["S1", "S2"]
    assert found.verdict == "PASS"
    full = examine(subject(), EMPTY.model_copy(update={"level": "full"}), 100.0)
    assert [each.verdict for each in full.checks] == ["PASS"] * 3


def test_an_exception_is_not_run_with_its_message_and_costs_no_other_check(two):
    table, _ = two

    def raising(subject):
        subject.model(subject.images[:3])
        raise ZeroDivisionError("no margin\nat all")

    table["S1"] = ("core", raising)
    found = examine(subject(), EMPTY, 100.0)
    assert (found.checks[0].verdict, found.checks[0].note) == ("NOT_RUN", "ZeroDivisionError: no margin")
    assert found.checks[0].passes == 3
    assert found.checks[1].verdict == "PASS"
    assert found.verdict == "NOT_RUN"


def test_without_time_checks_are_not_run_and_with_time_only_those_are_asked(two):
    _, asked = two
    late = examine(subject(), EMPTY, 0.0)
    assert [each.verdict for each in late.checks] == ["NOT_RUN", "NOT_RUN", "not in this level"]
    assert asked == []
    known = late.model_copy(update={"checks": [check("S1", "WARN", seconds=2.0), late.checks[1]]})
    known = known.model_copy(update={"broken": {"S1": [0], "S2": [1]}})
    found = examine(subject(), known, 100.0)
    assert asked == ["S2"]
    assert found.checks[0] == check("S1", "WARN", seconds=2.0)
    assert found.checks[1].verdict == "PASS"
    assert found.broken == {"S1": [0]}  # what S2 said before it was asked again does not count


def test_images_that_both_attacks_left_are_counted():
    ranked = subject()
    found = examine(ranked, EMPTY, 0.0)
    assert (found.audited, found.ranked_correct) == (ranked.audited, int(ranked.standing[: ranked.audited].sum()))
    assert found.audited == 6


# ---------------------------------------------------------------- a run's folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("audit"))


def test_a_run_is_audited_and_resumed_without_asking_again(run, two):
    folder, spec = run
    _, asked = two
    folder.save_audits([])
    states = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # noqa: NPY002
    assert rerun(folder, spec) == ""
    assert [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()] == states  # noqa: NPY002
    assert asked == ["S1", "S2"]
    (audit,) = folder.audits()
    assert (audit.protocol, audit.level, audit.eps, audit.verdict) == ("linear", "core", 0.02, "PASS")
    assert rerun(folder, spec) == ""
    assert asked == ["S1", "S2"]
    assert folder.audits() == [audit]


def test_other_results_or_another_level_are_audited_again(run, two):
    folder, spec = run
    _, asked = two
    folder.save_audits([])
    rerun(folder, spec)
    rerun(folder, spec.model_copy(update={"audit": "full"}))
    assert asked == ["S1", "S2", "S1", "S2", "A2"]
    result = folder.result("linear", "none", 0.0)
    flipped = "01"[result.outcomes[0] == "0"] + result.outcomes[1:]
    folder.save_result(result.model_copy(update={"outcomes": flipped}))
    rerun(folder, spec.model_copy(update={"audit": "full"}))
    assert len(asked) == 8
    folder.save_result(result.model_copy(update={"seconds": 99.0}))  # time is no evidence
    rerun(folder, spec.model_copy(update={"audit": "full"}))
    assert len(asked) == 11
    folder.save_result(result)


def test_off_runs_nothing(run, two):
    folder, spec = run
    folder.save_audits([])
    assert rerun(folder, spec.model_copy(update={"audit": "off"})) == ""
    assert (two[1], folder.audits()) == ([], [])


def test_the_time_of_the_evaluation_counts(run, two):
    folder, spec = run
    folder.save_audits([])
    missing = rerun(folder, spec.model_copy(update={"budget_seconds": 1e-6}))
    assert missing == "checks of the audit that did not run: linear S1, S2"
    assert folder.audits()[0].verdict == "NOT_RUN"
    assert rerun(folder, spec.model_copy(update={"budget_seconds": 1e6})) == ""
    assert folder.audits()[0].verdict == "PASS"


def test_a_healthy_run_passes_every_structural_check(run, monkeypatch):
    folder, spec = run
    monkeypatch.setattr(module, "all_checks", lambda protocol: CHECKS)
    folder.save_audits([])
    assert rerun(folder, spec) == ""
    (audit,) = folder.audits()
    verdicts = {each.id: each.verdict for each in audit.checks}
    assert {id for id, verdict in verdicts.items() if verdict not in ("PASS", "N/A")} == set(), audit.checks
    assert {id for id, verdict in verdicts.items() if verdict == "N/A"} <= {"S3"}
    assert sum(each.passes for each in audit.checks) > 0


def test_duplicates_are_test_images_whose_pixels_are_all_in_the_training_set():
    train, test = random_images(20, seed=1), random_images(6, seed=2)
    images = test.images.clone()
    images[0] = images[4] = train.images[7]
    images[2] = train.images[3]
    images[2, 0, 0, 0] ^= 1  # one pixel differs by one level
    assert module.duplicates(train, replace(test, images=images)) == 2
    assert module.duplicates(train, test) == 0


def test_without_a_ranked_number_there_is_nothing_to_audit(run):
    folder, _ = run
    results = folder.record().results
    assert ranked_pair(results, "linear", 0.02) is not None
    assert ranked_pair([r for r in results if r.attack != "autoattack"], "linear", 0.02) is None
    stopped = [r.model_copy(update={"complete": r.attack != "autoattack"}) for r in results]
    assert ranked_pair(stopped, "linear", 0.02) is None
    in_crops = [r.model_copy(update={"threat_space": "crop"}) for r in results]
    assert ranked_pair(in_crops, "linear", 0.02) is None
