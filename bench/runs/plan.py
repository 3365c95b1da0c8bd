"""What a run will take: cells, training time, evaluation time and memory, from a few measured steps.

The time of a pass is measured for two batch sizes and taken as a + b * n; what an attack costs is counted in passes
(protocol: an attack step on a frozen encoder is 2 F, AutoAttack about 11.7 kF for an image that survives it).
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from bench.data.corruptions import SEVERITIES, TYPES
from bench.events import Report
from bench.fairness import LEARNING_UPDATES
from bench.names import CORRUPTIONS, family
from bench.record import TrainResult
from bench.spec import Data, EvalSpec, RunSpec

STANDING = {
    "none": 0.0,
    "pgd": 0.45,
    "free": 0.45,
    "nfgsm": 0.45,
}  # assumed robust accuracy at the main eps, by training adversary
AUTOATTACK_PASSES = 11_700  # of an image that survives all four attacks
EARLY_PASSES = 10  # of an image that falls at once
# of the audit, with the passes that the checks of a healthy model on digits have counted (tests/zoo)
STRUCTURAL_PASSES = {False: 2400, True: 700}  # where images are dear, and once over the test set
AUDIT_PASSES = {"core": (40, 346), "full": (290, 789)}  # of an audited image, and more of one that stands
ZERO_PASSES = 20  # of an audited image where the number is 0, which few checks judge
DRAWS = {"A3": (100, 101), "A14": (500, 101)}  # full: images at most, passes of each
NOISE = (100, 1000)  # A13, the same for those that stand
FORMS = len(TYPES) * len(SEVERITIES)  # of an image that is corrupted
CORRUPT_SECONDS = 0.003  # to make one of them at 32 pixels, the mean over the types on one core
MINIMUM_PASSES = 400  # of every image under FMN
START_SECONDS = 8.0  # imports, data and probes of one run
CURVE_POINTS = 5  # snapshots, and the trained encoder
CURVE_IMAGES = 200  # that PGD attacks at each of them


class Measured(Data):
    """A few steps of one method: seconds of an update, of a pass (a + b * images) by protocol, and peak memory."""

    row: str
    adversary: str
    updates: int | None  # of the whole training; None for a budget in time
    update_seconds: float
    warm_up_seconds: float
    passes: dict[str, tuple[float, float]]
    train_images: int
    test_images: int
    peak_memory_bytes: int


class Estimate(Data):
    """What one run is expected to take."""

    row: str
    seed: int
    train_seconds: float  # with the warm-up, which is off the clock
    warm_up_seconds: float
    evaluate_seconds: float
    peak_memory_bytes: int
    cells: int
    updates: int  # that the budget will hold
    protocols: dict[str, float] = Field(
        default_factory=dict
    )  # seconds of its evaluation by protocol: the head, the attacks and their audit

    @property
    def seconds(self) -> float:
        return self.train_seconds + self.evaluate_seconds


def estimate(spec: RunSpec, measured: Measured) -> Estimate:
    """Expected training and evaluation time of one run."""
    from bench.evaluation.cells import plan_cells
    from bench.evaluation.curve import PROTOCOL
    from bench.protocols.common.base import protocol_of

    if measured.updates is None:
        training, updates = spec.budget.amount, spec.budget.amount / max(measured.update_seconds, 1e-9)
    else:
        training, updates = measured.updates * measured.update_seconds, measured.updates
    robust = STANDING[measured.adversary] * min(1.0, updates / LEARNING_UPDATES) ** 2
    cells = plan_cells(spec.eval, measured.test_images)
    seconds = {name: head_seconds(spec.eval, name, measured) for name in spec.eval.protocols}
    for cell in cells:
        a, b = measured.passes[cell.protocol]
        eps = cell.eps if cell.norm == "linf" else spec.eval.main_eps  # what stands in l2 is not known before
        seconds[cell.protocol] += cell_seconds(cell.attack, eps, cell.images, spec.eval, robust, a, b)
        protocol = protocol_of(spec.eval, cell.protocol)
        if cell.attack == "autoattack" and protocol.ranked and "pgd" in spec.eval.attacks:
            audited = audit_seconds(protocol.dear, cell.images, measured.test_images, spec.eval, robust, a, b)
            seconds[cell.protocol] += audited
    evaluation = START_SECONDS + sum(seconds.values()) + shift_seconds(spec.eval, measured)
    if spec.eval.over_time != "off":
        evaluation += curve_seconds(measured.train_images, spec.eval, robust, *measured.passes[PROTOCOL])
    return Estimate(
        row=spec.row,
        seed=spec.seed,
        train_seconds=training + measured.warm_up_seconds,
        warm_up_seconds=measured.warm_up_seconds,
        evaluate_seconds=evaluation,
        peak_memory_bytes=measured.peak_memory_bytes,
        cells=len(cells),
        updates=int(updates),
        protocols=seconds,
    )


def head_seconds(spec: EvalSpec, protocol: str, measured: Measured) -> float:
    """Expected seconds of fitting a protocol's head: its passes, in batches large enough that their number is all."""
    from bench.protocols.common.base import protocol_of

    return protocol_of(spec, protocol).fit_passes(measured.train_images) * measured.passes[protocol][1]


