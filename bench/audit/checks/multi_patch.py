"""The audit of multi-patch aggregation, M1 to M6 (protocol 3.4).

It reads the mean features over crops, so beside the usual questions there are four of its own: are the
crops the same for every image, the same in attack and scoring, does one crop of the whole image give the linear
protocol, and does an attack on the single crops find what one on their mean does not.
"""

import torch
from torch import Tensor, nn

from attacks.common.base import cross_entropy, maximize, predicted, random_start
from bench.audit.checks.company import company, difference
from bench.audit.checks.subject import AuditCheck, Counted, Subject, soundness
from bench.protocols.common.classifier import Classifier, MultiPatch, fixed_boxes
from bench.random import stream
from bench.record import Check
from bench.spec import AuditLevel, ThreatModel

ROUNDING = 1e-5  # of the logits' scale, as S7
GRADIENT_NORM = 1e-6  # of a converged probe (protocol 1.2)
BATCH, IMAGES = 32, 256  # compared in one batch; attacked or counted
STEPS, STEP = 20, 0.25  # of PGD; a step is a share of eps
RANKED = ("pgd", "autoattack")


def deterministic_crops(subject: Subject) -> Check:
    """M1: the crops are those of no image in particular, F(x[perm]) = F(x)[perm] and F(x[subset]) = F(x)[subset].

    Value: the largest difference over a permutation, every third image of it, and one image alone, as a share of the
    largest logit. FAIL above 1e-5 (protocol 1.1, S7's tolerance). Where there are few images, noise is beside them.
    """
    images = company(subject, "M1", BATCH)
    order = torch.randperm(len(images), generator=stream(subject.seed, "audit", "M1")).to(images.device)
    with torch.no_grad():
        logits = subject.model(images)
        value = max(difference(subject.model(images[ids]), logits[ids]) for ids in (order, order[::3], order[:1]))
    return Check(
        id="M1",
        verdict="PASS" if value <= ROUNDING else "FAIL",
        value=value,
        threshold="the order and company of an image move its logits by at most 1e-5 of their scale",
        n=min(BATCH, len(subject.images)),
    )


def attack_space(subject: Subject) -> Check:
    """M2: every result declares where its adversary stands, ``image`` for the ranked attacks. Value: results that do
    not. FAIL for any: eps around the picture and eps around each crop are never in one column."""
    wrong = sorted(
        {
            attack
            for (attack, _), result in subject.results.items()
            if result.config.get("space") != result.threat_space
            or (attack in RANKED and result.threat_space != "image")
        }
    )
    return Check(
        id="M2",
        verdict="FAIL" if wrong else "PASS",
        value=len(wrong),
        threshold="every result declares its attack space, image where it is ranked",
        n=len(subject.results),
        note=f"not declared, or not on the image: {', '.join(wrong)}" if wrong else "",
    )


def same_crops(subject: Subject) -> Check:
    """M3: attack and scoring see the crops that the settings name, K_attack = K_score.

    Two conditions: crops and crop seed are equal in the config of every result and in the evaluation's settings; and
    the model's logits on clean images are those of a model built anew from these settings, within 1e-5 of their scale
    (the value). FAIL where one is broken.
    """
    model, images = audited_model(subject), subject.images[:BATCH]
    count, seed = asked = subject.spec.crops, subject.spec.crop_seed
    stated = {(result.config.get("crops"), result.config.get("crop_seed")) for result in subject.results.values()}
    size = (images.shape[2], images.shape[3])
    scored = sibling(model, MultiPatch(model.encoder, fixed_boxes(count, size, seed), size), images)
    with torch.no_grad():
        value = difference(subject.model(images), scored(images))
    subject.model.passes += scored.passes
    return Check(
        id="M3",
        verdict="PASS" if value <= ROUNDING and stated == {asked} else "FAIL",
        value=value,
        threshold="one crop list in every config, and the logits are those of these crops within 1e-5 of their scale",
        n=len(images),
        note="" if stated == {asked} else f"crops and crop seed {asked} asked for, {sorted(stated, key=str)} stated",
    )


def single_crop(subject: Subject) -> Check:
    """M4: with one crop of scale 1, multi-patch aggregation is the linear protocol.

    Value: images whose predicted class differs, at equal batch. FAIL above 0 on a CPU, above max(1, 0.05 %) elsewhere.
    """
    model, images = audited_model(subject), subject.images[:IMAGES]
    size = (images.shape[2], images.shape[3])
    whole = sibling(model, type(model)(model.encoder, torch.tensor([[0, 0, *size]]), size), images)
    linear = sibling(model, Classifier(model.encoder), images)
    with torch.no_grad():
        flips = sum(
            int((predicted(whole(part)) != predicted(linear(part))).sum()) for part in images.split(subject.chunk)
        )
    subject.model.passes += whole.passes + linear.passes
    allowed = 0 if images.device.type == "cpu" else max(1, 0.0005 * len(images))
    return Check(
        id="M4",
        verdict="PASS" if flips <= allowed else "FAIL",
        value=flips,
        threshold=f"at most {allowed:g} predictions differ from the linear protocol",
        n=len(images),
    )


