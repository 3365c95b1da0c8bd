"""The losses against golden values of the released code, against slow loops, and at their extremes."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from methods.common.losses import coding_rate, invariance, nt_xent

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())


def unit(*shape, seed=0, dtype=torch.float64):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def golden_embeddings(views, batch, dim, seed):
    """The closed form stated in the golden file."""
    v = torch.arange(views, dtype=torch.float64)[:, None, None]
    b = torch.arange(batch, dtype=torch.float64)[None, :, None]
    d = torch.arange(dim, dtype=torch.float64)[None, None, :]
    z = torch.sin(1.7 * (b + 1) * (d + 1) + 0.3 * v * (d + 2) + seed)
    z = z + 0.25 * torch.cos(0.9 * (b + 2) * (v + 1) + 0.11 * d * seed)
    return z / z.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['views']}x{c['batch']}x{c['dim']}")
def test_losses_equal_the_released_code(case):
    z = golden_embeddings(case["views"], case["batch"], case["dim"], case["seed"])
    assert invariance(z).item() == pytest.approx(case["emp_invariance"], rel=1e-9)
    assert coding_rate(z, 0.2).item() == pytest.approx(case["emp_tcr"], rel=1e-9)
    assert (200 * invariance(z) + coding_rate(z, 0.2)).item() == pytest.approx(case["emp_total"], rel=1e-9)
    for temperature in (0.5, 0.07):
        assert nt_xent(z[:2], temperature).item() == pytest.approx(case[f"nt_xent_tau_{temperature}"], rel=1e-9)


# ---------------------------------------------------------------- slow loops from the papers' equations


def slow_nt_xent(z, temperature):
    """SimCLR, eq. 1 and algorithm 1."""
    views, batch, _ = z.shape
    rows = [(v, b) for v in range(views) for b in range(batch)]
    total = 0.0
    for v, b in rows:
        others = [math.exp(float(z[v, b] @ z[w, c]) / temperature) for w, c in rows if (w, c) != (v, b)]
        total -= math.log(math.exp(float(z[v, b] @ z[1 - v, b]) / temperature) / sum(others))
    return total / len(rows)


def slow_invariance(z):
    views, batch, _ = z.shape
    cosines = []
    for b in range(batch):
        mean = sum(z[v, b] for v in range(views)) / views
        cosines += [float(z[v, b] @ mean / (z[v, b].norm() * mean.norm())) for v in range(views)]
    return -sum(cosines) / len(cosines)


def slow_coding_rate(z, eps):
    """EMP-SSL, with the D x D matrix."""
    views, batch, width = z.shape
    rates = [0.5 * torch.logdet(torch.eye(width) + width / (batch * eps) * z[v].T @ z[v]) for v in range(views)]
    return -float(sum(rates) / views)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("temperature", [0.07, 0.5, 1.0])
def test_nt_xent_equals_the_slow_loop(temperature):
    z = unit(2, 5, 7)
    assert nt_xent(z, temperature).item() == pytest.approx(slow_nt_xent(z, temperature), rel=1e-12)


@pytest.mark.parametrize("views", [1, 2, 5])
def test_invariance_equals_the_slow_loop(views):
    z = unit(views, 6, 9)
    assert invariance(z).item() == pytest.approx(slow_invariance(z), rel=1e-12)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("batch", "width"), [(4, 12), (12, 4), (7, 7), (1, 5)])
def test_gram_form_equals_the_form_with_a_matrix_of_features(batch, width):
    z = unit(3, batch, width)
    assert coding_rate(z, 0.2).item() == pytest.approx(slow_coding_rate(z, 0.2), rel=1e-11)


# ---------------------------------------------------------------- signs and extremes


def test_identical_views_cost_less_than_unrelated_ones():
    same, other = unit(1, 16, 32).expand(2, -1, -1), unit(2, 16, 32)
    assert nt_xent(same, 0.5) < nt_xent(other, 0.5)
    assert invariance(same) < invariance(other)
    assert invariance(same).item() == pytest.approx(-1, abs=1e-12)


def test_collapsed_embeddings_cost_more_than_spread_ones():
    collapsed, spread = unit(1, 1, 32).expand(2, 16, -1), torch.eye(16, 32, dtype=torch.float64).expand(2, -1, -1)
    assert nt_xent(collapsed, 0.5).item() == pytest.approx(math.log(31), rel=1e-12)  # no other anchor is farther
    assert nt_xent(spread, 0.5) < nt_xent(collapsed, 0.5)
    c = 32 / (16 * 0.2)
    assert coding_rate(collapsed, 0.2).item() == pytest.approx(-0.5 * math.log(1 + 16 * c), rel=1e-12)
    assert coding_rate(spread, 0.2) < coding_rate(collapsed, 0.2) < 0


def test_orthogonal_embeddings_reach_the_bound_of_the_coding_rate():
    """1/2 B ln(1 + c) with c = D / (B eps): 197.754 at B = 100, D = 1024, eps = .2."""
    z = torch.eye(100, 1024, dtype=torch.float64)[None]
    assert coding_rate(z, 0.2).item() == pytest.approx(-0.5 * 100 * math.log(1 + 1024 / 20), rel=1e-12)
    assert coding_rate(z, 0.2).item() == pytest.approx(-197.754, abs=1e-3)
    for seed in range(5):
        assert coding_rate(unit(2, 10, 30, seed=seed), 0.2) > -0.5 * 10 * math.log(1 + 30 / (10 * 0.2))


@pytest.mark.parametrize("loss", [lambda z: nt_xent(z, 0.07), invariance, lambda z: coding_rate(z, 0.2)])
class TestEveryLoss:
    def test_order_of_images_and_views_does_not_matter(self, loss):
        z = unit(2, 8, 12)
        permutation = torch.randperm(8, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(loss(z[:, permutation]), loss(z), rtol=1e-12, atol=0)
        torch.testing.assert_close(loss(z.flip(0)), loss(z), rtol=1e-12, atol=0)

    def test_gradient_is_the_numerical_one(self, loss):
        z = unit(2, 3, 4).requires_grad_()
        assert torch.autograd.gradcheck(loss, z)

    def test_gradient_is_finite_where_embeddings_collapse(self, loss):
        z = unit(1, 1, 16, dtype=torch.float32).repeat(2, 8, 1).requires_grad_()
        loss(z).backward()
        assert z.grad.isfinite().all()

    def test_twenty_steps_lower_it(self, loss):
        w = unit(2, 8, 12, dtype=torch.float32).requires_grad_()
        first = loss(F.normalize(w, dim=-1)).item()
        for _ in range(20):
            (gradient,) = torch.autograd.grad(loss(F.normalize(w, dim=-1)), w)
            w = (w - 0.05 * gradient).detach().requires_grad_()
        assert loss(F.normalize(w, dim=-1)).item() < first - 1e-3

    def test_half_precision_is_widened_also_inside_autocast(self, loss):
        z = unit(2, 8, 12, dtype=torch.float32).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(z)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(z.float()), rtol=1e-6, atol=0)

    def test_what_is_not_a_number_stays_so_and_does_not_raise(self, loss):
        z = unit(2, 8, 12)
        z[0, 3] = torch.nan
        assert not loss(z).isfinite()
