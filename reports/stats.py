"""Statistics of the tables, as pure functions of numbers."""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z = NormalDist().inv_cdf(0.975)  # two-sided 95 %


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
