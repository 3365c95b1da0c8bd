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

from bench.spec import Manifest, Record, format_eps
from reports.captions import CAPTIONS
from reports.claims import hardware_class
from reports.definitions import definitions
from reports.inert import printable
from reports.leaderboard import different_attacks
from reports.pairs import sentences
from reports.paper import PAPER, PAPER_EPS, PAPER_ROWS

TEMPLATE = Path(__file__).parent / "templates" / "report.typ"
TITLE = "Robust self-supervised learning at equal training time"
PROTOCOLS = {"linear": "Linear probe", "multi_patch": "Multi-patch probe"}


def render(
    manifest: Manifest,
    records: Sequence[Record],
    rows: pd.DataFrame,
    board: pd.DataFrame,
    found: pd.DataFrame,
    figures: dict[str, bytes],
    facts: Mapping[str, str] | None = None,
) -> bytes:
    """The report as PDF. ``found``: the claims; ``figures``: name -> SVG; ``facts``: in place of the manifest's."""
    report: bytes = compile_report(content(manifest, records, rows, board, found, figures, facts))
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
        "facts": [list(each) for each in facts.items()] if facts else _facts(manifest, rows),
        "definitions": definitions(manifest.main_eps),
        "leaderboards": [
            _board(protocol, budget, lines)
            for (protocol, budget), lines in board.groupby(["protocol", "budget"], sort=False, dropna=False)
        ],
        "figures": [{"caption": CAPTIONS.get(name, name), "svg": svg.decode()} for name, svg in figures.items()],
        "sections": [
            section
            for section in (_claims(manifest, board, found), *_sections(manifest, records, rows))
            if section["tables"] or section.get("points")
        ],
    }


def _facts(manifest: Manifest, rows: pd.DataFrame) -> list[list[str]]:
    data, machine = manifest.data, manifest.environment
    shape = " x ".join(str(size) for size in data.image_shape)
    versions = {"bench": manifest.bench_version, "Python": machine.python, "torch": machine.torch} | machine.versions
    eps = sorted({eps for spec in manifest.runs for eps in spec.eval.eps})
    changed = " with uncommitted changes" if machine.dirty else ""
    facts = {
        "Data set": f"{data.label}: {data.train} training and {data.test} test images, {data.classes} classes, {shape}",
        "Data source": manifest.dataset_source,
        "Command": shlex.join(manifest.command),
        "Date": manifest.created,
        "Budget": f"{manifest.budget or 'each row its own'} of training per run"
        + f", {manifest.total_budget} in all" * bool(manifest.total_budget),
        "Runs": f"{rows['method'].nunique()} methods, seeds {', '.join(map(str, manifest.seeds))}",
        "Evaluation": f"{', '.join(sorted(set(rows['eval'])))}; eps {', '.join(map(format_eps, eps))}",
        "Hardware": f"{machine.device_name} ({machine.device}, {machine.precision})",
        "Processor": f"{machine.cpu}, {machine.cores} cores, {machine.threads} threads used",
        "System": machine.platform,
        "Software": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Commit": f"{machine.commit}{changed}" if machine.commit else "",
    }
    return [[name, value] for name, value in facts.items() if value]


def _board(protocol: object, budget: object, lines: pd.DataFrame) -> dict[str, Any]:
    name = str(protocol)
    rows = [
        [
            _best(line, _rank(line)),
            _best(line, line["method"] if line["status"] == "finished" else f"{line['method']} ({line['status']})"),
            _whole(line["seeds"]),
            *_interval(line, "clean"),
            _percent(line["pgd"]),
            _percent(line["autoattack"]),
            *_worst(line),
            _whole(line["n"]),
            _text(line["audit"]),
            _percent(line["worst_audited"]),
            _number(line["train_seconds"], ".1f"),
            _number(line["peak_memory_bytes"], ".2f", per=1e9),
        ]
        for line in lines.to_dict("records")
    ]
    titles = (
        "# | Method | Seeds | Clean % | 95 % | PGD % | AA % | Worst % | 95 % | n | Audit | Audited % | Train s | GB"
    )
    within = f", budget {budget}" if isinstance(budget, str) else ""
    caption = (
        f"{PROTOCOLS.get(name, name)}{within}, ranked by the worst case over PGD and AutoAttack (AA) on n images. "
        "Audited: the worst case with the audit's own attacks. Struck through: no passed audit, not ranked."
    )
    table = _table(caption, titles, rows, left="Method | Audit", wide="Method", quiet="95 %", size=8)
    return table | {"note": next(iter(lines["standing"].dropna()), "")}


def _rank(line: dict[Any, Any]) -> str:
    lo, hi = _whole(line["rank_lo"]), _whole(line["rank_hi"])
    return lo if lo == hi else f"{lo}-{hi}"


def _best(line: dict[Any, Any], cell: str) -> Any:
    return {"bold": cell} if line["best"] else cell


