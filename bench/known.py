"""What can be said of a name without torch: devices, and what a dataset is given beside its name.

These are the first steps of checks that are finished where the thing itself is loaded.
"""

import re

from bench.spec import DataSpec, UsageError

TYPES = (  # of corruptions, in the order of Hendrycks & Dietterich (2019)
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)
LIBRARIES = ("torchvision", "timm")  # of encoders, as timm:NAME


def of_library(name: str) -> bool:
    """Whether an encoder is ``library:NAME``, and no file or name of the registry."""
    return ":" in name and not name.endswith(".py")


def check_device_name(name: str) -> None:
    """Raises UsageError for a device that no machine has; whether this one does, torch knows (bench.device)."""
    if not re.fullmatch(r"auto|cpu(:0)?|cuda(:\d+)?", name):
        raise UsageError(f"expected a device such as auto, cpu or cuda:0, got {name!r}")


def check_data(spec: DataSpec, *, needs_path: bool, takes_size: bool, takes_classes: bool) -> None:
    """Raises UsageError for a folder, a size or classes that the dataset does not take, or a folder that it misses."""
    if needs_path and spec.path is None:
        raise UsageError(f"expected a folder after the name, got {spec.name!r}; write {spec.name}:DIR")
    if not needs_path and spec.path is not None:
        raise UsageError(f"expected {spec.name!r} alone, got {spec.name}:{spec.path}; this dataset takes no folder")
    if spec.image_size is not None and not takes_size:
        raise UsageError(f"expected {spec.name!r} without --image-size, got {spec.image_size}; its images have a size")
    if spec.classes is not None and not takes_classes:
        raise UsageError(f"expected {spec.name!r} without --classes, got {spec.classes}; it has all its classes")
