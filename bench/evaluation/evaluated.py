"""What is evaluated: one encoder, on which images, how, and where its cells are kept."""

import copy
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from bench.data.images import ImageSet
from bench.encoders.common.folding import fold_batch_norm
from bench.events import Report, silent
from bench.protocols.common.base import protocol_of
from bench.protocols.common.classifier import Classifier
from bench.record import EvalResult, ProbeResult
from bench.spec import EvalSpec, Norm


class Cells(Protocol):
    """Where finished cells are found and put: a run's folder, or a dictionary in tests."""

    def probe(self, protocol: str) -> tuple[ProbeResult, dict[str, Tensor]] | None: ...
    def save_probe(self, probe: ProbeResult, tensors: dict[str, Tensor]) -> None: ...
    def head_state(self, protocol: str) -> dict[str, Any] | None: ...
    def save_head_state(self, protocol: str, state: dict[str, Any]) -> None: ...
    def result(self, protocol: str, attack: str, eps: float, norm: Norm = "linf") -> EvalResult | None: ...
    def save_result(self, result: EvalResult) -> None: ...
    def adversarial(self, protocol: str, attack: str) -> Tensor | None: ...
    def save_adversarial(self, protocol: str, attack: str, images: Tensor) -> str: ...


Place = TypeVar("Place", bound=Cells, covariant=True)


@dataclass(frozen=True)
class Evaluated(Generic[Place]):
    """One encoder and all that its evaluation, its audit and its pictures need.

    ``encoder``: frozen, in eval mode, on ``device``. ``train``: of the size of the test images; heads are fitted on it.
    ``cells``: where finished parts are found and put. ``report``: hears of each step.
    """

    encoder: nn.Module
    train: ImageSet
    test: ImageSet
    spec: EvalSpec
    seed: int
    device: torch.device
    cells: Place
    report: Report = silent

    def stored_classifier(self, protocol: str) -> Classifier | None:
        """The protocol's classifier as it is stored; None where it is not. Raises UsageError."""
        stored = self.cells.probe(protocol)
        if stored is None:
            return None
        classifier = self.bare_classifier(protocol)
        restore(self.spec, protocol, classifier, stored[1], self.device)
        return classifier

    def bare_classifier(self, protocol: str) -> Classifier:
        """The protocol's classifier before anything is fitted."""
        return bare_classifier(self.encoder, self.test, self.spec, protocol, self.device)


def bare_classifier(
    encoder: nn.Module, test: ImageSet, spec: EvalSpec, protocol: str, device: torch.device
) -> Classifier:
    """The protocol's classifier of these images before anything is fitted."""
    asked, size = protocol_of(spec, protocol), test.image_shape[1:]
    read = asked.reads(encoder)
    return asked.build(copy.deepcopy(read) if asked.tunes else fold_batch_norm(read), size, spec).to(device)


def restore(
    spec: EvalSpec, protocol: str, classifier: Classifier, tensors: dict[str, Tensor], device: torch.device
) -> None:
    """Make a bare classifier what it was when the tensors were stored. Raises UsageError."""
    placed = {name: tensor.to(device) for name, tensor in tensors.items()}
    protocol_of(spec, protocol).restore(classifier, placed)
    classifier.probe.eval().requires_grad_(False)


def passes_per_image(spec: EvalSpec, protocol: str) -> int:
    """Passes through the encoder that an image costs."""
    return protocol_of(spec, protocol).passes(spec)


def chunk_images(spec: EvalSpec, protocol: str) -> int:
    """Images per pass, so that the passes at once are about the same under every protocol."""
    return max(1, spec.chunk // passes_per_image(spec, protocol))
