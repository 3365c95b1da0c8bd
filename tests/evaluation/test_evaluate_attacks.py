"""What the evaluation gives to an attack, and what it believes: no trace stays, and an attack that lies is caught."""

import contextlib
import importlib
import logging
import types
from pathlib import Path

import pytest
import torch
from evaluation_fixtures import (
    QUICK,
    TEST,
    TRAIN,
    Shelf,
    build_classifier,
    evaluated,
    random_images,
    run,
    spy,
    standing,
    state_hash,
    tiny_encoder,
)

from attacks import none, pgd
from bench import registry
from bench.evaluation import search
from bench.evaluation.attack_cell import build_attack, run_cell
from bench.evaluation.evaluate import evaluate
from bench.evaluation.search import Cell
from bench.evaluation.traces import AttackError
from bench.protocols.common.base import load_protocol
from bench.protocols.common.classifier import Classifier, OfCrops, fixed_boxes
from bench.protocols.published_eval import fit_published_probe
from bench.spec import EvalSpec, ThreatModel

PROTOCOLS = tuple(name for name in registry.names("protocol") if not load_protocol(name).tunes)

# ---------------------------------------------------------------- no trace


def test_encoder_generator_and_test_set_stay_as_they_were():
    encoder = tiny_encoder().train().requires_grad_(True)
    before, images, state = state_hash(encoder), TEST.sha256, torch.get_rng_state()
    modes = []
    encoder.backbone[2].register_forward_hook(lambda m, *_: modes.append(m.training))  # batch norm is folded away
    spec = QUICK.model_copy(update={"attacks": ("pgd", "pgd_crop", "noise"), "protocols": PROTOCOLS, "curve": ()})
    run(spec, encoder=encoder)
    assert state_hash(encoder) == before
    assert not any(modes)
    assert len(modes) > 50
    assert all(p.grad is None for p in encoder.parameters())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert type(TEST)(TEST.images, TEST.labels, 10, "random").sha256 == images


def test_listening_restores_the_loggers():
    loggers = [logging.getLogger(name) for name in ("attacks", "auto-attack")]
    own = logging.NullHandler()
    loggers[0].addHandler(own)
    loggers[0].setLevel(logging.ERROR)
    before = [(list(each.handlers), each.level, each.propagate) for each in loggers]
    events = []
    with contextlib.suppress(KeyError), search.listening(Cell("linear", "pgd", 0.1, 3), events.append) as warnings:
        loggers[0].warning("something %s", "odd")
        loggers[1].info("step 3")
        raise KeyError
    assert warnings == ["something odd"]
    assert [event["message"] for event in events] == ["step 3"]
    assert [(list(each.handlers), each.level, each.propagate) for each in loggers] == before
    loggers[0].removeHandler(own)
    loggers[0].setLevel(logging.NOTSET)


# ---------------------------------------------------------------- attacks that lie


def lying(change):
    """An attack that changes images (B, C, H, W) in its own way."""

    class Liar(none.Attack):
        def perturb(self, model, images, labels, threat, generator):
            return change(images, labels)

    return types.SimpleNamespace(Attack=Liar)


def in_place(images, labels):
    images += 0.05
    return images.clamp_(0, 1)


