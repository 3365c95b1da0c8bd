"""Scores one encoder: protocol x attack x eps -> EvalResult, every attack verified here (protocol, section 1).

The encoder is frozen and in eval mode, float32 decides, ball and box are checked and correctness is counted on the
images that an attack returns. Images are attacked in the fixed test order, so smaller subsets are prefixes of larger.
What is cheap and tells most comes first: clean, then PGD, then AutoAttack, which is stored after each of its stages.
"""

import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attacks.common.base import BaseAttack, config_hash, configured, predicted
from bench import registry
from bench.data.images import ImageSet
from bench.encoders.common.folding import fold_batch_norm
from bench.evaluation.cells import failed_result, plan_cells
from bench.evaluation.search import Cell, Report, Search, Team, in_this_process, listening
from bench.evaluation.traces import AttackError, Before, blame
from bench.protocols.classifier import (
    Classifier,
    build_classifier,
    extract,
    fit_probe,
    fit_published_probe,
    linear,
)
from bench.spec import RANKED, EvalResult, EvalSpec, Norm, ProbeResult

KEPT = 1000  # images of each ranked attack, for the audit and for whoever checks the number
GRADIENT_NORM = 1e-6  # of a fitted probe (protocol 1.2)


class Cells(Protocol):
    """Where finished cells are found and put: a run's folder, or a dictionary in tests."""

    def probe(self, protocol: str) -> tuple[ProbeResult, dict[str, Tensor]] | None: ...
    def save_probe(self, probe: ProbeResult, tensors: dict[str, Tensor]) -> None: ...
    def result(self, protocol: str, attack: str, eps: float, norm: Norm = "linf") -> EvalResult | None: ...
    def save_result(self, result: EvalResult) -> None: ...
    def adversarial(self, protocol: str, attack: str) -> Tensor | None: ...
    def save_adversarial(self, protocol: str, attack: str, images: Tensor) -> str: ...


def evaluate(
    encoder: nn.Module,
    train: ImageSet,
    test: ImageSet,
    spec: EvalSpec,
    seed: int,
    device: torch.device,
    cells: Cells,
    report: Report = lambda event: None,
    team: Team = in_this_process,
) -> str:
    """Fill every cell that is not there yet; each is saved as soon as it is known. Returns what is missing, or "".

    An attack that fails has no number: its cell says why, the next one starts from the stored weights, and the same
    call tries it again. Where there is no attack, what the model raises is raised.

    An attack of several stages is saved after each of them and goes on from there. ``spec.budget_seconds`` limits the
    seconds of all cells and probes of the run, those of earlier calls included: a cell or a stage that has begun is
    finished, and no other begins. The same call with more time goes on.
    """
    whole: list[Tensor] = []
    classifiers = {
        protocol: fitted_classifier(encoder, train, test, spec, protocol, seed, device, cells, report, whole)
        for protocol in spec.protocols
    }
    whole.clear()
    probes = [cells.probe(protocol) for protocol in spec.protocols]
    spent = sum(probe[0].seconds for probe in probes if probe is not None)
    skipped: list[str] = []
    failed: dict[str, list[str]] = {}  # reason -> cells
    unsure: set[str] = set()  # protocols in which PGD failed at some eps
    at_first = Before(nn.ModuleList([encoder, *classifiers.values()]))

    def exhausted() -> bool:
        return spec.budget_seconds is not None and spent >= spec.budget_seconds

    # images that PGD has not broken at a smaller eps
    carried = {protocol: torch.ones(len(test), dtype=torch.bool) for protocol in spec.protocols}
    for cell in plan_cells(spec, len(test)):
        result = earlier = cells.result(cell.protocol, cell.name, cell.eps, cell.norm)
        before = spent
        spent += earlier.seconds if earlier is not None else 0.0
        if result is None or not result.complete:
            name = f"{cell.protocol} {cell.name} {cell.eps:.6g}"
            if exhausted():
                skipped.append(name)
                continue
            classifier, images = classifiers[cell.protocol], carried[cell.protocol]
            kept = kept_images(cells, cell, spec, test)
            try:
                if cell.attack == "pgd" and cell.protocol in unsure:
                    raise AttackError("pgd failed at a smaller eps, and what it breaks there counts here")
                for result in attack_cell(
                    classifier, test, cell, spec, seed, device, images, report, earlier, kept, team, at_first
                ):
                    spent = before + result.seconds
                    if kept is not None:  # the images first: where there is a result, they are complete
                        stored = cells.save_adversarial(cell.protocol, cell.name, kept)
                        result = result.model_copy(update={"images_sha256": stored})
                    stopped = exhausted() and not result.complete
                    if stopped:
                        note = result.note.replace(STOPPED, "upper bound: stopped by --eval-budget after")
                        result = result.model_copy(update={"note": note})
                        skipped.append(name)
                    cells.save_result(result)
                    if stopped:
                        break
            except AttackError as error:
                if cell.attack == "none":
                    raise
                at_first.restore()
                traceback.print_exception(error)  # into the log
                cells.save_result(failed_result(cell, build_attack(cell, spec).space, result, str(error)))
                failed.setdefault(str(error), []).append(name)
                unsure |= {cell.protocol} if cell.attack == "pgd" else set()
                report({"event": "failed", "protocol": cell.protocol, "attack": cell.name, "eps": cell.eps,
                        "message": str(error)})  # fmt: skip
                continue
            assert result is not None
            report(
                {"event": "cell", **{k: v for k, v in result.model_dump().items() if k in REPORTED}}
                | {"correct": result.correct, "total": result.total}
            )
        if cell.attack == "pgd":
            standing = torch.tensor([outcome == "1" for outcome in result.outcomes])
            carried[cell.protocol][: len(standing)] &= standing
    late = f"the evaluation's {spec.budget_seconds:g} s are spent; missing: {', '.join(skipped)}" if skipped else ""
    without = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in failed.items())
    return "; ".join(filter(None, [late, f"without a number: {without}" if without else ""]))


