"""Each class is the mean of its training images' features; an image is of the class whose mean is nearest in angle."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from bench.protocols.common.base import BaseProtocol, Fitted, Material, facts_of
from bench.protocols.common.classifier import Classifier
from bench.spec import UsageError


class Prototypes(nn.Module):
    """Features (B, F) -> the cosine (B, K) with the mean of each class."""

    means: Tensor

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        self.register_buffer("means", means)  # (K, F), of length 1

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=1) @ self.means.T


class Protocol(BaseProtocol):
    """Neither weight nor bias: the means are all that is kept."""

    title: ClassVar[str] = "Nearest class mean"
    ranked: ClassVar[bool] = True

    def fit(self, classifier: Classifier, material: Material) -> Fitted:
        features, labels = material.features(classifier).to(material.device), material.labels
        sound = features.isfinite().all(dim=1)
        if not bool(sound.any()):
            raise ValueError("expected finite features of some training images, got NaN or infinity for every one")
        classes = F.one_hot(labels[sound], material.train.classes).float()
        classifier.probe = Prototypes(F.normalize(classes.T @ F.normalize(features[sound], dim=1), dim=1))
        return Fitted(facts_of(classifier.probe, features, material, note="cosine"))

    def restore(self, classifier: Classifier, tensors: dict[str, Tensor]) -> None:
        if tensors.keys() != {"means"}:
            raise UsageError(f"expected the means of the classes, got {', '.join(sorted(tensors))}")
        classifier.probe = Prototypes(tensors["means"])
