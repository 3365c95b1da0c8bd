"""A run on several ranks is the run of one: real processes of this machine, by gloo.

Trainings are compared in float64, where nothing but a fault makes a difference; in float32 the sign of a gradient
near 0 is the rounding's, on one device as on several.
"""

import copy
from contextlib import contextmanager

import pytest
import torch
from audit_fixtures import short_autoattack
from evaluation_fixtures import CPU, QUICK, TEST, TRAIN, Shelf, tiny_encoder
from ranks_fixtures import on_ranks
from tiny_fixtures import build_tiny
from training_fixtures import Time, at_update, constant, flat, stop_after, trained, without_time

from bench import registry
from bench.device import device as devices
from bench.distributed.ranks import ALONE
from bench.engines.team import Crew, serve
from bench.evaluation.evaluate import evaluate
from bench.evaluation.evaluated import Evaluated
from bench.evaluation.search import in_this_process
from bench.spec import Budget, UsageError
from bench.training.train import Keeper, train
from methods import simclr
from tests.plugins import METHODS

pytestmark = pytest.mark.ci  # two processes that train and evaluate everything

DIGITS = registry.load("dataset", "digits").Dataset().load(None, "train").first(40)
UPDATES = {"none": 2, "pgd": 2, "free": 4}  # three replays of one batch, and one of the next
ALIKE = {  # in all that several ranks do differently: they differ from others in how views are drawn
    "simclr_patch_adv",
    "emp_ssl_patch_adv",
    "emp_ssl_patch_free",
    "supervised_free",
}
STAGED = {"teacher_share": 0.5, "student_batch": 4}
EVERY = {name: (name, {}) for name in registry.names("method") if name not in ALIKE} | {
    "advcl": ("advcl", STAGED | {"teacher_share": 0.3, "cluster_share": 0.3}),
    "deacl": ("deacl", STAGED),
    "profeat": ("profeat", STAGED),
    "leaked gradients": ("emp_ssl_adv", {"leak_attack_gradients": True}),
    "released batch norm": (
        "simclr_adv",
        {"attack_batch_norm": "released", "attack_pair": "x2", "random_start": True},
    ),
    "unclamped": ("cf_amc_ssl", {"clamp_carried": False}),
    **{file.stem: (str(file), {}) for file in METHODS},
}
KINDS = (  # no loss, adversary, batch norm or stage of those that are left out is of another kind
    *("cf_amc_ssl", "simclr_adv", "supervised_pgd", "leaked gradients", "released batch norm"),
    *("vicreg", "rocl", "dynacl", "profeat", "advcl"),
)
ATTACKED = QUICK.model_copy(
    update={"attacks": ("pgd", "noise", "autoattack"), "chunk": 8, "autoattack_batch": 6, "protocols": ("linear",)}
    | {"attack_settings": {}, "autoattack_images": {"linear": 20}, "eps": (0.004, 0.008), "main_eps": 0.008}
)


@pytest.fixture(scope="module", autouse=True)
def quick_peak():
    with without_peak():
        yield


# ---------------------------------------------------------------- what every rank does


