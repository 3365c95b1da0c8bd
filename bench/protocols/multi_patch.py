"""A linear probe on the mean features over fixed crops, the same for every image (EMP-SSL, arXiv:2304.03977)."""

from typing import Any, ClassVar

from torch import nn

from bench.protocols.common.classifier import Classifier, MultiPatch, fixed_boxes
from bench.protocols.common.probe import LinearProtocol
from bench.spec import EvalSpec


class Protocol(LinearProtocol):
    """One list of crop boxes in training features, test features and attacks (protocol 1.1)."""

    title: ClassVar[str] = "Multi-patch probe"
    ranked: ClassVar[bool] = True
    dear: ClassVar[bool] = True

    def passes(self, spec: EvalSpec) -> int:
        return spec.crops

    def settings(self, spec: EvalSpec) -> dict[str, Any]:
        return super().settings(spec) | {"crops": spec.crops, "crop_seed": spec.crop_seed}

    def build(self, encoder: nn.Module, size: tuple[int, int], spec: EvalSpec) -> Classifier:
        boxes = fixed_boxes(spec.crops, size, spec.crop_seed)
        return MultiPatch(encoder, boxes, size).eval().requires_grad_(False)
