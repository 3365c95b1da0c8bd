"""What differs between what a folder was asked for and what it is asked for now, field by field, in words."""

from typing import Any

from bench.record import Manifest
from bench.spec import Budget, Data, RunSpec, format_eps

MOST = 4  # differences that are told
UNSET = object()


def changes(stored: Manifest, new: Manifest) -> str:
    """The first differences of two manifests, each ``eval.eps: 0.05 there, 0.1 now``; "" where they ask for the same.

    The time of an evaluation may differ: with another limit a run goes on in the same folder.
    """
    told = [alone("only there", stored, new), alone("only now", new, stored)]
    before, now = ({spec.name: flat(unlimited(spec)) for spec in manifest.runs} for manifest in (stored, new))
    both = [name for name in before if name in now]
    differing: dict[str, list[str]] = {}  # difference -> the runs that have it
    for name in both:
        for text in between(before[name], now[name]):
            differing.setdefault(text, []).append(name)
    told += [text if names == both else f"{text} ({', '.join(names)})" for text, names in differing.items()]
    told += between({"budget": stored.budget}, {"budget": new.budget}) if not differing else []
    told = [text for text in told if text]
    return "; ".join(told[:MOST]) + f"; and {len(told) - MOST} more" * (len(told) > MOST)


def unlimited(spec: RunSpec) -> RunSpec:
    """The run without a limit on the time of its evaluation."""
    return spec.model_copy(update={"eval": spec.eval.model_copy(update={"budget_seconds": None})})


def alone(where: str, manifest: Manifest, other: Manifest) -> str:
    """The runs that are asked for in one manifest and not in the other."""
    names = [spec.name for spec in manifest.runs if spec.name not in {run.name for run in other.runs}]
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return f"{where}: {', '.join(names[:MOST])}{more}" if names else ""


def between(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Each field of two flat dictionaries in which they differ."""
    fields = {**before, **now}
    pairs = {name: (before.get(name, UNSET), now.get(name, UNSET)) for name in fields}
    return [f"{name}: {said(name, a)} there, {said(name, b)} now" for name, (a, b) in pairs.items() if a != b]


def flat(value: Data | dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of every field of a record, and of the records and dictionaries in it."""
    fields = {name: getattr(value, name) for name in type(value).model_fields} if isinstance(value, Data) else value
    dotted: dict[str, Any] = {}
    for name, content in fields.items():
        nested = isinstance(content, dict | Data) and not isinstance(content, Budget)
        dotted |= flat(content, f"{prefix}{name}.") if nested else {f"{prefix}{name}": content}
    return dotted


def said(name: str, value: Any) -> str:
    """A value as the command line takes it, not too long."""
    if value in (None, UNSET, ()):
        return "none"
    if isinstance(value, tuple | list):
        return ",".join(said(name, item) for item in value)
    text = format_eps(value) if "eps" in name and isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
