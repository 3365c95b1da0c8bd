"""The cells of an evaluation: which there are, in which order they run, and what is left of one whose attack fails."""

from typing import Literal

from bench.evaluation.search import Cell
from bench.events import Counted
from bench.names import CORRUPTIONS, eps_name, family
from bench.protocols.common.base import protocol_of
from bench.record import EvalResult
from bench.spec import EvalSpec, Norm

UNBOUNDED: dict[Norm, float] = {"linf": 1.0, "l2": 1e4}  # a ball that holds all images, up to 4,096 pixels a side
CURVE_IMAGES = 300  # of the curve over eps, where the level does not say otherwise


def plan_cells(spec: EvalSpec, test_images: int) -> list[Cell]:
    """All cells of an evaluation, in the order in which they run: clean, PGD by growing eps, AutoAttack."""

    def first(count: int | None) -> int:
        return test_images if count is None else min(count, test_images)

    cells: list[Cell] = []
    for protocol in spec.protocols:
        cells.append(Cell(protocol, "none", 0.0, test_images))
        if (own := protocol_of(spec, protocol).attacks) is not None:
            alone = [attack for attack in own if attack != "autoattack"]
            cells += [
                Cell(protocol, attack, eps, first(spec.pgd_images)) for attack in alone for eps in sorted(spec.eps)
            ]
            if {"autoattack"} & set(own) & set(spec.attacks):
                count = first(spec.autoattack_images.get(protocol))
                cells.append(Cell(protocol, "autoattack", spec.main_eps, count))
            continue
        for attack in spec.attacks:
            if attack == "none":
                continue
            norm = spec.attack_norms.get(attack, "linf")
            if attack in spec.minimum_norm:
                cells.append(Cell(protocol, attack, UNBOUNDED[norm], first(spec.pgd_images), norm=norm))
                continue
            if family(attack) == "autoattack":
                count = first(spec.autoattack_images.get(protocol))
                only = (spec.main_eps,) if norm == "linf" else sorted(spec.radii(norm))
                cells += [Cell(protocol, attack, eps, count, norm=norm) for eps in only]
                continue
            # .75 * .1 is not .075, and a point of the curve beside an eps that was asked for is that one
            curve = [float(f"{factor * spec.main_eps:.12g}") for factor in spec.curve] if attack == "pgd" else []
            asked_for = spec.radii(norm)
            radii = {eps_name(eps): eps for eps in (*curve, *asked_for) if eps <= 1 or norm != "linf"}
            for eps in sorted(radii.values()):
                asked = eps in asked_for
                count = (
                    first(spec.pgd_images)
                    if asked
                    else min(first(spec.pgd_images), spec.curve_images.get(protocol, CURVE_IMAGES))
                )
                cells.append(Cell(protocol, attack, eps, count, not asked, norm))
        if spec.corruption_images:
            cells.append(Cell(protocol, CORRUPTIONS, 0.0, first(spec.corruption_images)))
    return sorted(cells, key=lambda cell: (cell.attack != "none") + (family(cell.attack) == "autoattack"))


def failed_result(cell: Cell, space: Literal["image", "crop"], stages: EvalResult | None, reason: str) -> EvalResult:
    """A cell whose attack failed: no number but that of the ``stages`` before, from which the same command goes on."""
    bare = EvalResult(
        protocol=cell.protocol,
        attack=cell.attack,
        threat_space=space,
        norm=cell.norm,
        eps=cell.eps,
        outcomes="",
        curve=cell.curve,
        seconds=0.0,
    )
    return (stages or bare).model_copy(update={"complete": False, "failed": reason})


def counted(result: EvalResult) -> Counted:
    """What is told of a cell that has its number."""
    return {
        "event": "cell",
        "protocol": result.protocol,
        "attack": result.attack,
        "eps": result.eps,
        "correct": result.correct,
        "total": result.total,
        "seconds": result.seconds,
        "note": "; ".join(result.remarks),
    }
