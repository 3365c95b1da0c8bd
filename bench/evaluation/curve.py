"""Accuracy over the training: the encoder at some shares of the budget, scored on held-out training images.

The schedule of a snapshot is not annealed, so its accuracy is not the one at that budget. The probe is that of the
linear protocol, on four fifths of the training images, and the last fifth is judged: the test set takes no part.
"""

import copy
import time
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor, nn

from bench.alarms import Judged, alarm, stage_share
from bench.evaluation.attack_cell import run_cell
from bench.evaluation.evaluated import Evaluated, chunk_images
from bench.evaluation.search import Cell
from bench.protocols.common.base import Material, protocol_of
from bench.protocols.common.probe import held_out
from bench.record import TrainResult
from bench.spec import ThreatModel
from bench.storage.files import sha256
from bench.storage.store import Point, RunFolder, Snapshot

MARKS = (10, 25, 50, 75)  # percent of the budget at which a snapshot is taken; the trained encoder is 100
PROTOCOL = "linear"  # the one that judges every mark
IMAGES = 200  # held-out images that PGD attacks, the same ones with the same draws at every mark


def curve(it: Evaluated[RunFolder], result: TrainResult, adversary: str) -> str:
    """Measure every snapshot and the trained encoder, each stored in curve.json as soon as it is known, and once.

    What the course of a training against an ``adversary`` warns of (bench.alarms) is reported with the point that shows
    it. A snapshot that cannot be scored costs no other number. Returns what is missing, or "".
    """
    spec, folder = it.spec, it.cells
    points = {point.snapshot.percent: point for point in folder.curve()}
    if spec.over_time == "off":
        return ""
    missing = []
    warning = alarm(adversary, course(points, result))
    for snapshot, weights in moments(it.encoder, result, folder, set(points)):
        began = time.monotonic()
        at_mark = copy.deepcopy(it.encoder)
        at_mark.load_state_dict(weights)
        try:
            clean, robust = score(replace(it, encoder=at_mark))
        except Exception as error:
            missing.append(f"{snapshot.percent} % ({type(error).__name__}: {error})".splitlines()[0])
            continue
        points[snapshot.percent] = Point(
            snapshot=snapshot,
            passes_per_image=passes_per_image(result) * snapshot.updates,
            clean=clean,
            robust=robust,
            eps=spec.main_eps,
            seconds=time.monotonic() - began,
        )
        folder.save_curve([points[percent] for percent in sorted(points)])
        before, warning = warning, alarm(adversary, course(points, result))
        it.report({"event": "curve", "percent": snapshot.percent, "clean": clean[0] / clean[1],
                   "robust": robust[0] / robust[1] if robust else None,
                   "alarm": warning if warning != before else ""})  # fmt: skip
    return f"accuracy over the training at {'; '.join(missing)}" if missing else ""


def course(points: dict[int, Point], result: TrainResult) -> list[Judged]:
    """The points whose robust accuracy is known, in the order of the training."""
    return [
        Judged(percent, stage_share(result, points[percent].snapshot.updates), *robust)
        for percent in sorted(points)
        if (robust := points[percent].robust) is not None
    ]


def moments(
    encoder: nn.Module, result: TrainResult, folder: RunFolder, known: set[int]
) -> Iterator[tuple[Snapshot, dict[str, Tensor]]]:
    """(where it stands in the training, its weights) of each encoder that is not known yet."""
    for mark in MARKS:
        snapshot = folder.snapshot(mark) if mark not in known else None
        if snapshot is not None:
            yield snapshot
    if 100 not in known:
        weights = dict(encoder.state_dict())
        values = result.model_dump(include={"progress", "updates", "train_seconds", "energy_joules"})
        yield Snapshot(percent=100, sha256=sha256(weights), **values), weights


def score(it: Evaluated[RunFolder]) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """(correct, total) of the held-out training images, clean and under PGD with one restart at the main eps."""
    held = held_out(len(it.train))
    fitted, judged = it.train.take(~held), it.train.take(held)
    single = replace(it, test=judged, spec=it.spec.model_copy(update={"restarts": 1}))
    spec = single.spec
    classifier, threat = single.bare_classifier(PROTOCOL), ThreatModel(eps=spec.main_eps)
    material = Material(fitted, it.seed, it.device, chunk_images(spec, PROTOCOL), threat)
    protocol_of(spec, PROTOCOL).fit(classifier, material)
    cells = [Cell(PROTOCOL, "none", 0.0, len(judged))]
    if spec.over_time == "robust":
        cells.append(Cell(PROTOCOL, "pgd", spec.main_eps, min(IMAGES, len(judged))))
    counts = []
    for cell in cells:
        result = run_cell(single, classifier, cell)
        counts.append((result.correct, result.total))
    return counts[0], counts[1] if len(counts) > 1 else None


def passes_per_image(result: TrainResult) -> float:
    """Passes of all kinds that one update makes, per image of the training set."""
    per_epoch = result.forward_per_image + result.backward_input_per_image + result.backward_weight_per_image
    return per_epoch * result.epochs / result.updates
