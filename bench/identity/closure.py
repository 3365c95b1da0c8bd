"""Which files make a number: a module and all that it imports, found in the text, so nothing is imported or run.

Followed are this project's packages and the user's own modules: what lies beside a file of his, or on sys.path outside
the standard library and site-packages. What is imported by a computed name, read as data or executed from a string is
not seen; neither are installed packages, whose versions stand in the environment of a run.
"""

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("bench", "methods", "attacks")  # reports read what these have made
SHOWN = 16  # hexadecimal digits of a hash: a fault is told, not an attacker kept out
# What these do is in what is compared itself: images and weights by their hashes, settings by their values.
COMPARED = (
    *(
        "bench",
        "bench.data.cache",
        "bench.data.decoders",
        "bench.storage.checkpoint",
        "bench.storage.disk",
        "bench.storage.files",
        "bench.storage.lock",
    ),
    *(
        "bench.data.pictures",
        "bench.radius",
        "bench.record",
        "bench.registry",
        "bench.storage.signals",
        "bench.spec",
        "bench.storage.store",
        "bench.usage",
    ),
)
STANDARD = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))

Files = dict[str, str]  # name of a file, the same on every machine -> beginning of the SHA-256 of what is in it


@dataclass(frozen=True)
class Module:
    """A file of code, its dotted name ("" where it was named by its path), and where it finds what lies beside it."""

    name: str
    path: Path
    beside: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        """Whether it is a file of this project."""
        return self.name.partition(".")[0] in PACKAGES

    @property
    def place(self) -> Path:
        """The file itself, where its path may be a link."""
        return self.path if self.ours else self.path.resolve()

    @property
    def package(self) -> str:
        """The dotted name that its relative imports start from."""
        return self.name if self.path.stem == "__init__" else self.name.rpartition(".")[0]

    @property
    def label(self) -> str:
        """Its name for people: below the folder where the search for it began, since that folder moves."""
        parts = self.name.split(".") if self.name else []
        last = [self.path.name] if self.path.stem == "__init__" or not parts else [parts.pop() + self.path.suffix]
        return "/".join(parts + last)


@dataclass(frozen=True)
class Import:
    """``from <dots><module> import <names>``, or ``import <module>``."""

    dots: int
    module: str
    names: tuple[str, ...] = ()


class Closure:
    """One look at the disk: each file is read once, whoever asks for it."""

    def __init__(self) -> None:
        self._contents: dict[Path, bytes] = {}
        self._next: dict[tuple[Path, str], list[Module]] = {}
        self._found: dict[tuple[tuple[str | Path, ...], str], Files] = {}

    def __call__(self, *roots: str | Path, within: str = "") -> Files:
        """The files of modules (dotted names) and of files of the user's (paths), with all that they import.

        ``within``: a package that counts although it is installed. Raises OSError for a file that cannot be read.
        """
        if (roots, within) not in self._found:
            self._found[roots, within] = self._files([m for root in roots for m in located(root, within)], within)
        return dict(self._found[roots, within])

    def _files(self, todo: list[Module], within: str) -> Files:
        modules: dict[Path, Module] = {}
        while todo:
            module = todo.pop(0)
            if module.place not in modules and module.name not in COMPARED:
                modules[module.place] = module
                todo += self._reached(module, within)
        files: Files = {}
        for module in modules.values():
            label, number = module.label, 1
            while label in files:  # two modules of one name, from two folders
                number += 1
                label = f"{module.label} ({number})"
            files[label] = hashlib.sha256(self._read(module.path)).hexdigest()[:SHOWN]
        return files

    def _read(self, path: Path) -> bytes:
        if path not in self._contents:
            self._contents[path] = path.read_bytes()
        return self._contents[path]

    def _reached(self, module: Module, within: str) -> list[Module]:
        key = module.path, within
        if key not in self._next:
            own_imports = imports(self._read(module.path)) if module.path.suffix == ".py" else ()
            self._next[key] = [other for statement in own_imports for other in imported(statement, module, within)]
        return self._next[key]


