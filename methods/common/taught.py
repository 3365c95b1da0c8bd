"""Stages under one clock: a clean teacher is trained, then a student learns from it."""

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.ranges import around
from bench.storage.files import Damaged, load_tensors, sha256
from bench.usage import UsageError
from methods.common.augment import Draws
from methods.common.base import BaseConfig, BaseMethod, Stage, setting
from methods.common.teacher import teacher_of
from methods.common.weak import padded_crop


@dataclass(frozen=True)
class TaughtConfig(BaseConfig):
    """Settings of both stages: in the student's, ``student_lr`` takes the place of ``lr``, and so does each of them."""

    least_views: ClassVar[int] = 1  # of the student
    step: float = setting(2 / 255, "text")  # of its attack
    random_start: bool = setting(True, "code")
    teacher: str = setting("", "own")  # the file of an encoder, in place of the first stage
    teacher_share: float = setting(0.5, "own")  # of the budget
    student_batch: int = setting(512, "text")
    student_lr: float = setting(0.5, "code", tune=around(10))
    student_warm_up: float = setting(0.01, "text")  # 10 of 1,000 epochs
    padding: float = setting(1 / 8, "code")  # of the weak view, in sides of the image: 4 of 32 pixels

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("teacher_share", 0 < self.teacher_share < 1, "in (0, 1)")
        self.check("padding", 0 <= self.padding < 1, "in [0, 1)")

    def check_teacher(self) -> None:
        """What holds of the settings that are given, and not of those that its stage gives the student."""
        self.check("views", self.views == 2, "of 2, for the teacher's loss of pairs")
        self.check("adversary", self.adversary == "none", "none: the teacher sees clean images, the student PGD's")

    @property
    def traits(self) -> set[str]:
        return super().traits | {"distilled"}


class Taught(BaseMethod):
    """Stands before the method that trains the teacher: ``class Method(Taught, simclr.Method)``.

    The student's four functions take the place of the teacher's when its turn comes. Its Config is a ``TaughtConfig``;
    with a ``teacher`` of its own the first stage falls away, and the run has extra data.
    """

    student: ClassVar[dict[str, Any]] = {}  # settings of its stage that nobody chooses
    student_moves: ClassVar[slice] = slice(None)  # the student's views that an adversary may move
    distils = False  # whether it has begun
    config: TaughtConfig
    teacher: nn.Module  # without gradients; in eval mode from then on
    projector: nn.Module  # the teacher's, frozen then

    def __init__(self, config: TaughtConfig) -> None:
        super().__init__(config)
        config.check_teacher()

    def build(self, width: int) -> None:
        super().build(width)
        self.teacher = teacher_of(self.encoder)

    def extra_data(self) -> str:
        file = self.config.teacher
        return f"a given teacher, {sha256(weights_of(file))[:12]}" if file else ""

    def change_places(self) -> None:
        """Make the teacher of what the first stage has trained; the student begins where the teacher began."""
        start = copy.deepcopy(self.teacher.state_dict())
        self.teacher.load_state_dict(self.encoder.state_dict())
        self.encoder.load_state_dict(start)

    def student_views(self, images: Tensor, draws: Draws) -> Tensor:
        """``augment`` of the student: weak views, shifted by a few pixels and mirrored or not."""
        return padded_crop(images, draws, padding=self.config.padding, flip=self.config.flip)

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
        mark, c = "student_", self.config
        own = {name.removeprefix(mark): value for name, value in vars(c).items() if name.startswith(mark)}
        teacher = () if c.teacher else (Stage(c.teacher_share, "teacher"),)
        return *teacher, Stage(1 - sum(stage.share for stage in teacher), "student", own | self.student)

    def begin(self, stage: int) -> None:
        self.distils = stage + 1 == len(self.stages())
        self.moves = self.student_moves if self.distils else type(self).moves
        taught = stage + bool(self.config.teacher)  # stages whose turn has come, a given teacher's among them
        self.projector.requires_grad_(taught == 0)
        if taught == 1:
            if self.config.teacher:
                self.learn_from(weights_of(self.config.teacher))
            else:
                self.change_places()
            self.teacher.eval()

    def learn_from(self, weights: dict[str, Tensor]) -> None:
        """Make them the teacher's; each branch of its batch norms gets the same. Raises UsageError unless all fit."""
        own = {name: re.sub(r"\.norms\.\d+", "", name) for name in self.teacher.state_dict()}
        missing, left = sorted(set(own.values()) - weights.keys()), sorted(weights.keys() - set(own.values()))
        misfit = f"{missing[:2]} are missing, {left[:2]} are left over" if missing or left else ""
        if not misfit:
            try:
                self.teacher.load_state_dict({name: weights[given] for name, given in own.items()})
            except RuntimeError as error:  # shapes
                misfit = str(error).splitlines()[-1].strip()
        if misfit:
            raise UsageError(
                f"expected a teacher with the weights of this run's encoder, got {self.config.teacher}: {misfit}; "
                "take the encoder.safetensors of a run with the same encoder and feature_width"
            )

    def augment(self, images: Tensor, draws: Draws) -> Tensor:
        return self.student_views(images, draws) if self.distils else super().augment(images, draws)

    def objective(self, clean: Tensor, moved: Tensor) -> Tensor:
        return self.student_loss(clean, moved) if self.distils else super().objective(clean, moved)

    @torch.no_grad()
    def clean(self, views: Tensor) -> Any:
        return self.target(views) if self.distils else super().clean(views)

    def adversarial_loss(self, moved: Tensor, clean: Any) -> Tensor:
        return self.attack(moved, clean) if self.distils else super().adversarial_loss(moved, clean)


def weights_of(file: str) -> dict[str, Tensor]:
    """The weights of an encoder.safetensors. Raises UsageError where there are none."""
    try:
        return load_tensors(Path(file).expanduser())
    except (Damaged, UsageError) as error:
        raise UsageError(f"expected teacher as the encoder.safetensors of a run, got {file}: {error}") from None
