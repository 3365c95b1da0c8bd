"""Scores one encoder: protocol x attack x eps -> EvalResult, every attack verified here (protocol, section 1).

The encoder is frozen and in eval mode, float32 decides, ball and box are checked and correctness is counted on the
images that an attack returns. Images are attacked in the fixed test order, so smaller subsets are prefixes of larger.
What is cheap and tells most comes first: clean, then PGD, then AutoAttack, which is stored after each of its stages.
"""

import itertools
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attacks.common.base import BaseAttack, config_hash, configured
from bench import registry
from bench.data.images import ImageSet
from bench.evaluation.cells import failed_result, plan_cells
from bench.evaluation.evaluated import Evaluated, chunk_images, passes_per_image, restore, silent
from bench.evaluation.search import Cell, Report, Search, Team, in_this_process, listening
from bench.evaluation.traces import AttackError, Before, blame
from bench.protocols.common.base import Material, protocol_of
from bench.protocols.common.classifier import Classifier
from bench.record import EvalResult, ProbeResult
from bench.spec import EvalSpec

KEPT = 1000  # images of each ranked attack, for the audit and for whoever checks the number


def evaluate(it: Evaluated[Any], team: Team = in_this_process) -> str:
    """Fill every cell that is not there yet; each is saved as soon as it is known. Returns what is missing, or "".

    An attack that fails has no number: its cell says why, the next one starts from the stored weights, and the same
    call tries it again. Where there is no attack, what the model raises is raised.

    An attack of several stages is saved after each of them and goes on from there. ``spec.budget_seconds`` limits the
    seconds of all cells and probes of the run, those of earlier calls included: a cell or a stage that has begun is
    finished, and no other begins. The same call with more time goes on.
    """
    spec, test, cells = it.spec, it.test, it.cells
    kept: dict[int, list[Tensor]] = {}  # part of the encoder -> its features, while classifiers are fitted
    classifiers = {protocol: fitted_classifier(it, protocol, kept) for protocol in spec.protocols}
    kept.clear()
    probes = [cells.probe(protocol) for protocol in spec.protocols]
    spent = sum(probe[0].seconds for probe in probes if probe is not None)
    skipped: list[str] = []
    failed: dict[str, list[str]] = {}  # reason -> cells
    unsure: set[tuple[str, bool]] = set()  # where PGD failed at a smaller eps, as in ``carried``
    at_first = Before(nn.ModuleList([it.encoder, *classifiers.values()]))

    def exhausted() -> bool:
        return spec.budget_seconds is not None and spent >= spec.budget_seconds

    # Images that PGD has not broken at a smaller eps: (protocol, whether for the curve) -> (N,). The curve looks at the
    # first images only, so an eps that was asked for takes nothing from it: one attack for all its images. The curve on
    # all of them would cost many times what is attacked twice. A protocol's own attacks see every image at every eps.
    alone = {protocol for protocol in spec.protocols if protocol_of(spec, protocol).attacks is not None}
    carried = {key: torch.ones(len(test), dtype=torch.bool) for key in itertools.product(spec.protocols, (False, True))}
    for cell in plan_cells(spec, len(test)):
        result = earlier = cells.result(cell.protocol, cell.name, cell.eps, cell.norm)
        before = spent
        spent += earlier.seconds if earlier is not None else 0.0
        if result is None or not result.complete:
            name = f"{cell.protocol} {cell.name} {cell.eps:.6g}"
            if exhausted():
                skipped.append(name)
                continue
            classifier = classifiers[cell.protocol]
            images = carried[cell.protocol, cell.curve] if cell.protocol not in alone else None
            returned = kept_images(it, cell)
            try:
                if cell.attack == "pgd" and (cell.protocol, cell.curve) in unsure:
                    raise AttackError("pgd failed at a smaller eps, and what it breaks there counts here")
                for result in attack_cell(
                    classifier, test, cell, spec, it.seed, it.device, images, it.report, earlier, returned, team,
                    at_first,
                ):  # fmt: skip
                    spent = before + result.seconds
                    if returned is not None:  # the images first: where there is a result, they are complete
                        stored = cells.save_adversarial(cell.protocol, cell.name, returned)
                        result = result.model_copy(update={"images_sha256": stored})
                    stopped = exhausted() and not result.complete
                    if stopped:
                        result = result.model_copy(update={"stopped": True})
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
                if cell.attack == "pgd" and cell.protocol not in alone:
                    unsure |= {(cell.protocol, curve) for curve in (cell.curve, True)}
                it.report({"event": "failed", "protocol": cell.protocol, "attack": cell.name, "eps": cell.eps,
                           "message": str(error)})  # fmt: skip
                continue
            assert result is not None
            it.report(
                {"event": "cell", **{k: v for k, v in result.model_dump().items() if k in REPORTED}}
                | {"correct": result.correct, "total": result.total, "note": "; ".join(result.remarks)}
            )
        if cell.attack == "pgd":
            standing = torch.tensor([outcome == "1" for outcome in result.outcomes])
            for curve in {cell.curve, True}:
                carried[cell.protocol, curve][: len(standing)] &= standing
    late = f"the evaluation's {spec.budget_seconds:g} s are spent; missing: {', '.join(skipped)}" if skipped else ""
    without = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in failed.items())
    return "; ".join(filter(None, [late, f"without a number: {without}" if without else ""]))


REPORTED = ("protocol", "attack", "eps", "seconds")


