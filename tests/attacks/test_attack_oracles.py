"""Attacks against answers known without them: linear models in closed form, and the package called directly."""

import logging
import sys
import types

import pyautoattack
import pytest
import torch
from torch import nn

from attacks import autoattack, autoattack_l2, fgsm, noise, pgd, pgd_l2
from attacks.common import package
from attacks.common.base import random_start
from bench.evaluation.search import verify
from bench.spec import ThreatModel, UsageError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def correct(model, images, labels):
    with torch.no_grad():
        return model(images).argmax(1) == labels


# ---------------------------------------------------------------- linear models: the worst case is known


def linear_model(classes, seed=0, side=4):
    """Frozen linear model on (3, side, side) images; the weights of a class sum to zero: no class is favoured."""
    pixels = 3 * side**2
    model = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes, bias=False)).requires_grad_(False)
    weight = torch.randn(classes, pixels, generator=generator(seed))
    model[1].weight.copy_(weight - weight.mean(1, keepdim=True))
    return model.eval()


def slack(model, images, labels, eps, norm="linf"):
    """What the worst perturbation leaves of the margin, min over j of z_y - z_j - eps ||w_y - w_j||: (B,).

    The norm is the dual one: l1 of l-inf (arXiv:1412.6572, sec. 5), l2 of l2. Images lie in [.3, .7] and eps is below
    .3, so that the box never binds. Negative: some perturbation succeeds.
    """
    dual = {"linf": 1, "l2": 2}[norm]
    logits, weight = model(images), model[1].weight
    left = []
    for z, y in zip(logits, labels.tolist(), strict=True):
        others = [j for j in range(len(weight)) if j != y]
        left.append(min(z[y] - z[j] - eps * torch.linalg.norm(weight[y] - weight[j], dual) for j in others))
    return torch.stack(left)


def linear_scene(classes, count, eps, norm="linf", side=4):
    """Model, images, labels (one in twenty is wrong) and which images are robust; none within 1e-4 of the border.

    1e-4 of a logit is a hundred times the rounding of a logit here.
    """
    model = linear_model(classes, side=side)
    images = 0.3 + 0.4 * torch.rand(count + 20, 3, side, side, generator=generator(1))
    labels = model(images).argmax(1)
    labels[::20] = (labels[::20] + 1) % classes
    margin = slack(model, images, labels, eps, norm)
    clear = (margin.abs() > 1e-4).nonzero().flatten()[:count]
    assert len(clear) == count
    return model, images[clear], labels[clear], margin[clear] > 0


