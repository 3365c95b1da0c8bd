"""Encoded images, decoded once into a file that every method and every process maps (bench.data.pixels).

``pixels.npy`` is written by several processes (bench.data.decoders). ``checksums``, one for each image, tell images
apart that nobody has read; ``manifest.json`` has one hash of them all and comes last, so that no array is believed that
is not whole. Where the manifest is there, and the array was not touched since, there is nothing to do; an array that
was is read once more, and made again where its hash does not fit. Sources that have changed (a name, a size, a time)
get a new array.
"""

import contextlib
import errno
import hashlib
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.cores import cores
from bench.data.decoders import Array, checksum, decode_all
from bench.data.pictures import Encoded, decode
from bench.data.pixels import OFFSET, Pixels, header, open_pixels
from bench.spec import Data, Sha256, UsageError
from bench.storage.disk import make_folders, remove_file, write_bytes, write_part
from bench.storage.files import read, read_bytes, save
from bench.storage.lock import owned

LONGEST = 48  # letters of a dataset's name in that of its folder, which a file system takes in any script
FEW = 512  # images that are decoded sooner than processes are started
MANIFEST, ARRAY, CHECKSUMS = "manifest.json", "pixels.npy", "checksums"


@dataclass(frozen=True)
class Listing:
    """The encoded images of one split, before any is decoded."""

    name: str
    source: str  # where they are, and which of them: the same source has the same place in the cache
    labels: np.ndarray  # int64 (N,)
    classes: int
    images: Callable[[], Iterator[Encoded]]  # in the order of the labels
    state: str  # another text once their names or files have changed
    notes: tuple[str, ...] = ()  # what a user should know of how they were found, as ImageSet has it


class Manifest(Data):
    """What ``pixels.npy`` is; its size and time of change are those when its checksums were last known to fit."""

    source: str
    state: Sha256
    shape: tuple[int, int, int, int]
    losses: dict[int, int]  # images whose files have lost so much: see bench.data.pictures
    decoder: str
    checksums: Sha256
    size: int
    changed: int  # nanoseconds


def decoded(listing: Listing, size: int | None, root: Path, workers: int | None = None) -> tuple[Pixels, Counter[int]]:
    """(the pixels of a split, how many files have lost what), from the cache in ``root``, or decoded into it now.

    ``size``: as in bench.data.pictures. ``workers``: processes, by default one more than cores, as some wait for the
    disk. Raises UsageError for an image that cannot be read or used, or where the disk has no room; DiskError.
    """
    key = sha256(f"{listing.source}\n{size}")[:16]
    folder = root / f"{listing.name[:LONGEST]}-{size or 'own-size'}-{key}"
    state = sha256(listing.state)
    pixels = opened(folder, state)
    if pixels is None:
        writable(folder)
        with progress(listing) as tell, owned(folder, patience=math.inf):
            if opened(folder, state) is None and not mended(folder, state):  # another process may have been at it
                make(folder, listing, state, size, workers or cores() + 1, tell)
        pixels = opened(folder, state)
        assert pixels is not None
    return pixels


def writable(folder: Path) -> None:
    """Make the folder where it is missing. Raises UsageError where this user cannot write to it."""
    try:
        make_folders(folder)
        if not os.access(folder, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        way = "give another folder with --data-root or BENCH_DATA_ROOT"
        raise UsageError(f"cannot write to {folder}: {error.strerror}; {way}") from None


def opened(folder: Path, state: str) -> tuple[Pixels, Counter[int]] | None:
    """The pixels and what their files have lost, if all is there, untouched, and made from sources of this state."""
    try:
        manifest = read(Manifest, folder / MANIFEST)
        checksums = read_bytes(folder / CHECKSUMS)
        array = (folder / ARRAY).stat()
    except (UsageError, OSError):  # missing or damaged
        return None
    if (manifest.state, manifest.checksums) != (state, sha256(checksums)):
        return None
    if (array.st_size, array.st_mtime_ns) != (manifest.size, manifest.changed):
        return None
    return open_pixels(folder / ARRAY, manifest.shape, np.frombuffer(checksums, "<u4")), Counter(manifest.losses)


def mended(folder: Path, state: str) -> bool:
    """Whether the array is what its manifest says, though touched, as a copy is; then it is believed again."""
    try:
        manifest = read(Manifest, folder / MANIFEST)
        if manifest.state != state:
            return False
        with (folder / ARRAY).open("rb") as file:
            headed, row = file.read(OFFSET) == header(manifest.shape), math.prod(manifest.shape[1:])
            checksums = b"".join(checksum(file.read(row)) for _ in range(manifest.shape[0]))
            fits = headed and not file.read(1) and sha256(checksums) == manifest.checksums
    except (UsageError, OSError):
        return False
    if fits:
        array = (folder / ARRAY).stat()
        write_bytes(folder / CHECKSUMS, checksums)
        save(folder / MANIFEST, manifest.model_copy(update={"size": array.st_size, "changed": array.st_mtime_ns}))
    return fits


def make(
    folder: Path, listing: Listing, state: str, size: int | None, workers: int, tell: Callable[[int], None]
) -> None:
    """The array, its checksums, then the manifest. Whoever calls owns the folder."""
    count, (first, file) = len(listing.labels), next(listing.images())
    planes, kind, _ = decode(first, file, size)
    width, height = map(int, kind.split()[1].split("x"))
    shape = (count, len(planes), height, width)
    for name in (MANIFEST, ARRAY):  # a process that has mapped the old array keeps it until it ends
        remove_file(folder / name)
    check_room(folder, OFFSET + math.prod(shape))
    array = Array(folder / ARRAY, OFFSET, size, math.prod(shape[1:]), kind, first)
    write_part(array.file, 0, header(shape))
    checksums, losses = bytearray(), Counter[int]()
    tell(0)
    with contextlib.closing(decode_all(array, listing.images(), workers if count > FEW else 0)) as parts:
        for sums, lost in parts:
            checksums += sums
            losses.update(lost)
            tell(len(lost))
    write_bytes(folder / CHECKSUMS, bytes(checksums))
    written = array.file.stat()
    manifest = Manifest(
        source=listing.source,
        state=state,
        shape=shape,
        losses=losses,
        decoder=decoder(),
        checksums=sha256(checksums),
        size=written.st_size,
        changed=written.st_mtime_ns,
    )
    save(folder / MANIFEST, manifest)


# ---------------------------------------------------------------- small parts


def sha256(data: bytes | bytearray | str) -> str:
    """Of a text: of its bytes as UTF-8, also where a name in it holds others."""
    return hashlib.sha256(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data).hexdigest()


def decoder() -> str:
    """Who has made the pixels, for the record."""
    import PIL
    from PIL import features

    return f"Pillow {PIL.__version__}, libjpeg {features.version('jpg')}"


def check_room(folder: Path, needed: int) -> None:
    """Raises UsageError where the array would not fit on the disk."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        room = f"found {free / 1e9:.3g} GB free in {folder}"
        advice = "make room, or choose another --data-root or a smaller --image-size"
        raise UsageError(f"expected {needed / 1e9:.3g} GB for the decoded images, {room}; {advice}")


@contextlib.contextmanager
def progress(listing: Listing) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal: yields a function that is told how many more images are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{listing.name}: waiting for another process", total=len(listing.labels))
        yield lambda more: bar.update(task, advance=more, description=f"{listing.name}: decoding, once")
