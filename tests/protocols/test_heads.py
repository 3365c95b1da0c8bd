"""Heads that are trained: what they cost, whether they go on where they stopped, and what they reach."""

import contextlib
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from audit_fixtures import subject
from evaluation_fixtures import CPU, QUICK, TEST, TRAIN, Shelf, evaluated, run, state_hash, tiny_encoder
from scipy.optimize import minimize
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from attacks.common.base import configured
from bench import registry
from bench.audit.checks.probe import no_test_set_selection, probe_band
from bench.data.images import ImageSet
from bench.encoders.common.base import FeatureEncoder
from bench.evaluation import heads
from bench.evaluation.heads import fitted_classifier
from bench.protocols import adversarial_full, adversarial_linear, knn, released_mixed
from bench.protocols.common.base import Material, load_protocol, protocol_of
from bench.protocols.common.chosen_rate import most_robust
from bench.protocols.common.classifier import Classifier
from bench.protocols.common.trained_head import decayed
from bench.spec import ThreatModel, UsageError

FEW = {"epochs": 2, "learning_rates": (0.3, 3.0), "steps": 2}
SHORT = {
    "adversarial_linear": FEW,
    "adversarial_linear_backbone": FEW,
    "adversarial_full": {"epochs": 2, "learning_rates": (0.01, 0.02), "steps": 2},
    "released_mixed": {"clean": 1, "robust": 1, "clean_again": 1, "batch": 16},
}
SPEC = QUICK.model_copy(update={"curve": (), "eps": (0.02,), "pgd_images": 10, "protocol_settings": SHORT})


def asked(protocol):
    return SPEC.model_copy(update={"protocols": (protocol,)})


def material(train=TRAIN, eps=0.02):
    return Material(train, 0, CPU, 512, ThreatModel(eps=eps))


# ---------------------------------------------------------------- every protocol


@pytest.mark.parametrize("protocol", registry.names("protocol"))
def test_is_counted_kept_made_again_and_leaves_the_encoder_alone(protocol):
    encoder, shelf = tiny_encoder(), Shelf()
    before, reads = state_hash(encoder), protocol_of(asked(protocol), protocol)
    classifier = fitted_classifier(evaluated(shelf, asked(protocol), encoder), protocol, {})
    probe, tensors = shelf.probes[protocol]
    assert probe.passes == reads.fit_passes(len(TRAIN)) * (QUICK.crops if protocol == "multi_patch" else 1)
    assert state_hash(encoder) == before
    again = evaluated(shelf, asked(protocol), tiny_encoder()).stored_classifier(protocol)
    images = TEST.pictures(slice(5), "cpu").requires_grad_()
    logits = again(images)
    torch.testing.assert_close(logits, classifier(images), rtol=0, atol=0)
    assert logits.shape == (5, 10)
    (slope,) = torch.autograd.grad(logits.square().sum(), images)
    assert slope.abs().amax(dim=(1, 2, 3)).min() > 0  # an attack can climb it
    assert not any(p.requires_grad for p in again.parameters())
    assert {name: t.tolist() for name, t in reads.stored(again).items()} == {n: t.tolist() for n, t in tensors.items()}


class Stopped(Exception):
    pass


class Stopping(Shelf):
    """A shelf that stops the training whenever something of it is kept."""

    def save_head_state(self, protocol, state):
        super().save_head_state(protocol, state)
        raise Stopped


@pytest.mark.parametrize(
    "protocol", ["adversarial_linear", pytest.param("adversarial_full", marks=pytest.mark.ci), "released_mixed"]
)
def test_stopped_after_each_epoch_it_goes_on_to_the_same_bytes_and_costs(protocol, monkeypatch):
    monkeypatch.setattr(heads, "SAVE_EVERY", 0.0)
    whole, shelf, stops = Shelf(), Stopping(), 0
    fitted_classifier(evaluated(whole, asked(protocol)), protocol, {})
    while protocol not in shelf.probes:
        with contextlib.suppress(Stopped):
            stops += 1
            fitted_classifier(evaluated(shelf, asked(protocol)), protocol, {})
    assert stops >= 4
    (expected, tensors), (probe, kept) = whole.probes[protocol], shelf.probes[protocol]
    assert all(torch.equal(tensor, kept[name]) for name, tensor in tensors.items())
    assert probe.model_copy(update={"seconds": 0.0}) == expected.model_copy(update={"seconds": 0.0})


