"""Protocols as functions of the pixels alone, and the probe against autograd and scikit-learn."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from evaluation_fixtures import CPU, blobs, build_classifier, generator, random_images, tiny_encoder
from sklearn.linear_model import LogisticRegression
from torch import nn

from attacks import fgsm, pgd
from bench.protocols.common.classifier import Classifier, MultiPatch, OfCrops, extract, fixed_boxes
from bench.protocols.common.probe import PENALTIES, fit_probe
from bench.protocols.published_eval import fit_published_probe
from bench.spec import ThreatModel

WHOLE = torch.tensor([[0, 0, 16, 16]])
SIZE = (16, 16)


def probe(width=24, classes=10, seed=1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(width, classes).eval().requires_grad_(False)


def classifier(protocol="multi_patch", crops=4):
    built = build_classifier(protocol, tiny_encoder(), SIZE, crops, crop_seed=0)
    built.probe = probe()
    return built


def pixels(count, seed=0):
    return random_images(count, seed=seed).images.float() / 255


# ---------------------------------------------------------------- a function of the pixels


def test_one_crop_of_the_whole_image_is_linear_to_the_last_bit():
    linear, patch = classifier("linear"), MultiPatch(tiny_encoder(), WHOLE, SIZE).eval()
    patch.probe = linear.probe
    # as the crops lie in memory: on some processors a convolution sums in another order for another layout
    images = pixels(33).contiguous(memory_format=torch.channels_last)
    assert torch.equal(patch.features(images), linear.features(images))
    assert torch.equal(patch(images), linear(images))


@pytest.mark.parametrize("attack", [fgsm.Attack(), pgd.Attack(steps=5, restarts=2)])
def test_one_crop_of_the_whole_image_is_attacked_like_linear(attack):
    linear, patch = classifier("linear"), MultiPatch(tiny_encoder(), WHOLE, SIZE).eval().requires_grad_(False)
    patch.probe = linear.probe
    images = pixels(16)
    labels = linear(images).argmax(1)
    found = [attack.perturb(m, images, labels, ThreatModel(eps=0.02), generator()) for m in (linear, patch)]
    assert torch.equal(*found)
    assert not torch.equal(found[0], images)


@pytest.mark.parametrize("protocol", ["linear", "multi_patch"])
def test_permuting_and_sub_selecting_images_does_the_same_to_the_logits(protocol):
    model, images = classifier(protocol), pixels(20)
    logits = model(images)
    tolerance = 1e-5 * float(logits.abs().max())
    order, chosen = torch.randperm(20, generator=generator()), torch.tensor([3, 17, 4])
    torch.testing.assert_close(model(images[order]), logits[order], rtol=0, atol=tolerance)
    torch.testing.assert_close(model(images[chosen]), logits[chosen], rtol=0, atol=tolerance)


def test_multi_patch_reads_the_mean_features_of_its_crops():
    model, images = classifier(crops=4), pixels(5)
    by_crop = [model.encoder(model.crops(images)[:, n]) for n in range(4)]
    torch.testing.assert_close(model.features(images), torch.stack(by_crop).mean(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(OfCrops(model)(model.crops(images)), model(images), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_crops_are_cut_then_resized(size):
    boxes = fixed_boxes(16, size, seed=3)
    model = MultiPatch(nn.Identity(), boxes, size)
    images = random_images(3, shape=(3, *size)).images
    crops = model.crops(images.float() / 255)
    assert crops.shape == (3, 16, 3, *size)
    for n, (top, left, height, width) in enumerate(boxes.tolist()):
        cut = (images.float() / 255)[:, :, top : top + height, left : left + width]
        resized = F.interpolate(cut, size=size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(crops[:, n], resized, rtol=0, atol=2e-6)
        for i in range(3):  # Pillow rounds to 8 bits after each of its two passes
            picture = TF.resized_crop(TF.to_pil_image(images[i]), top, left, height, width, list(size))
            assert float((crops[i, n] * 255 - TF.pil_to_tensor(picture)).abs().max()) <= 1.01


def test_multi_patch_is_differentiable_end_to_end():
    encoder = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 5))
    with torch.no_grad():
        for p in encoder.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator()))
    model = MultiPatch(encoder, fixed_boxes(3, (6, 6), 0), (6, 6)).double().requires_grad_(False).eval()
    images = torch.rand(2, 1, 6, 6, generator=generator(), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(model, images)


def test_boxes_are_one_list_that_the_seed_decides():
    model = classifier(crops=16)
    first = model.crops(pixels(2))[0]
    assert torch.equal(model.crops(pixels(7))[0], first)
    torch.manual_seed(123)
    assert torch.equal(fixed_boxes(16, SIZE, 0), fixed_boxes(16, SIZE, 0))
    assert not torch.equal(fixed_boxes(16, SIZE, 0), fixed_boxes(16, SIZE, 1))


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (24, 40)])
def test_boxes_lie_inside_the_image_and_in_the_range(size):
    boxes = fixed_boxes(200, size, seed=0)
    assert boxes.shape == (200, 4)
    assert boxes.dtype == torch.int64
    top, left, h, w = boxes.unbind(1)
    assert int(torch.stack([top, left]).min()) >= 0
    assert int((top + h).max()) <= size[0]
    assert int((left + w).max()) <= size[1]
    # the sides were rounded to whole pixels, each by at most half of one
    area = size[0] * size[1]
    assert bool(((h + 0.5) * (w + 0.5) >= 0.25 * area).all())
    assert bool(((h - 0.5) * (w - 0.5) <= area).all())
    assert bool(((w + 0.5) / (h - 0.5) >= 3 / 4).all())
    assert bool(((w - 0.5) / (h + 0.5) <= 4 / 3).all())
    assert 0.25 < float((h * w).float().mean()) / area < 0.85


def test_a_classifier_is_frozen_and_extract_does_not_depend_on_the_chunk():
    encoder = tiny_encoder().train().requires_grad_(True)
    model = build_classifier("multi_patch", encoder, SIZE, 4, 0)
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    images = random_images(10).images
    parts = [extract(model, images, CPU, chunk) for chunk in (3, 10)]
    assert parts[0].shape == (10, 24)
    assert parts[0].dtype == torch.float32
    torch.testing.assert_close(*parts, rtol=0, atol=1e-6)
    assert isinstance(build_classifier("linear_backbone", encoder.backbone, SIZE, 4, 0), Classifier)


# ---------------------------------------------------------------- the probe


def gradient_norm(layer, features, labels, penalty):
    """Of the objective as written down in the protocol, by autograd, at the layer as it is returned."""
    x = features.double() - features.double().mean(0)
    scale = x.square().mean().sqrt()
    weight = (layer.weight.double() * scale).requires_grad_()
    bias = (layer.bias.double() + layer.weight.double() @ features.double().mean(0)).requires_grad_()
    loss = F.cross_entropy(x / scale @ weight.T + bias, labels) + penalty / 2 * weight.square().sum()
    return float(torch.cat([g.flatten() for g in torch.autograd.grad(loss, (weight, bias))]).norm())


def sklearn_probabilities(x, labels, penalty, at):
    """scikit-learn's optimum of the same objective: C |..| of a sum is 1 / (lambda n) of a mean."""
    model = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-9, max_iter=20_000)
    return torch.from_numpy(model.fit(x.numpy(), labels.numpy()).predict_proba(at.numpy()))