def shift_seconds(spec: EvalSpec, measured: Measured) -> float:
    """Expected seconds of the largest shift of the features (bench.evaluation.embedding)."""
    from bench.evaluation.embedding import IMAGES, MOST, STEPS

    images = min(IMAGES.get(spec.level, MOST), measured.test_images)
    return 2 * (STEPS + 1) * images * min(slope for _, slope in measured.passes.values())


def cell_seconds(attack: str, eps: float, images: int, spec: EvalSpec, robust: float, a: float, b: float) -> float:
    """Expected seconds of one cell, where a pass of n images takes a + b * n and ``robust`` is expected to stand.

    Robust accuracy is taken to fall in a straight line over eps, from 1 at 0 to ``robust`` at the main eps.
    """
    standing = images * max(0.0, 1 - (1 - robust) * eps / spec.main_eps) if robust else 0.0
    if attack == "none":
        return a + b * images
    if attack == CORRUPTIONS:
        return FORMS * (a + (b + CORRUPT_SECONDS) * images)
    if attack in spec.minimum_norm:
        return MINIMUM_PASSES * (a + b * images)
    if family(attack) == "autoattack":
        return AUTOATTACK_PASSES * (a + b * standing) * (standing >= 1) + 4 * EARLY_PASSES * (a + b * images)
    restarts = spec.restarts if family(attack) == "pgd" else 1
    return 41 * restarts * (a + b * standing) + EARLY_PASSES * (a + b * images)


def audit_seconds(
    dear: bool, images: int, test_images: int, spec: EvalSpec, robust: float, a: float, b: float
) -> float:
    """Expected seconds of the audit of a number on so many images; a, b and ``robust`` as in ``cell_seconds``."""
    if spec.audit == "off":
        return 0.0
    from bench.audit.checks.attacks import IMAGES

    n = min(images, IMAGES[spec.audit, dear])
    standing = robust * n
    seconds = b * (STRUCTURAL_PASSES[dear] + test_images)
    if standing < 1:
        return seconds + ZERO_PASSES * (a + b * n)
    base, left = AUDIT_PASSES[spec.audit]
    seconds += base * (a + b * n) + left * (a + b * standing)
    if spec.audit == "full":
        seconds += sum(passes * (a + b * min(n, count)) for count, passes in DRAWS.values())
        seconds += NOISE[1] * b * min(standing, NOISE[0])
    return seconds


