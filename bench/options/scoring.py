"""How the encoders of a run are scored: from what is asked for to an EvalSpec."""

from typing import Any

from bench import registry
from bench.options.attacks import attack_fields
from bench.options.options import Options, asked_threats, parse_seconds
from bench.options.protocols import asked_protocols, own_protocols, protocol_classes, protocol_settings
from bench.spec import EvalSpec, Level, UsageError, unknown

# How many images a quick evaluation attacks; of the class, as to build an EvalSpec takes long for a command's start.
USUAL = {name: EvalSpec.model_fields[name].default for name in ("pgd_images", "autoattack_images", "curve_images")}

CORRUPTION_IMAGES: dict[Level, int] = {"quick": 100, "standard": 1000, "full": 1000}  # each in 75 forms


def quick_images(protocols: dict[str, Any]) -> dict[str, Any]:
    """How many images a quick evaluation attacks, under other protocols than USUAL has too: name -> class."""
    others = {
        name: protocol
        for name, protocol in protocols.items()
        if name not in USUAL["autoattack_images"] and "autoattack" in (protocol.attacks or ("autoattack",))
    }
    autoattack = {name: 32 if protocol.dear else 64 for name, protocol in others.items()}
    curve = {name: 100 for name, protocol in others.items() if protocol.dear}
    return {
        "pgd_images": USUAL["pgd_images"],
        "autoattack_images": USUAL["autoattack_images"] | autoattack,
        "curve_images": USUAL["curve_images"] | curve,
    }


QUICK_IMAGES = quick_images({})


def asked_images(options: Options, usual: dict[str, Any] = QUICK_IMAGES) -> dict[str, Any]:
    """What --attack-images changes in a quick EvalSpec. Raises UsageError.

    Of ``pgd`` and ``band`` (PGD on the heads of other penalties) there is one number. ``curve`` (PGD at the eps that
    are drawn only) and ``autoattack`` have one for each protocol; one without a protocol is for all that are not named.
    ``usual``: where none is asked for.
    """
    if not options.attack_images:
        return {}
    asked = [*usual["autoattack_images"], *asked_protocols(options)]
    images: dict[str, dict[str, int]] = {}
    for part in options.attack_images.split(","):
        name, equals, count = (word.strip() for word in part.partition("="))
        attack, dot, protocol = name.partition(".")
        right = attack in ("curve", "autoattack") or (attack in ("pgd", "band") and not dot)
        if part.strip() and not (equals and right and count.isdigit() and int(count)):
            expected = "pgd=100, curve=50, autoattack=32 or autoattack.multi_patch=16, with commas"
            raise UsageError(f"expected --attack-images such as {expected}, got {part.strip()!r}")
        if part.strip():
            known = dict.fromkeys([*registry.names("protocol"), *asked])
            if dot and protocol not in known:
                raise UsageError(unknown("protocol", protocol, known))
            images.setdefault(attack, {})[protocol] = int(count)
    fields: dict[str, Any] = {f"{name}_images": images.pop(name)[""] for name in ("pgd", "band") if name in images}
    for attack, counts in images.items():
        key = f"{attack}_images"
        all_protocols = dict.fromkeys(asked, counts[""]) if "" in counts else usual[key]
        fields[key] = all_protocols | {protocol: count for protocol, count in counts.items() if protocol}
    return fields


def fewer_images(options: Options, level: Level, protocols: dict[str, Any]) -> dict[str, int]:
    """What --attack-images changes at the other levels: protocol -> images of AutoAttack, where it is not ranked.

    What is ranked is attacked on the same images in every folder. The column beside it, which doubles the dearest part
    of a full evaluation, need not be. Raises UsageError.
    """
    if not options.attack_images:
        return {}
    columns = [name for name, protocol in protocols.items() if not protocol.ranked]
    images = asked_images(options, {"autoattack_images": {}, "curve_images": {}})
    parts = [part.partition("=")[0].strip() for part in options.attack_images.split(",") if part.strip()]
    if any(part not in [f"autoattack.{name}" for name in columns] for part in parts):
        known = ", ".join(f"autoattack.{name}" for name in columns) or "none, as all of these protocols are ranked"
        raise UsageError(
            f"expected --attack-images at --eval {level} for AutoAttack under a protocol that is not ranked ({known}), "
            f"got {options.attack_images!r}; the images of ranked numbers are fixed, at --eval quick alone they are not"
        )
    fewer: dict[str, int] = images.get("autoattack_images", {})  # none where it is commas alone
    return fewer


def evaluation(options: Options, dataset: Any, device: Any) -> EvalSpec:
    """How the encoders of this run are scored: the level's depth, the dataset's eps and crops. Raises UsageError."""
    level: Level = options.eval or dataset.level
    eps: tuple[float, ...] = asked_threats(options).radii.get("linf") or dataset.eps
    attacks = attack_fields(options)
    protocols = protocol_classes(options, level)
    quick = quick_images(protocols)
    fewer = {} if level == "quick" else fewer_images(options, level, protocols)
    main = [radius for radius in eps if abs(radius - dataset.main_eps) < 1e-9]
    if options.search == "tf32" and device.type != "cuda":
        raise UsageError(f"expected --search tf32 on a GPU, whose convolutions alone have it, got {device.type}")
    levels: dict[Level, dict[str, Any]] = {
        "quick": {"restarts": 1} | quick | asked_images(options, quick),
        "standard": {"restarts": 5, "pgd_images": None, "curve_images": {}, "band_images": 1000}
        | {"autoattack_images": dict.fromkeys(quick["autoattack_images"], 1000) | fewer},
        "full": {"restarts": 5, "pgd_images": None, "curve_images": {}, "band_images": 1000}
        | {"autoattack_images": fewer},
    }
    return EvalSpec(
        level=level,
        audit=options.audit or ("core" if level == "quick" else "full"),
        over_time=options.curve or ("off" if level == "quick" else "robust"),
        chunk=passes_at_once(device, options.image_size or getattr(dataset, "image_size", None)),
        budget_seconds=parse_seconds(options.eval_budget, "--eval-budget") if options.eval_budget else None,
        **attacks,
        eps=tuple(sorted(set(eps))),
        main_eps=main[0] if main else max(eps),
        protocols=tuple(protocols),
        own_protocols=own_protocols(options, protocols),
        protocol_settings=protocol_settings(options, level, dataset, protocols),
        corruption_images=CORRUPTION_IMAGES[level] if asked_threats(options).corruptions else 0,
        crops=dataset.crops,
        search=options.search,
        **levels[level],
    )


def passes_at_once(device: Any, side: int | None) -> int:
    """Encoder passes of one chunk: 2048 on a GPU, 512 on a CPU; fewer of images that are made larger than 32 pixels."""
    most, least = (2048, 32) if device.type == "cuda" else (512, 16)
    return most if side is None else min(most, max(least, most * 32**2 // side**2))
