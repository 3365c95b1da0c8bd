"""SimCLR (Chen et al., 2020, arXiv:2002.05709), with the settings of arXiv:2501.03507: temperature .07, LARS."""

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.common.base import BaseConfig, BaseMethod, mlp, setting
from methods.common.losses import nt_xent


@dataclass(frozen=True)
class Config(BaseConfig):
    temperature: float = setting(0.07, "code")  # tau

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("views", self.views == 2, "of 2, for a loss of pairs")
        self.check("temperature", self.temperature > 0, "above 0")


class Method(BaseMethod):
    """Two views; an adversary moves the second one and climbs the loss of the pair (x1, x2 + delta)."""

    config: Config
    moves = slice(1, 2)

    def build(self, width: int) -> None:
        self.projector = mlp(width, self.config.hidden_width, self.config.embedding_width)

    def embed(self, views: Tensor) -> Tensor:
        """One forward per view: batch norm sees each view alone."""
        return torch.cat([super(Method, self).embed(view[None]) for view in views])

    def loss(self, views: Tensor) -> Tensor:
        return nt_xent(self.embed(views), self.config.temperature)

    def clean(self, views: Tensor) -> Tensor:
        return self.embed(views[:1])  # x1 does not move, so its embedding is computed once per attack

    def adversarial_loss(self, moved: Tensor, clean: Tensor) -> Tensor:
        return nt_xent(torch.cat([clean, self.embed(moved)]), self.config.temperature)
