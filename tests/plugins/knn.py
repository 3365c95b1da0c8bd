"""A soft vote of all training images, the nearer the louder (weighted kNN of Wu et al., 2018, arXiv:1805.01978)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.protocols.common.base import BaseProtocol, Fitted, Material, facts_of
from bench.protocols.common.classifier import Classifier
from bench.spec import UsageError

TEMPERATURE = 0.1
AT_ONCE = 1024  # features that are compared with all training features together
SILENT = -1e4  # the logit of a class without a training image


class Votes(nn.Module):
    """Features (B, F) -> logits (B, K): of each class the log of its training images' weights, exp(cosine / T)."""

    features: Tensor
    labels: Tensor

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.register_buffer("features", features)  # (N, F), of length 1
        self.register_buffer("labels", labels)  # (N, K), one true in each line

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([self.votes(part) for part in features.split(AT_ONCE)])

    def votes(self, features: Tensor) -> Tensor:
        weights = F.normalize(features, dim=1) @ self.features.T / TEMPERATURE  # (B, N)
        voices = [weights.masked_fill(~mine, SILENT).logsumexp(dim=1) for mine in self.labels.T]
        return torch.stack(voices, dim=1)


class Protocol(BaseProtocol):
    """Nothing is fitted: the features of the training images and their labels are kept."""

    title: ClassVar[str] = "Nearest neighbours"
    ranked: ClassVar[bool] = True

    def fit(self, classifier: Classifier, material: Material) -> Fitted:
        features, labels = material.features(classifier), F.one_hot(material.labels, material.train.classes).bool()
        sound = features.isfinite().all(dim=1)
        if not bool(sound.any()):
            raise ValueError("expected finite features of some training images, got NaN or infinity for every one")
        classifier.probe = Votes(F.normalize(features[sound], dim=1), labels[sound])
        return Fitted(facts_of(classifier.probe, features, material, note=f"temperature {TEMPERATURE:g}"))

    def restore(self, classifier: Classifier, tensors: dict[str, Tensor]) -> None:
        if tensors.keys() != {"features", "labels"}:
            raise UsageError(f"expected features and labels of training images, got {', '.join(sorted(tensors))}")
        classifier.probe = Votes(tensors["features"], tensors["labels"])
