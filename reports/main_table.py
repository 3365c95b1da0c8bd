"""The main table of report.pdf, leaderboard.tex and leaderboard.md: one for each protocol and budget."""

from typing import Any

import pandas as pd

from bench.record import Manifest
from bench.spec import format_eps
from reports.cells import interval, number, percent, rank, table, text, whole
from reports.limits import sentence
from reports.protocols import titles

LEGEND = (
    "Each n counts the images of the columns before it. Ranked by the worst case over PGD and AutoAttack (AA) on the "
    "images that both attacked; PGD stands there once more, on these alone. Audited: the worst case with the audit's "
    "own attacks. Struck through: no passed audit, not ranked."
)
TITLES = (
    "# | Method | Seeds | Clean % | 95 % | n | PGD % | n | PGD % | AA % | Worst % | 95 % | n | Audit | Audited % | "
    "Train s | GB"
)


def main_tables(manifest: Manifest, board: pd.DataFrame) -> list[dict[str, Any]]:
    """The lines of the leaderboard as tables (see reports/cells.py), each with a ``note`` on what it ranks.

    LEGEND explains the columns.
    """
    return [
        _table(manifest, str(protocol), budget, lines)
        for (protocol, budget), lines in board.groupby(["protocol", "budget"], sort=False, dropna=False)
    ]


def _table(manifest: Manifest, protocol: str, budget: object, lines: pd.DataFrame) -> dict[str, Any]:
    rows = [
        [
            _best(line, rank(line)),
            _best(line, line["method"] if line["status"] == "finished" else f"{line['method']} ({line['status']})"),
            whole(line["seeds"]),
            *interval(line, "clean"),
            whole(line["clean_n"]),
            percent(line["pgd"]),
            whole(line["pgd_n"]),
            percent(line["pgd_ranked"]),
            percent(line["autoattack"]),
            *_worst(line),
            whole(line["n"]),
            text(line["audit"]),
            percent(line["worst_audited"]),
            number(line["train_seconds"], ".1f"),
            number(line["peak_memory_bytes"], ".2f", per=1e9),
        ]
        for line in lines.to_dict("records")
    ]
    caption = f"{titles(manifest.runs).get(protocol, protocol)} on {_where(manifest, budget, lines)}."
    drawn = table(caption, TITLES, rows, left="Method | Audit", wide="Method", quiet="95 % | n", size=7)
    first = lines.iloc[0]
    said = [text(first["standing"]), sentence(first)]
    return drawn | {"note": " ".join(part for part in said if part)}


def _where(manifest: Manifest, budget: object, lines: pd.DataFrame) -> str:
    """Data, eps, images and budget, and what makes the numbers incomparable."""
    counts = sorted({int(count) for count in lines["n"].dropna()})
    within = budget if isinstance(budget, str) else manifest.budget
    parts = [
        manifest.data.label + " (a subset)" * manifest.data.subset,
        f"eps {format_eps(manifest.main_eps)}",
        *[f"n = {' to '.join(map(str, dict.fromkeys([counts[0], counts[-1]])))}" for _ in counts[:1]],
        f"budget {within}" if within else "each row at its own budget",
        *["quick evaluation, not comparable"] * ("quick" in set(lines["eval"])),
    ]
    return ", ".join(parts)


def _best(line: dict[Any, Any], cell: str) -> Any:
    return {"bold": cell} if line["best"] else cell


def _worst(line: dict[Any, Any]) -> list[Any]:
    """The ranked number and its interval; struck through without an audit of PASS or FLAG."""
    accuracy, bounds = interval(line, "worst")
    if line["audit"] in ("PASS", "FLAG"):
        return [_best(line, accuracy), bounds]
    return [{"struck": cell} if cell else "" for cell in (accuracy, bounds)]
