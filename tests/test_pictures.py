"""Image files as pixels: where each pixel lands, which files are refused, and torchvision as the oracle of a size."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps
from torchvision import transforms
from torchvision.datasets.folder import default_loader

from bench.pictures import decode, jpeg_ending, jpeg_quality
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
        data, kind = decode("a", file.getvalue(), None)
        pixels = np.frombuffer(b"".join(data), np.uint8).reshape(3, 3, 4)
        assert kind == "RGB 4x3"
        assert pixels[:, 1, 3].tolist() == [10, 20, 30]
        assert pixels.sum() == 60

    def test_a_file_and_its_bytes(self, tmp_path):
        (tmp_path / "a.png").write_bytes(encoded("L"))
        assert decode("a", tmp_path / "a.png", None) == decode("a", encoded("L"), None) == ([bytes(12)], "L 4x3")

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
        data, kind = decode("picture", path, 32)
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
        with pytest.raises(UsageError, match=r"expected 8-bit RGB or grey images, got deep \(.*; convert it"):
            decode("deep", encoded(mode, (9, 9), "TIFF"), 8)


class TestEnding:
    @pytest.mark.parametrize("quality", [1, 30, 49, 50, 75, 90, 95, 100])
    def test_jpeg_quality(self, quality):
        assert jpeg_ending("a", encoded(format="JPEG", quality=quality)) == f"-jpeg{quality}"

    def test_no_jpeg(self):
        assert jpeg_ending("a", encoded()) == ""

    def test_the_nearest_quality_of_a_foreign_table(self):
        table = Image.open(io.BytesIO(encoded(format="JPEG", quality=60))).quantization[0]
        assert jpeg_quality([table[0] + 1, *table[1:]]) == 60
