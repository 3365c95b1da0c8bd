"""Two stages: SimCLR trains a clean teacher, then a student learns to say the same of moved views.

After DeACL (Zhang et al., 2022, arXiv:2203.14207), whose student is drawn anew and whose losses are two.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.common.base import BaseConfig, BaseMethod, Stage, mlp, setting
from methods.common.losses import nt_xent
from methods.common.teacher import teacher_of


@dataclass(frozen=True)
class Config(BaseConfig):
    teacher_share: float = setting(0.5, "own")  # of the budget
    student_lr: float = setting(0.05, "own")
    temperature: float = setting(0.5, "own")


class Method(BaseMethod):
    """The student begins as the teacher, which is frozen then."""

    config: Config

    def stages(self) -> tuple[Stage, ...]:
        c = self.config
        student = {"adversary": "pgd", "steps": 2, "optimizer": "sgd", "warm_up": 0.1, "lr": c.student_lr}
        return (Stage(c.teacher_share, "teacher"), Stage(1 - c.teacher_share, "student", student))

    def build(self, width: int) -> None:
        self.projector = mlp(width, self.config.hidden_width, self.config.embedding_width)
        self.teacher = teacher_of(nn.Sequential(self.encoder, self.projector))

    def begin(self, stage: int) -> None:
        self.distils = stage == 1
        if self.distils:
            self.teacher.load_state_dict(nn.Sequential(self.encoder, self.projector).state_dict())
            self.teacher.eval()

    def objective(self, clean: Tensor, moved: Tensor) -> Tensor:
        if not self.distils:
            return nt_xent(self.embed(moved), self.config.temperature)
        return self.distance(self.embed(moved), self.clean(clean))

    @torch.no_grad()
    def clean(self, views: Tensor) -> Tensor:
        """What the teacher says of the clean views: unit vectors (V, B, D)."""
        told = F.normalize(self.teacher(views.flatten(0, 1)).float(), dim=1)
        return self.gather(told.reshape(*views.shape[:2], -1))

    def adversarial_loss(self, moved: Tensor, clean: Tensor) -> Tensor:
        return self.distance(self.embed(moved), clean)

    def distance(self, embeddings: Tensor, told: Tensor) -> Tensor:
        return 1 - (embeddings * told).sum(dim=2).mean()