def _worst(line: dict[Any, Any]) -> list[Any]:
    """The ranked number and its interval; struck through without an audit of PASS or FLAG."""
    accuracy, interval = _interval(line, "worst")
    if line["audit"] in ("PASS", "FLAG"):
        return [_best(line, accuracy), interval]
    return [{"struck": cell} if cell else "" for cell in (accuracy, interval)]


def _claims(manifest: Manifest, board: pd.DataFrame, found: pd.DataFrame) -> dict[str, Any]:
    return {
        "title": "What can be claimed",
        "text": "What the statistics allow, and no more; claims.csv holds every pair. Each interval is of one pair.",
        "points": sentences(found, manifest.main_eps),
        "tables": _variances(board),
    }


def _variances(board: pd.DataFrame) -> list[dict[str, Any]]:
    lines = [
        [
            line["method"],
            line["protocol"],
            *_interval(line, "worst"),
            _percent(line["seed_sd"]),
            _interval(line, "worst", "probe_lo", "probe_hi")[1],
            _percent(line["attack_spread"]),
        ]
        for line in board[board["rank_lo"].notna()].to_dict("records")
    ]
    caption = (
        "What moves a ranked number, in points, each source apart: test images (95 % interval), seeds (sd of the worst "
        "case), the penalty of the probe (PGD accuracy from lambda/10 to 10 lambda), draws of the attack (check A6)."
    )
    titles = "Method | Protocol | Worst % | Images 95 % | Seeds sd | Probe band | Attack spread"
    return [_table(caption, titles, lines, "Method | Protocol", "Method", size=8)] if lines else []


def _sections(manifest: Manifest, records: Sequence[Record], rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "title": "Beside the paper",
            "text": "The published protocol: a linear classifier fitted with Adam (3e-4, 20 epochs), PGD with 20 steps "
            "of .01 from a zero start. Budgets and hardware differ from the paper's; these rows are not ranked.",
            "tables": _beside_the_paper(manifest, rows),
        },
        {
            "title": "Audit",
            "text": "Checks of the ranked numbers that found something, or did not run. Checks that passed, do not "
            "apply, or belong to a higher level are left out. FAIL and NOT_RUN take the rank away; WARN leaves it, "
            "with the mark FLAG.",
            "tables": _audits(records, different_attacks(rows, manifest.main_eps)),
        },
        {
            "title": "Every attack",
            "text": "All results, also those that are not ranked. (curve): drawn for the figure over eps.",
            "tables": _attacks(rows),
        },
        {
            "title": "Cost",
            "text": "Passes and FLOPs per training image and epoch. Forward, backward to the input and backward to the "
            "weights are counted apart.",
            "tables": _costs(records),
        },
        {"title": "Runs that did not finish", "text": "", "tables": _unfinished(records)},
        {
            "title": "Settings",
            "text": "Value and source of every setting: what the paper says (text), what is sound where its code is "
            "not (sound), or what its code does (code); else the data set or the command.",
            "tables": _settings(records),
            "columns": 2,
        },
    ]


def _beside_the_paper(manifest: Manifest, rows: pd.DataFrame) -> list[dict[str, Any]]:
    ours = rows[(rows["protocol"] == "published_eval") & rows["attack"].isin(["none", "pgd"])]
    if ours.empty:
        return []
    label, tried = manifest.data.label, sorted(set(ours["eps"]))
    paper = next((table for name, table in PAPER.items() if label.startswith(name)), {})
    titles = ["Method", *map(_attack_name, tried), "Seeds"]
    if paper:
        titles += ["Row of the paper", *(f"{_attack_name(eps)}*" for eps in PAPER_EPS)]
    lines = []
    for name, results in ours.groupby("method", sort=False):
        method = str(name)
        means = [results.loc[results["eps"] == eps, "accuracy"].mean() for eps in tried]
        theirs = [PAPER_ROWS[method], *(f"{value:.2f}" for value in paper[method])] if method in paper else []
        line = [method, *map(_percent, means), str(results["seed"].nunique()), *theirs]
        lines.append(line + [""] * (len(titles) - len(line)))
    source = " *: as printed in arXiv:2501.03507." if paper else ""
    caption = f"{label}, published evaluation, accuracy in %, mean over seeds.{source}"
    wide = "Method | Row of the paper"
    return [_table(caption, " | ".join(titles), lines, left=wide, wide=wide, size=8)]


def _attack_name(eps: float) -> str:
    return f"PGD {format_eps(eps)}" if eps else "Clean"


