"""The figures: trade-off, robustness over eps, accuracy against cost. Same rows, same bytes.

A colour is a method (in the manifest's order), a marker is its adversary; every figure names the data set and its n.
"""

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from bench.record import Manifest, Record
from bench.spec import Budget, format_eps
from reports.budgets import base
from reports.curves import COSTS, over
from reports.inert import printable
from reports.protocols import ranked, titles
from reports.stats import pareto
from reports.titled import EXTRA as FLAGGED

# "muted" of Paul Tol's colour-blind safe schemes (https://sronpersonalpages.nl/~pault), neighbours set apart
PALETTE = ("#332288", "#88ccee", "#117733", "#ddcc77", "#cc6677", "#44aa99", "#882255", "#999933", "#aa4499")
LETTERS = 10.5  # of a title in one inch
MARKERS = {"none": "o", "pgd": "s", "free": "^", "nfgsm": "v"}  # any other: a diamond; the page draws the same
PERCENT = ("clean", "clean_lo", "clean_hi", "pgd", "autoattack", "worst", "worst_lo", "worst_hi")
DARK = "#222222"
COLUMNS = 3  # panels beside each other, at most
TITLE_WIDTH = 42  # letters that fit over a panel
ALONE = 0.4  # opacity of PGD alone: an upper bound, not ranked
STYLE = seaborn.axes_style("ticks") | {  # type: ignore[no-untyped-call]
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.family": ["DejaVu Sans"],  # ships with matplotlib: the same letters on every machine
    "font.size": 9,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "bench",
    "text.parse_math": False,  # a name is a name, whatever is in it
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


class Look(NamedTuple):
    """How a method is drawn, the same in every figure."""

    colour: str
    marker: str
    label: str


class Material(NamedTuple):
    """What a figure is drawn from."""

    manifest: Manifest
    rows: pd.DataFrame
    board: pd.DataFrame  # accuracies in percent
    flops: dict[str, float]  # method -> floating-point operations of one training
    looks: dict[str, Look]
    curves: pd.DataFrame  # of reports/curves.py

    @property
    def judged(self) -> bool:
        """Whether a line has the worst case of PGD and AutoAttack."""
        return bool(self.board["worst"].notna().any())

    @property
    def unjudged(self) -> bool:
        """Whether a line has PGD alone."""
        return bool((self.board["worst"].isna() & self.board["pgd"].notna()).any())

    def panels(self) -> list[tuple[str, pd.DataFrame]]:
        """Each protocol with its lines; ``robust``, on ``n`` images, is the worst case, or PGD alone without one."""
        main = np.isclose(self.rows["eps"], self.manifest.main_eps) & (self.rows["threat_space"] == "image")
        totals = self.rows[main & (self.rows["attack"] == "pgd")].groupby(["method", "protocol"])["total"].min()
        lines = pd.MultiIndex.from_frame(self.board[["method", "protocol"]])
        pgd = pd.Series(totals.reindex(lines).to_numpy(), self.board.index)
        board = self.board.assign(robust=self.board["worst"].fillna(self.board["pgd"]), n=self.board["n"].fillna(pgd))
        return [(str(name), lines.dropna(subset=["clean"])) for name, lines in board.groupby("protocol", sort=False)]


def render(
    name: str,
    manifest: Manifest,
    records: Sequence[Record],
    rows: pd.DataFrame,
    board: pd.DataFrame,
    curves: pd.DataFrame | None = None,
) -> dict[str, bytes]:
    """One of ``wanted`` as ``{"png": ..., "svg": ...}``, from the tables of a run folder.

    Where a table has several budgets, FIGURES show the largest, since methods are compared within one budget.
    """
    if name in FIGURES and board["budget"].notna().any():
        largest = max(board["budget"].dropna().unique(), key=lambda budget: Budget.parse(budget).amount)
        rows, board = rows[rows["budget"] == largest], board[board["budget"] == largest]
    curves = pd.DataFrame() if curves is None else curves
    board = board.assign(**{name: 100 * board[name] for name in PERCENT})
    with matplotlib.rc_context(STYLE):
        looks = _looks(rows, board)
        drawing = (FIGURES | EXTRA)[name]
        figure = drawing(Material(manifest, rows, board, _flops(manifest, records), looks, curves))
        png = encoded(figure, "png")
        figure.set_layout_engine("none")  # which places everything, and once is enough
        return {"png": png, "svg": encoded(figure, "svg")}


def clean_vs_robust(material: Material) -> Figure:
    """Robust against clean accuracy; size is training time, bars are 95 % intervals, the line is the Pareto front."""
    robust = f"robust accuracy at eps {format_eps(material.manifest.main_eps)} (%)"
    figure, panels = _grid(material, len(material.panels()), robust)
    size = _sizes(material.board["train_seconds"])
    for panel, (protocol, points) in zip(panels, material.panels(), strict=True):
        for point in points.to_dict("records"):
            colour, marker, _ = material.looks[point["method"]]
            fill, edge = (colour, DARK) if point["worst"] == point["robust"] else ("white", colour)
            panel.hlines(point["robust"], point["clean_lo"], point["clean_hi"], colors=colour, linewidth=0.9, alpha=0.6)
            panel.vlines(point["clean"], point["worst_lo"], point["worst_hi"], colors=colour, linewidth=0.9, alpha=0.6)
            panel.plot(
                point["clean"], point["robust"], marker, color=fill, mec=edge, mew=0.8, ms=size(point["train_seconds"])
            )
        best = points[pareto(points[["clean", "worst"]])].sort_values("clean")
        panel.plot(best["clean"], best["worst"], color="#555555", linewidth=1, linestyle="--", zorder=1.5)
        panel.set(title=_title(material, protocol, points["n"]), xlabel="clean accuracy (%)")
    drawn = material.board.loc[material.board["clean"].notna(), "train_seconds"]
    ends = (drawn.min(), drawn.max()) if drawn.max() > 1.05 * drawn.min() else (drawn.max(),)
    times = {f"{seconds:.3g} s": seconds for seconds in ends if seconds > 0}
    trained = [_dot("o", "white", text, size(seconds)) for text, seconds in times.items()]
    front_line = Line2D([], [], color="#555555", linestyle="--", linewidth=1, label="Pareto front")
    sizes = {"training time": trained} if trained else {}
    front = {"dashed line": [front_line]} if material.judged else {}
    alone = {"open mark": [_dot("o", "white", "PGD alone", 6)]} if material.unjudged else {}
    _legend(figure, material, sizes | front | alone)
    return figure


def robust_vs_eps(material: Material) -> Figure:
    """Accuracy under PGD over eps: mean and range over seeds; the ranked worst case is a mark of its own."""
    figure, panels = _grid(material, len(material.panels()), "accuracy under PGD (%)")
    main, rows = material.manifest.main_eps, material.rows
    rows = rows[(rows["attack"] == "none") | ((rows["attack"] == "pgd") & (rows["threat_space"] == "image"))]
    tried = sorted(rows.loc[rows["protocol"].isin(ranked(material.manifest.runs)), "eps"].unique())
    unit = 255 if any("/" in format_eps(eps) for eps in tried) else 1
    for panel, (protocol, points) in zip(panels, material.panels(), strict=True):
        shown = rows[rows["protocol"] == protocol]
        for method, cells in shown.groupby("method", sort=False):
            colour, marker, _ = material.looks[str(method)]
            curve = 100 * cells.groupby("eps")["accuracy"].agg(["mean", "min", "max"])
            panel.fill_between(curve.index * unit, curve["min"], curve["max"], color=colour, alpha=0.15, linewidth=0)
            panel.plot(curve.index * unit, curve["mean"], color=colour, marker=marker, markersize=4, linewidth=1.4)
        for point in points.to_dict("records"):
            colour, marker, _ = material.looks[point["method"]]
            panel.plot(main * unit, point["worst"], marker, color="white", mec=colour, mew=1.6, ms=8, zorder=4)
        pgd = shown.loc[shown["attack"] == "pgd", "total"]
        panel.set(title=_title(material, protocol, pgd), xlabel=f"eps of the l-inf ball{' (255ths)' * (unit == 255)}")
        panel.set_xticks([eps * unit for eps in tried], [f"{eps * unit:.4g}" for eps in tried])
        panel.set_ylim(-3, 103)
    worst = f"worst of PGD and\nAutoAttack at {format_eps(main)},\n{_count(material.board['n'])}"
    _legend(figure, material, {"open mark": [_dot("o", "white", worst, 8)]} if material.judged else {})
    return figure


def accuracy_vs_cost(material: Material) -> Figure:
    """What a method gets and what it costs: clean (open) and robust accuracy (filled), then time and FLOPs as bars.

    A line is a method, the most robust on top, so equal budgets put nothing on one spot.
    """
    board, panels = material.board, material.panels()
    board = board.assign(robust=board["worst"].fillna(board["pgd"]))
    lines = board.sort_values("robust", ascending=False, kind="stable").drop_duplicates("method")
    places = {method: place for place, method in enumerate(lines["method"])}
    costs = {
        "training time (s)": lines["train_seconds"],
        "training computation (FLOPs)": lines["method"].map(material.flops),
    }
    costs = {label: cost for label, cost in costs.items() if cost.notna().any()}  # no times of different machines
    figure, axes = _grid(material, len(panels) + len(costs), "", sharex=False, height=1.0 + 0.27 * len(lines))
    for panel, (protocol, points) in zip(axes, panels, strict=False):
        for point in points.to_dict("records"):
            colour, marker, _ = material.looks[point["method"]]
            y, clean, robust = places[point["method"]], point["clean"], point["robust"]
            panel.plot([robust, clean], [y, y], color=colour, linewidth=1.2, alpha=0.5, zorder=1.5)
            panel.plot(clean, y, marker, color="white", mec=colour, mew=1.4, ms=7)
            shade = 1.0 if point["worst"] == robust else ALONE
            panel.plot(robust, y, marker, color=colour, mec=DARK, mew=0.6, ms=7, alpha=shade)
        panel.set(title=_title(material, protocol, points["n"]), xlabel="accuracy (%)", xlim=(-3, 103))
    for panel, (label, cost) in zip(axes[len(panels) :], costs.items(), strict=True):
        colours = [material.looks[method].colour for method in lines["method"]]
        bars = panel.barh(list(places.values()), cost, height=0.55, color=colours, alpha=0.85)
        panel.bar_label(bars, fmt="{:.3g}", padding=3, fontsize=7.5)
        panel.margins(x=0.16)
        panel.set(title=f"{label.split(' (')[0]}, mean over seeds", xlabel=label)
        panel.locator_params(axis="x", nbins=5)
    for panel in axes:
        panel.set_yticks(list(places.values()), [material.looks[method].label for method in places])
        panel.set_ylim(len(places) - 0.4, -0.6)
    main = format_eps(material.manifest.main_eps)
    dots = [_dot("o", "white", "clean", 7)]
    dots += [_dot("o", "#555555", f"robust at eps {main}", 7)] * material.judged
    dots += [_dot("o", "#555555", f"PGD alone at eps {main}", 7, ALONE)] * material.unjudged
    _legend(figure, material, {"accuracy": dots}, methods=False)
    return figure


def over_training(material: Material) -> Figure:
    """Accuracy of snapshots against what the training had cost by then: dashed, since no schedule was annealed."""
    scores = [name for name in ("clean", "robust") if material.curves[name].notna().any()]
    costs = [name for name in COSTS if material.curves[name].notna().any()]
    figure, axes = _figure(material, len(scores), len(costs), sharex="col")
    for line, score in zip(axes, scores, strict=True):
        for panel, cost in zip(line, costs, strict=True):
            for method, points in over(material.curves, cost, score).items():
                colour, marker, _ = material.looks[method]
                at, mean, least, most = np.array(points).T
                panel.fill_between(at, 100 * least, 100 * most, color=colour, alpha=0.15, linewidth=0)
                panel.plot(at, 100 * mean, color=colour, marker=marker, markersize=4, linewidth=1.3, linestyle="--")
            counts = _count(material.curves[f"{score}_total"])
            panel.set(title=f"{score}, {counts}", xlabel=COSTS[cost][0], ylim=(-3, 103))
            panel.label_outer()
        line[0].set_ylabel(f"{score} accuracy (%)")
    said = Line2D([], [], color="#555555", linestyle="--", label="held-out training\nimages, unannealed\nsnapshots")
    _legend(figure, material, {"dashed line": [said]})
    return figure


def frontier(material: Material) -> Figure:
    """Accuracy on test images against the budget, a training for each: solid; open marks are not ranked."""
    figure, axes = _figure(material, 2, len(material.panels()), sharex="col")
    budgets = {text: Budget.parse(text) for text in material.board["budget"].dropna().unique()}
    attack, eps = material.rows["attack"], material.rows["eps"]
    robust, label = ("worst", "robust accuracy") if material.judged else ("pgd", "accuracy under PGD")
    scores = {"clean": attack == "none", robust: (attack == robust) & np.isclose(eps, material.manifest.main_eps)}
    for place, (protocol, points) in enumerate(material.panels()):
        points = points.assign(amount=[budgets[text].amount for text in points["budget"]])
        points = points.assign(base=[base(*row) for row in points[["method", "budget"]].to_numpy()])
        for panel, (score, cells) in zip(axes[:, place], scores.items(), strict=True):
            scored = material.rows[cells & (material.rows["protocol"] == protocol)]
            seeds = scored.groupby("method")["accuracy"]
            least, most = 100 * seeds.min(), 100 * seeds.max()
            for _, line in points.dropna(subset=[score]).sort_values("amount").groupby("base", sort=False):
                colour, marker, _ = material.looks[line["method"].iloc[0]]
                ends = least.reindex(line["method"]).astype(float), most.reindex(line["method"]).astype(float)
                panel.fill_between(line["amount"], *ends, color=colour, alpha=0.15, linewidth=0)
                panel.plot(line["amount"], line[score], color=colour, linewidth=1.4)
                for point in line.to_dict("records"):
                    fill = "white" if pd.isna(point["rank_lo"]) else colour
                    panel.plot(point["amount"], point[score], marker, color=fill, mec=colour, ms=5)
            panel.set(title=_title(material, protocol, scored["total"]), xlabel="training budget", ylim=(-3, 103))
            if points["amount"].max() > 4 * points["amount"].min():
                panel.set_xscale("log")
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.set_xticks([budget.amount for budget in budgets.values()], list(budgets))
            panel.label_outer()
    axes[0][0].set_ylabel("clean accuracy (%)")
    axes[1][0].set_ylabel(f"{label} at eps {format_eps(material.manifest.main_eps)} (%)")
    _legend(figure, material, {"open mark": [_dot("o", "white", "not ranked", 6)]})
    return figure


EXTRA: dict[str, Callable[[Material], Figure]] = {"frontier": frontier, "curves": over_training}
FIGURES: dict[str, Callable[[Material], Figure]] = {
    "clean_vs_robust": clean_vs_robust,
    "robust_vs_eps": robust_vs_eps,
    "accuracy_vs_cost": accuracy_vs_cost,
}


def wanted(board: pd.DataFrame, curves: pd.DataFrame) -> list[str]:
    """The figures that there is something for: the frontier over budgets first, curves over the training last."""
    several = "budget" in board and board["budget"].nunique() > 1
    return ["frontier"] * several + list(FIGURES) + ["curves"] * (not curves.empty)


def _grid(
    material: Material, count: int, ylabel: str, sharex: Literal["all", False] = "all", height: float = 3.2
) -> tuple[Figure, list[Axes]]:
    """``count`` panels in lines of at most COLUMNS, the last one as full as it can be."""
    lines = math.ceil(count / COLUMNS)
    columns = math.ceil(count / lines)
    figure, axes = _figure(material, lines, columns, sharex, height)
    for spare in axes.flat[count:]:
        spare.set_visible(False)
    for panel in axes.flat[:count]:
        panel.tick_params(labelbottom=True)  # of every line, since the last one may have a gap
    for panel in axes[:, 0]:
        panel.set_ylabel(ylabel)
    return figure, list(axes.flat[:count])


def _figure(
    material: Material,
    lines: int,
    columns: int,
    sharex: Literal["all", "col", False] = "all",
    height: float = 3.2,
) -> tuple[Figure, Any]:
    """Empty panels, each ``height`` inches high, under one line that says what the numbers stand on."""
    figure = Figure(figsize=(3.4 * columns + 2.2, height * lines + 0.8), layout="constrained")
    seeds = len(material.manifest.seeds)
    several = ", ".join(material.board["budget"].dropna().unique())
    budget = material.manifest.budget or several or "of each row"
    said = [material.manifest.data.label, f"{seeds} seed{'s' * (seeds != 1)}", f"budget {budget}"]
    if "quick" in set(material.rows["eval"]):
        said.append("quick evaluation, not comparable")
    title = textwrap.fill(printable(" · ".join(said)), int(LETTERS * figure.get_figwidth()))
    figure.suptitle(title, fontsize=10, fontweight="bold", parse_math=False)
    return figure, figure.subplots(lines, columns, sharex=sharex, sharey=True, squeeze=False)


def _looks(rows: pd.DataFrame, board: pd.DataFrame) -> dict[str, Look]:
    status = dict(zip(board["method"], board["status"], strict=True))
    several = bool(board["budget"].notna().any())
    first = rows.drop_duplicates("method")[["method", "adversary", "budget"]].to_numpy()
    names = {method: base(method, budget) if several else method for method, _, budget in first}
    places = {name: place for place, name in enumerate(dict.fromkeys(names.values()))}
    return {
        method: Look(
            PALETTE[places[names[method]] % len(PALETTE)],
            MARKERS.get(adversary, "D"),
            _short(names[method]) + ("" if status[method] == "finished" else f"\n({status[method]})"),
        )
        for method, adversary, _ in first
    }


def _short(name: str) -> str:
    mark = FLAGGED if FLAGGED in name else ""
    name = name.replace(mark, "")
    return f"{name if len(name) <= 28 else f'{name[:27]}…'}{mark}"


def _flops(manifest: Manifest, records: Sequence[Record]) -> dict[str, float]:
    """Mean over scored seeds of what a whole training took: operations per image and epoch, times epochs and images."""
    work: dict[str, list[float]] = {}
    for record in records:
        if record.train is not None and record.results:
            images = (record.data or manifest.data).train
            work.setdefault(record.spec.row, []).append(record.train.flops_per_image * record.train.epochs * images)
    return {method: sum(flops) / len(flops) for method, flops in work.items()}


def _sizes(times: pd.Series) -> Callable[[float], float]:
    """Marker size whose area grows with the training time."""
    longest = times.max()
    return lambda seconds: 5 + 7 * float(np.sqrt(seconds / longest)) if longest > 0 else 8.0


def _title(material: Material, protocol: str, totals: pd.Series) -> str:
    title = titles(material.manifest.runs).get(protocol, protocol)
    begins = title[:1] if title[1:2].isupper() else title[:1].lower()  # SLF stays as it is
    return textwrap.fill(f"{begins}{title[1:]}, {_count(totals)}", TITLE_WIDTH)


def _count(totals: pd.Series) -> str:
    counts = sorted(set(totals.dropna()))
    return "n = " + (" to ".join(str(count) for count in dict.fromkeys([counts[0], counts[-1]])) if counts else "0")


def _dot(marker: str, colour: str, label: str, size: float, shade: float = 1.0) -> Line2D:
    return Line2D(
        [], [], linestyle="", marker=marker, color=colour, mec=DARK, mew=0.8, ms=size, label=label, alpha=shade
    )


def _legend(figure: Figure, material: Material, others: dict[str, list[Line2D]], methods: bool = True) -> None:
    """One column beside the panels, in groups with headings: ``methods``, their adversaries, and ``others``."""
    looks = list(dict.fromkeys(material.looks.values()))  # a method of several budgets once
    used = {look.marker for look in looks}
    groups = {"method": [_dot(look.marker, look.colour, look.label, 6) for look in looks]} if methods else {}
    groups["trained against"] = [_dot(m, "#bbbbbb", name, 6) for name, m in MARKERS.items() if m in used]
    handles = [line for title, dots in (groups | others).items() for line in (_dot("", "none", title, 0), *dots)]
    legend = figure.legend(handles=handles, loc="outside right center", labelspacing=0.6)
    for text in legend.get_texts():
        text.set_fontweight("bold" if text.get_text() in groups | others else "normal")


def encoded(figure: Figure, kind: str) -> bytes:
    """A figure as png or svg; the same bytes every time."""
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=160, metadata={"png": {"Software": None}, "svg": {"Date": None}}[kind])
    return file.getvalue()
