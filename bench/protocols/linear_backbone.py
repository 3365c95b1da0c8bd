"""The same linear probe on the backbone's own features, 512 of a ResNet-18, which most of the field reads."""

from typing import ClassVar

from torch import nn

from bench.protocols.common.probe import LinearProtocol


class Protocol(LinearProtocol):
    """Shown beside ``linear``, and never ranked."""

    title: ClassVar[str] = "Linear probe (backbone)"

    def reads(self, encoder: nn.Module) -> nn.Module:
        """What comes before the feature layer."""
        backbone = encoder.backbone
        assert isinstance(backbone, nn.Module)
        return backbone
