"""States are saved every so often, off the clock, and a signal in the middle of an update costs that update only."""

import copy
import itertools
import random
import signal
import sys
from pathlib import Path

import pytest
from training_fixtures import CPU, Drawing, Time, constant, equal, flat, on_disk, trained, without_time

from bench.spec import Budget
from bench.storage.disk import DiskError
from bench.storage.signals import Interrupted
from bench.training import clock, state, step
from bench.training import train as train_module
from bench.training.clock import Clock
from bench.training.state import Undo
from bench.training.train import Keeper, train
from methods.common import optim
from methods.common.optim import LARS

MODULES = (train_module, step, state, clock, optim)
TRACED = {str(Path(module.__file__)) for module in MODULES}


@pytest.fixture(scope="module")
def twenty(digits):
    return digits.first(20)


class TestEvery:
    @pytest.mark.parametrize(
        ("adversary", "every", "expected"),
        [
            ("none", 2.5, [0, 3, 6, 9]),  # more than 2.5 s of training after the one before
            ("none", 0.0, list(range(10))),
            ("free", 2.5, [0, 3, 6, 9]),  # only after whole batches, three updates each
            ("free", 3.5, [0, 6]),
            ("none", float("inf"), [0]),
        ],
    )
    def test_so_many_seconds_of_training_and_off_the_clock(self, adversary, every, expected, twenty):
        method, at = flat(adversary=adversary), []
        clock = Time().driven_by(method, constant(1.0))

        def save(state):
            at.append(state["updates"])
            assert state["seconds"] == state["updates"]
            clock.sleep(100)

        keeper = Keeper(save=save, every=every)
        result, _ = trained(method, twenty, "10s", now=clock.now, keeper=keeper)
        assert at == expected
        assert (result.updates, result.train_seconds) == (10, 10.0)
        assert result.paused == ({"checkpoint": 100.0 * (len(at) - 1)} if len(at) > 1 else {})

    @pytest.mark.parametrize("adversary", ["none", "pgd", "free"])
    def test_changes_nothing(self, adversary, twenty, tmp_path):
        keeper, at = on_disk(tmp_path, every=0.0)
        kept, state = trained(flat(kind=Drawing, adversary=adversary), twenty, "7up", keeper=keeper)
        alone, other = trained(flat(kind=Drawing, adversary=adversary), twenty, "7up")
        assert at == ([0, 3, 6] if adversary == "free" else list(range(7)))
        assert kept.losses == alone.losses
        assert equal(without_time(state), without_time(other))

    def test_a_batch_is_augmented_once_whether_or_not_it_is_saved_after(self, twenty):
        method = flat(adversary="free")
        augment, calls = method.augment, []
        method.augment = lambda *arguments: calls.append(0) or augment(*arguments)
        trained(method, twenty, "9up", keeper=Keeper(every=0.0))
        assert len(calls) == 1 + 3  # that of the warm-up first

    @pytest.mark.parametrize("nth", [1, 2])
    def test_a_disk_that_refuses_ends_it_at_once(self, nth, twenty):
        method, at = flat(), []

        def save(state):
            at.append(state["updates"])
            if len(at) == nth:
                raise DiskError("no space left")

        with pytest.raises(DiskError, match="no space left"):
            train(method, twenty, Budget.parse("9up"), 0, CPU, keeper=Keeper(save=save, every=0.0))
        assert at == list(range(nth))


# ---------------------------------------------------------------- signals in the middle of an update


BUDGETS = {"timed": ("9s", 1.0), "slow": ("9up", 1.5)}  # the second: a copy of the state beside slow updates


def run(images, adversary, budget, plant=None, resume=None, seed=0, every=float("inf")):
    """(status or Interrupted, end, states that were saved) of a training in which ``plant(method)`` raises."""
    budget, duration = BUDGETS[budget]
    method, states = flat(seed, kind=Drawing, adversary=adversary), []
    clock = Time().driven_by(method, constant(duration))
    if plant is not None:
        plant(method)
    keeper = Keeper(save=lambda state: states.append(copy.deepcopy(state)), every=every)
    try:
        result, end = trained(method, images, budget, now=clock.now, resume=resume, keeper=keeper)
    except Interrupted:
        return Interrupted, None, states
    return result.status, end, states


def calls_of(function, nth, before=True):
    """The function, with Interrupted raised before or after its n-th call is made."""
    count = itertools.count(1)

    def called(*arguments, **settings):
        number = next(count)
        if number == nth and before:
            raise Interrupted(signal.SIGALRM)
        value = function(*arguments, **settings)
        if number == nth:
            raise Interrupted(signal.SIGALRM)
        return value

    return called


def in_method(name, nth, before=True):
    """Interrupt the n-th call of a method of the method's."""
    return lambda monkeypatch, method: setattr(method, name, calls_of(getattr(method, name), nth, before))


def in_class(owner, name, nth, before=True):
    """Interrupt the n-th call of a method of this class."""
    return lambda monkeypatch, method: monkeypatch.setattr(owner, name, calls_of(getattr(owner, name), nth, before))


def in_backward(monkeypatch, method):
    """In the middle of the backward pass: some weights have their gradient, others not."""
    hook = calls_of(lambda gradient: None, 5)
    method.projector[0].weight.register_hook(hook)


