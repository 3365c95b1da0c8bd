"""report.html: one file that shows everything, asks no other machine for anything, and can be opened from disk.

The template knows the looks, this file the content. Every text is escaped, data stand in the page as JSON with ``<``
escaped, and the page allows no script or style but its own, by hash. Without JavaScript the tables are all there.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.record import Audit, Check, Manifest, Record
from bench.spec import format_eps
from bench.storage.store import Examples
from reports import pdf
from reports.captions import caption
from reports.charts import charts
from reports.checks import CHECKS
from reports.html_board import leaderboard
from reports.inert import printable
from reports.protocols import titles

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("charts.js", "report.js")
ORDER = ("FAIL", "NOT_RUN", "WARN", "PASS", "N/A", "not in this level")  # of several seeds the first of these counts
OWN = ("What can be claimed", "Audit")  # sections that stand elsewhere in the page, or in another form


def render(
    manifest: Manifest,
    records: Sequence[Record],
    rows: pd.DataFrame,
    board: pd.DataFrame,
    found: pd.DataFrame,
    figures: dict[str, bytes],
    pictures: Mapping[str, list[Examples]],
    curves: pd.DataFrame | None = None,
    facts: Mapping[str, str] | None = None,
) -> bytes:
    """The page. ``found``: the claims; ``figures``: name -> SVG; ``pictures``: name of a run -> its examples;
    ``facts`` as in reports/pdf.py."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    data = printable(content(manifest, records, rows, board, found, figures, pictures, curves, facts))
    style, *scripts = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", *SCRIPTS))
    page = environment.get_template("report.html.j2").render(
        data,
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        policy=policy(style, scripts),
    )
    return page.encode("utf-8", "replace")


