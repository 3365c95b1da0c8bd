"""SimCLR whose second view goes through a momentum teacher: MoCo (He et al., 2020, arXiv:1911.05722), no queue."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.common.augment import Draws
from methods.common.base import BaseConfig, BaseMethod, mlp, setting
from methods.common.losses import nt_xent
from methods.common.teacher import follow, rising, teacher_of


@dataclass(frozen=True)
class Config(BaseConfig):
    rate: float = setting(0.99, "own")  # of the teacher at the beginning; 1 at the end
    blurs: tuple[float, float] = setting((1.0, 0.1), "own")  # of the first view and of the second
    temperature: float = setting(0.5, "own")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("views", self.views == 2, "of 2, one to find the other from")
        self.check("rate", 0 <= self.rate <= 1, "in [0, 1]")


class Method(BaseMethod):
    """An adversary, if there is one, moves the view of the student; the teacher sees a clean one."""

    config: Config
    moves = slice(0, 1)

    def build(self, width: int) -> None:
        self.projector = mlp(width, self.config.hidden_width, self.config.embedding_width)
        self.teacher = teacher_of(nn.Sequential(self.encoder, self.projector))

    def augment(self, images: Tensor, draws: Draws) -> Tensor:
        return self.drawn(images, draws, blur=self.config.blurs)  # all else is in the settings

    def objective(self, clean: Tensor, moved: Tensor) -> Tensor:
        return self.adversarial_loss(moved[:1], self.clean(clean))

    @torch.no_grad()
    def clean(self, views: Tensor) -> Tensor:
        """What the teacher says of the second view: unit vectors (1, B, D)."""
        return self.units(self.teacher(views[1]))

    def adversarial_loss(self, moved: Tensor, clean: Tensor) -> Tensor:
        return nt_xent(torch.cat([self.embed(moved), clean]), self.config.temperature)

    def after_update(self) -> None:
        student = nn.Sequential(self.encoder, self.projector)
        follow(self.teacher, student, rising(self.progress, self.config.rate))
