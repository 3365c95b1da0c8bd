"""G1 of the regression gate: stored weights on fixed images, attacked by the code as it is; and the speed of an update.

The images are the test images and then training images, up to 1,000: what is tested is the code that attacks and
scores, not how well a model generalizes. Nothing is trained or fitted but the updates that are timed.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import registry
from bench.data.images import ImageSet, load_data
from bench.device import device as devices
from bench.device.clock_probe import Load
from bench.evaluation.attack_cell import run_cell
from bench.evaluation.cells import counted
from bench.evaluation.evaluated import Evaluated, restore
from bench.evaluation.search import Cell
from bench.events import Report
from bench.identity.source import together
from bench.protocols.common.classifier import Classifier
from bench.random import Draws
from bench.spec import Budget
from bench.storage.files import load_tensors, save
from bench.training.build import build_method
from bench.training.state import begun
from bench.training.step import tell, update
from methods.common.base import BaseMethod
from reports.regression import Fixed, FixedRun

IMAGES = 1000
ROUNDS = 15  # of an update and the calibration loop, in turns
CPU = torch.device("cpu")


def fixed_images(train: ImageSet, test: ImageSet) -> ImageSet:
    """The first IMAGES of test and then training images, in their fixed orders."""
    images = torch.cat([test.images[:IMAGES], train.images[:IMAGES]])[:IMAGES]
    labels = torch.cat([test.labels, train.labels])[:IMAGES]
    return dataclasses.replace(test, images=images, labels=labels, label=f"{test.label} (fixed)")


def score_all(asked: list[dict[str, Any]], folder: Path, out: Path, report: Report) -> None:
    """Score the stored weights of several methods, which lie in ``folder``, into the file ``out``."""
    scored, weights = [], [Fixed.model_validate(fields) for fields in asked]
    now = together(weight.spec for weight in weights)
    for weight in weights:
        report({"event": "about", "name": weight.spec.row})
        scored.append(score(weight, folder, report))
    save(out, FixedRun(fixed=scored, code=now))


def score(asked: Fixed, folder: Path, report: Report) -> Fixed:
    """The same with its outcomes and its speed, or with the reason why there are none. The weights lie in ``folder``.

    Raises UsageError where they are missing or others than asked for.
    """
    spec = asked.spec
    tensors = load_tensors(folder / asked.weights, asked.sha256)
    devices.prepare(CPU, spec.threads)
    dataset = registry.load("dataset", spec.data.name).Dataset()
    train, test = load_data(dataset, spec.data)
    images = fixed_images(train, test)
    measured: dict[str, Any] = {"images_sha256": images.sha256}
    try:
        method, _ = build_method(spec, dataset, train.image_shape[0], train.classes)
        it = Evaluated[Any](method.kept(), train, images, spec.eval, asked.seed, CPU, cells=None)  # nothing is stored
        classifier = stored(it, tensors, asked)
        for name, attack, eps in (("clean", "none", 0.0), ("attacked", "pgd", asked.eps)):
            result = run_cell(it, classifier, Cell(asked.protocol, attack, eps, len(images)))
            report(counted(result))
            measured[name] = result.outcomes
        measured["speed"] = loops_an_update(build_method(spec, dataset, train.image_shape[0], train.classes)[0], train)
    except Exception as error:  # whatever the code under test does wrong is what the gate is for
        measured |= {"clean": "", "attacked": "", "error": f"{type(error).__name__}: {error}".splitlines()[0]}
    return asked.model_copy(update=measured)


def stored(it: Evaluated[Any], tensors: dict[str, Tensor], asked: Fixed) -> Classifier:
    """The protocol's classifier with the stored encoder and probe."""
    weights = {key.removeprefix("encoder."): value for key, value in tensors.items() if key.startswith("encoder.")}
    it.encoder.load_state_dict(weights)
    classifier = it.bare_classifier(asked.protocol)
    probe = {key.removeprefix("probe."): value for key, value in tensors.items() if key.startswith("probe.")}
    restore(it.spec, asked.protocol, classifier, probe, CPU)
    return classifier


def loops_an_update(method: BaseMethod, images: ImageSet) -> float:
    """Median seconds of an update, its views and attack included, over those of the calibration loop.

    Both take turns, so that a slow moment of the machine falls on both.
    """
    config = method.config
    load = Load(CPU, "fp32")
    training = begun(method.train(), len(images), Budget(amount=1, unit="updates"), CPU)
    ids = torch.arange(config.batch)
    batch = images.images[ids]

    def replays() -> None:
        draws = Draws(0, 0, ids, config.views)
        tell(training, images, ids)
        for loss in training.adversary.losses(method, method.augment(batch, draws), draws=draws):
            update(training, loss)

    def seconds(work: Callable[[], None]) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    replays()
    load()
    ratios = [seconds(replays) / config.updates_per_batch / seconds(load) for _ in range(ROUNDS)]
    return round(statistics.median(ratios), 3)