def policy(style: str, scripts: Sequence[str]) -> str:
    """The Content-Security-Policy: pictures of the page itself, our style and our scripts, and nothing else."""
    ours = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {ours}; style-src {_hash(style)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def content(
    manifest: Manifest,
    records: Sequence[Record],
    rows: pd.DataFrame,
    board: pd.DataFrame,
    found: pd.DataFrame,
    figures: dict[str, bytes],
    pictures: Mapping[str, list[Examples]],
    curves: pd.DataFrame | None = None,
    facts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Everything that the template shows; all numbers are rendered here."""
    told = pdf.content(manifest, records, rows, board, found, {}, facts=facts)
    claims = next((section for section in told["sections"] if section["title"] == OWN[0]), None)
    sections = [section for section in told["sections"] + told["appendix"] if section["title"] not in OWN]
    drawn = charts(manifest, records, rows, board, curves)
    colours = {method["name"]: method["colour"] for method in drawn["methods"]}
    return {
        "title": told["title"],
        "dataset": told["dataset"],
        "author": told["author"],
        "created": manifest.created,
        "mark": told["mark"],
        "facts": told["facts"],
        "definitions": told["definitions"],
        "main_eps": format_eps(manifest.main_eps),
        "board": leaderboard(rows, board, colours, titles(manifest.runs)),
        "claims": claims,
        "charts": drawn,
        "examples": examples(records, pictures, colours),
        "audits": audits(records, board, colours),
        "sections": [embedded(section) for section in sections],
        "figures": [
            {
                "caption": caption(name, curves),
                "source": _address("image/svg+xml", base64.b64encode(svg).decode()),
            }
            for name, svg in figures.items()
        ],
    }


def embedded(section: dict[str, Any]) -> dict[str, Any]:
    """A section whose drawing, if it has one, is a picture of the page."""
    if "drawing" not in section:
        return section
    source = _address("image/svg+xml", base64.b64encode(section["drawing"]["svg"].encode()).decode())
    return section | {"drawing": {"caption": section["drawing"]["caption"], "source": source}}


# ---------------------------------------------------------------- audit and examples


def audits(records: Sequence[Record], board: pd.DataFrame, colours: dict[str, int]) -> list[dict[str, Any]]:
    """A panel for each method and protocol: its checks, over all seeds."""
    verdicts = {(line["method"], line["protocol"]): line["audit"] for line in board.to_dict("records")}
    panels: dict[tuple[str, str], list[Audit]] = {}
    for record in records:
        for audit in record.audits:
            panels.setdefault((record.spec.row, audit.protocol), []).append(audit)
    names = titles(record.spec for record in records)
    return [
        _panel(method, protocol, by_seed, verdicts, colours) | {"protocol": names.get(protocol, protocol)}
        for (method, protocol), by_seed in panels.items()
    ]


def _panel(
    method: str, protocol: str, by_seed: list[Audit], verdicts: dict[tuple[str, str], Any], colours: dict[str, int]
) -> dict[str, Any]:
    together: dict[str, list[Check]] = {}
    for audit in by_seed:
        for check in audit.checks:
            together.setdefault(check.id, []).append(check)
    checks = [_check(id, seeds) for id, seeds in together.items()]
    counts = {verdict: sum(check["verdict"] == verdict for check in checks) for verdict in ORDER}
    verdict = verdicts.get((method, protocol))
    return {
        "method": method,
        "colour": colours.get(method, 0),
        "verdict": by_seed[0].verdict if not isinstance(verdict, str) else verdict,
        "level": ", ".join(dict.fromkeys(audit.level for audit in by_seed)),
        "seeds": len(by_seed),
        "counts": [f"{count} {name}" for name, count in counts.items() if count and name != "not in this level"],
        "checks": [check for check in checks if check["verdict"] != "not in this level"],
        "left_out": [check["id"] for check in checks if check["verdict"] == "not in this level"],
    }


def _check(id: str, seeds: list[Check]) -> dict[str, Any]:
    name, meaning = CHECKS.get(id, (id, ""))
    values = dict.fromkeys("" if check.value is None else f"{check.value:.4g}" for check in seeds)
    return {
        "id": id,
        "name": name,
        "meaning": meaning,
        "verdict": min((check.verdict for check in seeds), key=ORDER.index),
        "value": ", ".join(filter(None, values)),
        "threshold": "; ".join(dict.fromkeys(check.threshold for check in seeds if check.threshold)),
        "n": ", ".join(dict.fromkeys(str(check.n) for check in seeds if check.n)),
        "note": "; ".join(dict.fromkeys(check.note for check in seeds if check.note)),
    }


def examples(
    records: Sequence[Record], pictures: Mapping[str, list[Examples]], colours: dict[str, int]
) -> list[dict[str, Any]]:
    """For each protocol the clean images and, for each method, what became of them; of its first seed that has any."""
    shown: dict[str, dict[str, Any]] = {}
    names = titles(record.spec for record in records)
    for record in records:
        for pictured in pictures.get(record.spec.name, []) if record.status == "finished" else []:
            name = names.get(pictured.protocol, pictured.protocol)
            panel = shown.setdefault(
                name,
                {
                    "protocol": name,
                    "clean": [
                        {"label": example.label, "source": _address("image/png", example.image)}
                        for example in pictured.examples
                    ],
                    "methods": {},
                },
            )
            row: dict[str, Any] = {
                "name": record.spec.row,
                "seed": record.spec.seed,
                "colour": colours.get(record.spec.row, 0),
                "eps": format_eps(pictured.eps),
                "cells": [_example(example) for example in pictured.examples],
            }
            if len(row["cells"]) == len(panel["clean"]):
                panel["methods"].setdefault(record.spec.row, row)
    return [panel | {"methods": list(panel["methods"].values())} for panel in shown.values()]


def _example(example: Any) -> dict[str, Any]:
    right, stands = example.before == example.label, example.after == example.label
    outcome = "stands" if right and stands else "broken" if right else "wrong before"
    return {
        "before": example.before if example.before >= 0 else "none",  # -1: its logits are not finite
        "after": example.after if example.after >= 0 else "none",
        "outcome": outcome,
        "attack": example.attack,
        "adversarial": _address("image/png", example.adversarial),
        "perturbation": _address("image/png", example.perturbation),
    }


# ---------------------------------------------------------------- texts


def _address(kind: str, encoded: str) -> str:
    return f"data:{kind};base64,{encoded}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
