"""Which settings of a row are searched, and within which bounds: its Config's ranges, then those of a --space file."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ValidationError

from bench import registry
from bench.options.options import read_toml
from bench.ranges import Range
from bench.spec import RunSpec, UsageError, unknown
from methods.common.base import BaseConfig, ranges, resolve

Spaces = dict[str, dict[str, Range | None]]  # row, method or "all" -> setting -> range; None: not searched


@dataclass(frozen=True)
class Ground:
    """What is searched of one row: setting -> bounds or choices, and its published value among them."""

    space: dict[str, Range]
    published: dict[str, Any]
    whole: frozenset[str] = frozenset()  # settings that are whole numbers


def read_spaces(file: Path) -> Spaces:
    """The ranges of a TOML file, a table for each row or method, or ``all``; ``lr = false`` fixes one. UsageError."""
    spaces: Spaces = {}
    for target, said in read_toml(file, "file of ranges").items():
        if not isinstance(said, dict):
            raise UsageError(f"{file}: expected a table [{target}] of ranges, got {said!r}")
        spaces[target] = {name: read_range(value, f"{file}: {target}.{name}") for name, value in said.items()}
    return spaces


def read_range(value: Any, where: str) -> Range | None:
    """One range: ``{ low = 0.03, high = 3, log = true }``, ``{ factor = 10 }``, ``["a", "b"]`` or ``false``."""
    if value is False:
        return None
    try:
        return Range.model_validate({"choices": value} if isinstance(value, list) else value)
    except ValidationError as error:
        first = error.errors()[0]
        known = '{ low = 0.03, high = 3.0, log = true }, { factor = 10 }, ["a", "b"] or false'
        reason = ".".join(map(str, first["loc"])) + ": " * bool(first["loc"]) + first["msg"].lower()
        raise UsageError(f"{where}: expected {known}, got {value!r}: {reason}") from None


def check_targets(spaces: Spaces, specs: list[RunSpec]) -> None:
    """Raises UsageError where a file of ranges names nothing that is tuned."""
    known = [*dict.fromkeys(["all", *(spec.row for spec in specs), *(spec.method for spec in specs)])]
    for target in spaces:
        if target not in known:
            raise UsageError("--space: " + unknown("row or method", target, known))


def ground(spec: RunSpec, overrides: dict[str, dict[str, object]], spaces: Spaces) -> Ground:
    """What is searched of a row: the ranges of its method, then those of a file; what the spec sets is not searched.

    ``overrides``: those of the dataset. Raises UsageError for a setting that does not exist, a range without the
    published value or with one that the method refuses, and where nothing is left to search.
    """
    config_class: type[BaseConfig] = registry.load("method", spec.method_path or spec.method).Config
    published, _ = resolve(config_class, spec.data.name, overrides, spec.settings)
    said: dict[str, Range | None] = dict(ranges(config_class))
    for target in dict.fromkeys(("all", spec.method, spec.row)):
        said |= {name: given for name, given in spaces.get(target, {}).items() if target != "all" or name in said}
    known = [field.name for field in fields(published)]
    whole = frozenset(name for name, kind in get_type_hints(config_class).items() if kind is int)
    found = Ground({}, {}, whole)
    for name, given in said.items():
        if name not in known:
            raise UsageError(f"--space: {unknown('setting', name, known)}")
        value = getattr(published, name)
        if given is None or name in spec.settings or (given.factor is not None and not value):
            continue  # nothing is about 0
        if not given.choices and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UsageError(f"expected choices for {name} of {spec.row}, whose value is {value!r}, got {given}")
        try:
            bounds = given.about(value).whole() if name in whole else given.about(value)
        except UsageError as error:
            raise UsageError(f"{name} of {spec.row}: {error}") from None
        if value not in bounds:
            holds = f"that holds the published value {value!r}, which is trial 0"
            raise UsageError(f"expected a range of {name} of {spec.row} {holds}, got {bounds}")
        for end in bounds.choices or (bounds.low, bounds.high):
            typed = round(end) if name in whole and isinstance(end, float) else end
            try:
                resolve(config_class, spec.data.name, overrides, spec.settings | {name: typed})
            except Exception as error:  # of a user's file, too
                raise UsageError(f"the range of {name} of {spec.row}, {bounds}, has a bad end: {error}") from None
        found.space[name], found.published[name] = bounds, value
    if not found.space:
        raise UsageError(f"expected settings of {spec.row} to search, got none; give ranges with --space FILE.toml")
    return found
