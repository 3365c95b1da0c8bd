"""MI-FGSM (Dong et al., 2018, arXiv:1710.06081): gradients of length 1, added up; a loop of its own."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from attacks.common.base import BaseAttack, cross_entropy
from attacks.common.threat import geometry
from bench.spec import ThreatModel, UsageError


@dataclass(frozen=True)
class Attack(BaseAttack):
    """``steps`` of eps / steps from the clean image, as published; the last iterate, not the best."""

    steps: int = 10
    decay: float = 1.0  # mu

    def __post_init__(self) -> None:
        if self.steps <= 0:
            raise UsageError(f"expected steps above 0, got {self.steps}")

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        ball = geometry(threat)
        moved, momentum = images.clone(), torch.zeros_like(images)
        attacked = (model(images).argmax(dim=1) == labels)[:, None, None, None]  # what is wrong already stays
        for _ in range(self.steps):
            moved.requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(cross_entropy(model(moved), labels).sum(), moved)
            length = gradient.abs().sum(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
            momentum = self.decay * momentum + gradient / length  # eq. 6
            moved = ball.project(moved.detach() + threat.eps / self.steps * ball.steepest(momentum), images)  # eq. 7
        return torch.where(attacked, moved.detach(), images)