def test_the_learning_rate_is_that_of_most_robust_held_out_images():
    assert most_robust([(0.3, 5, 10), (3.0, 7, 10), (30.0, 7, 10)]) == 3.0
    shelf = run(asked("adversarial_linear"))
    probe, _ = shelf.probes["adversarial_linear"]
    assert [total for _, _, total in probe.held_out] == [len(TRAIN) // 5] * 2
    assert probe.learning_rate == most_robust(probe.held_out)
    assert [rate for rate, _, _ in probe.band] == [0.3, 3.0]
    spec = asked("adversarial_linear")
    audited = subject(eps=0.02, protocol="adversarial_linear", probe=probe, band=probe.band, spec=spec)
    audited.duplicates = 0
    assert probe_band(audited).verdict in ("PASS", "WARN")
    assert no_test_set_selection(audited).verdict == "PASS"
    audited.probe = probe.model_copy(update={"learning_rate": 0.1})  # of no rate that was tried
    assert no_test_set_selection(audited).verdict == "FAIL"


@pytest.mark.parametrize("epochs", [1, 5, 25])
def test_the_rate_falls_after_three_and_four_fifths(epochs):
    factors = [epoch.factor for epoch in decayed(epochs)]
    assert factors[0] == 1
    assert factors.count(0.1) == factors.count(0.01) == epochs // 5


# ---------------------------------------------------------------- ALF


def overlapping(count, seed=0):
    """Images (N, 1, 3, 3) of two classes, grey and far from the box, that no line separates."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    towards = torch.linspace(-1, 1, 9).view(1, 3, 3)
    images = (
        0.5 + 0.06 * (2 * labels - 1)[:, None, None, None] * towards + 0.08 * torch.randn(count, 1, 3, 3, generator=g)
    )
    return ImageSet((images.clamp(0.2, 0.8) * 255).round().to(torch.uint8), labels, classes=2, label="two")


@pytest.mark.ci
def test_on_a_linear_encoder_it_is_robust_logistic_regression():
    """The ball costs the margin eps * |w|_1 (arXiv:1412.6572, section 5), so the inner maximum has a closed form."""
    data, eps = overlapping(200), 0.03
    x, y = data.images.flatten(1).double() / 255, 2 * data.labels.double() - 1

    def robust_loss(w, b):
        return F.softplus(eps * w.abs().sum() - y * (x @ w + b)).mean()

    def parts(v):  # |w|_1 has no gradient at 0; of its positive and negative part it is the sum
        v = torch.tensor(v, requires_grad=True)
        loss = F.softplus(eps * v[:18].sum() - y * (x @ (v[:9] - v[9:18]) + v[18])).mean()
        (slope,) = torch.autograd.grad(loss, v)
        return loss.item(), slope.numpy()

    best = minimize(parts, [0.0] * 19, jac=True, method="L-BFGS-B", bounds=[(0, None)] * 18 + [(None, None)],
                    options={"maxiter": 5000, "ftol": 1e-13, "gtol": 1e-9}).fun  # fmt: skip
    classifier = Classifier(nn.Flatten()).eval()
    alf = adversarial_linear.Protocol(epochs=40, learning_rates=(0.1,))
    alf.fit(classifier, material(data, eps))
    weight, bias = classifier.probe.weight.double(), classifier.probe.bias.double()
    reached = robust_loss(weight[1] - weight[0], bias[1] - bias[0]).item()
    clean = robust_loss(torch.zeros(9).double(), torch.zeros(1).double()).item()
    assert best < clean - 0.05  # there is something to learn
    assert reached == pytest.approx(best, abs=1e-3)


# ---------------------------------------------------------------- the released head


def mixed(data, eps=0.02, **settings):
    classifier = Classifier(nn.Flatten()).eval()
    configured(released_mixed.Protocol(batch=32), settings).fit(classifier, material(data, eps))
    return classifier.probe.weight


def test_its_blocks_are_epochs_in_a_row():
    data = overlapping(64)
    torch.testing.assert_close(
        mixed(data, clean=1, robust=0, clean_again=2), mixed(data, clean=3, robust=0, clean_again=0)
    )
    with_robust, eps_0 = (
        mixed(data, clean=1, robust=2, clean_again=0),
        mixed(data, 0.0, clean=1, robust=2, clean_again=0),
    )
    torch.testing.assert_close(eps_0, mixed(data, clean=3, robust=0, clean_again=0), rtol=0, atol=1e-6)
    assert (with_robust - eps_0).abs().max() > 1e-4
    with pytest.raises(UsageError, match="expected epochs of at least 0 in each block and one in all"):
        released_mixed.Protocol(clean=0, robust=0, clean_again=0)


# ---------------------------------------------------------------- kNN


def test_the_vote_is_that_of_scikit_learn():
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1000, 1, 4, 4), generator=g, dtype=torch.uint8)
    labels = (images.float().mean(dim=(1, 2, 3)) > 127).long() + 2 * (images[:, 0, 0, 0] > 127)
    train, test = ImageSet(images[:800], labels[:800], 5, "noise"), images[800:].flatten(1).float() / 255
    classifier = Classifier(nn.Flatten()).eval()
    knn.Protocol().fit(classifier, material(train))
    oracle = KNeighborsClassifier(
        800, metric="cosine", algorithm="brute", weights=lambda d: torch.tensor((1 - d) / 0.1).exp().numpy()
    )
    oracle.fit(images[:800].flatten(1).double() / 255, labels[:800])
    answers = classifier(images[800:].float() / 255).softmax(dim=1)
    assert answers[:, 4].max() == 0  # no training image has this class
    torch.testing.assert_close(
        answers[:, :4], torch.tensor(oracle.predict_proba(test.double())).float(), rtol=0, atol=1e-5
    )


# ---------------------------------------------------------------- AFF


def test_the_loss_is_that_of_trades():
    """Eq. 5 of arXiv:1901.08573 in slow loops, at eps 0, where the attacked image is the clean one, and beside it."""
    data, aff = overlapping(8), adversarial_full.Protocol(flip=0.0, shift=0.0)
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(9, 4))).train()
    model.probe = nn.Linear(4, 2)
    seen = []
    model.encoder.register_forward_hook(lambda module, args, output: seen.append((model.training, args[0].detach())))
    loss = aff.trades(model, material(data, 0.05), 0.0125, 0.0)(torch.arange(8), None, torch.Generator().manual_seed(0))
    assert [training for training, _ in seen] == [False] * 11 + [True] * 2
    clean, moved = seen[-2][1], seen[-1][1]
    assert (moved - clean).abs().max() <= 0.05 + 1e-6
    expected = 0.0
    for x, x_moved, label in zip(clean, moved, data.labels, strict=True):
        p, q = model(x[None]).softmax(dim=1)[0], model(x_moved[None]).softmax(dim=1)[0]
        expected += -p[label].log() + 6 * sum(p[k] * (p[k] / q[k]).log() for k in range(2))
    torch.testing.assert_close(loss, expected / 8)


@pytest.mark.parametrize(("mirrors", "share"), [(True, 0.5), (False, 0.0)])
def test_images_of_another_class_in_a_mirror_are_not_mirrored(mirrors, share, monkeypatch):
    shares = []
    monkeypatch.setattr(adversarial_full, "flipped", lambda images, given, draws: (shares.append(given), images)[1])
    aff = adversarial_full.Protocol(epochs=1, learning_rates=(0.1,), steps=1)
    aff.fit(Classifier(tiny_encoder()), material(replace(TRAIN, mirrors=mirrors)))
    assert set(shares) == {share}


def test_training_images_are_mirrored_and_moved_by_whole_pixels():
    images, draws = TEST.pictures(slice(20), "cpu"), torch.Generator().manual_seed(0)
    assert torch.equal(adversarial_full.flipped(images, 1.0, draws), images.flip(-1))
    assert torch.equal(adversarial_full.shifted(images, 0.0, draws), images)
    moved = adversarial_full.shifted(images, 0.125, draws)
    places = set()
    for image, shifted in zip(images, moved, strict=True):
        padded = F.pad(image, (2, 2, 2, 2))
        fits = [(i, j) for i in range(5) for j in range(5) if torch.equal(padded[:, i : i + 16, j : j + 16], shifted)]
        assert fits
        places.add(fits[0])
    assert len(places) > 5


def test_other_tensors_are_refused():
    aff, classifier = load_protocol("adversarial_full"), Classifier(tiny_encoder())
    with pytest.raises(UsageError, match="expected an encoder and a linear probe, got weight"):
        aff.restore(classifier, {"weight": torch.zeros(1)})
    others = aff.stored(Classifier(FeatureEncoder(nn.Flatten(), 768, 24)))
    head = {"probe.weight": torch.zeros(10, 24), "probe.bias": torch.zeros(10)}
    with pytest.raises(UsageError, match="the fine-tuned encoder fits no other"):
        aff.restore(classifier, others | head)
    with pytest.raises(UsageError, match="expected features of training images, sizes and a temperature, got weight"):
        knn.Protocol().restore(classifier, {"weight": torch.zeros(1)})
    with pytest.raises(UsageError, match="expected temperature of knn above 0, got 0"):
        knn.Protocol(temperature=0.0)
