"""Encoders: a residual network with a CIFAR stem, then the feature layer that the probe reads.

ResNet-18 is torchvision's with a 3x3 stem and without the first pooling, as in the paper's code (arXiv:2501.03507;
its stem keeps PyTorch's default initialization). Pixels come in [0, 1] and are not normalized further, as published.

``torchvision:NAME`` and ``timm:NAME`` are those libraries' encoders for ImageNet, untrained, with their own stem and
initialization (``torchvision:resnet18`` is ResNet-18 with the ImageNet stem); their first layer normalizes the pixels.
"""

import copy
import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError

from bench.known import check_encoder_name
from bench.spec import UsageError


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


class Normalize(nn.Module):
    """Pixels in [0, 1] minus the mean of the channels, over their standard deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class LibraryNetwork(NamedTuple):
    """A network of torchvision or timm without its classifier: RGB images (B, 3, H, W) -> features (B, width)."""

    name: str
    module: nn.Module
    mean: tuple[float, ...]  # of the pixels that its weights expect
    std: tuple[float, ...]
    size: tuple[int, int]  # height and width of the images that it is made for

    def width(self, size: tuple[int, int]) -> int:
        """How wide the features are of images of this size. Raises UsageError where it has none of them."""
        device = next(self.module.parameters()).device
        try:
            with torch.no_grad():
                shape = tuple(self.module.eval()(torch.zeros(2, 3, *size, device=device)).shape)
        except Exception as error:  # of networks for other sizes, of several outputs
            reason = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")
            raise UsageError(
                f"{self.name} is no encoder of images of {pixels(size)}: {reason}; choose another"
            ) from error
        finally:
            self.module.train()
        if len(shape) != 2:
            raise UsageError(f"expected features (2, width) of {self.name} for 2 images, got {shape}; choose another")
        return int(shape[1])


def library_encoder(name: str, channels: int) -> tuple[nn.Module, int]:
    """An encoder of torchvision or timm behind its normalization, and how wide it is. Raises UsageError."""
    network = library_network(name, channels)
    width = network.width(network.size)
    stem = next((m for m in network.module.modules() if type(m) is nn.Conv2d), None)
    if stem is not None:
        stem.__class__ = Stem
    return nn.Sequential(Normalize(network.mean, network.std), network.module), width


def library_network(name: str, channels: int) -> LibraryNetwork:
    """The network of that name, untrained. Raises UsageError."""
    if channels != 3:
        raise UsageError(f"expected RGB images for {name}, got {channels} channel; choose resnet18 or resnet8")
    library, _, model = name.partition(":")
    return torchvision_network(model) if library == "torchvision" else timm_network(model)


def torchvision_network(name: str) -> LibraryNetwork:
    """A classifier of torchvision without its last layer. Raises UsageError."""
    from torchvision.models import get_model  # type: ignore[attr-defined]

    network: nn.Module = get_model(name, weights=None)
    last = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)][-1:]
    if not last:
        raise UsageError(f"torchvision:{name} has no linear layer at its end; choose another")
    network.set_submodule(last[0], nn.Identity())
    return LibraryNetwork(f"torchvision:{name}", network, IMAGENET_MEAN, IMAGENET_STD, IMAGENET_SIZE)


def timm_network(name: str) -> LibraryNetwork:
    """A network of timm without its classifier."""
    import timm

    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    given: Any = network.pretrained_cfg
    mean, std = tuple(given.get("mean", IMAGENET_MEAN)), tuple(given.get("std", IMAGENET_STD))
    height, width = given.get("input_size", (3, *IMAGENET_SIZE))[-2:]
    return LibraryNetwork(f"timm:{name}", network, mean, std, (height, width))


def check_encoder(name: str) -> None:
    """Raises UsageError for an encoder that does not exist, or whose library is missing."""
    check_encoder_name(name)
    library, colon, model = name.partition(":")
    known = LIBRARIES[library]() if colon else []
    if colon and model not in known:
        close = difflib.get_close_matches(model, known, n=3)
        hint = f"did you mean {', '.join(close)}? " if close else ""
        raise UsageError(f"unknown encoder {name!r}; {hint}{library} has {len(known)}")


def check_images(name: str, channels: int, sizes: dict[tuple[int, int], str]) -> None:
    """Raises UsageError for an encoder, which exists, that does not take images of ``sizes``.

    These are (height, width) -> what is so large. Nothing is computed where the network can do without (meta device).
    """
    if ":" not in name:
        return  # those of this file take images of any size and number of channels
    try:
        with torch.device("meta"):
            network = library_network(name, channels)
        network.width(network.size)
    except Exception:  # some look at numbers while they are built or run
        network = library_network(name, channels)
        network.width(network.size)
    for size, what in sizes.items():
        try:
            network.width(size)
        except UsageError as error:
            raise UsageError(
                f"expected images of a size that {name} takes, such as {pixels(network.size)}, got {what} of "
                f"{pixels(size)} ({error.__cause__}); change the size of the images with --image-size (of folder:, "
                "parquet: and imagenet:) or that of the views with --set all.view_share, or choose another encoder"
            ) from None


def pixels(size: tuple[int, int]) -> str:
    """A size for people."""
    return f"{size[0]} x {size[1]} pixels"


def torchvision_names() -> list[str]:
    """Its classifiers, but for those with several outputs in training."""
    import torchvision.models

    return sorted({*torchvision.models.list_models(torchvision.models)} - {"googlenet", "inception_v3"})  # type: ignore[attr-defined]


def timm_names() -> list[str]:
    from timm import list_models

    return list(list_models())


LIBRARIES: dict[str, Callable[[], list[str]]] = {"torchvision": torchvision_names, "timm": timm_names}
IMAGENET_SIZE = (224, 224)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build_encoder(name: str, channels: int, feature_width: int) -> Encoder:
    """A new encoder, drawn from torch's global generator. Raises UsageError for an unknown name."""
    check_encoder(name)
    backbone, width = library_encoder(name, channels) if ":" in name else BACKBONES[name](channels)
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
