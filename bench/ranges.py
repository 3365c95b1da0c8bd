"""The range of a setting that `bench tune` searches, as a method's file or a TOML file says it."""

import math
from typing import Any, Self

from pydantic import Field, model_validator

from bench.spec import Data, UsageError


class Range(Data):
    """Where the values of a setting are looked for: around its published value, between two bounds, or among choices.

    ``factor``: from the published value divided by it to that value times it, so that it moves with the value of a
    dataset or a subclass. ``low`` and ``high``: both belong to the range. ``log``: even in the logarithm.
    """

    unwritten = ("factor", "low", "high", "log", "choices")
    factor: float | None = Field(default=None, gt=1)
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[bool | int | float | str, ...] = ()

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        bounds = (self.low is not None) + (self.high is not None)
        kinds = (self.factor is not None) + bool(bounds) + bool(self.choices)
        if kinds != 1 or bounds == 1:
            raise ValueError("expected low and high, or factor, or choices")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"expected low below high, got {self.low:g} and {self.high:g}")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError("expected log beside a low above 0")
        if self.choices and (len(self.choices) < 2 or len(set(self.choices)) < len(self.choices)):
            raise ValueError("expected at least two choices, each once")
        return self

    def about(self, published: Any) -> Self:
        """The range of a setting whose published value this is: bounds in place of a factor. Raises UsageError."""
        if self.factor is None:
            return self
        low, high = sorted((rounded(published / self.factor), rounded(published * self.factor)))
        if low == high:
            raise UsageError(f"expected a factor that moves {published:g} in four digits, got {self.factor:g}")
        return type(self)(low=low, high=high, log=low > 0)

    def whole(self) -> Self:
        """The whole numbers of a range with bounds. Raises UsageError where there are fewer than two."""
        if self.low is None or self.high is None:
            return self
        low, high = math.ceil(self.low), math.floor(self.high)
        if low >= high:
            raise UsageError(f"expected a range with several whole numbers, got {self}")
        return type(self)(low=low, high=high, log=self.log and low > 0)

    def __contains__(self, value: Any) -> bool:
        """Whether a value lies in a range of bounds or choices."""
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low is not None and self.high is not None and self.low <= value <= self.high

    def on_border(self, value: Any) -> bool:
        """Whether a value lies within a twentieth of an end, as the search measures: a better one may lie beyond."""
        if self.low is None or self.high is None:
            return False
        scale = math.log if self.log else float
        place = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return not 0.05 <= place <= 0.95

    def __str__(self) -> str:
        if self.choices:
            return " or ".join(map(str, self.choices))
        if self.factor is not None:
            return f"a factor of {self.factor:g} about the published value"
        return f"{self.low:g} to {self.high:g}" + " in the logarithm" * self.log


def around(factor: float) -> Range:
    """From the published value divided by ``factor`` to that value times it, even in the logarithm."""
    return Range(factor=factor)


def between(low: float, high: float) -> Range:
    """From low to high, evenly."""
    return Range(low=low, high=high)


def log_range(low: float, high: float) -> Range:
    """From low to high, evenly in the logarithm."""
    return Range(low=low, high=high, log=True)


def rounded(value: float) -> float:
    """A value to four digits: what people can copy, and finer than any search of so few trials.

    >>> rounded(0.123456), rounded(1234567.0)
    (0.1235, 1235000.0)
    """
    return float(f"{value:.4g}")
