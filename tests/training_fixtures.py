"""What the tests of the training share: small methods, a time that is told, and the whole state at the end of a run."""

import copy
import random
from unittest import mock

import numpy as np
import torch
from torch import nn

import bench.training.train
from bench.spec import Budget
from bench.storage.checkpoint import load_checkpoint, save_checkpoint
from bench.training.train import Keeper, attempt, train
from methods import simclr

CPU = torch.device("cpu")
SECONDS = 10**9


class Flat(nn.Module):
    """An encoder of one matrix and batch norm: an update takes about a millisecond."""

    width = 8

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.BatchNorm1d(8))

    def forward(self, images):
        return self.layers(images)


class Drawing(simclr.Method):
    """A method of a user's: its loss draws from every global generator, and a buffer counts its updates."""

    def build(self, width):
        super().build(width)
        self.register_buffer("teacher", torch.zeros(self.config.embedding_width))

    def loss(self, views):
        drawn = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002  # the global one is meant
        drawn += random.gauss() / 9 + np.random.randn() / 9  # noqa: NPY002  # both keep every second number
        embeddings = self.embed(views)
        return super().loss(views) * drawn + (embeddings.mean((0, 1)) - self.teacher).square().sum()

    def after_update(self):
        with torch.no_grad():
            self.teacher.mul_(0.9).add_(self.encoder.layers[1].bias, alpha=0.1)


class Time:
    """Moves only while a method computes a loss, and by what ``sleep`` is told."""

    def __init__(self, nanoseconds=10**15):
        self.nanoseconds = nanoseconds

    def now(self):
        return self.nanoseconds

    def sleep(self, seconds):
        self.nanoseconds += round(seconds * SECONDS)

    def driven_by(self, method, durations):
        """Each loss of the method takes the next of these seconds; the first one is that of the warm-up."""
        loss, durations = method.loss, iter(durations)

        def slow(views):
            self.sleep(next(durations))
            return loss(views)

        method.loss = slow
        return self


def flat(seed=0, kind=simclr.Method, **settings):
    """The method on Flat; the default of every setting is that of a batch of 4 and heads of 8."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = simclr.Config(**{"batch": 4, "hidden_width": 8, "embedding_width": 8} | settings)
        return kind(config).attach(Flat())


def constant(duration, warm_up=7.0):
    """Seconds of each loss."""
    yield warm_up
    while True:
        yield duration


def at_update(method, n, change):
    """Let the n-th loss (from 1, after the warm-up) be made with change(loss)."""
    loss, calls = method.loss, 0

    def changed(views):
        nonlocal calls
        calls += 1
        return change(loss(views)) if calls == n + 1 else loss(views)

    method.loss = changed
    return method


def stop_after(method, updates):
    """A stop that is asked for once the method has made so many updates, beside that of the warm-up."""
    made, after_update = [], method.after_update

    def counted():
        made.append(0)
        after_update()

    method.after_update = counted
    return lambda: len(made) > updates


def equal(a, b):
    """Nested dictionaries and lists of tensors and numbers are bitwise equal."""
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and a.numpy().tobytes() == b.numpy().tobytes()
    return type(a) is type(b) and a == b


def but_for(state, *keys):
    return {key: value for key, value in state.items() if key not in keys}


def without_time(state):
    """What a budget in updates makes the same in every run."""
    return but_for(state, "costs", "seconds", "durations", "spent", "paused", "preemptions", "lost_seconds")


def told(result):
    """A result without what depends on the machine, or tells of interruptions."""
    left_out = {"compile_seconds", "preemptions", "lost_seconds", "peak_memory_bytes", "images_per_second"}
    timed = {name for name in type(result).model_fields if name.endswith("_seconds")}
    return result.model_dump(exclude=left_out | timed | {"matrix_share", "paused"})


def trained(method, images, budget, seed=0, device=CPU, **settings):
    """(result, whole state at the end) of a training, the generators as the training left them."""
    ends = []

    def watched(training, *arguments):
        status = attempt(training, *arguments)
        ends.append(copy.deepcopy(training.state()))
        return status

    budget = Budget.parse(budget) if isinstance(budget, str) else budget
    with mock.patch.object(bench.training.train, "attempt", watched):
        result = train(method, images, budget, seed, device, **settings)
    return result, ends[0]


def on_disk(folder, **settings):
    """(a keeper that saves into a folder of checkpoints, the updates at which it did)."""
    at = []

    def save(state):
        at.append(state["updates"])
        save_checkpoint(folder, state)

    return Keeper(save=save, **settings), at


def newest(folder):
    """The newest state of a folder of checkpoints, none of which is damaged."""
    state, damaged = load_checkpoint(folder)
    assert damaged == []
    return state
