"""The faults of the paper's released code (arXiv:2501.03507), each behind its setting: on as there, off without it.

The oracles are plain loops that share nothing with ``methods`` but the weights: explicit deltas, losses from their
equations, gradients of the weights at every iterate.
"""

import copy
import math

import pytest
import torch
from torch import nn

from bench.device.device import place
from bench.random import Draws
from bench.spec import Budget
from bench.training.train import train
from methods.common.adversary import ADVERSARIES
from methods.common.optim import LARS, cosine

EPS, STEP, IMAGES = 0.1, 0.032, 6
CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64; a bias before batch norm has gradient 0
PGD = {"leak_attack_gradients": True, "attack_batch_norm": "released"}
FREE = {"horizon": "batches", "clamp_carried": False}
RELEASED = {
    "emp_ssl_adv": PGD,
    "simclr_adv": PGD | {"attack_pair": "x2"},
    "cf_amc_ssl": FREE,
    "simclr_free": FREE,
}


def ids_from(first):
    return torch.arange(first, first + IMAGES)


def views_of(method, images, first=0):
    ids = ids_from(first)
    return method.augment(images.images[ids], Draws(0, 0, ids, method.config.views)).double()


def losses_of(method, views, draws=None):
    return ADVERSARIES[method.config.adversary](method.config).losses(method, views, draws=draws)


def climbed_by(method):
    """The moved views on which the attack asks for its loss, in order, and whether a weight then takes gradients."""
    points, loss = [], method.adversarial_loss

    def recorded(moved, clean):
        points.append((moved.detach().clone(), any(p.requires_grad for p in method.parameters())))
        return loss(moved, clean)

    method.adversarial_loss = recorded
    return points


