"""Image files as pixels: one plane after the other, each picture as it is or all of one size.

As it is (``size`` None): RGB or grey, 8 bits, the pixels of the file. Of one size: turned upright as its EXIF says;
made RGB (grey repeated, CMYK converted, a palette looked up, alpha dropped); the short side resized to ``size``,
bilinear and antialiased as PIL does it; the central square cut out. But for EXIF this is what torchvision's loader,
``Resize`` and ``CenterCrop`` give, to the last bit. More than 8 bits and several frames are refused.
"""

import functools
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.spec import UsageError

if TYPE_CHECKING:
    from PIL import Image

Encoded = tuple[str, Path | bytes]  # name of an image, and its file or its bytes

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")  # as Pillow calls them
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # modes of more than 8 bits
LOSSLESS, WEBP, JPEG = 0, 101, 102  # what a file has lost: 1 to 100 for a JPEG of that quality, JPEG for one unknown


def decode(name: str, file: Path | bytes, size: int | None) -> tuple[list[bytes], str, int]:
    """(H * W bytes of each channel, kind of the picture such as "RGB 256x256", what its file has lost).

    Raises UsageError that names the image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        data = file if isinstance(file, bytes) else file.read_bytes()
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            deep, frames, lost = is_deep(opened), frames_of(opened), loss(opened, data)
            fits = frames == 1 and not deep
            image = square(opened, size) if size is not None and fits else opened
            kind = f"{image.mode} {image.width}x{image.height}"
            # faster than numpy's transposed copy
            planes = [image.tobytes("raw", band) for band in image.mode] if fits and image.mode in ("RGB", "L") else []
    except Exception as error:  # Pillow raises another type for every kind of damage
        known = f"no format that is read here ({', '.join(FORMATS)})"
        reason = known if isinstance(error, UnidentifiedImageError) else error
        raise UsageError(f"cannot read the image {name}: {reason}; replace or remove it") from error
    if frames > 1:
        raise UsageError(f"expected one picture in each file, got {name} with {frames} frames; keep one of them")
    if deep:
        expected = "expected 8-bit RGB or grey images"
        raise UsageError(f"{expected}, got {name} ({kind} of more than 8 bits a channel); convert it to 8 bits")
    if not planes:
        advice = "convert it" if size else "convert it, or let --image-size do it"
        raise UsageError(f"expected 8-bit RGB or grey images, got {name} ({kind}); {advice}")
    return planes, kind, lost


def is_deep(image: "Image.Image") -> bool:
    """Whether a channel has more than 8 bits in the file; of some formats Pillow keeps 8 of them without a word.

    Asked before the pixels are read.
    """
    if image.mode in DEEP:
        return True
    if image.format == "TIFF":
        return bool(max(image.tag_v2.get(258, (1,))) > 8)  # type: ignore[attr-defined]
    coded = [tile[3] for tile in getattr(image, "tile", ())]  # how the pixels lie in the file
    if image.format == "PPM":
        return any(isinstance(layout, tuple) and layout[1] > 255 for layout in coded)
    return image.format == "PNG" and any(";16" in str(layout) for layout in coded)


def frames_of(image: "Image.Image") -> int:
    """Pictures in the file; a camera's previews (MPO) do not count."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def loss(image: "Image.Image", data: bytes) -> int:
    """What the file has lost of its picture: LOSSLESS, the quality of a JPEG, JPEG, or WEBP."""
    tables = getattr(image, "quantization", None)
    if tables:
        return jpeg_quality(tuple(tables[min(tables)]))
    if image.format == "WEBP":
        return WEBP if lossy(data) else LOSSLESS
    return JPEG if "jpeg" in str(image.info.get("compression")) else LOSSLESS


def lossy(webp: bytes) -> bool:
    """Whether the pixels of a WebP file are in a chunk of the lossy kind."""
    place = 12
    while place < len(webp):
        chunk, size = webp[place : place + 4], int.from_bytes(webp[place + 4 : place + 8], "little")
        if chunk in (b"VP8 ", b"VP8L"):
            return chunk == b"VP8 "
        place += 8 + size + size % 2
    return False


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


def ending(losses: Mapping[int, int]) -> str:
    """What the name of a dataset says of the files behind it; ``losses``: how many of them have lost what.

    >>> ending({0: 9}), ending({75: 9}), ending({75: 8, 90: 1}), ending({0: 1, 20: 8}), ending({101: 9})
    ('', '-jpeg75', '-jpeg75to90', '-part-jpeg20', '-webp')
    """
    qualities = [quality for quality in losses if LOSSLESS < quality < WEBP]
    low, high = min(qualities, default=0), max(qualities, default=0)
    suffix = "-jpeg" * bool(qualities or JPEG in losses)
    suffix += f"{low}to{high}" if low < high else str(low or "")
    suffix += "-webp" * (WEBP in losses)
    return f"-part{suffix}" if suffix and LOSSLESS in losses else suffix


@functools.lru_cache(maxsize=1024)  # the files of a dataset share a few tables, and this is most of reading a small one
def jpeg_quality(table: tuple[int, ...]) -> int:
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
