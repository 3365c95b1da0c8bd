"""The tests of the regression gate over seeds, and the smallest drop that each of its tests can see."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL_FIXED = 0.001  # of G1, one-sided, after Holm
LEVEL_RETRAINED = 0.01  # of G2, likewise
POWER = 0.75  # the share of such drops that the first look sees, where a smallest drop is named
DISCORDANCE = 0.05  # share of images that change their outcome, up or down, in that promise


@dataclass(frozen=True)
class TTest:
    """A pooled t-test of two samples, in their unit: mean after minus mean before, and both one-sided p."""

    difference: float
    error: float  # of the difference
    freedom: int
    fall: float
    rise: float


def t_test(before: Sequence[float], after: Sequence[float], least_sd: float) -> TTest:
    """Student's t-test, at least three values in all; the sd is taken as ``least_sd`` where it is smaller.

    Counts are whole, so a sample without any spread is no proof that the next seed gives the same count.
    """
    from scipy.special import stdtr

    freedom = len(before) + len(after) - 2
    squares = sum(float(np.var(sample)) * len(sample) for sample in (before, after))
    sd = max(math.sqrt(squares / freedom), least_sd)
    error = sd * math.sqrt(1 / len(before) + 1 / len(after))
    difference = float(np.mean(after) - np.mean(before))
    fall, rise = (float(stdtr(freedom, sign * difference / error)) for sign in (1, -1))
    return TTest(difference, error, freedom, fall, rise)


def smallest_fall(before: Sequence[float], seeds: int, tests: int, least_sd: float) -> float:
    """The fall of the mean that ``POWER`` of the runs with so many seeds alarm at, in a family of so many tests."""
    from scipy.special import stdtrit

    freedom = len(before) + seeds - 2
    sd = max(float(np.std(before, ddof=1)), least_sd)
    error = sd * math.sqrt(1 / len(before) + 1 / seeds)
    return float(stdtrit(freedom, 1 - LEVEL_RETRAINED / tests) + stdtrit(freedom, POWER)) * error


def mcnemar_power(images: int, discordance: float, drop: float, level: float) -> float:
    """The chance that the exact one-sided test is below ``level``; exact, over all numbers of discordant images.

    ``discordance`` is the share of images that change, ``drop`` that of those that fall minus those that rise.

    >>> round(mcnemar_power(1000, 0.05, 0.03, 0.001), 2)
    0.89
    """
    from scipy.stats import binom  # type: ignore[attr-defined]

    changed = np.arange(images + 1)
    weight = binom.pmf(changed, images, discordance)
    changed, weight = changed[weight > 1e-12], weight[weight > 1e-12]
    # the fewest falls that are significant: P(at least so many of n fair coins) < level
    fewest = binom.isf(level, changed, 0.5) + 1
    fewest = np.where(binom.sf(fewest - 1, changed, 0.5) < level, fewest, fewest + 1)
    share = (discordance + drop) / (2 * discordance)
    return float(weight @ binom.sf(fewest - 1, changed, share))


def smallest_drop(images: int, level: float, discordance: float = DISCORDANCE) -> float:
    """The smallest drop, in steps of 0.1 points, that the exact test sees with ``POWER``; 1 where it sees none."""
    steps = np.arange(1, round(1000 * discordance) + 1) / 1000
    seen = (float(drop) for drop in steps if mcnemar_power(images, discordance, float(drop), level) >= POWER)
    return next(seen, 1.0)