def batches_counted(method):
    (count,) = {int(m.num_batches_tracked) for m in method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    return count


# ---------------------------------------------------------------- the textbook


def embedded(method, images):
    z = method.projector(method.encoder(images))
    return z / z.norm(dim=1, keepdim=True)


def loss_of_pair(method, a, b):
    """NT-Xent at temperature .07, anchor by anchor."""
    z, n = torch.cat([embedded(method, a), embedded(method, b)]), len(a)
    terms = []
    for anchor in range(2 * n):
        others = [other for other in range(2 * n) if other != anchor]
        terms.append((z[others] @ z[anchor] / 0.07).logsumexp(0) - z[anchor] @ z[(anchor + n) % (2 * n)] / 0.07)
    return sum(terms) / len(terms)


def loss_of_many(method, views):
    """200 times minus the mean cosine to the mean embedding, minus the mean coding rate (D x D form, .2 unsquared)."""
    count, batch = views.shape[:2]
    z = embedded(method, views.flatten(0, 1)).view(count, batch, -1)
    mean, width = z.mean(dim=0), z.shape[2]
    cosines = (z * mean).sum(dim=2) / mean.norm(dim=1)
    one = torch.eye(width, dtype=z.dtype)
    rates = [torch.logdet(one + width / (batch * 0.2) * z[v].T @ z[v]) / 2 for v in range(count)]
    return -200 * cosines.mean() - sum(rates) / count


def objectives(method, views, attack_pair="x1"):
    """(what may move, the loss that the attack climbs, the loss of the update), the losses as functions of delta."""
    if len(views) > 2:
        return views, *[lambda delta: loss_of_many(method, views + delta)] * 2
    x1, x2 = views
    partner = {"x1": x1, "x2": x2}[attack_pair]
    return x2, *[lambda delta, a=a: loss_of_pair(method, a, x2 + delta) for a in (partner, x1)]


def stepped(x, delta, gradient):
    """One signed step of delta, clamped to the ball and then to the valid range of x."""
    delta = (delta + STEP * gradient.sign()).clamp(-EPS, EPS)
    return torch.minimum(torch.maximum(delta, -x), 1 - x)


def six_gradients(method, views, attack_pair="x1"):
    """Gradients of the weights at delta_0 ... delta_4, where the attack climbs, and at delta_5, where the update is."""
    x, climbed, trained = objectives(method, views, attack_pair)
    weights, delta, found = list(method.parameters()), torch.zeros_like(x), []
    for _ in range(5):
        delta.requires_grad_()
        *of_weights, of_delta = torch.autograd.grad(climbed(delta), [*weights, delta])
        found.append(of_weights)
        delta = stepped(x, delta.detach(), of_delta)
    return [*found, torch.autograd.grad(trained(delta), weights)]


@pytest.fixture
def small(tiny):
    """Methods in float64, where no sign of a gradient hangs on the order of a sum."""

    def build(name, **settings):
        return tiny(name, **settings).double().train()

    return build


# ---------------------------------------------------------------- gradients of the attack (A1, A7)


@pytest.mark.parametrize("name", ["emp_ssl_adv", "simclr_adv"])
class TestGradients:
    def test_as_released_the_update_is_the_sum_of_six_terms(self, name, small, digits):
        method = small(name, **RELEASED[name])
        views = views_of(method, digits)
        terms = six_gradients(copy.deepcopy(method), views, attack_pair="x2")
        loss = next(losses_of(method, views))
        for weight, *each in zip(method.parameters(), *terms[:5], strict=True):
            torch.testing.assert_close(weight.grad, sum(each), **CLOSE)
        loss.backward()
        for weight, *each in zip(method.parameters(), *terms, strict=True):
            torch.testing.assert_close(weight.grad, sum(each), **CLOSE)

    def test_sound_it_is_the_gradient_at_the_last_iterate(self, name, small, digits):
        method = small(name, attack_batch_norm="batch")
        views = views_of(method, digits)
        *climbing, last = six_gradients(copy.deepcopy(method), views)
        points = climbed_by(method)
        loss = next(losses_of(method, views))
        assert [takes for _, takes in points] == [False] * 5
        assert all(weight.grad is None and weight.requires_grad for weight in method.parameters())
        loss.backward()
        for weight, expected in zip(method.parameters(), last, strict=True):
            torch.testing.assert_close(weight.grad, expected, **CLOSE)
        leaked = [sum(each).norm() for each in zip(*climbing, strict=True)]
        assert max(leaked) > 0.5 * max(expected.norm() for expected in last)  # the test would see a leak

    def test_a_frozen_weight_stays_frozen(self, name, small, digits):
        method = small(name)
        first = next(method.encoder.parameters()).requires_grad_(False)
        next(losses_of(method, views_of(method, digits)))
        assert [p.requires_grad for p in method.parameters()].count(False) == 1
        assert not first.requires_grad

    def test_the_trainer_steps_on_what_was_left_and_clears_it(self, name, tiny, digits):
        """Two updates of train() are two LARS steps on the gradients that the attack and its loss have left."""
        cpu = torch.device("cpu")
        method = place(tiny(name, **RELEASED[name]), cpu).train()
        oracle, config, augment, order = copy.deepcopy(method), method.config, method.augment, []
        method.augment = lambda images, draws: order.append(views := augment(images, draws)) or views
        train(method, digits.first(2 * IMAGES), Budget.parse("2up"), 0, cpu)
        optimizer = LARS(oracle.parameters(), config.lr, config.momentum, config.weight_decay, config.trust)
        for update, views in enumerate(order[-2:]):
            optimizer.param_groups[0]["lr"] = cosine(update / 2, config.lr)
            optimizer.zero_grad()
            next(losses_of(oracle, views)).backward()
            optimizer.step()
        for ours, theirs in zip(method.parameters(), oracle.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # float32, the same operations


# ---------------------------------------------------------------- batch norm (A6, A7)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("emp_ssl_adv", RELEASED["emp_ssl_adv"], 6),
        ("simclr_adv", RELEASED["simclr_adv"], 12),
        ("simclr_adv", RELEASED["simclr_adv"] | {"attack_pair": "x1"}, 1 + 5 + 2),
        ("cf_amc_ssl", RELEASED["cf_amc_ssl"], 1),
        ("simclr_free", RELEASED["simclr_free"], 2),
        ("emp_ssl_adv", {}, 1),
        ("simclr_adv", {"attack_pair": "x2", "attack_batch_norm": "batch"}, 2),
    ],
)
def test_running_statistics_are_fed_so_often_per_update(name, settings, expected, small, digits):
    method = small(name, **settings)
    for update, loss in enumerate(losses_of(method, views_of(method, digits)), start=1):
        assert batches_counted(method) == update * expected
        loss.backward()
    assert update == method.config.updates_per_batch


