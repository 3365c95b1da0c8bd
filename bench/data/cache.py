"""Encoded images, decoded once into a file that every method and every process maps (bench.data.pixels).

``pixels.npy`` is written block by block by several processes (bench.data.blocks). A block that is done has a file in
``blocks/``: in its name what its sources looked like, in it the checksum of each image and what its file has lost. So a
killed decoding goes on, and a block that does not fit its checksums is decoded again. ``manifest.json`` comes last:
where it is, and the array was not touched since, there is nothing to do. Sources that have changed (a name, a size, a
time) get a new array.
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
from itertools import islice
from pathlib import Path

import numpy as np

from bench.cores import cores
from bench.data.blocks import BLOCK, REMEMBERED, SUM, Block, Image, Task, checksum, decode_blocks
from bench.data.pictures import decode
from bench.data.pixels import OFFSET, Pixels, header, open_pixels
from bench.spec import Data, Sha256, UsageError
from bench.storage.disk import listed, make_folders, remove_file, sync_file, write_bytes, write_part
from bench.storage.files import read, read_bytes, save
from bench.storage.lock import owned

LONGEST = 48  # letters of a dataset's name in that of its folder, which a file system takes in any script
FEW = 4 * BLOCK  # images that are decoded sooner than processes are started
MANIFEST, ARRAY, CHECKSUMS, BLOCKS = "manifest.json", "pixels.npy", "checksums", "blocks"


@dataclass(frozen=True)
class Listing:
    """The encoded images of one split, before any is decoded."""

    name: str
    source: str  # where they are, and which of them: the same source has the same place in the cache
    labels: np.ndarray  # int64 (N,)
    classes: int
    images: Callable[[], Iterator[Image]]  # in the order of the labels
    state: Callable[[int, int], str]  # of images i to j: another text once their names or files have changed
    notes: tuple[str, ...] = ()  # what a user should know of how they were found, as ImageSet has it

    def blocks(self, folder: Path) -> Iterator[tuple[int, Path]]:
        """Place of the first image of each block, and the file that remembers it: another one for changed sources."""
        count = len(self.labels)
        for start in range(0, count, BLOCK):
            yield start, folder / f"{start:09}-{sha256(self.state(start, min(start + BLOCK, count)))[:16]}"


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
    state = sha256("".join(file.name for _, file in listing.blocks(folder)))
    found = opened(folder, state)
    if found is None:
        writable(folder)
        with progress(listing) as tell, owned(folder, patience=math.inf):
            if opened(folder, state) is None:  # another process may have been at it
                make(folder, listing, state, size, workers or cores() + 1, tell)
        found = opened(folder, state)
        assert found is not None
    return found


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
    manifest = manifest_in(folder)
    try:
        checksums = read_bytes(folder / CHECKSUMS)
        found = (folder / ARRAY).stat()
    except (UsageError, OSError):
        return None
    if manifest is None or manifest.state != state or sha256(checksums) != manifest.checksums:
        return None
    if (found.st_size, found.st_mtime_ns) != (manifest.size, manifest.changed):
        return None
    return open_pixels(folder / ARRAY, manifest.shape, np.frombuffer(checksums, "<u4")), Counter(manifest.losses)


def manifest_in(folder: Path) -> Manifest | None:
    """None where it is missing or damaged: then the checksums of the blocks say what is there."""
    with contextlib.suppress(UsageError):
        return read(Manifest, folder / MANIFEST)
    return None


def make(
    folder: Path, listing: Listing, state: str, size: int | None, workers: int, tell: Callable[[int], None]
) -> None:
    """Every block that is not there as it should, then the manifest. Whoever calls owns the folder."""
    count, first = len(listing.labels), next(listing.images())
    planes, kind, _ = decode(*first, size)
    width, height = map(int, kind.split()[1].split("x"))
    shape = (count, len(planes), height, width)
    task = Task(folder / ARRAY, OFFSET, size, math.prod(shape[1:]), kind, first[0])
    earlier = manifest_in(folder)
    if earlier is not None and earlier.state != state:
        for name in (MANIFEST, ARRAY):  # a process that has mapped the old one keeps it until it ends
            remove_file(folder / name)
    check_room(task.array, task.place(count))
    known = intact(task, listing)
    tell(sum(map(len, known.values())) // REMEMBERED)
    write_part(task.array, 0, header(shape))
    todo = (block for block in encoded(listing, folder / BLOCKS) if block[0] not in known)
    for start, found in decode_blocks(task, todo, workers if count > FEW else 0):
        known[start] = found
        tell(len(found) // REMEMBERED)
    sync_file(task.array)
    done = [(found, len(found) // REMEMBERED * SUM) for _, found in sorted(known.items())]
    checksums = b"".join(found[:sums] for found, sums in done)
    write_bytes(folder / CHECKSUMS, checksums)
    array = task.array.stat()
    manifest = Manifest(
        source=listing.source,
        state=state,
        shape=shape,
        losses=Counter(each for found, sums in done for each in found[sums:]),
        decoder=decoder(),
        checksums=sha256(checksums),
        size=array.st_size,
        changed=array.st_mtime_ns,
    )
    save(folder / MANIFEST, manifest)
    for name in {*listed(folder / BLOCKS)} - {file.name for _, file in listing.blocks(folder)}:
        remove_file(folder / BLOCKS / name)  # of sources as they were


def encoded(listing: Listing, folder: Path) -> Iterator[Block]:
    """All blocks with their images, in order."""
    images = listing.images()
    for start, file in listing.blocks(folder):
        yield start, file, list(islice(images, BLOCK))


def intact(task: Task, listing: Listing) -> dict[int, bytes]:
    """Start -> what is remembered of each block that is done, and whose pixels are in the array as they should."""
    known: dict[int, bytes] = {}
    if not task.array.exists():
        return known
    there = set(listed(task.array.parent / BLOCKS))
    with task.array.open("rb") as array:
        for start, file in listing.blocks(task.array.parent / BLOCKS):
            if file.name in there:
                found, images = read_bytes(file), min(BLOCK, len(listing.labels) - start)
                array.seek(task.place(start))
                sums = b"".join(checksum(array.read(task.row)) for _ in range(images))
                if len(found) == images * REMEMBERED and found.startswith(sums):
                    known[start] = found
    return known


# ---------------------------------------------------------------- small parts


def sha256(data: bytes | str) -> str:
    """Of a text: of its bytes as UTF-8, also where a name in it holds others."""
    return hashlib.sha256(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data).hexdigest()


def decoder() -> str:
    """Who has made the pixels, for the record."""
    import PIL
    from PIL import features

    return f"Pillow {PIL.__version__}, libjpeg {features.version('jpg')}"


def check_room(array: Path, needed: int) -> None:
    """Raises UsageError where the array would not fit on the disk."""
    there = array.stat().st_blocks * 512 if array.exists() else 0
    free = shutil.disk_usage(array.parent).free
    if needed - there > free:
        found = f"found {free / 1e9:.3g} GB free in {array.parent}"
        advice = "make room, or choose another --data-root or a smaller --image-size"
        raise UsageError(f"expected {(needed - there) / 1e9:.3g} GB for the decoded images, {found}; {advice}")


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