def test_pgd_reaches_the_exact_optimum_of_a_linear_model():
    """Two classes: the l-inf ball lowers the margin by exactly eps * ||w0 - w1||_1 (arXiv:1412.6572, sec. 5)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).requires_grad_(False)
    model[1].weight.copy_(linear_model(2)[1].weight)
    reduction = 0.1 * (model[1].weight[0] - model[1].weight[1]).abs().sum()
    model[1].bias.copy_(torch.stack([reduction + 1, torch.zeros(())]))  # class 0 stands, so that no image stops early
    images, labels = torch.full((8, 3, 4, 4), 0.5), torch.zeros(8, dtype=torch.long)
    threat = ThreatModel(norm="linf", eps=0.1)
    for attack in (pgd.Attack(steps=10, restarts=1), fgsm.Attack()):
        adversarial = attack.perturb(model, images, labels, threat, generator())
        drop = torch.sub(*(model(x).diff(dim=1).neg().squeeze(1) for x in (images, adversarial)))
        torch.testing.assert_close(drop, reduction.expand(8), rtol=0, atol=1e-5)


def test_pgd_and_fgsm_are_exact_on_two_classes_and_nothing_exceeds_them():
    eps = 0.015
    model, images, labels, robust = linear_scene(classes=2, count=1000, eps=eps)
    assert 200 < int(robust.sum()) < 800  # both outcomes are common
    for attack in (pgd.Attack(), fgsm.Attack()):
        adversarial = attack.perturb(model, images, labels, ThreatModel(eps=eps), generator())
        assert torch.equal(correct(model, adversarial, labels), robust)
    adversarial = noise.Attack().perturb(model, images, labels, ThreatModel(eps=eps), generator())
    assert not (robust & ~correct(model, adversarial, labels)).any()


@pytest.mark.parametrize(
    ("classes", "count", "eps"),
    [
        pytest.param(10, 200, 0.01, marks=pytest.mark.ci),
        pytest.param(5, 100, 0.01, marks=pytest.mark.slow),
        pytest.param(3, 40, 0.02, marks=pytest.mark.slow),
        pytest.param(2, 200, 0.015, marks=pytest.mark.ci),
    ],
)
def test_autoattack_is_exact_on_linear_models(classes, count, eps, caplog):
    model, images, labels, robust = linear_scene(classes, count, eps)
    assert 0.2 * count < int(robust.sum()) < 0.8 * count
    adversarial = autoattack.Attack().perturb(model, images, labels, ThreatModel(eps=eps), generator())
    assert torch.equal(correct(model, adversarial, labels), robust)
    said = [record.getMessage() for record in caplog.records if record.name == "attacks"]
    attacks = "apgd-ce, apgd-t, fab-t, square" if classes >= 4 else "apgd-ce, fab-t, square"
    reduced = f"autoattack on {classes} classes is reduced to {attacks} with {classes - 1} target classes"
    assert said == ([] if classes == 10 else [reduced])


def test_pgd_in_l2_reaches_the_exact_optimum_of_a_linear_model():
    """Two classes: the l2 ball lowers the margin by exactly eps * ||w0 - w1||_2, away from the box."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).requires_grad_(False)
    model[1].weight.copy_(linear_model(2)[1].weight)
    reduction = 0.3 * (model[1].weight[0] - model[1].weight[1]).norm()
    model[1].bias.copy_(torch.stack([reduction + 1, torch.zeros(())]))  # class 0 stands, so that no image stops early
    images, labels = torch.full((8, 3, 4, 4), 0.5), torch.zeros(8, dtype=torch.long)
    threat = ThreatModel(norm="l2", eps=0.3)
    # a step shortens what is left of the start by 1 / 1.25: to a millionth after 60, to a hundredth after the usual 20
    for steps, part in ((60, 1e-5), (20, 1e-3)):
        adversarial = pgd_l2.Attack(restarts=1, steps=steps).perturb(model, images, labels, threat, generator())
        drop = torch.sub(*(model(x).diff(dim=1).neg().squeeze(1) for x in (images, adversarial)))
        torch.testing.assert_close(drop, reduction.expand(8), rtol=part, atol=0)


def test_pgd_in_l2_is_exact_on_two_classes():
    eps = 0.12
    model, images, labels, robust = linear_scene(2, 1000, eps, "l2")
    assert 200 < int(robust.sum()) < 800  # both outcomes are common
    attack = pgd_l2.Attack(steps=60, restarts=1)
    adversarial = attack.perturb(model, images, labels, ThreatModel(norm="l2", eps=eps), generator())
    assert torch.equal(correct(model, adversarial, labels), robust)


@pytest.mark.ci
@pytest.mark.parametrize(("classes", "count"), [(10, 40), (3, 20)])
def test_autoattack_in_l2_is_exact_on_linear_models_and_stays_in_the_ball(classes, count):
    eps = 0.06
    model, images, labels, robust = linear_scene(classes, count, eps, "l2", side=6)  # its Square needs 5
    assert 0.2 * count < int(robust.sum()) < 0.8 * count
    threat = ThreatModel(norm="l2", eps=eps)
    adversarial = autoattack_l2.Attack().perturb(model, images, labels, threat, generator())
    assert torch.equal(correct(model, adversarial, labels), robust)
    verify(adversarial, images, threat, "autoattack_l2")


