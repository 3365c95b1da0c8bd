"""The threats of --threats and --eps: balls, and corruptions; what of them no image or no attack allows is refused."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.data.corruptions import check_size
from bench.names import CORRUPTIONS, check_apart
from bench.radius import parse_radius
from bench.spec import EvalSpec, Norm, UsageError


@dataclass(frozen=True)
class Threats:
    """``radii``: of each norm that has any, from the smallest. ``brought``: norms for which the attacks that were asked
    for bring their forms in them. ``corruptions``: whether images are corrupted too."""

    radii: dict[Norm, tuple[float, ...]] = field(default_factory=dict)
    brought: tuple[Norm, ...] = ()
    corruptions: bool = False


def parse_threats(eps: str | None, threats: str | None) -> Threats:
    """What the two options ask for together; neither: nothing of it. Raises UsageError.

    ``eps`` gives radii to attacks that are asked for by name; ``threats`` also brings their forms in its norms.

    >>> parse_threats(None, "linf:8/255,l2:0.5,corruptions").brought
    ('l2',)
    """
    words = [word.strip() for word in (threats or "").split(",")]
    corruptions = CORRUPTIONS in words
    balls = [word for word in words if word != CORRUPTIONS]
    named = parse_radii(",".join(balls)) if threats is not None and not (corruptions and not balls) else {}
    given = parse_radii(eps) if eps else {}
    for norm in given.keys() & named.keys():
        raise UsageError(f"expected the radii in {norm} once, got --eps {eps} and --threats {threats}")
    return Threats(given | named, tuple(norm for norm in named if norm != "linf"), corruptions)


def parse_radii(text: str) -> dict[Norm, tuple[float, ...]]:
    """The radii of a list by their norm, from the smallest; a norm of which none is given is not there. UsageError."""
    by_norm: dict[Norm, list[float]] = {}
    for part in text.split(","):
        if part.strip():
            norm, eps = parse_radius(part)
            by_norm.setdefault(norm, []).append(eps)
    if min((eps for radii in by_norm.values() for eps in radii), default=0) == 0:
        raise UsageError(f"expected eps above 0, got {text!r}; clean accuracy is always measured")
    for radii in by_norm.values():
        check_apart(radii)
    return {norm: tuple(sorted(set(radii))) for norm, radii in by_norm.items()}


def check_radii(norms: Mapping[str, Norm | None], radii: Mapping[Norm, tuple[float, ...]]) -> None:
    """Raises UsageError for an attack (name -> its norm, None where that is not known) without a radius, and for
    radii of a norm without an attack. In l-inf the data set has radii of its own."""
    for name, norm in norms.items():
        if norm is not None and norm not in ("linf", *radii):
            raise UsageError(f"expected radii in {norm} for the attack {name}, got none; add some to --eps: {norm}:0.5")
    for norm in radii:
        if norm != "linf" and not {norm, None} & set(norms.values()):
            raise UsageError(
                f"expected an attack in {norm} for the radii in {norm}, got {', '.join(norms)}; "
                f"--threats {norm}:0.5 brings those of pgd and autoattack"
            )


def check_images(spec: EvalSpec, shape: tuple[int, ...]) -> None:
    """Raises UsageError for threats that images of (C, H, W) pixels in [0, 1] do not allow: a radius in l2 that no two
    of them are apart, and corruptions of small ones."""
    diameter = math.sqrt(math.prod(shape))
    if spec.eps_l2 and max(spec.eps_l2) > diameter:
        size = " x ".join(map(str, shape))
        raise UsageError(
            f"expected radii in l2 of at most {diameter:.4g}, which is how far apart two images of {size} pixels can "
            f"be, got {max(spec.eps_l2):g}"
        )
    if spec.corruption_images:
        check_size(shape)
