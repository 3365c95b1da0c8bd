"""The audit's own attacks, and the checks that are one (A9 to A13 of protocol 3.3): can the ranked number be beaten?

Attacks look at the first images of those that PGD and AutoAttack both saw, with draws of their own. Whether an image
stands is decided on what an attack returns; tensors of booleans are on the CPU.
"""

import functools
import time
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from attacks.common.base import Loss, cross_entropy, maximize, predicted, project, random_start
from attacks.common.package import load_package, traceless
from bench.audit.checks.subject import AuditCheck, Subject, soundness
from bench.random import stream
from bench.record import Check, Verdict
from bench.spec import AuditLevel, ThreatModel

# that are audited, at most: (level, whether an image is dear) -> images
IMAGES = {("core", False): 64, ("core", True): 32, ("full", False): 1000, ("full", True): 256}
EPS_GRID = (0, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1, 3 / 2, 2)  # times the main eps
QUERIES = 5000  # of Square for each image
DRAWS = 1000  # of noise for each image
# [P] of protocol 3.3: calibrated on tests/zoo
RISE, RISE_WARN, RISE_P = 0.03, 0.01, 0.01  # A9

Judge = Callable[[Subject, int], Check]


def judged(id: str, most: int = 1000, of_number: bool = True) -> Callable[[Judge], AuditCheck]:
    """Turn a judge of a subject's first n images, ``most`` at most, into a check that says what it cost.

    NOT_RUN without audited images. N/A where the number is 0 within its interval and the check is ``of_number``.
    """

    def decorate(judge: Judge) -> AuditCheck:
        @functools.wraps(judge)
        def check(subject: Subject) -> Check:
            if not subject.robust and of_number:
                return Check(id=id, verdict="N/A", note="the ranked number is 0 within its interval")
            n = min(IMAGES[subject.spec.audit, subject.dear], most, subject.audited)
            if n == 0:
                return Check(id=id, verdict="NOT_RUN", note="no image was attacked by both PGD and AutoAttack")
            before, began = subject.model.passes, time.monotonic()
            answer = judge(subject, n)
            cost = {"passes": subject.model.passes - before, "seconds": time.monotonic() - began}
            return answer.model_copy(update=cost)

        return check

    return decorate


def exceeds(count: int, n: int, share: float) -> bool:
    """Whether count/n is above a share for sure: at least 3 images, and Wilson's bound as in ``soundness``."""
    return n > 0 and count / n > share and soundness(count, n) == "FAIL"


def warn(condition: bool) -> Verdict:
    return "WARN" if condition else "PASS"


def places_of(mask: Tensor) -> Tensor:
    return mask.nonzero().flatten()


# ---------------------------------------------------------------- attacks


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest other logit minus that of the label, positive where misclassified. (B, K), (B,) -> (B,)."""
    own = labels[:, None]
    others = logits.scatter(1, own, -torch.inf)
    return others.max(dim=1).values - logits.gather(1, own).flatten()


def gradient(model: nn.Module, images: Tensor, labels: Tensor, chunk: int, loss: Loss = cross_entropy) -> Tensor:
    """Gradient of each image's own loss with respect to its pixels: (N, C, H, W)."""
    parts = []
    for x, y in zip(images.split(chunk), labels.split(chunk), strict=True):
        x = x.detach().requires_grad_()
        parts.append(torch.autograd.grad(loss(model(x), y).sum(), x)[0])
    return torch.cat(parts)


@torch.no_grad()
def scores(model: nn.Module, images: Tensor, chunk: int) -> Tensor:
    """Logits (N, K)."""
    return torch.cat([model(part) for part in images.split(chunk)])


def right(subject: Subject, images: Tensor) -> Tensor:
    """Which of these versions of the first images are classified as their labels say: (len(images),)."""
    return predicted(scores(subject.model, images, subject.chunk)).eq(subject.labels[: len(images)]).cpu()


