"""The attacks of a command: their files, norms and radii, and what --set changes in them, refused at the door."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import registry
from bench.identity.outline import Outline, outline
from bench.options.options import Options, asked_attacks, asked_threats
from bench.options.threats import check_radii
from bench.radius import NORMS
from bench.spec import Norm, UsageError, unknown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


# ---------------------------------------------------------------- without torch


def check_attacks(options: Options) -> None:
    """Raises UsageError for attacks, radii and settings of attacks that cannot be, as far as their source says so."""
    outlines = {name: read(file) for name, file in asked_attacks(options).items()}
    norms = {name: norm_of(source) for name, source in outlines.items()}
    check_radii(norms, asked_threats(options).radii)
    for name, declared in outlines.items():
        known = None if declared is None else [field for field in declared.fields if field != "chunk"]
        for key in options.settings.get(name, {}):
            if known is not None and key not in known:
                raise UsageError(f"the attack {name}: {unknown('setting', key, known)}")


def read(attack: str) -> Outline | None:
    """What the source of an attack says; None where it cannot be followed."""
    file = registry.source("attack", attack)
    return outline(file, "Attack") if file is not None else None


def norm_of(found: Outline | None) -> Norm | None:
    """The norm that a source declares; None where that is not known, or no norm."""
    said = None if found is None else found.values.get("norm", "linf")
    return next((norm for norm in NORMS if norm == said), None)


# ---------------------------------------------------------------- once they are loaded


def attack_fields(options: Options) -> dict[str, Any]:
    """What an EvalSpec says of the attacks. Raises UsageError for what only a loaded attack can tell."""
    asked = asked_attacks(options)
    kinds = {name: registry.load("attack", file).Attack for name, file in asked.items()}
    radii = asked_threats(options).radii
    check_radii({name: kind.norm for name, kind in kinds.items()}, radii)
    chosen = {name: options.settings[name] for name in asked if name in options.settings}
    return {
        "attacks": tuple(asked),
        "attack_paths": {name: file for name, file in asked.items() if Path(file).suffix == ".py"},
        "attack_norms": {name: kind.norm for name, kind in kinds.items() if kind.norm != "linf"},
        "attack_settings": {
            name: settings(f"the attack {name}", kinds[name], changed) for name, changed in chosen.items()
        },
        "eps_l2": radii.get("l2", ()),
        "minimum_norm": tuple(name for name, kind in kinds.items() if kind.minimum),
    }


def settings(what: str, kind: "type[DataclassInstance]", chosen: dict[str, Any]) -> dict[str, Any]:
    """The settings that were chosen for an attack or protocol (``what``), as it takes them and as JSON keeps them.

    Raises UsageError.
    """
    from attacks.common.base import configured

    try:
        made = configured(kind(), chosen)
        kept: dict[str, Any] = json.loads(json.dumps({key: getattr(made, key) for key in chosen}, allow_nan=False))
    except (TypeError, ValueError) as error:  # a UsageError too: of ours, or of the attack's own checks
        raise UsageError(f"{what}: {str(error).partition(chr(10))[0]}") from None
    return kept
