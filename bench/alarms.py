"""What the course of a robust training warns of: no robustness half way, or robustness that was lost again.

It looks at held-out training images under PGD (bench.evaluation.curve), so it costs nothing, and no test image.
"""

from collections.abc import Mapping

HALF = 50  # percent of the budget
SURE = 0.01  # p of Fisher's exact test, below which a loss of robustness is no chance


def alarm(adversary: str, course: Mapping[int, tuple[int, int]]) -> str:
    """A sentence, or "" where all is well. ``course``: percent of the budget -> (images that stand PGD, all of them).

    Half way without one image that stands says that a robust method is not learning robustness; later snapshots of
    which fewer than half as many stand as before say that it was lost, as in the catastrophic overfitting of one-step
    attacks (Wong et al., 2020, arXiv:2001.03994).

    >>> alarm("pgd", {25: (0, 200), 50: (0, 200)})
    'at 50 % of the budget none of 200 held-out training images stands PGD: it may be learning no robustness'
    >>> alarm("pgd", {50: (90, 200), 100: (3, 200)})
    'of 90 held-out training images that stood PGD at 50 % of the budget, 3 are left at 100 %: robustness was lost'
    >>> alarm("pgd", {50: (10, 200), 100: (4, 200)}), alarm("none", {50: (0, 200)})
    ('', '')
    """
    if adversary == "none":
        return ""
    right, total = course.get(HALF, (1, 0))
    if right == 0:
        return (
            f"at {HALF} % of the budget none of {total} held-out training images stands PGD: it may be learning no "
            "robustness"
        )
    for later, (left, judged) in sorted(course.items()):
        before = {percent: count for percent, count in course.items() if percent < later}
        best = max(before, key=lambda percent: before[percent][0] / before[percent][1], default=None)
        if best is not None and fell(before[best], (left, judged)):
            return (
                f"of {before[best][0]} held-out training images that stood PGD at {best} % of the budget, {left} are "
                f"left at {later} %: robustness was lost"
            )
    return ""


def fell(before: tuple[int, int], after: tuple[int, int]) -> bool:
    """Whether the share after is below half of that before, and below it for sure."""
    from scipy import stats

    (stood, of), (stands, judged) = before, after
    if stands / judged >= stood / of / 2:
        return False
    table = [[stood, of - stood], [stands, judged - stands]]
    return bool(stats.fisher_exact(table, alternative="greater").pvalue < SURE)