LIES = {
    "leaves the ball": (
        lambda x, y: (x + 0.021).clamp(0, 1),
        "liar under linear left its threat model: distance 0.021",
    ),
    "leaves the box": (lambda x, y: x + 0.019, r"liar under linear left its threat model.*pixels in \[0.019, 1.019\]"),
    "leaves the box below": (lambda x, y: x - 0.019, r"liar .* left its threat model.*pixels in \[-0.019, 0.981\]"),
    "moves what it was given": (in_place, "liar under linear left its threat model: distance 0.05"),
    "returns NaN": (lambda x, y: x * float("nan"), "liar under linear returned pixels that are not finite"),
    "returns fewer": (lambda x, y: x[:-1], r"liar under linear returned \(11, 3, 16, 16\) for \(12, 3, 16, 16\)"),
    "returns nothing": (lambda x, y: None, "liar under linear returned a NoneType, not a tensor of images"),
    "returns bytes": (lambda x, y: (x * 255).byte(), "returned images of uint8 on cpu for float32 on cpu"),
    "raises": (lambda x, y: {}["bad day"], "liar under linear raised KeyError: 'bad day'"),
    "returns another size": (lambda x, y: x[..., :8], r"returned \(12, 3, 16, 8\) for \(12, 3, 16, 16\)"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_attack_that_lies_is_named(lie, monkeypatch):
    change, message = LIES[lie]
    monkeypatch.setattr(registry, "load", lambda kind, name: lying(change))
    before = TEST.images.clone(), TEST.labels.clone()
    model = Classifier(tiny_encoder()).eval()
    with pytest.raises(AttackError, match=message):
        run_cell(evaluated(None), model, Cell("linear", "liar", 0.02, 12))
    assert torch.equal(TEST.images, before[0])
    assert torch.equal(TEST.labels, before[1])


def test_an_attack_that_changes_the_labels_does_not_change_the_count(monkeypatch):
    monkeypatch.setattr(registry, "load", lambda kind, name: lying(lambda x, y: (y.fill_(0), x)[1]))
    labels = TEST.labels.clone()
    found = run_cell(evaluated(None), Classifier(tiny_encoder()).eval(), Cell("linear", "liar", 0.1, 20))
    monkeypatch.undo()
    clean = run_cell(evaluated(None), Classifier(tiny_encoder()).eval(), Cell("linear", "none", 0.0, 20))
    assert found.outcomes == clean.outcomes
    assert torch.equal(TEST.labels, labels)


def test_an_attack_that_leaves_train_mode_on_is_caught(monkeypatch):
    model = Classifier(tiny_encoder()).eval()
    monkeypatch.setattr(registry, "load", lambda kind, name: lying(lambda x, y: (model.train(), x)[1]))
    with pytest.raises(AttackError, match="after the attack liar under linear: expected every module in eval mode"):
        run_cell(evaluated(None), model, Cell("linear", "liar", 0.1, 20))


def test_an_attack_of_the_users_own_goes_by_its_files_name(tmp_path):
    text = Path(importlib.import_module("attacks.fgsm").__file__).read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    paths = {"mine": str(tmp_path / "mine.py")}
    spec = QUICK.model_copy(update={"attacks": ("mine", "fgsm"), "attack_paths": paths, "protocols": ("linear",)})
    shelf = run(spec)
    assert [key[1] for key in shelf.results] == ["none", "mine", "mine", "fgsm", "fgsm"]
    assert shelf.results["linear", "mine", 0.01].outcomes == shelf.results["linear", "fgsm", 0.01].outcomes
    assert shelf.results["linear", "mine", 0.01].config["attack"] == "mine"  # wherever the file lies


# ---------------------------------------------------------------- settings of the attacks


def test_config_hash_is_equal_for_equal_settings_only():
    def hash_of(encoder=None, seed=0, images=10, eps=0.01, attack="pgd", protocol="linear", **changes):
        model = build_classifier(protocol, encoder or tiny_encoder(), (16, 16), 3, 0)
        cell = Cell(protocol, attack, eps, images)
        spec = QUICK.model_copy(update=changes)
        return run_cell(evaluated(None, spec, seed=seed), model, cell).config_hash

    first = hash_of()
    assert len(first) == 16
    assert hash_of(encoder=tiny_encoder(seed=5)) == first  # two methods, one attack
    others = [
        hash_of(eps=0.02),
        hash_of(seed=1),
        hash_of(images=9),
        hash_of(attack="fgsm"),
        hash_of(chunk=100),
        hash_of(restarts=2),
        hash_of(protocol="multi_patch"),
        hash_of(protocol="multi_patch", crop_seed=1),
    ]
    assert len({first, *others}) == 9


def test_steps_are_part_of_the_config_hash(monkeypatch):
    hashes = set()
    for steps in (20, 21):
        attack = types.SimpleNamespace(Attack=lambda steps=steps: pgd.Attack(steps=steps))
        monkeypatch.setattr(registry, "load", lambda kind, name, attack=attack: attack)
        cell = Cell("linear", "pgd", 0.01, 4)
        spec = QUICK.model_copy(update={"attack_settings": {}})
        result = run_cell(evaluated(None, spec), Classifier(tiny_encoder()).eval(), cell)
        assert result.config["steps"] == steps
        hashes.add(result.config_hash)
    assert len(hashes) == 2


def test_published_eval_has_the_papers_own_pgd_and_probe():
    spec = EvalSpec(restarts=5, crops=16)
    attack = build_attack(Cell("published_eval", "pgd", 8 / 255, 10), spec)
    assert (attack.steps, attack.step(8 / 255), attack.random_start) == (20, 0.01, False)
    ranked = build_attack(Cell("linear", "pgd", 8 / 255, 10), spec)
    assert (ranked.steps, ranked.step(8 / 255), ranked.random_start, ranked.restarts) == (20, 2 / 255, True, 5)
    shelf = run(QUICK.model_copy(update={"protocols": ("published_eval",)}), seed=7)
    probe, tensors = shelf.probes["published_eval"]
    features = build_classifier("linear", tiny_encoder(), (16, 16), 3, 0).features(TRAIN.images.float() / 255)
    layer = fit_published_probe(features, TRAIN.labels, 10, seed=7)
    torch.testing.assert_close(tensors["weight"], layer.weight, rtol=0, atol=1e-4)
    torch.testing.assert_close(tensors["bias"], layer.bias, rtol=0, atol=1e-4)
    assert (probe.penalty, probe.band, probe.held_out) == (0.0, [], [])
    assert probe.note == "Adam 3e-4, 20 epochs, batches of 256 (arXiv:2501.03507)"
    assert tensors["weight"].shape == (10, 24)


def test_published_eval_attacks_every_image_at_every_eps_and_takes_the_last_iterate(monkeypatch):
    """As the textbook has it; the ranked PGD leaves out what has fallen at a smaller eps, and keeps the best."""
    seen = spy(monkeypatch, "pgd")
    radii = {"eps": (0.02, 0.1), "main_eps": 0.1}
    shelf = run(QUICK.model_copy(update={"protocols": ("published_eval",), "attack_settings": {}} | radii))
    assert shelf.results["published_eval", "pgd", 0.02].correct < 20  # some would be left out at .1
    model = evaluated(shelf).stored_classifier("published_eval")
    images, labels = TEST.images.float() / 255, TEST.labels
    for (_, _, moved, threat), eps in zip(seen, (0.02, 0.1), strict=True):
        expected = images
        for _ in range(20):
            expected = expected.detach().requires_grad_()
            (slope,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(expected), labels), expected)
            step = expected.detach() + 0.01 * slope.sign()
            expected = (images + (step - images).clamp(-eps, eps)).clamp(0, 1)
        assert threat.eps == eps
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)
        result = shelf.results["published_eval", "pgd", eps]
        assert standing(result.outcomes) == set(model(expected).argmax(1).eq(labels).nonzero().flatten().tolist())
        assert "carried_from" not in result.config
        assert result.config["best"] is False


