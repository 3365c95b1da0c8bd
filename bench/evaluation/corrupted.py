"""The cell of common corruptions: how often the classifier is right on images that nobody chose against it.

An average case, apart from every attack: never in a worst case, a rank or a column of them. Its result holds an outcome
for each type, severity and image, in this order, and a stage for each type.
"""

import time
from collections.abc import Iterator
from typing import Any

import torch

from attacks.common.base import config_hash
from bench.data.corruptions import SEVERITIES, TYPES, corrupted, package_version
from bench.evaluation.evaluated import Evaluated, chunk_images
from bench.evaluation.search import Cell, predict
from bench.protocols.common.base import protocol_of
from bench.protocols.common.classifier import Classifier
from bench.record import EvalResult


def corrupted_cell(
    it: Evaluated[Any], classifier: Classifier, cell: Cell, earlier: EvalResult | None = None
) -> Iterator[EvalResult]:
    """Score the first images of the test set under every corruption: one result after each type, the last complete.

    ``earlier``: an incomplete result, which is gone on from where it was made with the same settings.
    """
    config = {"attack": cell.attack, "package": package_version(), "images": cell.images}
    config |= protocol_of(it.spec, cell.protocol).settings(it.spec)
    outcomes, seconds, done = "", 0.0, []
    if earlier is not None and earlier.config_hash == config_hash(config):
        outcomes, seconds, done = earlier.outcomes, earlier.seconds, list(earlier.stages)
    for kind in TYPES[len(done) :]:
        began = time.monotonic()
        new = "".join(outcomes_under(it, classifier, cell, kind, severity) for severity in SEVERITIES)
        outcomes, seconds = outcomes + new, seconds + time.monotonic() - began
        done.append((kind, new.count("1")))
        it.report({"event": "attack", "protocol": cell.protocol, "attack": cell.attack, "eps": 0.0,
                   "done": len(done), "total": len(TYPES)})  # fmt: skip
        yield EvalResult(
            protocol=cell.protocol,
            attack=cell.attack,
            threat_space="image",
            eps=0.0,
            outcomes=outcomes,
            seconds=seconds,
            config=config,
            config_hash=config_hash(config),
            complete=len(done) == len(TYPES),
            stages=list(done),
        )


def outcomes_under(it: Evaluated[Any], classifier: Classifier, cell: Cell, kind: str, severity: int) -> str:
    """'1' for each image that is right under one corruption, in the test order."""
    chunk = chunk_images(it.spec, cell.protocol)
    right = []
    for places in torch.arange(cell.images).split(chunk):
        clean = it.test.batch(places, "cpu").permute(0, 2, 3, 1).numpy()
        moved = [
            torch.from_numpy(corrupted(image, kind, severity, place))
            for image, place in zip(clean, places.tolist(), strict=True)
        ]
        images = torch.stack(moved).permute(0, 3, 1, 2).to(it.device).float() / 255
        right += predict(classifier, images, chunk).cpu().eq(it.test.labels[places].cpu()).tolist()
    return "".join("1" if is_right else "0" for is_right in right)
