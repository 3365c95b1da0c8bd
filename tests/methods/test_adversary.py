"""The adversary of training against slow oracles: what moves, by how much, and which gradients reach an update."""

import copy

import pytest
import torch
from torch import nn

from bench.random import Draws
from methods.common.adversary import ADVERSARIES

EPS, STEP = 0.1, 0.032
PGD, FREE = ["emp_ssl_adv", "simclr_adv"], ["cf_amc_ssl", "simclr_free"]


def adversary_of(method):
    return ADVERSARIES[method.config.adversary](method.config)


def views_of(method, images, first=0):
    ids = torch.arange(first, first + method.config.batch)
    views = method.augment(images.images[ids], Draws(0, 0, ids, method.config.views))
    return views.to(next(method.parameters()).dtype)


def seen_by(method):
    """All views on which the method's loss will be asked for, in order."""
    seen, loss = [], method.loss

    def recorded(views):
        seen.append(views.detach().clone())
        return loss(views)

    method.loss = recorded
    return seen


def batches_counted(method):
    """How many batches each batch norm's running statistics have seen; the same for all in encoder and projector."""
    norms = [m for m in method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    (count,) = {int(norm.num_batches_tracked) for norm in norms}
    return count


def same_buffers(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.buffers(), b.buffers(), strict=True))


