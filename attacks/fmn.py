"""FMN (Pintor et al., 2021, arXiv:2102.12827): the nearest misclassified image, without an eps; from adv-lib.

It returns an upper bound of the distance: the evaluation measures it on what comes back, and keeps it for every image.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from attacks.common.base import BaseAttack, predicted
from attacks.common.package import fmn_version, load_fmn
from attacks.common.threat import geometry, of_picture
from bench.spec import Norm, ThreatModel, UsageError

BEYOND = 1.001
ORDERS: dict[Norm, float] = {"linf": float("inf"), "l2": 2}


@dataclass(frozen=True)
class Attack(BaseAttack):
    """Steps along the gradient, projected onto a ball that shrinks where an image is misclassified and grows where not.

    An image that it breaks outside of the threat alone comes back clean.
    """

    minimum: ClassVar[bool] = True
    steps: int = 200
    step: float = 1.0  # alpha, the first one, in l2 units; the last is a hundredth of it
    shrink: float = 0.05  # gamma, the first change of the ball's radius as a share of it; the last is .001

    def __post_init__(self) -> None:
        if min(self.steps, self.step, self.shrink) <= 0:
            raise UsageError(
                f"expected steps, step and shrink of fmn above 0, got {self.steps}, {self.step}, {self.shrink}"
            )

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        clean = images.detach()
        if threat.eps == 0 or len(images) == 0:
            return clean.clone()
        seen = classes_of(model, clean)
        moved = self.search(model, clean, labels, threat)
        # where it stopped at the border from within: once more, from a picture of the batch that is another class
        other = (seen[None] != labels[:, None]) & (seen[None] >= 0)
        missed = (classes_of(model, moved) == labels) & other.any(dim=1)
        if missed.any():
            starts = clean[other[missed].int().argmax(dim=1)]
            moved[missed] = self.search(model, clean[missed], labels[missed], threat, starts)
        inside = geometry(threat).distance(moved, clean) <= threat.eps
        return torch.where(of_picture(inside), moved, clean)

    def search(
        self, model: nn.Module, clean: Tensor, labels: Tensor, threat: ThreatModel, starts: Tensor | None = None
    ) -> Tensor:
        """The nearest misclassified images that the package finds, a thousandth further: (B, C, H, W) in [0, 1].

        It stops so near the border that the rounding of another batch would take some of them back.
        """
        order, settings = ORDERS[threat.norm], {"steps": self.steps, "α_init": self.step, "γ_init": self.shrink}
        with torch.enable_grad():
            nearest: Tensor = load_fmn()(model, clean, labels, order, starting_points=starts, **settings).detach()
        return (clean + BEYOND * (nearest - clean)).clamp(0, 1)

    def describe(self, classes: int) -> dict[str, Any]:
        return super().describe(classes) | {"package": fmn_version()}


def classes_of(model: nn.Module, images: Tensor) -> Tensor:
    """The predicted class of each image: (B,)."""
    with torch.no_grad():
        return predicted(model(images))
