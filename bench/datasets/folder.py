"""Folder: {train,test}/<class>/*.png, .jpg or .jpeg, all of one size; classes in the order of their names."""

from pathlib import Path

import torch

from bench.data import BaseDataset, ImageSet, Split, read_images
from bench.spec import UsageError

ENDINGS = (".png", ".jpg", ".jpeg")


class Dataset(BaseDataset):
    """Named after its folder, with the JPEG quality where the images are JPEGs."""

    needs_path = True

    def load(self, root: Path, split: Split) -> ImageSet:
        classes, others = class_names(root / "train"), class_names(root / "test")
        if classes != others:
            alone = ", ".join(sorted({*classes} ^ {*others}))
            raise UsageError(f"expected the same classes in train and test of {root}, found in one only: {alone}")
        files = [(file, label) for label, name in enumerate(classes) for file in image_files(root / split / name)]
        images, ending = read_images((str(file), file) for file, _ in files)
        labels = torch.tensor([label for _, label in files])
        return ImageSet(images, labels, classes=len(classes), label=root.resolve().name + ending)


def class_names(folder: Path) -> list[str]:
    """Names of the folders inside, sorted. Raises UsageError where there are none."""
    names = sorted(f.name for f in folder.glob("*") if f.is_dir() and not f.name.startswith("."))
    if not names:
        raise UsageError(f"expected a folder for each class in {folder}, found none; make {folder}/<class>/<image>.png")
    return names


def image_files(folder: Path) -> list[Path]:
    """The images inside, sorted by name. Raises UsageError where there are none."""
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in ENDINGS and not f.name.startswith("."))
    if not files:
        raise UsageError(f"expected images ({', '.join(ENDINGS)}) in {folder}, found none; remove the empty class")
    return files
