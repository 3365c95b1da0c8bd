"""EMP-SSL (Tong et al., 2023, arXiv:2304.03977) on 16 crops. The coding rate's eps is not squared, as in the code."""

from dataclasses import dataclass

from torch import Tensor

from bench.ranges import around
from methods.common.base import BaseConfig, BaseMethod, mlp, setting
from methods.common.losses import coding_rate, invariance

TITLE = "EMP-SSL"


@dataclass(frozen=True)
class Config(BaseConfig):
    views: int = setting(16, "text")  # C
    batch: int = setting(128, "code")
    jitter: tuple[float, float, float, float] = setting((0.4, 0.4, 0.4, 0.2), "code")
    blur: float = setting(0.1, "code")
    solarize: float = setting(0.1, "code")
    embedding_width: int = setting(1024, "code")
    invariance: float = setting(200.0, "code", tune=around(10))  # lambda
    coding_eps: float = setting(0.2, "code", tune=around(5))  # epsilon, unsquared

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("coding_eps", self.coding_eps > 0, "above 0")


class Method(BaseMethod):
    """Many views, each drawn to the mean of its image, and spread by the coding rate; every view may be moved."""

    config: Config

    def build(self, width: int) -> None:
        self.projector = mlp(width, self.config.hidden_width, self.config.embedding_width)

    def loss(self, views: Tensor) -> Tensor:
        z = self.embed(views)
        return self.config.invariance * invariance(z) + coding_rate(z, self.config.coding_eps)