# ---------------------------------------------------------------- the learning rate (A2, A3)


class TestLearningRate:
    @pytest.mark.parametrize("replays", [2, 3, 5])
    def test_with_a_horizon_in_batches_is_the_cosine_stepped_in_every_replay(self, replays, small):
        """T_max = 50 batches and m steps for each, by torch's own scheduler."""
        config = small("cf_amc_ssl", replays=replays, **FREE).config
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
        for update in range(50 * replays + 1):
            rate = cosine(update / (50 * replays) * config.schedule_waves, config.lr)
            assert rate == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
            optimizer.step()
            scheduler.step()

    @pytest.mark.parametrize(
        ("replays", "thirds"), [(3, [0.3, 0, 0.3, 0]), (2, [0.3, 0.15 * (1 + math.cos(2 * math.pi / 3)), 0.075, 0.3])]
    )
    def test_at_the_thirds_and_at_the_end(self, replays, thirds, small):
        config = small("simclr_free", replays=replays, **FREE).config
        rates = [cosine(third / 3 * config.schedule_waves, config.lr) for third in range(4)]
        assert rates == pytest.approx(thirds, abs=1e-12)

    @pytest.mark.parametrize(
        ("name", "settings"), [("cf_amc_ssl", {}), ("emp_ssl_adv", {"horizon": "batches"}), ("emp_ssl", FREE)]
    )
    def test_is_one_half_wave_otherwise(self, name, settings, small):
        assert small(name, **settings).config.schedule_waves == 1

    @pytest.mark.parametrize(("horizon", "waves"), [("batches", 2), ("scaled", 1)])
    def test_of_a_training(self, horizon, waves, tiny, digits):
        """Four batches with an even m: the last of 8 updates is near the peak, or near 0."""
        method = tiny("cf_amc_ssl", replays=2, horizon=horizon)
        result = train(method, digits.first(4 * IMAGES), Budget.parse("1ep"), 0, torch.device("cpu"))
        assert result.updates == 8
        assert result.last_lr == pytest.approx(0.15 * (1 + math.cos(math.pi * waves * 7 / 8)), rel=1e-9)


# ---------------------------------------------------------------- the delta of other images (A4)


@pytest.mark.parametrize("name", ["cf_amc_ssl", "simclr_free"])
class TestCarriedDelta:
    def test_is_not_clamped_in_the_first_replay(self, name, small, digits):
        """Weights and deltas of two batches are those of the textbook loop, whose first replay leaves [0, 1]."""
        method = small(name, **RELEASED[name])
        oracle, adversary = copy.deepcopy(method), ADVERSARIES["free"](method.config)
        batches = [views_of(method, digits), views_of(method, digits, first=IMAGES)]
        delta, outside = None, []
        for views in batches:
            x, _, trained = objectives(oracle, views)
            delta = torch.zeros_like(x) if delta is None else delta
            losses = adversary.losses(method, views)
            for _ in range(3):
                ours = next(losses)
                delta.requires_grad_()
                theirs = trained(delta)
                assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)
                outside.append(bool((x + delta).min() < -1e-3))
                descend(method, ours)
                descend(oracle, theirs)
                delta = stepped(x, delta.detach(), delta.grad)
            losses.close()
            torch.testing.assert_close(adversary.delta.view_as(delta), delta, **CLOSE)
        assert outside == [False, False, False, True, False, False]
        for ours, theirs in zip(method.parameters(), oracle.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)

    def test_makes_another_loss_than_a_clamped_one(self, name, small, digits):
        found = []
        for clamp in (True, False):
            method = small(name, clamp_carried=clamp)
            adversary = ADVERSARIES["free"](method.config)
            adversary.delta = torch.full_like(views_of(method, digits)[method.moves], EPS)
            found.append(next(adversary.losses(method, views_of(method, digits))))
        assert abs(found[0] - found[1]) > 1e-6


