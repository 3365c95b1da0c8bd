"""Random corners of the ball, {-eps, +eps} per pixel: a black box without queries; no real attack may do worse."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from attacks.common.base import BaseAttack, maximize, project
from bench.spec import ThreatModel, UsageError


@dataclass(frozen=True)
class Attack(BaseAttack):
    """Any misclassified draw counts. ``draws`` forward passes, no gradient."""

    draws: int = 100

    def __post_init__(self) -> None:
        if self.draws <= 0:
            raise UsageError(f"expected draws of noise above 0, got {self.draws}")

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        # no steps: every restart is one draw and one look
        return maximize(
            model, images, labels, threat, steps=0, step=0, restarts=self.draws, draw=corner, generator=generator
        )


def corner(clean: Tensor, eps: float, generator: Generator) -> Tensor:
    """A uniformly drawn corner of the ball, then in [0, 1]; drawn on the CPU like every start."""
    signs = 2 * torch.randint(0, 2, clean.shape, generator=generator).to(clean) - 1
    return project(clean + eps * signs, clean, eps)
