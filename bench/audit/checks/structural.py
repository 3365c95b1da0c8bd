"""Tier 0 of the audit (protocol 3.2): was the number made by this model, on these images, inside this ball?

S1 to S16 run on every ranked number. Evidence that is missing raises LookupError, which the audit takes as NOT_RUN.
"""

import contextlib
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from attacks.common.base import config_hash, cross_entropy, maximize, predicted
from bench.audit.checks.company import company, difference, small_batches
from bench.audit.checks.subject import AuditCheck, Counted, Subject, soundness
from bench.evaluation.search import TOLERANCE, predict
from bench.evaluation.traces import Before
from bench.random import stream
from bench.record import Check, EvalResult, Verdict
from bench.spec import AuditLevel, ThreatModel

REACHED_FAIL, REACHED_WARN = 0.90, 0.99  # S3
SAME, SAME_IMAGES = 1e-5, 256  # S7, of the largest logit
PROBABILITY = 1e-5  # S9: AutoAttack's check_range_output
REPEATS, REPEATED_IMAGES, REPEATED = 5, 250, 1e-4  # S10: AutoAttack's check_randomized
FLIPS_GPU = 0.0005  # S5: the share of images that float sums of another order may move


def verdict(fine: bool) -> Verdict:
    return "PASS" if fine else "FAIL"


def ranked(subject: Subject) -> list[EvalResult]:
    """The published results of PGD and AutoAttack at the main eps. Raises LookupError where one is missing."""
    results = [subject.results.get((attack, subject.eps)) for attack in ("pgd", "autoattack")]
    if None in results:
        raise LookupError(f"PGD and AutoAttack have no result at eps {subject.eps:.6g}")
    return [result for result in results if result is not None]


def clean(subject: Subject) -> EvalResult:
    """The published clean result. Raises LookupError."""
    if ("none", 0.0) not in subject.results:
        raise LookupError("clean accuracy has no result")
    return subject.results["none", 0.0]


def logits(subject: Subject, images: Tensor) -> Tensor:
    """(N, K), as an image is scored: no gradients, in chunks."""
    with torch.no_grad():
        return torch.cat([subject.model(part) for part in images.split(subject.chunk)])


# ---------------------------------------------------------------- which attack


def same_attack(subject: Subject) -> Check:
    """S1: the hash of each attack's configuration is that of the configuration which is stored beside it.

    Whether it is the same for all rows can only be seen in a table: the leaderboard ranks no rows of different hashes.
    """
    stale = [result.attack for result in ranked(subject) if config_hash(result.config) != result.config_hash]
    note = "+".join(result.config_hash for result in ranked(subject))
    return Check(id="S1", verdict=verdict(not stale), value=len(stale), threshold="0 hashes differ", n=2, note=note)


def ball_can_be_reached(subject: Subject) -> Check:
    """S2: steps x step / eps of PGD is at least 2 from a random start, 1 from the image. APGD starts at 2 eps."""
    pgd = ranked(subject)[0]
    step = pgd.config["absolute_step"] or pgd.config["relative_step"] * pgd.eps
    reach, needed = pgd.config["steps"] * step / pgd.eps, 2 if pgd.config["random_start"] else 1
    return Check(id="S2", verdict=verdict(reach >= needed - 1e-9), value=reach, threshold=f"at least {needed} eps", n=1)


def ball_was_reached(subject: Subject) -> Check:
    """S3: share of the images that stand under PGD whose best iterate is at least .99 eps away.

    FAIL below 90 %, WARN below 99 %. AutoAttack returns the clean image where it fails, so it is exempt.
    """
    moved = adversarial(subject)["pgd"]
    standing = torch.tensor([outcome == "1" for outcome in ranked(subject)[0].outcomes[: len(moved)]])
    n = int(standing.sum())
    threshold = f"at least {REACHED_FAIL:.0%} (WARN {REACHED_WARN:.0%})"
    if n == 0:
        return Check(id="S3", verdict="N/A", threshold=threshold, note="no image stands under PGD")
    distance = (moved - subject.images[: len(moved)].cpu())[standing].flatten(1).abs().amax(dim=1)
    short = int((distance < 0.99 * subject.eps).sum())
    share = 1 - short / n
    # the two conditions of protocol 3.1 hold for a percentage of a few images
    failed = share < REACHED_FAIL and soundness(short, n) == "FAIL"
    ruling: Verdict = "FAIL" if failed else "WARN" if share < REACHED_WARN else "PASS"
    return Check(id="S3", verdict=ruling, value=share, threshold=threshold, n=n)


