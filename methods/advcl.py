"""AdvCL (Fan et al., 2021, arXiv:2111.01124): contrast and pseudo-labels, each attacked, and a high-pass view.

Ours differs: pseudo-labels are clusters of a clean SimCLR that is trained within the budget, the paper's come from a
model of ImageNet; heads and projector stand on the feature layer that all methods of this harness share.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.ranges import around
from methods import simclr
from methods.common.augment import Draws
from methods.common.base import BatchNormMode, mlp, setting
from methods.common.clusters import Clustered, ClusteredConfig
from methods.common.frequencies import high_pass
from methods.common.losses import nt_xent_of_views
from methods.common.norms import branch, branched, plain

TITLE = "AdvCL"
CLEAN, CONTRAST, LABELS = range(3)  # branches of batch norm


@dataclass(frozen=True)
class Config(ClusteredConfig, simclr.Config):
    hidden_width: int = setting(512, "code")
    temperature: float = setting(0.5, "text")  # tau
    attack_batch_norm: BatchNormMode = setting("batch", "code")
    teacher_share: float = setting(0.13, "own")  # passes of a clean epoch to those of one of the student
    padding: float = setting(1 / 8, "unverified")
    student_crop_scale: tuple[float, float] = setting((0.2, 1.0), "code")
    contrast_weight: float = setting(0.5 / 0.07, "code", tune=around(5))
    label_weight: float = setting(0.2, "code", tune=around(5))
    radius: float = setting(1 / 4, "code")  # of the frequencies that h lacks, in sides: 8 of 32 pixels

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("contrast_weight", "label_weight", "radius"):
            self.check(name, getattr(self, name) >= 0, "of at least 0")


class Method(Clustered, simclr.Method):
    """Views of the student: x twice, to be moved against contrast and labels; x1, x2, h; and the image."""

    config: Config
    student_moves = slice(0, 2)
    student: ClassVar[dict[str, Any]] = {"views": 2, "adversary": "pgd", "optimizer": "sgd"}

    def build(self, width: int) -> None:
        branched(self.encoder, 3)
        super().build(width)
        self.head = branched(mlp(width, self.config.hidden_width, self.config.embedding_width))

    def student_views(self, images: Tensor, draws: Draws) -> Tensor:
        strong, x = self.drawn(images, draws), super().student_views(images, draws)[:1]
        return torch.cat([x, x, strong, high_pass(x, self.config.radius), self.unchanged(images, draws)])

    def student_loss(self, clean: Tensor, moved: Tensor) -> Tensor:
        c, (contrast, labels) = self.config, self.parts(moved[:2], self.target(clean))
        return c.contrast_weight * contrast + c.label_weight * labels

    def target(self, views: Tensor) -> Any:
        return self.embedded(views[2:5], CLEAN), self.pseudo_labels(views[5])

    def attack(self, moved: Tensor, target: Any) -> Tensor:
        return torch.stack(self.parts(moved, target)).sum()

    def parts(self, moved: Tensor, target: Any) -> tuple[Tensor, Tensor]:
        z, c = torch.cat([self.embedded(moved[:1], CONTRAST), target[0]]), self.config
        with branch(self, LABELS):
            return nt_xent_of_views(z, c.temperature), self.label_loss(self.encoder(moved[1]), target[1])

    def embedded(self, views: Tensor, norms: int) -> Tensor:
        with branch(self, norms):
            return self.units(self.head(self.encoder(views.flatten(0, 1))), len(views))

    def kept(self) -> nn.Module:
        return plain(self.teacher if self.sorts else self.encoder, CONTRAST if self.distils else CLEAN)
