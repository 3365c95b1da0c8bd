"""From the name of an encoder to a module: one of the registry, a file of the user's own, or one of a library."""

from typing import Any

import torch

from bench import registry
from bench.encoders.common.base import BaseEncoder, FeatureEncoder, stem_in_float32
from bench.encoders.common.libraries import check_library, library_encoder
from bench.encoders.common.names import check_encoder_name
from bench.known import of_library
from bench.spec import UsageError


def build_encoder(name: str, channels: int, feature_width: int) -> FeatureEncoder:
    """A new encoder, drawn from torch's global generator. Raises UsageError for an unknown name, or what is no encoder.

    ``name``: of the registry, ``library:NAME``, or the path of a .py file.
    """
    check_encoder(name)
    backbone = build_backbone(name, channels)
    return FeatureEncoder(backbone, backbone.width, feature_width)


def check_encoder(name: str) -> None:
    """Raises UsageError for an encoder that does not exist, or whose library is missing."""
    check_encoder_name(name)
    if of_library(name):
        check_library(name)


def build_backbone(name: str, channels: int) -> BaseEncoder:
    """The encoder without its feature layer, its first convolution in float32. Raises UsageError."""
    if of_library(name):
        backbone: BaseEncoder = library_encoder(name, channels)
        assert backbone.size is not None
        backbone.width = width_of(backbone, name, channels, backbone.size)
    else:
        backbone = own_backbone(name, channels)
    stem_in_float32(backbone)
    return backbone


def own_backbone(name: str, channels: int) -> BaseEncoder:
    """The ``Encoder`` of a file, of the registry or the user's own. Raises UsageError."""
    kind = registry.load("encoder", name).Encoder
    try:
        backbone: BaseEncoder = kind(channels)
    except Exception as error:
        raise UsageError(
            f"the encoder {name} cannot be made as Encoder({channels}), for images (B, {channels}, H, W): "
            f"{reason(error)}"
        ) from error
    width: Any = getattr(backbone, "width", None)
    if not isinstance(width, int) or width < 1:
        raise UsageError(
            f"expected the encoder {name} to say its width, such as width = 64, got {width!r}; it is that of the "
            "features (B, width) that forward returns"
        )
    return backbone


def check_images(name: str, channels: int, sizes: dict[tuple[int, int], str]) -> None:
    """Raises UsageError for an encoder, which exists, that does not take images of ``sizes``.

    These are (height, width) -> what is so large. Nothing is computed where the network can do without (meta device).
    """
    backbone: BaseEncoder | None = None
    try:
        with torch.device("meta"):
            light: BaseEncoder | None = build_backbone(name, channels)
    except Exception:  # some look at numbers while they are built or run
        light = None
    for size, what in sizes.items():
        if light is not None and refusal(light, name, channels, size) is None:
            continue
        backbone = backbone or build_backbone(name, channels)
        why = refusal(backbone, name, channels, size)
        if why is not None:
            such = f", such as {pixels(backbone.size)}" if backbone.size else ""
            raise UsageError(
                f"expected images of a size that {name} takes{such}, got {what} of {pixels(size)} ({why}); change "
                "the size of the images with --image-size (of folder:, parquet: and imagenet:) or that of the views "
                "with --set all.view_share, or choose another encoder"
            )


def refusal(backbone: BaseEncoder, name: str, channels: int, size: tuple[int, int]) -> str | None:
    """Why an encoder gives no features of its width for images of this size; None where it does."""
    try:
        width = width_of(backbone, name, channels, size)
    except UsageError as error:
        return str(error.__cause__ or error).partition("\n")[0]
    return None if width == backbone.width else f"it says width {backbone.width}, and its features are {width} wide"


def width_of(backbone: BaseEncoder, name: str, channels: int, size: tuple[int, int]) -> int:
    """How wide the features are of images of this size. Raises UsageError where it has none of them."""
    weight = next(backbone.parameters(), torch.zeros(()))
    images = torch.zeros(2, channels, *size, device=weight.device)
    try:
        with torch.no_grad():
            features: Any = backbone.eval()(images)
            shape = tuple(features.shape)
    except Exception as error:  # of networks for other sizes, of several outputs
        raise UsageError(
            f"{name} is no encoder of images of {pixels(size)}: {reason(error)}; choose another"
        ) from error
    finally:
        backbone.train()
    if len(shape) != 2 or shape[0] != 2:
        raise UsageError(f"expected features (2, width) of {name} for 2 images, got {shape}; choose another")
    return int(shape[1])


def reason(error: BaseException) -> str:
    """Type and first line of what it says."""
    return f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")


def pixels(size: tuple[int, int]) -> str:
    """A size for people."""
    return f"{size[0]} x {size[1]} pixels"
