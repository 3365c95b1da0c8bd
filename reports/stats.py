"""Statistics of the tables, as pure functions of numbers."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z = NormalDist().inv_cdf(0.975)  # two-sided 95 %
DRAWS = 10_000  # of a bootstrap
OUTLIER = 3.0  # times the median seed sd: above it a method's sd is not pooled with the others'


def wilson(correct: float, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of the share ``correct / total``, in [0, 1]; (0, 1) where nothing was counted.

    ``correct`` need not be whole: it is ``mean accuracy * total`` where seeds share the same images.

    >>> [round(bound, 3) for bound in wilson(0, 64)]
    [0.0, 0.057]
    """
    if total == 0:
        return 0.0, 1.0
    share, weight = correct / total, Z * Z / total
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight * weight / 4) / (1 + weight)
    # at 0 and at 1 the bound is exact, and rounding must not move it
    return 0.0 if share == 0 else centre - half, 1.0 if share == 1 else centre + half


def discordant(first: ArrayLike, second: ArrayLike) -> tuple[int, int]:
    """(b, c): images (n,) of 0 and 1 on which only the ``first`` stands, and only the ``second``."""
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    return int((a & ~b).sum()), int((b & ~a).sum())


def mcnemar(b: int, c: int, alternative: Literal["two-sided", "greater", "less"] = "two-sided") -> float:
    """p of McNemar's exact test (binomial) on the discordant counts; ``greater``: b exceeds c. 1 without any.

    It speaks about two checkpoints, not about two methods (protocol 5.2).
    """
    from scipy.special import bdtr

    fewer = {"two-sided": min(b, c), "greater": c, "less": b}[alternative]
    tail = float(bdtr(fewer, b + c, 0.5))  # P(X <= fewer), which is P(X >= the other) as p is one half
    return min(1.0, 2 * tail) if alternative == "two-sided" else tail


def paired_bootstrap(first: ArrayLike, second: ArrayLike, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of ``first - second``, images (n,) drawn with replacement (protocol 5.2).

    Meant for outcomes and their means over seeds, which take few values: drawing n images is drawing how often each
    value occurs, which is multinomial.
    """
    values, counts = np.unique(np.asarray(first, dtype=float) - np.asarray(second, dtype=float), return_counts=True)
    total = int(counts.sum())
    means = np.random.default_rng(seed).multinomial(total, counts / total, size=draws) @ values / total
    lo, hi = np.quantile(means, (0.025, 0.975))
    return float(lo), float(hi)


def newcombe(correct: tuple[int, int], total: tuple[int, int]) -> tuple[float, float]:
    """95 % interval of the first share minus the second, of independent counts (Newcombe, 1998, method 10)."""
    (low, high), (other_low, other_high) = (wilson(*counts) for counts in zip(correct, total, strict=True))
    first, second = (k / n for k, n in zip(correct, total, strict=True))
    difference = first - second
    below, above = math.hypot(first - low, other_high - second), math.hypot(high - first, second - other_low)
    return difference - below, difference + above


def cohens_h(first: float, second: float) -> float:
    """Effect size of two shares in [0, 1] (Cohen, 1988): 0.2 is small, 0.5 medium, 0.8 large.

    >>> round(cohens_h(1, 0), 4)
    3.1416
    """
    return 2 * (math.asin(math.sqrt(first)) - math.asin(math.sqrt(second)))


def welch(a: ArrayLike, b: ArrayLike) -> tuple[float, float, float] | None:
    """(lo, hi, p): 95 % interval of mean(a) - mean(b) and its two-sided p, by Welch's t-test on at least two each.

    None where neither varies, since then there is no error to measure the difference by.
    """
    from scipy.special import stdtr, stdtrit

    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return None
    parts = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    se = math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    difference, half = float(a.mean() - b.mean()), float(stdtrit(freedom, 0.975)) * se
    return difference - half, difference + half, min(1.0, 2 * float(stdtr(freedom, -abs(difference) / se)))


def ratio_of_medians(a: ArrayLike, b: ArrayLike, draws: int = DRAWS, seed: int = 0) -> tuple[float, float, float]:
    """(ratio, lo, hi) of median(a) / median(b), numbers above 0, with its 95 % bootstrap interval (protocol 5.3)."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    generator = np.random.default_rng(seed)
    above, below = (np.median(x[generator.integers(len(x), size=(draws, len(x)))], axis=1) for x in (a, b))
    lo, hi = np.quantile(above / below, (0.025, 0.975))
    return float(np.median(a) / np.median(b)), float(lo), float(hi)


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Adjusted p values (Holm, 1979) of the family ``p`` (k,), in the same order: reject where at most alpha.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values)
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


@dataclass(frozen=True, eq=False)
class Spread:
    """Where the outcomes of one method vary (protocol 5.3)."""

    seeds: int
    per_image: NDArray[np.float64]  # q (n,): mean over seeds
    between_seeds: float  # s^2: variance of the seeds' accuracies on these images
    within_image: float  # w: variance over the seeds at one image, mean over images


