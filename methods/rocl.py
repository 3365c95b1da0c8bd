"""RoCL (Kim et al., 2020, arXiv:2006.07589): a moved copy of view 1 is a third view of its image.

Ours differs: gradients flow through both embeddings of a similarity, where the code stops them at one; all three views
share one forward pass; the projector stands on the feature layer that all methods of this harness share.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.ranges import around
from methods.common.base import AdversaryName, BaseConfig, BaseMethod, BatchNormMode, setting
from methods.common.losses import nt_xent, nt_xent_of_views

TITLE = "RoCL"


@dataclass(frozen=True)
class Config(BaseConfig):
    hidden_width: int = setting(2048, "code")
    warm_up: float = setting(0.01, "code")  # 10 of 1,000 epochs, from .1
    lr: float = setting(1.5, "code")  # .1, raised 15-fold
    weight_decay: float = setting(1e-6, "code")
    trust: float = setting(0.001, "code")
    adversary: AdversaryName = setting("pgd", "text")
    eps: float = setting(0.0314, "code")
    step: float = setting(0.007, "code")
    steps: int = setting(7, "text")
    random_start: bool = setting(True, "code")
    attack_batch_norm: BatchNormMode = setting("eval", "code")
    temperature: float = setting(0.5, "text", tune=around(5))  # tau
    adversarial_weight: float = setting(1 / 256, "code", tune=around(16))  # lambda of the pair (x1 + delta, x2)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("views", self.views == 2, "of 2, for a loss of pairs")
        self.check("temperature", self.temperature > 0, "above 0")


class Method(BaseMethod):
    """View 1 moves and climbs the loss of its pair with view 2."""

    config: Config
    moves = slice(0, 1)

    def build(self, width: int) -> None:
        c = self.config
        hidden = nn.Sequential(nn.Linear(width, c.hidden_width), nn.ReLU(inplace=True))
        self.projector = nn.Sequential(hidden, nn.Linear(c.hidden_width, c.embedding_width))

    def objective(self, clean: Tensor, moved: Tensor) -> Tensor:
        c = self.config
        z = self.embed(torch.cat([clean, moved[:1]]))  # x1, x2, x1 + delta
        # The code sums over an anchor's two positives, where nt_xent_of_views takes their mean.
        return 2 * nt_xent_of_views(z, c.temperature) + c.adversarial_weight * nt_xent(z[1:], c.temperature)

    def clean(self, views: Tensor) -> Tensor:
        return self.embed(views[1:])

    def adversarial_loss(self, moved: Tensor, clean: Tensor) -> Tensor:
        return nt_xent(torch.cat([self.embed(moved), clean]), self.config.temperature)
