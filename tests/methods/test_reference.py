"""Every fast path against its textbook twin: losses, gradients, and whole updates with weights and buffers."""

import copy

import pytest
import torch
from torch import nn

from bench.spec import Budget
from bench.training.state import begun
from bench.training.step import update
from methods.common.losses import coding_rate, invariance, nt_xent
from methods.common.optim import LARS
from tests.reference import losses as textbook
from tests.reference import optim, step
from tests.reference.augment import augment

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


def unit_vectors(views, batch, width, dtype, seed=0):
    z = torch.randn(views, batch, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.functional.normalize(z, dim=-1).to(dtype).requires_grad_()


def relative(a, b):
    """|a - b| / |b| over all entries."""
    return ((a - b).norm() / b.norm()).item()


# ---------------------------------------------------------------- losses and their gradients


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("fast", "slow", "shape"),
    [
        (lambda z: nt_xent(z, 0.07), lambda z: textbook.nt_xent(z[0], z[1], 0.07), (2, 9, 16)),
        (invariance, textbook.invariance, (5, 7, 16)),
        (lambda z: coding_rate(z, 0.2), lambda z: textbook.coding_rate(z, 0.2), (3, 8, 24)),
        (lambda z: coding_rate(z, 0.2), lambda z: textbook.coding_rate(z, 0.2), (3, 24, 8)),
    ],
    ids=["nt_xent", "invariance", "coding_rate", "coding_rate_of_many_images"],
)
def test_losses_and_gradients_equal_the_textbook(fast, slow, shape, dtype):
    z = unit_vectors(*shape, dtype)
    values = fast(z), slow(z)
    gradients = [torch.autograd.grad(value, z)[0] for value in values]
    assert values[0].item() == pytest.approx(values[1].item(), rel=TOLERANCE[dtype])
    assert relative(*gradients) < TOLERANCE[dtype]


# ---------------------------------------------------------------- whole updates


def fast_updates(method, batches):
    """Losses of the updates on these batches, by the method, its adversary and the trainer's update."""
    training = begun(method, method.config.batch, Budget(amount=1, unit="updates"), torch.device("cpu"))
    values = []
    for views in batches:
        for loss in training.adversary.losses(method, views):
            values.append(loss.detach())
            update(training, loss)
    return values


def slow_updates(network, config, batches):
    """The same by the textbook."""
    pair = hasattr(config, "temperature")
    loss = (
        step.simclr(network, config.temperature)
        if pair
        else step.emp_ssl(network, config.invariance, config.coding_eps)
    )
    optimizer = optim.LARS(network.parameters(), config.lr, config.momentum, config.weight_decay, config.trust)
    moves = slice(1, 2) if pair else slice(0, config.views)
    delta = torch.zeros_like(batches[0][moves])
    attack = {"moves": moves, "eps": config.eps, "step": config.step}
    values = []
    for views in batches:
        if config.adversary == "none":
            values.append(step.clean_update(loss, views, optimizer))
        elif config.adversary == "pgd":
            in_eval_mode = config.attack_batch_norm == "eval"
            values.append(
                step.pgd_update(
                    network, loss, views, optimizer, **attack, steps=config.steps, in_eval_mode=in_eval_mode
                )
            )
        else:
            some, delta = step.free_update(loss, views, delta, optimizer, **attack, replays=config.replays)
            values.extend(some)
    return values


def both(tiny, name, dtype, batches=2, **settings):
    """(fast network, textbook network, their losses) after updates on two batches from the same weights."""
    method = tiny(name, channels=3, **settings).to(dtype).train()
    network = copy.deepcopy(nn.Sequential(method.encoder, method.projector))
    generator = torch.Generator().manual_seed(1)
    shape = (method.config.views, method.config.batch, 3, 12, 12)
    views = [torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(batches)]
    slow = slow_updates(network, method.config, views)
    fast = fast_updates(method, views)
    return nn.Sequential(method.encoder, method.projector), network, fast, slow


