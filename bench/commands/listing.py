"""What `bench list` says: the plug-ins of a kind, or the suites, each with a line about it."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import registry
from bench.spec import UsageError, unknown

SUITES = Path(__file__).parents[1] / "suites"
KINDS: dict[str, registry.Kind] = {f"{kind}s": kind for kind in registry.PACKAGES}


def items(kind: str) -> list[dict[str, Any]]:
    """``name`` and ``description`` of each, sorted; methods also have their ``group``, and come in its order.

    Raises UsageError for a kind that is not known.
    """
    if kind == "suites":
        files = sorted(SUITES.glob("*.toml"))
        told = {file.stem: tomllib.loads(file.read_text(encoding="utf-8")).get("description", "") for file in files}
        return [{"name": name, "description": text} for name, text in told.items()]
    if kind not in KINDS:
        raise UsageError(unknown("list", kind, [*KINDS, "suites"]))
    names = registry.names(KINDS[kind])
    if kind != "methods":
        return [{"name": name, "description": registry.describe(KINDS[kind], name)} for name in names]
    groups = {group: members for group, members in registry.method_groups().items() if group != "all"}
    of = {name: next((group for group, members in groups.items() if name in members), "others") for name in names}
    order = sorted(names, key=lambda name: [*groups, "others"].index(of[name]))  # stable: sorted within a group
    return [{"name": name, "description": registry.describe("method", name), "group": of[name]} for name in order]


def lines(listed: Sequence[dict[str, Any]]) -> list[str]:
    """The same to read: a line each under the name of its group, which --methods takes too."""
    width = max((len(item["name"]) for item in listed), default=0)
    said: list[str] = []
    group = None
    for item in listed:
        if item.get("group") != group:
            group = item["group"]
            said += [""] * bool(said) + [f"{group}:"]
        said.append(f"{item['name']:<{width}}  {item['description']}")
    return said
