"""Out of memory is a result of a training, and of our own attacks smaller passes with the same draws (promise P13)."""

import itertools

import pytest
import torch
from audit_fixtures import classifier
from evaluation_fixtures import QUICK, run
from training_fixtures import Drawing, flat, trained

from attacks import fgsm, noise, pgd, pgd_crop
from attacks.common.passes import Passes
from bench.random import Draws
from bench.spec import ThreatModel
from bench.training.state import Undo
from methods.common.optim import LARS

NOTE = (
    "out of memory with a batch of 4 and 2 views; 2 fits, but is another recipe: "
    "batch norm and the losses depend on the batch"
)


def limited(function, size):
    """The function, out of memory from its third call on wherever the size of the batch is above 2."""
    count = itertools.count(1)

    def called(*arguments, **settings):
        if next(count) >= 3 and size() > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return function(*arguments, **settings)

    return called


def in_method(name):
    return lambda monkeypatch, method, size: setattr(method, name, limited(getattr(method, name), size))


def in_class(owner, name):
    return lambda monkeypatch, method, size: monkeypatch.setattr(owner, name, limited(getattr(owner, name), size))


def in_backward(monkeypatch, method, size):
    method.encoder.layers[1].weight.register_hook(limited(lambda gradient: None, size))


def in_encoder(monkeypatch, method, size):
    method.encoder.forward = limited(method.encoder.forward, size)


PLACES = {
    "augment": in_method("augment"),
    "draws": in_class(Draws, "uniform"),
    "climb": in_method("adversarial_loss"),
    "clean": in_method("clean"),
    "embed": in_method("embed"),
    "encoder": in_encoder,
    "loss": in_method("loss"),
    "backward": in_backward,
    "step": in_class(LARS, "step"),
    "half a step": in_class(LARS, "_descend"),
    "after_update": in_method("after_update"),
}


@pytest.mark.parametrize("place", PLACES)
def test_at_any_place_of_a_training_is_a_result_with_the_batch_that_fits(place, digits, monkeypatch):
    method, seen = flat(kind=Drawing, adversary="pgd"), []
    PLACES[place](monkeypatch, method, lambda: seen[-1] if seen else 0)
    augment = method.augment
    method.augment = lambda images, draws: seen.append(len(images)) or augment(images, draws)
    before = torch.get_rng_state()
    result, _ = trained(method, digits.first(20), "9up")
    assert (result.status, result.note) == ("oom", NOTE)
    assert seen[-1] == 2
    assert torch.equal(torch.get_rng_state(), before)


def test_of_a_copy_of_the_state_has_nothing_to_do_with_the_batch(digits, monkeypatch):
    """Which a budget in time needs for each update."""
    monkeypatch.setattr(Undo, "save", limited(Undo.save, lambda: 4))
    result, _ = trained(flat(), digits.first(20), "60s")
    assert (result.status, result.updates) == ("oom", 1)
    assert result.note == "out of memory with a batch of 4 and 2 views; no smaller one fits either"


# ---------------------------------------------------------------- our own attacks

ATTACKS = {
    "pgd": pgd.Attack(steps=4, restarts=3),
    "fgsm": fgsm.Attack(),
    "noise": noise.Attack(draws=6),
    "pgd_crop": pgd_crop.Attack(steps=4),
}


def attacked(monkeypatch, attack, room):
    """(adversarial images, which stand, state of the generator, sizes of the passes) with room for so many images."""
    model, sizes, once = classifier().double(), [], Passes._once
    images = torch.rand(11, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels, generator = model(images).argmax(1), torch.Generator().manual_seed(1)

    def small(self, images, *rest):
        if len(images) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(images))
        return once(self, images, *rest)

    monkeypatch.setattr(Passes, "_once", small)
    moved = attack.perturb(model, images, labels, ThreatModel(eps=0.02), generator)
    return moved, model(moved).argmax(1) == labels, generator.get_state(), sizes


@pytest.mark.parametrize("room", [1, 3, 7])
@pytest.mark.parametrize("name", ATTACKS)
def test_of_an_attack_changes_only_the_size_of_its_passes(name, room, caplog):
    with pytest.MonkeyPatch.context() as patch:
        whole, stands, generator, most = attacked(patch, ATTACKS[name], 99)
    assert "out of memory" not in caplog.text
    with pytest.MonkeyPatch.context() as patch:
        parts, still, drawn, sizes = attacked(patch, ATTACKS[name], room)
    assert max(sizes) <= room < max(most) == 11
    assert f"out of memory: passes of {max(sizes)} images" in caplog.text
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-9)
    assert torch.equal(still, stands)
    assert torch.equal(drawn, generator)


@pytest.mark.parametrize("name", ATTACKS)
def test_of_one_image_alone_is_an_error(name, monkeypatch):
    with pytest.raises(torch.OutOfMemoryError):
        attacked(monkeypatch, ATTACKS[name], 0)


def test_of_an_attack_is_said_in_the_note_of_the_result(monkeypatch):
    once = Passes._once

    def small(self, images, *rest):
        if len(images) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return once(self, images, *rest)

    spec = QUICK.model_copy(update={"protocols": ("linear",), "curve": (), "eps": (0.02,), "band_images": 4})
    key = ("linear", "pgd", 0.02)
    whole = run(spec).results[key]
    monkeypatch.setattr(Passes, "_once", small)
    parts = run(spec).results[key]
    assert whole.note == ""
    assert "out of memory: passes of" in parts.note
    assert (parts.outcomes, parts.config_hash) == (whole.outcomes, whole.config_hash)
