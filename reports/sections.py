"""The sections of the report that follow the figures, as titles, texts and tables (see reports/cells.py)."""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench.identity.outline import method_title
from bench.record import Manifest, Record
from bench.spec import Norm, format_eps, format_radius
from reports import codes, published, threats, tuning
from reports import protocols as known
from reports.cells import interval, number, percent, table, text
from reports.claims import hardware_class
from reports.leaderboard import different_attacks
from reports.matrix import matrices
from reports.pairs import sentences

EPS_COLUMNS = 8  # that fit beside each other on a page


def body(
    manifest: Manifest, records: Sequence[Record], rows: pd.DataFrame, board: pd.DataFrame, found: pd.DataFrame
) -> list[dict[str, Any]]:
    """Results: what can be claimed, every attack, beside the paper, cost, unfinished runs; only those with content."""
    return _told(
        {
            "title": "What can be claimed",
            "text": "What the statistics allow; claims.csv holds every pair. Each interval is of one pair.",
            "points": sentences(found, manifest.main_eps),
            "tables": matrices(manifest, found),
        },
        tuning.section(manifest, found),
        {
            "title": "What moves a ranked number",
            "text": "In points, each source apart: test images (95 % interval), seeds (sd of the worst case), the "
            "penalty of the probe (PGD accuracy from lambda/10 to 10 lambda), draws of the attack (check A6). Best "
            "known: what every attack that was tried leaves of it.",
            "tables": _variances(board),
        },
        {
            "title": "Every attack",
            "text": "Accuracy in % over eps, one line per run and attack, also where it is not ranked; clean accuracy "
            "on the first line of a run. worst: per image the worst case of PGD and AutoAttack; (crop): the attack "
            "moves each crop. The interval is the 95 % one at the main eps, results.csv has that of every cell; where "
            f"the cells of a line differ in their number of images, n is the range.{_searched(rows)}",
            "tables": _attacks(manifest, rows),
        },
        *threats.sections(manifest, records),
        {
            "title": "Encoders before any head",
            "text": "How far the features of a test image can be moved within the ball at the main eps, without "
            "labels: the furthest that PGD met, in mean distances between the clean features of two test images (1: "
            "as far as another image is), and the cosine between the centred features before and after. Less is more "
            "robust; a head may still look where nothing moves. Never ranked.",
            "tables": _shifts(records),
        },
        {
            "title": "Beside the paper",
            "text": "The published protocol: a linear classifier fitted with Adam (3e-4, 20 epochs), PGD with 20 steps "
            "of .01 from a zero start. Budgets and hardware differ from the paper's; these rows are not ranked.",
            "tables": _beside_the_paper(manifest, rows),
        },
        {
            "title": "Reported by others",
            "text": "What others have printed of these methods on this data, each source apart, with its date. Their "
            "budgets, heads, attacks and hardware differ from ours and from each other's: these numbers place a result "
            "and stand in no column of ours. Everything else in this report was measured here.",
            "tables": published.tables(
                manifest.data.label,
                {spec.method for spec in manifest.runs},
                next(iter(_of_the_paper(manifest, rows).values()), ""),
            ),
        },
        {
            "title": "Cost",
            "text": "Passes and FLOPs per training image and epoch. Forward, backward to the input and backward to the "
            "weights are counted apart.",
            "tables": _costs(records) + _money(board) + _heads(records),
        },
        {"title": "Runs that did not finish", "text": "", "tables": _unfinished(records)},
    )


def appendix(manifest: Manifest, records: Sequence[Record], rows: pd.DataFrame) -> list[dict[str, Any]]:
    """What the results rest on: the audit's findings and the settings; only those with content."""
    return _told(
        {
            "title": "Audit",
            "text": "Checks of the ranked numbers that found something, or did not run. Checks that passed, do not "
            "apply, or belong to a higher level are left out. FAIL and NOT_RUN take the rank away; WARN leaves it, "
            "with the mark FLAG.",
            "tables": _audits(records, different_attacks(rows, manifest.main_eps)),
        },
        {
            "title": "Settings",
            "text": "Value and source of every setting: what the paper says (text), what is sound where its code is "
            "not (sound), or what its code does (code); else the data set or the command. The hash of the code that "
            "makes a part is that of all its files: those of this project and those named as its source.",
            "tables": _settings(records),
            "columns": 2,
        },
    )


def _told(*sections: dict[str, Any]) -> list[dict[str, Any]]:
    return [section for section in sections if section["tables"] or section.get("points")]


# ---------------------------------------------------------------- results


def _searched(rows: pd.DataFrame) -> str:
    """A sentence about attacks that were not searched in float32; none where all were."""
    if rows["flips"].isna().all():
        return ""
    return (
        " The attacks were searched in TF32, and float32 decided: "
        f"{int(rows['flips'].sum())} images were broken in TF32 alone, and attacked again in float32."
    )


