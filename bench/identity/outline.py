"""What the source of a class says, its bases included, without importing it: a plug-in's import loads torch.

It knows less than Python does. Where a base cannot be followed there is no outline, and the caller asks the class
itself once it is loaded.
"""

import ast
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from bench import registry
from bench.identity.closure import named
from bench.shown import Shown

DEEPEST = 20  # bases above each other; more is a circle


@dataclass
class Outline:
    """``fields``: names with an annotation, but for ClassVar, in the order of a dataclass. ``values``: constants."""

    bases: list[str] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)


@cache
def shown(protocol: str) -> Shown:
    """What the source of a protocol in bench/protocols says of it; its name alone, where that cannot be read."""
    file = registry.source("protocol", protocol) if protocol in registry.names("protocol") else None
    declared = outline(file, "Protocol") if file is not None else None
    values = declared.values if declared is not None else {}
    return Shown(
        title=str(values.get("title") or protocol),
        ranked=values.get("ranked") is True,
        own_attacks="attacks" in values and values["attacks"] is not None,
        paper=str(values.get("paper") or ""),
    )


@cache
def method_title(method: str) -> str:
    """What people call a method of the project, its TITLE; its own name where it has none."""
    file = registry.source("method", method) if method in registry.names("method") else None
    try:
        tree = ast.parse(file.read_text(encoding="utf-8")) if file is not None else ast.Module([], [])
    except (OSError, ValueError, SyntaxError):
        return method
    declared = Outline()
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            note(declared, node.targets[0].id, node.value)
    return str(declared.values.get("TITLE") or method)


def outline(file: Path, name: str) -> Outline | None:
    """The class ``name`` of a source file; None where it is not there, cannot be read, or has a base out of reach."""
    classes = lineage(file, name)
    if classes is None:
        return None
    declared = Outline(bases=[above for _, above in reversed(classes)][1:])
    for node in (node for own in classes.values() for node in own.body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if "ClassVar" not in ast.unparse(node.annotation) and node.target.id not in declared.fields:
                declared.fields.append(node.target.id)
            note(declared, node.target.id, node.value)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            note(declared, node.targets[0].id, node.value)
    return declared


def lineage(file: Path, name: str, depth: int = 0) -> dict[tuple[Path, str], ast.ClassDef] | None:
    """A class and those above it, in the order in which a dataclass takes their fields: bases first, the last of
    several before the first, none twice."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return None
    own = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    if own is None or depth > DEEPEST:
        return None
    classes: dict[tuple[Path, str], ast.ClassDef] = {}
    for base in reversed(own.bases):
        if isinstance(base, ast.Name) and imported(base.id, tree) == ("abc", "ABC"):
            continue  # it says nothing
        place = located(base, tree, file)
        above = lineage(*place, depth + 1) if place is not None else None
        if above is None:
            return None
        classes = classes | {place: node for place, node in above.items() if place not in classes}
    return classes | {(file, name): own}


def note(declared: Outline, name: str, value: ast.expr | None) -> None:
    """Keep the value of a name, where it is a number, a text, a bool or None; of a dictionary, its keys."""
    if isinstance(value, ast.Constant):
        declared.values[name] = value.value
    elif isinstance(value, ast.Dict):
        declared.values[name] = [key.value for key in value.keys if isinstance(key, ast.Constant)]
    elif value is not None:
        declared.values.pop(name, None)


def located(base: ast.expr, tree: ast.Module, file: Path) -> tuple[Path, str] | None:
    """(file, name) of a base class: of the same file, or imported from a file of ours or from one beside this."""
    if isinstance(base, ast.Name):
        if any(isinstance(node, ast.ClassDef) and node.name == base.id for node in tree.body):
            return file, base.id
        module, name = imported(base.id, tree)
    elif isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name):
        package, last = imported(base.value.id, tree)
        module, name = f"{package}.{last}" if package else last, base.attr
    else:
        return None
    paths = (candidate.path for candidate in named(module, (str(file.parent),), "") if candidate.name == module)
    path = next(paths, None) if module else None
    return (path, name) if path is not None else None


def imported(name: str, tree: ast.Module) -> tuple[str, str]:
    """(module, name in it) of a name that the file imports; ("", "") where it does not."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return node.module or "", alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname == name or (alias.asname is None and alias.name == name):
                    return "", alias.name
    return "", ""
