"""VICReg (Bardes et al., 2022, arXiv:2105.04906): two views alike, each dimension spread, no two dimensions alike.

Views, optimizer and widths are those of the SimCLR rows, so that the objective is what differs; the paper's expander is
8,192 wide and its batch 2,048. An adversary may move both views.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from bench.ranges import around
from methods.common.base import BaseConfig, BaseMethod, mlp, setting
from methods.common.losses import covariance, variance, widen

TITLE = "VICReg"


@dataclass(frozen=True)
class Config(BaseConfig):
    embedding_width: int = setting(2048, "own")
    weight_decay: float = setting(1e-6, "text")  # appendix C
    invariance: float = setting(25.0, "text", tune=around(5))  # lambda, section 4.2
    variance: float = setting(25.0, "text", tune=around(5))  # mu
    covariance: float = setting(1.0, "text", tune=around(5))  # nu

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("views", self.views == 2, "of 2, for a loss of pairs")


class Method(BaseMethod):
    """Equation 6 on embeddings that are not normalized."""

    config: Config

    def build(self, width: int) -> None:
        c = self.config
        self.projector = mlp(width, c.hidden_width, c.hidden_width, c.embedding_width)

    def loss(self, views: Tensor) -> Tensor:
        c, rows = self.config, self.projector(self.encoder(views.flatten(0, 1)))
        a, b = self.gather(widen(rows).unflatten(0, (2, -1)))
        spread = variance(a) + variance(b)
        alike = covariance(a) + covariance(b)
        return c.invariance * F.mse_loss(a, b) + c.variance * spread + c.covariance * alike