STOPPED = "upper bound: stopped after"
REPORTED = ("protocol", "attack", "eps", "seconds", "note")


def kept_images(cells: Cells, cell: Cell, spec: EvalSpec, test: ImageSet) -> Tensor | None:
    """What a ranked attack has returned so far, (K, C, H, W) in [0, 1], else the clean images; None for other cells.

    An image that PGD broke at a smaller eps is not attacked again: the picture that broke it then is kept.
    """
    if cell.protocol not in RANKED or cell.attack not in ("pgd", "autoattack") or cell.eps > spec.main_eps + 1e-9:
        return None
    stored = cells.adversarial(cell.protocol, cell.attack)
    count = cell.images if cell.attack == "autoattack" else spec.pgd_images or len(test)
    return test.pictures(slice(min(KEPT, count)), "cpu") if stored is None else stored


def stored_classifier(
    encoder: nn.Module, test: ImageSet, spec: EvalSpec, protocol: str, device: torch.device, cells: Cells
) -> Classifier | None:
    """The protocol's classifier with the probe that is stored; None where there is none."""
    stored = cells.probe(protocol)
    if stored is None:
        return None
    classifier = bare_classifier(encoder, test, spec, protocol, device)
    classifier.probe = linear(stored[1]["weight"].to(device), stored[1]["bias"].to(device))
    return classifier


def bare_classifier(
    encoder: nn.Module, test: ImageSet, spec: EvalSpec, protocol: str, device: torch.device
) -> Classifier:
    """The protocol's classifier without a probe."""
    base = encoder.backbone if protocol == "linear_backbone" else encoder
    assert isinstance(base, nn.Module)
    size = test.image_shape[1:]
    return build_classifier(protocol, fold_batch_norm(base), size, spec.crops, spec.crop_seed).to(device)


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
    whole: list[Tensor],
) -> Classifier:
    """The protocol's classifier with its probe: the stored one, or fitted now on the training images.

    ``whole`` keeps the features of whole images, which two protocols read, between the calls.
    """
    stored = stored_classifier(encoder, test, spec, protocol, device, cells)
    if stored is not None:
        return stored
    classifier = bare_classifier(encoder, test, spec, protocol, device)
    report({"event": "probe", "protocol": protocol})
    began = time.monotonic()
    chunk = chunk_images(spec, protocol)
    if protocol in ("linear", "published_eval"):
        whole[:] = whole or [extract(classifier, train.images, device, chunk)]
        features = whole[0]
    else:
        features = extract(classifier, train.images, device, chunk)
    labels = train.labels.to(device)
    if protocol == "published_eval":
        layer = fit_published_probe(features, labels, train.classes, seed)
        found: dict[str, Any] = {"penalty": 0.0, "gradient_norm": 0.0, "scale": 1.0, "held_out": []}
        found["note"] = "Adam 3e-4, 20 epochs, batches of 256 (arXiv:2501.03507)"
    else:
        fit = fit_probe(features, labels, train.classes)
        layer = fit.layer
        band = probe_band(classifier, protocol, fit.others | {fit.penalty: layer}, test, spec, seed, device)
        found = {name: getattr(fit, name) for name in ("penalty", "gradient_norm", "scale", "held_out")} | {
            "band": band
        }
        if fit.gradient_norm > GRADIENT_NORM:
            found["note"] = f"the probe did not converge: gradient norm {fit.gradient_norm:.2g} above {GRADIENT_NORM:g}"
    unsound = int((~features.isfinite().all(dim=1)).sum())
    if unsound:
        found["note"] = (
            f"features of {unsound} of {len(train)} training images are NaN or infinite: left out, and wrong"
        )
    probe = ProbeResult(
        protocol=protocol,
        feature_width=features.shape[1],
        train_correct=int(predicted(layer(features)).eq(labels).sum()),
        train_total=len(train),
        seconds=time.monotonic() - began,
        **found,
    )
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
    """The complete result of a cell (see ``attack_cell``)."""
    return list(attack_cell(classifier, test, cell, spec, seed, device, carried, report))[-1]