def fgsm(subject: Subject, labels: Tensor) -> Tensor:
    """The first len(labels) images after one step of eps up the cross-entropy of ``labels`` (arXiv:1412.6572)."""
    clean = subject.images[: len(labels)]
    step = subject.eps * gradient(subject.model, clean, labels, subject.chunk).sign()
    return project(clean + step, clean, subject.eps)


def pgd(
    subject: Subject,
    check: str,
    attacked: Tensor,
    *,
    steps: int,
    eps: float | None = None,
    step: float | None = None,
    loss: Loss = cross_entropy,
) -> tuple[Tensor, Tensor]:
    """PGD with one random start on the images ``attacked`` (n,) of the first n: (which of them stand, cross-entropy).

    Both (n,), False and 0 for the others. ``eps``: the subject's; ``step``: a quarter of it. Starts depend on the check
    and on the place of an image alone, so runs of other steps, losses or eps under the same check are paired.
    """
    eps = subject.eps if eps is None else eps
    stands, losses = torch.zeros(len(attacked), dtype=torch.bool), torch.zeros(len(attacked))
    for number, ids in enumerate(torch.arange(len(attacked)).split(subject.chunk)):
        wanted = ids[attacked[ids]]
        if len(wanted) == 0:
            continue
        moved = maximize(
            subject.model,
            subject.images[ids[0] : ids[-1] + 1],
            subject.labels[ids[0] : ids[-1] + 1],
            ThreatModel(eps=eps),
            steps=steps,
            step=eps / 4 if step is None else step,
            loss=loss,
            generator=stream(subject.seed, "audit", check, number),
            attacked=attacked[ids],
        )[attacked[ids]]
        labels = subject.labels[wanted]
        logits = scores(subject.model, moved, subject.chunk)
        stands[wanted] = predicted(logits).eq(labels).cpu()
        losses[wanted] = cross_entropy(logits, labels).cpu()
    return stands, losses


