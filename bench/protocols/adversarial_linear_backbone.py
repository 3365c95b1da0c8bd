"""The adversarial linear head on the backbone's own features, 512 of a ResNet-18, which most of the field reads."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from bench.protocols import adversarial_linear
from bench.protocols.common.classifier import backbone_of


@dataclass(frozen=True)
class Protocol(adversarial_linear.Protocol):
    """Shown beside ``adversarial_linear``, and never ranked."""

    title: ClassVar[str] = "ALF (backbone)"
    also: ClassVar[str] = ""
    ranked: ClassVar[bool] = False
    beside: ClassVar[str] = ""

    def reads(self, encoder: nn.Module) -> nn.Module:
        return backbone_of(encoder)