@contextmanager
def without_peak():
    """The peak of the matrix products is no subject here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "matrix_peak", lambda device, precision: 1e9)
        yield


def in_double(method):
    """The method in float64, and its views."""
    augment = method.augment
    method.augment = lambda images, draws: augment(images, draws).double()
    method.double().encoder.register_forward_pre_hook(lambda encoder, given: (given[0].double(),))
    return method


def updates(ranks, names=KINDS):
    """name -> (result, state) of a short training in float64."""
    found = {}
    for name in names:
        method, settings = EVERY[name]
        method = in_double(build_tiny(method, batch=4, steps=2, **settings))
        count = max(UPDATES[method.config.adversary], len(method.stages()))
        found[name] = trained(method, DIGITS, f"{count}up", ranks=ranks)
    return found


def exchange(ranks):
    """What the messages bring."""
    own = torch.arange(6.0).view(1, 6)[:, 3 * ranks.rank : 3 * ranks.rank + 3].clone().requires_grad_()
    whole = ranks.gather(own)
    (whole.square() * torch.arange(6)).sum().backward()  # the same loss on all
    gradients = [torch.full((2, 2), float(ranks.rank)), torch.arange(3.0) * ranks.rank]
    ranks.average(gradients)
    ticking = iter([50, 1000, 1010, 1020] if ranks.rank == 0 else [7, 107, 207, 307])
    now = ranks.latest(lambda: next(ticking))
    return {
        "part": ranks.part(torch.arange(6).view(1, 6), dim=1).tolist(),
        "whole": whole.tolist(),
        "gradient": own.grad.tolist(),
        "mean": [each.tolist() for each in gradients],
        "most": ranks.most(10 + ranks.rank),
        "flags": [ranks.any(ranks.rank == 1), ranks.every(ranks.rank == 1), ranks.any(False), ranks.every(True)],
        "told": ranks.tell({"from": ranks.rank}),
        "collected": ranks.collect(ranks.rank),
        "latest": [now(), now(), now()],
    }


class OwnPart(simclr.Method):
    """A loss that does not gather."""

    def embed(self, views):
        gather, self.gather = self.gather, lambda part: part
        try:
            return super().embed(views)
        finally:
            self.gather = gather


def refused(ranks):
    method = flat(kind=OwnPart)
    with pytest.raises(UsageError, match=r"a loss of the whole batch on each of 2 GPUs, got .* through self\.gather"):
        train(method, DIGITS, Budget.parse("1up"), 0, CPU, ranks=ranks)


def in_time(ranks):
    """10 seconds where an update takes a second, half a second more on the second rank."""
    method = flat(adversary="free")
    time = Time(10**15 + ranks.rank * 10**12).driven_by(method, constant(1.0 + 0.5 * ranks.rank))
    return trained(method, DIGITS, "10s", now=time.now, ranks=ranks)


def stopped(ranks):
    """Preempted after 4 updates by a stop that the last rank alone is asked for; the states that were saved."""
    method, saved = flat(adversary="free"), []
    stop = stop_after(method, 4) if ranks.rank == ranks.size - 1 else lambda: False
    keeper = Keeper(save=lambda state: saved.append(copy.deepcopy(state)), stop=stop)
    result, _ = trained(in_double(method), DIGITS, "9up", ranks=ranks, keeper=keeper)
    return result, saved[-1]


def gone_on(ranks, state):
    return trained(in_double(flat(9, adversary="free")), DIGITS, "9up", ranks=ranks, resume=state)


def diverged(ranks):
    """The loss is not a number on the last rank alone."""
    method = flat()
    if ranks.rank == ranks.size - 1:
        at_update(method, 3, lambda loss: loss * torch.nan)
    return trained(method, DIGITS, "50up", ranks=ranks)[0]


def evaluated(ranks):
    """The cells of an evaluation, which rank 0 stores."""
    shelf, crew = Shelf(), Crew(ranks, ATTACKED)
    it = Evaluated(tiny_encoder(), TRAIN, TEST, ATTACKED, 0, CPU, shelf)
    with short_autoattack():
        if ranks.rank > 0:
            serve(it, ranks)
        else:
            evaluate(it, crew if ranks.size > 1 else in_this_process)
            crew.dismiss()
    return shelf


def everything(ranks, state):
    with without_peak():
        refused(ranks)
        return {
            "exchange": exchange(ranks),
            "updates": updates(ranks),
            "in time": in_time(ranks),
            "stopped": stopped(ranks),
            "gone on": gone_on(ranks, state),
            "diverged": diverged(ranks),
            "evaluated": evaluated(ranks),
        }


# ---------------------------------------------------------------- what is found on one and on two


@pytest.fixture(scope="module")
def interrupted():
    """(result, state) of one device after 4 updates."""
    return stopped(ALONE)


@pytest.fixture(scope="module")
def two(interrupted):
    """What both of two ranks have found."""
    return on_ranks(2, everything, interrupted[1])


@pytest.fixture(scope="module")
def one():
    return updates(ALONE)


def distance(a, b):
    """Largest difference of two states, tensors and numbers."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return max((distance(a[key], b[key]) for key in a), default=0.0)
    if isinstance(a, list | tuple):
        assert len(a) == len(b)
        return max(map(distance, a, b), default=0.0)
    if isinstance(a, torch.Tensor):
        assert a.shape == b.shape
        return float((a.double() - b.double()).abs().max())
    assert isinstance(a, float) or a == b
    return abs(a - b) if isinstance(a, float) else 0.0


