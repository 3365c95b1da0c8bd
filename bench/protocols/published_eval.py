"""The paper's own evaluation: a linear classifier fitted with Adam, PGD-20 with steps of .01 from the image itself."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.protocols.common.base import Fitted, Material, facts_of
from bench.protocols.common.classifier import Classifier
from bench.protocols.common.features import finite
from bench.protocols.common.probe import LinearProtocol
from bench.random import stream


class Protocol(LinearProtocol):
    """CF-AMC-SSL (arXiv:2501.03507): for comparison with its numbers only, and so never ranked."""

    title: ClassVar[str] = "Published evaluation"
    paper: ClassVar[str] = "arXiv:2501.03507"
    attacks: ClassVar[dict[str, dict[str, Any]] | None] = {
        "pgd": {"absolute_step": 0.01, "random_start": False, "best": False}
    }

    def fit(self, classifier: Classifier, material: Material) -> Fitted:
        features = material.features(classifier)
        probe = fit_published_probe(features, material.labels, material.train.classes, material.seed)
        classifier.probe = probe
        return Fitted(facts_of(probe, features, material, note=f"Adam 3e-4, 20 epochs, batches of 256 ({self.paper})"))


def fit_published_probe(features: Tensor, labels: Tensor, classes: int, seed: int) -> nn.Linear:
    """The paper's own probe: Linear, Adam 3e-4, 20 epochs, batches of 256, last one dropped.

    Images with a feature that is not finite are left out.
    """
    sound = finite(features).nonzero().flatten()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "published-probe").initial_seed())
        layer = nn.Linear(features.shape[1], classes).to(labels.device)
    optimizer = torch.optim.Adam(layer.parameters(), lr=3e-4)
    generator = stream(seed, "published-probe-batches")
    batch = min(256, len(sound))
    for _ in range(20):
        order = sound[torch.randperm(len(sound), generator=generator)]
        for ids in order.split(batch)[: len(sound) // batch]:
            optimizer.zero_grad()
            some = features[ids.to(features.device)].to(labels.device)
            F.cross_entropy(layer(some), labels[ids.to(labels.device)]).backward()
            optimizer.step()
    return layer.eval().requires_grad_(False)