def test_batches_of_the_attacks_count_crops():
    spec = EvalSpec(crops=16, chunk=512, autoattack_batch=500)
    assert build_attack(Cell("linear", "pgd", 0.1, 10), spec).chunk == 512
    assert build_attack(Cell("multi_patch", "pgd", 0.1, 10), spec).chunk == 32
    assert build_attack(Cell("multi_patch", "autoattack", 0.1, 10), spec).batch == 31
    assert build_attack(Cell("multi_patch", "pgd", 0.1, 10), spec.model_copy(update={"chunk": 8})).chunk == 1


def test_the_probe_band_never_takes_more_crops_at_once_than_asked_for(monkeypatch):
    sizes = []
    original = Classifier.features_of_crops
    monkeypatch.setattr(
        Classifier, "features_of_crops", lambda self, x: (sizes.append(x.shape[0] * x.shape[1]), original(self, x))[1]
    )
    run(QUICK.model_copy(update={"chunk": 12, "protocols": ("multi_patch",)}))
    assert max(sizes) == 12


def test_warnings_of_an_attack_go_into_the_note():
    data = random_images(6, classes=3)
    spec = EvalSpec(attacks=("autoattack",), eps=(0.1,), main_eps=0.1, protocols=("linear",), band_images=2)
    shelf = Shelf()
    evaluate(evaluated(shelf, spec, train=data, test=data))
    note = shelf.results["linear", "autoattack", 0.1].note
    assert note == "autoattack on 3 classes is reduced to apgd-ce, fab-t, square with 2 target classes"
    assert shelf.results["linear", "none", 0.0].note == ""


def test_crops_in_the_config_are_those_of_the_protocol():
    shelf = run()
    assert "crops" not in shelf.results["linear", "pgd", 0.01].config
    config = shelf.results["multi_patch", "pgd", 0.01].config
    assert (config["crops"], config["crop_seed"]) == (3, 0)


# ---------------------------------------------------------------- two spaces


def test_attack_in_crop_space_moves_every_crop_by_up_to_eps(monkeypatch):
    seen = spy(monkeypatch, "pgd_crop")
    shelf = run(QUICK.model_copy(update={"attacks": ("pgd_crop",), "protocols": ("multi_patch",)}))
    model, crops, moved, threat = seen[-1]
    assert isinstance(model, OfCrops)
    assert threat == ThreatModel(eps=0.02, space="crop")
    assert crops.shape == moved.shape == (20, 3, 3, 16, 16)
    right = torch.tensor([o == "1" for o in shelf.results["multi_patch", "none", 0.0].outcomes])
    distance = (moved - crops).abs().amax((2, 3, 4))[right]  # (images, crops); the wrong ones are left as they are
    assert float(distance.max()) <= 0.02 + 1e-6
    assert bool((distance > 0.009).all())
    spaces = {key[1]: result.threat_space for key, result in shelf.results.items()}
    assert spaces == {"none": "image", "pgd_crop": "crop"}
    assert shelf.results["multi_patch", "pgd_crop", 0.02].config["space"] == "crop"


def test_attack_in_image_space_moves_the_picture_only(monkeypatch):
    seen = spy(monkeypatch, "pgd")
    run(QUICK.model_copy(update={"protocols": ("multi_patch",), "band_images": 20}))
    for model, images, moved, threat in seen:
        assert images.shape == moved.shape == (20, 3, 16, 16)
        assert threat.space == "image"
        assert model.rows.shape == (3, 16, 16)
        assert torch.equal(images, TEST.images.float() / 255)
    assert torch.equal(seen[-1][0].rows, build_classifier("multi_patch", tiny_encoder(), (16, 16), 3, 0).rows)
    assert fixed_boxes(3, (16, 16), 0).shape == (3, 4)
