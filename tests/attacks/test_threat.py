"""The geometry of l-inf and l2: properties over many balls, and oracles that know nothing of how it is computed."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from attacks.common.base import config_hash, maximize
from attacks.common.threat import GEOMETRIES, geometry
from bench import registry
from bench.evaluation.search import verify
from bench.evaluation.traces import AttackError
from bench.radius import NORMS
from bench.spec import ThreatModel

SEEDS = st.integers(0, 2**32)
RADII = {"linf": st.floats(0, 1), "l2": st.floats(0, 8)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def scene(seed, eps, shape=(3, 2, 3, 4), reach=3.0):
    """Clean pictures with pixels at both borders, and others around them: inside, at the border and far outside."""
    draw = generator(seed)
    clean = (torch.rand(shape, generator=draw) * 1.4 - 0.2).clamp(0, 1)
    scale = torch.rand(shape[0], generator=draw)[(...,) + (None,) * (len(shape) - 1)]
    return clean, clean + reach * eps * scale * torch.randn(shape, generator=draw)


def length(moves, norm):
    """Of each picture, in plain numpy."""
    flat = moves.double().numpy().reshape(*moves.shape[:-3], -1)
    return np.abs(flat).max(-1) if norm == "linf" else np.sqrt((flat**2).sum(-1))


@st.composite
def balls(draw):
    norm = draw(st.sampled_from(NORMS))
    return geometry(ThreatModel(norm=norm, eps=draw(RADII[norm]))), norm


# ---------------------------------------------------------------- of both


@settings(deadline=None)  # the first pays for what torch does but once
@given(ball=balls(), seed=SEEDS)
def test_projected_pictures_are_in_ball_and_box_and_stay(ball, seed):
    ball, norm = ball
    clean, images = scene(seed, ball.eps)
    projected = ball.project(images, clean)
    assert (length(projected - clean, norm) <= ball.eps + 2e-7 * max(1, ball.eps)).all()
    assert projected.min() >= 0
    assert projected.max() <= 1
    assert projected.dtype == images.dtype
    torch.testing.assert_close(ball.project(projected, clean), projected, rtol=0, atol=2e-7)


@given(ball=balls(), seed=SEEDS)
def test_what_is_inside_does_not_move(ball, seed):
    ball, norm = ball
    clean, images = scene(seed, ball.eps)
    inside = clean + (images - clean) * (0.99 * ball.eps / np.maximum(length(images - clean, norm), 1e-12).max())
    inside = inside.clamp(0, 1)
    torch.testing.assert_close(ball.project(inside, clean), inside, rtol=0, atol=1e-7)
    assert torch.equal(ball.project(clean, clean), clean)


@given(ball=balls(), seed=SEEDS)
def test_no_picture_in_ball_and_box_is_nearer_than_the_projected_one(ball, seed):
    """A point p of a convex set is the nearest one to y where (y - p) . (z - p) <= 0 for all z of the set."""
    ball, norm = ball
    clean, images = scene(seed, ball.eps)
    projected = ball.project(images, clean)
    out = (images - projected).double()
    for each in range(20):
        wild = clean + 3 * ball.eps * torch.randn(clean.shape, generator=generator(each))
        wild = clean + (wild - clean) * (ball.eps / torch.from_numpy(length(wild - clean, norm)).clamp_min(1e-12))[
            :, None, None, None
        ].float().clamp(max=1)
        other = wild.clamp(0, 1)  # towards the box is towards the clean picture: it stays in the ball
        assert ((out * (other - projected)).sum((1, 2, 3)) <= 1e-5 * max(1, ball.eps) ** 2).all()


@given(ball=balls(), seed=SEEDS)
def test_starts_are_in_ball_and_box_and_repeat(ball, seed):
    ball, norm = ball
    clean, _ = scene(seed, ball.eps)
    start = ball.start(clean, generator(seed))
    assert (length(start - clean, norm) <= ball.eps + 2e-7 * max(1, ball.eps)).all()
    assert start.min() >= 0
    assert start.max() <= 1
    assert torch.equal(ball.start(clean, generator(seed)), start)


@given(ball=balls(), seed=SEEDS)
def test_no_direction_of_length_1_rises_more_than_the_steepest(ball, seed):
    ball, norm = ball
    gradient = torch.randn(3, 2, 3, 4, generator=generator(seed))
    steepest = ball.steepest(gradient)
    np.testing.assert_allclose(length(steepest, norm), 1, rtol=1e-6)
    other = torch.randn(3, 2, 3, 4, generator=generator(seed + 1))
    other = other / torch.from_numpy(length(other, norm)).float()[:, None, None, None]
    assert ((gradient * (steepest - other)).sum((1, 2, 3)) >= -1e-5).all()


@given(ball=balls(), seed=SEEDS)
def test_the_distance_is_that_of_each_picture(ball, seed):
    ball, norm = ball
    clean, images = scene(seed, 1, shape=(2, 5, 3, 4, 4))  # crops: each is a picture of its own
    found = ball.distance(images, clean)
    assert found.shape == (2, 5)
    np.testing.assert_allclose(found.numpy(), length(images - clean, norm), rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [0.0, 1e-42, 1e-30, 1e30])
def test_a_gradient_of_any_size_is_a_step_of_length_1_and_none_is_none(norm, scale):
    gradient = scale * torch.tensor([3.0, 0.0, -4.0]).reshape(1, 3, 1, 1)
    step = geometry(ThreatModel(norm=norm, eps=1)).steepest(gradient)
    assert step.isfinite().all()
    assert float(length(step, norm)[0]) == pytest.approx(float(scale > 1e-40), abs=1e-6) or scale == 1e-42


@pytest.mark.parametrize("norm", NORMS)
def test_a_ball_of_radius_0_is_the_clean_picture(norm):
    ball = geometry(ThreatModel(norm=norm, eps=0))
    clean, images = scene(0, 1)
    assert torch.equal(ball.project(images, clean), clean)
    assert torch.equal(ball.start(clean, generator()), clean)


def test_every_norm_has_its_geometry_and_its_label():
    assert tuple(GEOMETRIES) == NORMS
    labels = [
        ThreatModel(norm=norm, eps=eps).label for norm, eps in (("linf", 8 / 255), ("l2", 0.5), ("l2", 128 / 255))
    ]
    assert labels == ["8/255", "l2 0.5", "l2 128/255"]
    with pytest.raises(ValidationError, match=r"eps of l-inf in \[0, 1\], got 1.5"):
        ThreatModel(eps=1.5)
    assert ThreatModel(norm="l2", eps=1.5).eps == 1.5


KNOWN = {  # as they were before there was another norm (2357ee7)
    "pgd": "743eea1594bd385c",
    "fgsm": "98e7b80d3790379b",
    "noise": "dfc643557cf073a1",
    "pgd_crop": "a39d5b75d0385305",
    "none": "2952778db8c9a5e1",
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_hash_of_an_attack_in_l_inf_stays_what_it_was(name):
    assert config_hash(registry.load("attack", name).Attack().describe(10)) == KNOWN[name]


# ---------------------------------------------------------------- of l2 alone


def dykstra(image, clean, eps, rounds=4000):
    """The nearest point of ball and box by alternating projections with Dykstra's corrections, in numpy."""
    point, of_ball, of_box = image.copy(), np.zeros_like(image), np.zeros_like(image)
    for _ in range(rounds):
        away = point + of_ball - clean
        distance = np.sqrt((away**2).sum())
        inside = clean + away * min(1, eps / distance) if distance else clean
        of_ball = point + of_ball - inside
        point = np.clip(inside + of_box, 0, 1)
        of_box = inside + of_box - point
    return point


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, eps=st.floats(0.05, 1.5))
def test_l2_is_what_alternating_projections_end_at(seed, eps):
    clean, images = scene(seed, eps, shape=(1, 1, 2, 3))
    found = geometry(ThreatModel(norm="l2", eps=eps)).project(images, clean)
    expected = dykstra(images.double().numpy(), clean.double().numpy(), eps)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-4)  # alternation converges slowly where both touch


