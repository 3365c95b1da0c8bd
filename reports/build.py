"""Everything that is derived from a run folder: tables first, then figures, then the report.

A part that cannot be built becomes a warning: the results are on disk already, and no picture may cost one.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from pandas.api.types import is_numeric_dtype

from bench.spec import UsageError
from bench.storage.disk import DiskError, is_there, write_bytes
from bench.storage.files import Damaged
from bench.storage.store import (
    MANIFEST,
    Examples,
    Point,
    load_curves,
    load_examples,
    load_manifest,
    load_records,
    write_text,
)
from reports import html, inert, pdf, plots, text_tables, threats
from reports.codes import apart
from reports.curves import curves
from reports.differences import Folder
from reports.leaderboard import leaderboard, ranked_lines
from reports.merge import View, merge
from reports.pairs import pairs
from reports.prices import Prices, read_prices
from reports.rows import rows
from reports.titled import Titled, titles

TEXTS = {"tex": text_tables.latex, "md": text_tables.markdown}  # ending of leaderboard -> the table as text


def build(
    folder: Path, out: Path | None = None, texts: Collection[str] = (), prices: Prices | None = None
) -> list[str]:
    """Write the tables, figures, report.pdf and report.html of a run into ``out`` or its folder; warnings as sentences.

    ``texts``: which of TEXTS to write too; one that is there already is always written again. ``prices``: the user's,
    in place of the assumed ones. Raises UsageError where ``out`` holds another run.
    """
    out = _free(out) if out and out.resolve() != folder.resolve() else folder
    damaged: list[Damaged] = []
    lost: list[Damaged] = []
    stored = load_records(folder, damaged)
    view = View(load_manifest(folder), apart(stored))
    names = {before.spec.name: after.spec.name for before, after in zip(stored, view.records, strict=True)}
    examples = {names[name]: pictures for name, pictures in load_examples(folder, lost).items()}
    points = {names[name]: curve for name, curve in load_curves(folder, damaged).items()}
    return _left_out(damaged, lost) + _write(out, view, examples, points, texts, prices)


def build_merged(
    folders: Sequence[Path], out: Path, texts: Collection[str] = (), prices: Prices | None = None
) -> list[str]:
    """The same of several run folders together, into a folder ``out`` of its own. Raises UsageError."""
    _free(out)
    damaged: list[Damaged] = []
    lost: list[Damaged] = []
    short = len({folder.resolve().name for folder in folders}) == len(folders)
    merged = merge(
        [
            Folder(
                folder.resolve().name if short else str(folder), load_manifest(folder), load_records(folder, damaged)
            )
            for folder in folders
        ]
    )
    examples = merged.together([load_examples(folder, lost) for folder in folders])
    points = merged.together([load_curves(folder, damaged) for folder in folders])
    return _left_out(damaged, lost) + _write(out, merged.view, examples, points, texts, prices)


def _write(
    out: Path,
    view: View,
    examples: Mapping[str, list[Examples]],
    points: Mapping[str, list[Point]],
    texts: Collection[str],
    prices: Prices | None,
) -> list[str]:
    manifest, records = view.manifest, view.records
    warnings: list[str] = []
    drawn: dict[str, bytes] = {}
    table = board = claims = over = pd.DataFrame()
    with _part("results.csv", warnings):
        table = rows(manifest, records)
        write_text(out / "results.csv", csv(view.stored(table)))
        table = view.comparable(table[~table["failed"].fillna(False)])  # the others are told of where runs are
    with _part("leaderboard.csv", warnings):
        board = view.noted(leaderboard(table, records, manifest.main_eps, prices or read_prices()))
        write_text(out / "leaderboard.csv", csv(board))
    with _part("curves.csv", warnings):
        over = curves(manifest, records, points)
        if points:
            write_text(out / "curves.csv", csv(view.stored(over)))
        over = view.comparable(over)
    for name, made in (("corruptions.csv", threats.corrupted), ("distances.csv", threats.distances)):
        with _part(name, warnings):
            beside = made(manifest, records)
            if len(beside) or is_there(out / name):
                write_text(out / name, csv(view.stored(beside)))
    with _part("claims.csv", warnings):
        claims = pairs(records, manifest.main_eps, ranked_lines(board))
        write_text(out / "claims.csv", csv(claims))
    titled = Titled(titles([*manifest.runs, *(record.spec for record in records)], records))
    examples = titled.by_run(examples, records)
    manifest, records = titled.manifest(manifest), titled.records(records)
    table, board, claims, over = (titled.table(part) for part in (table, board, claims, over))
    for ending, rendered in TEXTS.items():
        file = out / f"leaderboard.{ending}"
        if ending in texts or is_there(file):
            with _part(file.name, warnings):
                write_text(file, rendered(manifest, board))
    for name in plots.wanted(board, over):
        with _part(f"figures/{name}", warnings):
            pictures = plots.render(name, manifest, records, table, board, over)
            for kind, picture in pictures.items():
                write_bytes(out / "figures" / f"{name}.{kind}", picture)
            drawn[name] = pictures["svg"]
    with _part("report.pdf", warnings):
        write_bytes(out / "report.pdf", pdf.render(manifest, records, table, board, claims, drawn, over, view.facts))
    with _part("report.html", warnings):
        shown = over if points else None
        page = html.render(manifest, records, table, board, claims, drawn, examples, shown, view.facts)
        write_bytes(out / "report.html", page)
    return warnings


def _free(out: Path) -> Path:
    if is_there(out / MANIFEST):
        raise UsageError(f"expected a new folder for the report, got {out}, which holds a run of its own")
    return out


def _left_out(damaged: Sequence[Damaged], pictures: Sequence[Damaged]) -> list[str]:
    """What is missing from the report, as sentences; pictures are not made again, since their run has ended."""
    return [f"{file}; it is left out, and the command of the run makes it again" for file in damaged] + [
        f"{picture.path} is damaged: its pictures are left out" for picture in pictures
    ]


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
