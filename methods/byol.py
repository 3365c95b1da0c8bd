"""BYOL (Grill et al., 2020, arXiv:2006.07733): a predictor learns what a momentum teacher says of the other view.

Optimizer and widths are those of the SimCLR rows, so that the objective is what differs. An adversary may move what the
student sees; the teacher sees the clean views.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.common.augment import Draws
from methods.common.base import BaseConfig, BaseMethod, mlp, setting
from methods.common.teacher import follow, rising, teacher_of

TITLE = "BYOL"


@dataclass(frozen=True)
class Config(BaseConfig):
    embedding_width: int = setting(256, "text")
    rate: float = setting(0.996, "text")  # tau at the beginning; 1 at the end (section 3.2)
    blurs: tuple[float, float] = setting((1.0, 0.1), "text")  # of the first view and of the second (table 6)
    solarizes: tuple[float, float] = setting((0.0, 0.2), "text")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("views", self.views == 2, "of 2, one to predict the other from")
        self.check("rate", 0 <= self.rate <= 1, "in [0, 1]")


class Method(BaseMethod):
    """Equation 2, of both views."""

    config: Config

    def build(self, width: int) -> None:
        c = self.config
        self.projector = mlp(width, c.hidden_width, c.embedding_width)
        self.predictor = mlp(c.embedding_width, c.hidden_width, c.embedding_width)
        self.teacher = teacher_of(nn.Sequential(self.encoder, self.projector))

    def augment(self, images: Tensor, draws: Draws) -> Tensor:
        return self.drawn(images, draws, blur=self.config.blurs, solarize=self.config.solarizes)

    def objective(self, clean: Tensor, moved: Tensor) -> Tensor:
        return self.adversarial_loss(moved, self.clean(clean))

    @torch.no_grad()
    def clean(self, views: Tensor) -> Tensor:
        return self.units(self.teacher(views.flatten(0, 1)), 2)

    def adversarial_loss(self, moved: Tensor, clean: Tensor) -> Tensor:
        predicted = self.units(self.predictor(self.projector(self.encoder(moved.flatten(0, 1)))), 2)
        return 2 - 2 * (predicted * clean.flip(0)).sum(dim=2).mean()

    def after_update(self) -> None:
        student = nn.Sequential(self.encoder, self.projector)
        follow(self.teacher, student, rising(self.progress, self.config.rate))
