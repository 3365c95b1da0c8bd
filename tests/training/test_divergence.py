"""NaN and infinity, wherever they begin, end a training as diverged within 50 updates (promise P12)."""

import copy
import json
import math
import signal

import pytest
import torch
from training_fixtures import Drawing, Time, at_update, flat, stop_after, trained

import bench.training.step
import bench.training.train
from bench.record import TrainResult
from bench.runs.execute import execute
from bench.spec import Budget, DataSpec, EvalSpec, RunSpec
from bench.storage.checkpoint import load_checkpoint
from bench.storage.signals import StopFlag
from bench.storage.store import RunFolder
from bench.training.train import Keeper
from methods import simclr
from methods.common import adversary
from methods.common.optim import LARS

AT = 3  # the update after or in which it is planted


@pytest.fixture(scope="module")
def twenty(digits):
    return digits.first(20)


class TestDiverged:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("update", [1, 4])
    def test_once_a_loss_is_not_finite(self, value, update, twenty):
        method = at_update(flat(), update, lambda loss: loss * value)
        result, _ = trained(method, twenty, "9up")
        assert (result.status, result.updates) == ("diverged", update)
        assert len(result.losses) == update - 1
        TrainResult.model_validate_json(result.model_dump_json())  # no NaN is in it

    def test_by_the_gradient_of_the_very_last_update(self, twenty):
        """The loss is finite, its gradient is not, and no later loss would show it."""
        method = flat()
        at_update(method, 5, lambda loss: loss + (0 * loss).sqrt())
        result, _ = trained(method, twenty, "5up")
        assert (result.status, result.updates, len(result.losses)) == ("diverged", 5, 5)

    def test_not_by_an_update_that_was_undone(self, twenty):
        method = flat()
        fake = Time().driven_by(method, [7.0] + [1.0] * 4 + [20.0])
        at_update(method, 5, lambda loss: loss * float("nan"))
        result, state = trained(method, twenty, "10s", now=fake.now)
        assert (result.status, result.updates) == ("finished", 4)
        assert all(t.isfinite().all() for t in state["method"].values())


# ---------------------------------------------------------------- planted at twenty places


def after_update(plant):
    """Change the moving parts of the training after an update: plant(training, value)."""

    def planted(monkeypatch, method, value):
        original, calls = bench.training.step.update, []

        def update(training, loss):
            original(training, loss)
            calls.append(0)
            if len(calls) == AT + 1:  # the first is that of the warm-up
                with torch.no_grad():
                    plant(training, value)

        for module in (bench.training.step, bench.training.train):  # the warm-up counts, too
            monkeypatch.setattr(module, "update", update)

    return planted


def tensor(name):
    """One number of a weight or buffer of the method."""
    return after_update(lambda training, value: training.method.state_dict()[name].view(-1)[:1].fill_(value))


def momentum(name):
    def plant(training, value):
        weight = training.method.get_parameter(name)
        training.optimizer.state[weight]["momentum_buffer"].view(-1)[:1].fill_(value)

    return after_update(plant)


def gradient(name):
    def planted(monkeypatch, method, value):
        calls = []

        def hook(gradient):
            calls.append(0)
            return gradient.index_fill(0, torch.tensor([0]), value) if len(calls) == AT + 1 else gradient

        method.get_parameter(name).register_hook(hook)

    return planted


def output(name, per_update):
    """One number of what a method of the method's returns, so many times in each update."""

    def planted(monkeypatch, method, value):
        original, calls = getattr(method, name), []

        def changed(*arguments):
            found = original(*arguments).clone()
            calls.append(0)
            if len(calls) == per_update * AT + 1:
                found.view(-1)[:1].fill_(value)
            return found

        setattr(method, name, changed)

    return planted


def loss(monkeypatch, method, value):
    at_update(method, AT, lambda loss: loss * value)


def feature(monkeypatch, method, value):
    calls = []  # four for each update, that of the warm-up included, and one of the meter's

    def hook(module, inputs, features):
        calls.append(0)
        return features.index_fill(0, torch.tensor([0]), value) if len(calls) == 4 * AT + 2 else features

    method.encoder.register_forward_hook(hook)


def rate(monkeypatch, method, value):
    original, calls = LARS.step, []

    def step(self):
        calls.append(0)
        group = self.param_groups[0]
        before = group["lr"]
        group["lr"] = value if len(calls) == AT + 1 else before
        original(self)
        group["lr"] = before

    monkeypatch.setattr(LARS, "step", step)


def delta(monkeypatch, method, value):
    original, calls = adversary.project, []

    def project(*arguments):
        calls.append(0)
        found = original(*arguments)
        if len(calls) == AT + 1:
            found.view(-1)[:1].fill_(value)
        return found

    monkeypatch.setattr(adversary, "project", project)


