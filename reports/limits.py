"""What a leaderboard cannot see: the smallest difference that it finds, and how much of its order is chance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reports.claims import ALPHA, MARGIN, Outcomes, barred, standing
from reports.power import mcnemar_power
from reports.stats import discordant, pool_seeds, seed_image_error, spread

POWER = 0.8  # the share of tables that find a difference which they are said to find
SPLITS = 200  # of the images into two halves
STEP = 0.001  # of a difference between encoders


@dataclass(frozen=True)
class Limits:
    """``detectable``: the smallest difference between neighbours that is found with POWER; None where none is.
    ``kept``: the share of pairs that have the same order in two halves of the images. Both in [0, 1]."""

    detectable: float | None
    kept: float


def limits(methods: Sequence[Outcomes]) -> Limits | None:
    """Those of a table of ``methods``, ranked as they are; None for fewer than two.

    The level is that of Holm's strictest step. What is found between neighbours is the median over them: methods far
    apart differ on so many images that their test says little of close ones. The probe band, which can only take a
    claim away, is left out.
    """
    if len(methods) < 2:
        return None
    ordered = sorted(methods, key=lambda method: -method.accuracy)
    found = between_encoders(ordered) if standing(methods) else between_methods(ordered)
    return Limits(found, order_kept(np.stack([method.outcomes.mean(axis=0) for method in ordered])))


def between_methods(ordered: Sequence[Outcomes]) -> float | None:
    """The smallest difference of means over seeds that may be claimed and that the test of methods finds."""
    family = sum(not barred(a, b) for a, b in combinations(ordered, 2))
    spreads = {method.method: spread(method.outcomes) for method in ordered}
    pool = pool_seeds(spreads)
    errors = [seed_image_error(a.method, b.method, spreads, pool) for a, b in pairwise(ordered) if not barred(a, b)]
    found = [se * shift_found(df, ALPHA / family) for se, df in errors if se > 0 and math.isfinite(df)]
    return max(MARGIN, float(np.median(found))) if found else None


def shift_found(freedom: float, level: float) -> float:
    """The difference, in standard errors, at which a two-sided t-test of this level has POWER (noncentral t)."""
    from scipy.special import nctdtrinc, stdtrit

    return float(nctdtrinc(freedom, 1 - POWER, stdtrit(freedom, 1 - level / 2)))


def between_encoders(ordered: Sequence[Outcomes]) -> float | None:
    """The smallest difference that McNemar's exact test finds at every seed that both have; None where it finds none.

    As many images change between the two as between neighbours of the table.
    """
    family = sum(len({*a.seeds} & {*b.seeds}) for a, b in combinations(ordered, 2))
    shared = [(a, b, seed) for a, b in pairwise(ordered) for seed in sorted({*a.seeds} & {*b.seeds})]
    pairs = [discordant(a.outcomes[a.seeds.index(s)], b.outcomes[b.seeds.index(s)]) for a, b, s in shared]
    images = ordered[0].outcomes.shape[1]
    share = float(np.median([sum(pair) for pair in pairs])) / images if pairs else 0.0
    if not share:
        return None
    at_each = POWER ** ((len(ordered) - 1) / len(shared))  # a pair is told apart where every seed says so
    steps = math.floor(share / STEP)
    low, high = 0, steps + 1  # the power grows with the difference: found at ``high`` steps, not at ``low``
    while high - low > 1:
        middle = (low + high) // 2
        seen = mcnemar_power(images, share, middle * STEP, ALPHA / family / 2) >= at_each
        low, high = (low, middle) if seen else (middle, high)
    return high * STEP if high <= steps else None


def order_kept(per_image: NDArray[np.float64]) -> float:
    """The share of pairs that keep their order between two random halves of the images, over SPLITS of them.

    ``per_image`` (M, n): what stands of each image, a mean over seeds. A pair that is equal in one half only has not
    kept it.
    """
    generator = np.random.Generator(np.random.PCG64(0))
    count = per_image.shape[1]
    first = generator.random((SPLITS, count)).argsort(axis=1) < count // 2
    halves = [mask.astype(float) @ per_image.T / max(1, int(mask[0].sum())) for mask in (first, ~first)]
    rows, columns = np.triu_indices(len(per_image), 1)
    signs = [np.sign(np.round(half[:, rows] - half[:, columns], 12)) for half in halves]
    return float((signs[0] == signs[1]).mean())


def sentence(line: Any) -> str:
    """What a leaderboard says of itself, from one of its lines; "" where it compares nothing."""
    if pd.isna(line.get("order_kept")):
        return ""
    if pd.isna(line["detectable"]):
        found = "Between neighbours this table would find no difference: too few images differ, or none may be compared"
    else:
        size, share = f"{100 * line['detectable']:.1f} points", f"{100 * POWER:.0f} %"
        found = f"Between neighbours this table would find a true difference of {size} in {share} of repetitions"
    order = f"{100 * line['order_kept']:.0f} % of its pairs keep their order between two halves of the images"
    return f"{found}; {order}."
