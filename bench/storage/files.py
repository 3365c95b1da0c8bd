"""Files that tell when they are damaged: JSON with a checksum as its last key, tensors with a hash kept elsewhere.

Reading needs no torch; the functions that handle tensors import it.
"""

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from bench.spec import Data, UsageError
from bench.storage import disk
from bench.storage.disk import cannot, is_there, write_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

D = TypeVar("D", bound=Data)
LARGEST_JSON = 64 * 2**20  # bytes: no record comes near, and a hostile one must not fill the memory
LARGEST_HEADER = 2**20  # of a safetensors file: thousands of tensors; the library takes 46 s for the 100 MB it allows
LARGEST = 4 * 2**30  # of any file
SEAL = re.compile(rb',\n "sha256": "([0-9a-f]{64})"\n}\n\Z')


class Damaged(UsageError):
    """A file is not what was written, or not of this version: it is named, and never used."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is damaged or of another version: {reason}")
        self.path = path


# ---------------------------------------------------------------- records


def save(path: Path, record: Data) -> None:
    """A record as JSON with its checksum, atomically. Raises DiskError."""
    write_bytes(path, sealed(record.model_dump_json(indent=1)))


def read(kind: type[D], path: Path) -> D:
    """The record in a JSON file. Raises UsageError if it is missing or unreadable, Damaged if it is not as written."""
    try:
        data = read_bytes(path, LARGEST_JSON)
        return kind.model_validate_json(unsealed(data))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise Damaged(path, f"as a {kind.__name__}, {where}: {first['msg']}") from None
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise Damaged(path, str(error)) from None


def sealed(text: str) -> bytes:
    """A JSON object that is not empty, with the SHA-256 of its text as its last key."""
    body = text.encode()
    return body[:-2] + b',\n "sha256": "%s"\n}\n' % hashlib.sha256(body).hexdigest().encode()


def unsealed(data: bytes) -> bytes:
    """The object without its checksum. Raises ValueError where that is missing or does not fit."""
    seal = SEAL.search(data[-100:])
    if seal is None:
        raise ValueError("it does not end with its checksum")
    body = data[: len(data) - len(seal[0])] + b"\n}"
    if hashlib.sha256(body).hexdigest().encode() != seal[1]:
        raise ValueError("its checksum does not fit")
    return body


# ---------------------------------------------------------------- tensors


def save_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Tensors as safetensors, atomically. Raises DiskError."""
    write_bytes(path, tensor_bytes(tensors))


def tensor_bytes(tensors: "Mapping[str, Tensor]") -> bytes:
    """Copies of the tensors in the safetensors format, which refuses shared memory."""
    from safetensors.torch import save as to_bytes

    return to_bytes({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()})


def load_tensors(path: Path, expected: str = "") -> "dict[str, Tensor]":
    """Tensors of a safetensors file.

    Raises UsageError if it is missing, Damaged if it is no such file, its ``sha256`` is not the ``expected`` one, or
    one is expected and it is missing.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    if expected and not is_there(path):
        raise Damaged(path, "it is missing")
    data = read_bytes(path)
    if int.from_bytes(data[:8], "little") > LARGEST_HEADER:
        raise Damaged(path, f"expected the header of a safetensors file, of at most {LARGEST_HEADER} bytes")
    try:
        tensors = from_bytes(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:  # a KeyError: a type that torch has not
        raise Damaged(path, str(error)) from None
    if expected and sha256(tensors) != expected:
        raise Damaged(path, "the hash of its tensors does not fit")
    return tensors


def sha256(tensors: "Mapping[str, Tensor]") -> str:
    """Hash of names, types, shapes and values, in the order of the names; the same on every device."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---------------------------------------------------------------- bytes


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """The bytes of a file. Raises UsageError if it is missing, Damaged above the largest size, else DiskError."""
    try:
        data = disk.DISK.read(path, largest + 1)
    except FileNotFoundError:
        raise UsageError(f"expected {path}: no such file") from None
    except OSError as error:
        raise cannot("read", path, error) from error
    if len(data) > largest:
        raise Damaged(path, f"expected at most {largest} bytes, got more")
    return data
