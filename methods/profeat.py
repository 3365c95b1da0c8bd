"""ProFeAT (2024, arXiv:2406.05796): DeACL whose student starts as the teacher and also learns in its projector's space.

Ours differs: the student's stronger view is a padded crop with SimCLR's colours, where the code has AutoAugment's, as
views are drawn on the device, from one stream of numbers.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.ranges import around, between
from methods import deacl
from methods.common.augment import Draws
from methods.common.base import setting
from methods.common.losses import cosine
from methods.common.teacher import teacher_of

TITLE = "ProFeAT"


@dataclass(frozen=True)
class Config(deacl.Config):
    student_weight_decay: float = setting(3e-4, "code")
    robustness: float = setting(8.0, "text", tune=around(4))  # beta
    projected: float = setting(0.5, "text", tune=between(0.0, 1.0))  # share of the loss in the space of the projector

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("teacher", not self.teacher, "left out, as the projector of a given one is not in its file")
        self.check("projected", 0 <= self.projected <= 1, "in [0, 1]")


class Method(deacl.Method):
    """View 1 is weak and the teacher's, view 2 strong and the student's, which an adversary moves."""

    config: Config
    teacher: nn.Sequential  # encoder and projector
    student_moves = slice(1, 2)
    student: ClassVar[dict[str, Any]] = deacl.Method.student | {"views": 2}

    def build(self, width: int) -> None:
        super().build(width)
        self.teacher = teacher_of(nn.Sequential(self.encoder, self.projector))

    def change_places(self) -> None:
        self.teacher.load_state_dict(nn.Sequential(self.encoder, self.projector).state_dict())

    def student_views(self, images: Tensor, draws: Draws) -> Tensor:
        whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0}
        coloured = self.drawn(images, draws, **whole)
        plain = images / 255 if images.dtype == torch.uint8 else images
        return super().student_views(torch.stack([plain.to(coloured), coloured[1]]), draws)

    def both(self, encoder: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unit features, and what the teacher's projector makes of them: (B, D) each."""
        features = encoder(images)
        return self.units(features)[0], self.units(self.teacher[1](features))[0]

    def alike(self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cosines in both spaces, weighed."""
        p = self.config.projected
        return (1 - p) * cosine(a[0], b[0]) + p * cosine(a[1], b[1])

    def student_loss(self, clean: Tensor, moved: Tensor) -> Tensor:
        with torch.no_grad():
            told = self.both(self.teacher[0], clean[0])
        own, attacked = self.both(self.encoder, clean[1]), self.both(self.encoder, moved[1])
        return -self.alike(own, told) - self.config.robustness * self.alike(attacked, own)

    def target(self, views: Tensor) -> Any:
        """The student's own features of its view, and the teacher's projection of the weak one."""
        return self.both(self.encoder, views[1])[0], self.both(self.teacher[0], views[0])[1]

    def attack(self, moved: Tensor, target: Any) -> Tensor:
        features, projected = self.both(self.encoder, moved[0])
        return -cosine(features, target[0]) - cosine(projected, target[1])
