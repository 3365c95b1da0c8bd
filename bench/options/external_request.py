"""What ``bench evaluate`` is asked for, and what of it is refused before torch is loaded or weights are read."""

import math
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Literal

from bench.spec import Data, DataSpec, EvalSpec, UsageError

Kind = Literal["encoder", "classifier"]
LARGEST_FILE = 2**32  # bytes of a file of torch
LARGEST_PICKLE = 2**24  # bytes of a checkpoint's structure, without its numbers
OF_TENSORS = r"collections OrderedDict|torch \w+|torch\.(_utils|_tensor|storage|nn\.parameter) \w+"


class Request(Data):
    """What ``bench evaluate`` asks of the process that does it."""

    source: str  # FILE.safetensors, a file of torch or package.module:factory
    architecture: str | None = None  # of a file: a name in bench/encoders, library:NAME or a .py file
    kind: Kind = "encoder"
    prefix: str | None = None  # of the encoder's weights in a file of torch, where several places have them
    branch: str | None = None  # of batch norm, where it has several
    normalize: tuple[float, ...] = ()  # mean and std, one of each or one for each channel: all means, then all stds
    name: str | None = None  # in every table; None: that of the file or the factory
    data: DataSpec
    eval: EvalSpec
    device: str = "cpu"
    threads: int | None = None
    out: str | None = None
    again: bool = False  # what other code has made in the folder is put aside, and made again
    command: tuple[str, ...] = ()

    @property
    def row(self) -> str:
        """A name that every table and file system takes."""
        stem = self.source.rpartition(":")[2] if is_factory(self.source) else Path(self.source).stem
        return re.sub(r"[^\w.-]", "-", self.name or stem, flags=re.ASCII).lstrip("-.")[:68] or "model"


def is_factory(source: str) -> bool:
    """Whether this names a factory, ``package.module:name``, and not a file."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source) is not None and not Path(source).exists()


def check_source(source: str, architecture: str | None) -> None:
    """Raises UsageError unless this is a factory, or a file of weights with an architecture. Loads nothing."""
    if is_factory(source):
        if architecture is not None:
            raise UsageError(f"expected --architecture with a file only, got it with the factory {source}")
        return
    path = Path(source)
    if not path.is_file():
        raise UsageError(
            f"expected a .safetensors file, a file of torch or package.module:factory, got {source!r}: no such file"
        )
    if path.suffix != ".safetensors":
        check_torch_file(path)
    if architecture is None:
        raise UsageError(f"expected --architecture, such as resnet18 or timm:NAME, with the file {path}, got none")


def check_torch_file(path: Path) -> None:
    """Raises UsageError for a file that is none of torch, is too large, or needs more than weights. Loads nothing."""
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise UsageError(
            f"expected a file of at most {LARGEST_FILE / 2**30:g} GiB, got {path} of {size / 2**30:.1f} GiB"
        )
    with path.open("rb") as file:
        begin = file.read(64).lstrip()
    if not begin.startswith((b"PK\x03\x04", b"\x80")):  # the archive of torch, or a pickle as of versions before 1.6
        what = "a web page that was saved as a file" if begin.startswith(b"<") else "no file that torch has saved"
        pointer = begin.startswith(b"version https://git-lfs")
        what = "a pointer of Git LFS and not the file itself" if pointer else what
        raise UsageError(f"expected a .safetensors file or one of torch.save, got {path}: {what}")
    if other := named_class(path):
        raise UsageError(
            f"{path} needs {other}, which is code, and so it is not read; where you trust it, take its weights out and "
            f"evaluate those: {conversion(path)}"
        )


def conversion(path: Path) -> str:
    """The command that writes the weights of a checkpoint into a file of their own. It runs the code that it names."""
    code = (
        f"import torch; c = torch.load({str(path)!r}, weights_only=False); "
        "c = c.get('state_dict', c.get('model', c)) if isinstance(c, dict) else c; "
        "c = c if isinstance(c, dict) else c.state_dict(); "
        f"torch.save({{k: v for k, v in c.items() if torch.is_tensor(v)}}, {str(path.with_suffix('.weights.pth'))!r})"
    )
    return f'python -c "{code}"'


def named_class(path: Path) -> str | None:
    """The first class that a checkpoint of torch names and that is no part of a tensor; None where there is none.

    The operations of its pickle are listed, none is carried out. With such a class ``weights_only`` refuses the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [member for member in archive.namelist() if member.endswith("data.pkl")]
            with archive.open(name) as file:
                operations = pickletools.genops(file.read(LARGEST_PICKLE))
                named = [str(what) for operation, what, _ in operations if operation.name == "GLOBAL"]
    except Exception:  # no archive of torch, or cut off
        return None
    return next((what.replace(" ", ".") for what in named if not re.fullmatch(OF_TENSORS, what)), None)


def parse_normalize(text: str) -> tuple[float, ...]:
    """Numbers with commas, each in [0, 1] as those of images are. Raises UsageError."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"expected --normalize with numbers such as 0.5,0.25, got {text!r}") from None
    if not all(math.isfinite(number) for number in numbers):
        raise UsageError(f"expected --normalize with finite numbers, got {text!r}")
    if not all(0 <= number <= 1 for number in numbers):
        hint = "; a layer with others is for a factory of your own"
        if all(0 <= number <= 255 for number in numbers):
            hint = (
                f"; of pixels in 0..255 these are --normalize {','.join(f'{number / 255:.6g}' for number in numbers)}"
            )
        raise UsageError(f"expected --normalize with mean and std in [0, 1], as of images in [0, 1], got {text}{hint}")
    return numbers
