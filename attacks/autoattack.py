"""AutoAttack, standard (Croce & Hein, 2020, arXiv:2003.01690): the authors' ensemble of four, from their package.

The four run one by one on what the others left standing, as the package itself does: same batches, same seeds, same
images bit for bit. Below 10 classes the ensemble is what so few classes allow, and a warning names it.
"""

import logging
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from attacks.common.base import ALL, BaseAttack, Share, predicted
from attacks.common.package import load_package, package_version, traceless
from attacks.common.threat import geometry
from bench.spec import ThreatModel, UsageError

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")

log = logging.getLogger("attacks")


@dataclass(frozen=True)
class Attack(BaseAttack):
    """Images that no attack of the ensemble broke come back clean; outcomes depend on ``batch`` through its draws."""

    chunk: int | None = field(default=None, kw_only=True)
    batch: int = 500
    version: Literal["standard"] = "standard"

    def __post_init__(self) -> None:
        if self.batch <= 0:
            raise UsageError(f"expected batch of autoattack above 0, got {self.batch}")
        if self.version != "standard":
            raise UsageError(f"unknown version {self.version!r} of autoattack; known: standard")

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        """As for every attack: all stages, one after the other."""
        adversarial = images.detach().float().clone()
        standing = torch.arange(len(images), device=images.device)
        if threat.eps == 0 or len(images) == 0:
            return adversarial
        with traceless(model, images.device), torch.no_grad():
            classes = model(images[:1]).shape[1]
            for stage in self.stages(classes, len(images)).values():
                moved = stage.perturb(model, images[standing], labels[standing], threat, generator)
                adversarial[standing] = moved
                standing = standing[correct(model, moved, labels[standing], self.batch)]
        return adversarial

    def stages(self, classes: int, images: int) -> dict[str, BaseAttack]:
        return {name: Stage(name, self.batch, images) for name in ensemble(classes)[0]}

    def describe(self, classes: int) -> dict[str, Any]:
        attacks, targets = ensemble(classes)
        return super().describe(classes) | {"package": package_version(), "ensemble": attacks, "targets": targets}


@dataclass(frozen=True)
class Stage(BaseAttack):
    """One attack of the ensemble, on the images that those before it left standing."""

    name: str
    batch: int
    total: int  # images of the whole run, of which some may have fallen
    share: Share = ALL
    chunk: int | None = field(default=None, kw_only=True)

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        """As for every attack. Raises RuntimeError where a batch does not fit into the memory: a smaller one is another
        attack, whose draws are others, and no attack of one row alone."""
        if threat.eps == 0 or len(images) == 0:
            return images
        images, seed = images.detach().float(), generator.initial_seed() % 2**31
        batch = min(self.batch, len(images))
        with traceless(model, images.device), torch.no_grad():
            try:
                return run(self, model, images, labels, threat, seed, batch)
            except torch.cuda.OutOfMemoryError:
                if self.share is not ALL:  # the other ranks cannot go on without this one
                    raise
        # outside of the handler, which keeps the tensors of the failed pass alive
        raise RuntimeError(f"out of memory: {self.name} on {batch} images at once; is the device used by others?")


def ensemble(classes: int) -> tuple[list[str], int]:
    """The attacks that so many classes allow, and how many target classes the targeted ones try.

    >>> ensemble(10)
    (['apgd-ce', 'apgd-t', 'fab-t', 'square'], 9)
    >>> ensemble(3)
    (['apgd-ce', 'fab-t', 'square'], 2)
    """
    # the targeted DLR loss of APGD-T divides by a difference of the four largest logits
    return [name for name in STANDARD if name != "apgd-t" or classes >= 4], min(9, classes - 1)


def run(
    stage: Stage, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, seed: int, batch: int
) -> Tensor:
    """One attack of the package, as its run_standard_evaluation calls it. images: (N, C, H, W) -> the same shape."""

    def logits(x: Tensor) -> Tensor:
        return model(x).float()  # type: ignore[no-any-return]  # half precision inside the model is the model's affair

    package = load_package()
    ball = {"norm": threat.norm.capitalize(), "eps": threat.eps}  # Linf, L2
    attack = package.AutoAttack(logits, **ball, seed=seed, version="standard", device=images.device)
    warn = logging.getLogger("auto-attack").warning
    logger = SimpleNamespace(log=warn, warning=warn)  # the authors' own logs by ``log``, which would print
    classes = logits(images[:1]).shape[1]
    names, targets = ensemble(classes)
    if stage.name == names[0]:
        package.checks.check_randomized(logits, images[:batch], labels[:batch], bs=batch, logger=logger)
        package.checks.check_range_output(logits, images[:batch], logger=logger)
        package.checks.check_dynamic(logits, images[:batch], False, logger=logger)
        if classes < 10:
            reduced = f"{', '.join(names)} with {targets} target classes"
            log.warning("autoattack on %d classes is reduced to %s", classes, reduced)
    # on top of the standard version, so that all its other settings stay; with 10 classes or more this changes nothing
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = targets
    attack.apgd.loss, attack.fab.targeted = "ce", True
    attack.apgd.logger = attack.apgd_targeted.logger = logger
    attacks = (attack.apgd, attack.apgd_targeted, attack.fab, attack.square)
    current = dict(zip(STANDARD, attacks, strict=True))[stage.name]

    adversarial = images.clone()
    standing = correct(model, images, labels, batch).nonzero().flatten()
    broken = lost = 0
    for ids in stage.share.mine(standing.split(batch)) if len(standing) else ():  # no images split into an empty batch
        moved = current.perturb(images[ids], labels[ids])
        fooled = predicted(logits(moved)) != labels[ids]
        fooled &= moved.flatten(1).isfinite().all(dim=1)  # gradients that are NaN make pixels that are: no image
        if threat.norm != "linf":  # which the package leaves by rounding; in l-inf it stays inside
            moved, outside = geometry(threat).project(moved, images[ids]), fooled
            fooled = fooled & (predicted(logits(moved)) != labels[ids])
            lost += int((outside & ~fooled).sum())
        adversarial[ids[fooled]] = moved[fooled].detach()
        broken += int(fooled.sum())
        log.info("%s: %d of %d images broken", stage.name, broken, len(standing))
    if lost:
        log.warning("%s: images that broke outside of the ball alone, and stand: %d", stage.name, lost)
    adversarial = stage.share.whole(adversarial, images)
    broken = int((adversarial != images).flatten(1).any(dim=1).sum())
    if stage.name == "square":
        shares = {"clean": 1.0, "others": len(standing) / stage.total, "square": (len(standing) - broken) / stage.total}
        package.checks.check_square_sr(shares, logger=logger)
    return adversarial


def correct(model: nn.Module, images: Tensor, labels: Tensor, batch: int) -> Tensor:
    """Which images are classified as their labels say: (N,)."""
    parts = zip(images.split(batch), labels.split(batch), strict=True)
    return torch.cat([predicted(model(x)) == y for x, y in parts])
