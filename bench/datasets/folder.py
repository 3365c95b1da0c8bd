"""Folder: {train,test}/<class>/*.png, .jpg or .jpeg of one size, or --image-size; classes in order of their names."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.blocks import Image
from bench.cache import Listing
from bench.data import EncodedDataset, Split
from bench.spec import UsageError

ENDINGS = (".png", ".jpg", ".jpeg")


class Dataset(EncodedDataset):
    """Named after its folder, with the JPEG quality where the images are JPEGs."""

    def listing(self, root: Path, split: Split, classes: Path | None) -> Listing:
        names, others = class_names(root / "train"), class_names(root / "test")
        if names != others:
            alone = ", ".join(sorted({*names} ^ {*others}))
            raise UsageError(f"expected the same classes in train and test of {root}, found in one only: {alone}")
        return listing_of(root.resolve().name, root / split, names)


def class_names(folder: Path) -> list[str]:
    """Names of the folders inside, sorted. Raises UsageError where there are none."""
    names = sorted(f.name for f in folder.glob("*") if f.is_dir() and not f.name.startswith("."))
    if not names:
        raise UsageError(f"expected a folder for each class in {folder}, found none; make {folder}/<class>/<image>.png")
    return names


def listing_of(name: str, folder: Path, classes: list[str]) -> Listing:
    """The images in the folders of these classes, class by class, each sorted by name. Raises UsageError."""
    names: list[str] = []
    stamps: list[tuple[int, int]] = []  # size and time of change
    labels: list[int] = []
    for label, each in enumerate(classes):
        for file, size, changed in image_files(folder / each):
            names.append(f"{each}/{file}")
            stamps.append((size, changed))
            labels.append(label)
    packed = np.array(stamps, dtype=np.int64)

    def images() -> Iterator[Image]:
        return ((str(folder / file), folder / file) for file in names)

    def state(start: int, stop: int) -> str:
        return "\n".join(names[start:stop]) + packed[start:stop].tobytes().hex()

    return Listing(
        name=name,
        source="\n".join([str(folder.resolve()), *classes]),
        labels=np.array(labels, dtype=np.int64),
        classes=len(classes),
        images=images,
        state=state,
    )


def image_files(folder: Path) -> list[tuple[str, int, int]]:
    """(name, size, time of change) of the images inside, sorted. Raises UsageError where there are none."""
    with os.scandir(folder) as entries:
        found = [each for each in entries if each.name.lower().endswith(ENDINGS) and not each.name.startswith(".")]
    if not found:
        raise UsageError(f"expected images ({', '.join(ENDINGS)}) in {folder}, found none; remove the empty class")
    return sorted((each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in found)
