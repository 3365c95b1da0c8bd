"""Image files as pixels: one plane after the other, each picture as it is or all of one size.

As it is (``size`` None): RGB or grey, 8 bits, the pixels of the file. Of one size: turned upright as its EXIF says;
made RGB (grey repeated, CMYK converted, a palette looked up, alpha dropped); the short side resized to ``size``,
bilinear and antialiased as PIL does it; the central square cut out. But for EXIF this is what torchvision's loader,
``Resize`` and ``CenterCrop`` give, to the last bit.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.spec import UsageError

if TYPE_CHECKING:
    from PIL import Image

DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # modes of more than 8 bits


def decode(name: str, file: Path | bytes, size: int | None) -> tuple[list[bytes], str]:
    """(H * W bytes of each channel, kind of the picture such as "RGB 256x256"). UsageError that names the image."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
            image = opened if size is None or opened.mode in DEEP else square(opened, size)
            kind = f"{image.mode} {image.width}x{image.height}"
            # faster than numpy's transposed copy
            planes = [image.tobytes("raw", band) for band in image.mode] if image.mode in ("RGB", "L") else []
    except Exception as error:  # Pillow raises another type for every kind of damage
        reason = "no format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise UsageError(f"cannot read the image {name}: {reason}; replace or remove it") from error
    if not planes:
        advice = "convert it" if size or image.mode in DEEP else "convert it, or let --image-size do it"
        raise UsageError(f"expected 8-bit RGB or grey images, got {name} ({kind}); {advice}")
    return planes, kind


def square(image: "Image.Image", size: int) -> "Image.Image":
    """The picture upright, in RGB, resized and cut to size x size."""
    from PIL import Image, ImageOps

    ImageOps.exif_transpose(image, in_place=True)  # without a copy
    if image.mode == "P":
        image = image.convert("RGBA")  # Pillow's own advice for palettes that may be transparent
    if image.mode != "RGB":
        image = image.convert("RGB")
    width, height = image.size
    short = min(width, height)
    if short != size:
        width, height = (size * side // short for side in (width, height))
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if (width, height) != (size, size):
        left, top = round((width - size) / 2), round((height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    return image


def jpeg_ending(name: str, file: Path | bytes) -> str:
    """ "-jpeg75" for a JPEG of that quality, else "". Raises UsageError for what is no image."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            tables = getattr(image, "quantization", None)
    except Exception:
        decode(name, file, None)  # says what is wrong with it
        raise
    return f"-jpeg{jpeg_quality(tables[min(tables)])}" if tables else ""


def jpeg_quality(table: list[int]) -> int:
    """The quality, 1..100, whose luminance table is nearest to this one, row by row; exact for the IJG's encoders."""

    def distance(quality: int) -> int:
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        return int(np.abs(np.clip((LUMINANCE * scale + 50) // 100, 1, 255).ravel() - np.array(table)).sum())

    return min(range(1, 101), key=distance)


# ITU T.81, table K.1
# fmt: off
LUMINANCE = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
])
# fmt: on
