"""ALF: a linear head trained on PGD images, made against the frozen encoder and the head as it is at that moment.

As the field's robust SSL codes do (DynACL, ACL, DeACL): SGD, 25 epochs, PGD-10 with steps of eps/4. Ours takes the last
epoch, divides features by one number, and chooses its learning rate by one rule for all methods, never on test images.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from attacks.common.base import last_iterate, random_start
from bench.protocols.common.base import Fitted, Material, facts_of
from bench.protocols.common.chosen_rate import images_seen, most_robust, sound_images, tuned
from bench.protocols.common.classifier import Classifier
from bench.protocols.common.features import Rows
from bench.protocols.common.probe import LinearProtocol, linear
from bench.protocols.common.trained_head import JUDGED, Epoch, batch_size, decayed, robust_count, steps_of, train


class Scaled(nn.Module):
    """A linear layer on features that are centred and divided by their length, the root of its mean square."""

    def __init__(self, rows: Rows, classes: int) -> None:
        super().__init__()
        width = len(rows.mean)
        self.mean, self.length = rows.mean, rows.scale * width**0.5
        self.layer: nn.Linear = nn.utils.skip_init(nn.Linear, width, classes, device=rows.mean.device)
        nn.init.zeros_(self.layer.weight)  # the loss is convex in the head: where it starts does not matter
        nn.init.zeros_(self.layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.layer((features - self.mean.float()) / self.length)
        return logits

    def plain(self) -> nn.Linear:
        """The same layer on plain features, frozen."""
        weight = self.layer.weight.detach().double() / self.length
        return linear(weight, self.layer.bias.detach().double() - weight @ self.mean)


@dataclass(frozen=True)
class Protocol(LinearProtocol):
    """The threat is that of the main eps, whatever the encoder was trained against."""

    title: ClassVar[str] = "ALF (adversarial linear head)"
    also: ClassVar[str] = "alf"
    ranked: ClassVar[bool] = True
    beside: ClassVar[str] = "adversarial_linear_backbone"
    judged: ClassVar[int | None] = JUDGED
    quick: ClassVar[dict[str, Any]] = {"epochs": 5}

    epochs: int = 25  # the learning rate falls to a tenth after 15 and after 20
    batch: int = 512  # at most; an epoch has some 20 batches at least
    learning_rates: tuple[float, ...] = (0.3, 3.0, 30.0)  # of which one is chosen
    momentum: float = 0.9
    steps: int = 10
    relative_step: float = 0.25  # step / eps

    def fit(self, classifier: Classifier, material: Material) -> Fitted:
        features, classes = material.features(classifier), material.train.classes
        ids, step = sound_images(features), self.relative_step * material.threat.eps

        def trained(name: str, rate: float, ids: Tensor) -> nn.Linear:
            chosen = torch.zeros(len(features), dtype=torch.bool).index_fill(0, ids, True)
            head = Scaled(Rows.standardized(features, material.labels, chosen, classes), classes)
            classifier.probe = head

            def objective(places: Tensor, epoch: Epoch, draws: Generator) -> Tensor:
                images, labels = material.train.pictures(places, material.device), material.labels[places]
                start = random_start(images, material.threat.eps, draws)
                moved = last_iterate(
                    classifier, images, labels, material.threat, steps=self.steps, step=step, start=start
                )
                with torch.no_grad():
                    shifted = classifier.features(moved)
                return F.cross_entropy(head(shifted), labels)

            optimizer = torch.optim.SGD(head.parameters(), lr=rate, momentum=self.momentum)
            batch = batch_size(self.batch, len(ids))
            train(name, head, optimizer, decayed(self.epochs), ids, batch, objective, material)
            return head.plain()

        def judged(head: nn.Linear, ids: Tensor) -> tuple[int, int]:
            classifier.probe = head
            return robust_count(classifier, material, ids, self.steps, step, "held out")

        chosen = tuned(self.learning_rates, ids, material, trained, judged)
        classifier.probe = chosen.head
        return Fitted(facts_of(chosen.head, features, material, **chosen.facts), chosen.others)

    def choice(self, held_out: list[tuple[float, int, int]]) -> float:
        return most_robust(held_out) if held_out else self.learning_rates[0]

    def fit_passes(self, images: int) -> float:
        """An attacked image costs 2 F for each step, and a pass with which the head learns, or is judged."""
        trainings, judged = images_seen(images, len(self.learning_rates))
        learned = sum(self.epochs * steps_of(drawn, batch_size(self.batch, drawn)) for drawn in trainings)
        return images + (learned + judged) * (2 * self.steps + 1)
