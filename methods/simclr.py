"""SimCLR (Chen et al., 2020, arXiv:2002.05709), with the settings of arXiv:2501.03507: temperature .07, LARS."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bench.ranges import around
from methods.common.base import BaseConfig, BaseMethod, mlp, setting
from methods.common.losses import nt_xent

TITLE = "SimCLR"


@dataclass(frozen=True)
class Config(BaseConfig):
    temperature: float = setting(0.07, "code", tune=around(5))  # tau
    attack_pair: Literal["x1", "x2"] = setting("x1", "sound")  # what PGD pairs x2 + delta with

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("views", self.least_views <= self.views <= 2, "of 2, for a loss of pairs")
        self.check("temperature", self.temperature > 0, "above 0")


class Method(BaseMethod):
    """Two views; an adversary moves the second one and climbs the loss of the pair (x1, x2 + delta).

    With ``attack_pair`` x2, PGD climbs that of (x2, x2 + delta), as the released code does (arXiv:2501.03507).
    """

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
        """The embedding of x1, computed once per attack; or x2 itself, embedded anew in every step, as released."""
        return self.embed(views[:1]) if self.config.attack_pair == "x1" else views[1:]

    def adversarial_loss(self, moved: Tensor, clean: Tensor) -> Tensor:
        partner = clean if self.config.attack_pair == "x1" else self.embed(clean)
        return nt_xent(torch.cat([partner, self.embed(moved)]), self.config.temperature)