def test_what_breaks_outside_of_the_l2_ball_alone_stands_and_is_named(monkeypatch, caplog):
    """The first image breaks at a distance of 1.5 radii, the second at half of one."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).requires_grad_(False)
    model[1].weight.copy_(torch.stack([torch.zeros(48), torch.eye(48)[0]]))
    model[1].bias.copy_(torch.tensor([0.65, 0.0]))  # class 1 from a first pixel of .65 on
    images = torch.full((2, 3, 4, 4), 0.5)
    images[1, 0, 0, 0] = 0.6

    def far(self, x, y):
        moved = x.clone()
        moved[:, 0, 0, 0] += 0.2
        return moved

    monkeypatch.setattr(pyautoattack.autoattack.APGDAttack, "perturb", far)
    stage = autoattack_l2.Attack().stages(10, 2)["apgd-ce"]
    threat = ThreatModel(norm="l2", eps=0.1)
    adversarial = stage.perturb(model, images, torch.zeros(2, dtype=torch.long), threat, generator())
    assert correct(model, adversarial, torch.zeros(2, dtype=torch.long)).tolist() == [True, False]
    verify(adversarial, images, threat, "autoattack_l2")
    assert "apgd-ce: images that broke outside of the ball alone, and stand: 1" in caplog.text


# ---------------------------------------------------------------- AutoAttack: the package itself


@pytest.fixture
def scene():
    """A small frozen convolution on 10 classes, 20 images and the labels that it predicts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
        model = nn.Sequential(*layers).eval().requires_grad_(False)
        images = torch.rand(20, 3, 6, 6)
    return model, images, model(images).argmax(1)


def directly(model, images, labels, eps, seed, batch):
    """The package called as its documentation says, with what it does to the process undone."""
    trace = sys.gettrace()
    with torch.random.fork_rng(devices=[]):
        attack = pyautoattack.AutoAttack(model, norm="Linf", eps=eps, seed=seed, version="standard")
        adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=batch)
    sys.settrace(trace)
    return adversarial


@pytest.mark.ci
def test_autoattack_returns_the_images_of_the_package_bit_for_bit(scene, caplog):
    model, images, labels = scene
    expected = directly(model, images, labels, eps=0.01, seed=3, batch=12)
    caplog.set_level(logging.INFO, "attacks")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state, trace = torch.get_rng_state(), sys.gettrace()
    with torch.autocast("cpu", torch.bfloat16):  # the caller's precision has no say
        actual = autoattack.Attack(batch=12).perturb(model, images, labels, ThreatModel(eps=0.01), generator(3))
    assert torch.equal(actual, expected)
    assert not torch.equal(actual, images)
    assert "square: 0 of" in caplog.text  # images stood to the end: all four attacks ran
    assert torch.equal(torch.get_rng_state(), state)
    assert sys.gettrace() is trace
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("classes", [2, 3, 4, 9])
def test_a_reduced_ensemble_keeps_the_settings_of_standard(classes, monkeypatch):
    """A 'custom' version would run APGD and FAB with the 5 restarts of the constructor instead of 1."""
    made = []

    class Spy(pyautoattack.AutoAttack):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(pyautoattack, "AutoAttack", Spy)
    images = torch.full((2, 3, 4, 4), 0.5)
    for number in (classes, 10):
        # no image is right, so that the attack is made and set up, and does nothing
        wrong = (linear_model(number)(images).argmax(1) + 1) % number
        stage = autoattack.Attack().stages(number, 2)["fab-t"]
        stage.perturb(linear_model(number), images, wrong, ThreatModel(eps=0.01), generator())
    reduced, standard = made
    assert reduced.apgd_targeted.n_target_classes == reduced.fab.n_target_classes == classes - 1
    assert standard.apgd_targeted.n_target_classes == standard.fab.n_target_classes == 9
    for name in ("apgd", "apgd_targeted", "fab", "square"):
        ours, theirs = ({**vars(getattr(attack, name))} for attack in made)
        differing = {key for key in theirs if ours[key] is not theirs[key] and ours[key] != theirs[key]}
        assert differing <= {"model", "predict", "n_target_classes", "logger"}
    plain = pyautoattack.AutoAttack(lambda x: x, norm="Linf", eps=0.01, seed=0, version="standard")
    assert standard.apgd.n_restarts == plain.apgd.n_restarts == 1
    assert (standard.device, standard.seed) == (images.device, 0)
    assert (standard.apgd.loss, standard.fab.targeted, standard.fab.n_restarts) == ("ce", True, 1)


