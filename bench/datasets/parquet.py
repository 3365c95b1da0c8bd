"""Parquet: {train,test}.parquet in a folder, in the columns of Hugging Face (img or image, label or fine_label)."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bench.blocks import BLOCK, Image
from bench.cache import Listing
from bench.data import EncodedDataset, Split
from bench.spec import UsageError

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label")
ROW = "expected an image as {bytes, path} and its label as 0, 1, 2, ..."


class Dataset(EncodedDataset):
    """Named after its folder, with the JPEG quality where the images are JPEGs: `cifar10-jpeg75`."""

    needs_path = True

    def listing(self, root: Path, split: Split, classes: Path | None) -> Listing:
        path = root / f"{split}.parquet"
        labels = read_labels(path)
        found = path.stat()

        def state(start: int, stop: int) -> str:
            return f"{found.st_size} {found.st_mtime_ns} {start} {stop}"

        return Listing(
            name=root.resolve().name,
            source=str(path.resolve()),
            labels=labels,
            classes=int(labels.max()) + 1,
            images=lambda: read_images(path),
            state=state,
        )


def read_labels(path: Path) -> np.ndarray:
    """int64 (N,), one for each row. Raises UsageError."""
    with opened(path) as (file, (images, column), found):
        table = file.read(columns=[column]) if {images, column} <= {*found} else None
        if table is None or not table.num_rows:
            expected = f"expected images in {' or '.join(IMAGE_COLUMNS)} and labels in {' or '.join(LABEL_COLUMNS)}"
            rows = file.metadata.num_rows
            raise UsageError(f"{expected}, got {rows} rows of {', '.join(found)} in {path}; correct the file")
        labels = table[column].to_pylist()
    for row, label in enumerate(labels):
        if not isinstance(label, int) or label < 0:
            raise UsageError(f"{ROW}, got the label {label!r} in {path} row {row}; correct it")
    return np.array(labels, dtype=np.int64)


def read_images(path: Path) -> Iterator[Image]:
    """Name and bytes of each, a few rows in memory at a time. Raises UsageError."""
    with opened(path) as (file, (column, _), _):
        row = 0
        for part in file.iter_batches(BLOCK, columns=[column]):
            for image in part[column].to_pylist():
                data = image.get("bytes") if isinstance(image, dict) else None
                if not isinstance(data, bytes):
                    raise UsageError(f"{ROW}, got {type(image).__name__} in {path} row {row}; correct it")
                yield f"{path} row {row}", data
                row += 1


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, tuple[str, str], list[str]]]:
    """The file, the columns of images and labels as they may be called, all columns. Raises UsageError, also inside."""
    try:
        pyarrow: Any = import_module("pyarrow.parquet")  # typed in part only
    except ImportError:
        raise UsageError("reading parquet files needs pyarrow: pip install 'robust-ssl-bench[parquet]'") from None

    if not path.is_file():
        raise UsageError(f"expected {path}, found no such file; the folder must hold train.parquet and test.parquet")
    try:
        with pyarrow.ParquetFile(path, pre_buffer=False) as file:
            found = file.schema_arrow.names
            image, label = (next((c for c in pair if c in found), pair[0]) for pair in (IMAGE_COLUMNS, LABEL_COLUMNS))
            yield file, (image, label), found
    except UsageError:
        raise
    except Exception as error:  # pyarrow raises another type for every kind of damage
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{path} is damaged: expected a whole parquet file, got {reason!r}; copy it again") from error