def spread(outcomes: ArrayLike) -> Spread:
    """The parts of the variance of ``outcomes`` (S, n) of 0 and 1; ValueError with fewer than two seeds."""
    values = np.asarray(outcomes)
    seeds = len(values)
    if seeds < 2:
        raise ValueError(f"expected at least 2 seeds, got {seeds}: one seed has no variance")
    q = values.mean(axis=0)
    # the unbiased variance of S outcomes of 0 and 1 with mean q
    within = float((q * (1 - q)).mean()) * seeds / (seeds - 1)
    return Spread(seeds, q, float(values.mean(axis=1).var(ddof=1)), within)


def image_variance(a: Spread, b: Spread) -> float:
    """Variance over images of the two methods' true difference, at least 0; infinite for a single image.

    What the few seeds add to Var_i(q_A,i - q_B,i), w_A / S_A + w_B / S_B, is taken off: it is part of s^2 already.
    """
    if len(a.per_image) < 2:
        return math.inf
    seen = float((a.per_image - b.per_image).var(ddof=1))
    return max(0.0, seen - a.within_image / a.seeds - b.within_image / b.seeds)


@dataclass(frozen=True)
class Pool:
    """The methods whose seed variance is taken as one: s^2 and its degrees of freedom."""

    methods: frozenset[str]
    variance: float
    freedom: int


def pool_seeds(spreads: dict[str, Spread]) -> Pool:
    """s^2 weighted by S - 1, without methods whose seed sd is above 3 times the median (protocol 5.3 ii)."""
    sds = {name: math.sqrt(of_method.between_seeds) for name, of_method in spreads.items()}
    limit = OUTLIER * float(np.median(list(sds.values()))) if sds else 0.0
    inside = {name: of_method for name, of_method in spreads.items() if sds[name] <= limit}
    freedom = sum(of_method.seeds - 1 for of_method in inside.values())
    total = sum((of_method.seeds - 1) * of_method.between_seeds for of_method in inside.values())
    return Pool(frozenset(inside), total / freedom if freedom else 0.0, freedom)


def seed_image_error(a: str, b: str, spreads: dict[str, Spread], pool: Pool) -> tuple[float, float]:
    """(SE, degrees of freedom) of the difference of two methods, both sources of chance in it (protocol 5.3 ii).

    Unequal numbers of seeds: 2 s^2 / S becomes s^2 / S_A + s^2 / S_B. Outside the pool: Welch's, on the two own s^2.
    """
    one, two = spreads[a], spreads[b]
    if {a, b} <= pool.methods:
        parts, freedom = (pool.variance / one.seeds, pool.variance / two.seeds), float(pool.freedom)
    else:
        parts = one.between_seeds / one.seeds, two.between_seeds / two.seeds
        freedom = sum(parts) ** 2 / (parts[0] ** 2 / (one.seeds - 1) + parts[1] ** 2 / (two.seeds - 1))
    return math.sqrt(sum(parts) + image_variance(one, two) / len(one.per_image)), freedom


def seed_image_test(a: str, b: str, spreads: dict[str, Spread], pool: Pool) -> tuple[float, float]:
    """(SE, two-sided p) of the difference of two methods, from ``seed_image_error``."""
    from scipy.special import stdtr

    se, freedom = seed_image_error(a, b, spreads, pool)
    difference = abs(float((spreads[a].per_image - spreads[b].per_image).mean()))
    if se < 1e-12:  # no seed and no image differs from the others: what is left is the sign test over the images
        return 0.0, 1.0 if difference < 1e-12 else 2.0 ** (1 - len(spreads[a].per_image))
    return se, min(1.0, 2 * float(stdtr(freedom, -difference / se)))


def seed_image_interval(a: str, b: str, spreads: dict[str, Spread], pool: Pool) -> tuple[float, float]:
    """95 % interval of the difference of this one pair, not widened for others: difference +- t quantile * SE."""
    from scipy.special import stdtrit

    se, freedom = seed_image_error(a, b, spreads, pool)
    difference = float((spreads[a].per_image - spreads[b].per_image).mean())
    half = float(stdtrit(freedom, 0.975)) * se
    return difference - half, difference + half


def superiority(a: ArrayLike, b: ArrayLike) -> float:
    """P(A > B) that a run of A beats one of B, equal runs counted half, over all pairs of runs (Bouthillier, 2021).

    >>> superiority([3, 2], [2, 1])
    0.875
    """
    above = np.asarray(a, dtype=float)[:, None] - np.asarray(b, dtype=float)[None, :]
    return float(((above > 0) + 0.5 * (above == 0)).mean())


def pareto(points: ArrayLike) -> NDArray[np.bool_]:
    """Mask of the ``points`` (N, D) that no other point beats: as good on every axis, better on one. More is better.

    Equal points stand together; a point with a gap (NaN) is never on the front.

    >>> pareto([(1, 2), (2, 1), (1, 1)]).tolist()
    [True, True, False]
    """
    values = np.asarray(points, dtype=float)
    beaten = [bool(((values >= own).all(axis=1) & (values > own).any(axis=1)).any()) for own in values]
    mask: NDArray[np.bool_] = ~np.array(beaten, dtype=bool) & ~np.isnan(values).any(axis=1)
    return mask
