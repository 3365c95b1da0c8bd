"""The protocols of a command: their names, as the field says them too, their files and their settings."""

from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import registry
from bench.identity.outline import outline, shown
from bench.names import named
from bench.options.attacks import settings
from bench.options.options import Options
from bench.shown import Shown
from bench.spec import Level, UsageError, unknown

if TYPE_CHECKING:
    from bench.protocols.common.base import BaseProtocol

Classes = dict[str, "type[BaseProtocol]"]


# ---------------------------------------------------------------- without torch


def asked_protocols(options: Options) -> dict[str, str]:
    """Name -> the protocol that --protocols says for it, a name or a path to a .py file, in their order.

    ``slf``, ``alf`` and ``aff`` are names of the field's. ``NAME=PROTOCOL`` is the same protocol under another name,
    with settings of its own. Raises UsageError.
    """
    words = list(dict.fromkeys(part.strip() for part in options.protocols.split(",") if part.strip()))
    if not words:
        known = ", ".join(registry.names("protocol"))
        raise UsageError(f"expected at least one protocol, got none; known: {known}")
    asked: dict[str, str] = {}
    for word in words:
        given, plugin = named(word)
        plugin = plugin if plugin.endswith(".py") or plugin in registry.names("protocol") else by_field_name(plugin)
        registry.source("protocol", plugin)  # raises for an unknown one
        name = given or (Path(plugin).stem if plugin.endswith(".py") else plugin)
        if name in asked:
            raise UsageError(f"expected protocols of different names, got {asked[name]} and {word}; rename a file")
        if given and (given in registry.names("protocol") or "-" in given or given in field_names()):
            raise UsageError(f"expected a new name without - for {plugin}, got {given!r}")
        asked[name] = plugin
    return asked


def by_field_name(word: str) -> str:
    """Our name of the protocol that the field calls so; the word itself, where the field calls none so."""
    return field_names().get(word, word)


@cache
def field_names() -> dict[str, str]:
    """The field's name of a protocol -> ours."""
    names = registry.names("protocol")
    said = {name: outline(registry.folder("protocol") / f"{name}.py", "Protocol") for name in names}
    return {str(source.values["also"]): name for name, source in said.items() if source and source.values.get("also")}


def check_protocols(options: Options) -> None:
    """Raises UsageError for protocols and settings of theirs that cannot be, as far as their source says so."""
    asked = asked_protocols(options)
    for name, plugin in asked.items():
        if name not in options.settings:
            continue
        file = registry.source("protocol", plugin)
        source = outline(file, "Protocol") if file is not None else None
        if name == plugin and source is not None and source.values.get("ranked"):
            raise UsageError(
                f"--set {name}: the settings of {name} are the same for everybody, since it ranks; give it a name of "
                f"its own, as in --protocols mine={name} --set mine.KEY=VALUE"
            )
        for key in options.settings[name]:
            if source is not None and key not in source.fields:
                raise UsageError(f"the protocol {name}: {unknown('setting', key, source.fields)}")


# ---------------------------------------------------------------- once they are loaded


def protocol_classes(options: Options, level: Level) -> Classes:
    """Name -> class of the protocols that are asked for, and of those that a full evaluation shows beside them."""
    protocols = {name: registry.load("protocol", plugin).Protocol for name, plugin in asked_protocols(options).items()}
    beside = [protocol.beside for protocol in protocols.values() if protocol.beside and level == "full"]
    return protocols | {name: registry.load("protocol", name).Protocol for name in beside if name not in protocols}


def protocol_settings(options: Options, level: Level, dataset: Any, protocols: Classes) -> dict[str, dict[str, Any]]:
    """Name -> the settings that are not the protocol's own: of a quick level, then of the dataset, then of --set.

    What a dataset says of all methods (a mirrored 2 is no 2) holds for a protocol that has such a setting too.
    """
    changed = {}
    for name, protocol in protocols.items():
        known = {field.name for field in fields(protocol)}
        of_data = {key: value for key, value in dataset.OVERRIDES.get("all", {}).items() if key in known}
        chosen = (protocol.quick if level == "quick" else {}) | of_data | options.settings.get(name, {})
        if chosen:
            changed[name] = settings(f"the protocol {name}", protocol, chosen)
    return changed


def own_protocols(options: Options, protocols: Classes) -> dict[str, Shown]:
    """What the runs say of protocols that are not of the folder, or whose source does not say it."""
    asked = asked_protocols(options)
    said = {}
    for name, protocol in protocols.items():
        plugin = asked.get(name, name)
        file = plugin.endswith(".py")
        chosen = ", ".join(f"{key} {value}" for key, value in options.settings.get(name, {}).items())
        variant = not file and plugin != name
        said[name] = Shown(
            title=(protocol.title or name) + (f": {chosen or name}" if variant else ""),
            ranked=protocol.ranked,
            own_attacks=protocol.attacks is not None,
            paper=protocol.paper,
            path=str(Path(plugin).resolve()) if file else "",
            base=plugin if variant else "",
        )
    return {name: protocol for name, protocol in said.items() if protocol != shown(name)}
