"""The head of each protocol: as it is stored, or fitted on the training images, and how much its number hangs on it."""

import contextlib
import time
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from bench.evaluation.attack_cell import run_cell
from bench.evaluation.evaluated import Evaluated, chunk_images, restore
from bench.evaluation.search import Cell
from bench.protocols.common.base import Material, protocol_of
from bench.protocols.common.classifier import Classifier
from bench.protocols.common.draft import Draft, Passes, State
from bench.record import ProbeResult
from bench.spec import ThreatModel

SAVE_EVERY = 10.0  # seconds of a head's training between two states that are stored


def fitted_classifier(it: Evaluated[Any], protocol: str, kept: dict[int, list[Tensor]]) -> Classifier:
    """The protocol's classifier: as it is stored, or fitted now on the training images and then stored.

    ``kept`` holds the features of whole images, which several protocols read, between the calls.
    """
    stored = it.stored_classifier(protocol)
    if stored is not None:
        return stored
    asked, classifier = protocol_of(it.spec, protocol), it.bare_classifier(protocol)
    it.report({"event": "probe", "protocol": protocol})
    clock = Spent(it, protocol)
    threat = ThreatModel(eps=it.spec.main_eps)
    chunk = chunk_images(it.spec, protocol)
    same = kept.setdefault(id(asked.reads(it.encoder)), [])
    material = Material(it.train, it.seed, it.device, chunk, threat, same, clock.draft, clock.passes)
    # a protocol that tunes the encoder works on copies of it, and counts there
    with contextlib.nullcontext() if asked.tunes else clock.passes.counted(classifier.encoder):
        fitted = asked.fit(classifier, material)
    tensors = asked.stored(classifier)
    chosen = fitted.facts.get("penalty") or fitted.facts.get("learning_rate", 0.0)
    band = probe_band(it, protocol, classifier, fitted.others | {chosen: classifier.probe} if fitted.others else {})
    seconds, passes = clock.seconds(), clock.passes.total
    head = ProbeResult(protocol=protocol, band=band, seconds=seconds, passes=passes, **fitted.facts)
    it.cells.save_probe(head, tensors)
    restore(it.spec, protocol, classifier, tensors, it.device)
    return classifier


class Spent:
    """The seconds and passes of one fit, those of earlier calls included, and the draft that it goes on from."""

    def __init__(self, it: Evaluated[Any], protocol: str) -> None:
        state = it.cells.head_state(protocol) or {"seconds": 0.0, "passes": 0.0, "trainings": {}}
        self.it, self.protocol = it, protocol
        self.before: float = state["seconds"]
        self.began = self.saved = time.monotonic()
        self.passes = Passes(state["passes"])
        self.draft = Draft(state["trainings"], self.save)

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def save(self, trainings: State) -> None:
        """Tell that an epoch is done, and store what is reached, if the last time is long ago."""
        self.it.report({"event": "probe", "protocol": self.protocol})
        if time.monotonic() - self.saved >= SAVE_EVERY:
            state = {"seconds": self.seconds(), "passes": self.passes.total, "trainings": trainings}
            self.it.cells.save_head_state(self.protocol, state)
            self.saved = time.monotonic()


def probe_band(
    it: Evaluated[Any], protocol: str, classifier: Classifier, probes: dict[float, nn.Module]
) -> list[tuple[float, int, int]]:
    """PGD accuracy (one restart, at the main eps) with each probe: lambda/10, lambda and 10 lambda (protocol 1.2), or
    the learning rates that were tried. Of a fine-tuned encoder there are whole classifiers in place of probes.
    """
    cell = Cell(protocol, "pgd", it.spec.main_eps, min(it.spec.band_images, len(it.test)))
    single = replace(it, spec=it.spec.model_copy(update={"restarts": 1}))
    band = []
    for value, probe in sorted(probes.items()):
        if not isinstance(probe, Classifier):
            classifier.probe = probe
        result = run_cell(single, probe if isinstance(probe, Classifier) else classifier, cell)
        band.append((value, result.correct, result.total))
    return band
