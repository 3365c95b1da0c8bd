"""Folder: {train,test}/<class>/*.png, .jpg, .webp ... of one size, or --image-size; classes in order of their names."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.data.cache import Listing
from bench.data.images import EncodedDataset, Split
from bench.data.pictures import Encoded
from bench.spec import UsageError
from bench.text import composed, printable

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")  # those of torchvision
HIDDEN = ("__macosx", "thumbs.db", "desktop.ini", "lost+found", "$recycle.bin", "system volume information")


class Dataset(EncodedDataset):
    """Named after its folder, and after what its files have lost: `photos-jpeg90`."""

    def listing(self, root: Path, split: Split, classes: Path | None) -> Listing:
        return listing_of(printable(root.resolve().name), root / split, same_classes(root, "train", "test"))


def same_classes(root: Path, train: str, test: str) -> list[str]:
    """Names of the classes, sorted, which both splits have. Raises UsageError."""
    names, others = class_folders(root / train), class_folders(root / test)
    if alone := sorted(names.keys() ^ others.keys()):
        listed = ", ".join(map(printable, alone[:5])) + f" and {len(alone) - 5} more" * (len(alone) > 5)
        where = f"in {train} and {test} of {printable(root)}"
        raise UsageError(f"expected the same classes {where}, found in one only: {listed}")
    return sorted(names)


def class_folders(folder: Path) -> dict[str, Path]:
    """Name as every system has it -> the folder of a class, for each inside. Raises UsageError where there are none."""
    folders: dict[str, Path] = {}
    for entry in entries(folder) if folder.is_dir() else []:
        name = composed(entry.name)
        if is_folder(entry) and not hidden(entry.name):
            if name in folders:
                where, spellings = printable(folder), f"two spellings of {printable(name)}"
                raise UsageError(f"expected class folders of different names in {where}, got {spellings}; merge them")
            folders[name] = Path(entry.path)
    if not folders:
        where = printable(folder)
        raise UsageError(f"expected a folder for each class in {where}, found none; make {where}/<class>/<image>.png")
    return folders


def listing_of(name: str, folder: Path, classes: Sequence[str]) -> Listing:
    """The images in the folders of these classes, class by class, each sorted by name. Raises UsageError.

    Images in folders inside that of a class are of the class.
    """
    names: list[str] = []
    stamps: list[tuple[int, int]] = []  # size and time of change
    labels: list[int] = []
    folders, others = class_folders(folder), Others(folder)
    for entry in entries(folder):
        if hidden(entry.name) or not is_folder(entry):
            others.add(entry)
    for label, path in enumerate(folders[class_name] for class_name in classes):
        files = list(image_files(path, others, []))
        if not files:
            where, kinds = printable(path), ", ".join(ENDINGS)
            raise UsageError(
                f"expected images ({kinds}) in {where}, found none; convert what is there, or remove the class"
            )
        for file, size, changed in files:
            names.append(f"{path.name}/{file}")
            stamps.append((size, changed))
            labels.append(label)

    def images() -> Iterator[Encoded]:
        return ((printable(folder / file), folder / file) for file in names)

    return Listing(
        name=name,
        source="\n".join([printable(folder.resolve()), *map(printable, classes)]),
        labels=np.array(labels, dtype=np.int64),
        classes=len(classes),
        images=images,
        state="\n".join(names) + np.array(stamps, dtype=np.int64).tobytes().hex(),
        notes=(*inner(folder.name, names), *others.notes()),
    )


# ---------------------------------------------------------------- what lies in a folder


@dataclass
class Others:
    """What is no image of a class: how many files of each kind, and the first of them."""

    folder: Path  # of the split
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, entry: "os.DirEntry[str]") -> None:
        """A file, or every file in a folder, that is hidden, beside the classes, or of another kind."""
        beside = Path(entry.path).parent == self.folder
        kind = "hidden" if hidden(entry.name) else "beside the classes" * beside or Path(entry.name).suffix.lower()
        inside = [os.path.join(at, name) for at, _, files in os.walk(entry.path) for name in sorted(files)]
        files = inside if entry.is_dir(follow_symlinks=False) else [entry.path]
        if files:
            self.counts[kind or "without an ending"] += len(files)
            self.first.setdefault(kind or "without an ending", printable(Path(files[0]).relative_to(self.folder)))

    def notes(self) -> list[str]:
        """A line that names and counts them, if there are any."""
        kinds = [f"{count} {kind} ({self.first[kind]})" for kind, count in sorted(self.counts.items())]
        return [f"files of {self.folder.name} that are left out: {', '.join(kinds)}"] if kinds else []


def image_files(folder: Path, others: Others, above: list[Path]) -> Iterator[tuple[str, int, int]]:
    """(path below the folder, size, time of change) of the images inside and below, in order. Raises UsageError."""
    above = [*above, folder.resolve()]
    for entry in entries(folder):
        if hidden(entry.name):
            others.add(entry)
        elif is_folder(entry):
            if Path(entry.path).resolve() not in above:  # a link to where it lies would never end
                for path, size, changed in image_files(Path(entry.path), others, above):
                    yield f"{entry.name}/{path}", size, changed
        elif not entry.name.lower().endswith(ENDINGS):
            others.add(entry)
        else:
            try:
                stat = entry.stat()
            except OSError as error:
                reason = "a link to nothing" if entry.is_symlink() else error.strerror
                raise UsageError(
                    f"cannot read the image {printable(entry.path)}: {reason}; replace or remove it"
                ) from None
            if entry.is_file():  # no pipe, which would never end
                yield entry.name, stat.st_size, stat.st_mtime_ns
            else:
                others.add(entry)


def inner(split: str, names: Sequence[str]) -> list[str]:
    """A line for images that lie deeper than in the folder of their class, if there are any."""
    deeper = [name for name in names if name.count("/") > 1]
    said = f"images of {split} that lie in folders inside their class, and are taken as of it"
    return [f"{said}: {len(deeper)} ({printable(deeper[0])})"] if deeper else []


def hidden(name: str) -> bool:
    """Whether a system or a storage device, and not the user, has put it there: thumbnails, indexes, bins."""
    return name.startswith((".", "@", "#")) or name.lower() in HIDDEN


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether this is a folder or a link to one; not where the link leads nowhere, or to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def entries(folder: Path) -> "list[os.DirEntry[str]]":
    """What is in a folder, in the order of the names. Raises UsageError."""
    try:
        with os.scandir(folder) as scanned:
            return sorted(scanned, key=lambda entry: (composed(entry.name), entry.name))
    except OSError as error:
        raise UsageError(f"cannot read the folder {printable(folder)}: {error.strerror}") from None
