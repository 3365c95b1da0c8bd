"""Folders are registries: a file in methods/, attacks/, bench/datasets/ or bench/trackers/ is a plug-in.

Its name is its name. A path to a .py file counts too, and so does an entry point of the group ``bench.methods``
(``bench.attacks``, ``bench.datasets``, ``bench.trackers``) when it is asked for by name. Listing reads docstrings only
and imports nothing.
"""

import ast
import importlib
import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Literal

from bench.spec import NAME, UsageError, unknown

Kind = Literal["method", "attack", "dataset", "tracker"]
PACKAGES: dict[Kind, str] = {
    "method": "methods",
    "attack": "attacks",
    "dataset": "bench.datasets",
    "tracker": "bench.trackers",
}


def folder(kind: Kind) -> Path:
    """The folder whose files are the plug-ins of this kind."""
    return Path(__file__).parent.parent / PACKAGES[kind].replace(".", "/")


def names(kind: Kind) -> list[str]:
    """Sorted names of everything in the folder."""
    return sorted(file.stem for file in folder(kind).glob("*.py") if not file.stem.startswith("_"))


def describe(kind: Kind, name: str) -> str:
    """First line of the file's docstring: what it is and where it comes from."""
    tree = ast.parse((folder(kind) / f"{name}.py").read_bytes())  # as Python itself reads it, mark and all
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def source(kind: Kind, name: str) -> Path | None:
    """The file of a plug-in; None where a package of another's has it. Nothing is imported. Raises UsageError."""
    if name.endswith(".py"):
        return _checked_file(kind, Path(name))
    if name in names(kind):
        return folder(kind) / f"{name}.py"
    if importlib.metadata.entry_points(group=f"bench.{kind}s", name=name):
        return None
    raise UsageError(unknown(kind, name, names(kind)))


def load(kind: Kind, name: str) -> ModuleType:
    """The plug-in's module: from the folder, a path to a .py file, or an entry point. Raises UsageError."""
    if name.endswith(".py"):
        return _load_file(kind, Path(name))
    if name in names(kind):
        return importlib.import_module(f"{PACKAGES[kind]}.{name}")
    for point in importlib.metadata.entry_points(group=f"bench.{kind}s", name=name):
        try:
            module = point.load()
        except Exception as error:
            raise UsageError(f"the {kind} {name} of {point.value} cannot be imported: {_reason(error)}") from error
        return _checked(kind, module, f"the {kind} {name} of {point.value}")
    raise UsageError(unknown(kind, name, names(kind)))


def _checked_file(kind: Kind, path: Path) -> Path:
    if not path.is_file():
        raise UsageError(f"expected a {kind} file, got {path}: no such file")
    if not re.fullmatch(NAME, path.stem):
        raise UsageError(f"expected a {kind} file whose name has letters, digits, _, . and - only, got {path.name!r}")
    if path.stem in names(kind):
        raise UsageError(f"the {kind} file {path} has the name of a known {kind}; give it another name")
    return path


def _load_file(kind: Kind, path: Path) -> ModuleType:
    path = _checked_file(kind, path)
    spec = importlib.util.spec_from_file_location(f"bench_plugin_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"the {kind} file {path} cannot be imported: {_reason(error)}") from error
    return _checked(kind, module, f"the {kind} file {path}")


def _checked(kind: Kind, module: ModuleType, where: str) -> ModuleType:
    wanted = ("Config", "Method") if kind == "method" else (kind.capitalize(),)
    missing = [name for name in wanted if not hasattr(module, name)]
    if missing:
        raise UsageError(f"{where} must define {' and '.join(wanted)}; missing: {', '.join(missing)}")
    return module


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
