"""AFF: the whole encoder and a linear head, fine-tuned by TRADES (Zhang et al., 2019, arXiv:1901.08573, eq. 5).

As the field's robust SSL codes do: beta 6, PGD-10 on the divergence, SGD with weight decay 2e-4, 25 epochs. Ours takes
the last epoch, where others choose the best one on test images, and its learning rate by one rule for all methods. It
costs more than many a pre-training: what it costs stands beside it.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from attacks.common.base import last_iterate
from attacks.common.threat import project
from bench.protocols.common.base import BaseProtocol, Fitted, Material, facts_of
from bench.protocols.common.chosen_rate import images_seen, most_robust, tuned
from bench.protocols.common.classifier import Classifier, extract
from bench.protocols.common.probe import linear
from bench.protocols.common.trained_head import JUDGED, Epoch, batch_size, decayed, robust_count, steps_of, train
from bench.random import stream
from bench.spec import UsageError

START = 0.001  # standard deviation of the noise that the attack of TRADES starts from


@dataclass(frozen=True)
class Protocol(BaseProtocol):
    """The threat is that of the main eps, whatever the encoder was trained against."""

    title: ClassVar[str] = "AFF (adversarial fine-tuning)"
    also: ClassVar[str] = "aff"
    ranked: ClassVar[bool] = True
    tunes: ClassVar[bool] = True
    judged: ClassVar[int | None] = JUDGED
    quick: ClassVar[dict[str, Any]] = {"epochs": 5}

    epochs: int = 25  # the learning rate falls to a tenth after 15 and after 20
    batch: int = 128  # at most; an epoch has some 20 batches at least
    learning_rates: tuple[float, ...] = (0.01, 0.1)  # of which one is chosen; .1 in the field
    momentum: float = 0.9
    weight_decay: float = 2e-4
    beta: float = 6.0  # 1 / lambda
    steps: int = 10
    relative_step: float = 0.25  # step / eps
    shift: float = 0.125  # of the side: training images move by up to so much, 4 of 32 pixels
    flip: float = 0.5  # share of training images that are mirrored, where a mirrored one is still of its class

    def fit(self, classifier: Classifier, material: Material) -> Fitted:
        step = self.relative_step * material.threat.eps
        flip = self.flip if material.train.mirrors else 0.0

        def trained(name: str, rate: float, ids: Tensor) -> Classifier:
            model = copy.deepcopy(classifier).requires_grad_(True)
            model.probe = first_head(classifier, material)
            objective = self.trades(model, material, step, flip)
            optimizer = torch.optim.SGD(
                model.parameters(), lr=rate, momentum=self.momentum, weight_decay=self.weight_decay
            )
            with material.passes.counted(model.encoder):
                batch = batch_size(self.batch, len(ids))
                train(name, model, optimizer, decayed(self.epochs), ids, batch, objective, material)
            return model.eval().requires_grad_(False)

        def judged(model: Classifier, ids: Tensor) -> tuple[int, int]:
            with material.passes.counted(model.encoder):
                return robust_count(model, material, ids, self.steps, step, "held out")

        chosen = tuned(self.learning_rates, torch.arange(len(material.train)), material, trained, judged)
        classifier.encoder.load_state_dict(chosen.head.encoder.state_dict())
        classifier.probe = chosen.head.probe
        with material.passes.counted(classifier.encoder):
            features = extract(classifier, material.train.images, material.device, material.chunk)
        return Fitted(facts_of(classifier.probe, features, material, **chosen.facts), chosen.others)

    def trades(self, model: Classifier, material: Material, step: float, flip: float) -> Any:
        """Cross-entropy on clean images, and beta times the divergence of the answers to attacked ones from theirs."""

        def objective(places: Tensor, epoch: Epoch, draws: Generator) -> Tensor:
            images, labels = material.train.pictures(places, material.device), material.labels[places]
            images = shifted(flipped(images, flip, draws), self.shift, draws)
            noise = torch.randn(images.shape, generator=draws).to(images)
            start = project(images + START * noise, images, material.threat.eps)
            with attackable(model):
                with torch.no_grad():
                    answers = model(images).softmax(dim=1)
                moved = last_iterate(
                    model, images, answers, material.threat, steps=self.steps, step=step, start=start, loss=divergence
                )
            logits = model(images)
            robust = divergence(model(moved), logits.softmax(dim=1)).mean()
            return F.cross_entropy(logits, labels) + self.beta * robust

        return objective

    def stored(self, classifier: Classifier) -> dict[str, Tensor]:
        """The encoder is another one than that of the run, so it is kept with the head."""
        return {name: tensor.detach().cpu() for name, tensor in classifier.state_dict().items()}

    def restore(self, classifier: Classifier, tensors: dict[str, Tensor]) -> None:
        weights = {name.removeprefix("encoder."): t for name, t in tensors.items() if name.startswith("encoder.")}
        if tensors.keys() - {f"encoder.{name}" for name in weights} != {"probe.weight", "probe.bias"}:
            raise UsageError(f"expected an encoder and a linear probe, got {', '.join(sorted(tensors))[:200]}")
        try:
            classifier.encoder.load_state_dict(weights)
        except RuntimeError as error:
            raise UsageError(f"the fine-tuned encoder fits no other: {error}".splitlines()[0]) from None
        classifier.encoder.eval().requires_grad_(False)
        classifier.probe = linear(tensors["probe.weight"], tensors["probe.bias"])

    def choice(self, held_out: list[tuple[float, int, int]]) -> float:
        return most_robust(held_out) if held_out else self.learning_rates[0]

    def passes_kept(self, images: int) -> int:
        """A batch and what the attack made of it."""
        return 2 * batch_size(self.batch, images)

    def fit_passes(self, images: int) -> float:
        """An image of an epoch costs a pass for its answer, 2 F for each step, and twice 3 F to learn; at the end all
        images are looked at once more."""
        trainings, judged = images_seen(images, len(self.learning_rates))
        learned = sum(self.epochs * steps_of(drawn, batch_size(self.batch, drawn)) for drawn in trainings)
        return learned * (1 + 2 * self.steps + 6) + judged * (2 * self.steps + 1) + images


def divergence(logits: Tensor, answers: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each image's answer (B, K) from the probabilities (B, K): (B,)."""
    return F.kl_div(logits.log_softmax(dim=1), answers, reduction="none").sum(dim=1)


