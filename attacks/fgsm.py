"""FGSM (Goodfellow, Shlens & Szegedy, 2015, arXiv:1412.6572): one step of eps from the clean image."""

from dataclasses import dataclass

from torch import Generator, Tensor, nn

from attacks.common.base import BaseAttack, maximize
from bench.spec import ThreatModel


@dataclass(frozen=True)
class Attack(BaseAttack):
    """The loop with one step. Beside PGD it shows masked gradients: PGD may never do worse."""

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        return maximize(
            model, images, labels, threat, steps=1, step=threat.eps, random_start=False, generator=generator
        )
