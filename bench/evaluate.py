"""Scores one encoder: protocol x attack x eps -> EvalResult, every attack verified here (protocol, section 1).

The encoder is frozen and in eval mode, float32 decides, ball and box are checked and correctness is counted on the
images that an attack returns. Images are attacked in the fixed test order, so smaller subsets are prefixes of larger.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attacks.common.base import BaseAttack, config_hash
from bench import registry
from bench.data import ImageSet
from bench.encoder import fold_batch_norm
from bench.protocols import (
    Classifier,
    OfCrops,
    build_classifier,
    extract,
    fit_probe,
    fit_published_probe,
    linear,
)
from bench.repro import stream
from bench.spec import EvalResult, EvalSpec, ProbeResult, ThreatModel, UsageError, unknown

Report = Callable[[dict[str, Any]], None]
TOLERANCE = 1e-6  # of the ball: float rounding, not freedom
CURVE_IMAGES = 300  # of the curve over eps, where the level does not say otherwise
GRADIENT_NORM = 1e-6  # of a fitted probe (protocol 1.2)
PROTOCOLS = ("linear", "multi_patch", "linear_backbone", "published_eval")


class Cells(Protocol):
    """Where finished cells are found and put: a run's folder, or a dictionary in tests."""

    def probe(self, protocol: str) -> tuple[ProbeResult, dict[str, Tensor]] | None: ...
    def save_probe(self, probe: ProbeResult, tensors: dict[str, Tensor]) -> None: ...
    def result(self, protocol: str, attack: str, eps: float) -> EvalResult | None: ...
    def save_result(self, result: EvalResult) -> None: ...


@dataclass(frozen=True)
class Cell:
    """One attack at one eps under one protocol, on the first ``images`` test images."""

    protocol: str
    attack: str
    eps: float
    images: int
    curve: bool = False

    @property
    def name(self) -> str:
        """Of the attack, in every table: a .py file of the user's own goes by its stem."""
        return Path(self.attack).stem if self.attack.endswith(".py") else self.attack


def plan_cells(spec: EvalSpec, test_images: int) -> list[Cell]:
    """All cells of an evaluation, in the order in which they run; PGD by growing eps."""

    def first(count: int | None) -> int:
        return test_images if count is None else min(count, test_images)

    cells: list[Cell] = []
    for protocol in spec.protocols:
        cells.append(Cell(protocol, "none", 0.0, test_images))
        if protocol == "published_eval":
            cells += [Cell(protocol, "pgd", eps, first(spec.pgd_images)) for eps in sorted(spec.eps)]
            continue
        for attack in spec.attacks:
            if attack == "none":
                continue
            if attack == "autoattack":
                cells.append(Cell(protocol, attack, spec.main_eps, first(spec.autoattack_images.get(protocol))))
                continue
            # .75 * .1 is not .075, and a point of the curve beside an eps that was asked for is that one
            curve = [float(f"{factor * spec.main_eps:.12g}") for factor in spec.curve] if attack == "pgd" else []
            curve = [eps for eps in curve if eps <= 1 and all(abs(eps - asked) > 1e-9 for asked in spec.eps)]
            for eps in sorted({*spec.eps, *curve}):
                asked = eps in spec.eps
                count = (
                    first(spec.pgd_images)
                    if asked
                    else min(first(spec.pgd_images), spec.curve_images.get(protocol, CURVE_IMAGES))
                )
                cells.append(Cell(protocol, attack, eps, count, curve=not asked))
    return cells


def evaluate(
    encoder: nn.Module,
    train: ImageSet,
    test: ImageSet,
    spec: EvalSpec,
    seed: int,
    device: torch.device,
    cells: Cells,
    report: Report = lambda event: None,
) -> None:
    """Fill every cell that is not there yet; each is saved as soon as it is known."""
    encoder.eval().requires_grad_(False)
    for protocol in spec.protocols:
        classifier = fitted_classifier(encoder, train, test, spec, protocol, seed, device, cells, report)
        carried = torch.ones(len(test), dtype=torch.bool)  # images that PGD has not broken at a smaller eps
        for cell in plan_cells(spec.model_copy(update={"protocols": (protocol,)}), len(test)):
            result = cells.result(protocol, cell.name, cell.eps)
            if result is None:
                result = run_cell(classifier, test, cell, spec, seed, device, carried, report)
                cells.save_result(result)
                report(
                    {"event": "cell", **{k: v for k, v in result.model_dump().items() if k in REPORTED}}
                    | {"correct": result.correct, "total": result.total}
                )
            if cell.attack == "pgd":
                standing = torch.tensor([outcome == "1" for outcome in result.outcomes])
                carried[: len(standing)] &= standing


