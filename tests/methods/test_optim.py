"""LARS against golden values of the released code, timm, a slow loop and its invariant; the cosine at its ends."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from timm.optim.lars import Lars as TimmLars

from methods.common.optim import LARS, cosine

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "lars.json").read_text())


def numbers(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weight(*shape, seed=0, scale=1.0):
    return torch.nn.Parameter(numbers(*shape, seed=seed, scale=scale))


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"lr={c['lr']},scale={c['scale']}")
def test_steps_equal_the_released_code(case):
    i, j, k = torch.arange(3.0)[:, None].double(), torch.arange(4.0).double(), torch.arange(3.0).double()
    w = torch.nn.Parameter(0.1 * (4 * i + j) - 0.5)
    b = torch.nn.Parameter(torch.tensor([0.2, -0.1, 0.05], dtype=torch.float64))
    optimizer = LARS([w, b], lr=case["lr"])
    for t in range(case["steps"]):
        w.grad, b.grad = case["scale"] * torch.cos(4 * i + j + t), 0.01 * torch.sin(k + t)
        optimizer.step()
    assert w.flatten().tolist() == pytest.approx(case["w"], rel=1e-12, abs=1e-12)
    assert b.tolist() == pytest.approx(case["b"], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 100.0])
def test_matrices_move_as_in_timm(scale):
    ours = [weight(4, 5, seed=1), weight(2, 3, 3, 3, seed=2)]
    theirs = copy.deepcopy(ours)
    settings = {"momentum": 0.9, "weight_decay": 1e-4}
    a = LARS(ours, lr=0.3, **settings)
    b = TimmLars(theirs, lr=0.3, nesterov=True, trust_coeff=0.005, trust_clip=True, **settings)
    for t in range(5):
        for n, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = numbers(*p.shape, seed=10 * t + n, scale=scale)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_vectors_move_as_under_plain_sgd_without_decay():
    ours, theirs = weight(7), weight(7)
    a = LARS([ours], lr=0.3, momentum=0.9, weight_decay=0.1)
    b = torch.optim.SGD([theirs], lr=0.3, momentum=0.9, nesterov=True)
    for t in range(4):
        ours.grad, theirs.grad = numbers(7, seed=t), numbers(7, seed=t)
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)


@pytest.mark.parametrize("lr", [1e-4, 1e-2, 0.3])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_length_of_a_step_is_the_smaller_of_both_rates(lr, scale):
    """|dw| / |g + wd w| = min(lr, eta |w| / (|g| + wd |w|)) without momentum."""
    w, wd, eta = weight(6, 4), 1e-2, 0.005
    before, gradient = w.detach().clone(), numbers(6, 4, seed=1, scale=scale)
    w.grad = gradient.clone()
    LARS([w], lr=lr, momentum=0.0, weight_decay=wd, eta=eta).step()
    ratio = (w.detach() - before).norm() / (gradient + wd * before).norm()
    expected = min(lr, float(eta * before.norm() / (gradient.norm() + wd * before.norm())))
    assert ratio.item() == pytest.approx(expected, rel=1e-6)  # eps = 1e-8 is part of the step


class TestZeros:
    def test_a_zero_gradient_moves_nothing(self):
        w = weight(3, 3)
        before = w.detach().clone()
        w.grad = torch.zeros_like(w)
        LARS([w], lr=0.3, weight_decay=0.1).step()
        assert torch.equal(w, before)

    def test_a_zero_weight_moves_at_the_full_rate(self):
        w = torch.nn.Parameter(torch.zeros(3, 3))
        w.grad = torch.ones(3, 3)
        LARS([w], lr=0.3, momentum=0.0).step()
        torch.testing.assert_close(w.detach(), torch.full((3, 3), -0.3), rtol=1e-6, atol=0)

    def test_a_zero_rate_moves_nothing_and_gives_numbers(self):
        w, b = weight(3, 3), weight(3)
        before = w.detach().clone(), b.detach().clone()
        w.grad, b.grad = numbers(3, 3, seed=1), numbers(3, seed=2)
        LARS([w, b], lr=0.0).step()
        assert torch.equal(w, before[0])
        assert torch.equal(b, before[1])

    def test_a_parameter_without_gradient_stays(self):
        w, frozen = weight(3, 3), weight(2, 2, seed=1)
        before = frozen.detach().clone()
        w.grad = numbers(3, 3, seed=1)
        LARS([w, frozen]).step()
        assert torch.equal(frozen, before)
        LARS([frozen]).step()  # nothing at all to do

    def test_what_is_not_a_number_is_not_hidden(self):
        w = weight(3, 3)
        w.grad = torch.full_like(w, torch.nan)
        LARS([w]).step()
        assert w.isnan().all()


def test_counts_how_often_the_schedule_decides():
    """One weight whose own rate is eta |w| / |g|: below lr it decides itself, above lr the schedule does."""
    w, b = weight(4, 4), weight(4)
    optimizer = LARS([w, b], lr=0.1, momentum=0.0, weight_decay=0.0, eta=0.005)
    assert optimizer.schedule_active is None
    rate = 0.005 * float(w.norm().detach()) / float(numbers(4, 4, seed=1).norm())
    for lr in (rate / 2, rate * 2, rate * 2, rate * 4):
        w.grad, b.grad = numbers(4, 4, seed=1), numbers(4, seed=2)
        with torch.no_grad():
            w.copy_(weight(4, 4))
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
    assert optimizer.schedule_active == 0.25  # vectors do not count


def test_saved_state_continues_bitwise():
    def steps(w, optimizer, times):
        for t in times:
            w.grad = numbers(4, 4, seed=t)
            optimizer.step()

    straight = weight(4, 4)
    steps(straight, LARS([straight], lr=0.2), range(6))
    first = weight(4, 4)
    optimizer = LARS([first], lr=0.2)
    steps(first, optimizer, range(3))
    second = torch.nn.Parameter(first.detach().clone())
    resumed = LARS([second], lr=0.9)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(second, resumed, range(3, 6))
    assert torch.equal(second, straight)


def test_twenty_steps_lower_a_quadratic():
    w, b = weight(5, 5), weight(5, seed=1)
    optimizer = LARS([w, b], lr=0.05)

    def loss():
        optimizer.zero_grad()
        value = (w - 1).square().sum() + (b - 1).square().sum()
        value.backward()
        return value.item()

    values = [optimizer.step(loss) for _ in range(20)]
    assert values[-1] < 0.8 * values[0]


@pytest.mark.parametrize(
    "settings", [{"lr": -1.0}, {"momentum": 1.0}, {"weight_decay": -1e-4}, {"eta": -1.0}, {"lr": math.nan}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=f"expected {next(iter(settings))}"):
        LARS([weight(2, 2)], **settings)


class TestCosine:
    def test_ends_and_middle(self):
        assert cosine(0.0, 0.3) == 0.3
        assert cosine(0.5, 0.3) == pytest.approx(0.15, rel=1e-15)
        assert cosine(1.0, 0.3) == 0.0

    def test_it_only_falls(self):
        rates = [cosine(n / 100, 0.3) for n in range(101)]
        assert rates == sorted(rates, reverse=True)

    def test_it_equals_the_schedule_of_torch(self):
        w = weight(1, 1)
        w.grad = torch.zeros_like(w)
        optimizer = torch.optim.SGD([w], lr=0.3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
        for step in range(51):
            assert cosine(step / 50, 0.3) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
            optimizer.step()
            schedule.step()