@given(seed=SEEDS, eps=st.floats(0.01, 0.4))
def test_l2_without_a_box_in_the_way_shortens_the_move(seed, eps):
    draw = generator(seed)
    clean, move = torch.full((2, 1, 4, 4), 0.5), torch.randn(2, 1, 4, 4, generator=draw)
    found = geometry(ThreatModel(norm="l2", eps=eps)).project(clean + move, clean)
    expected = clean + eps * move / move.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_l2_gives_what_the_box_takes_to_the_other_pixels():
    """Two pixels at .5 and .9, moved far along (3, 4), radius .45: the second stops at 1 after .1, and the first goes
    sqrt(.45^2 - .1^2) instead of .27."""
    clean = torch.tensor([0.5, 0.9]).reshape(1, 1, 1, 2)
    images = clean + 100 * torch.tensor([3.0, 4.0]).reshape(1, 1, 1, 2)
    found = geometry(ThreatModel(norm="l2", eps=0.45)).project(images, clean)
    expected = torch.tensor([0.5 + math.sqrt(0.45**2 - 0.1**2), 1.0]).reshape(1, 1, 1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_l2_of_a_wide_ball_is_the_box():
    clean, images = scene(1, 1)
    assert torch.equal(geometry(ThreatModel(norm="l2", eps=100)).project(images, clean), images.clamp(0, 1))


def test_l2_starts_fill_the_ball_evenly():
    """Of points that are uniform in d dimensions, (distance / eps)^d is uniform in [0, 1] and no direction is ahead."""
    clean = torch.full((4000, 1, 2, 2), 0.5)
    ball = geometry(ThreatModel(norm="l2", eps=0.2))
    moves = ball.start(clean, generator()) - clean
    share = (ball.distance(moves, torch.zeros_like(moves)) / 0.2) ** 4
    assert abs(float(share.mean()) - 1 / 2) < 0.015  # the standard error is .0046
    assert abs(float(share.var()) - 1 / 12) < 0.005
    assert (moves.mean(0).abs() < 0.006).all()  # .0012


def test_l2_reaches_the_exact_optimum_of_a_linear_model():
    """Two classes: the ball lowers the margin by exactly eps * ||w0 - w1||_2."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).requires_grad_(False)
    images, labels = torch.full((4, 3, 4, 4), 0.5), torch.zeros(4, dtype=torch.long)
    model[1].bias[:] = torch.tensor([2.0, 0.0])  # so that no image falls, and the loop goes on
    threat = ThreatModel(norm="l2", eps=0.3)
    # steps so long that nothing is left of the start
    moved = maximize(model, images, labels, threat, steps=10, step=10, generator=generator())
    margins = [(logits[:, 0] - logits[:, 1]).mean() for logits in (model(images), model(moved))]
    expected = 0.3 * (model[1].weight[0] - model[1].weight[1]).norm()
    torch.testing.assert_close(margins[0] - margins[1], expected, rtol=1e-4, atol=0)


# ---------------------------------------------------------------- held to it by the evaluation


@pytest.mark.parametrize(
    ("norm", "eps", "said"), [("linf", 0.1, r"0\.102 at eps 0\.1"), ("l2", 2.0, r"2.0\d+ in l2 at eps 2")]
)
def test_a_picture_outside_its_ball_is_refused_and_one_inside_is_not(norm, eps, said):
    clean = torch.full((2, 3, 8, 8), 0.5)
    ball = geometry(ThreatModel(norm=norm, eps=eps))
    step = ball.steepest(torch.ones_like(clean))
    threat = ThreatModel(norm=norm, eps=eps)
    verify(clean + eps * step, clean, threat, "mine")
    further = clean.clone()
    further[1] += 1.02 * eps * step[1]
    with pytest.raises(AttackError, match=f"the attack mine left its threat model: distance {said}"):
        verify(further, clean, threat, "mine")


def test_what_is_in_the_l2_ball_may_be_far_outside_the_l_inf_one():
    clean = torch.full((1, 1, 2, 2), 0.2)
    moved = clean.clone()
    moved[0, 0, 0, 0] = 0.9
    verify(moved, clean, ThreatModel(norm="l2", eps=0.71), "mine")
    with pytest.raises(AttackError, match=r"distance 0\.7 at eps 0\.1"):
        verify(moved, clean, ThreatModel(eps=0.1), "mine")
