"""The base of every encoder, the first convolution in float32, and the feature layer that the probe reads."""

from typing import ClassVar

import torch
from torch import Tensor, nn


class BaseEncoder(nn.Module):
    """A backbone: images (B, C, H, W) in [0, 1] -> (B, ``width``). It is made as ``Encoder(channels)``.

    Its weights are drawn from torch's global generator, which the seed of a run decides.
    """

    width: int
    size: tuple[int, int] | None = None  # height and width of the only images that it is made for; None: any
    foldable: ClassVar[bool] = False  # a copy traced by torch.fx is the same function: nothing is drawn or decided


class Stem(nn.Conv2d):
    """The first convolution, always in float32: a step of an attack is below the resolution of bf16 near 1."""

    def forward(self, images: Tensor) -> Tensor:
        device = images.device.type
        with torch.autocast(device, enabled=False):
            out = super().forward(images)
        return out.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else out


def stem_in_float32(backbone: nn.Module) -> None:
    """Let the first convolution be a Stem, in place, where none is one yet; its weights stay."""
    if not any(isinstance(module, Stem) for module in backbone.modules()):
        first = next((module for module in backbone.modules() if type(module) is nn.Conv2d), None)
        if first is not None:
            first.__class__ = Stem


class FeatureEncoder(nn.Module):
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
