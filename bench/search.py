"""One attack on some images: searched in the precision that was asked for, verified, decided in float32 (protocol 1.5).

What an attack believes does not count: ball and box are checked on the images that it returns, and they are scored
again. Those that it broke in TF32 and that stand in float32 are attacked again in float32.
"""

import hashlib
import logging
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from attacks.common.base import BaseAttack
from bench import device as devices
from bench.data import ImageSet, Pictures
from bench.files import sha256
from bench.protocols import Classifier, OfCrops
from bench.repro import stream
from bench.spec import ThreatModel

Report = Callable[[dict[str, Any]], None]
Found = tuple[Tensor, Tensor, int, Tensor]  # places of a chunk (B,); of them: which stand, flips, what was returned
TOLERANCE = 1e-6  # of the ball: float rounding, not freedom


@dataclass(frozen=True)
class Cell:
    """One attack at one eps under one protocol, on the first ``images`` test images."""

    protocol: str
    attack: str
    eps: float
    images: int
    curve: bool = False

    @property
    def name(self) -> str:
        """Of the attack, in every table: a .py file of the user's own goes by its stem."""
        return Path(self.attack).stem if self.attack.endswith(".py") else self.attack


@dataclass(frozen=True)
class Search:
    """An attack, pointed at a classifier. ``chunk``: images that are scored at once."""

    classifier: Classifier
    attack: BaseAttack
    name: str
    protocol: str
    eps: float
    precision: Literal["fp32", "tf32"]
    seed: int
    device: torch.device
    chunk: int

    def __call__(self, test: ImageSet, ids: Tensor, standing: Tensor, number: int) -> tuple[Tensor, int, Tensor]:
        """(which of the test images ``ids`` (B,) stand, flips, what was returned); only ``standing`` (B,) are attacked.

        What was returned is that for each image attacked, in their order. ``number`` of the chunk, from which its draws
        come. Raises RuntimeError if the attack leaves its threat model: that is a fault of the attack, never a result.
        """
        if not standing.any():
            return standing, 0, test.pictures(slice(0), "cpu")
        # PGD's draws are those of its whole chunk, whoever is left to attack; a stage's are those of what it gets
        whole = self.name == "pgd"
        given = ids if whole else ids[standing]
        wanted = standing.to(self.device)
        images = test.pictures(given, self.device)
        labels = test.labels[given].to(self.device)
        if self.attack.space == "crop":
            images = self.classifier.crops(images)
        model: nn.Module = OfCrops(self.classifier).eval() if self.attack.space == "crop" else self.classifier
        attacked = {"attacked": wanted} if whole else {}
        with devices.tf32(self.device, self.precision == "tf32"):
            moved = self._perturb(model, images, labels, number, **attacked)
            if whole:
                moved, images, labels = moved[wanted], images[wanted], labels[wanted]
            believed = self._right(model, moved, labels) if self.precision == "tf32" else None
        stands = self._right(model, moved, labels)
        flips = 0
        if believed is not None:
            flipped = stands & ~believed
            flips = int(flipped.sum())
            if flips:
                again = self._perturb(model, images[flipped], labels[flipped], number)
                stands[flipped] = self._right(model, again, labels[flipped])
                moved[flipped] = again
        left = standing.clone()
        left[standing] = stands.cpu()
        return left, flips, moved.detach().float().cpu()

    def _perturb(self, model: nn.Module, images: Tensor, labels: Tensor, number: int, **attacked: Tensor) -> Tensor:
        """What the attack returns for copies of the images, verified against the images as they are."""
        threat = ThreatModel(eps=self.eps, space=self.attack.space)
        generator = stream(self.seed, "attack", self.name, number)
        moved = self.attack.perturb(model, images.clone(), labels.clone(), threat, generator, **attacked)
        verify(moved, images, threat, f"{self.name} under {self.protocol}")
        return moved

    def _right(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return predict(model, images, self.chunk).eq(labels)


class Team(Protocol):
    """Who makes the searches of an evaluation: this process (``alone``), or several (bench.crew)."""

    def __call__(self, search: Search, cell: Cell, stage: str, test: ImageSet, standing: Tensor) -> Iterator[Found]:
        """What was found of each chunk of the first images, of which the ``standing`` (N,) are attacked."""


def alone(search: Search, test: ImageSet, standing: Tensor, first: int = 0, step: int = 1) -> Iterator[Found]:
    """What was found of the chunk ``first`` and every ``step``-th after it, in their order."""
    chunks = torch.arange(len(standing)).split(search.attack.chunk or len(standing))
    for number in range(first, len(chunks), step):
        ids = chunks[number]
        yield ids, *search(test, ids, standing[ids], number)


def in_this_process(search: Search, cell: Cell, stage: str, test: ImageSet, standing: Tensor) -> Iterator[Found]:
    """The team of one."""
    return alone(search, test, standing)


@torch.no_grad()
def predict(model: nn.Module, images: Tensor | Pictures, chunk: int) -> Tensor:
    """Predicted classes (N,) in float32."""
    assert not any(module.training for module in model.modules()), "a module is in train mode"
    return torch.cat([model(part.float()).argmax(dim=1) for part in images.split(chunk)])


def verify(adversarial: Tensor, images: Tensor, threat: ThreatModel, name: str) -> None:
    """Same shape, finite, inside the ball and the box; else RuntimeError that names the attack and what was found."""
    if adversarial.shape != images.shape:
        raise RuntimeError(f"the attack {name} returned {tuple(adversarial.shape)} for {tuple(images.shape)}")
    if not bool(adversarial.isfinite().all()):
        raise RuntimeError(f"the attack {name} returned pixels that are not finite")
    distance = float((adversarial - images).abs().max())
    low, high = float(adversarial.min()), float(adversarial.max())
    if distance > threat.eps + TOLERANCE or low < -TOLERANCE or high > 1 + TOLERANCE:
        raise RuntimeError(
            f"the attack {name} left its threat model: distance {distance:.7g} at eps {threat.eps:.7g}, "
            f"pixels in [{low:.7g}, {high:.7g}]"
        )


def fingerprint(model: nn.Module) -> dict[str, str]:
    """What an attack must leave as it was, hashed: global generators, and the model's modes, parameters and buffers."""
    generators = [pickle.dumps(random.getstate()), pickle.dumps(np.random.get_state())]  # noqa: NPY002  # read only
    generators += [torch.get_rng_state().numpy().tobytes()]
    if torch.cuda.is_initialized():
        generators += [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
    modes = [f"{name} {module.training}" for name, module in model.named_modules()]
    return {
        "generators": hashlib.sha256(b"".join(generators)).hexdigest(),
        "modes": hashlib.sha256("".join(modes).encode()).hexdigest(),
        "state": sha256(dict([*model.named_parameters(), *model.named_buffers()])),
    }


@contextmanager
def listening(cell: Cell, report: Report) -> Iterator[list[str]]:
    """Attacks speak through the loggers ``attacks`` and ``auto-attack``: warnings are kept, the rest is progress."""
    warnings: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                warnings.append(record.getMessage())
            else:
                report({"event": "attack", "protocol": cell.protocol, "attack": cell.name, "eps": cell.eps,
                        "message": record.getMessage()})  # fmt: skip

    loggers = [logging.getLogger(name) for name in ("attacks", "auto-attack")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    listener = Listener()
    for logger in loggers:
        logger.addHandler(listener)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
    try:
        yield warnings
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(listener)
            logger.setLevel(level)
            logger.propagate = propagate