def scaled(features):
    x = features.double() - features.double().mean(0)
    return x / x.square().mean().sqrt()


CASES = {
    "overlapping": blobs(600, 40, spread=1.5),
    "separable": blobs(300, 40, spread=0.2),
    "more features than images": blobs(100, 512, spread=3.0),
    "three classes": blobs(200, 10, classes=3, spread=2.0),
    "noise": blobs(200, 10, classes=3, spread=100.0),
}


@pytest.mark.parametrize("case", CASES)
def test_gradient_vanishes_at_all_three_fits(case):
    features, labels = CASES[case]
    classes = int(labels.max()) + 1
    fit = fit_probe(features, labels, classes)
    assert fit.gradient_norm <= 1e-6
    assert sorted(fit.others) == pytest.approx([fit.penalty / 10, 10 * fit.penalty])
    for penalty, layer in (fit.others | {fit.penalty: fit.layer}).items():
        assert layer.weight.shape == (classes, features.shape[1])
        assert layer.weight.dtype == torch.float32
        assert gradient_norm(layer, features, labels, penalty) <= 1e-6, penalty  # float32 rounding included


@pytest.mark.parametrize("case", ["overlapping", "more features than images", "three classes"])
def test_probe_is_scikit_learns_optimum(case):
    features, labels = CASES[case]
    fit = fit_probe(features, labels, int(labels.max()) + 1)
    x = scaled(features)
    for penalty, layer in (fit.others | {fit.penalty: fit.layer}).items():
        expected = sklearn_probabilities(x, labels, penalty, x)
        torch.testing.assert_close(layer(features).softmax(1).double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("case", "chosen"), [("overlapping", 0.01), ("three classes", 0.01), ("noise", 0.1)])
