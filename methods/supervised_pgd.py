"""Supervised PGD-5 adversarial training (Madry et al., 2018, arXiv:1706.06083): a ceiling, for it reads the labels.

Encoder, views, optimizer and adversary are those of the self-supervised rows; only the objective is another.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from methods.common.base import AdversaryName, BaseConfig, BaseMethod, setting
from methods.common.losses import widen

TITLE = "Supervised, PGD-5"


@dataclass(frozen=True)
class Config(BaseConfig):
    least_views: ClassVar[int] = 1
    views: int = setting(1, "own")
    batch: int = setting(128, "own")
    adversary: AdversaryName = setting("pgd", "own")


class Method(BaseMethod):
    """Cross-entropy of a linear head on the features; every view may be moved."""

    supervised = True

    def build(self, width: int) -> None:
        self.head = nn.Linear(width, self.classes)

    def loss(self, views: Tensor) -> Tensor:
        if self.labels is None:
            raise ValueError("expected the labels of the batch in method.labels, got None")
        logits = widen(self.head(self.encoder(views.flatten(0, 1))))
        logits = self.gather(logits.reshape(*views.shape[:2], -1)).flatten(0, 1)
        return F.cross_entropy(logits, self.labels.repeat(len(views)))
