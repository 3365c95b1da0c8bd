"""Parquet: {train,test}.parquet in a folder, in the columns of Hugging Face (img or image, label or fine_label)."""

from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from bench.data import BaseDataset, ImageSet, Split, read_images
from bench.spec import UsageError

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label")


class Dataset(BaseDataset):
    """Named after its folder, with the JPEG quality where the images are JPEGs: `cifar10-jpeg75`."""

    needs_path = True

    def load(self, root: Path, split: Split) -> ImageSet:
        path = root / f"{split}.parquet"
        encoded, labels = read_rows(path)
        images, ending = read_images((f"{path} row {row}", BytesIO(data)) for row, data in enumerate(encoded))
        return ImageSet(images, torch.tensor(labels), classes=max(labels) + 1, label=root.resolve().name + ending)


def read_rows(path: Path) -> tuple[list[bytes], list[int]]:
    """The encoded images of one file and their labels. Raises UsageError."""
    try:
        pyarrow: Any = import_module("pyarrow.parquet")  # typed in part only
    except ImportError:
        raise UsageError("reading parquet files needs pyarrow: pip install 'robust-ssl-bench[parquet]'") from None

    if not path.is_file():
        raise UsageError(f"expected {path}, found no such file; the folder must hold train.parquet and test.parquet")
    try:
        with pyarrow.ParquetFile(path) as file:
            found = file.schema_arrow.names
            columns = [next((c for c in pair if c in found), pair[0]) for pair in (IMAGE_COLUMNS, LABEL_COLUMNS)]
            table = file.read(columns=columns)
    except Exception as error:  # pyarrow raises another type for every kind of damage
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{path} is damaged: expected a whole parquet file, got {reason!r}; copy it again") from error
    if table.num_columns < 2 or not table.num_rows:
        expected = f"expected images in {' or '.join(IMAGE_COLUMNS)} and labels in {' or '.join(LABEL_COLUMNS)}"
        raise UsageError(f"{expected}, got {table.num_rows} rows of {', '.join(found)} in {path}; correct the file")

    encoded, labels = [], []
    for row, (image, label) in enumerate(zip(*(table[c].to_pylist() for c in columns), strict=True)):
        data = image.get("bytes") if isinstance(image, dict) else None
        if not isinstance(data, bytes) or not isinstance(label, int) or label < 0:
            expected = "expected an image as {bytes, path} and its label as 0, 1, 2, ..."
            raise UsageError(f"{expected}, got {type(image).__name__} and {label!r} in {path} row {row}; correct it")
        encoded.append(data)
        labels.append(label)
    return encoded, labels
