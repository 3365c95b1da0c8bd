"""Archives are unpacked member by member: files and folders only, inside their folder, and not more than a data set."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from bench.spec import UsageError

MOST_BYTES = 4 * 2**30
MOST_MEMBERS = 200_000
LONGEST_NAME = 1000  # characters
DEEPEST = 32  # folders in each other
PIECE = 2**20  # bytes that are copied at once
TYPES = {"none said": 0, "folder": 4, "file": 8}  # the Unix type in a zip's external attributes


def unpack(archive: Path, folder: Path, most_bytes: int = MOST_BYTES, most_members: int = MOST_MEMBERS) -> None:
    """The files of a .zip or .tar(.gz, .bz2, .xz) below ``folder``, which is there and is best a scratch one.

    Raises UsageError at the first member that is a link or a device, that would leave the folder, that replaces another
    one, or that is one too many; what was unpacked before it stays.
    """
    left, number = most_bytes, 0
    try:
        for number, (name, is_folder, file) in enumerate(members(archive, most_bytes), start=1):
            if number > most_members:
                raise UsageError(f"expected at most {most_members} members in {archive}, got more; it is not unpacked")
            path = folder.joinpath(*inside(name, archive))
            if is_folder:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as copy:
                left -= copied(file, copy, left, archive)
    except UsageError:
        raise
    except Exception as error:  # tarfile and zipfile raise a dozen kinds on bytes that somebody has made up
        raise UsageError(f"cannot unpack {archive}: {type(error).__name__}: {error}") from error
    if not number:
        raise UsageError(f"expected an archive, got {archive}: it has no members")


def members(archive: Path, most_bytes: int) -> Iterator[tuple[str, bool, IO[bytes]]]:
    """(name, whether it is a folder, its bytes) of each member. Raises UsageError for any other kind of member."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                name, kind = entry.orig_filename, entry.external_attr >> 28
                # zipfile decompresses the other methods a block at a time, however much comes out
                usual = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
                if kind not in TYPES.values() or not usual:
                    raise UsageError(f"expected plain files and folders in {archive}, got {name[:80]!r}")
                with opened.open(entry) as file:
                    yield name, entry.is_dir(), file
        return
    with decompressed(archive) as plain, tarfile.open(fileobj=Forward(plain, 2 * most_bytes), mode="r:") as tar:
        for member in tar:
            if not (member.isreg() or member.isdir()) or member.issparse() or member.size < 0:
                raise UsageError(f"expected plain files and folders in {archive}, got {member.name[:80]!r}")
            yield member.name, member.isdir(), tar.extractfile(member) or io.BytesIO()


def decompressed(archive: Path) -> Any:
    """The tar inside .gz, .bz2 or .xz, by its first bytes, or the file as it is; a binary file."""
    with archive.open("rb") as file:
        start = file.read(6)
    kinds: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
    opener = next((opener for magic, opener in kinds.items() if start.startswith(magic)), open)
    return opener(archive, "rb")


class Forward(io.RawIOBase):
    """A file that is read forward only and not without end, a piece at a time.

    A tar whose sizes lie makes tarfile go back and read for ever, or take a name of gigabytes into memory.
    """

    def __init__(self, file: IO[bytes], most_bytes: int) -> None:
        self.file = file
        self.most_bytes = most_bytes

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= PIECE or self.file.tell() + size > self.most_bytes + PIECE:
            raise tarfile.ReadError(f"a piece of {size} bytes, which no plain archive has")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or not self.file.tell() <= offset <= self.most_bytes + PIECE:
            raise tarfile.ReadError(f"a member at byte {offset}, which no plain archive has")
        return self.file.seek(offset)

    def tell(self) -> int:
        return self.file.tell()


def inside(name: str, archive: Path) -> tuple[str, ...]:
    """The parts of a member's name. Raises UsageError if it would leave its folder, or is none."""
    path = PurePosixPath(name.replace("\\", "/"))
    outside = path.is_absolute() or any(part == ".." or ":" in part for part in path.parts)
    if outside or not 0 < len(path.parts) <= DEEPEST or len(name) > LONGEST_NAME or not name.isprintable():
        raise UsageError(f"expected members inside the folder of {archive}, got {name[:80]!r}")
    return path.parts


def copied(file: IO[bytes], copy: IO[bytes], left: int, archive: Path) -> int:
    """Copy a member; how many bytes. Raises UsageError above ``left``, whatever the archive has said of its size."""
    count = 0
    while piece := file.read(PIECE):
        count += len(piece)
        if count > left:
            raise UsageError(f"{archive} holds more than a data set may; it is not unpacked")
        copy.write(piece)
    return count