def in_threat_model(subject: Subject) -> Check:
    """S4: images that the ranked attacks returned outside the ball (by over 1e-6) or [0, 1], or not finite: none."""
    outside, n = 0, 0
    for moved in adversarial(subject).values():
        images = subject.images[: len(moved)].cpu()
        far = (moved - images).abs() > subject.eps + TOLERANCE
        bad = far | (moved < -TOLERANCE) | (moved > 1 + TOLERANCE) | ~moved.isfinite() | (images < 0) | (images > 1)
        outside, n = outside + int(bad.flatten(1).any(dim=1).sum()), n + len(moved)
    return Check(id="S4", verdict=verdict(outside == 0), value=outside, threshold="0 images outside", n=n)


def adversarial(subject: Subject) -> dict[str, Tensor]:
    """What PGD and AutoAttack returned, on the CPU. Raises LookupError where it was not kept."""
    missing = {"pgd", "autoattack"} - subject.adversarial.keys()
    if missing:
        raise LookupError(f"no images are kept of {', '.join(sorted(missing))}")
    return {attack: images.cpu() for attack, images in subject.adversarial.items()}


# ---------------------------------------------------------------- which model


def right_weights(subject: Subject) -> Check:
    """S5: encoder and probe have the hashes of the run's log; the outcomes on clean images come out again.

    Equal for all images on the CPU; on a GPU up to 1 image or .05 % of them may differ (RobustBench's bound).
    """
    for name in ("encoder", "probe"):
        if not subject.stored.get(name):
            raise LookupError(f"the log has no hash of the {name}")
    changed = [name for name in ("encoder", "probe") if subject.stored[name] != subject.loaded.get(name)]
    published, n = clean(subject).outcomes, len(subject.images)
    right = predict(subject.model, subject.images, subject.chunk).eq(subject.labels).tolist()
    flips = sum(bool(now) != (then == "1") for now, then in zip(right, published, strict=True))
    allowed = 0 if subject.images.device.type == "cpu" else max(1, round(FLIPS_GPU * n))
    note = f"other {' and '.join(changed)} than stored" if changed else ""
    fine = not changed and flips <= allowed
    return Check(id="S5", verdict=verdict(fine), value=flips, threshold=f"at most {allowed} flips", n=n, note=note)


def evaluation_mode(subject: Subject) -> Check:
    """S6: every module is in eval mode, and an attack leaves model and process unchanged (bench.evaluation.traces)."""
    model = subject.model.model
    training = sum(module.training for module in model.modules())
    before = Before(model)
    attack(subject, 16)
    changed = {name for name in before.traces() if name != "generators"}
    changed |= {trace for result in subject.results.values() for trace in result.traces if trace != "generators"}
    note = f"changed: {', '.join(sorted(changed))}" if changed else ""
    fine = not training and not changed
    return Check(id="S6", verdict=verdict(fine), value=training, threshold="0 modules in train mode", n=16, note=note)


def attack(subject: Subject, count: int) -> Tensor:
    """Two steps of PGD on the first ``count`` images, with draws of their own."""
    images, labels = subject.images[:count], subject.labels[:count]
    generator = stream(subject.seed, "audit", "S6")
    threat = ThreatModel(eps=subject.eps)
    return maximize(subject.model, images, labels, threat, steps=2, step=subject.eps, generator=generator)


def same_function(subject: Subject) -> Check:
    """S7: the largest difference of logits between the attacked function (gradients, another order, small batches of
    several sizes) and the scored one (batches as large as those of the evaluation), relative to the largest logit.

    At most 1e-5 on up to 256 clean images, with noise beside them where they are few (IoAF I5). What is above that in
    float32 is asked again in float64: there rounding, which depends on a device's kernels for a batch, is gone.
    """
    most = SAME_IMAGES // 4 if subject.dear else SAME_IMAGES
    images = company(subject, "S7", max(most, subject.chunk))
    value = apart(subject.model, images, most, subject.chunk)
    if value > SAME:
        with contextlib.suppress(Exception):  # a model that has no float64 is judged in float32
            exact = Counted(copy.deepcopy(subject.model.model).double()).eval()
            value = min(value, apart(exact, images.double(), most, subject.chunk))
            subject.model.passes += exact.passes
    count = min(most, len(subject.images))
    return Check(id="S7", verdict=verdict(value <= SAME), value=value, threshold=f"at most {SAME:g}", n=count)


