"""The training loop: same seed same weights, budgets kept, late updates undone, out of memory told."""

import copy
import json
import math

import pytest
import torch
from training_fixtures import Time, at_update, but_for, constant, equal, flat, stop_after, trained, without_time

from bench.data.images import permutation
from bench.random import Draws
from bench.record import TrainResult
from bench.spec import Budget, UsageError
from bench.training.train import Keeper
from methods.common.optim import LARS


def snapshots(method):
    """States of the method after each update, that of the warm-up first."""
    states = []
    method.after_update = lambda: states.append(copy.deepcopy(method.state_dict()))
    return states


@pytest.fixture(scope="module")
def twenty(digits):
    return digits.first(20)


class TestSeed:
    @pytest.mark.parametrize("name", ["simclr_adv", "simclr_free"])  # of others: test_resume.py
    def test_same_seed_same_weights(self, name, tiny, twenty):
        runs = [trained(tiny(name), twenty, "4up", 3) for _ in range(2)]
        assert equal(without_time(runs[0][1]), without_time(runs[1][1]))
        assert runs[0][0].losses == runs[1][0].losses
        assert len(runs[0][0].losses) == 4

    def test_other_seed_other_weights(self, tiny, twenty):
        """From the same first weights: batches and augmentation differ."""
        a, b = (trained(tiny("simclr"), twenty, "2up", seed)[1] for seed in (3, 4))
        changed = [not torch.equal(a["method"][k], b["method"][k]) for k in a["method"] if "weight" in k]
        assert all(changed)

    def test_global_generators_neither_decide_nor_move(self, twenty):
        states = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            states.append(without_time(trained(flat(), twenty, "3up")[1]))
            assert torch.equal(torch.get_rng_state(), before)
        assert equal(*states)


class TestLoop:
    def test_is_the_plain_loop(self, tiny, twenty):
        """Images of each batch, views, learning rate and optimizer step, written out."""
        method, oracle = tiny("simclr"), tiny("simclr").train().to(memory_format=torch.channels_last)
        _, state = trained(method, twenty, "7up", 5)
        optimizer = LARS(oracle.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-4, eta=0.005)
        for n in range(7):
            epoch, batch = n // 3, n % 3  # 20 images: three batches of 6, and 2 are dropped
            ids = permutation(20, 5, epoch)[6 * batch : 6 * batch + 6]
            views = oracle.augment(twenty.images[ids], Draws(5, epoch, ids, 2))
            optimizer.param_groups[0]["lr"] = 0.15 * (1 + math.cos(math.pi * n / 7))
            optimizer.zero_grad()
            oracle.loss(views).backward()
            optimizer.step()
        for key, value in oracle.state_dict().items():
            torch.testing.assert_close(state["method"][key], value, rtol=1e-5, atol=1e-6)

    def test_lowers_the_loss(self, tiny, digits):
        result, _ = trained(tiny("simclr", batch=16), digits.first(64), "40up")
        losses = [loss for _, loss in result.losses]
        assert sum(losses[-8:]) / 8 < sum(losses[:8]) / 8 - 0.2

    def test_after_update_is_called_after_every_update(self, twenty):
        method = flat()
        states = snapshots(method)
        _, state = trained(method, twenty, "4up")
        assert len(states) == 1 + 4  # the warm-up's is undone
        assert equal(states[-1], state["method"])

    def test_reports_progress(self, twenty):
        events = []
        trained(flat(), twenty, "6up", keeper=Keeper(report=events.append))
        assert [event["event"] for event in events] == ["train"] * len(events)
        assert (events[-1]["progress"], events[-1]["updates"], events[-1]["seconds_left"]) == (1.0, 6, 0.0)
        assert json.loads(json.dumps(events)) == events

    def test_a_batch_larger_than_the_data(self, twenty):
        with pytest.raises(UsageError, match=r"a batch of at most 20 \(the training images\), got 21; .*batch=20"):
            trained(flat(batch=21), twenty, "1up")
        assert trained(flat(batch=20), twenty, "1up")[0].updates == 1


