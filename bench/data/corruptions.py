"""Common corruptions (Hendrycks & Dietterich, 2019, arXiv:1903.12261): 15 types in 5 severities, made here.

The package imagecorruptions-imaug makes them with the constants of ImageNet-C at every size. They are "regenerated":
not the arrays of CIFAR-10-C, whose constants are milder, so no number here stands beside one of those. What happens to
an image is a function of its place in the test order, the type and the severity: the same for every encoder.
"""

import contextlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bench.known import SEVERITIES as SEVERITIES
from bench.known import TYPES as TYPES
from bench.spec import UsageError

if TYPE_CHECKING:
    import numpy as np

SEEDED = ("impulse_noise", "glass_blur")  # which do not draw from numpy's global generator
SMALLEST = 32  # pixels of a side: below, the package refuses
PACKAGES = ("imagecorruptions-imaug", "imagecorruptions")  # the second, older, fails with the numpy of today


def check_package() -> None:
    """Raises UsageError where the package is missing. Nothing is loaded."""
    if importlib.util.find_spec("imagecorruptions") is None:
        raise UsageError("the threat corruptions needs its package: pip install 'robust-ssl-bench[corruptions]'")


def check_size(shape: tuple[int, ...]) -> None:
    """Raises UsageError for images (C, H, W) that the package does not take."""
    channels, height, width = shape
    if min(height, width) < SMALLEST or channels not in (1, 3):
        raise UsageError(
            f"expected images of 1 or 3 channels and at least {SMALLEST} x {SMALLEST} pixels for the threat "
            f"corruptions, got {channels} x {height} x {width}"
        )


def package_version() -> str:
    """Name and version of the package, without loading it. Raises UsageError if there is none."""
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    check_package()
    return "imagecorruptions"  # a copy without metadata


def corrupted(image: "np.ndarray[Any, Any]", kind: str, severity: int, place: int) -> "np.ndarray[Any, Any]":
    """One image (H, W, C) of uint8 under a corruption, of the same shape; a new array.

    ``place``: of the image in the test order; all chance follows from it. numpy's global state stays as it was.
    """
    import numpy as np
    from imagecorruptions import corrupt
    from PIL import Image

    from bench.random import digest

    seed = digest("corruption", kind, severity, place) % 2**32
    with drawing(seed), contextlib.redirect_stdout(sys.stderr):  # where it prints what it has caught
        moved = corrupt(image, severity, kind, **({"seed": seed} if kind in SEEDED else {}))
    if image.shape[2] == 1:  # it makes three channels of one
        return np.array(Image.fromarray(moved).convert("L"))[..., None]
    return np.array(moved)


@contextlib.contextmanager
def drawing(seed: int) -> Iterator[None]:
    """numpy's global generator, from which the package draws, begins at a seed and is put back afterwards."""
    import numpy as np

    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
