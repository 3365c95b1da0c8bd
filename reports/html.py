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
from bench.spec import Budget, format_eps
from bench.storage.store import Examples
from reports import pdf
from reports.captions import CAPTIONS
from reports.cells import interval, number, percent, rank, whole
from reports.charts import PASSES, charts
from reports.checks import CHECKS
from reports.inert import printable
from reports.protocols import titles

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("charts.js", "report.js")
AUDITED = ("PASS", "FLAG")
ORDER = ("FAIL", "NOT_RUN", "WARN", "PASS", "N/A", "not in this level")  # of several seeds the first of these counts
TEXTS = ("Method", "Data", "Protocol", "Budget", "Clean to worst", "Audit", "Status")
OWN = ("What can be claimed", "Audit")  # sections that stand elsewhere in the page, or in another form
FILTERS = ("dataset", "budget", "protocol", "status")
BOARD = {  # title -> (what it says, whether the larger number comes first)
    "Rank": ("range of ranks that the statistics allow", False),
    "Method": ("", False),
    "Data": ("", False),
    "Protocol": ("how features become predictions", False),
    "Budget": ("of training: ranks hold within one", False),
    "Clean to worst": ("0 to 100 %: the thin tick is clean, the thick one the worst case, with intervals", True),
    "Clean %": ("mean over seeds, 95 % interval over images", True),
    "PGD %": ("at the main eps, on all n images that PGD attacked", True),
    "PGD on n %": ("on the images that AutoAttack attacked too", True),
    "AA %": ("AutoAttack at the main eps", True),
    "Worst %": ("the ranked number: per image the worst case of PGD and AutoAttack", True),
    "n": ("images that both attacked", True),
    "Audit": ("the verdict on the ranked number", False),
    "Audited %": ("the worst case with the audit's own attacks", True),
    "Best known %": ("per image the worst of every attack that was tried; ranks nothing", True),
    "Shift": ("how far the ball moves the encoder's features, in distances between images; no head", False),
    "Seeds": ("and the sd of the worst case over them", True),
    "Train s": ("on the clock", False),
    "Head s": ("of fitting the protocol's head, and its passes of one image", False),
    "Passes": ("forward and backward passes per image and epoch", False),
    "GB": ("peak memory in training", False),
    "kJ": ("energy of training", False),
    "Status": ("", False),
}


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
    told = pdf.content(manifest, records, rows, board, found, {}, facts)
    claims = next((section for section in told["sections"] if section["title"] == OWN[0]), None)
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
        "sections": [section for section in told["sections"] + told["appendix"] if section["title"] not in OWN],
        "figures": [
            {
                "caption": CAPTIONS.get(name, name),
                "source": _address("image/svg+xml", base64.b64encode(svg).decode()),
            }
            for name, svg in figures.items()
        ],
    }


# ---------------------------------------------------------------- the leaderboard


def leaderboard(
    rows: pd.DataFrame, board: pd.DataFrame, colours: dict[str, int], names: Mapping[str, str]
) -> dict[str, Any]:
    """Columns, lines with their cells, what they can be filtered by, and the standing sentences of the protocols.

    A cell is a dictionary: ``text``, ``order`` (what it sorts by; none: last), ``small`` below it, and its looks.
    """
    costs = rows.drop_duplicates(["method", "seed"]).assign(passes=lambda runs: runs[PASSES].sum(axis=1, min_count=3))
    means = costs.groupby("method")[["passes", "energy_joules"]].mean()
    lines = [
        {
            "dataset": line["dataset"] or "",
            "budget": line["budget"] or "",
            "protocol": names.get(line["protocol"], line["protocol"]),
            "status": line["status"],
            "cells": _cells(line, means.loc[line["method"]] if line["method"] in means.index else {}, colours, names),
        }
        for line in board.astype(object).where(board.notna(), None).to_dict("records")
    ]
    empty = {title for place, title in enumerate(BOARD) if all(not line["cells"][place]["text"] for line in lines)} - {
        "Clean to worst"
    }
    if board["dataset"].nunique() < 2:
        empty.add("Data")
    for line in lines:
        line["cells"] = [cell for title, cell in zip(BOARD, line["cells"], strict=True) if title not in empty]
    columns = [
        {"title": title, "hint": hint, "descending": down, "text": title in TEXTS}
        for title, (hint, down) in BOARD.items()
        if title not in empty
    ]
    filters = {name: list(dict.fromkeys(line[name] for line in lines)) for name in FILTERS}
    if len(filters["budget"]) < 2:
        del filters["budget"]
    standing = board.dropna(subset=["standing"]).groupby("protocol", sort=False)["standing"].first()
    said = list(dict.fromkeys(standing))
    notes = (
        said if len(said) == 1 else [f"{names.get(str(name), str(name))}: {text}" for name, text in standing.items()]
    )
    return {"columns": columns, "lines": lines, "filters": filters, "notes": notes}


