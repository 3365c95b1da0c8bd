"""PGD in l2 (Madry et al., 2018, arXiv:1706.06083): steps along the gradient, a quarter of the radius each."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor, nn

from attacks.common.base import BaseAttack, maximize
from bench.spec import Norm, ThreatModel


@dataclass(frozen=True)
class Attack(BaseAttack):
    """The loop of ``pgd`` in another ball: its norm is all that differs."""

    norm: ClassVar[Norm] = "l2"
    steps: int = 20
    relative_step: float = 0.25  # step / eps
    restarts: int = 1

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        step = self.relative_step * threat.eps
        return maximize(
            model, images, labels, threat, steps=self.steps, step=step, restarts=self.restarts, generator=generator
        )
