"""What the tests of decoded images share: folders of pictures, each of one colour that tells its number."""

import io

import numpy as np
from PIL import Image

from bench.data.images import ImageSet, load_data
from bench.datasets import folder
from bench.spec import DataSpec


def picture(number, size=(6, 5)):
    """A PNG whose first channel is the number, whatever is cut out of it."""
    file = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256, 7)).save(file, "PNG")
    return file.getvalue()


def write_images(root, train=12, test=4, classes=("a", "b"), splits=("train", "test"), ending=".png", first=0):
    """Pictures 0, 1, 2, ... of each split, in the order in which a listing has them; of the other from ``first`` on."""
    for split, count, shift in zip(splits, (train, test), (0, first), strict=True):
        for number in range(count):
            label = number * len(classes) // count
            file = root / split / classes[label] / f"{number:05}{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(number + shift))
    return root


def load(root, **options):
    """(train, test) of a folder; decoded beside it."""
    return load_data(
        folder.Dataset(), DataSpec(name="folder", path=str(root), root=str(root.parent / "kept"), **options)
    )


def array_of(root, split="train"):
    """The file of the decoded images of a split, of the one dataset that lies beside ``root``."""
    for manifest in (root.parent / "kept" / "decoded").glob("*/manifest.json"):
        if f"{split}\\na" in manifest.read_text():
            return manifest.with_name("pixels.npy")
    raise AssertionError(f"nothing is decoded of {split}")


def numbers(images):
    """Which pictures these are, of pixels (N, 3, H, W)."""
    return (images[:, 0, 0, 0].int() + 256 * images[:, 1, 0, 0].int()).tolist()


def in_memory(images):
    """The same images as a tensor."""
    return ImageSet(images.images[:], images.labels, images.classes, images.label)


def noise(root, count=40, size=32):
    """A folder of pictures of noise."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(count):
            file = root / split / "ab"[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(file)
    return root
