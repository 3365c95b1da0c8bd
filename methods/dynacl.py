"""DynACL (Luo et al., 2023, arXiv:2303.01289): ACL whose augmentation fades while the weight of moved pairs grows.

Both follow the share of the budget: the 1,000 epochs of the paper are its thousandths. View 2 goes through a momentum
encoder, which is what is evaluated. The pseudo-labels and the fine-tuning of DynACL++ are not part of it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.ranges import between
from methods import acl
from methods.common.augment import Draws
from methods.common.base import setting
from methods.common.norms import plain
from methods.common.teacher import follow, teacher_of

TITLE = "DynACL"
EPOCHS, PERIOD = 1000, 50  # of the paper; the schedules move every so many epochs


@dataclass(frozen=True)
class Config(acl.Config):
    rate: float = setting(0.99, "code", tune=between(0.9, 0.999))  # m of the momentum encoder
    last_weight: float = setting(2 / 3, "text", tune=between(0.0, 1.0))  # lambda, of the moved pairs at the end

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("rate", 0 <= self.rate <= 1, "in [0, 1]")
        self.check("last_weight", 0 <= self.last_weight <= 1, "in [0, 1]")


class Method(acl.Method):
    """ACL with its two halves weighed by 1 - w and 1 + w."""

    config: Config

    def build(self, width: int) -> None:
        super().build(width)
        self.teacher = teacher_of(nn.Sequential(self.encoder, self.projector))

    def strength_and_weight(self) -> tuple[float, float]:
        """(strength of the augmentation, from 1 to .05 in 20 steps; w, from 0 to ``last_weight``)."""
        epoch = min(math.floor(EPOCHS * self.progress + 1e-6) + 1, EPOCHS)  # e, from 1
        strength = 1 - PERIOD * ((epoch - 1) // PERIOD) / EPOCHS
        return strength, self.config.last_weight * PERIOD * (epoch // PERIOD) / EPOCHS

    def augment(self, images: Tensor, draws: Draws) -> Tensor:
        c, (s, _) = self.config, self.strength_and_weight()
        scale = (1 - s * (1 - c.crop_scale[0]), c.crop_scale[1])
        jitter = tuple(s * strength for strength in c.jitter)
        chances = {"jitter_probability": s * c.jitter_probability, "gray": s * c.gray}
        return self.drawn(images, draws, scale=scale, jitter=jitter, **chances)

    def embed(self, views: Tensor) -> Tensor:
        """View 1 by the encoder in training, view 2 by the momentum encoder, whose weights take no gradient."""
        return torch.cat([super().embed(views[:1]), self.units(self.teacher(views[1]))])

    def objective(self, clean: Tensor, moved: Tensor) -> Tensor:
        _, w = self.strength_and_weight()
        return ((1 - w) * self.pair_loss(clean, acl.CLEAN) + (1 + w) * self.pair_loss(moved, acl.MOVED)) / 2

    def after_update(self) -> None:
        follow(self.teacher, nn.Sequential(self.encoder, self.projector), self.config.rate)

    def kept(self) -> nn.Module:
        return plain(self.teacher[0], acl.MOVED)
