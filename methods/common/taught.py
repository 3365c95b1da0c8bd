"""Two stages under one clock: a clean teacher is trained, then a student learns from it."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from methods.common.augment import Draws
from methods.common.base import BaseMethod, Stage


class Taught(BaseMethod):
    """Stands before the method that trains the teacher: ``class Method(Taught, simclr.Method)``.

    The student's four functions take the place of the teacher's when its turn comes. Its Config has a ``teacher_share``
    of the budget, and a setting whose name begins with ``student_`` takes the place of the one without it.
    """

    student: ClassVar[dict[str, Any]] = {}  # settings of the second stage that nobody chooses
    student_moves: ClassVar[slice] = slice(None)  # the student's views that an adversary may move
    distils = False  # whether it has begun
    teacher: nn.Module  # without gradients; in eval mode from then on
    projector: nn.Module  # the teacher's, frozen then

    def change_places(self) -> None:
        """Make the teacher of what the first stage has trained."""
        raise NotImplementedError

    def student_views(self, images: Tensor, draws: Draws) -> Tensor:
        """``augment`` of the student."""
        raise NotImplementedError

    def student_loss(self, clean: Tensor, moved: Tensor) -> Tensor:
        """``objective`` of the student."""
        raise NotImplementedError

    def target(self, views: Tensor) -> Any:
        """``clean`` of the student: what its attack is to leave."""
        raise NotImplementedError

    def attack(self, moved: Tensor, target: Any) -> Tensor:
        """``adversarial_loss`` of the student."""
        raise NotImplementedError

    def stages(self) -> tuple[Stage, ...]:
        chosen, mark = vars(self.config), "student_"
        own = {name.removeprefix(mark): value for name, value in chosen.items() if name.startswith(mark)}
        share = chosen["teacher_share"]
        return Stage(share, "teacher"), Stage(1 - share, "student", own | self.student)

    def begin(self, stage: int) -> None:
        self.distils = stage == 1
        self.moves = self.student_moves if self.distils else type(self).moves
        self.projector.requires_grad_(not self.distils)
        if self.distils:
            self.change_places()
            self.teacher.eval()

    def augment(self, images: Tensor, draws: Draws) -> Tensor:
        return self.student_views(images, draws) if self.distils else super().augment(images, draws)

    def objective(self, clean: Tensor, moved: Tensor) -> Tensor:
        return self.student_loss(clean, moved) if self.distils else super().objective(clean, moved)

    @torch.no_grad()
    def clean(self, views: Tensor) -> Any:
        return self.target(views) if self.distils else super().clean(views)

    def adversarial_loss(self, moved: Tensor, clean: Any) -> Tensor:
        return self.attack(moved, clean) if self.distils else super().adversarial_loss(moved, clean)
