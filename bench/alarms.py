"""What the course of a robust training warns of: no robustness half way, or robustness that was lost again.

It looks at the points of a curve, held-out training images under PGD (bench.evaluation.curve), and asks for no other.
"""

from collections.abc import Sequence
from typing import NamedTuple

from bench.record import TrainResult

HALF = 0.5  # of the last stage
SURE = 0.01  # p of Fisher's exact test, below which a loss of robustness is no chance


class Judged(NamedTuple):
    """A snapshot of a training, as far as an alarm looks at it."""

    percent: int  # of the budget
    spent: float  # share of the last stage
    right: int  # images that stand PGD
    total: int


def stage_share(result: TrainResult, updates: int) -> float:
    """The share of the last stage, which is the one with the adversary, that is spent after so many updates.

    Below 0 before it has begun: what is there then is a teacher, for example.
    """
    first = int(result.stages[-1]["first_update"]) if result.stages else 0
    return (updates - first) / max(result.updates - first, 1)


def alarm(adversary: str, course: Sequence[Judged]) -> str:
    """A sentence, or "" where all is well. ``course``: the snapshots in their order.

    Half way without one image that stands says that a robust method is not learning robustness; later snapshots of
    which fewer than half as many stand as before say that it was lost, as in the catastrophic overfitting of one-step
    attacks (Wong et al., 2020, arXiv:2001.03994).

    >>> alarm("pgd", [Judged(25, 0.25, 0, 200), Judged(50, 0.5, 0, 200)])
    'at 50 % of the budget none of 200 held-out training images stands PGD: it may be learning no robustness'
    >>> alarm("pgd", [Judged(50, 0.5, 90, 200), Judged(100, 1.0, 3, 200)])
    'of 90 held-out training images that stood PGD at 50 % of the budget, 3 are left at 100 %: robustness was lost'
    """
    course = [seen for seen in course if seen.spent > 0]
    if adversary == "none":
        return ""
    half = next((seen for seen in course if seen.spent >= HALF), None)
    if half is not None and half.right == 0:
        return (
            f"at {half.percent} % of the budget none of {half.total} held-out training images stands PGD: "
            "it may be learning no robustness"
        )
    for place, later in enumerate(course):
        best = max(course[:place], key=lambda seen: seen.right / seen.total, default=None)
        if best is not None and fell(best, later):
            return (
                f"of {best.right} held-out training images that stood PGD at {best.percent} % of the budget, "
                f"{later.right} are left at {later.percent} %: robustness was lost"
            )
    return ""


def fell(before: Judged, after: Judged) -> bool:
    """Whether the share after is below half of that before, and below it for sure."""
    from scipy import stats

    if after.right / after.total >= before.right / before.total / 2:
        return False
    table = [[seen.right, seen.total - seen.right] for seen in (before, after)]
    return bool(stats.fisher_exact(table, alternative="greater").pvalue < SURE)