def test_autoattack_describes_what_runs():
    ten, two = (autoattack.Attack().describe(classes) for classes in (10, 2))
    assert ten["ensemble"] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert (ten["targets"], ten["batch"], ten["version"]) == (9, 500, "standard")
    assert ten["package"].startswith("pyautoattack ")
    assert two["ensemble"] == ["apgd-ce", "fab-t", "square"]
    assert two["targets"] == 1


@pytest.mark.parametrize("count", [1, 2])
def test_autoattack_takes_very_few_images(scene, count):
    model, images, labels = scene
    adversarial = autoattack.Attack().perturb(model, images[:count], labels[:count], ThreatModel(eps=0.05), generator())
    assert adversarial.shape == (count, 3, 6, 6)
    assert not correct(model, adversarial, labels[:count]).any()


def test_a_warning_about_one_model_is_not_repeated_for_the_next(scene, monkeypatch, caplog):
    """The package counts gradient calls inside a model over the whole process."""
    monkeypatch.setitem(pyautoattack.checks.funcs, "grad", 1)
    model, images, labels = scene
    autoattack.Attack().perturb(model, images, labels, ThreatModel(eps=0.05), generator())
    assert "dynamic" not in caplog.text


def test_out_of_memory_ends_the_attack_and_does_not_make_another_of_it(scene, monkeypatch):
    """Draws depend on the place in the batch, so at a smaller one it would be an attack that no other row has seen."""
    model, images, labels = scene
    batches = []

    def full(*arguments):
        batches.append((arguments[0].name, arguments[-1]))
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(autoattack, "run", full)
    for batch, at_once in ((500, 20), (1, 1)):
        with pytest.raises(RuntimeError, match=f"^out of memory: apgd-ce on {at_once} images at once") as caught:
            autoattack.Attack(batch=batch).perturb(model, images, labels, ThreatModel(eps=0.05), generator(1))
        assert not isinstance(caught.value, torch.OutOfMemoryError)
    assert batches == [("apgd-ce", 20), ("apgd-ce", 1)]


def test_a_stage_returns_its_input_when_there_is_nothing_to_do(scene):
    model, images, labels = scene
    stage = autoattack.Attack().stages(10, 20)["apgd-ce"]
    assert stage.perturb(model, images, labels, ThreatModel(eps=0), generator()) is images
    assert len(stage.perturb(model, images[:0], labels[:0], ThreatModel(eps=0.05), generator())) == 0


def test_a_missing_package_says_what_to_install(scene, monkeypatch):
    monkeypatch.setattr(package, "PACKAGES", ("no_such_package",))
    model, images, labels = scene
    message = "^autoattack needs its package; install it with: pip install pyautoattack$"
    with pytest.raises(UsageError, match=message):
        autoattack.Attack().perturb(model, images, labels, ThreatModel(eps=0.05), generator())
    with pytest.raises(UsageError, match=message):
        autoattack.Attack().describe(10)


def test_the_authors_own_package_is_accepted(scene, monkeypatch, caplog, capsys):
    """Same attacks; its loggers have ``log``, which prints, instead of ``warning``."""
    official = types.ModuleType("autoattack")
    official.AutoAttack = pyautoattack.AutoAttack
    official.checks = types.SimpleNamespace(**vars(pyautoattack.checks))
    original = pyautoattack.checks.check_range_output

    def check_range_output(*args, logger):
        logger.log("Warning: from the checks")
        return original(*args, logger=logger)

    official.checks.check_range_output = check_range_output
    monkeypatch.setitem(sys.modules, "autoattack", official)
    monkeypatch.setattr(package, "PACKAGES", ("autoattack",))
    model, images, labels = scene
    actual = autoattack.Attack(batch=12).perturb(model, images, labels, ThreatModel(eps=0.05), generator(3))
    assert torch.equal(actual, directly(model, images, labels, eps=0.05, seed=3, batch=12))
    said = {record.getMessage() for record in caplog.records if record.name == "auto-attack"}
    assert said == {"Warning: from the checks"}
    assert capsys.readouterr().out == ""


