"""AdvCL (Fan et al., 2021, arXiv:2111.01124): contrast and pseudo-labels, each attacked, and a high-pass view.

Ours differs: pseudo-labels are clusters of a clean SimCLR that is trained within the budget, the paper's come from a
model of ImageNet; heads and projector stand on the feature layer that all methods of this harness share.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

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
    step: float = setting(2 / 255, "text")
    random_start: bool = setting(True, "code")
    attack_batch_norm: BatchNormMode = setting("batch", "code")
    teacher_share: float = setting(0.13, "own")  # passes of a clean epoch to those of one of the student
    padding: float = setting(1 / 8, "unverified")
    student_crop_scale: tuple[float, float] = setting((0.2, 1.0), "code")
    contrast_weight: float = setting(0.5 / 0.07, "code")
    label_weight: float = setting(0.2, "code")
    radius: float = setting(1 / 4, "code")  # of the frequencies that h lacks, in sides: 8 of 32 pixels


class Method(Clustered, simclr.Method):
    """The student's views are x twice, to be moved against contrast and against labels; x1; x2; and the image."""

    config: Config
    student_moves = slice(0, 2)
    student: ClassVar[dict[str, Any]] = {"views": 2, "adversary": "pgd", "optimizer": "sgd"}

    def build(self, width: int) -> None:
        branched(self.encoder, 3)
        super().build(width)
        self.head = branched(mlp(width, self.config.hidden_width, self.config.embedding_width))

    def student_views(self, images: Tensor, draws: Draws) -> Tensor:
        strong, x = self.drawn(images, draws), super().student_views(images, draws)[:1]
        return torch.cat([x, x, strong, self.unchanged(images, draws)])

    def student_loss(self, clean: Tensor, moved: Tensor) -> Tensor:
        contrast, labels = self.parts(moved[:2], self.target(clean))
        return self.config.contrast_weight * contrast + self.config.label_weight * labels

    def target(self, views: Tensor) -> Any:
        """The embeddings of x1, x2 and x without its low frequencies, and the pseudo-labels of the image."""
        h = high_pass(views[:1], self.config.radius)
        return self.embedded(torch.cat([views[2:4], h]), CLEAN), self.pseudo_labels(views[4])

    def attack(self, moved: Tensor, target: Any) -> Tensor:
        return torch.stack(self.parts(moved, target)).sum()

    def parts(self, moved: Tensor, target: Any) -> tuple[Tensor, Tensor]:
        """(contrast at the first view, cross-entropy at the second)."""
        z = torch.cat([self.embedded(moved[:1], CONTRAST), target[0]])
        with branch(self, LABELS):
            features = self.encoder(moved[1])
        return nt_xent_of_views(z, self.config.temperature), self.label_loss(features, target[1])

    def embedded(self, views: Tensor, norms: int) -> Tensor:
        with branch(self, norms):
            return self.units(self.head(self.encoder(views.flatten(0, 1))), len(views))

    def kept(self) -> nn.Module:
        return plain(self.encoder, CONTRAST)
