"""The same linear probe on the backbone's own features, 512 of a ResNet-18, which most of the field reads."""

from typing import ClassVar

from torch import nn

from bench.protocols.common.classifier import backbone_of
from bench.protocols.common.probe import LinearProtocol


class Protocol(LinearProtocol):
    """Shown beside ``linear``, and never ranked."""

    title: ClassVar[str] = "SLF (backbone)"

    def reads(self, encoder: nn.Module) -> nn.Module:
        return backbone_of(encoder)
