"""What every attack shares: its form, and the one loop that climbs a loss, in the geometry of the threat.

Images are (B, C, H, W) in [0, 1]; in crop space (B, n, C, H, W).
An attack pass over a frozen encoder costs 2 F (forward and gradient of the images), never 3 F.
"""

import hashlib
import json
import math
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from attacks.common.passes import Passes
from attacks.common.threat import geometry
from attacks.common.threat import project as project
from attacks.common.threat import random_start as random_start
from attacks.common.threat import steepest as steepest
from bench.spec import Norm, ThreatModel, UsageError, unknown
from bench.values import parse_setting

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settable = TypeVar("Settable", bound="DataclassInstance")
Loss = Callable[[Tensor, Tensor], Tensor]  # logits (B, K), labels (B,) -> (B,), to be maximized
Draw = Callable[[Tensor, float, Generator], Tensor]  # clean, eps, generator -> a start in the ball


@dataclass(frozen=True, kw_only=True)
class BaseAttack(ABC):
    """Settings of an attack; ``Attack()`` works.

    ``norm`` says in which ball it stays, and so with which radii it runs. ``space`` says what moves: the picture, or
    each crop on its own. ``minimum``: it looks for the nearest misclassified image, has no eps, and runs once in a ball
    that holds every image; the evaluation keeps its distances.
    """

    norm: ClassVar[Norm] = "linf"
    space: ClassVar[Literal["image", "crop"]] = "image"
    minimum: ClassVar[bool] = False
    unwritten: ClassVar[tuple[str, ...]] = ()  # later settings: at their default not described, so hashes stay
    chunk: int | None = 250  # images per call, a setting because draws depend on it; None: the attack batches by itself

    @abstractmethod
    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        """Images of the same shape and range inside the threat model, meant to be misclassified.

        model: frozen, in eval mode, images -> logits (B, K). labels: (B,) int64. generator: on the CPU.
        Leaves no trace: gradients, modes, buffers, global random state and trace function stay as they were.
        """

    def stages(self, classes: int, images: int) -> "dict[str, BaseAttack]":
        """The attacks that this one consists of, by name: each gets what those before it left standing of ``images``.

        Most attacks are one stage without a name.
        """
        return {"": self}

    def describe(self, classes: int) -> dict[str, Any]:
        """All that decides the outcome on so many classes, JSON-able; goes into the config hash."""
        norm = {} if self.norm == "linf" else {"norm": self.norm}  # the hash of l-inf is as it was before there was l2
        usual = {field.name for field in fields(self) if getattr(self, field.name) == field.default}
        settings = {name: value for name, value in asdict(self).items() if name not in usual & {*self.unwritten}}
        return {"attack": type(self).__module__.rpartition(".")[2], "space": self.space} | norm | settings


def configured(attack: Settable, chosen: dict[str, Any]) -> Settable:
    """The attack, or protocol, with the settings that were chosen, as values or as text; ``chunk`` is not to be chosen.

    Raises UsageError for a setting that it does not have, and for a value of another type.
    """
    if not chosen:
        return attack
    known = [field.name for field in fields(attack) if field.name != "chunk"]
    for name in chosen:
        if name not in known:
            raise UsageError(unknown("setting", name, known))
    types = typing.get_type_hints(type(attack))
    return replace(attack, **{name: parse_setting(name, value, types[name]) for name, value in chosen.items()})


class Share:
    """Which batches of an attack are made in this process: all of them, if alone (bench.engines.team)."""

    def mine(self, batches: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The batches, each the places of its images, that are made here."""
        return batches

    def whole(self, moved: Tensor, images: Tensor) -> Tensor:
        """What all processes have made of the images, from what was made here; an image that nobody moved is clean."""
        return moved


ALL = Share()


def config_hash(config: dict[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of canonical JSON. Raises ValueError on NaN and TypeError on other objects.

    >>> config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})
    True
    """
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image. logits: (B, K), labels: (B,) -> (B,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def predicted(logits: Tensor) -> Tensor:
    """Class of the largest logit of each image; -1, which is no class, where a logit is NaN or infinite: such an image
    is never right, whatever the order in which ``argmax`` takes what is no number. (B, K) -> (B,).

    >>> predicted(torch.tensor([[0.0, 2.0], [torch.nan, 0.0], [0.0, torch.inf]])).tolist()
    [1, -1, -1]
    """
    return logits.argmax(dim=1).masked_fill(~logits.isfinite().all(dim=1), -1)


def last_iterate(
    model: nn.Module,
    clean: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    steps: int,
    step: float,
    start: Tensor | None = None,
    loss: Loss = cross_entropy,
) -> Tensor:
    """Where ``steps`` ascents of length ``step`` from ``start`` (the clean images, if None) end, whatever an image was
    on the way: plain PGD, as trainings use it. ``steps`` passes of 2 F. Returns a new tensor, same shape and range."""
    passes, ball = Passes(model, loss), geometry(threat)
    images = (clean if start is None else start).detach().clone()
    for _ in range(steps if len(clean) else 0):
        _, _, gradient = passes(images, labels, gradients=True)
        assert gradient is not None
        images = ball.project(images + step * ball.steepest(gradient), clean)
    return images


def maximize(
    model: nn.Module,
    clean: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    steps: int,
    step: float,
    generator: Generator,
    restarts: int = 1,
    random_start: bool = True,
    loss: Loss = cross_entropy,
    draw: Draw | None = None,
    attacked: Tensor | None = None,
) -> Tensor:
    """Best iterate in the ball around ``clean``: a misclassified one if any was seen, else that of the highest loss.

    ``steps`` ascents of length ``step`` (in [0, 1] pixel units) from each start: ``steps`` passes of 2 F and one of
    F for the last iterate. A random start adds F once, because only what is correctly classified is attacked; from
    zero the first pass sees the clean image itself, and a second restart would repeat the first. ``draw`` gives the
    starts; None: those of the threat's geometry.
    Images leave the work as soon as they are misclassified, those that were so from the start as they came.
    ``attacked`` (B,): the others cost nothing and come back as they are; draws are made as if they were attacked too.
    Returns a new tensor.
    """
    clean = clean.detach()
    best = clean.clone()
    standing = torch.arange(len(clean), device=clean.device)
    if attacked is not None:
        standing = standing[attacked.to(clean.device)]
    if threat.eps == 0 or len(standing) == 0:
        return best
    best_loss = torch.full((len(clean),), -math.inf, device=clean.device)
    passes, ball = Passes(model, loss), geometry(threat)
    if random_start:
        logits, _, _ = passes(clean[standing], labels[standing], gradients=False)
        standing = standing[predicted(logits) == labels[standing]]

    for _ in range(restarts if random_start else 1):
        # for the whole chunk, whoever still stands: the fate of one image never changes the draw of another
        start = clean
        if random_start:
            start = ball.start(clean, generator) if draw is None else draw(clean, threat.eps, generator)
        images = start[standing]
        for remaining in reversed(range(steps + 1)):
            if len(standing) == 0:
                return best
            logits, losses, gradient = passes(images, labels[standing], gradients=remaining > 0)
            fooled = predicted(logits) != labels[standing]
            losses = losses.float().masked_fill(fooled, math.inf)  # nothing beats a success
            better = losses > best_loss[standing]
            best[standing[better]] = images[better]
            best_loss[standing[better]] = losses[better]

            standing = standing[~fooled]
            if gradient is not None:
                images = ball.project(images[~fooled] + step * ball.steepest(gradient[~fooled]), clean[standing])
    return best