def test_messages(two):
    for rank, found in enumerate(each["exchange"] for each in two):
        assert found["part"] == [[0, 1, 2], [3, 4, 5]][rank : rank + 1]
        assert found["whole"] == [[0, 1, 2, 3, 4, 5]]
        # that of one device is 2 x k; the mean over two ranks will halve it
        assert found["gradient"] == [[[0, 4, 16], [36, 64, 100]][rank]]
        assert found["mean"] == [[[0.5, 0.5], [0.5, 0.5]], [0, 0.5, 1]]
        assert found["most"] == 11
        assert found["flags"] == [True, False, False, True]
        assert found["told"] == {"from": 0}
        assert found["collected"] == [[0, 1], []][rank]
        assert found["latest"] == [950, 960, 970]


@pytest.mark.parametrize("name", KINDS)
def test_the_update_is_that_of_one_device(one, two, name):
    """Weights, buffers, momenta, delta and losses; only the seconds differ."""
    result, state = one[name]
    for found in two:
        ours, theirs = found["updates"][name]
        assert distance(without_time(theirs), without_time(state)) < 1e-9
        assert (ours.status, ours.updates, ours.epochs) == ("finished", result.updates, result.epochs)
        assert ours.forward_per_image == result.forward_per_image
        assert ours.backward_weight_per_image == result.backward_weight_per_image
        assert ours.flops_per_image == pytest.approx(result.flops_per_image, rel=1e-3)  # all compute the whole loss
    assert distance(*(found["updates"][name][1]["method"] for found in two)) == 0.0


def test_a_budget_in_time_ends_all_in_the_same_update_at_the_pace_of_the_slowest(two):
    results = [found["in time"][0] for found in two]
    assert [(each.status, each.updates, each.train_seconds) for each in results] == [("finished", 6, 9.0)] * 2
    assert results[0].last_lr == results[1].last_lr > 0
    assert results[0].progress == pytest.approx(0.9)


class TestCheckpoints:
    def test_a_stop_of_one_rank_stops_all_after_the_same_update(self, two, interrupted):
        for found in two:
            result, state = found["stopped"]
            assert (result.status, result.updates, state["updates"]) == ("preempted", 4, 4)
            assert distance(without_time(state), without_time(interrupted[1])) < 1e-9
            assert state["delta"].shape[1] == 4  # the whole batch

    def test_of_one_device_goes_on_on_two(self, two):
        expected = trained(in_double(flat(adversary="free")), DIGITS, "9up")[1]
        for found in two:
            result, state = found["gone on"]
            assert (result.status, result.updates, result.preemptions) == ("finished", 9, 1)
            assert distance(without_time(state), without_time(expected)) < 1e-9

    def test_of_two_goes_on_on_one_device(self, two):
        expected = trained(in_double(flat(adversary="free")), DIGITS, "9up")[1]
        result, state = gone_on(ALONE, two[0]["stopped"][1])
        assert (result.status, result.updates, result.preemptions) == ("finished", 9, 1)
        assert distance(without_time(state), without_time(expected)) < 1e-9


def test_what_is_not_finite_on_one_rank_ends_all(two):
    assert [(found["diverged"].status, found["diverged"].updates) for found in two] == [("diverged", 3)] * 2


def test_the_evaluation_is_that_of_one_device(two):
    alone, ours = evaluated(ALONE), two[0]["evaluated"]
    assert list(ours.results) == list(alone.results)
    assert {len(set(alone.results[key].outcomes)) for key in alone.results} == {1, 2}  # some stand, some do not
    for key, expected in alone.results.items():
        assert ours.results[key].model_dump(exclude={"seconds"}) == expected.model_dump(exclude={"seconds"}), key
    assert ours.images.keys() == alone.images.keys()
    for key, images in alone.images.items():
        assert torch.equal(ours.images[key], images), key


@pytest.mark.slow
def test_on_four_ranks():
    alone = updates(ALONE, tuple(EVERY))
    for found in on_ranks(4, updates, tuple(EVERY)):
        assert max(distance(without_time(found[name][1]), without_time(alone[name][1])) for name in EVERY) < 1e-9