def apart(model: nn.Module, images: Tensor, most: int, chunk: int) -> float:
    """How far the first ``most`` images, attacked in small batches, are from all of them scored in chunks."""
    with torch.no_grad():
        scored = torch.cat([model(part) for part in images.split(chunk)])
    largest, value = float(scored.abs().max()), 0.0
    for ids in small_batches(min(len(images), most)):
        attacked = model(images[ids].clone().requires_grad_())
        cross_entropy(attacked, attacked.detach().argmax(dim=1)).sum()  # the graph is built, as in an attack
        value = max(value, difference(attacked.detach(), scored[ids], largest))
    return value


def every_image_once(subject: Subject) -> Check:
    """S8: each result has as many outcomes as its attack was given, all of the test set for clean accuracy, and
    images and labels have the hash that was recorded when they were loaded."""
    if not subject.stored.get("test"):
        raise LookupError("the record has no hash of the test set")
    wrong = [r.attack for r in subject.results.values() if r.total != r.config.get("images")]
    wrong += ["clean"] * (clean(subject).total != len(subject.images))
    other = subject.stored["test"] != subject.loaded.get("test")
    fine = not wrong and not other
    return Check(
        id="S8",
        verdict=verdict(fine),
        value=len(wrong),
        threshold="0 results of other images",
        n=len(subject.images),
        note="the test set is another than the one recorded" if other else ", ".join(wrong),
    )


def logits_not_probabilities(subject: Subject) -> Check:
    """S9: outputs are no probabilities, which would saturate every loss: not all in [0, 1] with sum 1, within 1e-5."""
    outputs = logits(subject, subject.images[:SAME_IMAGES])
    outputs = outputs[outputs.isfinite().all(dim=1)]  # of the others S16 speaks
    if len(outputs) == 0:
        return Check(id="S9", verdict="N/A", note="no image has finite logits")
    distance = max(
        float((-outputs).max().clamp_min(0)),
        float((outputs - 1).max().clamp_min(0)),
        float((outputs.sum(dim=1) - 1).abs().max()),
    )
    threshold = f"{PROBABILITY:g} or further from probabilities"
    return Check(id="S9", verdict=verdict(distance >= PROBABILITY), value=distance, threshold=threshold, n=len(outputs))


def deterministic(subject: Subject) -> Check:
    """S10: 5 runs over 250 images (a quarter where they are dear) count the same, and no logits, scaled to length 1,
    differ by over 1e-4."""
    count = REPEATED_IMAGES // 4 if subject.dear else REPEATED_IMAGES
    images, labels = subject.images[:count], subject.labels[:count]
    # of images without finite logits S16 speaks; they have to have none each time
    runs = [logits(subject, images).nan_to_num(0.0, 0.0, 0.0) for _ in range(REPEATS)]
    counts = {int(predicted(run).eq(labels).sum()) for run in runs}
    unit = [run / run.norm(dim=1, keepdim=True).clamp_min(1e-12) for run in runs]
    difference = max(float((run - unit[0]).norm(dim=1).max()) for run in unit)
    fine = len(counts) == 1 and difference <= REPEATED
    note = "" if len(counts) == 1 else f"correct counts {sorted(counts)}"
    threshold = f"at most {REPEATED:g}"
    return Check(id="S10", verdict=verdict(fine), value=difference, threshold=threshold, n=len(images), note=note)


def no_optimisation(subject: Subject) -> Check:
    """S11: calls of autograd inside the forward pass: none (AutoAttack's check_dynamic, without its trace function)."""
    images = subject.images[: subject.chunk]
    with autograd_calls() as calls, torch.enable_grad():
        for part in (images[:1], images):  # alone, and in a batch of the evaluation
            subject.model(part)
    return Check(id="S11", verdict=verdict(not calls), value=len(calls), threshold="0 calls of autograd", n=len(images))


