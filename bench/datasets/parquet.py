"""Parquet: {train,test}.parquet or parts of them, in columns of Hugging Face (img or image, label or fine_label)."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bench.data.cache import Listing
from bench.data.images import EncodedDataset, Split
from bench.data.pictures import Encoded
from bench.spec import UsageError
from bench.text import printable

IMAGE_COLUMNS = ("img", "image", "images", "jpg", "png", "webp")
LABEL_COLUMNS = ("label", "fine_label", "labels", "class", "target", "cls")
SPLITS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}  # the first one that is there is taken
ROWS = 128  # whose images are in memory at a time
ROW = "expected an image as {bytes, path} or as its bytes, and its label as 0, 1, 2, ..."


class Dataset(EncodedDataset):
    """Named after its folder, and after what its files have lost: `cifar10-jpeg75`."""

    def listing(self, root: Path, split: Split, classes: Path | None) -> Listing:
        name, paths = files_of(root, split)
        tables = [read_labels(path) for path in paths]
        changes = "\n".join(f"{stat.st_size} {stat.st_mtime_ns}" for stat in (path.stat() for path in paths))
        labels = np.concatenate([labels for labels, _ in tables])
        notes = [f"there is no {split}.parquet: {name} is taken as {split}"] if name != split else []
        notes += [note for _, columns in tables for note in columns.notes(split)]
        unread = [path.name for path in sorted(paths[0].parent.glob(f"{name}*.parquet")) if path not in paths]
        notes += [f"files of {split} that are left out: {len(unread)} .parquet ({unread[0]})"] if unread else []

        def images() -> Iterator[Encoded]:
            return (image for path in paths for image in read_images(path))

        return Listing(
            name=printable(root.resolve().name),
            source="\n".join(printable(path.resolve()) for path in paths),
            labels=labels,
            classes=int(labels.max()) + 1,
            images=images,
            state=changes,
            notes=tuple(dict.fromkeys(notes)),
        )


# ---------------------------------------------------------------- which files


def files_of(root: Path, split: Split) -> tuple[str, list[Path]]:
    """(what they call the split, its files in order): in the folder, or else in the one inside that has them.

    Raises UsageError where there are none, more than one set, or not all parts.
    """
    homes = [root] if parts(root, "train") else [home for home in inside(root) if parts(home, "train")]
    if len(homes) > 1:
        names = ", ".join(home.name for home in homes)
        raise UsageError(f"expected train.parquet in {root} or one folder inside, got it in {names}; name one of them")
    for name in SPLITS[split]:
        if homes and (found_parts := parts(homes[0], name)):
            return name, found_parts
    where = printable((homes or [root])[0] / f"{split}.parquet")
    layout = "the folder must hold train and test, each as one file or as parts such as train-00000-of-00002.parquet"
    raise UsageError(f"expected {where}, found no such file; {layout}")


def inside(folder: Path) -> list[Path]:
    """The folders inside that are not hidden, such as ``data`` and ``plain_text`` of the hub."""
    return [path for path in sorted(folder.glob("*")) if path.is_dir() and not path.name.startswith(".")]


def parts(folder: Path, name: str) -> list[Path]:
    """``name.parquet``, ``name-00000-of-00002.parquet`` and its like, or ``name/*.parquet``. Raises UsageError."""
    one = [path for path in [folder / f"{name}.parquet"] if path.is_file()]
    numbered: dict[tuple[int, int], Path] = {}
    for path in sorted(folder.glob(f"{name}-*.parquet")):
        if match := re.fullmatch(rf"{name}-(\d+)-of-(\d+)(-\w+)?\.parquet", path.name):
            place = int(match[2]), int(match[1])
            if place in numbered:
                raise UsageError(f"expected each part once, got {path} and {numbered[place].name}; remove one of them")
            numbered[place] = path
    loose = [path for path in sorted((folder / name).glob("*.parquet")) if not path.name.startswith(".")]
    kinds = [kind for kind in (one, [numbered[place] for place in sorted(numbered)], loose) if kind]
    if len(kinds) > 1:
        raise UsageError(f"expected the images of {name} once, got {kinds[0][0]} and {kinds[1][0]}; remove one of them")
    totals = {total for total, _ in numbered}
    if totals and {*numbered} != {(max(totals), place) for place in range(max(totals))}:
        found_here = ", ".join(path.name for path in kinds[0][:5])
        raise UsageError(f"expected all {max(totals)} parts of {name} in {folder}, found {found_here}; copy the others")
    return kinds[0] if kinds else []


# ---------------------------------------------------------------- what is in a file


@dataclass(frozen=True)
class Columns:
    """Those of a file: of the images and labels as they may be called, and all."""

    image: str
    label: str
    names: Sequence[str]

    def notes(self, split: Split) -> list[str]:
        """A line for each that could have been meant as well."""
        pairs = ((self.image, IMAGE_COLUMNS), (self.label, LABEL_COLUMNS))
        others = [(taken, name) for taken, known in pairs for name in known if name in self.names and name != taken]
        return [f"the column {taken} of {split} is read, not {name}" for taken, name in others]


def read_labels(path: Path) -> tuple[np.ndarray, Columns]:
    """(int64 (N,), one for each row; the columns). Raises UsageError."""
    with opened(path) as (file, columns):
        known = {columns.image, columns.label} <= {*columns.names}
        table = file.read(columns=[columns.label]) if known else None
        if table is None or not table.num_rows:
            expected = f"expected images in {one_of(IMAGE_COLUMNS)} and labels in {one_of(LABEL_COLUMNS)}"
            rows = file.metadata.num_rows
            raise UsageError(f"{expected}, got {rows} rows of {', '.join(columns.names)} in {path}; correct the file")
        labels = table[columns.label].to_pylist()
    for row, label in enumerate(labels):
        if not isinstance(label, int) or not 0 <= label < 2**63:
            raise UsageError(f"{ROW}, got the label {label!r} in {path} row {row}; correct it")
    return np.array(labels, dtype=np.int64), columns


def read_images(path: Path) -> Iterator[Encoded]:
    """Name and bytes of each, a few rows in memory at a time. Raises UsageError."""
    with opened(path) as (file, columns):
        row = 0
        for part in file.iter_batches(ROWS, columns=[columns.image]):
            for image in part[columns.image].to_pylist():
                data, place = image.get("bytes") if isinstance(image, dict) else image, f"{printable(path)} row {row}"
                if not isinstance(data, bytes):
                    raise UsageError(f"{ROW}, got {unfit(image)} in {place}; correct it")
                yield place, data
                row += 1


def unfit(image: object) -> str:
    """What a cell has instead of an image."""
    name = image.get("path") if isinstance(image, dict) else image
    if isinstance(name, str):
        return f"only the path {name[:80]!r}, without the bytes of the file,"
    return "an empty cell" if name is None else f"a {type(image).__name__}"


def one_of(names: Sequence[str]) -> str:
    """``a, b or c``"""
    return f"{', '.join(names[:-1])} or {names[-1]}"


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Columns]]:
    """The file and its columns. Raises UsageError, also inside."""
    try:
        pyarrow: Any = import_module("pyarrow.parquet")  # typed in part only
    except ImportError:
        raise UsageError("reading parquet files needs pyarrow: pip install 'robust-ssl-bench[parquet]'") from None

    if not path.is_file():
        raise UsageError(f"expected {printable(path)}, found no such file; the folder must hold all its parts")
    try:
        with pyarrow.ParquetFile(path, pre_buffer=False) as file:
            names = file.schema_arrow.names
            known = (IMAGE_COLUMNS, LABEL_COLUMNS)
            image, label = (next((column for column in choices if column in names), choices[0]) for choices in known)
            yield file, Columns(image, label, names)
    except UsageError:
        raise
    except Exception as error:  # pyarrow raises another type for every kind of damage
        reason = str(error).partition("\n")[0]
        where = printable(path)
        raise UsageError(f"{where} is damaged: expected a whole parquet file, got {reason!r}; copy it again") from error
