"""What every protocol says: how it is shown, what an image costs, how it is fitted, stored and made again."""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attacks.common.base import configured, predicted
from bench import registry
from bench.data.images import ImageSet
from bench.protocols.common.classifier import Classifier, extract
from bench.protocols.common.draft import Draft, Passes
from bench.protocols.common.features import finite, pieces
from bench.spec import EvalSpec, ThreatModel


@dataclass(frozen=True)
class Material:
    """What a protocol is fitted on: training images of the size of those that are evaluated, and one seed.

    ``chunk``: images for one pass. ``threat``: what an attack may do to the training images, where a head is trained on
    those that it moves: the ball of the main eps. ``kept``: features of whole images, shared by the protocols that read
    the same. ``draft``: where a training keeps what it has reached. ``passes``: what the fit costs.
    """

    train: ImageSet
    seed: int
    device: torch.device
    chunk: int
    threat: ThreatModel
    kept: list[Tensor] = field(default_factory=list)
    draft: Draft = field(default_factory=Draft)
    passes: Passes = field(default_factory=Passes)

    @property
    def labels(self) -> Tensor:
        """(N,) on the device."""
        return self.train.labels.to(self.device)

    def features(self, classifier: Classifier) -> Tensor:
        """(N, F): what the classifier's probe reads of the training images; extracted once for all that read the same.

        They may hold what is not finite. Those that take more than 4 GiB are mapped from a file, on the CPU.
        """
        before = self.passes.total
        whole = type(classifier) is Classifier  # else it looks at something else than the whole image
        if whole and self.kept:
            features = self.kept[0]
            self.passes.total += len(self.train)  # a head costs the same, whoever has read them before
        else:
            features = extract(classifier, self.train.images, self.device, self.chunk)
            self.kept.extend([features] * whole)
        if self.draft.states:
            self.passes.total = before  # what a stop has made necessary once more costs nothing
        return features


@dataclass(frozen=True)
class Fitted:
    """How a fit came about.

    ``facts``: fields of a ProbeResult. ``others``: another penalty or learning rate than the one that was chosen -> the
    probe, or the whole classifier, that it gives: how much the number hangs on it is measured (protocol 1.2).
    """

    facts: dict[str, Any]
    others: dict[float, nn.Module] = field(default_factory=dict)


def facts_of(probe: nn.Module, features: Tensor, material: Material, **more: Any) -> dict[str, Any]:
    """The facts that every probe has: how wide the features are, how many training images it gets right.

    Images with a feature that is not finite are counted as wrong, and the note says so in place of another.
    """
    total, labels = len(material.train), material.labels
    correct = (
        predicted(probe(features[part].to(labels.device))).eq(labels[part])
        for part in pieces(features, material.train.classes)
    )
    facts = {
        "feature_width": features.shape[1],
        "train_correct": sum(int(part.sum()) for part in correct),
        "train_total": total,
    }
    unsound = total - int(finite(features).sum())
    if unsound:
        more["note"] = f"features of {unsound} of {total} training images are NaN or infinite: left out, and wrong"
    return facts | more


@dataclass(frozen=True, kw_only=True)
class BaseProtocol(ABC):
    """How the features of an encoder become predictions. ``Protocol()`` works; its fields are its settings.

    The classifier is a function of the pixels alone, in float32, and a gradient reaches them: attacks need it.
    """

    title: ClassVar[str] = ""  # in tables and figures; "": the name of the file
    ranked: ClassVar[bool] = False  # whether its numbers are ranked, and therefore audited
    dear: ClassVar[bool] = False  # whether an image costs so much that quick levels and audits look at fewer
    beside: ClassVar[str] = ""  # the protocol that a full evaluation shows beside this one
    also: ClassVar[str] = ""  # another name that --protocols takes, as the field says it
    quick: ClassVar[dict[str, Any]] = {}  # settings of a quick evaluation; --set comes on top
    judged: ClassVar[int | None] = None  # held-out images that choose among its heads, at most; None: a fifth of all
    tunes: ClassVar[bool] = False  # whether the fit changes the encoder: it gets a copy, and counts its passes itself
    paper: ClassVar[str] = ""  # whose numbers it repeats; it then stands beside theirs in the report
    # the attacks that it has instead of those of the run, at every eps that is asked for: name -> settings
    attacks: ClassVar[dict[str, dict[str, Any]] | None] = None

    def passes(self, spec: EvalSpec) -> int:
        """Passes through the encoder that one image costs."""
        return 1

    def settings(self, spec: EvalSpec) -> dict[str, Any]:
        """What of its own and the evaluation's settings decides its outcomes, JSON-able: part of every cell's hash."""
        return asdict(self)

    def fit_passes(self, images: int) -> float:
        """Passes of one image (1 F each; a gradient of the input or of the weights is one more) that ``fit`` takes on
        so many training images; counted in the fit, and known before for the plan."""
        return float(images)

    def passes_kept(self, images: int) -> int:
        """Images, of so many to train on, whose passes through the encoder are kept for its gradients at once; 0 where
        the encoder is frozen. The memory for them is asked for before anything is trained."""
        return 0

    def choice(self, held_out: list[tuple[float, int, int]]) -> float:
        """The value that its rule takes where these (value, correct, total) were counted on held-out training images.

        NaN where it chooses nothing.
        """
        return math.nan

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
    protocol = load_protocol(own.plugin(name) if own else name)
    return configured(protocol, spec.protocol_settings.get(name, {}))


@cache
def load_protocol(name: str) -> BaseProtocol:
    """The protocol of a name, or of a path to a .py file. Raises UsageError."""
    protocol: BaseProtocol = registry.load("protocol", name).Protocol()
    return protocol
