"""``bench compare``: two run folders side by side, what differs between them first."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.commands.output import show, table
from bench.spec import format_radius
from bench.text import say

if TYPE_CHECKING:
    from reports.compare import Cell, Comparison, Cost, Seeds
    from reports.differences import Folder


@click.command("compare")
@click.argument("a", metavar="A", type=click.Path(path_type=Path))
@click.argument("b", metavar="B", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="one JSON document")
def compare(a: Path, b: Path, as_json: bool) -> int:
    """Two finished runs side by side: B against A in every cell that both have, with tests and effect sizes."""
    from bench.storage.store import check_folder

    check_folder(a)
    check_folder(b)

    from reports import compare

    comparison = compare.compare(_folder(a), _folder(b))
    if as_json:
        click.echo(json.dumps({"a": str(a), "b": str(b)} | comparison.as_json(), indent=1))
    else:
        say(f"A: {a}")
        say(f"B: {b}")
        _show(comparison)
    return 0


def _folder(path: Path) -> "Folder":
    """What the store holds; damaged files are named and left out. Raises UsageError if it is no folder of a run."""
    from bench.storage.files import Damaged
    from bench.storage.store import load_manifest, load_records
    from reports.differences import Folder

    damaged: list[Damaged] = []
    manifest, records = load_manifest(path), load_records(path, damaged)
    for file in damaged:
        say(f"warning: {file}; it is left out", err=True)
    return Folder(str(path), manifest, records)


def _show(comparison: "Comparison") -> None:
    if comparison.differences:
        rows = [[difference.what, *difference.values] for difference in comparison.differences]
        show(table("What differs", ["", "A", "B"], rows))
    else:
        say(f"Same {'code, ' * comparison.code_known}versions, commit, hardware, data, budget and settings.")
    if not comparison.code_known:
        say("The code that made them is not recorded.")
    for note in comparison.notes:
        say(note)
    heads = ["attack", "seed", "A %", "B %", "B - A", "only A/B", "h", "p (Holm)"]
    for method, protocol in dict.fromkeys((cell.method, cell.protocol) for cell in comparison.cells):
        rows = [_cell(cell) for cell in comparison.cells if (cell.method, cell.protocol) == (method, protocol)]
        show(table(f"{method}, {protocol}: two checkpoints, in points, with 95 % intervals", heads, rows))
    for note in dict.fromkeys(cell.note for cell in comparison.cells if cell.note):
        where = [cell for cell in comparison.cells if cell.note == note]
        say(f"{len(where)} of {len(comparison.cells)} cells: {note}.")
    if comparison.seeds:
        heads = ["method", "attack", "seeds", "A %", "B %", "B - A", "P(B > A)", "p (Holm)"]
        for protocol in dict.fromkeys(line.protocol for line in comparison.seeds):
            rows = [_seeds(line) for line in comparison.seeds if line.protocol == protocol]
            show(table(f"{protocol}: trainings over seeds (Welch's t), in points", heads, rows))
    if comparison.costs:
        heads = ["method", "cost", "A", "B", "B / A", "95 %"]
        show(table("Cost: medians over the runs", heads, [_cost(cost) for cost in comparison.costs]))
    for note in dict.fromkeys(cost.note for cost in comparison.costs if cost.note):
        of = dict.fromkeys(cost.what for cost in comparison.costs if cost.note == note)
        say(f"{', '.join(of)}: {note}.")
    _conclude(comparison)


def _conclude(comparison: "Comparison") -> None:
    """How many differences chance does not explain; the p of one table are one family."""
    lines: dict[str, list[Cell] | list[Seeds]] = {"checkpoints": comparison.cells, "trainings": comparison.seeds}
    for kind, of_kind in lines.items():
        tested = [line for line in of_kind if line.p is not None]
        if tested:
            better = sum(line.differs and line.difference > 0 for line in tested)
            worse = sum(line.differs and line.difference < 0 for line in tested)
            say(f"Of {len(tested)} tested {kind} B is better in {better} and worse in {worse} (Holm, 0.05).")


def _attack(line: "Cell | Seeds") -> str:
    return "clean" if line.attack == "none" else f"{line.attack} {format_radius(line.norm, line.eps)}"


def _cell(cell: "Cell") -> list[str]:
    shares = [f"{100 * s.accuracy:.1f} ({100 * s.lo:.1f}–{100 * s.hi:.1f})" for s in (cell.a, cell.b)]
    only = "" if cell.only_a is None else f"{cell.only_a}/{cell.only_b}"
    difference = _difference(cell.difference, cell.lo, cell.hi)
    return [_attack(cell), str(cell.seed), *shares, difference, only, f"{cell.h:+.2f}", _p(cell.adjusted)]


def _seeds(line: "Seeds") -> list[str]:
    means = [f"{100 * line.a:.1f}", f"{100 * line.b:.1f}", _difference(line.difference, line.lo, line.hi)]
    seeds = "/".join(map(str, line.seeds))
    return [line.method, _attack(line), seeds, *means, f"{line.superiority:.2f}", _p(line.adjusted)]


def _difference(points: float, lo: float | None, hi: float | None) -> str:
    interval = "" if lo is None or hi is None else f" [{100 * lo:+.1f}, {100 * hi:+.1f}]"
    return f"{100 * points:+.1f}{interval}"


def _cost(cost: "Cost") -> list[str]:
    values = [f"{value:.4g} {cost.unit}".rstrip() for value in (cost.a, cost.b)]
    ratio = "" if cost.ratio is None else f"{cost.ratio:.3f}"
    interval = "" if cost.lo is None or cost.hi is None else f"[{cost.lo:.3f}, {cost.hi:.3f}]"
    return [cost.method, cost.what, *values, ratio, interval]


def _p(p: float | None) -> str:
    return "" if p is None else f"{p:.2g}"
