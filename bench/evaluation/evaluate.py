"""Scores one encoder: protocol x attack x eps -> EvalResult, every attack verified here (protocol, section 1).

The encoder is frozen and in eval mode, float32 decides, ball and box are checked and correctness is counted on the
images that an attack returns. Images are attacked in the fixed test order, so smaller subsets are prefixes of larger.
What is cheap and tells most comes first: clean, then PGD, then AutoAttack, which is stored after each of its stages.
"""

import itertools
import traceback
from typing import Any

import torch
from torch import Tensor, nn

from bench.evaluation.attack_cell import Start, attack_cell, build_attack
from bench.evaluation.cells import counted, failed_result, plan_cells
from bench.evaluation.corrupted import corrupted_cell
from bench.evaluation.evaluated import Evaluated
from bench.evaluation.heads import fitted_classifier
from bench.evaluation.search import Cell, Team, in_this_process
from bench.evaluation.traces import AttackError, Before
from bench.names import CORRUPTIONS
from bench.protocols.common.base import protocol_of

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
        result = earlier = cells.result(cell.protocol, cell.attack, cell.eps, cell.norm)
        before = spent
        spent += earlier.seconds if earlier is not None else 0.0
        if result is None or not result.complete:
            name = f"{cell.protocol} {cell.attack} {cell.eps:.6g}"
            if exhausted():
                skipped.append(name)
                continue
            returned = kept_images(it, cell)
            fallen = carried[cell.protocol, cell.curve] if cell.protocol not in alone else None
            start = Start(fallen, earlier, returned)
            try:
                if cell.attack == "pgd" and (cell.protocol, cell.curve) in unsure:
                    raise AttackError("pgd failed at a smaller eps, and what it breaks there counts here")
                classifier = classifiers[cell.protocol]
                stages = attack_cell(it, classifier, cell, start, team, at_first)
                if cell.attack == CORRUPTIONS:
                    stages = corrupted_cell(it, classifier, cell, earlier)
                for result in stages:
                    spent = before + result.seconds
                    if returned is not None:  # the images first: where there is a result, they are complete
                        stored = cells.save_adversarial(cell.protocol, cell.attack, returned)
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
                it.report({"event": "failed", "protocol": cell.protocol, "attack": cell.attack, "eps": cell.eps,
                           "message": str(error)})  # fmt: skip
                continue
            assert result is not None
            it.report(counted(result))
        if cell.attack == "pgd":
            standing = torch.tensor([outcome == "1" for outcome in result.outcomes])
            for curve in {cell.curve, True}:
                carried[cell.protocol, curve][: len(standing)] &= standing
    late = f"the evaluation's {spec.budget_seconds:g} s are spent; missing: {', '.join(skipped)}" if skipped else ""
    without = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in failed.items())
    return "; ".join(filter(None, [late, f"without a number: {without}" if without else ""]))


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