def ascent(
    model: nn.Module,
    clean: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int,
    step: float,
    chunk: int,
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """PGD that goes on where an image is broken: (cross-entropy of every iterate (steps + 1, N), the best ones).

    From a random start, ``chunk`` images at once. The best iterate of an image, (N, C, H, W), is that of its highest
    loss: where a model is only just fooled, another one seldom is.
    """
    losses, best = [], []
    starts = random_start(clean, eps, generator)
    for images, x, y in zip(starts.split(chunk), clean.split(chunk), labels.split(chunk), strict=True):
        strongest, highest = images, torch.full((len(images),), -torch.inf, device=images.device)
        climbed = []
        for remaining in reversed(range(steps + 1)):
            images = images.detach().requires_grad_(remaining > 0)
            with torch.set_grad_enabled(remaining > 0):
                loss = cross_entropy(model(images), y)
            better = loss.detach() > highest
            strongest = torch.where(better[:, None, None, None], images.detach(), strongest)
            highest = torch.where(better, loss.detach(), highest)
            climbed.append(loss.detach())
            if remaining:
                slope = torch.autograd.grad(loss.sum(), images)[0]
                images = project(images.detach() + step * slope.sign(), x, eps)
        losses.append(torch.stack(climbed))
        best.append(strongest)
    return torch.cat(losses, dim=1).cpu(), torch.cat(best)


def silent_success(subject: Subject, place: int, *, steps: int, step: float, restarts: int, random_start: bool) -> bool:
    """Whether PGD meets a misclassified iterate of this image and returns one that is classified right."""
    image, label = subject.images[place : place + 1], subject.labels[place : place + 1]
    met: list[bool] = []

    def watched(logits: Tensor, labels: Tensor) -> Tensor:
        met.append(bool((predicted(logits) != labels).any()))
        return cross_entropy(logits, labels)

    moved = maximize(
        subject.model,
        image,
        label,
        ThreatModel(eps=subject.eps),
        steps=steps,
        step=step,
        restarts=restarts,
        random_start=random_start,
        loss=watched,
        generator=stream(subject.seed, "audit", "A8", place),
    )
    return any(met) and bool(predicted(scores(subject.model, moved, 1)).eq(label))


def corner(clean: Tensor, eps: float, generator: Generator) -> Tensor:
    """A uniformly drawn corner of the ball, then in [0, 1]; drawn on the CPU like every start."""
    signs = 2 * torch.randint(0, 2, clean.shape, generator=generator).to(clean) - 1
    return project(clean + eps * signs, clean, eps)


@torch.no_grad()
def noise(subject: Subject, check: str, places: Tensor, draws: int) -> Tensor:
    """Which of the images ``places`` (M,) noise breaks: half of the draws are corners of the ball, half uniform."""
    generator = stream(subject.seed, "audit", check)
    broken = torch.zeros(len(places), dtype=torch.bool)
    for ids in torch.arange(len(places)).split(subject.chunk):
        clean, labels = subject.images[places[ids]], subject.labels[places[ids]]
        at_once = max(1, subject.chunk // len(ids))
        for draw in (corner, random_start):
            for first in range(0, draws // 2, at_once):
                count = min(at_once, draws // 2 - first)
                moved = draw(clean.repeat(count, 1, 1, 1), subject.eps, generator)
                fooled = predicted(subject.model(moved)) != labels.repeat(count)
                broken[ids] |= fooled.view(count, -1).any(dim=0).cpu()
    return broken


def square(subject: Subject, check: str, places: Tensor, queries: int) -> Tensor:
    """Which of the images ``places`` (M,) Square (arXiv:1912.00049) breaks; the authors' code and settings."""
    seed = stream(subject.seed, "audit", check).initial_seed() % 2**31
    device = subject.images.device
    package = load_package()
    attack = package.AutoAttack(
        subject.model, norm="Linf", eps=subject.eps, seed=seed, version="standard", device=device
    ).square
    attack.n_queries = queries
    broken = torch.zeros(len(places), dtype=torch.bool)
    with traceless(subject.model, device), torch.no_grad():
        for ids in torch.arange(len(places)).split(subject.chunk):
            images, labels = subject.images[places[ids]], subject.labels[places[ids]]
            moved = attack.perturb(images, labels)
            broken[ids] = predicted(scores(subject.model, moved, subject.chunk)).ne(labels).cpu()
    return broken


# ---------------------------------------------------------------- the curve over eps


@judged("A9")
def monotone_in_eps(subject: Subject, n: int) -> Check:
    """Share of images that PGD-20 breaks at one eps and not at the next, over a grid of 0 to 2 times the main eps.

    Each eps is attacked anew from the same draws. FAIL above 3 % or where the accuracy rises (McNemar, one-sided,
    p < .01), WARN above 1 %. arXiv:1902.06705: success must increase with eps.
    """
    from scipy import stats

    correct = subject.correct[:n].cpu()
    robust, fell = correct, torch.zeros(n, dtype=torch.bool)
    inverted, lowest = torch.zeros(n, dtype=torch.bool), 1.0
    for eps in (factor * subject.eps for factor in EPS_GRID[1:] if factor * subject.eps <= 1):
        stands, _ = pgd(subject, "A9", correct, steps=20, eps=eps)
        rises, falls = stands & ~robust, robust & ~stands
        if rises.any():
            change = int(rises.sum()) + int(falls.sum())
            test = stats.binomtest(int(rises.sum()), change, alternative="greater")  # type: ignore[attr-defined]
            lowest = min(lowest, float(test.pvalue))
        robust, inverted = stands, inverted | rises
        if eps <= subject.eps:
            fell |= correct & ~stands
    subject.breaks("A9", places_of(fell))
    count = int(inverted.sum())
    failed = lowest < RISE_P or exceeds(count, n, RISE)
    return Check(
        id="A9",
        verdict="FAIL" if failed else warn(exceeds(count, n, RISE_WARN)),
        value=count / n,
        threshold="FAIL > 3 % or a rise with p < 0.01, WARN > 1 %",
        n=n,
        note=f"smallest p of a rise: {lowest:.3g}",
    )


def survivors(subject: Subject, check: str, n: int, eps: float) -> Tensor:
    """Which of the first n images stand under the ranked attacks and at a large ``eps``: PGD-100 of both losses."""
    standing = subject.standing[:n].cpu()
    for loss in (cross_entropy, margin):
        standing, _ = pgd(subject, check, standing, steps=100, eps=eps, step=2.5 * eps / 100, loss=loss)
    return standing


@judged("A10", most=256)
def unbounded_attack_wins(subject: Subject, n: int) -> Check:
    """Share of images that stand under PGD-100 at eps = 1, with cross-entropy and with the margin.

    Every image can be any other, so the rule of ``soundness`` holds for survivors: FAIL at 3 images or more, WARN at
    any (arXiv:1902.06705; IoAF I6).
    """
    count = int(survivors(subject, "A10", n, 1.0).sum())
    return Check(id="A10", verdict=soundness(count, n), value=count / n, threshold="FAIL >= 3 images, WARN >= 1", n=n)


@judged("A11", most=256)
def grey_image_bound(subject: Subject, n: int) -> Check:
    """Accuracy under PGD-100 at eps = .5, where every image can become solid grey: FAIL above 1/C + 3 SE.

    SE = sqrt(p (1 - p) / n) with p = 1/C (arXiv:1902.06705).
    """
    chance = 1 / subject.classes
    bound = chance + 3 * (chance * (1 - chance) / n) ** 0.5
    value = int(survivors(subject, "A11", n, 0.5).sum()) / n
    return Check(
        id="A11", verdict="FAIL" if value > bound else "PASS", value=value, threshold=f"FAIL > {bound:.3f}", n=n
    )


# ---------------------------------------------------------------- without gradients


@judged("A12")
def black_box_not_better(subject: Subject, n: int) -> Check:
    """Share of images that Square breaks and no attack with gradients does.

    Where AutoAttack ran to its end, its own stages tell, and as the number counts these images already: WARN above
    .2 % and at least 2 images (AutoAttack's check_square_sr). Else Square runs on the survivors: ``soundness``.
    """
    result = subject.results.get(("autoattack", subject.eps))
    if result is not None and result.complete:
        standing = [count for _, count in result.stages]
        names = [name for name, _ in result.stages]
        at = names.index("square") if "square" in names else 0  # absent where nothing was left for it
        count, n = (standing[at - 1] - standing[at] if at else 0), result.total
        verdict = warn(count >= 2 and count / n > 0.002)
        threshold = "WARN >= 2 images and > 0.2 %"
    else:
        left = places_of(subject.standing[:n].cpu())
        broken = square(subject, "A12", left, QUERIES) if len(left) else left.bool()
        count = subject.breaks("A12", left[broken])
        verdict, threshold = soundness(count, n), "FAIL >= 3 images, WARN >= 1"
    return Check(id="A12", verdict=verdict, value=count / n, threshold=threshold, n=n, note=f"{count} images")


@judged("A13", most=100)
def noise_not_better(subject: Subject, n: int) -> Check:
    """Share of images that 1,000 draws of noise break, corners of the ball and uniform ones, and the ranked set does
    not: ``soundness`` (arXiv:1902.06705)."""
    left = places_of(subject.standing[:n].cpu())
    broken = noise(subject, "A13", left, DRAWS) if len(left) else left.bool()
    count = subject.breaks("A13", left[broken])
    return Check(id="A13", verdict=soundness(count, n), value=count / n, threshold="FAIL >= 3 images, WARN >= 1", n=n)


CHECKS: dict[str, tuple[AuditLevel, AuditCheck]] = {
    "A9": ("full", monotone_in_eps),
    "A10": ("full", unbounded_attack_wins),
    "A11": ("full", grey_image_bound),
    "A12": ("full", black_box_not_better),
    "A13": ("full", noise_not_better),
}
