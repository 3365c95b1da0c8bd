"""The two tables that report.html opens with: the leaderboard, and what its lines have cost."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from bench.spec import Budget
from reports.cells import interval, number, percent, rank, text, whole
from reports.charts import PASSES
from reports.limits import sentence

AUDITED = ("PASS", "FLAG")
TEXTS = ("Method", "Data", "Protocol", "Budget", "Clean to worst", "Audit")
FILTERS = ("dataset", "budget", "protocol", "status")
COLUMN_OF = {"protocol": "Protocol", "dataset": "Data", "budget": "Budget"}  # left out where all lines are alike
OF_LINE = {  # title -> (what it says, whether the larger number comes first): the columns of both tables
    "Method": ("", False),
    "Data": ("", False),
    "Protocol": ("how features become predictions", False),
    "Budget": ("of training: ranks hold within one", False),
}
BOARD = {
    "Rank": ("range of ranks that the statistics allow", False),
    **OF_LINE,
    "Clean to worst": ("0 to 100 %: the thin tick is clean, the thick one the worst case, with intervals", True),
    "Clean %": ("mean over seeds, 95 % interval over images", True),
    "n of clean": ("images behind it", True),
    "PGD %": ("at the main eps", True),
    "n of PGD": ("images that PGD attacked", True),
    "AA %": ("AutoAttack at the main eps", True),
    "n of AA": ("images that AutoAttack attacked", True),
    "PGD on n %": ("PGD on the images that AutoAttack attacked too", True),
    "Worst %": ("the ranked number: per image the worst case of PGD and AutoAttack", True),
    "n": ("images that both attacked", True),
    "Audit": ("the verdict on the ranked number", False),
    "Audited %": ("the worst case with the audit's own attacks", True),
}
BESIDE = {  # what a line has cost, and what else is known of it
    **OF_LINE,
    "Seeds": ("trainings of this line", True),
    "sd": ("of the worst case over the seeds, in points", False),
    "Train s": ("on the clock", False),
    "Passes": ("forward and backward passes per image and epoch", False),
    "GB": ("peak memory in training", False),
    "kJ": ("energy of training", False),
    "Money": ("of a training, from the price of an hour of its device", False),
    "CO2 g": ("that the energy stands for", False),
    "Head s": ("of fitting the protocol's head", False),
    "Head passes": ("of one image, while the head was fitted", False),
    "Best known %": ("per image the worst of every attack that was tried; ranks nothing", True),
    "n of best": ("images behind it", True),
    "Shift": ("how far the ball moves the encoder's features, in distances between images; no head", False),
    "n of shift": ("images behind it", True),
}


def leaderboard(
    rows: pd.DataFrame, board: pd.DataFrame, colours: dict[str, int], names: Mapping[str, str]
) -> dict[str, Any]:
    """``tables``: the board and what stands beside it, each with columns and lines of cells; what the lines can be
    filtered by; what is the same in all of them, ``alike``; and the standing sentences of the protocols as ``notes``.

    A cell is a dictionary: ``text``, ``order`` (what it sorts by; none: last), ``small`` below it, and its looks. A
    column without any text is left out.
    """
    costs = rows.drop_duplicates(["method", "seed"]).assign(passes=lambda runs: runs[PASSES].sum(axis=1, min_count=3))
    means = costs.groupby("method")[["passes", "energy_joules"]].mean()
    lines = board.astype(object).where(board.notna(), None).to_dict("records")
    cells = [
        _cells(line, means.loc[line["method"]] if line["method"] in means.index else {}, colours, names)
        for line in lines
    ]
    chosen = [
        {
            "dataset": line["dataset"] or "",
            "budget": line["budget"] or "",
            "protocol": names.get(line["protocol"], line["protocol"]),
            "status": line["status"],
        }
        for line in lines
    ]
    filters = {name: list(dict.fromkeys(line[name] for line in chosen)) for name in FILTERS}
    filters = {name: values for name, values in filters.items() if len(values) > 1}
    alike = {name: chosen[0][name] for name in COLUMN_OF if name not in filters and chosen}
    tables = [_table(columns, cells, chosen, {COLUMN_OF[name] for name in alike}) for columns in (BOARD, BESIDE)]
    return {
        "tables": tables,
        "filters": filters,
        "notes": notes(board, names),
        "alike": [text for text in alike.values() if text],
    }


def notes(board: pd.DataFrame, names: Mapping[str, str]) -> list[str]:
    """What each table says of itself: whether it ranks methods or encoders, and what it cannot see."""
    said: dict[str, str] = {}
    for (protocol, budget), lines in board.groupby(["protocol", "budget"], sort=False, dropna=False):
        first = lines.iloc[0]
        about = names.get(str(protocol), str(protocol)) + f", {budget}" * isinstance(budget, str)
        said[about] = " ".join(filter(None, [text(first["standing"]), sentence(first)]))
    told = {about: sentences for about, sentences in said.items() if sentences}
    different = len(told) > 1
    return list(dict.fromkeys(f"{about}: {it}" if different else it for about, it in told.items()))


def _table(
    titles: Mapping[str, tuple[str, bool]],
    cells: Sequence[dict[str, dict[str, Any]]],
    chosen: Sequence[dict[str, str]],
    left_out: Collection[str],
) -> dict[str, Any]:
    shown = [
        title
        for title in titles
        if title not in left_out and any(line[title]["text"] or line[title]["strip"] for line in cells)
    ]
    return {
        "columns": [
            {
                "key": title,
                "title": "n" if title.startswith("n of ") else title,
                "hint": titles[title][0],
                "descending": titles[title][1],
                "text": title in TEXTS,
            }
            for title in shown
        ],
        "lines": [of | {"cells": [line[title] for title in shown]} for line, of in zip(cells, chosen, strict=True)],
    }


def _cells(line: dict[Any, Any], cost: Any, colours: dict[str, int], names: Mapping[str, str]) -> dict[str, Any]:
    """One for each column of BOARD and BESIDE."""
    best, passed = bool(line["best"]), line["audit"] in AUDITED
    struck = {"struck": not passed and line["worst"] is not None}
    protocol = names.get(line["protocol"], line["protocol"])
    status = "" if line["status"] == "finished" else line["status"]
    colour = colours.get(line["method"], 0)
    return {
        "Rank": _cell(rank(line, "–"), line["rank_lo"], bold=best),
        "Method": _cell(line["method"], line["method"], status, bold=best, colour=colour),
        "Data": _cell(line["dataset"] or "", line["dataset"]),
        "Protocol": _cell(protocol, protocol),
        "Budget": _cell(line["budget"] or "", Budget.parse(line["budget"]).amount if line["budget"] else None),
        "Clean to worst": _cell("", line["worst"], strip=_strip(line), colour=colour),
        "Clean %": _cell(percent(line["clean"]), line["clean"], interval(line, "clean")[1]),
        "n of clean": _count(line["clean_n"]),
        "PGD %": _cell(percent(line["pgd"]), line["pgd"]),
        "n of PGD": _count(line["pgd_n"]),
        "AA %": _cell(percent(line["autoattack"]), line["autoattack"]),
        "n of AA": _count(line["autoattack_n"]),
        "PGD on n %": _cell(percent(line["pgd_ranked"]), line["pgd_ranked"]),
        "Worst %": _cell(percent(line["worst"]), line["worst"], interval(line, "worst")[1], bold=best, **struck),
        "n": _count(line["n"]),
        "Audit": _cell(line["audit"] or "", line["audit"], line["audit_level"] or "", badge=line["audit"] or ""),
        "Audited %": _cell(percent(line["worst_audited"]), line["worst_audited"]),
        "Seeds": _count(line["seeds"]),
        "sd": _cell(percent(line["seed_sd"]), line["seed_sd"]),
        "Train s": _cell(number(line["train_seconds"], ".1f"), line["train_seconds"], _disturbed(line["disturbed"])),
        "Passes": _number_cell(cost, "passes", ".1f"),
        "GB": _cell(number(line["peak_memory_bytes"], ".2f", 1e9), line["peak_memory_bytes"]),
        "kJ": _number_cell(cost, "energy_joules", ".1f", 1e3),
        "Money": _cell(number(line["money"], ".2f"), line["money"], line["currency"] or ""),
        "CO2 g": _cell(number(line["co2_grams"], ".3g"), line["co2_grams"]),
        "Head s": _cell(number(line["head_seconds"], ".1f"), line["head_seconds"]),
        "Head passes": _cell(number(line["head_passes"], ",.0f"), line["head_passes"]),
        "Best known %": _cell(percent(line["best_known"]), line["best_known"]),
        "n of best": _count(line["best_known_n"]),
        "Shift": _cell(number(line["feature_shift"], ".2f"), line["feature_shift"]),
        "n of shift": _count(line["feature_n"]),
    }


def _count(images: Any) -> dict[str, Any]:
    return _cell(whole(images), images)


def _cell(text: str, order: Any, small: str = "", **looks: Any) -> dict[str, Any]:
    plain = {"bold": False, "struck": False, "colour": None, "badge": "", "strip": None}
    return plain | {"text": text, "order": "" if order is None else str(order), "small": small} | looks


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