def descend(method, loss, lr=0.01):
    """A plain gradient step, cleared after it."""
    loss.backward()
    with torch.no_grad():
        for p in method.parameters():
            p -= lr * p.grad
    method.zero_grad()


# ---------------------------------------------------------------- the start (A8)


class TestRandomStart:
    def start(self, method, images, epoch=0):
        """(delta of the first iterate, the views that may move)."""
        ids = ids_from(0)
        draws = Draws(0, epoch, ids, method.config.views)
        views = method.augment(images.images[ids], draws).double()
        points = climbed_by(method)
        next(losses_of(method, views, draws))
        return points[0][0] - views[method.moves], views[method.moves]

    @pytest.mark.parametrize("name", ["emp_ssl_adv", "simclr_adv"])
    def test_is_uniform_in_the_ball_and_in_the_box(self, name, small, digits):
        delta, x = self.start(small(name, random_start=True), digits)
        assert delta.abs().max() <= EPS + 1e-12
        assert (x + delta).min() >= 0
        assert (x + delta).max() <= 1
        free = delta[(x > EPS) & (x < 1 - EPS)]  # where the box does not clamp
        assert len(free) > 200
        error = 4 / math.sqrt(len(free))  # four standard errors, in units of the standard deviation
        assert free.mean().item() == pytest.approx(0, abs=error * EPS / math.sqrt(3))
        assert free.square().mean().item() == pytest.approx(EPS**2 / 3, abs=error * EPS**2 * math.sqrt(4 / 45))

    @pytest.mark.parametrize("name", ["emp_ssl_adv", "simclr_adv"])
    def test_takes_the_numbers_after_those_of_the_views(self, name, small, digits):
        method = small(name, random_start=True)
        draws = Draws(0, 0, ids_from(0), method.config.views)
        views = method.augment(digits.images[ids_from(0)], draws).double()
        u = draws.uniform(256)[method.moves].double().view_as(views[method.moves])
        expected = (views[method.moves] + EPS * (2 * u - 1)).clamp(0, 1) - views[method.moves]
        torch.testing.assert_close(self.start(method, digits)[0], expected, **CLOSE)

    def test_is_drawn_anew_in_the_next_epoch_and_moves_no_global_generator(self, small, digits):
        before = torch.random.get_rng_state()
        deltas = [self.start(small("simclr_adv", random_start=True), digits, epoch)[0] for epoch in (0, 0, 1)]
        assert torch.equal(deltas[0], deltas[1])
        assert not torch.equal(deltas[0], deltas[2])
        assert torch.equal(before, torch.random.get_rng_state())

    def test_is_zero_without_it(self, small, digits):
        assert self.start(small("simclr_adv"), digits)[0].abs().max() == 0

    def test_needs_draws(self, small, digits):
        method = small("simclr_adv", random_start=True)
        with pytest.raises(ValueError, match="expected draws for the random start of the adversary, got None"):
            next(losses_of(method, views_of(method, digits)))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("simclr_free", RELEASED["simclr_adv"] | {"random_start": True}), ("simclr_adv", FREE), ("emp_ssl", PGD | FREE)],
)
def test_settings_of_one_adversary_do_nothing_under_another(name, settings, small, digits):
    """So a suite may set them for all methods at once."""
    plain, other = small(name), small(name, **settings | {"attack_batch_norm": small(name).config.attack_batch_norm})
    views = views_of(plain, digits)
    for ours, theirs in zip(losses_of(plain, views), losses_of(other, views), strict=True):
        descend(plain, ours)
        descend(other, theirs)
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), other.state_dict().values(), strict=True))