@cache
def imports(content: bytes) -> tuple[Import, ...]:
    """All imports of a file, also inside functions, but for those of type checkers; () where it is no Python."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError):
        return ()
    all_imports = list(statements(tree.body))
    if b"import_module" in content or b"__import__" in content:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
                "import_module",
                "__import__",
            ):
                name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
                all_imports += [Import(0, name)] if isinstance(name, str) else []
    return tuple(dict.fromkeys(all_imports))


def statements(body: Iterable[ast.AST]) -> Iterator[Import]:
    """The imports among statements and in the blocks below them."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (Import(0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield Import(node.level, node.module or "", tuple(alias.name for alias in node.names))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from statements(node.orelse)
        else:
            for block in ("body", "handlers", "orelse", "finalbody", "cases"):
                below = getattr(node, block, ())
                yield from statements(below if isinstance(below, list) else ())


# ---------------------------------------------------------------- from names to files


def located(root: str | Path, within: str = "") -> list[Module]:
    """What a root names; [] where it is a module that is not found, or an installed one."""
    if isinstance(root, Path):
        return [Module("", root, (str(root.resolve().parent),))]
    return named(root, (), within)


def imported(statement: Import, by: Module, within: str) -> list[Module]:
    """The files that an import runs: of ``from a import b`` also b, where it is a module."""
    beside = tuple(dict.fromkeys((*by.beside, str(by.path.resolve().parent)))) if not by.ours else ()
    start = statement.module
    if statement.dots:
        package = by.package.split(".") if by.package else []
        up = statement.dots - 1
        if up > len(package):
            return []
        start = ".".join([*package[: len(package) - up], *filter(None, [statement.module])])
    names = [start, *(f"{start}.{name}".lstrip(".") for name in statement.names if name != "*")]
    wanted = [name for name in names if name and (not by.ours or name.partition(".")[0] in PACKAGES)]
    modules = [module for name in wanted for module in named(name, beside, within)]
    inside = {module.name for module in modules}
    # of ours `from bench import train` runs bench/__init__.py too, which makes no number
    return [m for m in modules if not (m.ours and any(f"{m.name}.{name}" in inside for name in statement.names))]


def named(name: str, beside: tuple[str, ...], within: str) -> list[Module]:
    """The files of a dotted name: of ours its own, of a user's also those of the packages above it."""
    if name.partition(".")[0] in PACKAGES:
        place = ROOT.joinpath(*name.split("."))
        files = [file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()]
        return [Module(name, file) for file in files[:1]]
    modules: list[Module] = []
    for folder in (None, *beside):  # what a file puts first on sys.path is mostly its own folder
        modules += [module for module in chain(name, folder, beside, within) if module not in modules]
    return modules


def chain(name: str, folder: str | None, beside: tuple[str, ...], within: str) -> list[Module]:
    """The files of ``a``, ``a.b``, ... as Python finds them in a folder (None: anywhere), but for installed ones."""
    modules: list[Module] = []
    search = [] if folder is None else [folder]
    parts = name.split(".")
    for count, part in enumerate(parts, 1):
        full = ".".join(parts[:count])
        path, search = anywhere(full) if folder is None and count == 1 else below(part, search)
        if path is not None:
            if installed(path.resolve()) and parts[0] != within:
                break
            modules.append(Module(full, path, beside))
        if not search:
            break
    return modules


def below(name: str, folders: list[str]) -> tuple[Path | None, list[str]]:
    """(the file of a module or package in the first folder that has one, the folders below it)."""
    for folder in folders:
        place = Path(folder) / name
        if (place / "__init__.py").is_file():
            return place / "__init__.py", [str(place)]
        for suffix in (*EXTENSION_SUFFIXES, ".py"):
            if (file := Path(f"{place}{suffix}")).is_file():
                return file, []
    return None, [str(place) for folder in folders if (place := Path(folder) / name).is_dir()]  # a package without one


def anywhere(name: str) -> tuple[Path | None, list[str]]:
    """The same of a module that is in no package, as Python finds it; those that are installed to be edited too."""
    specs = (finder.find_spec(name, None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    spec = next((spec for spec in specs if spec is not None), None)
    if spec is None:
        return None, []
    file = Path(spec.origin) if spec.origin and spec.origin.endswith((".py", *EXTENSION_SUFFIXES)) else None
    return file, list(spec.submodule_search_locations or ())


def installed(path: Path) -> bool:
    """Whether a file is of the standard library or of an installed package."""
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts) or any(
        path.is_relative_to(folder) for folder in STANDARD
    )
