"""Names that tell apart what is asked for: a row by its label, a radius by the name of its result's file."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from bench.radius import NORMS
from bench.spec import NAME, Norm, UsageError

CORRUPTIONS = "corruptions"  # among threats and attacks: an average case, made in bench.evaluation.corrupted
INSIDE = 300  # bytes of the longest path inside the folder of a run: runs/<name>/adversarial/<cell>-<hash>.safetensors


def named(text: str) -> tuple[str, str]:
    """(name, method) of ``NAME=METHOD``, which tells two files of one name apart; the name is "" where none is given.

    >>> named("a=B1/mine.py"), named("mine.py"), named("./x=1/mine.py")
    (('a', 'B1/mine.py'), ('', 'mine.py'), ('', './x=1/mine.py'))
    """
    name, equals, method = text.partition("=")
    return (name, method) if equals and re.fullmatch(NAME, name) else ("", text)


def check_labels(rows: Iterable[tuple[str, str]], suite: bool) -> None:
    """Raises UsageError where two rows, (label, method) each, have one label: that of their runs and lines."""
    first: dict[str, str] = {}
    for label, method in rows:
        if label in first:
            other = first[label]
            way = "give one a name = of its own" if suite else f"as --methods {label}1={other},{label}2={method}"
            raise UsageError(
                f"expected rows of different names, got {label} for {other} and for {method}; name them apart: {way}"
            )
        first[label] = method


def eps_name(eps: float, norm: Norm = "linf") -> str:
    """eps in the name of a file, to six digits; radii that are equal in them are refused at the door.

    >>> eps_name(8 / 255), eps_name(0.5, "l2")
    ('0.031373', 'l2_0.500000')
    """
    return f"{eps:.6f}" if norm == "linf" else f"{norm}_{eps:.6f}"


def family(attack: str) -> str:
    """The attack of which this is the form in another norm, and whose settings and images it has; else its own name.

    >>> family("autoattack_l2"), family("pgd_crop"), family("l2")
    ('autoattack', 'pgd_crop', 'l2')
    """
    return next((attack.removesuffix(f"_{norm}") for norm in NORMS if attack.endswith(f"_{norm}")), attack)


def check_apart(radii: Iterable[float]) -> None:
    """Raises UsageError where two radii have one name, or one that of 0."""
    known = {eps_name(0.0): 0.0}
    for eps in radii:
        other = known.setdefault(eps_name(eps), eps)
        if other != eps:
            raise UsageError(f"expected eps that differ from each other and 0 by 1e-6, got {other:.9g} and {eps:.9g}")


def check_path(out: Path) -> None:
    """Raises UsageError where the file system takes no folder of this name, or no files in it."""
    whole = out.absolute()
    there = next(folder for folder in (*whole.parents, Path("/")) if os.path.exists(folder))
    most = {kind: limit(there, f"PC_{kind}_MAX") for kind in ("NAME", "PATH")}
    for part in whole.parts:
        if len(os.fsencode(part)) > most["NAME"]:
            raise UsageError(too_long("name", part, most["NAME"]))
    if len(os.fsencode(whole)) + INSIDE > most["PATH"]:
        raise UsageError(too_long("path", str(whole), most["PATH"] - INSIDE))


def limit(folder: Path, name: str) -> int:
    """A limit of the file system of a folder; that of most where it says none."""
    try:
        return os.pathconf(folder, name)
    except (OSError, ValueError):
        return {"PC_NAME_MAX": 255, "PC_PATH_MAX": 4096}[name]


def too_long(what: str, text: str, most: int) -> str:
    """That a name of the user's is, and how long it may be."""
    count = len(os.fsencode(text))
    return f"the {what} {text[:30]}... is too long: {count} bytes of at most {most}; choose a shorter --out"