REPORTED = ("protocol", "attack", "eps", "seconds", "note")


def fitted_classifier(
    encoder: nn.Module,
    train: ImageSet,
    test: ImageSet,
    spec: EvalSpec,
    protocol: str,
    seed: int,
    device: torch.device,
    cells: Cells,
    report: Report,
) -> Classifier:
    """The protocol's classifier with its probe: the stored one, or fitted now on the training images."""
    base = encoder.backbone if protocol == "linear_backbone" else encoder
    assert isinstance(base, nn.Module)
    size = test.image_shape[1:]
    classifier = build_classifier(protocol, fold_batch_norm(base), size, spec.crops, spec.crop_seed).to(device)
    stored = cells.probe(protocol)
    if stored is not None:
        tensors = stored[1]
        classifier.probe = linear(tensors["weight"].to(device), tensors["bias"].to(device))
        return classifier
    report({"event": "probe", "protocol": protocol})
    began = time.monotonic()
    chunk = chunk_images(spec, protocol)
    features = extract(classifier, train.images, device, chunk)
    labels = train.labels.to(device)
    probe = ProbeResult(
        protocol=protocol,
        feature_width=features.shape[1],
        penalty=0.0,
        gradient_norm=0.0,
        scale=1.0,
        held_out=[],
        train_correct=0,
        train_total=len(train),
        seconds=0.0,
    )
    if protocol == "published_eval":
        layer = fit_published_probe(features, labels, train.classes, seed)
        found: dict[str, Any] = {"note": "Adam 3e-4, 20 epochs, batches of 256 (arXiv:2501.03507)"}
    else:
        fit = fit_probe(features, labels, train.classes)
        layer = fit.layer
        band = probe_band(classifier, protocol, fit.others | {fit.penalty: layer}, test, spec, seed, device)
        found = {name: getattr(fit, name) for name in ("penalty", "gradient_norm", "scale", "held_out")} | {
            "band": band
        }
        if fit.gradient_norm > GRADIENT_NORM:
            found["note"] = f"the probe did not converge: gradient norm {fit.gradient_norm:.2g} above {GRADIENT_NORM:g}"
    correct = int(layer(features).argmax(dim=1).eq(labels).sum())
    probe = probe.model_copy(update=found | {"train_correct": correct, "seconds": time.monotonic() - began})
    tensors = {"weight": layer.weight.detach().cpu(), "bias": layer.bias.detach().cpu()}
    cells.save_probe(probe, tensors)
    classifier.probe = linear(tensors["weight"].to(device), tensors["bias"].to(device))
    return classifier


def probe_band(
    classifier: Classifier,
    protocol: str,
    layers: dict[float, nn.Linear],
    test: ImageSet,
    spec: EvalSpec,
    seed: int,
    device: torch.device,
) -> list[tuple[float, int, int]]:
    """PGD accuracy (one restart, at the main eps) with the probe at lambda/10, lambda and 10 lambda (protocol 1.2)."""
    cell = Cell(protocol, "pgd", spec.main_eps, min(spec.band_images, len(test)))
    band = []
    for penalty, layer in sorted(layers.items()):
        classifier.probe = layer
        single = spec.model_copy(update={"restarts": 1})
        result = run_cell(classifier, test, cell, single, seed, device, None, lambda event: None)
        band.append((penalty, result.correct, result.total))
    return band


