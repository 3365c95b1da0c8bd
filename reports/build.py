"""Everything that is derived from a run folder: tables first, then figures, then the report.

A part that cannot be built becomes a warning: the results are on disk already, and no picture may cost one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from pandas.api.types import is_numeric_dtype

from bench.disk import DiskError, write_bytes
from bench.files import Damaged
from bench.store import load_curves, load_examples, load_manifest, load_records, write_text
from reports import html, inert, pdf, plots
from reports.curves import curves
from reports.leaderboard import leaderboard, ranked_lines
from reports.pairs import pairs
from reports.rows import rows


def build(folder: Path) -> list[str]:
    """Write the tables, figures, report.pdf and report.html into ``folder``; return warnings as sentences."""
    damaged: list[Damaged] = []
    manifest, records = load_manifest(folder), load_records(folder, damaged)
    warnings = [f"{each}; it is left out, and the command of the run makes it again" for each in damaged]
    lost: list[Damaged] = []
    examples = load_examples(folder, lost)
    warnings += [f"{each.path.relative_to(folder)} is damaged: its pictures are left out" for each in lost]
    points = load_curves(folder, damaged)
    drawn: dict[str, bytes] = {}
    table = board = found = over = pd.DataFrame()
    with _part("results.csv", warnings):
        table = rows(manifest, records)
        write_text(folder / "results.csv", csv(table))
    with _part("leaderboard.csv", warnings):
        board = leaderboard(table, records, manifest.main_eps)
        write_text(folder / "leaderboard.csv", csv(board))
    with _part("curves.csv", warnings):
        over = curves(manifest, records, points)
        if points:
            write_text(folder / "curves.csv", csv(over))
    with _part("claims.csv", warnings):
        found = pairs(records, manifest.main_eps, ranked_lines(board))
        write_text(folder / "claims.csv", csv(found))
    for name in plots.wanted(board, over):
        with _part(f"figures/{name}", warnings):
            pictures = plots.render(name, manifest, records, table, board, over)
            for kind, picture in pictures.items():
                write_bytes(folder / "figures" / f"{name}.{kind}", picture)
            drawn[name] = pictures["svg"]
    with _part("report.pdf", warnings):
        write_bytes(folder / "report.pdf", pdf.render(manifest, records, table, board, found, drawn))
    with _part("report.html", warnings):
        page = html.render(manifest, records, table, board, found, drawn, examples, over if points else None)
        write_bytes(folder / "report.html", page)
    return warnings


def csv(table: pd.DataFrame) -> str:
    """``table`` as CSV in which no text can be taken for a formula by a spreadsheet; floats in their shortest form."""
    safe = table.copy()
    for name in safe:
        if not is_numeric_dtype(safe[name]):
            safe[name] = safe[name].map(inert.cell)
    return safe.to_csv(index=False, lineterminator="\n")


@contextmanager
def _part(name: str, warnings: list[str]) -> Iterator[None]:
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        warnings.append(f"{name} could not be built: {type(error).__name__}: {error}")
