"""Labelled images, in memory or in a file: loading both splits, their one fixed order, the base of every dataset."""

import hashlib
import itertools
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor

from bench.data.cache import Listing, decoded
from bench.data.pictures import LOSSLESS, WEBP, ending
from bench.data.pixels import PART, Index, Pixels, central
from bench.known import check_data
from bench.record import DataInfo
from bench.spec import DataSpec, Level, UsageError

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
ALL = slice(None)
HELD_OUT = 5  # every fifth training image judges what is chosen: a penalty of the probe, a setting of a method


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Labelled images: `images` uint8 (N, C, H, W), `labels` int64 (N,) in 0..classes-1. Raises UsageError if not.

    Where `images` are Pixels they stay in their file, and only those that are asked for are read.
    """

    images: Tensor | Pixels
    labels: Tensor
    classes: int
    label: str  # as shown in every table
    subset: bool = False  # fewer images than the dataset has
    notes: tuple[str, ...] = ()  # what a user should know of how they were found
    mirrors: bool = True  # whether an image in a mirror is one of its class: a digit is not

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
        """Hash of shape, pixels and labels, in their order; the same on every device.

        Of images in a file: of the checksums of their pixels, as they were decoded.
        """
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        if isinstance(self.images, Pixels):
            digest.update(self.images.marks.astype("<u4").data)
        else:
            digest.update(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().numpy().astype("<i8").data)
        return digest.hexdigest()

    def batch(self, ids: Index, device: torch.device | str) -> Tensor:
        """The pixels of some images, uint8 (B, C, H, W), on `device`."""
        return self.images[ids].to(device)

    def pictures(self, ids: Index, device: torch.device | str) -> Tensor:
        """The same as floats in [0, 1]."""
        return self.batch(ids, device).float() / 255

    def to(self, device: torch.device | str, room: float = math.inf) -> "ImageSet":
        """The same images on `device`; where they take more than `room` bytes only the labels, and they are streamed.

        On a CPU images in a file stay there.
        """
        images = self.images
        if images.numel() <= room and not (isinstance(images, Pixels) and torch.device(device).type == "cpu"):
            images = images.to(device)
        return replace(self, images=images, labels=self.labels.to(device))

    def take(self, index: Index) -> "ImageSet":
        """The images at `index`, in its order."""
        images = self.images.take(index) if isinstance(self.images, Pixels) else self.images[index]
        return replace(self, images=images, labels=self.labels[index])

    def central(self, side: int) -> "ImageSet":
        """The central square of every image."""
        images = self.images
        return replace(self, images=images.central(side) if isinstance(images, Pixels) else central(images, side))

    def seen_as(self, other: "ImageSet") -> "ImageSet":
        """The same images, cut to their centre where those of `other` are."""
        return self if self.image_shape == other.image_shape else self.central(other.image_shape[1])

    def all_pictures(self, device: torch.device | str) -> "Tensor | Pictures":
        """All images as floats in [0, 1] on `device`; those in a file are read when they are asked for."""
        return Pictures(self, torch.device(device)) if isinstance(self.images, Pixels) else self.pictures(ALL, device)

    def first(self, n: int | None) -> "ImageSet":
        """The first n images; all of them where there are fewer, or for None."""
        return self.take(slice(n))


@dataclass(frozen=True)
class Pictures:
    """Images as floats in [0, 1] on a device, (N, C, H, W), made when they are indexed."""

    images: ImageSet
    device: torch.device

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, ids: Index) -> Tensor:
        return self.images.pictures(ids, self.device)

    def split(self, count: int) -> Iterator[Tensor]:
        """All of them, so many at a time."""
        return (self[slice(start, start + count)] for start in range(0, len(self), count))


class BaseDataset:
    """A dataset: what it is measured with unless asked otherwise, and `load`.

    OVERRIDES maps traits, separated by spaces, to the settings of a method that they change. An entry applies where the
    method has all its traits: "all" · "single", "pair" or "multi" (1, 2 or more views) · "patch" (one crop scale) or
    "crop" (a range of scales) · "none", "pgd", "free" or "nfgsm" (adversary) · "distilled" (a student of a teacher) ·
    "clustered" (pseudo-labels) · "dual" (batch norms for clean and for moved views).
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


