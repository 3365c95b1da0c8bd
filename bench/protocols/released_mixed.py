"""The head that the authors of CF-AMC-SSL ship: one linear layer on clean, then on attacked, then on clean images.

From their released EMP script: one Adam of 3e-4 throughout, two epochs of each, PGD-5 of 8/255 with steps of .01 from
the image itself, against the head as it is. The last block stands where a clean test belongs. The epochs of each block
are settings, so that clean heads and attacked ones are the same protocol.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from attacks.common.base import last_iterate
from bench.protocols.common.base import Fitted, Material, facts_of
from bench.protocols.common.chosen_rate import sound_images
from bench.protocols.common.classifier import Classifier
from bench.protocols.common.probe import LinearProtocol
from bench.protocols.common.trained_head import Epoch, steps_of, train
from bench.random import stream
from bench.spec import UsageError


@dataclass(frozen=True)
class Protocol(LinearProtocol):
    """Attacked as in the paper, and by AutoAttack; never ranked."""

    title: ClassVar[str] = "Mixed head, as released"
    attacks: ClassVar[dict[str, dict[str, Any]] | None] = {
        "pgd": {"absolute_step": 0.01, "random_start": False, "best": False},
        "autoattack": {},
    }

    clean: int = 2  # epochs on clean images
    robust: int = 2  # then on attacked ones
    clean_again: int = 2
    batch: int = 256
    learning_rate: float = 3e-4
    steps: int = 5
    relative_step: float = 0.31875  # step / eps: .01 at 8/255

    def __post_init__(self) -> None:
        blocks = (self.clean, self.robust, self.clean_again)
        if min(blocks) < 0 or not sum(blocks):
            raise UsageError(f"expected epochs of at least 0 in each block and one in all, got {blocks}")

    def fit(self, classifier: Classifier, material: Material) -> Fitted:
        features = material.features(classifier)
        ids, step = sound_images(features), self.relative_step * material.threat.eps
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(material.seed, "mixed-head").initial_seed())
            head = nn.Linear(features.shape[1], material.train.classes).to(material.device)
        classifier.probe = head

        def objective(places: Tensor, epoch: Epoch, draws: Generator) -> Tensor:
            labels = material.labels[places]
            if not epoch.attacked:  # a clean image has the same features in every epoch
                return F.cross_entropy(head(features[places.to(features.device)].to(labels.device)), labels)
            images = material.train.pictures(places, material.device)
            moved = last_iterate(classifier, images, labels, material.threat, steps=self.steps, step=step)
            with torch.no_grad():
                shifted = classifier.features(moved)
            return F.cross_entropy(head(shifted), labels)

        optimizer = torch.optim.Adam(head.parameters(), lr=self.learning_rate)
        blocks = ((self.clean, False), (self.robust, True), (self.clean_again, False))
        epochs = [Epoch(attacked) for count, attacked in blocks for _ in range(count)]
        train("final", head, optimizer, epochs, ids, min(self.batch, len(ids)), objective, material)
        head.eval().requires_grad_(False)
        said = f"Adam {self.learning_rate:g}, epochs: {self.clean} clean, {self.robust} on PGD-{self.steps} images, "
        return Fitted(facts_of(head, features, material, note=f"{said}{self.clean_again} clean"))

    def fit_passes(self, images: int) -> float:
        return images + self.robust * steps_of(images, min(self.batch, images)) * (2 * self.steps + 1)