def kept_images(it: Evaluated[Any], cell: Cell) -> Tensor | None:
    """What a ranked attack has returned so far, (K, C, H, W) in [0, 1], else the clean images; None for other cells.

    An image that PGD broke at a smaller eps is not attacked again: the picture that broke it then is kept.
    """
    ranked = protocol_of(it.spec, cell.protocol).ranked and cell.attack in ("pgd", "autoattack")
    if not ranked or cell.eps > it.spec.main_eps + 1e-9:
        return None
    stored: Tensor | None = it.cells.adversarial(cell.protocol, cell.attack)
    count = cell.images if cell.attack == "autoattack" else it.spec.pgd_images or len(it.test)
    return it.test.pictures(slice(min(KEPT, count)), "cpu") if stored is None else stored


def fitted_classifier(it: Evaluated[Any], protocol: str, kept: dict[int, list[Tensor]]) -> Classifier:
    """The protocol's classifier: as it is stored, or fitted now on the training images and then stored.

    ``kept`` holds the features of whole images, which several protocols read, between the calls.
    """
    stored = it.stored_classifier(protocol)
    if stored is not None:
        return stored
    asked, classifier = protocol_of(it.spec, protocol), it.bare_classifier(protocol)
    it.report({"event": "probe", "protocol": protocol})
    began = time.monotonic()
    same = kept.setdefault(id(asked.reads(it.encoder)), [])
    fitted = asked.fit(classifier, Material(it.train, it.seed, it.device, chunk_images(it.spec, protocol), same))
    tensors = asked.stored(classifier)
    probes = fitted.others | {fitted.facts["penalty"]: classifier.probe} if fitted.others else {}
    band = probe_band(it, protocol, classifier, probes)
    seconds = time.monotonic() - began
    it.cells.save_probe(ProbeResult(protocol=protocol, seconds=seconds, band=band, **fitted.facts), tensors)
    restore(it.spec, protocol, classifier, tensors, it.device)
    return classifier


def probe_band(
    it: Evaluated[Any], protocol: str, classifier: Classifier, probes: dict[float, nn.Module]
) -> list[tuple[float, int, int]]:
    """PGD accuracy (one restart, at the main eps) with the probe at lambda/10, lambda and 10 lambda (protocol 1.2).

    None where the protocol has no ``probes`` of other penalties.
    """
    cell = Cell(protocol, "pgd", it.spec.main_eps, min(it.spec.band_images, len(it.test)))
    single = it.spec.model_copy(update={"restarts": 1})
    band = []
    for penalty, probe in sorted(probes.items()):
        classifier.probe = probe
        result = run_cell(classifier, it.test, cell, single, it.seed, it.device)
        band.append((penalty, result.correct, result.total))
    return band


def run_cell(
    classifier: Classifier,
    test: ImageSet,
    cell: Cell,
    spec: EvalSpec,
    seed: int,
    device: torch.device,
) -> EvalResult:
    """The complete result of a cell on its own: nothing is carried from a smaller eps, and nobody hears of it."""
    return list(attack_cell(classifier, test, cell, spec, seed, device, None, silent))[-1]


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
    ``carried`` (N,): an image that PGD broke at a smaller eps counts as broken here too and is not attacked again. An
    eps that was asked for looks at smaller ones that were asked for too, one of the curve at all.
    ``kept`` (K, C, H, W): takes what is returned for the first K images, in place.
    ``at_first``: the model as it has to be found and left. Raises AttackError for an attack that does not.
    """
    at_first = at_first or Before(classifier)
    attack = build_attack(cell, spec)
    config = attack.describe(test.classes) | {"eps": cell.eps, "seed": seed, "images": cell.images}
    config["attack"] = cell.name  # that of a file, wherever it lies
    config |= protocol_of(spec, cell.protocol).settings(spec)
    if spec.search != "fp32":
        config["search"] = spec.search
    standing = torch.ones(cell.images, dtype=torch.bool)
    if carried is not None and cell.attack == "pgd":
        asked = plan_cells(spec.model_copy(update={"protocols": (cell.protocol,)}), len(test))
        smaller = (other for other in asked if other.attack == "pgd" and other.eps < cell.eps)
        config["carried_from"] = [other.eps for other in smaller if cell.curve or not other.curve]
        standing &= carried[: cell.images]
    notes, seconds, flips, done, traces = [], 0.0, 0, [], set()
    if earlier is not None and earlier.config_hash == config_hash(config):
        notes = earlier.note.split("; ") if earlier.note else []
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
            note="; ".join(notes),
        )
        if complete:
            return


def build_attack(cell: Cell, spec: EvalSpec) -> BaseAttack:
    """The attack of a cell with the settings of the protocol, where it has attacks of its own, or of the level."""
    attack: BaseAttack = registry.load("attack", cell.attack).Attack()
    attack = configured(attack, spec.attack_settings.get(cell.name, {}))
    own = protocol_of(spec, cell.protocol).attacks or {}
    if cell.attack in own:
        return replace(attack, chunk=chunk_images(spec, cell.protocol), **own[cell.attack])
    if cell.attack == "autoattack":
        return replace(attack, batch=max(1, spec.autoattack_batch // passes_per_image(spec, cell.protocol)))  # type: ignore[call-arg]
    attack = replace(attack, chunk=chunk_images(spec, cell.protocol))
    if cell.attack == "pgd":
        return replace(attack, restarts=spec.restarts)  # type: ignore[call-arg]
    return attack


def build_search(
    classifier: Classifier, attack: BaseAttack, cell: Cell, spec: EvalSpec, seed: int, device: torch.device
) -> Search:
    """One stage of a cell's attack, pointed at the classifier."""
    passes = chunk_images(spec, cell.protocol)
    return Search(classifier, attack, cell.name, cell.protocol, cell.eps, spec.search, seed, device, passes, cell.norm)
