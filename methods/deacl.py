"""DeACL (Zhang et al., 2022, arXiv:2207.10899): SimCLR trains a clean teacher, then a student learns to repeat it.

Ours differs: teacher and student speak in the feature layer that all methods of this harness share, which is what the
probe reads; the stem is that of the harness. The teacher's training is part of the budget.
"""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from methods import simclr
from methods.common.augment import Draws
from methods.common.base import BatchNormMode, setting
from methods.common.losses import cosine
from methods.common.taught import Taught
from methods.common.teacher import teacher_of
from methods.common.weak import padded_crop

TITLE = "DeACL"


@dataclass(frozen=True)
class Config(simclr.Config):
    """Those of the teacher and of the attack; ``student_`` marks what the student has in place of the teacher's."""

    least_views: ClassVar[int] = 1  # of the student
    temperature: float = setting(0.5, "text")  # tau, of the teacher
    step: float = setting(2 / 255, "text")
    random_start: bool = setting(True, "code")
    attack_batch_norm: BatchNormMode = setting("eval", "code")
    teacher_share: float = setting(0.78, "own")  # minutes of 1,000 clean epochs to those of 100 adversarial ones
    student_batch: int = setting(256, "code")
    student_lr: float = setting(0.5, "code")
    student_weight_decay: float = setting(5e-4, "code")
    student_warm_up: float = setting(0.1, "code")  # 10 of 100 epochs
    robustness: float = setting(2.0, "code")  # weight of the moved images
    padding: float = setting(1 / 8, "code")  # of the weak view, in sides of the image: 4 of 32 pixels

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("teacher_share", 0 < self.teacher_share < 1, "in (0, 1)")
        self.check("padding", 0 <= self.padding < 1, "in [0, 1)")

    @property
    def traits(self) -> set[str]:
        return super().traits | {"distilled"}


class Method(Taught, simclr.Method):
    """The student begins where the teacher began, sees one weak view, and is attacked away from the teacher."""

    config: Config
    student: ClassVar[dict[str, Any]] = {"views": 1, "adversary": "pgd", "optimizer": "sgd"}

    def build(self, width: int) -> None:
        super().build(width)
        self.teacher = teacher_of(self.encoder)

    def change_places(self) -> None:
        start = copy.deepcopy(self.teacher.state_dict())
        self.teacher.load_state_dict(self.encoder.state_dict())
        self.encoder.load_state_dict(start)

    def student_views(self, images: Tensor, draws: Draws) -> Tensor:
        return padded_crop(images, draws, padding=self.config.padding, flip=self.config.flip)

    def student_loss(self, clean: Tensor, moved: Tensor) -> Tensor:
        own, attacked = self.units(self.encoder(torch.cat([clean, moved]).flatten(0, 1)), 2)
        return -cosine(own, self.clean(clean)) - self.config.robustness * cosine(attacked, own)

    def target(self, views: Tensor) -> Any:
        """What the teacher says of the unmoved images: unit features (B, D)."""
        return self.units(self.teacher(views[0]))[0]

    def attack(self, moved: Tensor, target: Any) -> Tensor:
        return -cosine(self.units(self.encoder(moved[0]))[0], target)
