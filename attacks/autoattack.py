"""AutoAttack, standard (Croce & Hein, 2020, arXiv:2003.01690): the authors' ensemble of four, from their package.

Below 10 classes the ensemble is what so few classes allow, and a warning names it; nothing else deviates.
"""

import contextlib
import importlib
import importlib.metadata
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from attacks.common.base import BaseAttack
from bench.spec import ThreatModel, UsageError

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
PACKAGES = ("pyautoattack", "autoattack")  # the same attack code; the second is the authors' own repository

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
        """As for every attack. Out of memory: starts again at half the batch, with a warning."""
        if threat.eps == 0 or len(images) == 0:
            return images
        images, seed = images.detach().float(), generator.initial_seed() % 2**31
        batch = min(self.batch, len(images))
        with traceless(model, images.device):
            while True:
                try:
                    return run(model, images, labels, threat.eps, seed, batch)
                except torch.cuda.OutOfMemoryError:
                    if batch == 1:
                        raise
                batch //= 2  # here, where the failed pass has let go of its tensors
                log.warning("autoattack ran out of memory and starts again at batch %d, not %d", batch, self.batch)

    def describe(self, classes: int) -> dict[str, Any]:
        attacks, targets = ensemble(classes)
        return super().describe(classes) | {"package": package_version(), "ensemble": attacks, "targets": targets}


def ensemble(classes: int) -> tuple[list[str], int]:
    """The attacks that so many classes allow, and how many target classes the targeted ones try.

    >>> ensemble(10)
    (['apgd-ce', 'apgd-t', 'fab-t', 'square'], 9)
    >>> ensemble(3)
    (['apgd-ce', 'fab-t', 'square'], 2)
    """
    # the targeted DLR loss of APGD-T divides by a difference of the four largest logits
    return [name for name in STANDARD if name != "apgd-t" or classes >= 4], min(9, classes - 1)


def run(model: nn.Module, images: Tensor, labels: Tensor, eps: float, seed: int, batch: int) -> Tensor:
    """One run of the package. images: (N, C, H, W), all of them -> the same shape."""

    def logits(x: Tensor) -> Tensor:
        return model(x).float()  # type: ignore[no-any-return]  # half precision inside the model is the model's affair

    with torch.no_grad():
        classes = logits(images[:1]).shape[1]
    package = load_package()
    attack = package.AutoAttack(logits, norm="Linf", eps=eps, seed=seed, version="standard", device=images.device)
    # on top of the standard version, so that all its other settings stay; with 10 classes or more this changes nothing
    attack.attacks_to_run, targets = ensemble(classes)
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = targets
    if classes < 10:
        names = ", ".join(attack.attacks_to_run)
        log.warning("autoattack on %d classes is reduced to %s with %d target classes", classes, names, targets)
    if package.__name__ == "pyautoattack":
        adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=batch)
    else:
        attack.verbose = False
        attack.logger = attack.apgd.logger = attack.apgd_targeted.logger = SimpleNamespace(
            log=logging.getLogger("auto-attack").warning  # instead of print
        )
        adversarial = attack.run_standard_evaluation(images, labels, bs=batch)
    return adversarial.detach()  # type: ignore[no-any-return]


@contextlib.contextmanager
def traceless(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Undo what the package does to the process.

    It seeds the global generators, ends tracing (coverage, debuggers), leaves weight gradients through FAB's
    ``backward`` wherever a parameter wants one, and fails under autocast.
    """
    trace = sys.gettrace()
    trainable = [p for p in model.parameters() if p.requires_grad]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), torch.autocast(device.type, enabled=False):
        try:
            for parameter in trainable:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)
            sys.settrace(trace)


def load_package() -> Any:
    """The installed package, on first use: it is not needed to list attacks. Raises UsageError if there is none."""
    for name in PACKAGES:
        with contextlib.suppress(ModuleNotFoundError):
            package = importlib.import_module(name)
            # a count of the process, not of the model: one dynamic model would make all later ones look so
            package.checks.funcs.update(dict.fromkeys(package.checks.funcs, 0))
            return package
    raise UsageError("autoattack needs its package; install it with: pip install pyautoattack")


def package_version() -> str:
    """Name and version of the package that runs, without loading it. Raises UsageError if there is none."""
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    raise UsageError("autoattack needs its package; install it with: pip install pyautoattack")