def attack_cell(
    classifier: Classifier,
    test: ImageSet,
    cell: Cell,
    spec: EvalSpec,
    seed: int,
    device: torch.device,
    carried: Tensor | None,
    report: Report,
    earlier: EvalResult | None = None,
    kept: Tensor | None = None,
    team: Team = in_this_process,
    at_first: Before | None = None,
) -> Iterator[EvalResult]:
    """Attack the first images of the test set, verify what comes back, count: one result after each of its stages.

    Only the last result is complete; those before it are upper bounds, and ``earlier`` is one to go on from.
    ``carried`` (N,): an image that PGD broke at a smaller eps counts as broken here too and is not attacked again.
    ``kept`` (K, C, H, W): takes what is returned for the first K images, in place.
    ``at_first``: the model as it has to be found and left. Raises AttackError for an attack that does not.
    """
    at_first = at_first or Before(classifier)
    attack = build_attack(cell, spec)
    config = attack.describe(test.classes) | {"eps": cell.eps, "seed": seed, "images": cell.images}
    config["attack"] = cell.name  # that of a file, wherever it lies
    if cell.protocol == "multi_patch":
        config |= {"crops": spec.crops, "crop_seed": spec.crop_seed}
    if spec.search != "fp32":
        config["search"] = spec.search
    standing = torch.ones(cell.images, dtype=torch.bool)
    if carried is not None and cell.attack == "pgd":
        asked = plan_cells(spec.model_copy(update={"protocols": (cell.protocol,)}), len(test))
        config["carried_from"] = [other.eps for other in asked if other.attack == "pgd" and other.eps < cell.eps]
        standing &= carried[: cell.images]
    notes, seconds, flips, done, traces = [], 0.0, 0, [], set()
    if earlier is not None and earlier.config_hash == config_hash(config):
        notes = [note for note in earlier.note.split("; ") if not note.startswith("upper bound")]
        seconds, flips, done = earlier.seconds, earlier.flips, list(earlier.stages)
        traces = set(earlier.traces)
        standing = torch.tensor([outcome == "1" for outcome in earlier.outcomes])
    stages = attack.stages(test.classes, cell.images)
    missing = [name for name in stages if name not in dict(done)]
    for name in missing:
        began = time.monotonic()
        with listening(cell, report) as warnings:
            search, made = build_search(classifier, stages[name], cell, spec, seed, device), 0
            for ids, stands, flipped, moved in team(search, cell, name, test, standing):
                if kept is not None:
                    attacked = ids[standing[ids]]
                    kept[attacked[attacked < len(kept)]] = moved[attacked < len(kept)]
                standing[ids], flips, made = stands, flips + flipped, made + len(ids)
                report({"event": "attack", "protocol": cell.protocol, "attack": cell.name, "eps": cell.eps,
                        "done": made, "total": cell.images})  # fmt: skip
        seconds += time.monotonic() - began
        traces |= set(blame(at_first, search.label, partial(search.ask, test), attacked=cell.attack != "none"))
        notes = list(dict.fromkeys([*notes, *warnings]))
        if len(stages) > 1:
            done.append((name, int(standing.sum())))
        complete = name == missing[-1] or not standing.any()
        yield EvalResult(
            protocol=cell.protocol,
            attack=cell.name,
            threat_space=attack.space,
            norm=cell.norm,
            eps=cell.eps,
            outcomes="".join("1" if stands else "0" for stands in standing.tolist()),
            curve=cell.curve,
            seconds=seconds,
            config=config,
            config_hash=config_hash(config),
            complete=complete,
            stages=done,
            flips=flips,
            traces=sorted(traces),
            note="; ".join(notes if complete else [f"{STOPPED} {name}", *notes]),
        )
        if complete:
            return


def build_attack(cell: Cell, spec: EvalSpec) -> BaseAttack:
    """The attack of a cell with the settings of the level; ``published_eval`` has the paper's own PGD."""
    attack: BaseAttack = registry.load("attack", cell.attack).Attack()
    attack = configured(attack, spec.attack_settings.get(cell.name, {}))
    if cell.attack == "autoattack":
        return replace(attack, batch=max(1, spec.autoattack_batch // crops_per_image(spec, cell.protocol)))  # type: ignore[call-arg]
    attack = replace(attack, chunk=chunk_images(spec, cell.protocol))
    if cell.attack == "pgd" and cell.protocol == "published_eval":
        return replace(attack, absolute_step=0.01, random_start=False)  # type: ignore[call-arg]
    if cell.attack == "pgd":
        return replace(attack, restarts=spec.restarts)  # type: ignore[call-arg]
    return attack


def build_search(
    classifier: Classifier, attack: BaseAttack, cell: Cell, spec: EvalSpec, seed: int, device: torch.device
) -> Search:
    """One stage of a cell's attack, pointed at the classifier."""
    passes = chunk_images(spec, cell.protocol)
    return Search(classifier, attack, cell.name, cell.protocol, cell.eps, spec.search, seed, device, passes, cell.norm)


def crops_per_image(spec: EvalSpec, protocol: str) -> int:
    """Encoder passes for one image."""
    return spec.crops if protocol == "multi_patch" else 1


def chunk_images(spec: EvalSpec, protocol: str) -> int:
    """Images per pass, so that the number of crops per pass is about the same under every protocol."""
    return max(1, spec.chunk // crops_per_image(spec, protocol))
