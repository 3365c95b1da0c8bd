"""A23: what AutoAttack broke and PGD did not, where it is far more than on healthy encoders: masked gradients.

It judges PGD, not the ranked number, which counts these images as broken: a warning at most, and the curve over eps,
which PGD draws alone, is not to be believed. It looks at what was published, so it costs nothing.
"""

from bench.audit.checks.attacks import warn
from bench.audit.checks.subject import AuditCheck, Subject
from bench.record import Check
from bench.spec import AuditLevel

GAP, GAP_P = 0.10, 0.01  # [P]: calibrated on tests/zoo


def masking(subject: Subject) -> Check:
    """Accuracy under PGD minus that under AutoAttack, on all images that both saw: WARN above 10 points for sure.

    For sure is by the exact binomial test of the images against that share, one-sided, p < .01: of 64 images it takes
    13, of 1,000 it takes 124. On CIFAR, with PGD-50, runs of 8 points and more were suspects (arXiv:2604.22853); the
    PGD of the ranked set has 20 steps, so a little more is left to AutoAttack.
    """
    from scipy import stats

    pgd, autoattack = (subject.results.get((attack, subject.eps)) for attack in ("pgd", "autoattack"))
    n = min(pgd.total, autoattack.total) if pgd is not None and autoattack is not None else 0
    if pgd is None or autoattack is None or n == 0:
        return Check(id="A23", verdict="NOT_RUN", note="no image was attacked by both PGD and AutoAttack")
    weak, strong = (result.outcomes[:n].count("1") for result in (pgd, autoattack))
    more = weak - strong
    test = stats.binomtest(max(more, 0), n, GAP, alternative="greater")  # type: ignore[attr-defined]
    return Check(
        id="A23",
        verdict=warn(test.pvalue < GAP_P),
        value=more / n,
        threshold=f"WARN > {100 * GAP:g} points with p < {GAP_P:g}",
        n=n,
        note=f"PGD {weak}, AutoAttack {strong} of {n}",
    )


CHECKS: dict[str, tuple[AuditLevel, AuditCheck]] = {"A23": ("core", masking)}
