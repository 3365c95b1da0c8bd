"""What the figures of report.html are drawn from, as JSON values; reports/templates/charts.js draws them.

A colour is a method, a marker its adversary, both as in reports/plots.py. Accuracies are in percent.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.record import Manifest, Record
from bench.spec import format_eps, format_radius
from reports import curves
from reports.captions import CAPTIONS, caption
from reports.plots import MARKERS, PALETTE
from reports.protocols import ranked, titles
from reports.stats import wilson

ATTACKS = {"pgd": "PGD", "autoattack": "AutoAttack", "fgsm": "FGSM", "noise": "Noise", "pgd_crop": "PGD on crops",
           "pgd_l2": "PGD in l2", "autoattack_l2": "AutoAttack in l2", "fmn": "FMN", "fmn_l2": "FMN in l2"}  # fmt: skip
PASSES = ["forward_per_image", "backward_input_per_image", "backward_weight_per_image"]
COSTS = {  # column of the rows -> (label, unit, what one unit is)
    "train_seconds": ("Training time", "s", 1.0),
    "passes": ("Passes per image and epoch", "", 1.0),
    "peak_memory_bytes": ("Peak memory", "GB", 1e9),
    "energy_joules": ("Energy", "kJ", 1e3),
}
SCORES = {"clean": "Clean", "robust": "Robust (PGD, one restart)"}
MARK = " The open mark is the ranked worst case of PGD and AutoAttack, on the images that both attacked."
LONGEST = 80  # points of a loss curve


def charts(
    manifest: Manifest,
    records: Sequence[Record],
    rows: pd.DataFrame,
    board: pd.DataFrame,
    points: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Everything that is drawn: methods with their looks, the axes of the scatter plot, its panels, the line plots."""
    scored = rows.assign(passes=rows[PASSES].sum(axis=1, min_count=3))
    looks = methods(rows, board)
    places = {look["name"]: place for place, look in enumerate(looks)}
    lines = [robust_over_eps(manifest, rows, places), losses(records, places)]
    panels, axes = scatter(manifest, scored, board, places)
    if points is not None:
        drawn = [chart for cost in curves.COSTS if (chart := over_training(points, places, cost))["panels"]]
        lines += [chart | {"text": caption("curves", points)} for chart in drawn[:1]] + drawn[1:]  # alarms: said once
    return {"methods": looks, "axes": axes, "panels": panels, "lines": [line for line in lines if line["panels"]]}


def methods(rows: pd.DataFrame, board: pd.DataFrame) -> list[dict[str, Any]]:
    """Name, colour, marker, adversary and status of each method, in the manifest's order."""
    status = dict(zip(board["method"], board["status"], strict=True))
    known = list(MARKERS)
    return [
        {
            "name": name,
            "colour": place % len(PALETTE),
            "marker": known.index(adversary) if adversary in known else len(known),
            "adversary": "" if pd.isna(adversary) else adversary,
            "status": status.get(name, ""),
        }
        for place, (name, adversary) in enumerate(
            rows.drop_duplicates("method")[["method", "adversary"]].itertuples(index=False)
        )
    ]


# ---------------------------------------------------------------- one method, one point