def same_parameters(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def pair_or_all(name):
    return slice(1, 2) if name.startswith("simclr") else slice(None)


def slow_pgd(method, views, moves, steps):
    """Points delta_0 ... delta_steps of the textbook attack on a copy of the method: views with their moves moved."""
    method, delta, points = copy.deepcopy(method), torch.zeros_like(views[moves]), []
    for _ in range(steps + 1):
        x = views.clone()
        x[moves] += delta
        points.append(x.clone())
        delta = delta.requires_grad_()
        x = torch.cat([views[:1], views[1:] + delta]) if moves.start == 1 else views + delta
        gradient = torch.autograd.grad(method.loss(x), delta)[0]
        delta = (delta.detach() + STEP * gradient.sign()).clamp(-EPS, EPS)
        delta = (views[moves] + delta).clamp(0, 1) - views[moves]
    return points


def test_none_is_the_loss_of_the_clean_views(tiny, digits):
    method = tiny("emp_ssl").train()
    views, seen = views_of(method, digits), seen_by(method)
    losses = list(adversary_of(method).losses(method, views))
    assert len(losses) == len(seen) == 1
    assert torch.equal(seen[0], views)


def test_nfgsm_takes_one_step_of_eps_from_noise_of_twice_that_and_only_the_box_holds_it(tiny, digits):
    method = tiny("supervised_nfgsm").double().train()
    method.labels = digits.labels[: method.config.batch]
    views, ids = views_of(method, digits), torch.arange(method.config.batch)
    draws = [Draws(0, 0, ids, method.config.views) for _ in range(2)]
    noise = draws[1].uniform(views[0, 0].numel()).to(views.dtype).view_as(views)
    start = (views + EPS * (4 * noise - 2)).clamp(0, 1).requires_grad_()
    gradient = torch.autograd.grad(copy.deepcopy(method).loss(start), start)[0]
    seen = seen_by(method)
    next(adversary_of(method).losses(method, views, draws=draws[0]))
    expected = (start.detach() + EPS * gradient.sign()).clamp(0, 1)
    assert len(seen) == 2
    torch.testing.assert_close(seen[-1], expected, rtol=0, atol=1e-12)
    assert (seen[-1] - views).abs().max() > 2 * EPS
    assert all(weight.grad is None for weight in method.parameters())


@pytest.mark.parametrize("name", PGD)
class TestPGD:
    def test_moves_as_the_textbook_attack(self, name, tiny, digits):
        method = (
            tiny(name, attack_batch_norm="batch").double().train()
        )  # in float64 no sign hangs on the order of a sum
        views = views_of(method, digits)
        expected = slow_pgd(method, views, pair_or_all(name), steps=5)[-1]
        seen = seen_by(method)
        next(adversary_of(method).losses(method, views))
        torch.testing.assert_close(seen[-1], expected, rtol=0, atol=1e-12)

    def test_stays_in_ball_and_box_and_moves_only_what_it_may(self, name, tiny, digits):
        method = tiny(name).train()
        views, seen = views_of(method, digits), seen_by(method)
        next(adversary_of(method).losses(method, views))
        distance = (seen[-1] - views).abs().flatten(1).amax(dim=1)
        moves = pair_or_all(name)
        assert (distance[moves] > EPS - 1e-6).all()  # 5 steps of .032 reach the sphere
        assert distance.max() <= EPS + 1e-6
        assert 0 <= seen[-1].min() <= seen[-1].max() <= 1
        if moves.start == 1:
            assert torch.equal(seen[-1][0], views[0])

    @pytest.mark.parametrize("steps", [1, 5])
    def test_ascends(self, name, steps, tiny, digits):
        method = tiny(name, steps=steps).train()
        views = views_of(method, digits)
        before = copy.deepcopy(method).loss(views)
        assert next(adversary_of(method).losses(method, views)) > before + 0.1

    def test_gives_one_loss(self, name, tiny, digits):
        method = tiny(name).train()
        adversary = adversary_of(method)
        assert len(list(adversary.losses(method, views_of(method, digits)))) == 1
        assert adversary.delta is None  # nothing is carried

    def test_the_clean_embedding_is_made_once_and_without_a_graph(self, name, tiny, digits):
        method = tiny(name).train()
        given, loss = [], method.adversarial_loss
        method.adversarial_loss = lambda moved, clean: given.append(clean) or loss(moved, clean)
        next(adversary_of(method).losses(method, views_of(method, digits)))
        assert len(given) == 5
        assert all(clean is given[0] for clean in given)
        assert given[0] is None if name == "emp_ssl_adv" else not given[0].requires_grad

    def test_batch_norm_sees_the_update_only(self, name, tiny, digits):
        method = tiny(name, attack_batch_norm="batch").train()
        views, oracle = views_of(method, digits), copy.deepcopy(method)
        seen = seen_by(method)
        next(adversary_of(method).losses(method, views))
        assert batches_counted(method) == (2 if name == "simclr_adv" else 1)
        oracle.loss(seen[-1])
        assert same_buffers(method, oracle)

    def test_batch_norm_in_eval_mode_while_it_climbs(self, name, tiny, digits):
        """With running statistics in the attack, the images do not depend on each other."""
        method = tiny(name, attack_batch_norm="eval").train()
        for _ in range(5):
            method.loss(views_of(method, digits))  # running statistics of these images
        before = batches_counted(method)
        frozen, views = copy.deepcopy(method).eval(), views_of(method, digits)
        expected = slow_pgd(frozen.double(), views.double(), pair_or_all(name), steps=5)[-1]
        seen = seen_by(method)
        next(adversary_of(method).losses(method, views))
        assert batches_counted(method) - before == (2 if name == "simclr_adv" else 1)
        agree = (seen[-1] - expected).abs() < 1e-4
        assert agree.double().mean() > 0.99  # float32 flips a few signs near 0

    @pytest.mark.parametrize("mode", ["batch", "eval", "released"])
    def test_leaves_the_modes_as_they_were(self, name, mode, tiny, digits):
        method = tiny(name, attack_batch_norm=mode).train()
        norms = [m for m in method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        norms[0].eval()  # one that its method has frozen stays so
        next(adversary_of(method).losses(method, views_of(method, digits)))
        assert [norm.training for norm in norms] == [False] + [True] * (len(norms) - 1)
        assert all(norm.track_running_stats for norm in norms)
        assert int(norms[0].num_batches_tracked) == 0

    def test_modes_come_back_also_after_an_error(self, name, tiny, digits):
        method = tiny(name).train()
        method.adversarial_loss = lambda moved, clean: 1 / 0
        with pytest.raises(ZeroDivisionError):
            next(adversary_of(method).losses(method, views_of(method, digits)))
        norms = [m for m in method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert all(norm.training and norm.track_running_stats for norm in norms)


def descend(method, loss, lr=0.05):
    """A plain gradient step, the trainer's part between two yields; gradients are cleared after it, as there."""
    loss.backward()
    with torch.no_grad():
        for p in method.parameters():
            p -= lr * p.grad
    method.zero_grad()


def slow_free(method, batches, moves, replays):
    """Free training by hand: the textbook loop over (views, delta), updating the method. Returns delta at the end."""
    delta = torch.zeros_like(batches[0][moves])
    for views in batches:
        for _ in range(replays):
            delta = ((views[moves] + delta).clamp(0, 1) - views[moves]).requires_grad_()  # clamped to this image's box
            x = torch.cat([views[:1], views[1:] + delta]) if moves.start == 1 else views + delta
            loss = method.loss(x)
            gradient = torch.autograd.grad(loss, delta, retain_graph=True)[0]
            descend(method, loss)
            delta = (delta.detach() + STEP * gradient.sign()).clamp(-EPS, EPS)
            delta = (views[moves] + delta).clamp(0, 1) - views[moves]
    return delta


@pytest.mark.parametrize("name", FREE)
class TestFree:
    def test_is_the_textbook_loop(self, name, tiny, digits):
        method = tiny(name).double().train()
        oracle, adversary = copy.deepcopy(method), adversary_of(method)
        batches = [views_of(method, digits), views_of(method, digits, first=6)]
        for views in batches:
            for loss in adversary.losses(method, views):
                descend(method, loss)
        delta = slow_free(oracle, batches, pair_or_all(name), replays=3)
        torch.testing.assert_close(adversary.delta, delta, rtol=0, atol=1e-10)
        for ours, theirs in zip(method.parameters(), oracle.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)

    @pytest.mark.parametrize("replays", [1, 3, 4])
    def test_gives_m_losses_and_batch_norm_sees_each_once(self, name, replays, tiny, digits):
        method = tiny(name, replays=replays).train()
        losses = 0
        for loss in adversary_of(method).losses(method, views_of(method, digits)):
            descend(method, loss)
            losses += 1
        assert losses == replays
        assert batches_counted(method) == replays * (2 if name == "simclr_free" else 1)

    def test_the_first_replay_is_clean_and_the_next_batch_starts_from_delta(self, name, tiny, digits):
        method = tiny(name).train()
        adversary, seen, moves = adversary_of(method), seen_by(method), pair_or_all(name)
        first, second = views_of(method, digits), views_of(method, digits, first=6)
        for loss in adversary.losses(method, first):
            descend(method, loss)
        assert torch.equal(seen[0], first)
        carried = adversary.delta.clone()
        assert carried.abs().amax() > 2 * STEP  # it has moved by up to three steps
        next(adversary.losses(method, second))
        expected = second.clone()
        expected[moves] = (second[moves] + carried).clamp(0, 1)  # of other images, so it has to be clamped anew
        torch.testing.assert_close(seen[-1], expected, rtol=0, atol=1e-6)
        assert (second[moves] + carried).min() < 0  # or the clamp was not needed

    def test_stays_in_ball_and_box(self, name, tiny, digits):
        method = tiny(name, replays=6).train()
        adversary, seen, moves = adversary_of(method), seen_by(method), pair_or_all(name)
        for first in (0, 6, 12):
            views = views_of(method, digits, first)
            for loss in adversary.losses(method, views):
                descend(method, loss)
                assert (seen[-1] - views).abs().max() <= EPS + 1e-6
                assert 0 <= seen[-1].min() <= seen[-1].max() <= 1
                if moves.start == 1:
                    assert torch.equal(seen[-1][0], views[0])

    def test_moves_by_the_gradient_of_the_very_update(self, name, tiny, digits):
        """One backward serves both: no further pass is made, and delta follows the gradient at the old weights."""
        method = tiny(name).double().train()
        views, moves, oracle = views_of(method, digits), pair_or_all(name), copy.deepcopy(method)
        adversary, seen = adversary_of(method), seen_by(method)
        losses = adversary.losses(method, views)
        descend(method, next(losses), lr=1.0)  # a large step, so that the gradient at the new weights is another
        next(losses)
        assert len(seen) == 2
        x = views.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(oracle.loss(x), x)
        expected = (views + STEP * gradient.sign()).clamp(0, 1) - views
        torch.testing.assert_close(adversary.delta, expected[moves], rtol=0, atol=1e-12)

    def test_delta_has_moved_also_when_the_trainer_stops_early(self, name, tiny, digits):
        method = tiny(name).train()
        views = views_of(method, digits)
        whole, early = adversary_of(method), adversary_of(method)
        twin = copy.deepcopy(method)
        losses = early.losses(method, views)
        descend(method, next(losses))
        losses.close()
        going_on = whole.losses(twin, views)
        descend(twin, next(going_on))
        next(going_on)
        assert early.delta.abs().max() == pytest.approx(STEP, abs=1e-6)
        assert torch.equal(early.delta, whole.delta)

    def test_delta_stays_without_an_update(self, name, tiny, digits):
        method = tiny(name).train()
        adversary = adversary_of(method)
        losses = adversary.losses(method, views_of(method, digits))
        next(losses)
        losses.close()
        assert adversary.delta.abs().max() == 0

    @pytest.mark.parametrize("replay", [1, 2])
    def test_goes_on_in_the_middle_of_the_replays(self, name, replay, tiny, digits):
        whole, views = tiny(name).train(), views_of(tiny(name), digits)
        uninterrupted = adversary_of(whole)
        for loss in uninterrupted.losses(whole, views):
            descend(whole, loss)

        first = tiny(name).train()
        before = adversary_of(first)
        losses = before.losses(first, views)
        for _ in range(replay):
            descend(first, next(losses))
        losses.close()
        rest, after = copy.deepcopy(first), adversary_of(first)
        after.delta = before.delta.clone()
        for loss in after.losses(rest, views, start=replay):
            descend(rest, loss)

        assert torch.equal(after.delta, uninterrupted.delta)
        assert same_parameters(rest, whole)
        assert same_buffers(rest, whole)
