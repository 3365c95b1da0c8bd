"""Encoders: a residual network with a CIFAR stem, then the feature layer that the probe reads.

ResNet-18 is torchvision's with a 3x3 stem and without the first pooling, as in the paper's code (arXiv:2501.03507;
its stem keeps PyTorch's default initialization). Pixels come in [0, 1] and are not normalized further, as published.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError

from bench.spec import UsageError, unknown


class Stem(nn.Conv2d):
    """The first convolution, always in float32: a step of an attack is below the resolution of bf16 near 1."""

    def forward(self, images: Tensor) -> Tensor:
        device = images.device.type
        with torch.autocast(device, enabled=False):
            out = super().forward(images)
        return out.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else out


class Encoder(nn.Module):
    """Backbone (B, C, H, W) in [0, 1] -> (B, width), then Linear + BatchNorm + ReLU -> features (B, feature_width)."""

    def __init__(self, backbone: nn.Module, width: int, feature_width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature_layer = nn.Sequential(
            nn.Linear(width, feature_width), nn.BatchNorm1d(feature_width), nn.ReLU(inplace=True)
        )
        self.backbone_width, self.width = width, feature_width

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.feature_layer(self.backbone(images))
        return features


def resnet18(channels: int) -> tuple[nn.Module, int]:
    """ResNet-18 (He et al., 2016) with a CIFAR stem; 512 wide."""
    import torchvision.models  # 2 s to import, so only where it is needed

    network = torchvision.models.resnet18()
    network.conv1 = Stem(channels, 64, 3, stride=1, padding=1, bias=False)
    network.maxpool = nn.Identity()
    network.fc = nn.Identity()
    return network, 512


def resnet8(channels: int) -> tuple[nn.Module, int]:
    """Three stages of one basic block each, 16, 32 and 64 wide: for digits and tests on a CPU."""
    from torchvision.models.resnet import BasicBlock

    def stage(inside: int, outside: int, stride: int) -> nn.Module:
        shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
        return BasicBlock(inside, outside, stride, shortcut if stride > 1 else None)

    network = nn.Sequential(
        Stem(channels, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        stage(16, 16, 1),
        stage(16, 32, 2),
        stage(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    for module in list(network.modules())[2:]:  # the stem keeps PyTorch's default, as in ResNet-18 above
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network, 64


BACKBONES: dict[str, Callable[[int], tuple[nn.Module, int]]] = {"resnet18": resnet18, "resnet8": resnet8}


def build_encoder(name: str, channels: int, feature_width: int) -> Encoder:
    """A new encoder, drawn from torch's global generator. Raises UsageError for an unknown name."""
    if name not in BACKBONES:
        raise UsageError(unknown("encoder", name, BACKBONES))
    backbone, width = BACKBONES[name](channels)
    return Encoder(backbone, width, feature_width)


def fold_batch_norm(encoder: nn.Module) -> nn.Module:
    """A copy for inference with every batch norm folded into the convolution before it; eval mode, frozen.

    The same function up to rounding (1e-6 of a feature), and a tenth less time of an evaluation on digits. An encoder
    that torch.fx cannot trace is returned as it is.
    """
    encoder = encoder.eval().requires_grad_(False)
    plain = copy.deepcopy(encoder)
    for module in plain.modules():
        if isinstance(module, Stem):
            module.__class__ = nn.Conv2d  # type: ignore[assignment]  # torch.fx folds this type only; no bf16 here
    try:
        folded: nn.Module = fuse(plain)
    except (TraceError, NotImplementedError, TypeError):  # control flow that depends on values
        return encoder
    return folded.eval().requires_grad_(False)
