"""Images as two tensors: loading both splits, their one fixed order, and the base class of every dataset."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, ClassVar, Literal, cast

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor

from bench.spec import DataInfo, DataSpec, Level, UsageError

Split = Literal["train", "test"]


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Labelled images: `images` uint8 (N, C, H, W), `labels` int64 (N,) in 0..classes-1. Raises UsageError if not."""

    images: Tensor
    labels: Tensor
    classes: int
    label: str  # as shown in every table
    subset: bool = False  # fewer images than the dataset has

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4 or not images.numel():
            raise UsageError(f"expected images uint8 (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            expected = f"expected labels int64 ({len(images)},)"
            raise UsageError(f"{expected}, one for each image, got {labels.dtype} {tuple(labels.shape)}")
        for extreme in (int(labels.min()), int(labels.max())):
            if not 0 <= extreme < self.classes:
                raise UsageError(f"labels out of range: expected 0..{self.classes - 1}, got {extreme}")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"{self.label}: {len(self)} images {'x'.join(map(str, self.image_shape))}, {self.classes} classes"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return cast(tuple[int, int, int], tuple(self.images.shape[1:]))

    @cached_property
    def sha256(self) -> str:
        """Hash of shape, pixels and labels, in their order; the same on every device."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().numpy().astype("<i8").data)
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same images on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def take(self, index: Tensor | slice) -> "ImageSet":
        """The images at `index`, in its order."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    def first(self, n: int | None) -> "ImageSet":
        """The first n images; all of them where there are fewer, or for None."""
        return self.take(slice(n))


class BaseDataset:
    """A dataset: what it is measured with unless asked otherwise, and `load`.

    OVERRIDES maps traits, separated by spaces, to the settings of a method that they change. An entry applies where the
    method has all its traits: "all" · "single", "pair" or "multi" (1, 2 or more views) · "patch" (one crop scale) or
    "crop" (a range of scales) · "none", "pgd" or "free" (the adversary).
    """

    encoder: ClassVar[str] = "resnet18"
    eps: ClassVar[tuple[float, ...]] = (4 / 255, 8 / 255)
    main_eps: ClassVar[float] = 8 / 255
    crops: ClassVar[int] = 16  # n of multi_patch
    level: ClassVar[Level] = "standard"
    needs_path: ClassVar[bool] = False  # named with its folder, as in parquet:DIR
    OVERRIDES: ClassVar[dict[str, dict[str, object]]] = {}

    def load(self, root: Path, split: Split) -> ImageSet:
        """All images of one split; `root` holds the data, or may be written to. Raises UsageError."""
        raise NotImplementedError


def load_data(dataset: BaseDataset, spec: DataSpec) -> tuple[ImageSet, ImageSet]:
    """The training and the test images, each in balanced order and cut to the number asked for. Raises UsageError."""
    root = data_root(dataset, spec)
    train, test = dataset.load(root, "train"), dataset.load(root, "test")
    if (train.label, train.image_shape, train.classes) != (test.label, test.image_shape, test.classes):
        raise UsageError(f"expected train and test images of one kind, got ({train}) and ({test})")
    parts = []
    for data, split, n in ((train, "train", spec.train_images), (test, "test", spec.test_images)):
        if n is not None and n > len(data):
            raise UsageError(f"expected at most {len(data)} {split} images, got {n}; {data.label} has no more")
        parts.append(data.take(balanced_order(data.labels)[:n]))
    subset = len(parts[0]) < len(train) or len(parts[1]) < len(test)
    label = f"{train.label} (subset {len(parts[0])}/{len(parts[1])})" if subset else train.label
    train, test = (replace(part, label=label, subset=subset) for part in parts)
    return train, test


def data_root(dataset: BaseDataset, spec: DataSpec) -> Path:
    """The folder that `dataset` reads: the one it is named with, else the root: given, BENCH_DATA_ROOT or the cache."""
    if dataset.needs_path and spec.path is None:
        raise UsageError(f"expected a folder after the name, got {spec.name!r}; write {spec.name}:DIR")
    if not dataset.needs_path and spec.path is not None:
        raise UsageError(f"expected {spec.name!r} alone, got {spec.name}:{spec.path}; this dataset takes no folder")
    given = spec.path or spec.root or os.environ.get("BENCH_DATA_ROOT")
    return Path(given).expanduser() if given else user_cache_path("robust-ssl-bench") / "data"


def data_info(train: ImageSet, test: ImageSet) -> DataInfo:
    """What was loaded, for the record."""
    return DataInfo(
        label=train.label,
        train=len(train),
        test=len(test),
        classes=train.classes,
        image_shape=train.image_shape,
        train_sha256=train.sha256,
        test_sha256=test.sha256,
        subset=train.subset or test.subset,
    )


def balanced_order(labels: Tensor) -> Tensor:
    """One fixed shuffle in which every prefix is as balanced over the classes as can be. labels: (N,) -> int64 (N,).

    Images are dealt in rounds, one of every class that has any left, in a fresh order of classes each round.

    >>> labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    >>> sorted(labels[balanced_order(labels)[:3]].tolist())
    [0, 1, 2]
    """
    classes = labels.cpu().numpy()
    # two columns of sort keys: `Generator.random` is the one stream that numpy is least likely to ever change
    within, between = np.random.Generator(np.random.PCG64(0)).random((2, len(classes)))
    by_class = np.lexsort((within, classes))
    _, starts, counts = np.unique(classes[by_class], return_index=True, return_counts=True)
    rounds = np.empty(len(classes), dtype=np.int64)
    rounds[by_class] = np.arange(len(classes)) - np.repeat(starts, counts)
    return torch.from_numpy(np.lexsort((between, rounds)))


def permutation(n: int, seed: int, epoch: int) -> Tensor:
    """The order of n training images in one epoch, int64 (n,): a function of (seed, epoch) alone."""
    return torch.from_numpy(np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n))


# ---------------------------------------------------------------- image files


def read_images(files: Iterable[tuple[str, Path | IO[bytes]]]) -> tuple[Tensor, str]:
    """Images uint8 (N, C, H, W) of the (name, file) pairs, and the ending of their label: "-jpeg75" for JPEGs, else "".

    Raises UsageError where one cannot be read, is neither RGB nor grey, or differs in size or mode from the first.
    """
    from PIL import Image, UnidentifiedImageError

    pixels: list[np.ndarray] = []
    first = first_kind = ending = ""
    for name, file in files:
        try:
            with Image.open(file) as image:
                pixels.append(np.asarray(image))
                kind = f"{image.mode} {image.width}x{image.height}"
                tables = getattr(image, "quantization", None)  # of JPEGs only
        except Exception as error:  # Pillow raises another type for every kind of damage
            reason = "no format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
            raise UsageError(f"cannot read the image {name}: {reason}; replace or remove it") from error
        if not first:
            first, first_kind, ending = name, kind, f"-jpeg{jpeg_quality(tables[min(tables)])}" if tables else ""
        if image.mode not in ("RGB", "L"):
            raise UsageError(f"expected 8-bit RGB or grey images, got {name} ({kind}); convert it")
        if kind != first_kind:
            expected = f"expected images of one size and mode, got {first} ({first_kind})"
            raise UsageError(f"{expected} and {name} ({kind}); resize or convert them")
    images = torch.from_numpy(np.stack(pixels))
    return images.reshape(*images.shape[:3], -1).permute(0, 3, 1, 2).contiguous(), ending


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
