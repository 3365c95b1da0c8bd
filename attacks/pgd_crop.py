"""PGD in crop space (Ghofrani & Jamshidi, 2025, arXiv:2501.03507): every crop moved on its own, as the released code.

A ball per crop is another threat model than one for the picture: it has its own name and is never in a ranked column.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Generator, Tensor, nn

from attacks.common.base import BaseAttack, maximize
from bench.spec import ThreatModel, UsageError


@dataclass(frozen=True)
class Attack(BaseAttack):
    """Images are crops (B, n, C, H, W); the model maps them to the logits (B, K) of their mean embedding."""

    space: ClassVar[Literal["image", "crop"]] = "crop"
    steps: int = 20
    step: float = 0.01  # in [0, 1] pixel units, whatever eps is

    def __post_init__(self) -> None:
        if min(self.steps, self.step) <= 0:
            raise UsageError(f"expected steps and step of pgd_crop above 0, got {self.steps} and {self.step}")

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        return maximize(
            model, images, labels, threat, steps=self.steps, step=self.step, random_start=False, generator=generator
        )
