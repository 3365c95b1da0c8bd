"""``torchvision:NAME`` and ``timm:NAME``: those libraries' encoders for ImageNet, untrained, as encoders of ours.

They keep their own stem and initialization (``torchvision:resnet18`` is ResNet-18 with the ImageNet stem); their first
layer normalizes the pixels.
"""

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.encoders.common.base import BaseEncoder
from bench.spec import UsageError

IMAGENET_SIZE = (224, 224)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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


class LibraryEncoder(BaseEncoder, nn.Sequential):
    """A network of a library without its classifier, behind its normalization: RGB images (B, 3, H, W) -> (B, width).

    ``size``: that of the images that it is made for; many take others too.
    """

    foldable = True

    def __init__(
        self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], size: tuple[int, int]
    ) -> None:
        super().__init__(Normalize(mean, std), network)
        self.size = size


def library_encoder(name: str, channels: int) -> LibraryEncoder:
    """The encoder of that name, ``library:NAME``, untrained; its ``width`` is not known yet. Raises UsageError."""
    if channels != 3:
        raise UsageError(f"expected RGB images for {name}, got {channels} channel; choose resnet18 or resnet8")
    library, _, model = name.partition(":")
    return torchvision_encoder(model) if library == "torchvision" else timm_encoder(model)


def torchvision_encoder(name: str) -> LibraryEncoder:
    """A classifier of torchvision without its last layer. Raises UsageError."""
    from torchvision.models import get_model  # type: ignore[attr-defined]

    network: nn.Module = get_model(name, weights=None)
    last = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)][-1:]
    if not last:
        raise UsageError(f"torchvision:{name} has no linear layer at its end; choose another")
    network.set_submodule(last[0], nn.Identity())
    return LibraryEncoder(network, IMAGENET_MEAN, IMAGENET_STD, IMAGENET_SIZE)


def timm_encoder(name: str) -> LibraryEncoder:
    """A network of timm without its classifier."""
    import timm

    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    given: Any = network.pretrained_cfg
    mean, std = tuple(given.get("mean", IMAGENET_MEAN)), tuple(given.get("std", IMAGENET_STD))
    height, width = given.get("input_size", (3, *IMAGENET_SIZE))[-2:]
    return LibraryEncoder(network, mean, std, (height, width))


def check_library(name: str) -> None:
    """Raises UsageError for a network that its library does not have."""
    library, _, model = name.partition(":")
    known = LIBRARIES[library]()
    if model not in known:
        close = difflib.get_close_matches(model, known, n=3)
        hint = f"did you mean {', '.join(close)}? " if close else ""
        raise UsageError(f"unknown encoder {name!r}; {hint}{library} has {len(known)}")


def torchvision_names() -> list[str]:
    """Its classifiers, but for those with several outputs in training."""
    import torchvision.models

    return sorted({*torchvision.models.list_models(torchvision.models)} - {"googlenet", "inception_v3"})  # type: ignore[attr-defined]


def timm_names() -> list[str]:
    """All of them."""
    from timm import list_models

    return list(list_models())


LIBRARIES: dict[str, Callable[[], list[str]]] = {"torchvision": torchvision_names, "timm": timm_names}
