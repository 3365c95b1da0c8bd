"""DeACL (Zhang et al., 2022, arXiv:2207.10899): SimCLR trains a clean teacher, then a student learns to repeat it.

Ours differs: teacher and student speak in the feature layer that all methods of this harness share, which is what the
probe reads; the stem is that of the harness. The teacher's training is part of the budget.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.ranges import around
from methods import simclr
from methods.common.base import BatchNormMode, setting
from methods.common.losses import cosine
from methods.common.taught import Taught, TaughtConfig

TITLE = "DeACL"


@dataclass(frozen=True)
class Config(TaughtConfig, simclr.Config):
    temperature: float = setting(0.5, "text", tune=around(5))  # tau, of the teacher
    attack_batch_norm: BatchNormMode = setting("eval", "code")
    teacher_share: float = setting(0.78, "own")  # minutes of 1,000 clean epochs to those of 100 adversarial ones
    student_batch: int = setting(256, "code")
    student_weight_decay: float = setting(5e-4, "code")
    student_warm_up: float = setting(0.1, "code")  # 10 of 100 epochs
    robustness: float = setting(2.0, "code", tune=around(4))  # weight of the moved images


class Method(Taught, simclr.Method):
    """The student begins where the teacher began, sees one weak view, and is attacked away from the teacher."""

    config: Config
    student: ClassVar[dict[str, Any]] = {"views": 1, "adversary": "pgd", "optimizer": "sgd"}

    def student_loss(self, clean: Tensor, moved: Tensor) -> Tensor:
        own, attacked = self.units(self.encoder(torch.cat([clean, moved]).flatten(0, 1)), 2)
        return -cosine(own, self.clean(clean)) - self.config.robustness * cosine(attacked, own)

    def target(self, views: Tensor) -> Any:
        """What the teacher says of the unmoved images: unit features (B, D)."""
        return self.units(self.teacher(views[0]))[0]

    def attack(self, moved: Tensor, target: Any) -> Tensor:
        return -cosine(self.units(self.encoder(moved[0]))[0], target)
