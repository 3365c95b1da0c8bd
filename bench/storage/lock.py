"""One owner for each run folder: a lock of the operating system, which no death of a process leaves behind.

The processes that an owner starts hold it too, so a folder is free when the last of them has ended.
"""

import contextlib
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from bench.spec import UsageError
from bench.storage.disk import cannot

LOCK = ".lock"
PATIENCE = 15.0  # seconds: what is left of a killed owner notices within a moment, saves, and ends
NETWORKS = ("nfs", "cifs", "smb", "9p", "fuse.sshfs")  # where a lock may not be seen from another machine


@contextlib.contextmanager
def owned(folder: Path, patience: float = PATIENCE, moves: bool = False) -> Iterator[int]:
    """Hold the folder, which is there: yields the handle of its lock, for the processes that are started.

    ``moves``: it may go from machine to machine on a network, whoever sends it around knows that it has one owner.
    Raises UsageError where another process holds it for longer than the patience, or where there are no locks.
    """
    try:
        handle = acquired(folder / LOCK, patience, moves)
    except OSError as error:
        raise cannot("lock", folder, error) from error
    try:
        yield handle
    finally:
        os.close(handle)


def acquired(path: Path, patience: float, moves: bool = False) -> int:
    """The handle of the locked file. Raises UsageError as above, and OSError."""
    until = time.monotonic() + patience
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not moves:
                check_network(path, handle)
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": platform.node()}).encode(), 0)
            return handle
        except BlockingIOError:
            owner = described(handle)
            os.close(handle)
            if time.monotonic() >= until:
                raise UsageError(
                    f"{path.parent} is in use by {owner}; wait until it has ended, or choose another --out"
                ) from None
            time.sleep(0.1)
        except BaseException:
            os.close(handle)
            raise


def described(handle: int) -> str:
    """Who holds the lock, as it has written there."""
    try:
        owner = json.loads(os.pread(handle, 1000, 0))
        return f"process {int(owner['pid'])} on {str(owner['host'])[:80]!r}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def check_network(path: Path, handle: int) -> None:
    """Raises UsageError where another machine wrote here last and the file system is one of a network."""
    kind = file_system(path.resolve())
    try:
        host = json.loads(os.pread(handle, 1000, 0))["host"]
    except (ValueError, KeyError, TypeError):
        return
    if kind.startswith(NETWORKS) and host != platform.node():
        raise UsageError(
            f"{path.parent} is on a network ({kind}) and was last written by {str(host)[:80]!r}, whose lock cannot be "
            f"seen from here; if nothing runs there, remove {path}"
        )


def file_system(path: Path) -> str:
    """Type of the file system that holds the path, as ext4 or nfs4; "" where that is not known."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return ""
    matches = [(len(point), kind) for point, kind in mounts if path.is_relative_to(point)]
    return max(matches, default=(0, ""))[1]
