"""Every pair of methods in one square: who is ahead of whom, by how much, and how sure that is.

A square for each protocol and budget, one for training times; read along a line: the method against each of the others.
A cell is what reports/cells.py says, with ``small`` below it and a ``tone`` where the pair is told apart.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from bench.record import Manifest
from bench.spec import format_eps
from reports.cells import table
from reports.pairs import told
from reports.protocols import titles

COLUMNS = 12  # methods beside each other on a page: where there are more, a square is cut into several tables
OPPOSITE = {"better": "worse", "worse": "better", "faster": "slower", "slower": "faster", "tie": "tie"}
TONES = {"better": "ahead", "faster": "ahead", "worse": "behind", "slower": "behind"}
KINDS = {  # of claims.csv -> what stands in a cell, and how a pair of it is told apart
    "method": "Below it p, after Holm over all pairs. Bold and shaded: the difference can be claimed.",
    "encoder": "Encoders, seed by seed: the mean difference, and below it the largest p over the seeds, after Holm. "
    "Bold and shaded: the same way at every seed.",
    "time": "Below it the 95 % interval. Bold and shaded: the difference can be claimed.",
}


def matrices(manifest: Manifest, claims: pd.DataFrame) -> list[dict[str, Any]]:
    """The squares of ``claims`` (the rows of claims.csv) as tables; none where nothing was compared.

    Of a protocol whose table ranks encoders, the pairs of encoders; else those of methods.
    """
    if claims.empty:
        return []
    parts: list[dict[str, Any]] = []
    for (kind, protocol, budget), pairs in told(claims).groupby(
        ["kind", "protocol", "budget"], sort=False, dropna=False
    ):
        within = f" at {budget}" if isinstance(budget, str) else ""
        if kind == "time":
            what = f"Training time{within}: how many times as fast the method of the line trains as that of the column."
        else:
            name = titles(manifest.runs).get(str(protocol), str(protocol))
            what = (
                f"{name}{within}: accuracy in the worst case of PGD and AutoAttack at eps "
                f"{format_eps(manifest.main_eps)}, of the method of the line less that of the column, in points."
            )
        parts += _square(f"{what} {KINDS[str(kind)]}", dict(_cells(str(kind), pairs)))
    return parts


def _cells(kind: str, pairs: pd.DataFrame) -> Iterator[tuple[tuple[str, str], tuple[float, dict[str, Any]]]]:
    """((a, b), (how far a is ahead of b, the cell)) and the same from the other side, for every pair."""
    for names, claims in pairs.groupby(["a", "b"], sort=False):
        a, b = map(str, names)
        verdicts = set(claims["verdict"])
        verdict = verdicts.pop() if len(verdicts) == 1 else "tie"
        if kind == "time":
            claim = claims.iloc[0]
            yield (a, b), (claim["ratio"], _cell(f"{claim['ratio']:.2f}", _between(claim["lo"], claim["hi"]), verdict))
            ratio, lo, hi = 1 / claim["ratio"], 1 / claim["hi"], 1 / claim["lo"]
            yield (b, a), (ratio, _cell(f"{ratio:.2f}", _between(lo, hi), OPPOSITE[verdict]))
        else:
            points = 100 * claims["difference"].mean()
            sure = _p(claims["adjusted"].max(skipna=False))
            yield (a, b), (points, _cell(_signed(points), sure, verdict))
            yield (b, a), (-points, _cell(_signed(-points), sure, OPPOSITE[verdict]))


def _cell(text: str, small: str, verdict: str) -> dict[str, Any]:
    looks = {"text": text} if verdict == "tie" else {"bold": text, "tone": TONES[verdict]}
    return looks | {"small": small}


def _square(caption: str, cells: dict[tuple[str, str], tuple[float, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Methods in the order of their mean lead, numbered, so that a column needs a number only."""
    methods = list(dict.fromkeys(a for a, _ in cells))
    leads = {method: sum(lead for (a, _), (lead, _) in cells.items() if a == method) for method in methods}
    methods.sort(key=lambda method: -leads[method])
    numbers = {method: str(place) for place, method in enumerate(methods, start=1)}
    parts = []
    for start in range(0, len(methods), COLUMNS):
        columns = methods[start : start + COLUMNS]
        lines = [
            [f"{numbers[a]}  {a}", *("·" if a == b else cells.get((a, b), (0, ""))[1] for b in columns)]
            for a in methods
        ]
        said = caption if start == 0 else f"The same, columns {numbers[columns[0]]} to {numbers[columns[-1]]}."
        heads = " | ".join(["Method", *(numbers[b] for b in columns)])
        parts.append(table(said, heads, lines, left="Method", wide="Method", size=7.5))
    return parts


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−") if abs(points) >= 0.05 else "0.0"


def _between(lo: float, hi: float) -> str:
    return f"{lo:.2f}–{hi:.2f}"


def _p(value: float) -> str:
    """``p .032``; ``p < .001``; "" for a pair that was not tested."""
    if pd.isna(value):
        return ""
    return "p < .001" if value < 0.001 else f"p {value:.3f}".replace("p 0.", "p .").replace("p 1.000", "p 1")
