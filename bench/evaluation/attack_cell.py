"""One cell: an attack at one eps under one protocol, stage by stage, each stage verified and counted.

The order of a stage: who still stands is attacked, chunk by chunk (bench.evaluation.search, which decides in float32);
then what the attack left behind in the model is looked for and put back (bench.evaluation.traces); then it is a result.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attacks.common.base import BaseAttack, config_hash, configured
from attacks.common.threat import geometry
from bench import registry
from bench.evaluation.cells import plan_cells
from bench.evaluation.evaluated import Evaluated, chunk_images, passes_per_image
from bench.evaluation.search import Cell, Search, Team, in_this_process, listening
from bench.evaluation.traces import Before, blame
from bench.events import silent
from bench.names import family
from bench.protocols.common.base import protocol_of
from bench.protocols.common.classifier import Classifier
from bench.record import EvalResult
from bench.spec import EvalSpec


@dataclass(frozen=True)
class Start:
    """What is known before a cell begins.

    ``carried`` (N,): which test images PGD has not broken at a smaller eps; a broken one counts as broken here too and
    is not attacked again. An eps that was asked for looks at smaller ones that were asked for too, one of the curve at
    all. None: every image is attacked.
    ``earlier``: an incomplete result, which is gone on from where it was made with the same settings.
    ``kept`` (K, C, H, W): takes what is returned for the first K images, in place.
    """

    carried: Tensor | None = None
    earlier: EvalResult | None = None
    kept: Tensor | None = None


def run_cell(it: Evaluated[Any], classifier: Classifier, cell: Cell) -> EvalResult:
    """The complete result of a cell on its own: nothing is carried from a smaller eps, and nobody hears of it."""
    return list(attack_cell(replace(it, report=silent), classifier, cell))[-1]


def attack_cell(
    it: Evaluated[Any],
    classifier: Classifier,
    cell: Cell,
    start: Start | None = None,
    team: Team = in_this_process,
    at_first: Before | None = None,
) -> Iterator[EvalResult]:
    """Attack the first images of the test set, verify what comes back, count: one result after each of its stages.

    Only the last result is complete; those before it are upper bounds. ``at_first``: the model as it has to be found
    and left. Raises AttackError for an attack that does not.
    """
    at_first, start = at_first or Before(classifier), start or Start()
    attack = build_attack(cell, it.spec)
    config = cell_config(it, cell, attack)
    standing = torch.ones(cell.images, dtype=torch.bool)
    if start.carried is not None and cell.attack == "pgd":
        config["carried_from"] = smaller_eps(it, cell)
        standing &= start.carried[: cell.images]
    # the warnings, seconds, flips and stages of the cell so far; of an earlier call too, if its settings were these
    notes, seconds, flips, done, traces = [], 0.0, 0, [], set()
    earlier = start.earlier
    if earlier is not None and earlier.config_hash == config_hash(config):
        notes = earlier.note.split("; ") if earlier.note else []
        seconds, flips, done = earlier.seconds, earlier.flips, list(earlier.stages)
        traces = set(earlier.traces)
        standing = torch.tensor([outcome == "1" for outcome in earlier.outcomes])
    stages = attack.stages(it.test.classes, cell.images)
    missing = [name for name in stages if name not in dict(done)]
    distances = torch.full((cell.images if attack.minimum else 0,), torch.inf, dtype=torch.float64)
    for name in missing:
        began = time.monotonic()
        with listening(cell, it.report) as warnings:
            search, attacked_so_far = build_search(it, classifier, stages[name], cell), 0
            for ids, stands, flipped, moved in team(search, cell, name, it.test, standing):
                if attack.minimum:
                    given, broken = ids[standing[ids]], ~stands[standing[ids]]
                    away = geometry(search.threat).distance(moved, it.test.pictures(given, "cpu"))
                    distances[given[broken]] = away[broken].double()
                if start.kept is not None:  # who has fallen before keeps the picture that broke it
                    attacked = ids[standing[ids]]
                    within = attacked < len(start.kept)
                    start.kept[attacked[within]] = moved[within]
                standing[ids], flips = stands, flips + flipped
                attacked_so_far += len(ids)
                it.report({"event": "attack", "protocol": cell.protocol, "attack": cell.attack, "eps": cell.eps,
                           "done": attacked_so_far, "total": cell.images})  # fmt: skip
        seconds += time.monotonic() - began
        # after the clock and before the result: a number whose attack changed the model is none
        traces |= set(blame(at_first, search.label, partial(search.ask, it.test), attacked=cell.attack != "none"))
        notes = list(dict.fromkeys([*notes, *warnings]))
        if len(stages) > 1:
            done.append((name, int(standing.sum())))
        complete = name == missing[-1] or not standing.any()  # with nobody left, later stages have nothing to do
        yield EvalResult(
            protocol=cell.protocol,
            attack=cell.attack,
            threat_space=attack.space,
            norm=cell.norm,
            eps=cell.eps,
            outcomes="".join("1" if stands else "0" for stands in standing.tolist()),
            curve=cell.curve,
            distances=[None if math.isinf(distance) else distance for distance in distances.tolist()],
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


def cell_config(it: Evaluated[Any], cell: Cell, attack: BaseAttack) -> dict[str, Any]:
    """All that decides the outcome of a cell on given weights and images; its hash stands beside the number."""
    config = attack.describe(it.test.classes) | {"eps": cell.eps, "seed": it.seed, "images": cell.images}
    config["attack"] = cell.attack  # that of a file, wherever it lies
    config |= protocol_of(it.spec, cell.protocol).settings(it.spec)
    return config | ({"search": it.spec.search} if it.spec.search != "fp32" else {})


def smaller_eps(it: Evaluated[Any], cell: Cell) -> list[float]:
    """The eps whose broken images count as broken in this cell of PGD."""
    planned = plan_cells(it.spec.model_copy(update={"protocols": (cell.protocol,)}), len(it.test))
    smaller = [other for other in planned if other.attack == "pgd" and other.eps < cell.eps]
    return [other.eps for other in smaller if cell.curve or not other.curve]


def build_attack(cell: Cell, spec: EvalSpec) -> BaseAttack:
    """The attack of a cell with the settings of the protocol, where it has attacks of its own, or of the level."""
    attack: BaseAttack = registry.load("attack", spec.attack_paths.get(cell.attack, cell.attack)).Attack()
    attack = configured(attack, spec.attack_settings.get(cell.attack, {}))
    own = protocol_of(spec, cell.protocol).attacks or {}
    if cell.attack in own:
        return replace(attack, chunk=chunk_images(spec, cell.protocol), **own[cell.attack])
    if family(cell.attack) == "autoattack":
        return replace(attack, batch=max(1, spec.autoattack_batch // passes_per_image(spec, cell.protocol)))  # type: ignore[call-arg]
    attack = replace(attack, chunk=chunk_images(spec, cell.protocol))
    if family(cell.attack) == "pgd":
        return replace(attack, restarts=spec.restarts)  # type: ignore[call-arg]
    return attack


def build_search(it: Evaluated[Any], classifier: Classifier, attack: BaseAttack, cell: Cell) -> Search:
    """One stage of a cell's attack, pointed at the classifier."""
    passes = chunk_images(it.spec, cell.protocol)
    return Search(
        classifier, attack, cell.attack, cell.protocol, cell.eps, it.spec.search, it.seed, it.device, passes, cell.norm
    )
