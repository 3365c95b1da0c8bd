"""One attack on some images: searched in the precision that was asked for, verified, decided in float32 (protocol 1.5).

What an attack believes does not count: ball and box are checked on the images that it returns, and they are scored
again. Those that it broke in TF32 and that stand in float32 are attacked again in float32.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from attacks.common.base import BaseAttack, predicted
from attacks.common.threat import geometry
from bench.data.images import ImageSet, Pictures
from bench.device import device as devices
from bench.evaluation.traces import AttackError
from bench.events import Report
from bench.protocols.common.classifier import Classifier, OfCrops
from bench.random import stream
from bench.spec import Norm, ThreatModel, UsageError

Found = tuple[Tensor, Tensor, int, Tensor]  # places of a chunk (B,); of them: which stand, flips, what was returned
TOLERANCE = 1e-6  # of the ball, for each unit of a radius above 1: float rounding, not freedom


@dataclass(frozen=True)
class Cell:
    """One attack at one eps under one protocol, on the first ``images`` test images."""

    protocol: str
    attack: str
    eps: float
    images: int
    curve: bool = False
    norm: Norm = "linf"


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
    norm: Norm = "linf"

    def __call__(self, test: ImageSet, ids: Tensor, standing: Tensor, number: int) -> tuple[Tensor, int, Tensor]:
        """(which of the test images ``ids`` (B,) stand, flips, what was returned); only ``standing`` (B,) are attacked.

        What was returned is that for each image attacked, in their order. ``number`` of the chunk, from which its draws
        come. Raises AttackError if the attack raises, leaves its threat model, or leaves the model in train mode.
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
        threat = self.threat
        generator = stream(self.seed, "attack", self.name, number)
        try:
            moved = self.attack.perturb(model, images.clone(), labels.clone(), threat, generator, **attacked)
        except Exception as error:
            if self.name == "none" or isinstance(error, UsageError) or devices.is_out_of_memory(error):
                raise  # not the attack's doing
            raise AttackError(f"the attack {self.label} raised {one_line(error)}") from error
        verify(moved, images, threat, self.label)
        return moved.detach()

    def _right(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        try:
            return predict(model, images, self.chunk).eq(labels)
        except Exception as error:
            if self.name == "none" or devices.is_out_of_memory(error):
                raise
            said = str(error) if isinstance(error, TrainMode) else one_line(error)
            raise AttackError(f"after the attack {self.label}: {said}") from error

    @property
    def threat(self) -> ThreatModel:
        """What the attack may do."""
        return ThreatModel(eps=self.eps, norm=self.norm, space=self.attack.space)

    def ask(self, test: ImageSet) -> None:
        """A pass with gradients and one without, and no attack: what the model does to itself, it does here."""
        for wants in (False, True):
            with torch.set_grad_enabled(wants):
                self.classifier(test.pictures(slice(self.chunk), self.device).clone().requires_grad_(wants))

    @property
    def label(self) -> str:
        """Attack and protocol, for people."""
        return f"{self.name} under {self.protocol}"


class Team(Protocol):
    """Who makes the searches of an evaluation: this process (``alone``), or several (bench.engines.team)."""

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
    """Predicted classes (N,) in float32; -1 where a logit is not finite. Raises TrainMode before or after a pass."""
    check_eval_mode(model)
    classes = torch.cat([predicted(model(part.float())) for part in images.split(chunk)])
    check_eval_mode(model)
    return classes


def one_line(error: Exception) -> str:
    """Type and first line of what it says."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


class TrainMode(RuntimeError):
    """A module is in train mode where a number is made: its answers would depend on the batch, or on chance."""


def check_eval_mode(model: nn.Module) -> None:
    """Raises TrainMode with the names of the modules that are not in eval mode."""
    training = [name or type(module).__name__ for name, module in model.named_modules() if module.training]
    if training:
        more = f" and {len(training) - 1} more" if len(training) > 1 else ""
        raise TrainMode(f"expected every module in eval mode, got train mode in {training[0]}{more}")


def verify(adversarial: Tensor, images: Tensor, threat: ThreatModel, name: str) -> None:
    """Same shape, finite, inside the ball and the box; else AttackError that names the attack and what was found."""
    if not isinstance(adversarial, Tensor):
        raise AttackError(f"the attack {name} returned a {type(adversarial).__name__}, not a tensor of images")
    if not adversarial.is_floating_point() or adversarial.device != images.device:
        kinds = [f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}" for tensor in (adversarial, images)]
        raise AttackError(f"the attack {name} returned images of {kinds[0]} for {kinds[1]}")
    if adversarial.shape != images.shape:
        raise AttackError(f"the attack {name} returned {tuple(adversarial.shape)} for {tuple(images.shape)}")
    if not bool(adversarial.isfinite().all()):
        raise AttackError(f"the attack {name} returned pixels that are not finite")
    distance = float(geometry(threat).distance(adversarial, images).max())
    low, high = float(adversarial.min()), float(adversarial.max())
    if distance > threat.eps + TOLERANCE * max(1, threat.eps) or low < -TOLERANCE or high > 1 + TOLERANCE:
        norm = "" if threat.norm == "linf" else f" in {threat.norm}"
        raise AttackError(
            f"the attack {name} left its threat model: distance {distance:.7g}{norm} at eps {threat.eps:.7g}, "
            f"pixels in [{low:.7g}, {high:.7g}]"
        )


@contextmanager
def listening(cell: Cell, report: Report) -> Iterator[list[str]]:
    """Attacks speak through the loggers ``attacks`` and ``auto-attack``: warnings are kept, the rest is progress."""
    warnings: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                warnings.append(record.getMessage())
            else:
                report({"event": "attack", "protocol": cell.protocol, "attack": cell.attack, "eps": cell.eps,
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