METHODS = ["emp_ssl", "emp_ssl_adv", "cf_amc_ssl", "simclr", "simclr_adv", "simclr_free"]


@pytest.mark.parametrize("name", METHODS)
def test_updates_equal_the_textbook_in_float64(tiny, name):
    fast, slow, fast_losses, slow_losses = both(tiny, name, torch.float64)
    assert len(fast_losses) == len(slow_losses) == (6 if "free" in name or name == "cf_amc_ssl" else 2)
    torch.testing.assert_close(torch.stack(fast_losses), torch.stack(slow_losses), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fast.state_dict(), slow.state_dict(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_an_update_equals_the_textbook_in_float32(tiny, name):
    """One step of an attack: after more of them, a sign that rounding has turned has moved its pixel by alpha."""
    fast, slow, fast_losses, slow_losses = both(tiny, name, torch.float32, batches=1, steps=1, replays=1)
    torch.testing.assert_close(torch.stack(fast_losses), torch.stack(slow_losses), rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(fast.state_dict().values(), slow.state_dict().values(), strict=True):
        assert relative(ours.double(), theirs.double()) < 1e-4 if theirs.any() else not ours.any()


@pytest.mark.parametrize("mode", ["batch", "eval"])
@pytest.mark.parametrize("name", ["emp_ssl_adv", "simclr_adv"])
def test_attacks_equal_the_textbook_in_both_modes_of_batch_norm(tiny, name, mode):
    fast, slow, _, _ = both(tiny, name, torch.float64, attack_batch_norm=mode)
    torch.testing.assert_close(fast.state_dict(), slow.state_dict(), rtol=1e-9, atol=1e-9)


def test_the_comparison_would_see_one_step_of_the_attack_missing(tiny):
    five, _, _, _ = both(tiny, "emp_ssl_adv", torch.float64)
    four, _, _, _ = both(tiny, "emp_ssl_adv", torch.float64, steps=4)
    different = [relative(a, b) for a, b in zip(five.parameters(), four.parameters(), strict=True)]
    assert max(different) > 1e-4


# ---------------------------------------------------------------- the optimizer and the pictures


def test_lars_equals_the_textbook_where_a_weight_or_its_gradient_is_zero():
    weights = [torch.ones(3, 2).double(), torch.zeros(2, 2).double(), torch.ones(2, 3).double(), torch.ones(4).double()]
    fast, slow = [[nn.Parameter(w.clone()) for w in weights] for _ in range(2)]
    ours, theirs = LARS(fast), optim.LARS(slow)
    for scale in (0.01, 100.0, 0.0):
        for number, (a, b) in enumerate(zip(fast, slow, strict=True)):
            gradient = scale * torch.arange(1.0, a.numel() + 1).double().view_as(a) * (number != 2)
            a.grad, b.grad = gradient, gradient.clone()
        ours.step()
        theirs.step()
        torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    assert fast[2].equal(weights[2])


OFF = {"flip": 0, "jitter": (0, 0, 0, 0), "jitter_probability": 0, "gray": 0, "blur": 0, "solarize": 0}


def test_views_by_pil_are_the_pictures_themselves_where_every_stage_is_off():
    images = torch.randint(0, 256, (3, 3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    views = augment(images, 2, scale=(1, 1), ratio=(1, 1), **OFF)
    assert views.shape == (2, 3, 3, 12, 12)
    assert views.equal((images / 255).expand_as(views))


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ({"flip": 1}, lambda x: x.flip(-1)),
        ({"solarize": 1}, lambda x: torch.where(x < 128, x, 255 - x)),
    ],
    ids=["flip", "solarize"],
)
def test_stages_by_pil_happen_with_probability_one(stage, expected):
    images = torch.randint(0, 256, (3, 3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    views = augment(images, 1, scale=(1, 1), ratio=(1, 1), **OFF | stage)
    assert (views[0] * 255).round().equal(expected(images.float()))
