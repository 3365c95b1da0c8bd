"""The radius of a ball, and the norm that it is measured in: from the text of a command, and as text."""

import math
from fractions import Fraction
from typing import Literal, get_args

from bench.usage import UsageError, unknown

Norm = Literal["linf", "l2"]
NORMS: tuple[Norm, ...] = get_args(Norm)


def parse_eps(text: str) -> float:
    """eps as a fraction of the pixel range from ``8/255`` or ``0.1``. Raises UsageError outside [0, 1]."""
    try:
        eps = float(Fraction(text.strip())) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"expected eps such as 8/255 or 0.1, got {text!r}") from None
    if not 0 <= eps <= 1:
        hint = f"; did you mean {text.strip()}/255?" if 1 < eps <= 255 and "/" not in text else ""
        raise UsageError(f"expected eps in [0, 1], got {text}{hint}")
    return eps


def format_eps(eps: float) -> str:
    """The shortest decimal where it is exact, else ``8/255`` where eps is a whole number of 255ths.

    >>> format_eps(8 / 255), format_eps(0.1), format_eps(0.0)
    ('8/255', '0.1', '0')
    """
    short = f"{eps:g}"
    whole = float(short) != eps and abs(eps * 255 - round(eps * 255)) < 1e-9
    return f"{round(eps * 255)}/255" if whole else short


def format_radius(norm: Norm, eps: float) -> str:
    """The radius for people, with its norm where that is not l-inf.

    >>> format_radius("linf", 8 / 255), format_radius("l2", 0.5)
    ('8/255', 'l2 0.5')
    """
    return format_eps(eps) if norm == "linf" else f"{norm} {format_eps(eps)}"


def parse_radius(text: str) -> tuple[Norm, float]:
    """(norm, eps) of ``8/255``, which is of l-inf, or ``l2:0.5``. Raises UsageError.

    >>> parse_radius("0.1"), parse_radius("l2:128/255") == ("l2", 128 / 255)
    (('linf', 0.1), True)
    """
    norm, colon, number = (part.strip() for part in text.rpartition(":"))
    if not colon or norm == "linf":
        return "linf", parse_eps(number)
    if norm not in NORMS:
        raise UsageError(unknown("norm", norm, NORMS))
    try:
        eps = float(Fraction(number)) if "/" in number else float(number)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"expected a radius in l2 such as l2:0.5 or l2:128/255, got {text.strip()!r}") from None
    if not 0 <= eps < math.inf:
        raise UsageError(f"expected a radius in l2 of at least 0, got {text.strip()}")
    return "l2", eps