def _variances(board: pd.DataFrame) -> list[dict[str, Any]]:
    lines = [
        [
            line["method"],
            line["protocol"],
            percent(line["worst"]),
            percent(line["best_known"]),
            interval(line, "worst")[1],
            percent(line["seed_sd"]),
            interval(line, "worst", "probe_lo", "probe_hi")[1],
            percent(line["attack_spread"]),
        ]
        for line in board[board["rank_lo"].notna()].to_dict("records")
    ]
    caption = "Sources of error of every ranked number."
    titles = "Method | Protocol | Worst % | Best known % | Images 95 % | Seeds sd | Probe band | Attack spread"
    return [table(caption, titles, lines, "Method | Protocol", "Method", size=8)] if lines else []


def _attacks(manifest: Manifest, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """A table for each protocol and norm; one of many eps is split. ``pgd_only``, which repeats PGD, is left out."""
    scored = rows[rows["protocol"].notna() & (rows["attack"] != "pgd_only")]
    tables: dict[tuple[str, Norm], list[dict[Any, Any]]] = {}
    for cell in scored.to_dict("records"):
        tables.setdefault((cell["protocol"], cell["norm"]), []).append(cell)
    titles = known.titles(manifest.runs)
    parts = []
    for (protocol, norm), cells in tables.items():
        if norm != "linf":
            cells = [cell for cell in tables.get((protocol, "linf"), ()) if cell["attack"] == "none"] + cells
        tried = sorted({cell["eps"] for cell in cells if cell["attack"] != "none"})
        shown = list(dict.fromkeys(format_radius(norm, eps) for eps in tried))  # equal but for rounding: one column
        main = format_eps(manifest.main_eps) if norm == "linf" else shown[-1]
        for start in range(0, max(len(shown), 1), EPS_COLUMNS):
            parts.append(_over_eps(main, titles[protocol], norm, shown[start : start + EPS_COLUMNS], cells))
    return parts


def _over_eps(main: str, title: str, norm: Norm, tried: list[str], cells: list[dict[Any, Any]]) -> dict[str, Any]:
    """``cells``: those of the protocol with this title, in one norm; ``tried``: the eps that are columns, as printed;
    ``main``: that with an interval."""
    clean = [cell for cell in cells if cell["attack"] == "none"]
    runs: dict[tuple[Any, Any], dict[str, dict[str, Any]]] = {}  # (method, seed) -> attack -> eps -> cell
    for cell in cells:
        attack = "" if cell["attack"] == "none" else cell["attack"] + " (crop)" * (cell["threat_space"] == "crop")
        at = runs.setdefault((cell["method"], cell["seed"]), {}).setdefault(attack, {})
        at[format_radius(cell["norm"], cell["eps"])] = cell
    lines = []
    for (method, seed), attacks in runs.items():
        status = next(iter(next(iter(attacks.values())).values()))["status"]
        name = method if status == "finished" else f"{method} ({status})"
        accuracy = "".join(percent(cell["accuracy"]) for cell in attacks.pop("", {}).values())
        for attack, at in (attacks or {"": {}}).items():
            over = [at[eps] for eps in tried if eps in at]
            if over or not attacks:
                values = [percent(at[eps]["accuracy"]) if eps in at else "" for eps in tried]
                bounds = interval(at[main], "accuracy", "lo", "hi")[1] if main in at else ""
                lines.append([name, str(seed), accuracy, attack, *values, bounds, _range(over)])
                accuracy = ""  # once for each run
    titles = ["Method", "Seed", f"Clean (n = {_range(clean)})" if clean else "Clean", "Attack", *tried]
    caption = f"{title}: accuracy in % of every run under every attack, over eps."
    caption += "" if norm == "linf" else f" In {norm}: never ranked, and in no worst case."
    last = f"95 % at {main}"
    return table(caption, " | ".join([*titles, last, "n"]), lines, "Method | Attack", "Method", last, size=7.5)


def _range(cells: list[dict[Any, Any]]) -> str:
    """The fewest and the most images of ``cells``."""
    totals = sorted({int(cell["total"]) for cell in cells})
    return "–".join(str(total) for total in dict.fromkeys([*totals[:1], *totals[-1:]]))


def _shifts(records: Sequence[Record]) -> list[dict[str, Any]]:
    lines = [
        [
            record.spec.row,
            str(record.spec.seed),
            *(number(value, ".3f") for value in (shift.mean, shift.median, shift.cosine_mean, shift.cosine_median)),
            format_eps(shift.eps),
            str(shift.images),
            shift.note,
        ]
        for record in records
        if (shift := record.shift) is not None
    ]
    titles = "Method | Seed | Shift, mean | Shift, median | Cosine, mean | Cosine, median | eps | n | Note"
    caption = "Largest shift of the features in the l-inf ball, of every run."
    return [table(caption, titles, lines, "Method | Note", "Method | Note", size=8)] if lines else []


def _beside_the_paper(manifest: Manifest, rows: pd.DataFrame) -> list[dict[str, Any]]:
    theirs = _of_the_paper(manifest, rows)
    ours = rows[rows["protocol"].isin(list(theirs)[:1]) & rows["attack"].isin(["none", "pgd"])]
    if ours.empty:
        return []
    label, tried = manifest.data.label, sorted(set(ours["eps"]))
    source = next(iter(theirs.values()))
    paper = published.of(source, label)
    titles = ["Method", *map(_attack_name, tried), "Seeds"]
    if paper is not None:
        titles += ["Row of the paper", *(f"{column}*" for column in paper.columns)]
    method_of = {method_title(method): method for method in paper.rows} if paper is not None else {}
    lines = []
    for name, results in ours.groupby("method", sort=False):
        means = [results.loc[results["eps"] == eps, "accuracy"].mean() for eps in tried]
        printed = paper.rows.get(method_of.get(str(name), str(name)), ()) if paper is not None else ()
        line = [str(name), *map(percent, means), str(results["seed"].nunique())]
        line += [cell if isinstance(cell, str) else f"{cell:.2f}" for cell in printed]
        lines.append(line + [""] * (len(titles) - len(line)))
    noted = f" *: as printed in {source}." if paper is not None else ""
    caption = f"{label}, published evaluation, accuracy in %, mean over seeds.{noted}"
    wide = "Method | Row of the paper"
    return [table(caption, " | ".join(titles), lines, left=wide, wide=wide, size=8)]


def _of_the_paper(manifest: Manifest, rows: pd.DataFrame) -> dict[str, str]:
    """Protocols that repeat that of a paper and have numbers here -> the paper."""
    shown = {name: protocol.paper for name, protocol in known.shown(manifest.runs).items() if protocol.paper}
    return {name: paper for name, paper in shown.items() if (rows["protocol"] == name).any()}


def _attack_name(eps: float) -> str:
    return f"PGD {format_eps(eps)}" if eps else "Clean"


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
    return [table(captions[name], titles, lines, "Method", "Method", size=7.5) for name, lines in classes.items()]


def _money(board: pd.DataFrame) -> list[dict[str, Any]]:
    """What a training of each method costs beside its time, where a device has a price or its energy was measured."""
    lines = board.drop_duplicates("method")
    lines = lines[lines["money"].notna() | lines["co2_grams"].notna()]
    rows = [
        [
            line["method"],
            number(line["train_seconds"], ".2f", 3600),
            number(line["money"], ".2f"),
            text(line["currency"]),
            number(line["energy_joules"], ".3f", 3.6e6),
            number(line["co2_grams"], ".0f"),
        ]
        for line in lines.to_dict("records")
    ]
    caption = "Money and CO2 of a training, mean over seeds; the prices are those of --prices, or assumed."
    titles = "Method | Hours | Money | Currency | kWh | CO2 g"
    return [table(caption, titles, rows, "Method | Currency", "Method", size=8)] if rows else []


def _heads(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What the head of each protocol has cost in each run; seconds of different machines are not comparable."""
    named = known.titles([record.spec for record in records])
    names = [name for name in named if any(head.protocol == name for record in records for head in record.probes)]
    lines = []
    for record in records:
        heads = {head.protocol: head for head in record.probes}
        costs = [f"{heads[name].seconds:.1f} s, {heads[name].passes:,.0f}" if name in heads else "" for name in names]
        lines.append([record.spec.row, str(record.spec.seed), *costs])
    titles = ["Method", "Seed", *(named[name] for name in names)]
    caption = "What the heads have cost: seconds, and passes of one image through the encoder."
    return [table(caption, " | ".join(titles), lines, "Method", "Method", size=7.5)] if names else []


def _unfinished(records: Sequence[Record]) -> list[dict[str, Any]]:
    runs = [record for record in records if record.status != "finished" or record.failed]
    lines = [[run.spec.row, str(run.spec.seed), run.status, run.message] for run in runs]
    titles = "Method | Seed | Status | Message"
    return [table("Runs without a full result, and why.", titles, lines, titles, "Method | Message")] if lines else []


# ---------------------------------------------------------------- what they rest on


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
    return [table("Checks that are not PASS.", titles, lines, left, wide, size=7.5)] if lines else []


def _settings(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What all methods share once, then what each has of its own."""
    methods: dict[str, list[list[str]]] = {}
    for record in records:
        settings = [[s.name, _shown(s.value), s.source] for s in record.settings]
        methods.setdefault(record.spec.row, settings + codes.settings(record))
    of_each = {method: settings for method, settings in methods.items() if settings}
    if len(of_each) < 2:
        return _setting_tables(of_each)
    shared = [line for line in next(iter(of_each.values())) if all(line in others for others in of_each.values())]
    own = {method: [line for line in settings if line not in shared] for method, settings in of_each.items()}
    return _setting_tables({f"All {len(of_each)} methods": shared} | own)


def _setting_tables(settings: dict[str, list[list[str]]]) -> list[dict[str, Any]]:
    titles = "Setting | Value | Source"
    return [table(name, titles, lines, titles, titles) for name, lines in settings.items() if lines]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_shown(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
