"""A small vision transformer (Dosovitskiy et al., 2021) for digits: 16 patches of 4 x 4 pixels, 32 wide, 2 layers."""

import torch
from torch import Tensor, nn

from bench.encoders.common.base import BaseEncoder

SIDE, PATCH = 16, 4
PATCHES = (SIDE // PATCH) ** 2
WIDTH, HEADS, HIDDEN, LAYERS = 32, 4, 64, 2


class Encoder(BaseEncoder):
    """Patches, learned positions, layers of attention with the norms first; features are the mean of the tokens."""

    width = WIDTH
    size = (SIDE, SIDE)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, WIDTH, PATCH, stride=PATCH)
        self.positions = nn.Parameter(0.02 * torch.randn(1, PATCHES, WIDTH))
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    WIDTH, HEADS, HIDDEN, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(LAYERS)
            )
        )
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)  # (B, PATCHES, WIDTH)
        features: Tensor = self.norm(self.layers(tokens + self.positions)).mean(dim=1)
        return features
