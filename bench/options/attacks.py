"""The attacks of a command: their files, norms and radii, and what --set changes in them, refused at the door."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import registry
from bench.identity.outline import Outline, outline
from bench.names import check_apart
from bench.options.options import Options, asked_attacks
from bench.radius import NORMS, parse_radius
from bench.spec import Norm, UsageError, unknown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def asked_radii(options: Options) -> dict[Norm, tuple[float, ...]]:
    """The radii of --eps by their norm, from the smallest; a norm of which none is given is not there. UsageError."""
    found: dict[Norm, list[float]] = {}
    for part in (options.eps or "").split(","):
        if part.strip():
            norm, eps = parse_radius(part)
            found.setdefault(norm, []).append(eps)
    if options.eps and min((eps for radii in found.values() for eps in radii), default=0) == 0:
        raise UsageError(f"expected eps above 0, got {options.eps!r}; clean accuracy is always measured")
    for radii in found.values():
        check_apart(radii)
    return {norm: tuple(sorted(set(radii))) for norm, radii in found.items()}


def check_radii(norms: Mapping[str, Norm | None], radii: Mapping[Norm, tuple[float, ...]]) -> None:
    """Raises UsageError for an attack (name -> its norm, None where that is not known) without a radius, and for
    radii of a norm without an attack. In l-inf the data set has radii of its own."""
    for name, norm in norms.items():
        if norm is not None and norm not in ("linf", *radii):
            raise UsageError(f"expected radii in {norm} for the attack {name}, got none; add some to --eps: {norm}:0.5")
    for norm in radii:
        if norm != "linf" and not {norm, None} & set(norms.values()):
            raise UsageError(f"expected an attack in {norm} for the radii in {norm}, got {', '.join(norms)}")


# ---------------------------------------------------------------- without torch


def check_attacks(options: Options) -> None:
    """Raises UsageError for attacks, radii and settings of attacks that cannot be, as far as their source says so."""
    outlines = {name: read(file) for name, file in asked_attacks(options).items()}
    norms = {name: norm_of(found) for name, found in outlines.items()}
    check_radii(norms, asked_radii(options))
    for name, found in outlines.items():
        known = None if found is None else [field for field in found.fields if field != "chunk"]
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
    radii = asked_radii(options)
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
