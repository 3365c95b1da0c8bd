"""The training loop: same seed same weights, budgets kept, updates undone, runs that end in every status, resuming."""

import copy
import io
import json
import math

import pytest
import torch
from torch import nn

from bench.data import permutation
from bench.optim import LARS
from bench.repro import Draws
from bench.spec import Budget, TrainResult, UsageError
from bench.train import Course, train
from methods import simclr

CPU = torch.device("cpu")
SECONDS = 10**9
ADVERSARIAL = ["simclr", "emp_ssl_adv", "simclr_adv", "cf_amc_ssl", "simclr_free"]


class Flat(nn.Module):
    """An encoder of one matrix and batch norm: an update takes about a millisecond."""

    width = 8

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.BatchNorm1d(8))

    def forward(self, images):
        return self.layers(images)


class Fake:
    """A time that moves only while the method computes a loss; the first one is that of the warm-up."""

    def __init__(self, method, durations):
        self.nanoseconds, loss = 10**15, method.loss
        durations = iter(durations)

        def slow(views):
            self.nanoseconds += round(next(durations) * SECONDS)
            return loss(views)

        method.loss = slow

    def now(self):
        return self.nanoseconds


def flat(seed=0, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = simclr.Config(**{"batch": 4, "hidden_width": 8, "embedding_width": 8} | settings)
        return simclr.Method(config).attach(Flat())


def constant(duration, warm_up=7.0):
    yield warm_up
    while True:
        yield duration


def at_update(method, n, change):
    """Let the n-th update (from 1, after the warm-up) be made with change(loss)."""
    loss, calls = method.loss, 0

    def changed(views):
        nonlocal calls
        calls += 1
        return change(loss(views)) if calls == n + 1 else loss(views)

    method.loss = changed
    return method


def stop_after(method, updates):
    """A stop that is asked for once the method has made so many updates, beside that of the warm-up."""
    made = []
    method.after_update = lambda: made.append(0)
    return lambda: len(made) > updates


def snapshots(method):
    """States of the method after each update, that of the warm-up first."""
    states = []
    method.after_update = lambda: states.append(copy.deepcopy(method.state_dict()))
    return states


def equal(a, b):
    """Nested dictionaries and lists of tensors and numbers are bitwise equal."""
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def but_for(state, *keys):
    return {key: value for key, value in state.items() if key not in keys}


def without_time(state):
    return but_for(state, "seconds", "durations", "spent")


def saved(state):
    """The state as it comes back from a file that may hold plain values only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.fixture(scope="module")
def twenty(digits):
    return digits.first(20)


class TestSeed:
    @pytest.mark.parametrize("name", ADVERSARIAL)
    def test_same_seed_same_weights(self, name, tiny, twenty):
        runs = [train(tiny(name), twenty, Budget.parse("5up"), 3, CPU) for _ in range(2)]
        assert equal(without_time(runs[0][1]), without_time(runs[1][1]))
        assert runs[0][0].losses == runs[1][0].losses
        assert len(runs[0][0].losses) == 5

    def test_other_seed_other_weights(self, tiny, twenty):
        """From the same first weights: batches and augmentation differ."""
        a, b = (train(tiny("simclr"), twenty, Budget.parse("2up"), seed, CPU)[1] for seed in (3, 4))
        changed = [not torch.equal(a["method"][k], b["method"][k]) for k in a["method"] if "weight" in k]
        assert all(changed)

    def test_global_generators_neither_decide_nor_move(self, twenty):
        states = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            states.append(without_time(train(flat(), twenty, Budget.parse("3up"), 0, CPU)[1]))
            assert torch.equal(torch.get_rng_state(), before)
        assert equal(*states)


class TestLoop:
    def test_is_the_plain_loop(self, tiny, twenty):
        """Images of each batch, views, learning rate and optimizer step, written out."""
        method, oracle = tiny("simclr"), tiny("simclr").train().to(memory_format=torch.channels_last)
        _, state = train(method, twenty, Budget.parse("7up"), 5, CPU)
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
        result, _ = train(tiny("simclr", batch=16), digits.first(64), Budget.parse("40up"), 0, CPU)
        losses = [loss for _, loss in result.losses]
        assert sum(losses[-8:]) / 8 < sum(losses[:8]) / 8 - 0.2

    def test_after_update_is_called_after_every_update(self, twenty):
        method = flat()
        states = snapshots(method)
        _, state = train(method, twenty, Budget.parse("4up"), 0, CPU)
        assert len(states) == 1 + 4  # the warm-up's is undone
        assert equal(states[-1], state["method"])

    def test_reports_progress(self, twenty):
        events = []
        train(flat(), twenty, Budget.parse("6up"), 0, CPU, report=events.append)
        assert [event["event"] for event in events] == ["train"] * len(events)
        assert (events[-1]["progress"], events[-1]["updates"], events[-1]["seconds_left"]) == (1.0, 6, 0.0)
        assert json.loads(json.dumps(events)) == events

    def test_a_batch_larger_than_the_data(self, twenty):
        with pytest.raises(UsageError, match=r"a batch of at most 20 \(the training images\), got 21; .*batch=20"):
            train(flat(batch=21), twenty, Budget.parse("1up"), 0, CPU)
        assert train(flat(batch=20), twenty, Budget.parse("1up"), 0, CPU)[0].updates == 1


class TestCourse:
    @pytest.mark.parametrize(
        ("budget", "updates"),
        [("7up", 7), ("1ep", 15), ("2ep", 30), ("0.5ep", 8), ("0.2ep", 3), ("1.4ep", 21), ("0.000000001ep", 1)],
    )
    def test_total_updates(self, budget, updates):
        assert Course(20, 4, 3).total_updates(Budget.parse(budget)) == updates

    def test_a_budget_in_time_has_none(self):
        assert Course(20, 4, 3).total_updates(Budget.parse("10s")) is None

    @pytest.mark.parametrize("hundredths", [7, 14, 28, 55, 56, 57, 110])
    def test_rounding_adds_no_update(self, hundredths):
        assert Course(100, 1, 1).total_updates(Budget(amount=hundredths / 100, unit="epochs")) == hundredths

    def test_locate_counts_epoch_batch_and_replay(self):
        course = Course(images=11, batch=4, updates_per_batch=3)  # two batches per epoch
        assert course.updates_per_epoch == 6
        places = [(e, b, r) for e in range(3) for b in range(2) for r in range(3)]
        assert [course.locate(n) for n in range(18)] == places


class TestBudgetInUpdates:
    @pytest.mark.parametrize("name", ["simclr", "cf_amc_ssl"])
    @pytest.mark.parametrize(("budget", "epochs"), [("1up", None), ("4up", None), ("1ep", 1.0), ("1.5ep", 1.5)])
    def test_makes_exactly_so_many(self, name, budget, epochs, tiny, twenty):
        result, state = train(tiny(name), twenty, Budget.parse(budget), 0, CPU)
        per_epoch = 3 * (3 if name == "cf_amc_ssl" else 1)
        wanted = int(budget[0]) if epochs is None else -(-epochs * per_epoch // 1)
        assert result.status == "finished"
        assert result.updates == state["updates"] == wanted
        assert (result.progress, result.epochs) == (1.0, pytest.approx(wanted / per_epoch))
        assert isinstance(result, TrainResult)

    def test_measures_its_cost(self, twenty):
        method = flat()
        fake = Fake(method, constant(0.5, warm_up=7.0))
        result, _ = train(method, twenty, Budget.parse("10up"), 0, CPU, now=fake.now)
        assert (result.train_seconds, result.compile_seconds, result.median_update_seconds) == (5.0, 7.0, 0.5)
        assert result.images_per_second == pytest.approx(10 * 4 / 5)
        assert result.first_loss == result.losses[0][1]
        assert result.last_loss == result.losses[-1][1]

    def test_images_per_second_counts_an_image_once_for_all_replays(self, twenty):
        method = flat(adversary="free")
        fake = Fake(method, constant(0.5))
        result, _ = train(method, twenty, Budget.parse("30up"), 0, CPU, now=fake.now)
        assert result.images_per_second == pytest.approx(10 * 4 / 15)
        assert result.epochs == 2.0


class TestBudgetInTime:
    @pytest.mark.parametrize("seed", range(12))
    @pytest.mark.parametrize("adversary", ["none", "free"])
    def test_is_never_exceeded_and_hardly_left(self, seed, adversary, twenty):
        generator = torch.Generator().manual_seed(seed)
        uniform = lambda low, high: low + (high - low) * torch.rand(1, generator=generator).item()  # noqa: E731
        duration, jitter = uniform(0.01, 2), [0.0, 0.02, 0.1][seed % 3]
        budget = Budget(amount=duration * uniform(2.5, 25), unit="seconds")
        method = flat(adversary=adversary)
        durations = (duration * uniform(1 - jitter, 1 + jitter) for _ in iter(int, 1))
        result, state = train(method, twenty, budget, seed, CPU, now=Fake(method, durations).now)
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
        fake = Fake(method, [7.0] + [1.0] * kept + [20.0])
        states = snapshots(method)
        result, state = train(method, twenty, Budget.parse("10s"), 0, CPU, now=fake.now)
        now, stop = Fake(twin, constant(1.0)).now, stop_after(twin, kept)
        before, before_state = train(twin, twenty, Budget.parse("10s"), 0, CPU, now=now, stop=stop)
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
        fake = Fake(method, [7.0, 3.0])
        result, state = train(method, twenty, Budget.parse("2s"), 0, CPU, now=fake.now)
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
        fake = Fake(method, constant(1.0 / calls))
        result, _ = train(method, twenty, Budget.parse("40s" if calls == 1 else "7s"), 0, CPU, now=fake.now)
        assert 0 <= result.last_lr <= 0.02 * 0.2
        assert result.updates >= 40

    def test_the_warm_up_is_off_the_clock(self, twenty):
        method = flat()
        result, _ = train(method, twenty, Budget.parse("5s"), 0, CPU, now=Fake(method, constant(1.0, 100.0)).now)
        assert (result.updates, result.train_seconds, result.compile_seconds) == (5, 5.0, 100.0)


class TestDiverged:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("update", [1, 4])
    def test_once_a_loss_is_not_finite(self, value, update, twenty):
        method = at_update(flat(), update, lambda loss: loss * value)
        result, _ = train(method, twenty, Budget.parse("9up"), 0, CPU)
        assert (result.status, result.updates) == ("diverged", update)
        assert len(result.losses) == update - 1
        TrainResult.model_validate_json(result.model_dump_json())  # no NaN is in it

    def test_by_the_gradient_of_the_very_last_update(self, twenty):
        """The loss is finite, its gradient is not, and no later loss would show it."""
        method = flat()
        at_update(method, 5, lambda loss: loss + (0 * loss).sqrt())
        result, _ = train(method, twenty, Budget.parse("5up"), 0, CPU)
        assert (result.status, result.updates, len(result.losses)) == ("diverged", 5, 5)

    def test_not_by_an_update_that_was_undone(self, twenty):
        method = flat()
        fake = Fake(method, [7.0] + [1.0] * 4 + [20.0])
        at_update(method, 5, lambda loss: loss * float("nan"))
        result, state = train(method, twenty, Budget.parse("10s"), 0, CPU, now=fake.now)
        assert (result.status, result.updates) == ("finished", 4)
        assert all(t.isfinite().all() for t in state["method"].values())


class TestOutOfMemory:
    @pytest.mark.parametrize("update", [0, 1, 3])  # 0: in the warm-up
    @pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
    def test_is_a_result(self, update, error, twenty):
        def fail(loss):
            raise error

        result, _ = train(at_update(flat(), update, fail), twenty, Budget.parse("9up"), 0, CPU)
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
        result, _ = train(method, twenty, Budget.parse("9up"), 0, CPU)
        assert result.note == "out of memory with a batch of 4 and 2 views; no smaller one fits either"

    def test_other_errors_are_errors(self, twenty):
        def fail(loss):
            raise RuntimeError("shape mismatch")

        with pytest.raises(RuntimeError, match="shape mismatch"):
            train(at_update(flat(), 2, fail), twenty, Budget.parse("9up"), 0, CPU)


def interrupted(make, images, budget, after):
    """make(0) trained with an interruption after each of these numbers of updates, and gone on with in make(9)."""
    method, state, done = make(0), None, 0
    for n in after:
        result, state = train(method, images, budget, 0, CPU, resume=state, stop=stop_after(method, n - done))
        assert (result.status, result.updates) == ("preempted", n)
        assert result.progress == n / budget.amount
        method, state, done = make(9), saved(state), n  # other first weights: all have to be loaded
    return train(method, images, budget, 0, CPU, resume=state)


class TestResume:
    @pytest.mark.parametrize(
        ("name", "after"),
        [
            ("simclr", [1]),
            ("simclr", [3, 4, 9]),  # 3: at the end of an epoch
            ("emp_ssl_adv", [4]),
            ("simclr_adv", [2, 3]),
            ("cf_amc_ssl", [1]),
            ("cf_amc_ssl", [2, 3, 8]),  # in the middle of the replays, after the last of them, before an epoch's last
            ("simclr_free", [4, 9]),
        ],
    )
    def test_is_bitwise_the_uninterrupted_run(self, name, after, tiny, twenty):
        budget = Budget.parse("11up")
        whole, state = train(tiny(name), twenty, budget, 0, CPU)
        resumed, again = interrupted(lambda seed: tiny(name, seed=seed), twenty, budget, after)
        assert (resumed.status, resumed.updates) == ("finished", 11)
        assert resumed.losses == whole.losses
        assert equal(without_time(again), without_time(state))

    @pytest.mark.parametrize("adversary", ["none", "free"])
    @pytest.mark.parametrize("after", range(1, 11))
    def test_at_every_update(self, adversary, after, twenty):
        budget = Budget.parse("11up")
        _, state = train(flat(adversary=adversary), twenty, budget, 0, CPU)
        _, again = interrupted(lambda seed: flat(seed, adversary=adversary), twenty, budget, [after])
        assert equal(without_time(again), without_time(state))

    @pytest.mark.parametrize("key", ["method", "optimizer", "delta", "updates", "losses"])
    def test_needs_all_of_the_state(self, key, twenty):
        """Whatever is taken from the first run's state instead of the stopped run's, the outcome is another."""
        budget = Budget.parse("11up")
        _, whole = train(flat(adversary="free"), twenty, budget, 0, CPU)
        states = []
        for n in (1, 5):
            method = flat(adversary="free")
            _, state = train(method, twenty, budget, 0, CPU, stop=stop_after(method, n))
            states.append(saved(state))
        mixed = states[1] | {key: states[0][key]}
        _, again = train(flat(adversary="free"), twenty, budget, 0, CPU, resume=mixed)
        assert not equal(without_time(again), without_time(whole))

    def test_of_a_budget_in_time_goes_on_with_its_seconds(self, twenty):
        budget = Budget.parse("10s")
        whole, ours = flat(adversary="free"), flat(adversary="free")
        uninterrupted, state = train(whole, twenty, budget, 0, CPU, now=Fake(whole, constant(1.0)).now)
        now, stop = Fake(ours, constant(1.0)).now, stop_after(ours, 4)
        result, middle = train(ours, twenty, budget, 0, CPU, now=now, stop=stop)
        assert (result.status, result.train_seconds, result.progress) == ("preempted", 4.0, 0.4)
        again = flat(adversary="free")
        fake = Fake(again, constant(1.0, warm_up=1000.0))  # compiling once more is not charged
        resumed, end = train(again, twenty, budget, 0, CPU, now=fake.now, resume=saved(middle))
        assert (
            (resumed.updates, resumed.train_seconds)
            == (uninterrupted.updates, uninterrupted.train_seconds)
            == (10, 10.0)
        )
        assert equal(but_for(end, "spent"), but_for(state, "spent"))

    def test_a_stop_at_the_very_end_is_the_end(self, twenty):
        method = flat()
        result, state = train(method, twenty, Budget.parse("6up"), 0, CPU, stop=stop_after(method, 6))
        assert (result.status, result.updates, result.progress) == ("finished", 6, 1.0)
        assert equal(without_time(state), without_time(train(flat(), twenty, Budget.parse("6up"), 0, CPU)[1]))

    def test_a_finished_run_stays_as_it_is(self, twenty):
        _, state = train(flat(), twenty, Budget.parse("6up"), 0, CPU)
        result, again = train(flat(), twenty, Budget.parse("6up"), 0, CPU, resume=saved(state))
        assert (result.status, result.updates) == ("finished", 6)
        assert equal(again, state)
