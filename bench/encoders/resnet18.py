"""ResNet-18 (He et al., 2016) with a CIFAR stem, 512 wide: the encoder of the paper."""

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from bench.encoders.common.base import BaseEncoder, Stem


class Encoder(BaseEncoder, ResNet):
    """torchvision's with a 3x3 stem and without the first pooling, as in the paper's code (arXiv:2501.03507).

    Its stem keeps PyTorch's default initialization, as there. Pixels are not normalized further, as published.
    """

    width = 512
    foldable = True

    def __init__(self, channels: int) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2])
        self.conv1 = Stem(channels, 64, 3, stride=1, padding=1, bias=False)
        self.maxpool = nn.Identity()  # type: ignore[assignment]
        self.fc = nn.Identity()  # type: ignore[assignment]
