"""The audit's own mutation test (protocol 3.5, T2 and T3): broken defences are flagged, healthy models are not."""

import copy
import functools

import pytest
import torch
from zoo import broken, healthy

from bench.audit.checks import masking, multi_patch, soundness, structural

CHECKS = structural.CHECKS | soundness.CHECKS | masking.CHECKS | multi_patch.CHECKS
# A21 judges the log of the probe and the training images, which are no part of a stored model
CORE = [id for id, (level, _) in CHECKS.items() if level == "core" and id != "A21"]
ATTACKS_NUMBER = [id for id in CORE if id.startswith("A") and id not in ("A16", "A17")]
# what is meant for one of the broken and runs at the core level under the linear protocol
MEANT = sorted({id for each in broken.BROKEN.values() for id in each.checks} & set(CORE))
SEVERITY = {"WARN": 1, "FAIL": 2}
FIRST_SEEDS = [name for name in healthy.NAMES if name.endswith("-s0")]  # one of each method
FIFTEEN = [name for name in broken.BROKEN if name != "crops by place"]


def run(subject, ids):
    """id -> the finding, of the checks that apply to the protocol."""
    return {id: CHECKS[id][1](subject) for id in ids if subject.protocol == "multi_patch" or not id.startswith("M")}


@functools.cache
def made(name):
    """A subject of either kind, which is made without a draw of the global generator."""
    before = torch.get_rng_state()
    subject = broken.BROKEN[name].make() if name in broken.BROKEN else healthy.make(name)
    assert torch.equal(torch.get_rng_state(), before) or name == "input noise"  # whose fault it is
    return subject


@functools.cache
def healthy_core(name):
    return run(made(name), CORE)


def wrong(findings, verdicts=("FAIL",)):
    return {id: (each.value, each.note) for id, each in findings.items() if each.verdict in verdicts}


# ---------------------------------------------------------------- broken


def test_there_are_fifteen():
    assert len(FIFTEEN) == 15


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.ci) for name in FIFTEEN),
        *(pytest.param(name, marks=pytest.mark.slow) for name in broken.BROKEN if name not in FIFTEEN),
    ],
)
def test_the_check_that_is_meant_for_it_flags_a_broken_defence(name):
    case = broken.BROKEN[name]
    found = run(made(name), case.checks)
    assert max(SEVERITY.get(each.verdict, 0) for each in found.values()) >= SEVERITY[case.least], found


@pytest.mark.ci
@pytest.mark.parametrize("name", ["input quantisation", "detached features", "wrong unit of eps", "2-step attack"])
def test_a_broken_evaluation_publishes_more_than_the_healthy_one(name):
    """What the zoo is for: numbers that look good."""
    assert int(made(name).standing.sum()) >= int(made(broken.BASE).standing.sum()) + 10


@pytest.mark.ci
def test_single_step_training_overfits():
    """PGD breaks most of what it was trained to withstand, but not all, so the number is one to judge."""
    subject = made("catastrophic overfitting")
    assert subject.robust
    assert int(subject.correct[: subject.audited].sum()) >= 50
    assert 0 < int(subject.standing.sum()) <= 0.25 * int(subject.correct[: subject.audited].sum())


# ---------------------------------------------------------------- healthy


def test_at_least_five_healthy_models_of_a_small_size():
    files = list(healthy.FOLDER.glob("*.safetensors"))
    assert len(files) >= 5
    assert max(file.stat().st_size for file in files) < 300_000
    assert sum(file.stat().st_size for file in files) < 1_500_000


@pytest.mark.ci
@pytest.mark.parametrize("name", healthy.NAMES)
def test_a_healthy_model_is_accurate_and_robust(name):
    subject = made(name)
    assert int(subject.correct.sum()) >= 290
    assert int(subject.standing.sum()) >= 15
    weak, strong = (subject.results[attack, subject.eps].correct for attack in ("pgd", "autoattack"))
    assert weak >= strong - 1  # PGD breaks at most one image that AutoAttack left
    moved = subject.adversarial["autoattack"] - subject.images[: subject.audited]
    assert float(moved.abs().max()) <= subject.eps + 1e-6
    assert (
        subject.results["autoattack", subject.eps].stages[-1][1] == subject.results["autoattack", subject.eps].correct
    )


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.ci) for name in FIRST_SEEDS),
        *(pytest.param(name, marks=pytest.mark.slow) for name in healthy.NAMES if name not in FIRST_SEEDS),
    ],
)
def test_no_healthy_model_fails_and_the_checks_meant_for_broken_ones_are_silent(name):
    found = healthy_core(name)
    assert wrong(found) == {}
    assert wrong({id: found[id] for id in MEANT if id in found}, ("FAIL", "WARN", "NOT_RUN")) == {}
    assert len(wrong(found, ("WARN",))) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", healthy.NAMES)
def test_no_healthy_model_fails_at_the_full_level(name):
    found = run(healthy.make(name), CHECKS)
    assert wrong(found) == {}
    assert len(wrong(found, ("WARN",))) <= 1
    assert wrong({id: found[id] for id in ("A2", "A10")}, ("WARN", "NOT_RUN", "N/A")) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", healthy.NAMES)
def test_no_healthy_model_fails_under_multi_patch(name):
    model, probe = healthy.fitted(healthy.encoder(name), "multi_patch")
    found = run(healthy.subject(model, probe, protocol="multi_patch", audited=32), CHECKS)
    assert wrong(found) == {}
    assert wrong({id: found[id] for id in ("S7", "M1", "M3")}, ("WARN", "NOT_RUN", "N/A")) == {}


# ---------------------------------------------------------------- under a head that saw attacked images


@functools.cache
@functools.cache
def fitted_under_alf(name):
    return healthy.fitted(healthy.encoder(name), "adversarial_linear")


def under_alf(name):
    """The classifier and the probe of a healthy encoder under ALF, with the epochs of a quick evaluation.

    A copy: some of the broken are made by changing it.
    """
    return copy.deepcopy(fitted_under_alf(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", healthy.NAMES)
def test_no_healthy_model_fails_under_alf(name):
    found = run(healthy.subject(*under_alf(name), protocol="adversarial_linear"), CORE)
    assert wrong(found) == {}
    assert len(wrong(found, ("WARN",))) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", FIFTEEN)
def test_a_broken_defence_is_flagged_under_alf_too(name, monkeypatch):
    monkeypatch.setattr(healthy, "classifier", under_alf)
    case = broken.BROKEN[name]
    found = run(case.make(), case.checks)
    assert max(SEVERITY.get(check.verdict, 0) for check in found.values()) >= SEVERITY[case.least], found


# ---------------------------------------------------------------- without defence


@pytest.mark.ci
def test_a_clean_method_without_any_robustness_passes_its_audit():
    """Its number is 0, which no fault can make too large: what attacks the number is N/A."""
    subject = healthy.undefended()
    assert int(subject.correct.sum()) >= 250
    assert int(subject.standing.sum()) == 0
    assert not subject.robust
    found = run(subject, CORE)
    assert wrong(found, ("FAIL", "NOT_RUN")) == {}
    assert {found[id].verdict for id in ATTACKS_NUMBER} <= {"N/A", "PASS"}
    assert found["A1"].verdict == "N/A"