ENCODER, HEAD = "encoder.layers.1", "projector.0"
PLACES = {
    "loss": ("none", loss),
    "loss of one replay": ("free", loss),
    "loss after a climb": ("pgd", loss),
    "gradient of a weight": ("none", gradient(f"{ENCODER}.weight")),
    "gradient of a bias": ("free", gradient(f"{HEAD}.bias")),
    "weight": ("none", tensor(f"{ENCODER}.weight")),
    "weight under attack": ("pgd", tensor(f"{ENCODER}.weight")),
    "weight of the head": ("free", tensor(f"{HEAD}.weight")),
    "bias": ("none", tensor(f"{HEAD}.bias")),
    "gain of batch norm": ("none", tensor("encoder.layers.2.weight")),
    "running mean": ("none", tensor("encoder.layers.2.running_mean")),
    "running variance": ("pgd", tensor("encoder.layers.2.running_var")),
    "running variance of the head": ("free", tensor("projector.1.running_var")),
    "buffer": ("none", tensor("teacher")),
    "momentum": ("none", momentum(f"{ENCODER}.weight")),
    "momentum of a bias": ("pgd", momentum(f"{HEAD}.bias")),
    "delta": ("free", delta),
    "view": ("none", output("augment", 1)),
    "embedding": ("none", output("embed", 2)),
    "feature": ("none", feature),
    "learning rate": ("none", rate),
    "meter": ("none", after_update(lambda training, value: training.optimizer.schedule_meter[:1].fill_(value))),
}


def finite(state):
    """Whether every number of a state is."""
    if isinstance(state, dict):
        return all(map(finite, state.values()))
    if isinstance(state, list | tuple):
        return all(map(finite, state))
    if isinstance(state, torch.Tensor):
        return bool(state.isfinite().all())
    return not isinstance(state, float) or math.isfinite(state)


@pytest.mark.parametrize("place", PLACES)
class TestPlanted:
    def trained(self, images, place, value, monkeypatch, **keeper):
        """(result, states that were saved)."""
        kind, plant = PLACES[place]
        method, saved = flat(kind=Drawing, adversary=kind, clamp_carried=False), []
        if "stop" in keeper:
            keeper["stop"] = stop_after(method, keeper["stop"])
        plant(monkeypatch, method, value)
        keeper = Keeper(save=lambda state: saved.append(copy.deepcopy(state)), **keeper)
        return trained(method, images, "80up", keeper=keeper)[0], saved

    @pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
    def test_is_seen_within_fifty_updates_and_never_saved(self, place, value, twenty, monkeypatch):
        result, saved = self.trained(twenty, place, value, monkeypatch, every=0.0)
        assert result.status == "diverged"
        assert AT <= result.updates <= AT + 50
        assert finite(result.model_dump())
        assert len(saved) > 1 or PLACES[place][0] == "free"  # which is saved after whole batches
        assert all(map(finite, saved))

    def test_is_not_saved_by_a_stop_either(self, place, twenty, monkeypatch):
        result, saved = self.trained(twenty, place, math.nan, monkeypatch, stop=AT)
        assert result.status == "diverged"
        assert len(saved) == 1
        assert all(map(finite, saved))


def test_the_record_of_a_run_says_so_and_keeps_the_last_finite_checkpoint(tmp_path, monkeypatch):
    original, calls = simclr.Method.loss, []

    def loss(self, views):
        calls.append(0)
        return original(self, views) * (math.nan if len(calls) > 5 else 1)

    monkeypatch.setattr(simclr.Method, "loss", loss)
    spec = RunSpec(
        method="simclr",
        settings={"batch": 16},
        data=DataSpec(name="synthetic", train_images=32, test_images=16),
        budget=Budget.parse("9up"),
        threads=1,
        eval=EvalSpec(eps=(0.02,), main_eps=0.02),
    )
    handlers = {
        each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)
    }
    events = []
    try:
        execute(tmp_path, spec, events.append, StopFlag(), save_every=0.0)
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    folder = RunFolder(tmp_path, spec)
    record = folder.record()
    assert (record.status, record.train.status, record.message) == ("diverged", "diverged", "after 5 updates")
    assert events[-1] == {"event": "ended", "status": "diverged", "message": "after 5 updates"}
    state, damaged = load_checkpoint(folder.path / "checkpoints")
    assert (state["updates"], damaged) == (4, [])
    assert finite(state)
    assert not (folder.path / "encoder.safetensors").exists()
    assert record.results == []

    def refused(name):
        raise AssertionError(name)

    for file in folder.path.rglob("*.json"):
        json.loads(file.read_text(), parse_constant=refused)  # NaN and Infinity are no JSON
