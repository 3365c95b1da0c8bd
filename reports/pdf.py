"""report.pdf: everything that a reader needs to trust or doubt the table, typeset by typst.

The template knows the looks, this file the content. Values reach the template as JSON and stay text, so no name of a
method is ever markup; the date is the manifest's, so the same records give the same bytes.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import typst

from bench import __version__
from bench.radius import NORMS
from bench.record import Manifest, Record
from bench.spec import format_radius
from reports.abstract import abstract
from reports.budgets import base, budget_of
from reports.captions import caption
from reports.definitions import definitions
from reports.inert import printable
from reports.main_table import LEGEND, main_tables
from reports.reproduction import commit, reproduction, software
from reports.sections import appendix, body

TEMPLATE = Path(__file__).parent / "templates" / "report.typ"
FIRST = ("Merged from", "What differs")  # of the facts of a merged report
AGAIN = "Rendered again"  # of a report whose numbers another version has made
FIRST_FIGURE = "clean_vs_robust"  # stands above the abstract
TITLE = "Robust self-supervised learning at equal training time"


def render(
    manifest: Manifest,
    records: Sequence[Record],
    rows: pd.DataFrame,
    board: pd.DataFrame,
    found: pd.DataFrame,
    figures: dict[str, bytes],
    curves: pd.DataFrame | None = None,
    facts: Mapping[str, str] | None = None,
) -> bytes:
    """The report as PDF. ``found``: the claims; ``figures``: name -> SVG; ``facts``: in place of the manifest's."""
    report: bytes = compile_report(content(manifest, records, rows, board, found, figures, curves, facts))
    return report


def compile_report(data: dict[str, Any], **options: Any) -> Any:
    """``data`` in the template; ``options`` are those of typst.compile, for instance ``format="png"``."""
    inputs = {"data": json.dumps(printable(data))}
    return typst.compile(TEMPLATE.read_bytes(), sys_inputs=inputs, ignore_system_fonts=True, **options)  # its own fonts


def content(
    manifest: Manifest,
    records: Sequence[Record],
    rows: pd.DataFrame,
    board: pd.DataFrame,
    found: pd.DataFrame,
    figures: dict[str, bytes],
    curves: pd.DataFrame | None = None,
    facts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Everything that the template shows, as JSON values; all numbers are rendered here."""
    day = datetime.fromisoformat(manifest.created)
    quick = "quick" in set(rows["eval"])
    return {
        "title": TITLE,
        "author": f"bench {manifest.bench_version}",
        "date": {"year": day.year, "month": day.month, "day": day.day},
        "dataset": f"{manifest.data.label}{' (a subset)' if manifest.data.subset else ''}",
        "mark": "Quick evaluation: few images, one restart. These numbers are not comparable." if quick else "",
        "abstract": [
            *([name, f"{facts[name]}."] for name in FIRST if facts),
            *([AGAIN, f"{again}."] for again in [rendered_again(manifest)] if again and not facts),
            *abstract(manifest, records, rows, board, found),
        ],
        "legend": LEGEND,
        "leaderboards": main_tables(manifest, board),
        "first": [_drawing(name, svg, curves) for name, svg in figures.items() if name == FIRST_FIGURE],
        "figures": [_drawing(name, svg, curves) for name, svg in figures.items() if name != FIRST_FIGURE],
        "sections": body(manifest, records, rows, board, found),
        "definitions": definitions(manifest.main_eps),
        "appendix": appendix(manifest, records, rows),
        "facts": [list(item) for item in facts.items()] if facts else _facts(manifest, records, rows),
        "reproduction": reproduction(manifest),
    }


def rendered_again(manifest: Manifest) -> str:
    """That another version has made the numbers of this report; "" where it was this one."""
    if manifest.bench_version == __version__:
        return ""
    day = manifest.created[:10]
    return f"by bench {__version__}, from what bench {manifest.bench_version} has measured and stored on {day}"


def _drawing(name: str, svg: bytes, curves: pd.DataFrame | None) -> dict[str, str]:
    return {"caption": caption(name, curves), "svg": svg.decode()}


def _facts(manifest: Manifest, records: Sequence[Record], rows: pd.DataFrame) -> list[list[str]]:
    data, machine = manifest.data, manifest.environment
    shape = " x ".join(str(size) for size in data.image_shape)
    eps = [
        format_radius(norm, radius)
        for norm in NORMS
        for radius in sorted({given for spec in manifest.runs for given in spec.eval.radii(norm)})
    ]
    named = budget_of(records)
    budget = " or ".join(dict.fromkeys(named.values())) or manifest.budget or "each row its own"
    nodes = {record.environment.node for record in records if record.environment} - {""}
    methods = {base(spec.row, named[spec.row]) if named else spec.row for spec in manifest.runs}
    facts = {
        "Data set": f"{data.label}: {data.train} training and {data.test} test images, {data.classes} classes, {shape}",
        "Data notes": "; ".join(data.notes),
        "Data source": manifest.dataset_source,
        "Command": shlex.join(manifest.command),
        "Date": manifest.created,
        "Budget": f"{budget} of training per run" + f", {manifest.total_budget} in all" * bool(manifest.total_budget),
        "Runs": f"{len(methods)} method{'s' * (len(methods) != 1)}, seeds {', '.join(map(str, manifest.seeds))}",
        "Evaluation": f"{', '.join(sorted(set(rows['eval'])))}; eps {', '.join(eps)}",
        "Settings of attacks": ", ".join(
            dict.fromkeys(
                f"{attack}.{name}={value}"
                for spec in manifest.runs
                for attack, chosen in spec.eval.attack_settings.items()
                for name, value in chosen.items()
            )
        ),
        "Hardware": f"{machine.device_name} ({machine.device}, {machine.precision})",
        "Nodes": f"{len(nodes)}; results.csv has that of each run" if len(nodes) > 1 else "",
        "Processor": f"{machine.cpu}, {machine.cores} cores, {machine.threads} threads used",
        "System": machine.platform,
        "Software": software(manifest),
        AGAIN: rendered_again(manifest),
        "Commit": commit(manifest),
    }
    return [[name, value] for name, value in facts.items() if value]
