"""The moving parts of one training: how they are saved, put back, and how an update is taken back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.device import device as devices
from bench.distributed.ranks import ALONE, Ranks
from bench.random import digest
from bench.spec import UsageError
from bench.training.clock import Clock
from methods.common.adversary import Adversary
from methods.common.base import BaseMethod
from methods.common.optim import LARS


@dataclass
class Training:
    """The moving parts of one run, and how they are saved and put back."""

    method: BaseMethod
    optimizer: LARS
    adversary: Adversary
    clock: Clock
    device: torch.device
    ranks: Ranks = ALONE
    losses: list[tuple[float, float]] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)  # what earlier processes have spent, as ``spent``
    phases: devices.Phases | None = None
    energy: devices.Energy | None = None
    meter: devices.Meter | None = None  # of one update, as the warm-up found it
    passes: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of one update: forward, backward to input, to weights
    compile_seconds: float = 0.0
    preemptions: int = 0  # how often it was stopped or killed
    lost_seconds: float = 0.0  # of training that was done again after a kill: not charged

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

    def state(self) -> dict[str, Any]:
        """All that is needed to go on exactly here, on any number of ranks; plain tensors, numbers and lists."""
        delta = self.adversary.delta
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.optimizer.schedule_meter,
            "delta": None if delta is None else self.ranks.gather(delta),
            "generators": generators(self.device),
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
        own = self.state()
        check_fields(state, own)
        for part in ("method", "optimizer", "generators"):
            check_fields(state[part], own[part], f"{part}.")
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.schedule_meter.copy_(state["schedule"])
        delta = state["delta"]
        self.adversary.delta = None if delta is None else self.ranks.part(delta, dim=1).to(self.device)
        load_generators(state["generators"], self.device)
        self.clock.go_on(state["seconds"], state["updates"], state["durations"], state["paused"])
        self.losses = [(progress, loss) for progress, loss in state["losses"]]
        self.before = dict(state["spent"])
        self.preemptions, self.lost_seconds = state["preemptions"], state["lost_seconds"]

    def tensors(self) -> list[Tensor]:
        """Everything that an update changes in place."""
        momenta = [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        return [*self.method.parameters(), *self.method.buffers(), *momenta, self.optimizer.schedule_meter]

    def finite(self) -> bool:
        """Whether all of them are, and delta, on all ranks; waits for the device."""
        delta = self.adversary.delta
        tensors = [*self.tensors(), *([] if delta is None else [delta])]
        found = [t.detach().isfinite().all() for t in tensors if t.is_floating_point()]
        own = all(bool(torch.stack([f for f in found if f.device == d]).all()) for d in {f.device for f in found})
        return self.ranks.every(own)


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
        self.lr = self.training.optimizer.param_groups[0]["lr"]
        self.known = set(self.training.optimizer.state)
        self.generators = generator_states(self.training.device)
        self.saved_at = self.training.clock.updates

    def restore(self) -> None:
        """Put the remembered state back; optimizer state that is newer than it is forgotten."""
        for copy, tensor in zip(self.copies, self.tensors, strict=True):
            tensor.copy_(copy)
        self.training.adversary.delta = self.delta
        self.training.optimizer.param_groups[0]["lr"] = self.lr
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
