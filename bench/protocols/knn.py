"""kNN: a soft vote of all training images, the nearer the louder (Wu et al., 2018, arXiv:1805.01978, eq. 2 and 3.4).

The cosine of the backbone's features, as the field reads them. All training images vote and not the nearest alone, so
the vote has a gradient everywhere, and an attack can climb it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.protocols.common.base import BaseProtocol, Fitted, Material, facts_of
from bench.protocols.common.classifier import Classifier, backbone_of
from bench.spec import UsageError

AT_ONCE = 1024  # images that are compared with all training images together
SILENT = -1e4  # the logit of a class without a training image


class Votes(nn.Module):
    """Features (B, F) -> logits (B, K): of each class the log of its training images' weights, exp(cosine / T).

    ``features`` (N, F), of length 1, are those of the training images, one class after the other; ``sizes`` (K,): how
    many of each class.
    """

    features: Tensor
    temperature: Tensor

    def __init__(self, features: Tensor, sizes: Tensor, temperature: Tensor) -> None:
        super().__init__()
        self.register_buffer("features", features)
        self.register_buffer("sizes", sizes)
        self.register_buffer("temperature", temperature)
        self.parts: list[int] = sizes.tolist()

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([self.votes(part) for part in features.split(AT_ONCE)])

    def votes(self, features: Tensor) -> Tensor:
        nearness = F.normalize(features, dim=1) @ self.features.T / self.temperature  # (B, N)
        voices = [
            part.logsumexp(dim=1) if part.shape[1] else part.new_full((len(part),), SILENT)
            for part in nearness.split(self.parts, dim=1)
        ]
        return torch.stack(voices, dim=1)


@dataclass(frozen=True)
class Protocol(BaseProtocol):
    """Nothing is fitted: the features of the training images and their classes are kept."""

    title: ClassVar[str] = "kNN (soft vote)"
    ranked: ClassVar[bool] = True

    temperature: float = 0.1  # T, as the field's codes have it; .07 in the paper

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UsageError(f"expected temperature of knn above 0, got {self.temperature}")

    def reads(self, encoder: nn.Module) -> nn.Module:
        return backbone_of(encoder)

    def fit(self, classifier: Classifier, material: Material) -> Fitted:
        features, labels = material.features(classifier).to(material.device), material.labels
        sound = features.isfinite().all(dim=1)
        if not bool(sound.any()):
            raise ValueError("expected finite features of some training images, got NaN or infinity for every one")
        order = labels[sound].argsort(stable=True)
        sizes = labels[sound].bincount(minlength=material.train.classes)
        temperature = torch.tensor(self.temperature, device=features.device)
        classifier.probe = Votes(F.normalize(features[sound], dim=1)[order], sizes, temperature)
        return Fitted(facts_of(classifier.probe, features, material, note=f"temperature {self.temperature:g}"))

    def restore(self, classifier: Classifier, tensors: dict[str, Tensor]) -> None:
        if tensors.keys() != {"features", "sizes", "temperature"}:
            names = ", ".join(sorted(tensors))
            raise UsageError(f"expected features of training images, sizes and a temperature, got {names}")
        classifier.probe = Votes(**tensors)