@contextmanager
def autograd_calls() -> Iterator[list[str]]:
    """The names of the functions of torch.autograd that are called inside, in a list that grows."""
    calls: list[str] = []
    # the last one is what both others, and names imported from there before, end in
    names = [name for name in ("backward", "grad", "_engine_run_backward") if hasattr(torch.autograd, name)]
    originals = {name: getattr(torch.autograd, name) for name in names}

    def counted(name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return originals[name](*args, **options)

        return call

    try:
        for name in names:
            setattr(torch.autograd, name, counted(name))
        yield calls
    finally:
        for name, original in originals.items():
            setattr(torch.autograd, name, original)


# ---------------------------------------------------------------- which numbers


def enough_classes(subject: Subject) -> Check:
    """S12: at least 10 classes for the full AutoAttack; below, N/A with the reduced ensemble that ran."""
    ensemble = ranked(subject)[1].config.get("ensemble", [])
    note = "" if subject.classes >= 10 else f"reduced to {', '.join(ensemble)}"
    ruling: Verdict = "PASS" if subject.classes >= 10 else "N/A"
    return Check(id="S12", verdict=ruling, value=subject.classes, threshold="at least 10 classes", n=1, note=note)


def numeric_mode(subject: Subject) -> Check:
    """S13: float32 decides (protocol 1.5): every module returns float32, TF32 is off, nothing is cast.

    The note counts images that the search broke in its own precision only; they were attacked again in float32.
    """
    kinds: set[str] = set()

    def note_kind(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            kinds.add(str(output.dtype).removeprefix("torch."))

    hooks = [module.register_forward_hook(note_kind) for module in subject.model.modules()]
    try:
        for part in (subject.images[:1], subject.images[: subject.chunk]):  # alone, and in a batch of the evaluation
            logits(subject, part)
    finally:
        for hook in hooks:
            hook.remove()
    other = sorted(kinds - {"float32"})
    if torch.backends.cudnn.allow_tf32 and subject.images.device.type == "cuda":
        other.append("tf32 convolutions")
    if torch.backends.cuda.matmul.allow_tf32:
        other.append("tf32 products")
    flips = sum(result.flips for result in ranked(subject))
    note = ", ".join(other) if other else f"{flips} flips" * bool(flips)
    return Check(id="S13", verdict=verdict(not other), value=len(other), threshold="float32 only", n=1, note=note)


def monotone(subject: Subject) -> Check:
    """S14: AutoAttack's stages leave no more than the one before, and no attack more than clean accuracy on the same
    images."""
    outcomes, rises = clean(subject).outcomes, []
    for result in subject.results.values():
        left = [outcomes[: result.total].count("1"), *(count for _, count in result.stages), result.correct]
        if any(later > sooner for sooner, later in pairwise(left)):
            rises.append(f"{result.attack} at eps {result.eps:.6g}")
    return Check(
        id="S14",
        verdict=verdict(not rises),
        value=len(rises),
        threshold="0 rises",
        n=len(subject.results),
        note=", ".join(rises),
    )


def generators_untouched(subject: Subject) -> Check:
    """S15: the global generators were equal before and after every stage of the evaluation, and an attack of the
    audit leaves them too; every result states the seed of its draws."""
    moved = [result.attack for result in subject.results.values() if "generators" in result.traces]
    before = Before(subject.model.model)
    attack(subject, 4)
    moved += ["the audit"] * ("generators" in before.traces())
    unsaid = [result.attack for result in subject.results.values() if result.config.get("seed") != subject.seed]
    note = ", ".join(dict.fromkeys([*moved, *(f"{attack}: another seed" for attack in unsaid)]))
    wrong = len(moved) + len(unsaid)
    return Check(
        id="S15", verdict=verdict(not wrong), value=wrong, threshold="0 results", n=len(subject.results), note=note
    )


def finite_logits(subject: Subject) -> Check:
    """S16: images with a logit that is NaN or infinite, of the clean ones and of those that the ranked attacks
    returned: none. They count as wrong everywhere; a model that has no answer to them hides its gradients as well."""
    said, wrong, n = [], 0, 0
    for name, images in ({"clean": subject.images} | subject.adversarial).items():
        with torch.no_grad():
            parts = [subject.model(part).isfinite().all(dim=1) for part in images.split(subject.chunk)]
        bad = int((~torch.cat(parts)).sum())
        wrong, n = wrong + bad, n + len(images)
        said += [f"{bad} of {len(images)} {name}"] * bool(bad)
    note = f"logits are NaN or infinite on {', '.join(said)} images" if said else ""
    return Check(id="S16", verdict=verdict(not wrong), value=wrong, threshold="0 images", n=n, note=note)


CHECKS: dict[str, tuple[AuditLevel, AuditCheck]] = {
    f"S{number}": ("core", check)
    for number, check in enumerate(
        (
            same_attack,
            ball_can_be_reached,
            ball_was_reached,
            in_threat_model,
            right_weights,
            evaluation_mode,
            same_function,
            every_image_once,
            logits_not_probabilities,
            deterministic,
            no_optimisation,
            enough_classes,
            numeric_mode,
            monotone,
            generators_untouched,
            finite_logits,
        ),
        start=1,
    )
}