class EncodedDataset(BaseDataset):
    """A folder of encoded images of any number: decoded once (bench.data.cache), then read as they are needed."""

    needs_path = True
    image_size: ClassVar[int | None] = None  # that they are resized to; None: they have one size
    centre: ClassVar[float] = 1.0  # side of the central square that is evaluated, as a share of the image's
    takes_classes: ClassVar[bool] = False  # a file that says which of them

    def listing(self, root: Path, split: Split, classes: Path | None) -> Listing:
        """The images of one split. Raises UsageError."""
        raise NotImplementedError

    def decoded(self, root: Path, spec: DataSpec, splits: tuple[Split, ...] = SPLITS) -> list[ImageSet]:
        """All images of each split, from the cache. Raises UsageError and DiskError."""
        given, size = Path(spec.classes) if spec.classes else None, spec.image_size or self.image_size
        listings = [self.listing(root, split, given) for split in splits]
        name, classes = listings[0].name, max(listing.classes for listing in listings)
        labels = [torch.from_numpy(listing.labels) for listing in listings]
        check_classes(name, labels[0], labels[-1], classes)
        stored = [decoded(listing, size, storage(spec) / "decoded") for listing in listings]
        label = name + ending(sum((losses for _, losses in stored), Counter())) + (f"-{size}px" if size else "")
        parts = []
        for split, listing, own_labels, (pixels, losses) in zip(splits, listings, labels, stored, strict=True):
            parts.append(ImageSet(pixels, own_labels, classes, label, notes=listing.notes + lost(split, losses)))
        return parts


def lost(split: Split, losses: Mapping[int, int]) -> tuple[str, ...]:
    """A line that counts the files of a split by what they have lost, where that is not the same for all."""
    jpegs = {loss: count for loss, count in losses.items() if LOSSLESS < loss < WEBP}
    kinds = [jpegs, *({loss: losses[loss]} for loss in sorted(losses) if loss not in jpegs)]
    counts = [f"{sum(kind.values())} {ending(kind)[1:] or 'without loss'}" for kind in kinds if kind]
    return (f"images of {split} by what their files have lost: {', '.join(counts)}",) if len(losses) > 1 else ()


def load_data(dataset: BaseDataset, spec: DataSpec) -> tuple[ImageSet, ImageSet]:
    """The training and the test images, each in balanced order and cut to the number asked for. Raises UsageError.

    Where a dataset is evaluated on the centre of its images, the test images are that.
    """
    splits = SPLITS[:1] if spec.held_out else SPLITS
    root = data_root(dataset, spec)
    if isinstance(dataset, EncodedDataset):
        loaded = dataset.decoded(root, spec, splits)
    else:
        loaded = [dataset.load(root, split) for split in splits]
    train, test = divided(loaded[0]) if spec.held_out else loaded
    if (train.label, train.image_shape, train.classes) != (test.label, test.image_shape, test.classes):
        raise UsageError(f"expected train and test images of one kind, got ({train}) and ({test})")
    check_classes(train.label, train.labels, test.labels, train.classes)
    parts = []
    for data, split, n in ((train, "train", spec.train_images), (test, "test", spec.test_images)):
        if n is not None and n > len(data):
            raise UsageError(f"expected at most {len(data)} {split} images, got {n}; {data.label} has no more")
        parts.append(data.take(balanced_order(data.labels)[:n]))
    subset = len(parts[0]) < len(train) or len(parts[1]) < len(test)
    label = f"{train.label} (subset {len(parts[0])}/{len(parts[1])})" if subset else train.label
    train, test = (replace(part, label=label, subset=subset) for part in parts)
    if isinstance(dataset, EncodedDataset) and dataset.centre < 1:
        test = test.central(round(dataset.centre * test.image_shape[1]))
    return train, test