def scatter(
    manifest: Manifest, rows: pd.DataFrame, board: pd.DataFrame, places: dict[str, int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(panels, axes); the first two axes, clean and robust accuracy, are shown until others are chosen.

    A value is [mean over seeds] or, for an accuracy, [mean, lo, hi]; ``best``: 1 up, -1 down.
    """
    main = format_eps(manifest.main_eps)
    axes = {"clean": {"label": "Clean accuracy", "unit": "%", "best": 1}}
    if board["worst"].notna().any():
        axes["worst"] = {"label": f"Robust accuracy, worst case at eps {main}", "unit": "%", "best": 1}
    else:
        axes[f"pgd:{main}"] = {"label": f"{ATTACKS['pgd']} at eps {main}", "unit": "%", "best": 1}
    panels, names = [], titles(manifest.runs)
    for (protocol, budget), lines in board.groupby(["protocol", "budget"], sort=False, dropna=False):
        points = []
        for line in lines.to_dict("records"):
            of_method = rows[rows["method"] == line["method"]]
            values = {
                name: _accuracy(line[name], line[f"{name}_lo"], line[f"{name}_hi"]) for name in ("clean", "worst")
            }
            scored = of_method[of_method["protocol"] == protocol]
            for (attack, eps, curve), cells in scored.groupby(["attack", "eps", "curve"]):
                if attack in ("none", "worst", "pgd_only") or curve:
                    continue
                radius = format_radius(cells["norm"].iloc[0], eps)
                name, label = f"{attack}:{radius}", f"{ATTACKS.get(attack, attack)} at eps {radius}"
                axes.setdefault(name, {"label": label, "unit": "%", "best": 1})
                mean, total = float(cells["accuracy"].mean()), int(cells["total"].min())
                values[name] = _accuracy(mean, *wilson(mean * total, total))
            runs = of_method.drop_duplicates("seed")
            runs = runs[runs["status"] == "finished"] if (runs["status"] == "finished").any() else runs
            for name, (label, unit, per) in COSTS.items():
                cost = runs[name].astype("float64").mean() / per
                if pd.notna(cost) and cost > 0:
                    axes.setdefault(name, {"label": label, "unit": unit, "best": -1})
                    values[name] = [_short(cost)]
            known = {name: value for name, value in values.items() if value}
            ranked = bool(pd.notna(line["rank_lo"]))
            audit = "" if pd.isna(line["audit"]) else line["audit"]
            points.append({"method": places[line["method"]], "values": known, "ranked": ranked, "audit": audit})
        within = f", budget {budget}" if isinstance(budget, str) else ""
        panels.append({"protocol": names.get(str(protocol), str(protocol)) + within, "points": points})
    return panels, [{"key": name} | axis for name, axis in axes.items()]


def _accuracy(mean: Any, lo: Any, hi: Any) -> list[float]:
    return [] if pd.isna(mean) else [_short(100 * value) for value in (mean, lo, hi)]


def _short(value: Any) -> float:
    return float(f"{value:.5g}")


# ---------------------------------------------------------------- lines


def robust_over_eps(manifest: Manifest, rows: pd.DataFrame, places: dict[str, int]) -> dict[str, Any]:
    """PGD accuracy over eps: [eps, mean, least, most over seeds]; ``mark``: the ranked worst case."""
    image = rows["threat_space"] == "image"
    pgd = rows[(rows["attack"] == "none") | (rows["attack"].isin(["pgd", "worst"]) & image)]
    judged, names = ranked(manifest.runs), titles(manifest.runs)
    tried = sorted(pgd.loc[pgd["protocol"].isin(judged), "eps"].unique())
    unit = 255 if any("/" in format_eps(eps) for eps in tried) else 1
    panels, table, marked = [], [], False
    for protocol in (name for name in judged if (pgd["protocol"] == name).any()):
        series = []
        for method, cells in pgd[pgd["protocol"] == protocol].groupby("method", sort=False):
            curve = cells[cells["attack"] != "worst"].groupby("eps")["accuracy"].agg(["mean", "min", "max"])
            points = [
                [_short(eps * unit), *(_short(100 * value) for value in of_eps)] for eps, *of_eps in _numbers(curve)
            ]
            worst = cells[(cells["attack"] == "worst") & np.isclose(cells["eps"], manifest.main_eps)]["accuracy"].mean()
            mark = [] if pd.isna(worst) else [_short(manifest.main_eps * unit), _short(100 * worst)]
            series.append({"method": places[str(method)], "points": points, "mark": mark})
            marked = marked or bool(mark)
            shown = {eps: f"{100 * mean:.1f}" for eps, mean in curve["mean"].items()}
            table.append([str(method), names[protocol], *(shown.get(eps, "") for eps in tried)])
        panels.append({"title": names[protocol], "series": series})
    return {
        "id": "eps",
        "title": "Robustness against eps",
        "text": "Accuracy under PGD over the size of the ball, mean over seeds; the band is the range over seeds."
        + MARK * marked,
        "x": "eps (255ths)" if unit == 255 else "eps",
        "y": "accuracy under PGD (%)",
        "percent": True,
        "ticks": [[_short(eps * unit), f"{eps * unit:.4g}"] for eps in tried],
        "panels": panels,
        "table": _table("Method | Protocol | " + " | ".join(format_eps(eps) for eps in tried), table, 2),
    }


def losses(records: Sequence[Record], places: dict[str, int]) -> dict[str, Any]:
    """The training loss over the share of the budget spent: a panel per method, a line per seed."""
    panels: dict[str, dict[str, Any]] = {}
    table = []
    for record in records:
        curve = record.train.losses if record.train else []
        if len(curve) > 1:
            name, seed = record.spec.row, record.spec.seed
            picked = sorted({round(place) for place in np.linspace(0, len(curve) - 1, min(LONGEST, len(curve)))})
            points = [[_short(100 * curve[place][0]), _short(curve[place][1])] for place in picked]
            panel = panels.setdefault(name, {"title": name, "series": []})
            panel["series"].append({"method": places[name], "name": f"seed {seed}", "points": points})
            table.append([name, str(seed), f"{curve[0][1]:.5g}", f"{curve[-1][1]:.5g}"])
    return {
        "id": "loss",
        "title": "Training loss",
        "text": "The loss that each method minimizes, over the share of its budget; a line per seed. Every panel has a "
        "scale of its own, since different objectives are no common measure.",
        "x": "budget spent (%)",
        "y": "loss",
        "percent": False,
        "ticks": [[share, str(share)] for share in (0, 50, 100)],
        "panels": list(panels.values()),
        "table": _table("Method | Seed | First | Last", table, 1),
    }


def over_training(points: pd.DataFrame, places: dict[str, int], cost: str) -> dict[str, Any]:
    """Accuracy over one cost of the training: [cost, mean, least, most over seeds]; a panel for each score."""
    label = curves.COSTS[cost][0]
    panels: list[dict[str, Any]] = []
    table: list[list[str]] = []
    for score, title in SCORES.items():
        by_method = curves.over(points, cost, score)
        series = [
            {
                "method": places[method],
                "points": [[_short(at), *(_short(100 * accuracy) for accuracy in of)] for at, *of in marks],
                "dashed": True,
            }
            for method, marks in by_method.items()
        ]
        panels += [{"title": title, "series": series}] * bool(series)
        table += [
            [method, title, f"{at:.5g}", f"{100 * mean:.1f}"] for method, of in by_method.items() for at, mean, *_ in of
        ]
    costs = [point[0] for panel in panels for line in panel["series"] for point in line["points"]]
    return {
        "id": f"over-{cost.replace('_', '-')}",
        "title": f"Accuracy over {label.partition(' (')[0]}",
        "text": CAPTIONS["curves"],
        "x": label,
        "y": "accuracy on held-out training images (%)",
        "percent": True,
        "ends": [0.0, max(costs)] if costs else [],
        "panels": panels,
        "table": _table(f"Method | Score | {label} | Accuracy %", table, 2),
    }


def _numbers(table: pd.DataFrame) -> list[list[float]]:
    return table.reset_index().to_numpy(dtype=float).tolist()


def _table(titles: str, lines: list[list[str]], texts: int) -> dict[str, Any]:
    """A table as reports/cells.py has them; the first columns hold text."""
    names = titles.split(" | ")
    columns = [{"title": title, "right": place >= texts, "quiet": False} for place, title in enumerate(names)]
    return {"caption": "", "columns": columns, "rows": lines}
