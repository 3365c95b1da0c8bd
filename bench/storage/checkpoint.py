"""Checkpoints of a training: generations in folders of their own, of which the newest that is whole is used.

    checkpoints/000007/tensors.safetensors   every tensor of the state
                      /state.json            the rest of it, with its checksum
                      /MANIFEST.json         sizes and SHA-256 of both, written last: without it there is no generation

No pickle: a state is made of dictionaries, lists, numbers, strings, None and tensors, and comes back as it was.
"""

import contextlib
import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.spec import Data, UsageError
from bench.storage import disk
from bench.storage.disk import cannot, is_there, listed, sync_folders, write_bytes
from bench.storage.files import Damaged, load_tensors, read, read_bytes, save, sealed, tensor_bytes

MANIFEST, STATE, TENSORS = "MANIFEST.json", "state.json", "tensors.safetensors"


class FileHash(Data):
    """What a file of a generation must be."""

    bytes: int
    sha256: str


class Generation(Data):
    """MANIFEST.json: the other files of a generation, and the one that it follows."""

    version: int = 1
    files: dict[str, FileHash]
    parent: str | None = None


class Plain(Data):
    """state.json: a state without its tensors."""

    state: Any


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write the next generation, read it again, and only then remove all but it and the newest whole one before it.

    Raises DiskError, and Damaged where what was read is not what was written.
    """
    earlier = generations(folder)
    number = max((int(generation.name) for generation in earlier), default=0) + 1
    path = folder / f"{number:06d}"
    tensors: dict[str, Tensor] = {}
    plain = Plain(state=packed(state, tensors, "state"))
    contents = {TENSORS: tensor_bytes(tensors), STATE: sealed(plain.model_dump_json(indent=1))}
    for name, data in contents.items():
        write_bytes(path / name, data)
    files = {name: file_hash(data) for name, data in contents.items()}
    save(path / MANIFEST, Generation(files=files, parent=earlier[-1].name if earlier else None))
    check_generation(path)
    before = next((generation for generation in reversed(earlier) if is_whole(generation)), path)
    sync_folders(folder.parent, before)  # a killed process may have made them and not synced
    for generation in earlier:
        if generation != before:
            remove_generation(generation)
    return path


def load_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, list[Damaged]]:
    """(the state of the newest generation that is whole, or None; what is wrong with those after it).

    A generation without its manifest was never finished, and is passed over. Raises DiskError.
    """
    damaged: list[Damaged] = []
    for path in reversed(generations(folder)):
        if is_there(path / MANIFEST):
            try:
                return load_generation(path), damaged
            except Damaged as error:
                damaged.append(error)
    return None, damaged


def newest_value(folder: Path, key: str) -> Any:
    """A number or text of the newest state that can be read, without its tensors; None where there is no such."""
    for path in reversed(generations(folder)):
        if is_there(path / MANIFEST):
            with contextlib.suppress(UsageError, KeyError, TypeError, ValueError):
                return dict(read(Plain, path / STATE).state["items"])[key]
    return None


def load_generation(path: Path) -> dict[str, Any]:
    """The state in the folder of one generation. Raises Damaged where a file of it is not as its manifest says."""
    check_generation(path)
    tensors = load_tensors(path / TENSORS)
    plain = read(Plain, path / STATE).state
    try:
        state: dict[str, Any] = unpacked(plain, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # names no tensor, or strides that do not fit
        raise Damaged(path / STATE, f"it is no state: {type(error).__name__}") from None
    return state


def check_generation(path: Path) -> None:
    """Raises Damaged where a file of a generation is not as its manifest says."""
    manifest = read(Generation, path / MANIFEST)
    if manifest.files.keys() != {TENSORS, STATE}:
        raise Damaged(path / MANIFEST, f"expected {TENSORS} and {STATE}, got {', '.join(manifest.files)}")
    for name, expected in manifest.files.items():
        try:
            actual = file_hash(read_bytes(path / name))
        except UsageError as error:
            raise Damaged(path / name, str(error)) from None
        if actual != expected:
            raise Damaged(path / name, "its hash is not that of its manifest")


def is_whole(path: Path) -> bool:
    """Whether a generation was finished and is as it was written. Raises DiskError."""
    try:
        check_generation(path)
    except UsageError:
        return False
    return True


def generations(folder: Path) -> list[Path]:
    """The folders of all generations, whole or not, the oldest first."""
    return [folder / name for name in listed(folder) if name.isdecimal()]


def remove_checkpoints(folder: Path) -> None:
    """All generations, and their folder where nothing else is in it. Raises DiskError."""
    for path in generations(folder):
        remove_generation(path)
    if is_there(folder) and not listed(folder):
        remove_generation(folder)


def remove_generation(path: Path) -> None:
    """The manifest first, so that what is left by a kill is no generation. Raises DiskError."""
    try:
        for name in sorted(listed(path), key=lambda name: name != MANIFEST):
            disk.DISK.remove(path / name)
            if name == MANIFEST:
                disk.DISK.sync_folder(path)
        disk.DISK.remove_folder(path)
    except OSError as error:
        raise cannot("remove", path, error) from error


def file_hash(data: bytes) -> FileHash:
    """Size and hash of what is in a file."""
    return FileHash(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


# ---------------------------------------------------------------- a state as JSON and tensors


def packed(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """``value`` with each tensor put into ``tensors`` and its name in its place. Raises TypeError for other objects."""
    if isinstance(value, Tensor):
        name = f"{len(tensors)} {name}"  # {"a.b": {"c": ...}} and {"a": {"b.c": ...}} are two
        tensors[name] = value
        return {"tensor": name, "stride": list(value.stride())}
    if isinstance(value, dict):
        return {"items": [[key, packed(item, tensors, f"{name}.{key}")] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [packed(item, tensors, f"{name}.{place}") for place, item in enumerate(value)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # JSON has none of these
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"expected a state of dictionaries, lists, numbers, strings and tensors, got {type(value)} {name}")


def unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What ``packed`` was given, tuples as lists; tensors lie in memory as they did."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        tensor = tensors[value["tensor"]]
        return torch.empty_strided(tensor.shape, value["stride"], dtype=tensor.dtype).copy_(tensor)
    if "float" in value:
        return float(value["float"])
    if "items" in value:
        return {key: unpacked(item, tensors) for key, item in value["items"]}
    return [unpacked(item, tensors) for item in value["list"]]
