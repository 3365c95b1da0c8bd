"""Which code makes a number: one hash of the packages and of the user's own files, the same on every machine."""

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from bench.spec import RunSpec, UsageError

ROOT = Path(__file__).parent.parent
PACKAGES = ("bench", "methods", "attacks")  # reports read what these have made


class Unfit(UsageError):
    """This machine cannot make the run that was asked for, while another may: it has other code or other images."""


def source_hash(spec: RunSpec) -> str:
    """SHA-256 of all that trains and scores the run. Raises Unfit where a file of the user's is not there.

    What the user's files import, and plug-ins that come by entry point, are not in it.
    """
    names = (spec.method_path, spec.data.name, *spec.eval.attacks)
    own = [Path(name) for name in names if name is not None and name.endswith(".py")]
    try:
        return digest([("packages", packages().encode()), *((file.name, file.read_bytes()) for file in own)])
    except OSError as error:
        raise Unfit(f"cannot read {error.filename}: {error.strerror}; copy it to where the run is made") from None


def difference(node: str, found: str, expected: str) -> str:
    """What to say of the code on a node, by its hash; "" where it is the one that is expected."""
    if found == expected:
        return ""
    return (
        f"expected the code of the command ({expected[:12]}) on every machine, got other ({found[:12]}) on {node}; "
        "install the same version there, copy the files of your own, and give the same command again"
    )


@cache
def packages() -> str:
    """SHA-256 of every module of PACKAGES; what an editor keeps beside them has a dot in front."""
    found = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    files = sorted(file for file in found if file.is_file() and not file.name.startswith("."))
    return digest((file.relative_to(ROOT).as_posix(), file.read_bytes()) for file in files)


def digest(parts: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 of named contents."""
    whole = hashlib.sha256()
    for name, content in parts:
        whole.update(f"{name}\0{len(content)}\0".encode() + content)
    return whole.hexdigest()
