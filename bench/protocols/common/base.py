"""What every protocol says: how it is shown, what an image costs, how it is fitted, stored and made again."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attacks.common.base import predicted
from bench import registry
from bench.data.images import ImageSet
from bench.protocols.common.classifier import Classifier, extract
from bench.spec import EvalSpec


@dataclass(frozen=True)
class Material:
    """What a protocol is fitted on: training images of the size of those that are evaluated, and one seed.

    ``chunk``: images for one pass. ``kept``: features of whole images, shared by the protocols that read the same.
    """

    train: ImageSet
    seed: int
    device: torch.device
    chunk: int
    kept: list[Tensor] = field(default_factory=list)

    @property
    def labels(self) -> Tensor:
        """(N,) on the device."""
        return self.train.labels.to(self.device)

    def features(self, classifier: Classifier) -> Tensor:
        """(N, F): what the classifier's probe reads of the training images; extracted once for all that read the same.

        They may hold what is not finite.
        """
        if type(classifier) is not Classifier:  # it looks at something else than the whole image
            return extract(classifier, self.train.images, self.device, self.chunk)
        self.kept[:] = self.kept or [extract(classifier, self.train.images, self.device, self.chunk)]
        return self.kept[0]


@dataclass(frozen=True)
class Fitted:
    """How a fit came about. ``facts``: fields of a ProbeResult. ``others``: penalty -> another probe to measure the
    number's dependence on it with (protocol 1.2); none where there is no penalty."""

    facts: dict[str, Any]
    others: dict[float, nn.Module] = field(default_factory=dict)


def facts_of(probe: nn.Module, features: Tensor, material: Material, **more: Any) -> dict[str, Any]:
    """The facts that every probe has: how wide the features are, how many training images it gets right.

    Images with a feature that is not finite are counted as wrong, and the note says so in place of another.
    """
    total = len(material.train)
    found = {
        "feature_width": features.shape[1],
        "train_correct": int(predicted(probe(features)).eq(material.labels).sum()),
        "train_total": total,
    }
    unsound = int((~features.isfinite().all(dim=1)).sum())
    if unsound:
        more["note"] = f"features of {unsound} of {total} training images are NaN or infinite: left out, and wrong"
    return found | more


class BaseProtocol(ABC):
    """How the features of a frozen encoder become predictions. ``Protocol()`` works, and holds no state.

    The classifier is a function of the pixels alone, in float32, and a gradient reaches them: attacks need it.
    """

    title: ClassVar[str] = ""  # in tables and figures; "": the name of the file
    ranked: ClassVar[bool] = False  # whether its numbers are ranked, and therefore audited
    dear: ClassVar[bool] = False  # whether an image costs so much that quick levels and audits look at fewer
    beside: ClassVar[str] = ""  # the protocol that a full evaluation shows beside this one
    paper: ClassVar[str] = ""  # whose numbers it repeats; it then stands beside theirs in the report
    # the attacks that it has instead of those of the run, at every eps that is asked for: name -> settings
    attacks: ClassVar[dict[str, dict[str, Any]] | None] = None

    def passes(self, spec: EvalSpec) -> int:
        """Passes through the encoder that one image costs."""
        return 1

    def settings(self, spec: EvalSpec) -> dict[str, Any]:
        """What of the evaluation's settings decides its outcomes, JSON-able: part of the hash of every cell."""
        return {}

    def reads(self, encoder: nn.Module) -> nn.Module:
        """The part of the encoder whose features it reads: images (B, C, H, W) -> (B, F)."""
        return encoder

    def build(self, encoder: nn.Module, size: tuple[int, int], spec: EvalSpec) -> Classifier:
        """The classifier before anything is fitted, on what it ``reads``; frozen and in eval mode.

        size: (H, W) of the images.
        """
        return Classifier(encoder).eval().requires_grad_(False)

    @abstractmethod
    def fit(self, classifier: Classifier, material: Material) -> Fitted:
        """Fit what ``build`` has returned, in place: afterwards it is a function of images (B, C, H, W) in [0, 1] that
        returns finite logits (B, K). Raises ValueError where nothing can be fitted."""

    def stored(self, classifier: Classifier) -> dict[str, Tensor]:
        """The tensors that a fitted classifier is made from again: those of its probe."""
        return {name: tensor.detach().cpu() for name, tensor in classifier.probe.state_dict().items()}

    @abstractmethod
    def restore(self, classifier: Classifier, tensors: dict[str, Tensor]) -> None:
        """Make of what ``build`` has returned, in place, what it was when ``tensors`` were stored; they are where the
        classifier is. Raises UsageError for tensors that are not of this protocol."""


def protocol_of(spec: EvalSpec, name: str) -> BaseProtocol:
    """The protocol of this name in an evaluation: of the folder, or of a file of the user's. Raises UsageError."""
    own = spec.own_protocols.get(name)
    return load_protocol(own.path or name if own else name)


@cache
def load_protocol(name: str) -> BaseProtocol:
    """The protocol of a name, or of a path to a .py file. Raises UsageError."""
    protocol: BaseProtocol = registry.load("protocol", name).Protocol()
    return protocol
