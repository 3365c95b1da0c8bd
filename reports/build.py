"""Everything that is derived from a run folder: tables first, then figures, then the report.

A part that cannot be built becomes a warning: the results are on disk already, and no picture may cost one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from pandas.api.types import is_numeric_dtype

from bench.store import load_manifest, load_records, write_bytes, write_text
from reports import pdf, plots
from reports.leaderboard import leaderboard
from reports.rows import rows


def build(folder: Path) -> list[str]:
    """Write results.csv, leaderboard.csv, figures and report.pdf into ``folder``; return warnings as sentences."""
    manifest, records = load_manifest(folder), load_records(folder)
    warnings: list[str] = []
    drawn: dict[str, bytes] = {}
    table = board = pd.DataFrame()
    with _part("results.csv", warnings):
        table = rows(manifest, records)
        write_text(folder / "results.csv", csv(table))
    with _part("leaderboard.csv", warnings):
        board = leaderboard(table, manifest.main_eps)
        write_text(folder / "leaderboard.csv", csv(board))
    for name in plots.FIGURES:
        with _part(f"figures/{name}", warnings):
            pictures = plots.render(name, manifest, records, table, board)
            for kind, picture in pictures.items():
                write_bytes(folder / "figures" / f"{name}.{kind}", picture)
            drawn[name] = pictures["svg"]
    with _part("report.pdf", warnings):
        write_bytes(folder / "report.pdf", pdf.render(manifest, records, table, board, drawn))
    return warnings


def csv(table: pd.DataFrame) -> str:
    """``table`` as CSV in which no text can be taken for a formula by a spreadsheet; floats in their shortest form."""
    safe = table.copy()
    for name in safe:
        if not is_numeric_dtype(safe[name]):
            safe[name] = safe[name].map(_inert)
    return safe.to_csv(index=False, lineterminator="\n")


def _inert(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    mark = "'" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else ""
    return mark + cell.replace("\r", " ")  # a bare CR would end the line


@contextmanager
def _part(name: str, warnings: list[str]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        warnings.append(f"{name} could not be built: {type(error).__name__}: {error}")
