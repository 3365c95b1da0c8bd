"""The disk: every call by which the store reads and writes, so that tests can fail each, tear it, or cut the power."""

import contextlib
import errno
import os
import stat
from pathlib import Path


class DiskError(RuntimeError):
    """The disk refuses: one clear line, exit code 1, and what was finished stays as it is."""


class Disk:
    """The real one. Every method raises OSError, as the operating system does."""

    def read(self, path: Path, most: int = -1) -> bytes:
        """The bytes of a file, at most so many of them; not of a link, which may lead away, or a pipe without end."""
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            return file.read(most)

    def names(self, folder: Path) -> list[str]:
        """What is in a folder, sorted; nothing where there is none."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(os.listdir(folder))
        return []

    def exists(self, path: Path) -> bool:
        return path.exists()

    def make_folder(self, path: Path) -> None:
        """One folder, in one that is there; it may be there already."""
        path.mkdir(exist_ok=True)

    def create(self, path: Path) -> int:
        """A handle to write to, of a file that was not there."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def write(self, handle: int, data: memoryview) -> int:
        """How many bytes of the data were written, at least one."""
        return os.write(handle, data)

    def open_to_change(self, path: Path) -> int:
        """A handle to change parts of a file, made where it is missing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)

    def write_at(self, handle: int, data: memoryview, offset: int) -> int:
        """How many bytes of the data were written from the offset on, at least one."""
        return os.pwrite(handle, data, offset)

    def sync(self, handle: int) -> None:
        """What was written outlasts a power cut."""
        os.fsync(handle)

    def close(self, handle: int) -> None:
        os.close(handle)

    def replace(self, old: Path, new: Path) -> None:
        """The file at ``old`` is at ``new``, in one step, whatever was there."""
        os.replace(old, new)

    def sync_folder(self, path: Path) -> None:
        """Names made and changed in the folder outlast a power cut."""
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        """An empty folder."""
        path.rmdir()


DISK = Disk()


def write_bytes(path: Path, data: bytes, synced: bool = True) -> None:
    """Replace ``path`` by ``data`` or leave it as it was: temp file, fsync, rename, fsync of the folder.

    Makes the folders above it that are missing. Raises DiskError.
    """
    disk = DISK
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        make_folders(path.parent)
        disk.remove(temporary)  # of a process of the same number that was killed
        try:
            handle = disk.create(temporary)
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[disk.write(handle, rest) :]
                if synced:
                    disk.sync(handle)
            finally:
                disk.close(handle)
            disk.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                disk.remove(temporary)
            raise
        if synced:
            disk.sync_folder(path.parent)
    except OSError as error:
        raise cannot("write", path, error) from error


def write_part(path: Path, offset: int, data: bytes | bytearray) -> None:
    """Put the data into a file, from the offset on, to stay. Makes the file where it is missing. Raises DiskError.

    For files that are larger than the memory: what is written is not whole until all parts are, so whoever writes keeps
    a record.
    """
    try:
        handle, done = DISK.open_to_change(path), 0
        try:
            while done < len(data):
                done += DISK.write_at(handle, memoryview(data)[done:], offset + done)
            DISK.sync(handle)
        finally:
            DISK.close(handle)
    except OSError as error:
        raise cannot("write", path, error) from error


def make_folders(folder: Path) -> None:
    """The folder and those above it, each of them on disk to stay. Raises OSError."""
    missing = [path for path in (folder, *folder.parents) if not DISK.exists(path)]
    for path in reversed(missing):
        DISK.make_folder(path)
        DISK.sync_folder(path.parent)


def is_there(path: Path) -> bool:
    """Whether there is a file or a folder. Raises DiskError."""
    try:
        return DISK.exists(path)
    except OSError as error:
        raise cannot("look for", path, error) from error


def listed(folder: Path) -> list[str]:
    """What is in a folder, sorted; nothing where there is none. Raises DiskError."""
    try:
        return DISK.names(folder)
    except OSError as error:
        raise cannot("list", folder, error) from error


def sync_folders(*folders: Path) -> None:
    """Names in those that are there outlast a power cut. Raises DiskError."""
    for folder in folders:
        if is_there(folder):
            try:
                DISK.sync_folder(folder)
            except OSError as error:
                raise cannot("sync", folder, error) from error


def remove_file(path: Path) -> None:
    """A file, if it is there. Raises DiskError."""
    try:
        DISK.remove(path)
    except OSError as error:
        raise cannot("remove", path, error) from error


def put_aside(path: Path) -> None:
    """Rename a file that is there to ``<name>.damaged``, to stay. Raises DiskError."""
    if is_there(path):
        try:
            DISK.replace(path, path.with_name(f"{path.name}.damaged"))
        except OSError as error:
            raise cannot("put aside", path, error) from error
        sync_folders(path.parent)


def move(path: Path, to: Path) -> None:
    """Rename a file or folder that is there, to stay; makes the folders above its new place. Raises DiskError."""
    if is_there(path):
        try:
            make_folders(to.parent)
            DISK.replace(path, to)
        except OSError as error:
            raise cannot("put aside", path, error) from error
        sync_folders(to.parent, path.parent)


def cannot(do: str, path: Path, error: OSError) -> DiskError:
    """``cannot write runs/a/train.json: No space left on device; ...``"""
    return DiskError(
        f"cannot {do} {path}: {error.strerror or error}; mend that, and the same command goes on: "
        "what was finished stays readable"
    )