@contextmanager
def attackable(model: nn.Module) -> Iterator[None]:
    """In eval mode and frozen, as an attack finds it; in train mode and learning again afterwards."""
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train().requires_grad_(True)


def first_head(classifier: Classifier, material: Material) -> nn.Linear:
    """A linear layer as torch draws it, the same for every learning rate."""
    width = classifier.features(material.train.pictures(torch.arange(1), material.device)).shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(material.seed, "fine-tuned head").initial_seed())
        return nn.Linear(width, material.train.classes).to(material.device)


def flipped(images: Tensor, share: float, draws: Generator) -> Tensor:
    """A share of the images, drawn, mirrored left to right: (B, C, H, W)."""
    mirrored = (torch.rand(len(images), generator=draws) < share).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def shifted(images: Tensor, share: float, draws: Generator) -> Tensor:
    """Every image moved by whole pixels, up to a share of its side either way; what comes in is black."""
    height, width = images.shape[-2:]
    down, right = int(share * height), int(share * width)
    rows = torch.randint(-down, down + 1, (len(images), 1), generator=draws) + torch.arange(height) + down
    columns = torch.randint(-right, right + 1, (len(images), 1), generator=draws) + torch.arange(width) + right
    padded = F.pad(images, (right, right, down, down))
    places = torch.arange(len(images))[:, None, None]
    # (B, H, W, C): the place of the image, then a row and a column of its own for each pixel
    return padded.permute(0, 2, 3, 1)[places, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
