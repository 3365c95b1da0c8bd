"""A14 of protocol 3.3: do adversarial images of other models break what stands? A broken gradient hides nothing here.

The images are made by PGD-50 on every other method of the folder, when all runs have ended (bench.audit.transfer);
until then the check is NOT_RUN, and the number not ranked.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from attacks.common.base import predicted
from bench.audit.checks.attacks import IMAGES, ascent, judged, places_of, scores, warn
from bench.audit.checks.subject import AuditCheck, Subject, soundness
from bench.evaluation.search import verify
from bench.record import Check, Verdict
from bench.spec import AuditLevel, RunSpec, ThreatModel

MOST, STEPS = 500, 50  # images of a source, steps of 2.5 eps / 50 (arXiv:1706.06083, as in A10)


def sources_of(target: RunSpec, others: Sequence[RunSpec]) -> list[RunSpec]:
    """The runs whose images are tried on ``target``: one of every other row, and one other seed of its own row.

    Of another row that with the same seed, if there is one; else the lowest seed. Sorted by name.
    """
    rows: dict[str, list[RunSpec]] = {}
    for other in others:
        if other.name != target.name:
            rows.setdefault(other.row, []).append(other)
    chosen = [min(runs, key=lambda run: (run.seed != target.seed, run.seed)) for runs in rows.values()]
    return sorted(chosen, key=lambda run: run.name)


def image_count(dear: bool) -> int:
    """Test images that a source attacks, from the first one on."""
    return min(MOST, IMAGES["full", dear])


def adversarial_images(
    model: nn.Module, clean: Tensor, labels: Tensor, eps: float, chunk: int, generator: Generator
) -> Tensor:
    """PGD-50 on a source, from a random start and not stopped where the source is fooled: (N, C, H, W) in [0, 1]."""
    settings = {"eps": eps, "steps": STEPS, "step": 2.5 * eps / STEPS, "chunk": chunk, "generator": generator}
    return ascent(model, clean, labels, **settings)[1]  # type: ignore[arg-type]


@judged("A14", most=MOST)
def transfer_not_better(subject: Subject, n: int) -> Check:
    """Share of images that another model's adversarial images break and the ranked set does not.

    FAIL by ``soundness`` (protocol 3.1). WARN as protocol 3.3 has it for this check, above .2 % and at least 2 images:
    with every method of a run as a source, one image is no sign yet. It counts in ``worst_audited`` all the same.
    """
    if subject.sources is None:
        return Check(id="A14", verdict="NOT_RUN", note="the transfer stage has not run")
    if not subject.sources:
        return Check(id="A14", verdict="N/A", note="no other method in this run")
    left, per_source = places_of(subject.standing[:n].cpu()), {}
    broken = torch.zeros(len(left), dtype=torch.bool)
    for name, load in subject.sources.items():
        moved = load()[:n].to(subject.images.device)
        verify(moved, subject.images[:n], ThreatModel(eps=subject.eps), f"A14 from {name}")
        fooled = left.bool()
        if len(left):
            fooled = predicted(scores(subject.model, moved[left], subject.chunk)).ne(subject.labels[left]).cpu()
        broken, per_source[name] = broken | fooled, int(fooled.sum())
    count = subject.breaks("A14", left[broken])
    verdict: Verdict = "FAIL" if soundness(count, n) == "FAIL" else warn(count >= 2 and count / n > 0.002)
    return Check(
        id="A14",
        verdict=verdict,
        value=count / n,
        threshold="FAIL >= 3 images and > 0.5 %, WARN >= 2 and > 0.2 %",
        n=n,
        note=f"{count} images; {', '.join(f'{name}: {broke}' for name, broke in per_source.items())}",
    )


CHECKS: dict[str, tuple[AuditLevel, AuditCheck]] = {"A14": ("full", transfer_not_better)}