def curve_seconds(train_images: int, spec: EvalSpec, robust: float, a: float, b: float) -> float:
    """Expected seconds of the curve (bench.evaluation.curve), each point scored on the held-out fifth of the images."""
    passes = a + b * train_images
    if spec.over_time == "robust":
        n = min(CURVE_IMAGES, train_images // 5)
        passes += cell_seconds("pgd", spec.main_eps, n, spec.model_copy(update={"restarts": 1}), robust, a, b)
    return CURVE_POINTS * passes


def measure(specs: list[RunSpec], report: Report) -> None:
    """Measure a few steps of every method in this process, and report each before it begins and its Measured after.

    Memory is the peak of the process so far, so methods that need less than one before them show that one's.
    """
    from bench import registry
    from bench.data.images import load_data
    from bench.device import device as devices
    from bench.evaluation.curve import PROTOCOL
    from bench.spec import Budget
    from bench.training.build import build_method
    from bench.training.stages import laid_out
    from bench.training.train import train

    passes: dict[tuple[str, int], tuple[float, float]] = {}
    for spec in specs:
        device = devices.resolve(spec.device)
        devices.prepare(device, spec.threads)
        dataset = registry.load("dataset", spec.data.name).Dataset()
        train_set, test_set = load_data(dataset, spec.data)
        report({"event": "about", "name": spec.row})
        method, _ = build_method(spec, dataset, train_set.image_shape[0], train_set.classes)
        ends, total = laid_out(method, len(train_set), spec.budget)
        # one of several GPUs has its part of the batch; what they send each other is not in the plan
        method.config = replace(method.config, batch=max(2, method.config.batch // spec.gpus_per_run))
        evenly = tuple(replace(stage, share=1 / len(ends)) for stage in method.stages())
        method.stages = lambda stages=evenly: stages  # an update in each, however small its share
        few = Budget(amount=len(ends) if len(ends) > 1 else min(2, total or 1), unit="updates")
        result = train(method, train_set, few, spec.seed, device, precision=spec.precision)
        protocols = dict.fromkeys([*spec.eval.protocols, *[PROTOCOL] * (spec.eval.over_time != "off")])
        for protocol in protocols:
            key = (protocol, method.config.feature_width)
            if key not in passes:
                passes[key] = pass_seconds(method.kept(), test_set, spec.eval, protocol, device)
        measured = Measured(
            row=spec.row,
            adversary=method.adversary,
            updates=total,
            update_seconds=update_seconds(result, ends, total is None),
            warm_up_seconds=result.compile_seconds,
            passes={p: passes[p, method.config.feature_width] for p in protocols},
            train_images=len(train_set),
            test_images=len(test_set),
            peak_memory_bytes=devices.peak_memory_bytes(device),
        )
        report({"event": "measured", "found": measured.model_dump()})


def update_seconds(result: TrainResult, ends: Sequence[float], timed: bool) -> float:
    """Mean seconds of an update of a training whose stages end at these shares of its budget, ``timed`` or counted."""
    if not result.stages:
        return result.median_update_seconds
    shares = [end - begin for begin, end in itertools.pairwise([0.0, *ends])]
    seconds = [float(stage["seconds"]) / max(int(stage["updates"]), 1) for stage in result.stages]
    if timed:  # a stage makes as many updates as fit into its share of the time
        return 1 / max(sum(share / each for share, each in zip(shares, seconds, strict=True) if each), 1e-12)
    return sum(share * each for share, each in zip(shares, seconds, strict=True))


def pass_seconds(encoder: Any, images: Any, spec: EvalSpec, protocol: str, device: Any) -> tuple[float, float]:
    """(a, b): seconds of a forward pass of n images are a + b * n; half of a pass with the images' gradient."""
    import torch

    from bench.device import device as devices
    from bench.evaluation.evaluated import chunk_images
    from bench.protocols.common.base import protocol_of

    asked = protocol_of(spec, protocol)
    classifier = asked.build(asked.reads(encoder), images.image_shape[1:], spec).to(device)
    sizes = (4, min(len(images), max(8, chunk_images(spec, protocol) // 4)))
    times = []
    for size in sizes:
        batch = images.pictures(slice(size), device)
        best = float("inf")
        for _ in range(4):  # the first one warms up
            devices.synchronize(device)
            began = time.perf_counter()
            moved = batch.clone().requires_grad_()
            torch.autograd.grad(classifier(moved).square().sum(), moved)
            devices.synchronize(device)
            best = min(best, time.perf_counter() - began)
        times.append(best / 2)
    slope = max((times[1] - times[0]) / (sizes[1] - sizes[0]), times[1] / sizes[1] / 10)
    return max(times[0] - slope * sizes[0], times[0] / 10), slope


def total_seconds(estimates: list[Estimate], jobs: int = 1) -> float:
    """Expected seconds of all runs, so many at a time: at least those of the longest."""
    return max(sum(run.seconds for run in estimates) / jobs, max((run.seconds for run in estimates), default=0.0))


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(42.3), duration(150), duration(9000)
    ('42 s', '2.5 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.3g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"