class TestBudgetInUpdates:
    @pytest.mark.parametrize("adversary", ["none", "free"])
    @pytest.mark.parametrize(("budget", "epochs"), [("1up", None), ("4up", None), ("1ep", 1.0), ("1.5ep", 1.5)])
    def test_makes_exactly_so_many(self, adversary, budget, epochs, twenty):
        result, state = trained(flat(adversary=adversary), twenty, budget)
        per_epoch = 5 * (3 if adversary == "free" else 1)
        wanted = int(budget[0]) if epochs is None else -(-epochs * per_epoch // 1)
        assert result.status == "finished"
        assert result.updates == state["updates"] == wanted
        assert (result.progress, result.epochs) == (1.0, pytest.approx(wanted / per_epoch))
        assert isinstance(result, TrainResult)

    def test_measures_its_cost(self, twenty):
        method = flat()
        fake = Time().driven_by(method, constant(0.5, warm_up=7.0))
        result, _ = trained(method, twenty, "10up", now=fake.now)
        assert (result.train_seconds, result.compile_seconds, result.median_update_seconds) == (5.0, 7.0, 0.5)
        assert result.images_per_second == pytest.approx(10 * 4 / 5)
        assert result.first_loss == result.losses[0][1]
        assert result.last_loss == result.losses[-1][1]

    def test_images_per_second_counts_an_image_once_for_all_replays(self, twenty):
        method = flat(adversary="free")
        fake = Time().driven_by(method, constant(0.5))
        result, _ = trained(method, twenty, "30up", now=fake.now)
        assert result.images_per_second == pytest.approx(10 * 4 / 15)
        assert result.epochs == 2.0


class TestBudgetInTime:
    @pytest.mark.parametrize("seed", range(3))  # a hundred of the clock alone: test_clock.py
    @pytest.mark.parametrize("adversary", ["none", "free"])
    def test_is_never_exceeded_and_hardly_left(self, seed, adversary, twenty):
        generator = torch.Generator().manual_seed(seed)
        uniform = lambda low, high: low + (high - low) * torch.rand(1, generator=generator).item()  # noqa: E731
        duration, jitter = uniform(0.01, 2), [0.0, 0.02, 0.1][seed % 3]
        budget = Budget(amount=duration * uniform(2.5, 25), unit="seconds")
        method = flat(adversary=adversary)
        durations = (duration * uniform(1 - jitter, 1 + jitter) for _ in iter(int, 1))
        result, state = trained(method, twenty, budget, seed, now=Time().driven_by(method, durations).now)
        assert result.status == "finished"
        assert result.updates >= 1
        assert result.train_seconds == state["seconds"] <= budget.amount
        assert budget.amount - result.train_seconds <= 1.5 * result.median_update_seconds
        assert result.progress <= 1

    @pytest.mark.parametrize("adversary", ["none", "free"])
    @pytest.mark.parametrize("kept", [1, 4, 6])
    def test_an_update_that_ends_past_it_is_undone(self, adversary, kept, twenty):
        """Weights, running statistics, momentum and delta equal those of a run that is stopped just before it."""
        settings = {"adversary": adversary, "replays": 2}
        method, twin = flat(**settings), flat(**settings)
        fake = Time().driven_by(method, [7.0] + [1.0] * kept + [20.0])
        states = snapshots(method)
        result, state = trained(method, twenty, "10s", now=fake.now)
        now, stop = Time().driven_by(twin, constant(1.0)).now, stop_after(twin, kept)
        before, before_state = trained(twin, twenty, "10s", now=now, keeper=Keeper(stop=stop))
        assert (result.status, result.updates, result.train_seconds) == ("finished", kept, float(kept))
        assert (before.status, before.updates, before.train_seconds) == ("preempted", kept, float(kept))
        assert len(states) == 1 + kept + 1  # it was made
        assert equal(state["method"], states[kept])
        assert not equal(state["method"], states[kept + 1])
        assert equal(but_for(state, "spent"), but_for(before_state, "spent"))
        assert result.last_lr == before.last_lr
        assert result.losses == before.losses

    def test_where_not_one_update_fits_it_has_failed(self, twenty):
        method = flat()
        first = copy.deepcopy(method.state_dict())
        fake = Time().driven_by(method, [7.0, 3.0])
        result, state = trained(method, twenty, "2s", now=fake.now)
        assert (result.status, result.updates, result.train_seconds) == ("failed", 0, 0.0)
        assert result.note == "not one update fits into 2s: the warm-up took 7 s"
        assert (result.first_loss, result.last_loss, result.losses) == (None, None, [])
        assert equal(state["method"], first)
        assert state["optimizer"]["state"] == {}
        assert all(p.grad is None for p in method.parameters())

    @pytest.mark.parametrize("adversary", ["none", "pgd", "free"])
    def test_the_last_learning_rate_is_small(self, adversary, twenty):
        """At most 2 % of the peak: the schedule follows the share of the time spent, whatever the adversary."""
        method = flat(adversary=adversary, lr=0.2)
        calls = 5 + 1 if adversary == "pgd" else 1  # losses per update, each with its time
        method.adversarial_loss = lambda moved, clean: moved.square().sum() + 0 * clean.sum()
        fake = Time().driven_by(method, constant(1.0 / calls))
        result, _ = trained(method, twenty, "40s" if calls == 1 else "7s", now=fake.now)
        assert 0 <= result.last_lr <= 0.02 * 0.2
        assert result.updates >= 40

    def test_the_warm_up_is_off_the_clock(self, twenty):
        method = flat()
        result, _ = trained(method, twenty, "5s", now=Time().driven_by(method, constant(1.0, 100.0)).now)
        assert (result.updates, result.train_seconds, result.compile_seconds) == (5, 5.0, 100.0)


class TestOutOfMemory:
    @pytest.mark.parametrize("update", [0, 1, 3])  # 0: in the warm-up
    @pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
    def test_is_a_result(self, update, error, twenty):
        def fail(loss):
            raise error

        result, _ = trained(at_update(flat(), update, fail), twenty, "9up")
        assert (result.status, result.updates) == ("oom", max(update - 1, 0))
        assert result.note == (
            "out of memory with a batch of 4 and 2 views; 2 fits, but is another recipe: "
            "batch norm and the losses depend on the batch"
        )

    def test_of_every_batch_says_so(self, twenty):
        method = flat()

        def fail(views):
            raise MemoryError

        method.loss = fail
        result, _ = trained(method, twenty, "9up")
        assert result.note == "out of memory with a batch of 4 and 2 views; no smaller one fits either"

    def test_other_errors_are_errors(self, twenty):
        def fail(loss):
            raise RuntimeError("shape mismatch")

        with pytest.raises(RuntimeError, match="shape mismatch"):
            trained(at_update(flat(), 2, fail), twenty, "9up")
