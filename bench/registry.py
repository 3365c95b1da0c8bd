"""Folders are registries: a file in methods/, attacks/, bench/encoders/ and the like (PACKAGES) is a plug-in.

Its name is its name. A path to a .py file counts too, and so does an entry point of the group ``bench.methods``
(``bench.attacks``, ``bench.encoders``, and so on) when it is asked for by name. Listing reads docstrings only
and imports nothing.
"""

import ast
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from bench.plugins import Kind as Kind
from bench.plugins import check
from bench.spec import NAME, UsageError, unknown

PACKAGES: dict[Kind, str] = {
    "method": "methods",
    "attack": "attacks",
    "encoder": "bench.encoders",
    "dataset": "bench.datasets",
    "protocol": "bench.protocols",
    "tracker": "bench.trackers",
}
FILE = "bench_plugin_"  # how the name of a module begins that is a file of the user's


def folder(kind: Kind) -> Path:
    """The folder whose files are the plug-ins of this kind."""
    return Path(__file__).parent.parent / PACKAGES[kind].replace(".", "/")


def names(kind: Kind) -> list[str]:
    """Sorted names of everything in the folder."""
    return sorted(file.stem for file in folder(kind).glob("*.py") if not file.stem.startswith("_"))


def method_groups() -> dict[str, tuple[str, ...]]:
    """Names that stand for several methods: the groups of methods/__init__.py, and ``all`` that read no labels."""
    import methods

    ceilings = methods.GROUPS["supervised"]
    return {"all": tuple(name for name in names("method") if name not in ceilings), **methods.GROUPS}


def describe(kind: Kind, name: str) -> str:
    """First line of the file's docstring: what it is and where it comes from; why there is none of a broken file."""
    try:
        tree = ast.parse((folder(kind) / f"{name}.py").read_bytes())  # as Python itself reads it, mark and all
    except (SyntaxError, ValueError) as error:
        return f"cannot be read: {_reason(error)}"
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
    """The plug-in's module: from the folder, a path to a .py file, or an entry point. Raises UsageError.

    One that would lose a part of what it says is refused (bench.plugins).
    """
    if name.endswith(".py"):
        return _load_file(kind, Path(name))
    if name in names(kind):
        return _checked(kind, f"the {kind} {name}", lambda: importlib.import_module(f"{PACKAGES[kind]}.{name}"))
    for point in importlib.metadata.entry_points(group=f"bench.{kind}s", name=name):
        return _checked(kind, f"the {kind} {name} of {point.value}", point.load)
    raise UsageError(unknown(kind, name, names(kind)))


def _checked_file(kind: Kind, path: Path) -> Path:
    file = f"{'an' if kind[0] in 'ae' else 'a'} {kind} file"
    if not path.is_file():
        raise UsageError(f"expected {file}, got {path}: no such file")
    if not re.fullmatch(NAME, path.stem):
        raise UsageError(f"expected {file} whose name has at most 68 letters, digits, _, . and -, got {path.name!r}")
    if kind == "protocol" and "-" in path.stem:  # which ends it in the names of files
        raise UsageError(f"expected a protocol file whose name has no -, got {path.name!r}; write _ instead")
    if path.stem in names(kind):
        raise UsageError(f"the {kind} file {path} has the name of a known {kind}; give it another name")
    return path


def _load_file(kind: Kind, path: Path) -> ModuleType:
    path = _checked_file(kind, path)
    # two files of one name are two modules
    place = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"{FILE}{path.stem}_{place}", path)
    assert spec is not None
    loader = spec.loader
    assert loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up

    def run() -> ModuleType:
        loader.exec_module(module)
        return module

    return _checked(kind, f"the {kind} file {path}", run)


def _checked(kind: Kind, where: str, run: Callable[[], ModuleType]) -> ModuleType:
    """What ``run`` imports, if it is a plug-in of this kind. Raises UsageError, beginning with ``where``."""
    try:
        module = run()
    except (Exception, SystemExit) as error:
        raise UsageError(f"{where} cannot be imported: {_reason(error)}") from error
    check(kind, module, where)
    return module


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
