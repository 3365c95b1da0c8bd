"""No attack: the images as they are, for clean accuracy."""

from dataclasses import dataclass

from torch import Generator, Tensor, nn

from attacks.common.base import BaseAttack
from bench.spec import ThreatModel


@dataclass(frozen=True)
class Attack(BaseAttack):
    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        return images
