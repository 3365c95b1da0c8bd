"""The head of each protocol: as it is stored, or fitted on the training images, and how much its number hangs on it."""

import time
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from bench.evaluation.attack_cell import run_cell
from bench.evaluation.evaluated import Evaluated, chunk_images, restore
from bench.evaluation.search import Cell
from bench.protocols.common.base import Material, protocol_of
from bench.protocols.common.classifier import Classifier
from bench.record import ProbeResult


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
    single = replace(it, spec=it.spec.model_copy(update={"restarts": 1}))
    band = []
    for penalty, probe in sorted(probes.items()):
        classifier.probe = probe
        result = run_cell(single, classifier, cell)
        band.append((penalty, result.correct, result.total))
    return band
