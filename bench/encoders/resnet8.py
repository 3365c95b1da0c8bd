"""Three stages of one residual block each, 16, 32 and 64 wide: for digits and tests on a CPU."""

from torch import nn
from torchvision.models.resnet import BasicBlock

from bench.encoders.common.base import BaseEncoder, Stem


class Encoder(BaseEncoder, nn.Sequential):
    """The blocks and the initialization are those of ResNet-18; the stem keeps PyTorch's default, as there."""

    width = 64
    foldable = True

    def __init__(self, channels: int) -> None:
        super().__init__(
            Stem(channels, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            stage(16, 16, 1),
            stage(16, 32, 2),
            stage(32, 64, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not isinstance(module, Stem):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def stage(inside: int, outside: int, stride: int) -> nn.Module:
    """A basic block, with a convolution on its shortcut where it halves the image."""
    shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
    return BasicBlock(inside, outside, stride, shortcut if stride > 1 else None)
