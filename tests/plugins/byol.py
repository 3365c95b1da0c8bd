"""BYOL (Grill et al., 2020, arXiv:2006.07733): a predictor learns what a momentum teacher says of another view."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.common.augment import Draws, augment
from methods.common.base import BaseConfig, BaseMethod, mlp, setting
from methods.common.teacher import follow, rising, teacher_of


@dataclass(frozen=True)
class Config(BaseConfig):
    embedding_width: int = setting(256, "own")
    rate: float = setting(0.996, "own")  # tau at the beginning; 1 at the end (section 3.2)
    blurs: tuple[float, float] = setting((1.0, 0.1), "own")  # of the first view and of the second (table 6)
    solarizes: tuple[float, float] = setting((0.0, 0.2), "own")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("views", self.views == 2, "of 2, one to predict the other from")
        self.check("rate", 0 <= self.rate <= 1, "in [0, 1]")


class Method(BaseMethod):
    """The student sees what an adversary has moved, if there is one; the teacher sees the clean views."""

    config: Config

    def build(self, width: int) -> None:
        c = self.config
        self.projector = mlp(width, c.hidden_width, c.embedding_width)
        self.predictor = mlp(c.embedding_width, c.hidden_width, c.embedding_width)
        self.teacher = teacher_of(nn.Sequential(self.encoder, self.projector))

    def augment(self, images: Tensor, draws: Draws) -> Tensor:
        c = self.config
        return augment(
            images,
            draws,
            views=2,
            size=c.view_side(images.shape[-1]),
            scale=c.crop_scale,
            flip=c.flip,
            jitter=c.jitter,
            jitter_probability=c.jitter_probability,
            gray=c.gray,
            blur=c.blurs,
            solarize=c.solarizes,
        )

    def objective(self, clean: Tensor, moved: Tensor) -> Tensor:
        predicted = self.unit(self.predictor(self.projector(self.encoder(moved.flatten(0, 1)))), moved)
        with torch.no_grad():
            told = self.unit(self.teacher(clean.flatten(0, 1)), clean)
        return 2 - 2 * (predicted * told.flip(0)).sum(dim=2).mean()  # equation 2, of both views

    def unit(self, rows: Tensor, views: Tensor) -> Tensor:
        """Unit vectors (V, B, D) of the whole batch."""
        return self.gather(nn.functional.normalize(rows.float(), dim=1).reshape(*views.shape[:2], -1))

    def after_update(self) -> None:
        student = nn.Sequential(self.encoder, self.projector)
        follow(self.teacher, student, rising(self.progress, self.config.rate))