def test_penalty_is_the_largest_within_one_standard_error_of_the_best(case, chosen):
    features, labels = CASES[case]
    fit = fit_probe(features, labels, int(labels.max()) + 1)
    held = torch.arange(len(features)) % 5 == 4
    x = scaled(features)
    assert sorted(penalty for penalty, _, _ in fit.held_out) == sorted(PENALTIES)
    assert {total for _, _, total in fit.held_out} == {len(features) // 5}
    for penalty, correct, _ in fit.held_out:
        predicted = sklearn_probabilities(x[~held], labels[~held], penalty, x[held]).argmax(1)
        assert abs(int(predicted.eq(labels[held]).sum()) - correct) <= 1, penalty
    accuracy = {penalty: correct / total for penalty, correct, total in fit.held_out}
    best = max(accuracy.values())
    error = math.sqrt(best * (1 - best) / (len(features) // 5))
    assert fit.penalty == max(penalty for penalty, a in accuracy.items() if a >= best - error) == chosen


def test_probe_does_not_see_a_common_scale_or_shift():
    features, labels = CASES["overlapping"]
    plain = fit_probe(features, labels, 10)
    for factor, shift in ((1000.0, 0.0), (1e-3, 0.0), (1.0, 5.0)):
        moved = features * factor + shift
        fit = fit_probe(moved, labels, 10)
        assert fit.penalty == plain.penalty
        assert fit.scale == pytest.approx(factor * plain.scale, rel=1e-5)
        # 5 costs the features three bits, and so the logits about 1e-6 of their size
        torch.testing.assert_close(fit.layer(moved).softmax(1), plain.layer(features).softmax(1), rtol=0, atol=1e-4)


def test_features_are_divided_by_one_number_and_not_each_by_its_own():
    features, labels = CASES["overlapping"]
    plain = fit_probe(features, labels, 10)
    x = features.double() - features.double().mean(0)
    assert plain.scale == pytest.approx(math.sqrt(float(x.square().mean())), rel=1e-12)
    stretched = features.clone()
    stretched[:, 0] *= 10
    other = fit_probe(stretched, labels, 10)  # would change nothing if every feature had its own scale
    difference = other.layer(stretched).softmax(1) - plain.layer(features).softmax(1)
    assert float(difference.abs().max()) > 0.01


def test_features_that_say_nothing_and_classes_that_are_absent_are_fitted():
    labels = torch.arange(50) % 3
    constant = fit_probe(torch.ones(50, 4), labels, 3)
    assert constant.gradient_norm <= 1e-6
    shares = constant.layer(torch.ones(1, 4)).softmax(1)
    torch.testing.assert_close(shares, torch.tensor([[17 / 50, 17 / 50, 16 / 50]]), rtol=0, atol=1e-5)
    wide = fit_probe(torch.ones(50, 64), labels, 3)  # an encoder that has collapsed, its features wider than the data
    torch.testing.assert_close(wide.layer(torch.ones(1, 64)).softmax(1), shares, rtol=0, atol=1e-5)
    absent = fit_probe(CASES["three classes"][0], CASES["three classes"][1], 10)
    assert absent.gradient_norm <= 1e-6
    assert absent.layer(CASES["three classes"][0]).argmax(1).max() <= 2


def test_probe_draws_nothing_and_repeats():
    features, labels = CASES["three classes"]
    state = torch.get_rng_state()
    fits = [fit_probe(features, labels, 3).layer for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(fits[0].weight, fits[1].weight)
    assert torch.equal(fits[0].bias, fits[1].bias)


# ---------------------------------------------------------------- the paper's own probe


@pytest.mark.parametrize(("images", "updates"), [(1500, 100), (600, 40), (100, 20)])
def test_published_probe_makes_20_epochs_of_whole_batches(images, updates, monkeypatch):
    steps = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (steps.append(self), step(self)))
    layer = fit_published_probe(*blobs(images, 8), 10, seed=0)
    assert len(steps) == updates
    assert steps[0].defaults["lr"] == 3e-4
    assert not any(p.requires_grad for p in layer.parameters())


def test_published_probe_is_a_function_of_the_seed_and_leaves_the_generator_alone():
    features, labels = blobs(300, 8)
    state = torch.get_rng_state()
    first, again, other = (fit_published_probe(features, labels, 10, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


def test_published_probe_is_adam_on_the_cross_entropy():
    """One batch of everything an epoch: 20 full-batch steps of Adam, written out (arXiv:1412.6980, alg. 1)."""
    features, labels = blobs(50, 6, classes=3)
    layer = fit_published_probe(features, labels, 3, seed=0)
    with torch.random.fork_rng(devices=[]):
        from bench.random import stream

        torch.manual_seed(stream(0, "published-probe").initial_seed())
        start = nn.Linear(6, 3)
    theta = torch.cat([start.weight.flatten(), start.bias]).detach().double()
    m, v = torch.zeros_like(theta), torch.zeros_like(theta)
    for t in range(1, 21):
        theta = theta.requires_grad_()
        loss = F.cross_entropy(features.double() @ theta[:18].view(3, 6).T + theta[18:], labels)
        (g,) = torch.autograd.grad(loss, theta)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        theta = (theta - 3e-4 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)).detach()
    found = torch.cat([layer.weight.flatten(), layer.bias]).double()
    torch.testing.assert_close(found, theta, rtol=0, atol=1e-5)
