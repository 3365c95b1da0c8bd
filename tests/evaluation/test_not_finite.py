"""Logits that are NaN or infinite are never right, whoever counts, and the audit says on how many images."""

from dataclasses import replace

import pytest
import torch
from audit_fixtures import classifier, subject
from evaluation_fixtures import CPU, QUICK, TEST, blobs, generator, run, tiny_encoder
from torch import nn

from attacks import autoattack, fgsm, noise, pgd
from attacks.common.base import predicted
from bench.audit.audit import run_check
from bench.audit.checks import attacks
from bench.audit.checks.structural import CHECKS
from bench.audit.verify import flips
from bench.evaluation.search import predict
from bench.protocols.common.probe import fit_probe
from bench.protocols.published_eval import fit_published_probe
from bench.record import Check, EvalResult
from bench.spec import ThreatModel


class NotFinite(nn.Module):
    """Logits of class 0, of which those of the images in the ``first`` places of a batch are spoilt."""

    def __init__(self, value=torch.nan, first=10**9):
        super().__init__()
        self.value, self.first = value, first

    def forward(self, images):
        logits = torch.zeros(len(images), 10) + images.mean((1, 2, 3))[:, None]
        logits = logits + torch.eye(10)[0]
        spoilt = (torch.arange(len(images)) < self.first)[:, None] & (torch.arange(10) == 3)
        return logits.masked_fill(spoilt, self.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_no_class_is_predicted(value):
    logits = torch.tensor([[0.0, value, 1.0], [0.0, 5.0, 1.0]])
    assert predicted(logits).tolist() == [-1, 1]
    images = torch.rand(4, 3, 8, 8)
    assert predict(NotFinite(value, first=1).eval(), images, 2).tolist() == [-1, 0, -1, 0]


@pytest.mark.parametrize("attack", [fgsm.Attack(), pgd.Attack(steps=2), noise.Attack(draws=2)])
def test_an_attack_leaves_alone_what_has_no_answer(attack):
    images, labels = torch.rand(3, 3, 8, 8), torch.zeros(3, dtype=torch.long)
    moved = attack.perturb(NotFinite().eval(), images, labels, ThreatModel(eps=0.1), generator())
    assert torch.equal(moved, images)


def test_autoattack_neither_attacks_what_has_no_answer_nor_returns_pixels_that_are_none(monkeypatch):
    images, labels = torch.rand(3, 3, 8, 8), torch.zeros(3, dtype=torch.long)
    assert not bool(autoattack.correct(NotFinite().eval(), images, labels, 2).any())

    class Package:
        class AutoAttack:
            def __init__(self, *args, **options):
                part = type("", (), {"perturb": lambda self, x, y: x * torch.nan})
                self.apgd, self.apgd_targeted, self.fab, self.square = part(), part(), part(), part()

        checks = type("", (), dict.fromkeys(["check_randomized", "check_range_output", "check_dynamic"], print))

    monkeypatch.setattr(autoattack, "load_package", lambda: Package)
    Package.checks = type("", (), {n: staticmethod(lambda *a, **o: None) for n in vars(Package.checks)})
    stage = autoattack.Stage("apgd-ce", 3, 3)
    model = NotFinite(first=0).eval()
    assert torch.equal(autoattack.run(stage, model, images, labels, ThreatModel(eps=0.1), 0, 3), images)


class Sometimes(nn.Module):
    """The encoder, with NaN features for every image whose first pixel is dark."""

    def __init__(self):
        super().__init__()
        self.inner = tiny_encoder()

    def forward(self, images):
        if images.ndim != 4:
            raise ValueError
        dark = images[:, 0, 0, 0] < 0.4
        return self.inner(images).masked_fill(dark[:, None], torch.nan)


def test_an_evaluation_counts_them_as_wrong_from_the_probe_to_every_attack():
    dark = (TEST.images[:, 0, 0, 0].float() / 255 < 0.4).tolist()
    assert 0 < sum(dark) < 20
    spec = QUICK.model_copy(update={"protocols": ("linear", "published_eval"), "curve": ()})
    shelf = run(spec, encoder=Sometimes().eval())
    for result in shelf.results.values():
        assert not any(outcome == "1" for outcome, bad in zip(result.outcomes, dark, strict=True) if bad)
    assert shelf.results["linear", "none", 0.0].correct > 0
    for probe, _ in shelf.probes.values():
        assert "of 60 training images are NaN or infinite: left out, and wrong" in probe.note
        assert probe.train_total == 60


def test_a_probe_is_fitted_on_the_others_and_held_out_images_without_features_are_wrong():
    features, labels = blobs(100, 6)
    spoilt = features.clone()
    spoilt[::10] = torch.inf  # none of them is held out
    expected = fit_probe(features, labels, 10)
    found = fit_probe(spoilt, labels, 10)
    assert bool(found.layer.weight.isfinite().all())
    assert [total for _, _, total in found.held_out] == [20] * 7
    spoilt[4::5] = torch.nan  # all that are
    assert {correct for _, correct, _ in fit_probe(spoilt, labels, 10).held_out} == {0}
    assert {total for _, _, total in expected.held_out} == {20}
    assert bool(fit_published_probe(spoilt, labels, 10, 0).weight.isfinite().all())
    with pytest.raises(ValueError, match="expected finite features to fit a probe on"):
        fit_probe(spoilt * torch.nan, labels, 10)


def test_verify_finds_an_outcome_that_a_nan_was_counted_for():
    images, right = TEST.pictures(slice(4), "cpu"), "1111"
    result = EvalResult(protocol="linear", attack="none", threat_space="image", eps=0.0, outcomes=right, seconds=0.0)
    found = flips(NotFinite().eval(), images, TEST, result, CPU, 4)
    assert len(found) == 4


# ---------------------------------------------------------------- the audit


def spoiling(sound, places):
    """The same subject; no finite logits for the clean images at these places."""

    class Spoilt(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = sound.model.model

        def forward(self, images):
            logits = self.inner(images)
            known = (images[:, None] - sound.images[places][None]).flatten(2).abs().sum(dim=2).eq(0).any(dim=1)
            return logits.masked_fill(known[:, None], torch.nan)

    return replace(sound, model=type(sound.model)(Spoilt()).eval())


def test_s16_says_on_how_many_images():
    found = CHECKS["S16"][1](spoiling(subject(), [1, 7]))
    assert (found.verdict, found.value, found.n) == ("FAIL", 2, 22)
    assert found.note == "logits are NaN or infinite on 2 of 8 clean images"
    sound = subject(NotFinite(value=1.0).eval())
    assert CHECKS["S16"][1](sound).verdict == "PASS"
    moved = replace(sound, model=type(sound.model)(NotFinite().eval()).eval())
    assert CHECKS["S16"][1](moved).note.endswith("8 of 8 clean, 8 of 8 pgd, 6 of 6 autoattack images")


def test_an_attack_of_the_audit_never_finds_them_standing():
    whole = subject(NotFinite().eval())
    whole = replace(whole, labels=torch.zeros(8, dtype=torch.long))
    assert not bool(attacks.right(whole, whole.images).any())
    stands, _ = attacks.pgd(whole, "A6", torch.ones(8, dtype=torch.bool), steps=1)
    assert not bool(stands.any())


def test_a_check_whose_value_is_no_number_fails():
    found = run_check("A17", lambda subject: Check(id="A17", verdict="PASS", value=float("nan")), subject(classifier()))
    assert (found.verdict, found.note) == ("FAIL", "what it measures is NaN or infinite")
