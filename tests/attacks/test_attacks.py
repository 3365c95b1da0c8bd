"""What holds for every attack in the folder, and the rules of the shared loop."""

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from short_autoattack import short_package
from torch import nn

import attacks
from attacks import autoattack, fgsm, noise, none, pgd, pgd_crop
from attacks.common.base import config_hash, maximize, project, random_start
from attacks.common.threat import geometry
from bench.spec import ThreatModel, UsageError

NAMES = sorted(path.stem for path in Path(attacks.__path__[0]).glob("*.py") if path.stem != "__init__")
if importlib.util.find_spec("adv_lib") is None:  # an extra
    NAMES = [name for name in NAMES if not name.startswith("fmn")]
THREAT = ThreatModel(eps=0.01)  # under which some images of the scene stand, so that no attack ends early


class Toy(nn.Module):
    """Small convolution with batch norm on 10 classes; crops (B, n, C, H, W) become their mean logits."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
        )

    def forward(self, images):
        if images.dim() == 5:
            return self.layers(images.flatten(0, 1)).unflatten(0, images.shape[:2]).mean(1)
        return self.layers(images)


class Scalar(nn.Module):
    """Logits (0, f(x) - bar) of the picture's mean x, so that class 0 falls where f(x) is above the bar."""

    def __init__(self, f, bar):
        super().__init__()
        self.f, self.bar, self.passes, self.images = f, bar, 0, 0

    def forward(self, images):
        self.passes, self.images = self.passes + 1, self.images + len(images)
        value = self.f(images.flatten(1).mean(1)) - self.bar
        return torch.stack([torch.zeros_like(value), value], 1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def attack_of(name):
    return importlib.import_module(f"attacks.{name}").Attack()


def threat_of(name):
    """A ball of the attack's norm: in l2 one of the length of a picture whose every pixel moves by THREAT.eps."""
    norm = attack_of(name).norm
    return THREAT if norm == "linf" else ThreatModel(norm=norm, eps=THREAT.eps * 108**0.5)


def scene(name, count=6):
    """A frozen toy, images and the labels that it predicts, but for the last, which is wrong from the start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Toy().eval().requires_grad_(False)
        shape = (count, 2, 3, 6, 6) if attack_of(name).space == "crop" else (count, 3, 6, 6)
        images = torch.rand(shape)
    labels = model(images).argmax(1)
    labels[-1] = (labels[-1] + 1) % 10
    return model, images, labels


def correct(model, images, labels):
    with torch.no_grad():
        return model(images).argmax(1) == labels


# ---------------------------------------------------------------- every file of the folder


@pytest.fixture
def short_stages(monkeypatch):
    monkeypatch.setattr(autoattack, "load_package", short_package)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.ci) if "autoattack" in name else name for name in NAMES]
)
def test_attack_obeys_the_threat_model_leaves_no_trace_and_repeats(name, short_stages):
    model, images, labels = scene(name)
    threat = threat_of(name)
    model.requires_grad_(True)  # harder than what the harness promises: FAB would leave gradients here
    before = {k: v.clone() for k, v in model.state_dict().items()}
    given_images, given_labels, states = images.clone(), labels.clone(), global_states()
    tracer = lambda frame, event, arg: None  # noqa: E731
    with tracing(tracer):
        adversarial = attack_of(name).perturb(model, images, labels, threat, generator())
        assert sys.gettrace() is tracer

    assert adversarial.shape == images.shape
    assert adversarial.dtype == torch.float32
    assert not adversarial.requires_grad
    assert adversarial.isfinite().all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert geometry(threat).distance(adversarial, images).max() <= threat.eps + 1e-7
    assert not (correct(model, adversarial, labels) & ~correct(model, images, labels)).any()
    assert torch.equal(adversarial[-1], images[-1])  # wrong from the start: not attacked

    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert global_states() == states
    assert torch.equal(images, given_images)
    assert torch.equal(labels, given_labels)

    torch.manual_seed(123)  # the global state has no say
    with torch.no_grad():  # nor has the caller's grad mode
        assert torch.equal(attack_of(name).perturb(model, images, labels, threat, generator()), adversarial)


@pytest.mark.parametrize("name", NAMES)
def test_attack_returns_its_input_when_there_is_nothing_to_do(name):
    model, images, labels = scene(name)
    assert torch.equal(
        attack_of(name).perturb(model, images, labels, ThreatModel(norm=attack_of(name).norm, eps=0), generator()),
        images,
    )
    empty = attack_of(name).perturb(model, images[:0], labels[:0], threat_of(name), generator())
    assert empty.shape == images[:0].shape


@pytest.mark.parametrize("name", NAMES)
def test_attack_describes_itself_in_json(name):
    attack = attack_of(name)
    config = attack.describe(10)
    assert config["attack"] == name
    assert {field.name for field in dataclasses.fields(attack)} - set(attack.unwritten) <= set(config)
    assert json.loads(json.dumps(config)) == config
    assert attack.space in ("image", "crop")
    assert attack.chunk is None or attack.chunk > 0
    assert config_hash(config) == config_hash(dict(reversed(config.items())))
    assert len(config_hash(config)) == 16
    assert config_hash(config) != config_hash(config | {"chunk": 7})


def test_config_hash_is_that_of_canonical_json_which_has_no_nan():
    text = '{"a":[1,2.5],"b":{"c":null,"d":"x"}}'
    expected = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert config_hash({"b": {"d": "x", "c": None}, "a": [1, 2.5]}) == expected
    with pytest.raises(ValueError, match="Out of range float values"):
        config_hash({"a": float("nan")})


def test_only_pgd_crop_lives_in_crop_space():
    assert [name for name in NAMES if attack_of(name).space == "crop"] == ["pgd_crop"]


# ---------------------------------------------------------------- geometry


def tensors(seed, eps):
    """Clean images with pixels at both borders, and others anywhere around them."""
    draw = generator(seed)
    clean = (torch.rand(2, 3, 4, 4, generator=draw) * 1.2 - 0.1).clamp(0, 1)
    return clean, clean + 3 * eps * torch.randn(clean.shape, generator=draw)


@given(seed=st.integers(0, 2**32), eps=st.floats(0, 1))
def test_projected_images_are_in_the_ball_and_in_the_box_and_stay(seed, eps):
    clean, images = tensors(seed, eps)
    projected = project(images, clean, eps)
    assert (projected - clean).abs().max() <= eps + 1e-7
    assert projected.min() >= 0
    assert projected.max() <= 1
    assert torch.equal(project(projected, clean, eps), projected)
    inside = (clean + 0.999 * eps * (2 * torch.rand(clean.shape, generator=generator(seed)) - 1)).clamp(0, 1)
    assert torch.equal(project(inside, clean, eps + 1e-6), inside)
    assert torch.equal(project(images, clean, 0), clean)


@given(seed=st.integers(0, 2**32), eps=st.floats(0, 1))
def test_random_starts_are_in_the_ball_and_in_the_box(seed, eps):
    clean, _ = tensors(seed, eps)
    for draw in (random_start, noise.corner):
        start = draw(clean, eps, generator(seed))
        assert torch.equal(project(start, clean, eps), start)
        assert torch.equal(draw(clean, eps, generator(seed)), start)


def test_random_start_is_uniform_and_noise_is_at_the_corners():
    clean = torch.full((1, 1, 100, 100), 0.5)
    delta = random_start(clean, 0.1, generator()) - clean
    # 10,000 draws: standard errors are .0006 of the mean and .0003 of the standard deviation .1 / sqrt(3)
    assert abs(delta.mean()) < 0.003
    assert abs(delta.std() - 0.1 / 3**0.5) < 0.0015
    signs = (noise.corner(clean, 0.1, generator()) - clean) / 0.1
    torch.testing.assert_close(signs.abs(), torch.ones_like(signs))
    assert abs(signs.mean()) < 0.05


# ---------------------------------------------------------------- the loop


@pytest.mark.parametrize(("steps", "step", "reach"), [(1, 0.01, 0.01), (3, 0.01, 0.03), (20, 0.01, 0.1), (2, 0.3, 0.1)])
def test_from_zero_the_loop_reaches_min_of_eps_and_steps_times_step(steps, step, reach):
    model, images = Scalar(lambda x: x, bar=10), torch.full((2, 3, 4, 4), 0.5)
    labels = torch.zeros(2, dtype=torch.long)
    threat = ThreatModel(eps=0.1)
    attack = pgd.Attack(steps=steps, absolute_step=step, random_start=False)
    adversarial = attack.perturb(model, images, labels, threat, generator())
    torch.testing.assert_close(adversarial - images, torch.full_like(images, reach), rtol=0, atol=1e-6)
    assert model.passes == steps + 1  # one per gradient, one for the last iterate


def test_fgsm_goes_to_the_corner_in_one_step():
    model, images = Scalar(lambda x: x, bar=10), torch.full((2, 3, 4, 4), 0.5)
    adversarial = fgsm.Attack().perturb(model, images, torch.zeros(2, dtype=torch.long), THREAT, generator())
    torch.testing.assert_close(adversarial, images + THREAT.eps, rtol=0, atol=1e-6)
    assert model.passes == 2


def test_an_iterate_that_is_misclassified_on_the_way_counts():
    """Steps of .04 around a peak at .53: .50, .54, .50; only .54 crosses the bar, and the last would be correct."""
    model = Scalar(lambda x: -(x - 0.53).abs(), bar=-0.015)
    images, labels = torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, dtype=torch.long)
    attack = pgd.Attack(steps=2, absolute_step=0.04, random_start=False)
    adversarial = attack.perturb(model, images, labels, ThreatModel(eps=0.1), generator())
    torch.testing.assert_close(adversarial, torch.full_like(images, 0.54), rtol=0, atol=1e-6)
    assert model.passes == 2  # the image left the work at once
    assert not correct(model, adversarial, labels)


def test_a_misclassified_iterate_is_kept_although_its_loss_is_lower():
    """From .54 to .50 across a loss that peaks at .53, under a model that errs below .52."""
    model = Scalar(lambda x: -x, bar=-0.52)
    images, labels = torch.full((1, 3, 4, 4), 0.54), torch.zeros(1, dtype=torch.long)
    adversarial = maximize(
        model,
        images,
        labels,
        ThreatModel(eps=0.1),
        steps=1,
        step=0.04,
        random_start=False,
        loss=lambda logits, labels: -(logits[:, 1] + 0.01).abs(),  # -|x - .53|
        generator=generator(),
    )
    torch.testing.assert_close(adversarial, torch.full_like(images, 0.50), rtol=0, atol=1e-6)


def test_as_published_the_last_iterate_is_returned_although_one_on_the_way_was_misclassified():
    """f falls behind .5303, so the steps of .01 from .5 go to .53, which is above the bar, and swing around it."""
    model = Scalar(lambda x: 0.005 - (x - 0.5303).abs(), bar=0.0)
    images, threat = torch.full((2, 1, 2, 2), 0.5), ThreatModel(eps=0.1)
    own = {"absolute_step": 0.01, "random_start": False}
    ranked, published = (pgd.Attack(**own, best=best) for best in (True, False))
    labels = torch.zeros(2, dtype=torch.long)
    best = ranked.perturb(model, images, labels, threat, generator())
    assert not correct(model, best, labels).any()
    last = published.perturb(model, images, labels, threat, generator(), attacked=torch.tensor([True, False]))
    assert correct(model, last, labels).all()
    assert last.flatten(1)[:, 0].tolist() == pytest.approx([0.54, 0.5])
    assert published.describe(2) == ranked.describe(2) | {"best": False}
    assert "best" not in ranked.describe(2)  # its hash is what it was
    with pytest.raises(UsageError, match="best=False of pgd with random_start=False only"):
        pgd.Attack(best=False)


def test_the_last_iterate_counts_too():
    model = Scalar(lambda x: x, bar=0.595)  # only the tenth step of .01 crosses it
    images, labels = torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, dtype=torch.long)
    attack = pgd.Attack(steps=10, absolute_step=0.01, random_start=False)
    assert not correct(model, attack.perturb(model, images, labels, ThreatModel(eps=0.2), generator()), labels)


def test_of_standing_iterates_the_one_of_the_highest_loss_is_kept():
    """Steps of .04 around a peak at .53: .50, .54, .50, .54; the last is .50, the best .54."""
    model = Scalar(lambda x: -(x - 0.53).abs(), bar=10)
    images, labels = torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, dtype=torch.long)
    attack = pgd.Attack(steps=4, absolute_step=0.04, random_start=False)
    adversarial = attack.perturb(model, images, labels, ThreatModel(eps=0.1), generator())
    torch.testing.assert_close(adversarial, torch.full_like(images, 0.54), rtol=0, atol=1e-6)


def test_of_equal_losses_the_first_iterate_is_kept():
    """A loss that is always 0 and has a gradient all the same: nothing is better than the clean image."""
    adversarial = maximize(
        Scalar(lambda x: x, bar=10),
        torch.full((2, 3, 4, 4), 0.5),
        torch.zeros(2, dtype=torch.long),
        ThreatModel(eps=0.1),
        steps=3,
        step=0.01,
        random_start=False,
        loss=lambda logits, labels: logits[:, 1] - logits[:, 1].detach(),
        generator=generator(),
    )
    assert torch.equal(adversarial, torch.full((2, 3, 4, 4), 0.5))


def test_misclassified_images_cost_nothing():
    model = Scalar(lambda x: x, bar=0.45)  # above .45 class 0 is wrong
    images = torch.tensor([0.5, 0.2]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    pgd.Attack(steps=5, restarts=2).perturb(model, images, torch.zeros(2, dtype=torch.long), THREAT, generator())
    assert model.images == 2 + 2 * 6 * 1  # the clean look at both, then two restarts of the one that stands


def test_images_that_are_not_attacked_cost_nothing_and_change_no_draw():
    model, images, labels = scene("pgd", count=12)
    attack, threat = pgd.Attack(steps=3, restarts=3), ThreatModel(eps=0.02)
    attacked = torch.arange(12) % 3 == 1
    expected = attack.perturb(model, images, labels, threat, generator())
    actual = attack.perturb(model, images, labels, threat, generator(), attacked)
    assert torch.equal(actual[~attacked], images[~attacked])
    # a batch of another size may round differently
    torch.testing.assert_close(actual[attacked], expected[attacked], rtol=0, atol=1e-6)
    counted, flat = Scalar(lambda x: x, bar=10), torch.full((12, 3, 4, 4), 0.5)
    attack.perturb(counted, flat, torch.zeros(12, dtype=torch.long), threat, generator(), attacked)
    assert counted.images == 4 * (1 + 3 * 4)


def test_noise_finds_a_hole_that_has_no_gradient():
    """Class 0 falls only where the first pixel is raised; the step function has a gradient of zero everywhere."""

    class Hole(nn.Module):
        def forward(self, images):
            value = (images[:, 0, 0, 0] > 0.52).float() - 0.5 + 0 * images.sum((1, 2, 3))
            return torch.stack([torch.zeros_like(value), value], 1)

    images, labels = torch.full((20, 3, 4, 4), 0.5), torch.zeros(20, dtype=torch.long)
    for attack, standing in ((noise.Attack(draws=30), 0), (fgsm.Attack(), 20)):
        adversarial = attack.perturb(Hole(), images, labels, ThreatModel(eps=0.05), generator())
        assert int(correct(Hole(), adversarial, labels).sum()) == standing


@pytest.mark.parametrize("attack", [pgd.Attack(steps=3, restarts=3), noise.Attack(draws=10)])
def test_the_outcome_of_an_image_does_not_depend_on_the_others(attack):
    """Others at the same places that fall at once, or never fall, change no draw of the images that stay."""
    model, images, labels = scene("pgd", count=12)
    threat = ThreatModel(eps=0.02)
    others_wrong, others_new = labels.clone(), images.clone()
    others_wrong[::2] = (labels[::2] + 1) % 10
    others_new[::2] = 0.5
    expected = attack.perturb(model, images, labels, threat, generator())
    for case in ((images, others_wrong), (others_new, labels)):
        actual = attack.perturb(model, *case, threat, generator())
        # a batch of another size may round differently
        torch.testing.assert_close(actual[1::2], expected[1::2], rtol=0, atol=1e-6)


def test_another_seed_gives_other_starts():
    model, images, labels = scene("pgd")
    first, second = (pgd.Attack(steps=1).perturb(model, images, labels, THREAT, generator(seed)) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_more_restarts_never_leave_more_images_standing():
    model, images, labels = scene("pgd", count=40)
    standing = correct(model, images, labels)
    for restarts in (1, 2, 5, 10):
        adversarial = pgd.Attack(steps=1, restarts=restarts).perturb(model, images, labels, THREAT, generator())
        now = correct(model, adversarial, labels)
        assert not (now & ~standing).any()  # the first draws are the same, so image by image
        standing = now
    assert 0 < int(standing.sum()) < 39


# ---------------------------------------------------------------- settings


def test_step_is_relative_to_eps_unless_it_is_absolute():
    assert pgd.Attack().step(0.1) == 0.025
    assert pgd.Attack(absolute_step=0.01).step(0.1) == 0.01


@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    [
        (pgd.Attack, {"steps": 0}, "expected steps of pgd above 0, got 0"),
        (pgd.Attack, {"restarts": 0}, "expected restarts of pgd above 0, got 0"),
        (pgd.Attack, {"relative_step": 0.0}, "expected relative_step of pgd above 0, got 0.0"),
        (pgd.Attack, {"absolute_step": -0.1}, "expected absolute_step of pgd above 0, got -0.1"),
        (pgd_crop.Attack, {"step": 0.0}, "expected steps and step of pgd_crop above 0, got 20 and 0.0"),
        (pgd_crop.Attack, {"steps": 0}, "expected steps and step of pgd_crop above 0, got 0 and 0.01"),
        (noise.Attack, {"draws": 0}, "expected draws of noise above 0, got 0"),
        (autoattack.Attack, {"batch": 0}, "expected batch of autoattack above 0, got 0"),
    ],
)
def test_settings_of_zero_or_less_are_refused(attack, settings, message):
    with pytest.raises(UsageError) as error:
        attack(**settings)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("attack", "settings"),
    [
        (pgd.Attack, {"steps": 1, "restarts": 1, "relative_step": 0.01}),
        (pgd.Attack, {"absolute_step": 0.01}),
        (pgd_crop.Attack, {"steps": 1, "step": 0.001}),
        (noise.Attack, {"draws": 1}),
        (autoattack.Attack, {"batch": 1}),
    ],
)
def test_the_smallest_settings_are_accepted(attack, settings):
    assert dataclasses.asdict(attack(**settings)).items() >= settings.items()


def test_autoattack_knows_one_version():
    with pytest.raises(UsageError, match=r"^unknown version 'plus' of autoattack; known: standard$"):
        autoattack.Attack(version="plus")


def test_none_returns_the_images():
    model, images, labels = scene("none")
    assert none.Attack().perturb(model, images, labels, THREAT, generator()) is images


# ---------------------------------------------------------------- helpers


def global_states():
    """Fingerprints of all global random states."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    state = (torch.get_rng_state(), *cuda)
    return [s.numpy().tobytes() for s in state], str(np.random.get_state()), random.getstate()  # noqa: NPY002


@contextlib.contextmanager
def tracing(function):
    """Run under a trace function of our own and give back that of the test run."""
    previous = sys.gettrace()
    sys.settrace(function)
    try:
        yield
    finally:
        sys.settrace(previous)
