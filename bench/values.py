"""The value of a setting, from the text of a command or a suite, held to the type of its field."""

import typing
from fractions import Fraction
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bench.usage import UsageError


def parse_setting(name: str, value: Any, kind: Any) -> Any:
    """The value as the type of its field; text may be 0.3, 8/255, or 0.3,1 for a pair. Raises UsageError.

    >>> parse_setting("steps", "7", int), parse_setting("scale", "0.2,1", tuple[float, float])
    (7, (0.2, 1.0))
    """
    given = value
    try:
        if isinstance(value, str):
            parts = [part.strip() for part in value.strip("()[] ").split(",")]
            numbers = [str(float(Fraction(part))) if part.count("/") == 1 else part for part in parts]
            value = tuple(numbers) if typing.get_origin(kind) is tuple else ",".join(numbers)
        return TypeAdapter(kind).validate_python(value)
    except (ValidationError, ValueError, ZeroDivisionError):
        expected = getattr(kind, "__name__", str(kind)) if typing.get_origin(kind) is None else str(kind)
        raise UsageError(f"expected {name} as {expected.replace('typing.', '')}, got {given!r}") from None
