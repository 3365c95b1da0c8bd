"""What is audited: one protocol's classifier, the images, and what the ranked attacks made of them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bench.data.images import Pictures
from bench.protocols.common.base import protocol_of
from bench.protocols.common.classifier import MultiPatch
from bench.record import Check, EvalResult, ProbeResult, Verdict
from bench.spec import EvalSpec

AuditCheck = Callable[["Subject"], Check]


class Counted(nn.Module):
    """The same model, counting forward passes of single images, and one more where a gradient is asked for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.passes = model, 0.0

    def forward(self, images: Tensor) -> Tensor:
        wants = torch.is_grad_enabled() and images.requires_grad
        self.passes += len(images) * (2 if wants else 1)
        logits: Tensor = self.model(images)
        return logits


@dataclass
class Subject:
    """Images (N, C, H, W) in [0, 1] and labels (N,) in the fixed test order, on the device of the model.

    ``correct``: right without an attack. ``standing``: right under the ranked set, PGD and AutoAttack, where both saw
    the image; the first ``audited`` images are these. ``adversarial``: attack -> what it returned at ``eps``, for the
    first images. ``results``: (attack, eps) -> what was published.
    """

    model: Counted  # frozen, eval mode: images -> logits (B, K); crops and probe are inside
    images: Tensor | Pictures
    labels: Tensor
    eps: float
    protocol: str
    classes: int
    seed: int
    chunk: int  # images per pass
    spec: EvalSpec
    correct: Tensor
    standing: Tensor
    audited: int
    results: dict[tuple[str, float], EvalResult] = field(default_factory=dict)
    adversarial: dict[str, Tensor] = field(default_factory=dict)
    broken: dict[str, list[int]] = field(default_factory=dict)  # check -> places of images that only it broke
    robust: bool = True  # False: the ranked number is 0 within its interval, so it cannot be an over-estimate
    probe: ProbeResult | None = None  # of this protocol, as stored
    band: list[tuple[float, int, int]] = field(default_factory=list)  # the probe's: (lambda, correct, total) under PGD
    duplicates: int | None = None  # test images whose pixels are also those of a training image
    # what other runs of the folder made: name -> (first images, C, H, W); None: they are still to come
    sources: dict[str, Callable[[], Tensor]] | None = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)  # "encoder", "probe", "train", "test" -> SHA-256 in the log
    loaded: dict[str, str] = field(default_factory=dict)  # the same of what is audited

    @property
    def of_crops(self) -> bool:
        """Whether the classifier reads the mean features over crops."""
        return isinstance(self.model.model, MultiPatch)

    @property
    def dear(self) -> bool:
        """Whether an image costs so much that fewer are looked at."""
        return protocol_of(self.spec, self.protocol).dear

    def breaks(self, check: str, places: Tensor) -> int:
        """Remember the images ``places`` (M,) that this check broke; how many of them the ranked attacks had left."""
        left = [int(place) for place in places.tolist() if place < self.audited and bool(self.standing[place])]
        self.broken[check] = sorted(set(left))
        return len(self.broken[check])


def soundness(found: int, n: int) -> Verdict:
    """Protocol 3.1: FAIL if an audit attack broke at least 3 images that the ranked set left standing and Wilson's
    lower bound of their share is above 0.5 points; WARN for any image."""
    from scipy import stats

    if found == 0:
        return "PASS"
    result = stats.binomtest(found, n)  # type: ignore[attr-defined]
    low = float(result.proportion_ci(confidence_level=0.95, method="wilson").low)
    return "FAIL" if found >= 3 and low > 0.005 else "WARN"