def divided(train: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Training images in two parts: those to train on, and a fifth, balanced over the classes, to test on."""
    order = balanced_order(train.labels)
    held_out = len(order) // HELD_OUT
    train = replace(train, label=f"{train.label}, held-out training images")
    return train.take(order[held_out:]), train.take(order[:held_out])


def data_root(dataset: BaseDataset, spec: DataSpec) -> Path:
    """The folder that `dataset` reads: the one it is named with, else the root: given, BENCH_DATA_ROOT or the cache.

    Raises UsageError for options that the dataset does not take.
    """
    check_data(
        spec,
        needs_path=dataset.needs_path,
        takes_size=isinstance(dataset, EncodedDataset),
        takes_classes=isinstance(dataset, EncodedDataset) and dataset.takes_classes,
    )
    return Path(spec.path).expanduser() if spec.path else storage(spec)


def storage(spec: DataSpec) -> Path:
    """Where downloads and decoded images are kept: given, BENCH_DATA_ROOT or the user's cache."""
    given = spec.root or os.environ.get("BENCH_DATA_ROOT")
    return Path(given).expanduser() if given else user_cache_path("robust-ssl-bench") / "data"


# ---------------------------------------------------------------- what was loaded, and whether a number can rest on it


def data_info(train: ImageSet, test: ImageSet) -> DataInfo:
    """What was loaded, for the record."""
    count = duplicates(train.seen_as(test), test)
    copies = f"{count} of the {len(test)} test images are training images too, to the last pixel"
    return DataInfo(
        label=train.label,
        train=len(train),
        test=len(test),
        classes=train.classes,
        image_shape=train.image_shape,
        train_sha256=train.sha256,
        test_sha256=test.sha256,
        subset=train.subset or test.subset,
        duplicates=count,
        notes=(*train.notes, *test.notes, *[copies] * bool(count)),
    )


def checked_info(train: ImageSet, test: ImageSet) -> DataInfo:
    """The same of images that a run may begin with. Raises UsageError for those that no number can rest on."""
    least = max(HELD_OUT, train.classes)
    if len(train) < least:
        needed = f"one of each of the {train.classes} classes, and {HELD_OUT} so that every fifth can be held out"
        expected = f"expected at least {least} training images ({needed})"
        raise UsageError(f"{expected}, got {len(train)}; add images, or take more of them with --train-images")
    for data, split in ((train, "training"), (test, "test")):
        if len(data) > 1 and all_equal(data.images):
            raise UsageError(f"expected {split} images that differ, got the same {len(data)} times; look at the files")
    info = data_info(train, test)
    # of equal splits a part of the one lies in the other
    if info.duplicates == info.test and (info.subset or duplicates(test, train.seen_as(test)) == info.train):
        expected = "expected test images that were not trained on"
        raise UsageError(f"{expected}, got {info.test} that are all training images too; use other test images")
    return info


def remarks(info: DataInfo) -> list[str]:
    """What a user should know of the images before anything runs, a line each."""
    return [f"{info.label}: {note}" for note in info.notes]


def check_classes(name: str, train: Tensor, test: Tensor, classes: int) -> None:
    """Raises UsageError unless there are at least 2 classes, and each has training and test images. labels: (N,)."""
    present, lacking = [set(labels.unique().tolist()) for labels in (train, test)], []
    for split, there in zip(SPLITS, present, strict=True):
        first = next(label for label in itertools.count() if label not in there)
        lacking += [f"class {first} has no {split} image"] * (first < classes)
    if classes < 2 or lacking:
        shown = [f"{min(ids)}..{max(ids)} ({len(ids)} class{'es' * (len(ids) > 1)})" for ids in present]
        problem = lacking[0] if lacking else "one class leaves nothing to tell apart"
        raise UsageError(
            f"expected at least 2 classes, numbered from 0 without gaps and each in both splits of {name}, got labels "
            f"{shown[0]} in train and {shown[1]} in test: {problem}; correct labels or files"
        )


def all_equal(images: Tensor | Pixels) -> bool:
    """Whether every image has the pixels of the first."""
    if isinstance(images, Pixels):
        return bool((images.marks == images.marks[0]).all())
    return all(torch.equal(images[0], image) for image in images)


def duplicates(train: ImageSet, test: ImageSet) -> int:
    """Test images whose pixels are, to the last one, those of a training image."""
    mine, theirs = train.images, test.images
    if isinstance(mine, Pixels) and isinstance(theirs, Pixels):  # most have other checksums, and need not be read
        shared = np.intersect1d(mine.marks, theirs.marks)
        mine, theirs = (pixels.take(torch.from_numpy(np.isin(pixels.marks, shared))) for pixels in (mine, theirs))
    trained, tested = (
        [hashlib.sha256(image.numpy().tobytes()).digest() for part in images.split(PART) for image in part.cpu()]
        for images in (mine, theirs)
    )
    seen = set(trained)
    return sum(image in seen for image in tested)


# ---------------------------------------------------------------- orders


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
