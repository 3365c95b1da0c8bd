"""The folder of one run as bytes, for workers that do not share a file system with whoever asked for it."""

import re
from pathlib import Path, PurePosixPath

from bench.spec import UsageError
from bench.storage.disk import cannot, listed, remove_file, write_bytes
from bench.storage.store import ASIDE

PART = re.compile(r"[A-Za-z0-9._-]{1,120}")  # of a name in a parcel
Parcel = dict[str, bytes]  # name in the folder, as results/linear-pgd-0.100000.json -> content


def pack(folder: Path) -> Parcel:
    """All files of the folder of a run, but for locks, half-written and damaged ones. Raises DiskError.

    What is left of a lost worker may still save there: a checkpoint that goes meanwhile is left out.
    """
    parcel: Parcel = {}
    for name in names(folder):
        try:
            parcel[name] = (folder / name).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise cannot("read", folder / name, error) from error
    return parcel


def unpack(folder: Path, parcel: Parcel) -> None:
    """Make the folder what was packed: tensors first, then the JSON that names them, the record of the run last.

    A kill on the way leaves what an interrupted run leaves. What is not in the parcel is removed. Raises DiskError,
    and UsageError at a name that leads out of the folder.
    """
    for name in parcel:
        parts = PurePosixPath(name).parts
        if not parts or not all(PART.fullmatch(part) and part not in (".", "..") for part in parts):
            raise UsageError(f"expected the files of a run from the worker, got one called {name!r}")
    for name in sorted(parcel, key=lambda name: (name == "run.json", name.endswith(".json"), name)):
        write_bytes(folder / name, parcel[name])
    for name in names(folder):
        if name not in parcel:
            remove_file(folder / name)


def names(folder: Path, within: str = "") -> list[str]:
    """The files below a folder, relative to it, sorted; not what was put aside there. Raises DiskError."""
    paths = []
    for name in listed(folder / within):
        if f"{within}{name}" == ASIDE:
            continue
        path = folder / within / name
        try:
            if path.is_dir():
                paths += names(folder, f"{within}{name}/")
            elif not name.startswith(".") and not name.endswith(".damaged"):
                paths.append(f"{within}{name}")
        except OSError as error:
            raise cannot("read", path, error) from error
    return paths