class OfEveryCrop(nn.Module):
    """The published logits; beside them it keeps those of every crop, (B, n, K), which its loss reads."""

    def __init__(self, model: MultiPatch) -> None:
        super().__init__()
        self.model = model
        self.of_crops = torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        crops = self.model.crops(images)
        features = self.model.encoder(crops.flatten(0, 1)).unflatten(0, crops.shape[:2])
        self.of_crops = self.model.probe(features)
        logits: Tensor = self.model.probe(features.mean(dim=1))
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over the crops of each crop's own cross-entropy: (B,)."""
        count = self.of_crops.shape[1]
        losses = cross_entropy(self.of_crops.flatten(0, 1), labels.repeat_interleave(count))
        mean: Tensor = losses.unflatten(0, (len(labels), count)).mean(dim=1)
        return mean


def both_losses(subject: Subject) -> Check:
    """M5: climbing the loss of the mean features leaves nothing that climbing the crops' own losses would find.

    Two PGDs of 20 steps of eps/4 with equal draws, on images that the ranked attacks left standing: the first climbs
    the cross-entropy of the published logits, probe(mean features); the second the mean of the crops' cross-entropies.
    A linear probe makes the mean of the crops' logits and the logits of their mean features one function, so only a
    loss that is taken before the mean is a second one. Value: images that only the second breaks, judged by the
    published logits; verdict by ``soundness``. N/A where the ranked number is 0 within its interval.
    """
    threshold = "FAIL: 3 images that only the crops' losses break, Wilson's lower bound above 0.5 points; WARN: 1"
    if not subject.robust:
        return Check(id="M5", verdict="N/A", threshold=threshold, note="the ranked number is 0 within its interval")
    n = min(IMAGES, subject.audited)
    if n == 0:
        return Check(
            id="M5", verdict="NOT_RUN", threshold=threshold, note="no image was attacked by both PGD and AutoAttack"
        )
    of_crops = OfEveryCrop(audited_model(subject)).eval()
    counted, threat = Counted(of_crops), ThreatModel(eps=subject.eps)
    first, second = subject.correct.new_zeros(n), subject.correct.new_zeros(n)
    for number, ids in enumerate(torch.arange(n).split(subject.chunk)):
        images, labels = subject.images[ids], subject.labels[ids]
        left = subject.standing[ids]
        for model, loss, broken in (
            (subject.model, cross_entropy, first),
            (counted, of_crops.loss, second),
        ):
            moved = maximize(
                model,
                images,
                labels,
                threat,
                steps=STEPS,
                step=STEP * subject.eps,
                generator=stream(subject.seed, "audit", "M5", number),
                draw=random_start,
                loss=loss,
                attacked=left,
            )
            with torch.no_grad():
                wrong = predicted(subject.model(moved)) != labels
            broken[ids] = left & wrong.to(left.device)
            left = left & ~broken[ids]
    subject.model.passes += counted.passes
    subject.breaks("M5", (first | second).nonzero().flatten())
    count = int(second.sum())
    return Check(
        id="M5",
        verdict=soundness(count, n),
        value=count,
        threshold=threshold,
        n=n,
        note=f"{int(first.sum())} more by another start of the published logits' loss" if first.any() else "",
    )


def probe_type(subject: Subject) -> Check:
    """M6: the head that the number rests on is on record: a linear probe on clean features, converged.

    Value: the gradient's norm at the end of its fit. FAIL where no probe of this protocol is stored, or it did not
    converge to 1e-6 (protocol 1.2), since an under-trained head fakes robustness.
    """
    threshold = "the stored probe of this protocol, clean-trained, with a gradient norm of at most 1e-6"
    probe = subject.probe
    if probe is None or probe.protocol != subject.protocol:
        problem = "no probe is stored" if probe is None else f"the stored probe is that of {probe.protocol}"
        return Check(id="M6", verdict="FAIL", threshold=threshold, note=problem)
    return Check(
        id="M6",
        verdict="PASS" if probe.gradient_norm <= GRADIENT_NORM else "FAIL",
        value=probe.gradient_norm,
        threshold=threshold,
        n=probe.train_total,
        note=f"clean-trained linear probe on {probe.feature_width} features, lambda {probe.penalty:g}",
    )


# ---------------------------------------------------------------- what they share


def audited_model(subject: Subject) -> MultiPatch:
    """The classifier inside the counter."""
    model = subject.model.model
    if not isinstance(model, MultiPatch):
        raise TypeError(f"expected a multi-patch classifier, got {type(model).__name__}")
    return model


def sibling(model: Classifier, other: Classifier, images: Tensor) -> Counted:
    """``other`` with the probe of ``model``, on the device of the images, counted."""
    other.probe = model.probe
    return Counted(other.to(images.device).eval())


CHECKS: dict[str, tuple[AuditLevel, AuditCheck]] = {
    "M1": ("full", deterministic_crops),
    "M2": ("full", attack_space),
    "M3": ("full", same_crops),
    "M4": ("full", single_crop),
    "M5": ("full", both_losses),
    "M6": ("full", probe_type),
}
