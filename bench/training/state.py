"""The moving parts of one training: how they are saved, put back, and how an update is taken back."""

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.device import device as devices
from bench.distributed.ranks import ALONE, Ranks
from bench.random import digest
from bench.spec import Budget, UsageError
from bench.training.clock import Clock
from bench.training.course import Course
from bench.training.stages import Cost, laid_out
from methods.common.adversary import ADVERSARIES, Adversary
from methods.common.base import BaseMethod


@dataclass
class Training:
    """The moving parts of one run, and how they are saved and put back; made by ``begun``.

    Each stage has an optimizer, an adversary and a course of its own; the clock and the weights go through all.
    """

    method: BaseMethod
    images: int  # of the training set
    clock: Clock
    ends: list[float]  # shares of the budget at which the stages end
    device: torch.device
    ranks: Ranks = ALONE
    losses: list[tuple[float, float]] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)  # what earlier processes have spent, as ``spent``
    phases: devices.Phases | None = None
    energy: devices.Energy | None = None
    compile_seconds: float = 0.0
    preemptions: int = 0  # how often it was stopped or killed
    lost_seconds: float = 0.0  # of training that was done again after a kill: not charged
    costs: list[Cost] = field(default_factory=list)  # of the stages that have begun
    first_epoch: int = 0  # of this stage: no batch and no draw of an earlier one comes again
    marked: int = 0  # marks of the keeper at which a snapshot was taken in this process, whatever the stage
    optimizer: torch.optim.Optimizer = field(init=False)
    adversary: Adversary = field(init=False)
    course: Course = field(init=False)

    def __post_init__(self) -> None:
        self.config, self.stages = self.method.config, self.method.stages()

    @property
    def cost(self) -> Cost:
        """Of the stage under way."""
        return self.costs[-1]

    @property
    def over(self) -> bool:
        """Whether this is the last stage."""
        return len(self.costs) == len(self.stages)

    def enter(self) -> None:
        """Begin the next stage: its settings, its optimizer and its adversary."""
        if self.costs:
            self.account()
            self.first_epoch += math.ceil(self.cost.updates / self.course.updates_per_epoch)
        number, clock = len(self.costs), self.clock
        stage = self.stages[number]
        self.method.config = config = replace(self.config, **stage.settings)
        self.method.begin(number)
        self.course = Course(self.images, config.batch, config.updates_per_batch, self.ranks.size)
        self.optimizer = self.method.optimizer()
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.adversary = ADVERSARIES[config.adversary](config)
        clock.enter(self.ends[number - 1] if number else 0.0, self.ends[number])
        images = config.batch / config.updates_per_batch
        name, per_epoch = stage.name or f"stage {number + 1}", self.course.updates_per_epoch
        self.costs.append(Cost(name, clock.updates, clock.train_seconds, per_epoch, images=images))

    def account(self) -> None:
        """Charge the stage under way with what was spent since it began."""
        self.cost.updates = self.clock.updates - self.cost.first_update
        self.cost.seconds = self.clock.train_seconds - self.cost.first_seconds

    @property
    def spent(self) -> dict[str, float]:
        """Seconds of each phase on this rank, and joules of all ranks where they are known; waits for the others."""
        now: dict[str, float | None] = dict(self.phases.seconds()) if self.phases else {}
        joules = self.energy.joules() if self.energy else None
        now["joules"] = None if joules is None else float(self.ranks.sum(torch.tensor(joules, dtype=torch.float64)))
        spent = dict(self.before)
        for name, amount in now.items():
            if amount is not None:
                spent[name] = spent.get(name, 0.0) + amount
        return spent

    @property
    def schedule_meter(self) -> Tensor | None:
        """How often the schedule's rate decided, where the optimizer counts it (LARS)."""
        meter = getattr(self.optimizer, "schedule_meter", None)
        return meter if isinstance(meter, Tensor) else None

    def state(self) -> dict[str, Any]:
        """All that is needed to go on exactly here, on any number of ranks; plain tensors, numbers and lists."""
        self.account()
        delta = self.adversary.delta
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule_meter,
            "delta": None if delta is None else self.ranks.gather(delta),
            "generators": generators(self.device),
            "costs": [asdict(cost) | {"passes": list(cost.passes)} for cost in self.costs],
            "first_epoch": self.first_epoch,
            "updates": self.clock.updates,
            "seconds": self.clock.train_seconds,
            "durations": list(self.clock.durations),
            "paused": self.clock.paused,
            "losses": [list(point) for point in self.losses],
            "spent": self.spent,
            "preemptions": self.preemptions,
            "lost_seconds": self.lost_seconds,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back, on the device where its parts are. Raises UsageError for other fields than these."""
        while len(self.costs) < min(len(state.get("costs", ())), len(self.stages)):
            self.enter()
        own = self.state()
        check_fields(state, own)
        for part in ("method", "optimizer", "generators"):
            check_fields(state[part], own[part], f"{part}.")
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule_meter is not None:
            self.schedule_meter.copy_(state["schedule"])
        delta = state["delta"]
        self.adversary.delta = None if delta is None else self.ranks.part(delta, dim=1).to(self.device)
        load_generators(state["generators"], self.device)
        self.costs = [Cost(**cost | {"passes": tuple(cost["passes"])}) for cost in state["costs"]]
        self.first_epoch = state["first_epoch"]
        self.clock.go_on(state["seconds"], state["updates"], state["durations"], state["paused"])
        self.losses = [(progress, loss) for progress, loss in state["losses"]]
        self.before = dict(state["spent"])
        self.preemptions, self.lost_seconds = state["preemptions"], state["lost_seconds"]

    def tensors(self) -> list[Tensor]:
        """Everything that an update changes in place."""
        momenta = [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        meter = [] if self.schedule_meter is None else [self.schedule_meter]
        return [*self.method.parameters(), *self.method.buffers(), *momenta, *meter]

    def finite(self) -> bool:
        """Whether all of them are, and delta, on all ranks; waits for the device."""
        delta = self.adversary.delta
        tensors = [*self.tensors(), *([] if delta is None else [delta])]
        flags = [t.detach().isfinite().all() for t in tensors if t.is_floating_point()]
        own = all(bool(torch.stack([f for f in flags if f.device == d]).all()) for d in {f.device for f in flags})
        return self.ranks.every(own)


def begun(
    method: BaseMethod,
    images: int,
    budget: Budget,
    device: torch.device,
    ranks: Ranks = ALONE,
    now: Callable[[], int] = time.monotonic_ns,
) -> Training:
    """A training on so many images, in its first stage. Raises UsageError for stages or batches that cannot be."""
    ends, total = laid_out(method, images, budget, ranks.size)
    clock = Clock(budget, total, now=now, synchronize=lambda: devices.synchronize(device))
    training = Training(method, images, clock, ends, device, ranks)
    training.enter()
    return training


def check_fields(state: dict[str, Any], expected: dict[str, Any], prefix: str = "") -> None:
    """Raises UsageError unless both have the same keys."""
    if state.keys() != expected.keys():
        odd = ", ".join(sorted(f"{prefix}{key}" for key in state.keys() ^ expected.keys()))
        raise UsageError(f"expected a checkpoint of this version and method, got one that differs in {odd}")


class Undo:
    """A copy of the state, so that an update can be taken back: the warm-up, one that ended late or was interrupted."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.tensors: list[Tensor] = []
        self.copies: list[Tensor] = []
        self.save()
        self.follow()

    @property
    def current(self) -> bool:
        """Whether this is the state after the last update that counts, all of it."""
        return self.saved_at == self.followed_at == self.training.clock.updates

    def follow(self) -> None:
        """Remember delta, which an adversary may move only when it is asked for the next loss, or closed."""
        self.delta = self.training.adversary.delta
        self.followed_at = self.training.clock.updates

    def save(self) -> None:
        """Remember everything but delta as it is now."""
        tensors = [t.detach() for t in self.training.tensors()]
        if len(tensors) != len(self.copies):
            self.copies = [t.clone() for t in tensors]
        else:
            for copy, tensor in zip(self.copies, tensors, strict=True):
                copy.copy_(tensor)
        self.tensors = tensors
        self.rates = [group["lr"] for group in self.training.optimizer.param_groups]
        self.known = set(self.training.optimizer.state)
        self.generators = generator_states(self.training.device)
        self.saved_at = self.training.clock.updates

    def restore(self) -> None:
        """Put the remembered state back; optimizer state that is newer than it is forgotten."""
        for copy, tensor in zip(self.copies, self.tensors, strict=True):
            tensor.copy_(copy)
        self.training.adversary.delta = self.delta
        for group, rate in zip(self.training.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate
        for parameter in set(self.training.optimizer.state) - self.known:
            del self.training.optimizer.state[parameter]
        self.training.optimizer.zero_grad(set_to_none=True)
        set_generators(self.generators, self.training.device)


# ---------------------------------------------------------------- generators that a user's method may draw from


@contextmanager
def kept_generators(device: torch.device) -> Iterator[None]:
    """Afterwards the global generators are as before, whatever was drawn inside."""
    before = generator_states(device)
    try:
        yield
    finally:
        set_generators(before, device)


def seed_generators(seed: int) -> None:
    """The global generators as a function of the seed."""
    random.seed(digest(seed, "python"))
    np.random.seed(digest(seed, "numpy") % 2**32)  # noqa: NPY002  # the global one is meant
    torch.manual_seed(digest(seed, "torch"))


def generator_states(device: torch.device) -> tuple[Any, ...]:
    """The states of Python's, numpy's, torch's and the device's, in their own forms, which is quick."""
    numpy_state = np.random.get_state()  # noqa: NPY002
    return random.getstate(), numpy_state, torch.get_rng_state(), devices.generator_state(device)


def set_generators(states: tuple[Any, ...], device: torch.device) -> None:
    """Put them back."""
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    devices.load_generator_state(device, states[3])


def generators(device: torch.device) -> dict[str, Any]:
    """The states as plain lists and tensors, to be saved."""
    (version, internal, second), (name, keys, *rest), cpu, gpu = generator_states(device)
    python, numpy = [version, list(internal), second], [name, keys.tolist(), *rest]
    return {"python": python, "numpy": numpy, "torch": cpu, "cuda": gpu}


def load_generators(states: dict[str, Any], device: torch.device) -> None:
    """Put back what was saved."""
    version, internal, second = states["python"]
    name, keys, *rest = states["numpy"]
    numpy_state = (name, np.array(keys, dtype=np.uint32), *rest)
    set_generators(((version, tuple(internal), second), numpy_state, states["torch"], states["cuda"]), device)
