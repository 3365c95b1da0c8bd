"""What the full audit costs beside AutoAttack, counted in passes of one image: python tests/zoo/audit_cost.py

On a model of 75 % clean and 30 % robust accuracy (protocol 3.3): a healthy one on 1,000 digits, of which a quarter
have another label, at the eps that leaves 30 % of the images standing. AutoAttack on 10,000 such images costs ten times
what it costs on 1,000. Prints the passes of each check, and the two shares.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from zoo import healthy

from attacks import autoattack, pgd
from bench.audit.audit import all_checks, run_check
from bench.audit.checks.subject import Counted
from bench.audit.checks.transfer import adversarial_images
from bench.random import stream
from bench.spec import ThreatModel

IMAGES, CLEAN, ROBUST = 1000, 0.75, 0.30


def main() -> None:
    """Count, and print a line for each check."""
    torch.set_num_threads(1)
    model, probe = healthy.classifier(healthy.NAMES[0])
    train, test = healthy.digits()
    pixels = torch.cat([test.images, train.images])[:IMAGES].float() / 255
    labels = torch.cat([test.labels, train.labels])[:IMAGES]
    right = healthy.right(model, pixels, labels)
    wrong = right.nonzero().flatten()[:: max(1, round(1 / (1 - CLEAN / float(right.float().mean()))))]
    labels[wrong] = (labels[wrong] + 1) % healthy.CLASSES
    correct = healthy.right(model, pixels, labels)
    low, high = 0.0, 0.5
    for _ in range(8):
        eps = (low + high) / 2
        attack = pgd.Attack(restarts=1, chunk=None)
        moved = attack.perturb(model, pixels, labels, ThreatModel(eps=eps), stream(0, "cost"))
        standing = float(healthy.right(model, moved, labels).float().mean())
        low, high = (eps, high) if standing > ROBUST + 0.005 else (low, eps)

    counted, threat = Counted(model).eval(), ThreatModel(eps=eps)
    images, began = pixels.clone(), time.monotonic()
    stages, stands = [], correct.clone()
    for name, stage in autoattack.Attack().stages(healthy.CLASSES, IMAGES).items():
        ids = stands.nonzero().flatten()
        images[ids] = stage.perturb(counted, images[ids], labels[ids], threat, stream(0, "attack", "autoattack", 0))
        stands = healthy.right(model, images, labels)
        stages.append((name, int(stands.sum())))
    ensemble, seconds = counted.passes, time.monotonic() - began
    print(f"eps {eps:.3f}: clean {correct.float().mean():.1%}, robust {stands.float().mean():.1%} of {IMAGES} images")
    print(f"AutoAttack: {ensemble / 1e3:.0f} kF in {seconds:.0f} s, standing after each stage {stages}")

    base = healthy.subject(model, probe)
    moved = pgd.Attack(chunk=None).perturb(model, pixels, labels, threat, stream(0, "attack", "pgd", 0))
    both = {"pgd": moved, "autoattack": images}
    outcomes = {name: healthy.right(model, each, labels) for name, each in both.items()}
    results = {("none", 0.0): healthy.result("none", 0.0, correct, base.results["none", 0.0].config, "linear")}
    for name, stand in outcomes.items():
        old = base.results[name, healthy.EPS]
        result = healthy.result(name, eps, stand, old.config | {"eps": eps, "images": IMAGES}, "linear")
        results[name, eps] = result.model_copy(update={"stages": stages if name == "autoattack" else []})
    subject = replace(
        base,
        model=counted,
        images=pixels,
        labels=labels,
        eps=eps,
        spec=base.spec.model_copy(update={"audit": "full", "eps": (eps,), "main_eps": eps}),
        correct=correct,
        standing=outcomes["pgd"] & outcomes["autoattack"],
        audited=IMAGES,
        results=results,
        adversarial=both,
        robust=True,
    )
    total = 0.0
    for id, (_, check) in all_checks(False).items():
        found = run_check(id, check, subject)
        total += found.passes
        if found.passes:
            print(f"{id:<4} {found.passes / 1e3:8.1f} kF  {found.seconds:6.1f} s  {found.verdict}  {found.note[:60]}")
    before = counted.passes
    adversarial_images(counted, pixels[:500], labels[:500], eps, subject.chunk, stream(0, "cost", "transfer"))
    own = counted.passes - before
    print(f"A14  {own / 1e3:8.1f} kF  as a source")
    total += own
    print(f"the audit: {total / 1e3:.0f} kF, {total / ensemble:.1%} of AutoAttack on {IMAGES} images, "
          f"{total / (10 * ensemble):.1%} of it on {10 * IMAGES}")  # fmt: skip


if __name__ == "__main__":
    main()