def _audits(records: Sequence[Record], different: dict[str, list[str]]) -> list[dict[str, Any]]:
    lines = [
        ["all", "", protocol, "S1", "FAIL", str(len(hashes)), "1 hash of the attacks", "", ", ".join(hashes)]
        for protocol, hashes in different.items()
    ]
    for record in records:
        for audit in record.audits:
            lines += [
                [
                    record.spec.row,
                    str(record.spec.seed),
                    audit.protocol,
                    check.id,
                    check.verdict,
                    "" if check.value is None else f"{check.value:.4g}",
                    check.threshold,
                    str(check.n or ""),
                    check.note,
                ]
                for check in audit.checks
                if check.verdict in ("WARN", "FAIL", "NOT_RUN")
            ]
    titles = "Method | Seed | Protocol | Check | Verdict | Value | Threshold | n | Note"
    left = "Method | Protocol | Check | Verdict | Threshold | Note"
    wide = "Method | Threshold | Note"
    return [_table("Checks that are not PASS.", titles, lines, left, wide, size=7.5)] if lines else []


def _attacks(rows: pd.DataFrame) -> list[dict[str, Any]]:
    lines = [
        [
            row["method"],
            _whole(row["seed"]),
            _text(row["protocol"]),
            _text(row["attack"]) + (" (curve)" if row["curve"] is True else ""),
            _text(row["threat_space"]),
            "" if pd.isna(row["eps"]) else format_eps(row["eps"]),
            *_interval(row, "accuracy", "lo", "hi"),
            _whole(row["total"]),
            row["status"],
        ]
        for row in rows.to_dict("records")
    ]
    titles = "Method | Seed | Protocol | Attack | Space | eps | Acc. % | 95 % | n | Status"
    left = "Method | Protocol | Attack | Space | Status"
    return [
        _table("Accuracy of every run under every attack.", titles, lines, left, "Method | Status", "95 %", size=7.5)
    ]


def _costs(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A table for each class of hardware: times of different machines share no column."""
    classes: dict[str, list[list[Any]]] = {}
    for record in records:
        if (cost := record.train) is not None:
            line = [
                record.spec.row,
                str(record.spec.seed),
                str(record.spec.budget),
                f"{cost.train_seconds:.1f}",
                f"{cost.compile_seconds:.1f}",
                str(cost.updates),
                f"{cost.epochs:.2f}",
                f"{cost.images_per_second:.0f}",
                f"{cost.forward_per_image:.1f}",
                f"{cost.backward_input_per_image:.1f}",
                f"{cost.backward_weight_per_image:.1f}",
                f"{cost.flops_per_image / 1e9:.3f}",
                f"{cost.peak_memory_bytes / 1e9:.2f}",
            ]
            classes.setdefault(hardware_class(record.environment), []).append(line)
    titles = (
        "Method | Seed | Budget | Train s | Compile s | Updates | Epochs | Images/s "
        "| Forward | Back. input | Back. weights | GFLOPs | GB"
    )
    captions = {name: f"Cost of every training run{f' on {name}' * (len(classes) > 1)}." for name in classes}
    return [_table(captions[name], titles, lines, "Method", "Method", size=7.5) for name, lines in classes.items()]


def _unfinished(records: Sequence[Record]) -> list[dict[str, Any]]:
    runs = [record for record in records if record.status != "finished"]
    lines = [[run.spec.row, str(run.spec.seed), run.status, run.message] for run in runs]
    titles = "Method | Seed | Status | Message"
    return [_table("Runs without a full result, and why.", titles, lines, titles, "Method | Message")] if lines else []


def _settings(records: Sequence[Record]) -> list[dict[str, Any]]:
    titles = "Setting | Value | Source"
    methods: dict[str, Record] = {}
    for record in records:
        methods.setdefault(record.spec.row, record)
    return [
        _table(
            method, titles, [[each.name, _shown(each.value), each.source] for each in record.settings], titles, titles
        )
        for method, record in methods.items()
        if record.settings
    ]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_shown(each) for each in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _table(
    caption: str, titles: str, rows: list[list[Any]], left: str = "", wide: str = "", quiet: str = "", size: float = 8.5
) -> dict[str, Any]:
    """A table of the template; a cell is a text, {"struck": text} or {"bold": text}.

    ``left``, ``wide`` and ``quiet`` name columns as ``titles`` does: ``A | B``.
    """
    columns = [
        {
            "title": title,
            "right": title not in left.split(" | "),
            "wide": title in wide.split(" | "),
            "quiet": title in quiet.split(" | "),
        }
        for title in titles.split(" | ")
    ]
    return {"caption": caption, "columns": columns, "rows": rows, "size": size}


def _percent(share: float) -> str:
    return "" if pd.isna(share) else f"{100 * share:.1f}"


def _interval(line: dict[Any, Any], name: str, lo: str = "", hi: str = "") -> list[str]:
    low, high = line[lo or f"{name}_lo"], line[hi or f"{name}_hi"]
    return [_percent(line[name]), "" if pd.isna(low) else f"{_percent(low)}–{_percent(high)}"]


def _whole(count: Any) -> str:
    return "" if pd.isna(count) else str(int(count))


def _number(value: Any, form: str, per: float = 1.0) -> str:
    return "" if pd.isna(value) else format(value / per, form)


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value)