class Steps(nn.Module):
    """Class 0 until a pixel is above .52: no gradient anywhere, so white boxes fail and random search succeeds."""

    def forward(self, images):
        hit = (images[:, :, ::2, ::2] > 0.52).float().amax((1, 2, 3)) + 0 * images.sum((1, 2, 3))
        return torch.stack([1.0 - 2 * hit, *[0.01 * k + 0 * hit for k in range(9)]], 1)


def test_square_that_breaks_what_the_others_left_is_worth_a_warning(caplog):
    images, labels = torch.full((4, 3, 6, 6), 0.5), torch.zeros(4, dtype=torch.long)
    stage = autoattack.Attack().stages(10, 8)["square"]  # the other four of eight fell before
    assert not correct(
        Steps(), stage.perturb(Steps(), images, labels, ThreatModel(eps=0.05), generator()), labels
    ).any()
    assert "Square Attack has decreased the robust accuracy of 50.00%" in caplog.text


@pytest.mark.ci
def test_square_is_measured_by_the_share_of_all_images_that_it_broke(caplog):
    """Two of eight images can be broken; two more stand, and the other four fell before: 25 points of 50."""
    images = torch.full((4, 3, 6, 6), 0.5)
    images[2:] = 0.4  # out of reach of .52
    stage = autoattack.Attack().stages(10, 8)["square"]
    moved = stage.perturb(Steps(), images, torch.zeros(4, dtype=torch.long), ThreatModel(eps=0.05), generator())
    assert correct(Steps(), moved, torch.zeros(4, dtype=torch.long)).tolist() == [False, False, True, True]
    assert "Square Attack has decreased the robust accuracy of 25.00%" in caplog.text


def randomized(logits):
    return logits + 0.01 * torch.randn_like(logits)


def dynamic(logits):
    with torch.enable_grad():
        weight = torch.ones(1, requires_grad=True)
        torch.autograd.grad(2 * weight, weight)
    return logits


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda z: z, None),
        (randomized, "it seems to be a randomized defense"),
        (lambda z: z.softmax(dim=1), "it seems that the output is a probability distribution"),
        (dynamic, "it seems to be a dynamic defense"),
    ],
)
def test_the_packages_own_checks_look_at_the_first_batch_before_the_first_stage(scene, change, said, caplog):
    base, images, _ = scene
    sizes = []

    class Changed(nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return change(base(x))

    wrong = base(images).argmin(1)  # none is right, so that the checks are all that happens
    stages = autoattack.Attack(batch=12).stages(10, 20)
    stages["apgd-ce"].perturb(Changed(), images, wrong, ThreatModel(eps=0.01), generator())
    assert sizes == [1, *[12] * 5, 12, 12, 12, 8]  # classes, random?, probabilities?, dynamic?, what is right
    messages = [record.getMessage() for record in caplog.records]
    assert [message.startswith(said) for message in messages] == [True] if said else messages == []
    sizes.clear()
    caplog.clear()
    stages["fab-t"].perturb(Changed(), images, wrong, ThreatModel(eps=0.01), generator())
    assert sizes == [1, 12, 8]
    assert caplog.records == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_draws_are_the_same_and_its_random_state_stays(scene):
    model, images, labels = (part.to("cuda") for part in scene)
    states = torch.cuda.get_rng_state_all()
    adversarial = autoattack.Attack().perturb(model, images, labels, ThreatModel(eps=0.05), generator())
    assert adversarial.device.type == "cuda"
    assert all(torch.equal(a, b) for a, b in zip(torch.cuda.get_rng_state_all(), states, strict=True))
    start = random_start(images, 0.05, generator()).cpu()
    torch.testing.assert_close(start, random_start(images.cpu(), 0.05, generator()), rtol=0, atol=1e-6)