def _cells(line: dict[Any, Any], cost: Any, colours: dict[str, int], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """One for each of BOARD."""
    best, passed = bool(line["best"]), line["audit"] in AUDITED
    struck = {"struck": not passed and line["worst"] is not None}
    sd = "" if line["seed_sd"] is None else f"sd {100 * line['seed_sd']:.1f}"
    protocol = names.get(line["protocol"], line["protocol"])
    values = {
        "Rank": _cell(rank(line, "–"), line["rank_lo"], bold=best),
        "Method": _cell(line["method"], line["method"], bold=best, colour=colours.get(line["method"], 0)),
        "Data": _cell(line["dataset"] or "", line["dataset"]),
        "Protocol": _cell(protocol, protocol),
        "Budget": _cell(line["budget"] or "", Budget.parse(line["budget"]).amount if line["budget"] else None),
        "Clean to worst": _cell("", line["worst"], strip=_strip(line), colour=colours.get(line["method"], 0)),
        "Clean %": _cell(percent(line["clean"]), line["clean"], interval(line, "clean")[1]),
        "PGD %": _cell(percent(line["pgd"]), line["pgd"], _images(line["pgd_n"])),
        "PGD on n %": _cell(percent(line["pgd_ranked"]), line["pgd_ranked"]),
        "AA %": _cell(percent(line["autoattack"]), line["autoattack"], _images(line["autoattack_n"])),
        "Worst %": _cell(percent(line["worst"]), line["worst"], interval(line, "worst")[1], bold=best, **struck),
        "n": _cell(whole(line["n"]), line["n"]),
        "Audit": _cell(line["audit"] or "", line["audit"], line["audit_level"] or "", badge=line["audit"] or ""),
        "Audited %": _cell(percent(line["worst_audited"]), line["worst_audited"]),
        "Best known %": _cell(percent(line["best_known"]), line["best_known"], _images(line["best_known_n"])),
        "Shift": _cell(number(line["feature_shift"], ".2f"), line["feature_shift"], _images(line["feature_n"])),
        "Seeds": _cell(whole(line["seeds"]), line["seeds"], sd),
        "Train s": _cell(number(line["train_seconds"], ".1f"), line["train_seconds"], _disturbed(line["disturbed"])),
        "Head s": _cell(number(line["head_seconds"], ".1f"), line["head_seconds"], _passes(line["head_passes"])),
        "Passes": _number_cell(cost, "passes", ".1f"),
        "GB": _cell(number(line["peak_memory_bytes"], ".2f", 1e9), line["peak_memory_bytes"]),
        "kJ": _number_cell(cost, "energy_joules", ".1f", 1e3),
        "Status": _cell(line["status"], line["status"]),
    }
    return [values[title] for title in BOARD]


def _cell(text: str, order: Any, small: str = "", **looks: Any) -> dict[str, Any]:
    plain = {"bold": False, "struck": False, "colour": None, "badge": "", "strip": None}
    return plain | {"text": text, "order": "" if order is None else str(order), "small": small} | looks


def _passes(count: Any) -> str:
    return "" if count is None or pd.isna(count) else f"{count:,.0f} passes"


def _images(count: Any) -> str:
    return "" if count is None else f"n = {count}"


def _number_cell(values: Any, name: str, form: str, per: float = 1.0) -> dict[str, Any]:
    value = values.get(name)
    value = None if pd.isna(value) else value
    return _cell(number(value, form, per), value)


def _strip(line: dict[Any, Any]) -> dict[str, Any]:
    """Both accuracies with their intervals in percent, and the words for who cannot see them."""
    marks = {
        name: [round(100 * line[column], 2) for column in (name, f"{name}_lo", f"{name}_hi")]
        if line[name] is not None
        else []
        for name in ("clean", "worst")
    }
    said = ", ".join(
        f"{name} {value[0]:.1f} % ({value[1]:.1f} to {value[2]:.1f})" for name, value in marks.items() if value
    )
    return marks | {"label": said or "not measured"}


def _disturbed(runs: Any) -> str:
    return f"{runs} disturbed" if runs else ""


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