def run_cell(
    classifier: Classifier,
    test: ImageSet,
    cell: Cell,
    spec: EvalSpec,
    seed: int,
    device: torch.device,
    carried: Tensor | None,
    report: Report,
) -> EvalResult:
    """Attack the first images of the test set, verify what comes back, count.

    ``carried`` (N,): an image that PGD broke at a smaller eps counts as broken here too. The attack gets copies, so
    that what it returns is compared with the images as they are. Raises RuntimeError if it leaves its threat model:
    that is a fault of the attack, never a result.
    """
    attack = build_attack(cell, spec)
    threat = ThreatModel(eps=cell.eps, space=attack.space)
    model: nn.Module = OfCrops(classifier).eval() if attack.space == "crop" else classifier
    config = attack.describe(test.classes) | {"eps": cell.eps, "seed": seed, "images": cell.images}
    if cell.protocol == "multi_patch":
        config |= {"crops": spec.crops, "crop_seed": spec.crop_seed}
    if carried is not None and cell.attack == "pgd":
        asked = plan_cells(spec.model_copy(update={"protocols": (cell.protocol,)}), len(test))
        config["carried_from"] = [other.eps for other in asked if other.attack == "pgd" and other.eps < cell.eps]
    chunk = attack.chunk or cell.images
    began = time.monotonic()
    outcomes: list[Tensor] = []
    with listening(cell, report) as warnings:
        for number, start in enumerate(range(0, cell.images, chunk)):
            stop = min(start + chunk, cell.images)
            images = test.images[start:stop].to(device).float() / 255
            labels = test.labels[start:stop].to(device)
            if attack.space == "crop":
                images = classifier.crops(images)
            generator = stream(seed, "attack", cell.name, number)
            adversarial = attack.perturb(model, images.clone(), labels.clone(), threat, generator)
            verify(adversarial, images, threat, f"{cell.name} under {cell.protocol}")
            outcomes.append(predict(model, adversarial, chunk_images(spec, cell.protocol)).eq(labels).cpu())
            report({"event": "attack", "protocol": cell.protocol, "attack": cell.name, "eps": cell.eps,
                    "done": stop, "total": cell.images})  # fmt: skip
    standing = torch.cat(outcomes)
    if carried is not None and cell.attack == "pgd":
        standing &= carried[: len(standing)]
    return EvalResult(
        protocol=cell.protocol,
        attack=cell.name,
        threat_space=attack.space,
        eps=cell.eps,
        outcomes="".join("1" if stands else "0" for stands in standing.tolist()),
        curve=cell.curve,
        seconds=time.monotonic() - began,
        config=config,
        config_hash=config_hash(config),
        note="; ".join(dict.fromkeys(warnings)),
    )


def build_attack(cell: Cell, spec: EvalSpec) -> BaseAttack:
    """The attack of a cell with the settings of the level; ``published_eval`` has the paper's own PGD."""
    attack: BaseAttack = registry.load("attack", cell.attack).Attack()
    if cell.attack == "autoattack":
        return replace(attack, batch=max(1, spec.autoattack_batch // crops_per_image(spec, cell.protocol)))  # type: ignore[call-arg]
    attack = replace(attack, chunk=chunk_images(spec, cell.protocol))
    if cell.attack == "pgd" and cell.protocol == "published_eval":
        return replace(attack, absolute_step=0.01, random_start=False)  # type: ignore[call-arg]
    if cell.attack == "pgd":
        return replace(attack, restarts=spec.restarts)  # type: ignore[call-arg]
    return attack


def crops_per_image(spec: EvalSpec, protocol: str) -> int:
    """Encoder passes for one image."""
    return spec.crops if protocol == "multi_patch" else 1


def chunk_images(spec: EvalSpec, protocol: str) -> int:
    """Images per pass, so that the number of crops per pass is about the same under every protocol."""
    return max(1, spec.chunk // crops_per_image(spec, protocol))


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, chunk: int) -> Tensor:
    """Predicted classes (N,) in float32."""
    assert not any(module.training for module in model.modules()), "a module is in train mode"
    return torch.cat([model(part).argmax(dim=1) for part in images.float().split(chunk)])


def verify(adversarial: Tensor, images: Tensor, threat: ThreatModel, name: str) -> None:
    """Same shape, finite, inside the ball and the box; else RuntimeError that names the attack and what was found."""
    if adversarial.shape != images.shape:
        raise RuntimeError(f"the attack {name} returned {tuple(adversarial.shape)} for {tuple(images.shape)}")
    if not bool(adversarial.isfinite().all()):
        raise RuntimeError(f"the attack {name} returned pixels that are not finite")
    distance = float((adversarial - images).abs().max())
    low, high = float(adversarial.min()), float(adversarial.max())
    if distance > threat.eps + TOLERANCE or low < -TOLERANCE or high > 1 + TOLERANCE:
        raise RuntimeError(
            f"the attack {name} left its threat model: distance {distance:.7g} at eps {threat.eps:.7g}, "
            f"pixels in [{low:.7g}, {high:.7g}]"
        )


@contextmanager
def listening(cell: Cell, report: Report) -> Iterator[list[str]]:
    """Attacks speak through the loggers ``attacks`` and ``auto-attack``: warnings are kept, the rest is progress."""
    warnings: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                warnings.append(record.getMessage())
            else:
                report({"event": "attack", "protocol": cell.protocol, "attack": cell.name, "eps": cell.eps,
                        "message": record.getMessage()})  # fmt: skip

    loggers = [logging.getLogger(name) for name in ("attacks", "auto-attack")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    listener = Listener()
    for logger in loggers:
        logger.addHandler(listener)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
    try:
        yield warnings
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(listener)
            logger.setLevel(level)
            logger.propagate = propagate


def check_protocols(names: tuple[str, ...]) -> None:
    """Raises UsageError for a protocol that does not exist."""
    for name in names:
        if name not in PROTOCOLS:
            raise UsageError(unknown("protocol", name, PROTOCOLS))
