"""Soundness of a ranked number (protocol 3.3): do gradients mean something, and did the published attack do its work?

A1, A2, A6 and A8 judge the number; A4, A5, A7 and A19 judge PGD, A16 to A18 the training: these warn at most.
A3, A7 and A22 are reported only.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.common.base import cross_entropy, predicted, random_start
from bench.audit.checks import attacks, probe
from bench.audit.checks.attacks import exceeds, judged, places_of, warn
from bench.audit.checks.subject import AuditCheck, Counted, Subject, soundness
from bench.random import stream
from bench.record import Check, EvalResult, Verdict
from bench.spec import AuditLevel

STABLE_DRAWS, STABLE_RADIUS = 100, 2 / 255  # A3, IoAF's gamma and r
ATTACK_SEEDS = 3  # A6
# [P] of protocol 3.3: calibrated on tests/zoo
GRADIENT_ERROR, GRADIENT_ERROR_WARN = 0.20, 0.05  # A2
FGSM_BEATS_PGD = 0.005  # A4
MORE_STEPS = 0.005  # A5
LAST_STEPS, LAST_CHANGE = 10, 0.05  # A7, both IoAF's
OVERFITTING = 0.20  # A16
ALIGNMENT = 0.5  # A17
LEAKING, LEAKING_P = 0.02, 0.01  # A18
LOSSES_DISAGREE = 0.10  # A19


def without_pgd(id: str) -> Check:
    return Check(id=id, verdict="NOT_RUN", note="PGD did not run at the main eps")


def published_pgd(subject: Subject) -> EvalResult | None:
    return subject.results.get(("pgd", subject.eps))


def stood(result: EvalResult, n: int) -> Tensor:
    """Which of the first n images stand in a published result: (n,)."""
    return torch.tensor([outcome == "1" for outcome in result.outcomes[:n]], dtype=torch.bool)


def pgd_settings(result: EvalResult) -> dict[str, Any]:
    """Steps, step in [0, 1] pixel units, restarts and start of a published PGD."""
    config = result.config
    step = config["absolute_step"] or config["relative_step"] * result.eps
    return {"steps": config["steps"], "step": step} | {name: config[name] for name in ("restarts", "random_start")}


# ---------------------------------------------------------------- gradients


@judged("A1")
def zero_gradients(subject: Subject, n: int) -> Check:
    """Share of correct images whose loss has no gradient at a random start, for cross-entropy or for the margin.

    It is zero, or NaN or infinite, which gives no direction either.

    FAIL above 1 %, WARN above 0. AutoAttack's check_zero_gradients; IoAF I1 (arXiv:2106.09947).
    """
    correct = places_of(subject.correct[:n].cpu())
    start = random_start(subject.images[correct], subject.eps, stream(subject.seed, "audit", "A1"))
    labels, zero = subject.labels[correct], torch.zeros(len(correct), dtype=torch.bool)
    for loss in (cross_entropy, attacks.margin):
        slope = attacks.gradient(subject.model, start, labels, subject.chunk, loss)
        size = slope.flatten(1).abs().sum(dim=1)
        zero |= (size.eq(0) | ~size.isfinite()).cpu()
    count, total = int(zero.sum()), len(correct)
    verdict: Verdict = "FAIL" if exceeds(count, total, 0.01) else warn(count > 0)
    return Check(id="A1", verdict=verdict, value=count / max(1, total), threshold="FAIL > 1 %, WARN > 0", n=total)


@judged("A2", most=64)
def gradients_mean_something(subject: Subject, n: int) -> Check:
    """Relative error of the slope in 4 random directions against central differences of .1/255, in float64: median.

    ``|[L(x+hd) - L(x-hd)]/2h - grad L . d| / (|grad L . d| + 1e-8)``, d a corner of the cube. FAIL above 20 %, WARN
    above 5 %: shattered gradients (Athalye et al., 2018, arXiv:1802.00420).
    """
    model, h = Counted(copy.deepcopy(subject.model.model).double()), 0.1 / 255
    images = subject.images[:n].double().clamp(h, 1 - h)  # so that both sides are images
    labels, generator = subject.labels[:n], stream(subject.seed, "audit", "A2")
    slope = attacks.gradient(model, images, labels, subject.chunk)
    errors = []
    for _ in range(4):
        direction = 2 * torch.randint(0, 2, images.shape, generator=generator).to(images) - 1
        up, down = (
            cross_entropy(attacks.scores(model, images + sign * h * direction, subject.chunk), labels)
            for sign in (1, -1)
        )
        expected = (slope * direction).flatten(1).sum(dim=1)
        error = ((up - down) / (2 * h) - expected).abs() / (expected.abs() + 1e-8)
        errors.append(error.nan_to_num(1.0, posinf=1e8))  # a slope that is none is wrong by all of it
    subject.model.passes += model.passes
    value = float(torch.stack(errors).median())
    verdict: Verdict = "FAIL" if value > GRADIENT_ERROR else warn(value > GRADIENT_ERROR_WARN)
    return Check(id="A2", verdict=verdict, value=value, threshold="FAIL > 20 %, WARN > 5 % (median)", n=n)


@judged("A3", most=100)
def stable_loss(subject: Subject, n: int) -> Check:
    """Mean relative change of the loss at 100 uniform draws within 2/255, each image's clipped at 1 (IoAF I2).

    ``|L(x+u) - L(x)| / |L(x)|``, Pintor et al., 2022, arXiv:2106.09947. Reported only.
    """
    images, labels = subject.images[:n], subject.labels[:n]
    generator = stream(subject.seed, "audit", "A3")
    loss = cross_entropy(attacks.scores(subject.model, images, subject.chunk), labels)
    change = torch.zeros_like(loss)
    for _ in range(STABLE_DRAWS):
        near = random_start(images, STABLE_RADIUS, generator)
        there = cross_entropy(attacks.scores(subject.model, near, subject.chunk), labels)
        change += (there - loss).abs() / loss.abs().clamp_min(1e-12) / STABLE_DRAWS
    value = float(change.clamp(max=1).mean())
    return Check(id="A3", verdict="PASS", value=value, threshold="reported only", n=n)


# ---------------------------------------------------------------- PGD


@judged("A4")
def iterative_beats_one_step(subject: Subject, n: int) -> Check:
    """Share of images that FGSM breaks and the published PGD does not; PGD's accuracy may not be the higher one.

    WARN above .5 % or at a higher accuracy (Carlini et al., 2019, arXiv:1902.06705).
    """
    pgd = published_pgd(subject)
    if pgd is None:
        return without_pgd("A4")
    standing, correct = stood(pgd, n), subject.correct[:n].cpu()
    one_step = correct & attacks.right(subject, attacks.fgsm(subject, subject.labels[:n]))
    subject.breaks("A4", places_of(correct & ~one_step))
    count = int((standing & ~one_step).sum())
    worse = int(standing.sum()) > int(one_step.sum())
    return Check(
        id="A4",
        verdict=warn(worse or exceeds(count, n, FGSM_BEATS_PGD)),
        value=count / n,
        threshold="WARN > 0.5 %, or PGD above FGSM",
        n=n,
        note=f"PGD {int(standing.sum())}, FGSM {int(one_step.sum())} of {n}",
    )


@judged("A5")
def more_steps_do_not_help(subject: Subject, n: int) -> Check:
    """Share of images that the same trajectories break between step 20 and step 100, of those that stand under PGD.

    WARN above .5 points (arXiv:1902.06705: more steps must not raise the success rate).
    """
    pgd = published_pgd(subject)
    if pgd is None:
        return without_pgd("A5")
    step, attacked = pgd_settings(pgd)["step"], stood(pgd, n)
    short, loss = attacks.pgd(subject, "A5", attacked, steps=20, step=step)
    long, long_loss = attacks.pgd(subject, "A5", attacked, steps=100, step=step)
    subject.breaks("A5", places_of(attacked & ~(short & long)))
    count, both = int((short & ~long).sum()), short & long
    gain = float((long_loss - loss)[both].mean()) if both.any() else 0.0
    return Check(
        id="A5",
        verdict=warn(exceeds(count, n, MORE_STEPS)),
        value=count / n,
        threshold="WARN > 0.5 points",
        n=n,
        note=f"mean loss gain of those that stand: {gain:.3g}",
    )


@judged("A6")
def more_restarts_do_not_help(subject: Subject, n: int) -> Check:
    """Spread of PGD over the draws of its start, in points: highest minus lowest accuracy of 3 runs, 1 restart each.

    They are the published PGD with other draws; it is left out itself, as it may have more restarts and what smaller
    eps broke. Images that they break and the ranked set does not: ``soundness`` (arXiv:1902.06705).
    """
    pgd = published_pgd(subject)
    if pgd is None:
        return without_pgd("A6")
    settings, correct = pgd_settings(pgd), subject.correct[:n].cpu()
    runs = [
        attacks.pgd(subject, f"A6 {run}", correct, steps=settings["steps"], step=settings["step"])[0]
        for run in range(ATTACK_SEEDS)
    ]
    count = subject.breaks("A6", places_of(correct & ~torch.stack(runs).all(dim=0)))
    standing = [int(run.sum()) for run in runs]
    return Check(
        id="A6",
        verdict=soundness(count, n),
        value=100 * (max(standing) - min(standing)) / n,
        threshold="FAIL >= 3 images, WARN >= 1",
        n=n,
        note=f"{', '.join(map(str, standing))} of {n} stand; {count} broken that the ranked set left",
    )


@judged("A7")
def optimisation_finished(subject: Subject, n: int) -> Check:
    """Share of the surviving images on which PGD still climbs after 100 steps, as many as A5 takes.

    It climbs if the running best of the loss, scaled to [0, 1], changes by more than .05 over the last 10 steps (IoAF
    I4, arXiv:2106.09947). Reported only: on healthy models the share is .43 to .90, as on broken ones.
    """
    pgd = published_pgd(subject)
    if pgd is None:
        return without_pgd("A7")
    surviving = places_of(stood(pgd, n))
    if len(surviving) == 0:
        return Check(id="A7", verdict="N/A", note="no image survives PGD")
    losses, _ = attacks.ascent(
        subject.model,
        subject.images[surviving],
        subject.labels[surviving],
        eps=subject.eps,
        steps=100,
        step=pgd_settings(pgd)["step"],
        chunk=subject.chunk,
        generator=stream(subject.seed, "audit", "A7"),
    )
    low, high = losses.amin(dim=0), losses.amax(dim=0)
    best = ((losses - low) / (high - low).clamp_min(1e-12)).cummax(dim=0).values
    count = int((best[-1] - best[-1 - LAST_STEPS] > LAST_CHANGE).sum())
    share, total = count / len(surviving), len(surviving)
    return Check(id="A7", verdict="PASS", value=share, threshold="reported only", n=total)


@judged("A8", most=8)
def silent_successes(subject: Subject, n: int) -> Check:
    """Share of images of which PGD meets a misclassified iterate and returns one that is classified right.

    The published settings run again, one image at a time, those first that the published PGD broke: only they have
    an iterate to lose. FAIL at any (IoAF I3, arXiv:2106.09947).
    """
    pgd = published_pgd(subject)
    if pgd is None:
        return without_pgd("A8")
    seen = min(subject.audited, len(pgd.outcomes))
    correct, standing = subject.correct[:seen].cpu(), stood(pgd, seen)
    chosen = torch.cat([places_of(correct & ~standing), places_of(correct & standing)])[:n].tolist()
    count = sum(attacks.silent_success(subject, place, **pgd_settings(pgd)) for place in chosen)
    value = count / max(1, len(chosen))
    return Check(id="A8", verdict="FAIL" if count else "PASS", value=value, threshold="FAIL > 0", n=len(chosen))


# ---------------------------------------------------------------- the training


@judged("A16", most=256, of_number=False)
def catastrophic_overfitting(subject: Subject, n: int) -> Check:
    """Accuracy under FGSM minus that under PGD-10: WARN above 20 points (Wong et al., 2020, arXiv:2001.03994)."""
    correct = subject.correct[:n].cpu()
    one_step = correct & attacks.right(subject, attacks.fgsm(subject, subject.labels[:n]))
    ten_steps, _ = attacks.pgd(subject, "A16", correct, steps=10)
    subject.breaks("A16", places_of(correct & ~(one_step & ten_steps)))
    more = int(one_step.sum()) - int(ten_steps.sum())
    note = f"FGSM {int(one_step.sum())}, PGD-10 {int(ten_steps.sum())} of {n}"
    verdict = warn(exceeds(more, n, OVERFITTING))
    return Check(id="A16", verdict=verdict, value=more / n, threshold="WARN > 20 points", n=n, note=note)


@judged("A17", most=256, of_number=False)
def gradient_alignment(subject: Subject, n: int) -> Check:
    """Mean cosine of the loss gradients at an image and at a uniform point of its ball: WARN below .5.

    GradAlign (Andriushchenko & Flammarion, 2020, arXiv:2007.02617).
    """
    images, labels = subject.images[:n], subject.labels[:n]
    near = random_start(images, subject.eps, stream(subject.seed, "audit", "A17"))
    here, there = (
        attacks.gradient(subject.model, x, labels, subject.chunk).double().flatten(1) for x in (images, near)
    )
    value = float(F.cosine_similarity(here, there, dim=1, eps=1e-30).mean())
    return Check(id="A17", verdict=warn(value < ALIGNMENT), value=value, threshold="WARN < 0.5", n=n)


@judged("A18", of_number=False)
def label_leaking(subject: Subject, n: int) -> Check:
    """Accuracy under FGSM with the true label minus that with the predicted one; and the former against clean accuracy.

    WARN above 2 points, or where FGSM raises the accuracy (McNemar, one-sided, p < .01). Kurakin et al., 2017,
    arXiv:1611.01236.
    """
    from scipy import stats

    logits = attacks.scores(subject.model, subject.images[:n], subject.chunk)
    clean = predicted(logits).eq(subject.labels[:n]).cpu()
    true, assumed = (
        attacks.right(subject, attacks.fgsm(subject, labels)) for labels in (subject.labels[:n], logits.argmax(1))
    )
    gained, lost = int((true & ~clean).sum()), int((clean & ~true).sum())
    rises = stats.binomtest(gained, max(1, gained + lost), alternative="greater")  # type: ignore[attr-defined]
    more = int(true.sum()) - int(assumed.sum())
    return Check(
        id="A18",
        verdict=warn(exceeds(more, n, LEAKING) or rises.pvalue < LEAKING_P),
        value=more / n,
        threshold="WARN > 2 points, or FGSM above clean with p < 0.01",
        n=n,
        note=f"FGSM minus clean: {gained - lost} images",
    )


# ---------------------------------------------------------------- losses, pixels


@judged("A19")
def losses_agree(subject: Subject, n: int) -> Check:
    """Share of images that PGD-50 breaks with the margin loss and not with cross-entropy, from the same starts.

    WARN above 10 %: cross-entropy saturates, and AutoAttack's number is the one to use (AutoAttack's flags).
    """
    correct = subject.correct[:n].cpu()
    entropy, _ = attacks.pgd(subject, "A19", correct, steps=50)
    both, _ = attacks.pgd(subject, "A19", entropy, steps=50, loss=attacks.margin)
    subject.breaks("A19", places_of(correct & ~both))
    count = int((entropy & ~both).sum())
    return Check(
        id="A19", verdict=warn(exceeds(count, n, LOSSES_DISAGREE)), value=count / n, threshold="WARN > 10 %", n=n
    )


@judged("A22")
def eight_bits(subject: Subject, n: int) -> Check:
    """Change of robust accuracy where every returned image is rounded to multiples of 1/255: reported only."""
    n = min([n, *map(len, subject.adversarial.values())])
    if not subject.adversarial or n == 0:
        return Check(id="A22", verdict="N/A", note="no adversarial images are at hand")
    exact = rounded = subject.correct[:n].cpu()
    for moved in subject.adversarial.values():
        moved = moved[:n].to(subject.images.device)
        exact = exact & attacks.right(subject, moved)
        rounded = rounded & attacks.right(subject, (moved * 255).round() / 255)
    value = (int(rounded.sum()) - int(exact.sum())) / n
    return Check(id="A22", verdict="PASS", value=value, threshold="reported only", n=n)


CHECKS: dict[str, tuple[AuditLevel, AuditCheck]] = (
    attacks.CHECKS
    | probe.CHECKS
    | {
        "A1": ("core", zero_gradients),
        "A2": ("core", gradients_mean_something),
        "A3": ("full", stable_loss),
        "A4": ("core", iterative_beats_one_step),
        "A5": ("full", more_steps_do_not_help),
        "A6": ("core", more_restarts_do_not_help),
        "A7": ("full", optimisation_finished),
        "A8": ("core", silent_successes),
        "A16": ("core", catastrophic_overfitting),
        "A17": ("core", gradient_alignment),
        "A18": ("full", label_leaking),
        "A19": ("core", losses_agree),
        "A22": ("core", eight_bits),
    }
)
