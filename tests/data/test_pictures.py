"""Image files as pixels: where each pixel lands, which files are refused, and torchvision as the oracle of a size."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from torchvision import transforms
from torchvision.datasets.folder import default_loader

from bench.data.pictures import JPEG, LOSSLESS, WEBP, decode, jpeg_quality
from bench.spec import UsageError


def encoded(mode="RGB", size=(4, 3), format="PNG", **options):
    file = io.BytesIO()
    Image.new(mode, size).save(file, format, **options)
    return file.getvalue()


def drawn(mode, size, seed=0):
    """A picture of noise on a coarse pattern."""
    rng = np.random.default_rng(seed)
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = rng.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(), mode) if channels == 1 else Image.fromarray(pixels, mode)


def planes(data, size):
    return np.frombuffer(b"".join(data), np.uint8).reshape(-1, size, size)


class TestAsItIs:
    def test_pixels_land_where_they_belong(self):
        image = Image.new("RGB", (4, 3))
        image.putpixel((3, 1), (10, 20, 30))  # x = 3, y = 1
        file = io.BytesIO()
        image.save(file, "PNG")
        data, kind, _ = decode("a", file.getvalue(), None)
        pixels = np.frombuffer(b"".join(data), np.uint8).reshape(3, 3, 4)
        assert kind == "RGB 4x3"
        assert pixels[:, 1, 3].tolist() == [10, 20, 30]
        assert pixels.sum() == 60

    def test_a_file_and_its_bytes(self, tmp_path):
        (tmp_path / "a.png").write_bytes(encoded("L"))
        assert decode("a", tmp_path / "a.png", None) == decode("a", encoded("L"), None) == ([bytes(12)], "L 4x3", 0)

    @pytest.mark.parametrize("mode", ["P", "RGBA", "I;16", "1"])
    def test_modes_that_are_not_pixels(self, mode):
        with pytest.raises(UsageError, match=r"expected 8-bit RGB or grey images, got a .*; convert it"):
            decode("a", encoded(mode), None)

    @pytest.mark.parametrize("size", [None, 8])
    @pytest.mark.parametrize(
        ("damaged", "reason"),
        [(b"", "no format"), (b"no image", "no format"), (encoded(size=(64, 64))[:-40], "truncated")],
    )
    def test_damage(self, damaged, reason, size):
        with pytest.raises(UsageError, match=f"cannot read the image row 5: .*{reason}.*; replace or remove it"):
            decode("row 5", damaged, size)


class TestOfOneSize:
    @pytest.mark.parametrize(
        ("mode", "format", "size"),
        [
            ("RGB", "JPEG", (90, 61)),  # made smaller, antialiased
            ("RGB", "PNG", (17, 40)),  # made larger
            ("RGB", "PNG", (32, 32)),
            ("L", "PNG", (45, 33)),
            ("LA", "PNG", (45, 33)),
            ("RGBA", "PNG", (33, 64)),
            ("CMYK", "JPEG", (64, 48)),
        ],
    )
    def test_what_torchvision_gives_to_the_last_bit(self, tmp_path, mode, format, size):
        path = tmp_path / "picture"
        drawn(mode, size).save(path, format)
        wanted = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(32)])(default_loader(path))
        data, kind, _ = decode("picture", path, 32)
        assert kind == "RGB 32x32"
        assert np.array_equal(planes(data, 32), np.asarray(wanted).transpose(2, 0, 1))

    def test_a_palette_with_transparency(self):
        file = io.BytesIO()
        drawn("RGB", (40, 32)).quantize(8).save(file, "PNG", transparency=bytes([0, 128, 255]))
        wanted = Image.open(file).convert("RGBA").convert("RGB").crop((4, 0, 36, 32))
        assert np.array_equal(planes(decode("a", file.getvalue(), 32)[0], 32), np.asarray(wanted).transpose(2, 0, 1))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_turns_it_upright(self, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = io.BytesIO()
        drawn("RGB", (24, 16)).save(file, "PNG", exif=exif)
        upright = ImageOps.exif_transpose(Image.open(file))
        wanted = transforms.CenterCrop(16)(upright)
        assert np.array_equal(planes(decode("a", file.getvalue(), 16)[0], 16), np.asarray(wanted).transpose(2, 0, 1))

    @pytest.mark.parametrize("mode", ["I;16", "F"])
    def test_more_than_eight_bits_are_refused(self, mode):
        with pytest.raises(UsageError, match=r"expected 8-bit RGB or grey images, got deep \(.*; convert it to 8"):
            decode("deep", encoded(mode, (9, 9), "TIFF"), 8)


def png16(channels):
    """A PNG of 4x3 pixels with 16 bits a channel, all below 256: its high bytes are zeros."""
    rows = b"".join(b"\0" + bytes([0, 200]) * 4 * channels for _ in range(3))
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", 4, 3, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


class TestDepth:
    """Pillow opens most of these as 8 bits, the low ones cut off."""

    @pytest.mark.parametrize("size", [None, 8])
    @pytest.mark.parametrize(
        "file",
        [
            *(png16(channels) for channels in (1, 2, 3, 4)),
            b"P6\n4 3\n65535\n" + bytes([0, 200]) * 36,
            b"P6\n4 3\n1023\n" + bytes([0, 200]) * 36,
            b"P5\n4 3\n65535\n" + bytes([0, 200]) * 12,
        ],
    )
    def test_more_than_eight_bits(self, file, size):
        with pytest.raises(UsageError, match=r"got deep \(.*4x3 of more than 8 bits a channel\); convert it to 8 bits"):
            decode("deep", file, size)

    def test_fewer_bits_are_spread_over_the_range(self):
        data, kind, _ = decode("a", b"P5\n2 1\n15\n" + bytes([15, 5]), None)
        assert (kind, data) == ("L 2x1", [bytes([255, 85])])

    @pytest.mark.parametrize("format", ["PNG", "GIF", "WEBP"])
    def test_several_frames(self, format):
        file = io.BytesIO()
        drawn("RGB", (9, 9)).save(file, format, save_all=True, append_images=[drawn("RGB", (9, 9), 1)])
        with pytest.raises(UsageError, match="expected one picture in each file, got film with 2 frames; keep one"):
            decode("film", file.getvalue(), 8)


class TestLoss:
    @pytest.mark.parametrize("quality", [1, 30, 49, 50, 75, 90, 95, 100])
    def test_jpeg_quality(self, quality):
        assert decode("a", encoded(format="JPEG", quality=quality), None)[2] == quality

    @pytest.mark.parametrize(
        ("file", "found"),
        [
            (encoded(), LOSSLESS),
            (encoded(format="BMP"), LOSSLESS),
            (encoded(format="WEBP", lossless=True), LOSSLESS),
            (encoded(format="WEBP"), WEBP),
            (encoded("RGBA", format="WEBP"), WEBP),
            (encoded(format="TIFF", compression="jpeg"), JPEG),
        ],
    )
    def test_other_formats(self, file, found):
        assert decode("a", file, 8)[2] == found

    def test_the_nearest_quality_of_a_foreign_table(self):
        table = Image.open(io.BytesIO(encoded(format="JPEG", quality=60))).quantization[0]
        assert jpeg_quality((table[0] + 1, *table[1:])) == 60