def half_a_step(monkeypatch, method):
    """Half of the weights have moved, all momenta have."""
    descend, count = LARS._descend, itertools.count(1)

    def half(self, weights, gradients, group):
        if next(count) == 5:
            descend(self, weights[::2], gradients[::2], group)
            raise Interrupted(signal.SIGALRM)
        descend(self, weights, gradients, group)

    monkeypatch.setattr(LARS, "_descend", half)


PLACES = {  # the fourth update; the first call of each is the warm-up's
    "augment": in_method("augment", 5),
    "loss": in_method("loss", 5),
    "after the loss": in_method("loss", 5, before=False),
    "backward": in_backward,
    "half a step": half_a_step,
    "after the step": in_class(LARS, "step", 5, before=False),
    "after_update": in_method("after_update", 5),
    "before tick": in_class(Clock, "tick", 4),
    "after tick": in_class(Clock, "tick", 4, before=False),
    "Undo.save": in_class(Undo, "save", 6),  # two are made before the first update
    "after Undo.save": in_class(Undo, "save", 6, before=False),
    "Undo.follow": in_class(Undo, "follow", 8),
}


@pytest.fixture(scope="module")
def whole(twenty):
    """How a training without an interruption ends."""
    return {key: run(twenty, *key)[1] for key in itertools.product(["none", "pgd", "free"], BUDGETS)}


def goes_on(images, adversary, budget, states, whole):
    """Whether the newest state leads to the end of the training that was not interrupted."""
    status, end, _ = run(images, adversary, budget, resume=states[-1], seed=9)
    counted = {"spent", "paused", "preemptions"}
    kept = [{key: value for key, value in state.items() if key not in counted} for state in (end, whole)]
    return status == "finished" and equal(*kept)


class TestInterrupted:
    @pytest.mark.ci
    @pytest.mark.parametrize(("adversary", "budget"), [("none", "timed"), ("free", "slow")])  # in a climb: below
    @pytest.mark.parametrize("place", PLACES)
    def test_at_a_place_of_the_fourth_update(self, place, adversary, budget, twenty, whole, monkeypatch):
        plant = PLACES[place]
        if (place, adversary) == ("augment", "free"):
            plant = in_method("augment", 3)  # once for three replays
        with monkeypatch.context() as patch:
            status, _, states = run(twenty, adversary, budget, lambda method: plant(patch, method))
        assert status == "preempted"
        assert states[-1]["updates"] in (0, 3, 4)
        assert goes_on(twenty, adversary, budget, states, whole[adversary, budget])
        if adversary != "free" and "after" not in place and "Undo" not in place:
            assert states[-1]["updates"] == 3

    @pytest.mark.parametrize("budget", BUDGETS)
    def test_in_the_climb(self, budget, twenty, whole, monkeypatch):
        """Five steps for each update: in the third step of the fourth."""
        plant = in_method("adversarial_loss", 5 + 15 + 3)
        status, _, states = run(twenty, "pgd", budget, lambda method: plant(monkeypatch, method))
        assert (status, states[-1]["updates"]) == ("preempted", 3)
        assert goes_on(twenty, "pgd", budget, states, whole["pgd", budget])

    def test_of_quick_updates_leaves_the_last_checkpoint(self, twenty):
        """Without a copy of the state the update cannot be taken back."""
        method, states = flat(), []
        method.loss = calls_of(method.loss, 5)
        result, _ = trained(method, twenty, "9up", keeper=Keeper(save=lambda s: states.append(s["updates"])))
        assert (result.status, states) == ("preempted", [0])

    @pytest.mark.parametrize(
        ("adversary", "budget"),
        [
            ("free", "slow"),
            *(pytest.param(name, "timed", marks=pytest.mark.slow) for name in ("none", "pgd")),
        ],
    )
    def test_at_any_line(self, adversary, budget, twenty, whole):
        """As a signal's handler raises: between two lines of the loop, the state, the clock or the optimizer."""
        lines = count_lines(lambda: run(twenty, adversary, budget, every=2.0))
        draw, ends = random.Random(f"{adversary} {budget}"), []
        for moment in draw.sample(range(lines // 6, lines), 5):
            status, _, states = interrupted_at(moment, lambda: run(twenty, adversary, budget, every=2.0))
            assert status in ("preempted", "finished", Interrupted), moment
            assert goes_on(twenty, adversary, budget, states, whole[adversary, budget]), moment
            ends.append(states[-1]["updates"])
        assert len(set(ends)) > 2


def count_lines(function):
    """Lines of TRACED that the function runs."""
    return traced(function, None)[1]


def interrupted_at(moment, function):
    """The function's value, with Interrupted raised at one of those lines."""
    return traced(function, moment)[0]


def traced(function, moment):
    """(the function's value, lines of TRACED that it has run); Interrupted is raised at line number ``moment``."""
    lines, before = 0, sys.gettrace()

    def trace(frame, event, argument):
        nonlocal lines
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            lines += 1
            if lines == moment:
                raise Interrupted(signal.SIGALRM)
        return trace

    sys.settrace(trace)
    try:
        return function(), lines
    finally:
        sys.settrace(before)
