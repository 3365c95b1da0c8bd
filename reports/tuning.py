"""The section of a run with tuned rows: what the search has found, and what that is worth on the test images."""

from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from bench.record import Manifest
from bench.spec import format_eps
from bench.tuned import ENDING, Search, Tuning, best_so_far, expected_best
from reports.cells import number, percent, table, whole
from reports.inert import printable
from reports.plots import PALETTE, STYLE, encoded

TITLE = "Published against tuned"
COLUMNS = 3  # panels beside each other
QUIET = "#88838f"
CAPTION = (
    "What each search found, in % on held-out training images: every trial (a point; the published one a diamond), the "
    "best so far (line), and the best that so many of these trials bring on average in any order (dashed)."
)


def section(manifest: Manifest, claims: pd.DataFrame) -> dict[str, Any]:
    """The section, without content where nothing was tuned. ``claims``: of the run, under the names of its rows."""
    tuning = manifest.tuning
    if tuning is None:
        return {"title": TITLE, "text": "", "tables": []}
    return {
        "title": TITLE,
        "text": f"Rows that end in {ENDING} have the best settings of a search, the same for each method: {tuning}, at "
        f"eps {format_eps(tuning.eps)} ({tuning.dataset}). The published settings are its first trial. The best of "
        "many is flattered by the choice, so real runs are compared on the test images, with seeds that the search "
        "has not seen. What matters is a rough hint with so few trials: the share of a setting in what tells good "
        "trials from bad ones (PED-ANOVA).",
        "points": list(sentences(tuning)),
        "tables": [found(tuning), *compared(tuning, claims)],
        "drawing": {"svg": drawn(tuning), "caption": CAPTION},
    }


def found(tuning: Tuning) -> dict[str, Any]:
    """A line for each method: its published and its best trial, and the settings of the best."""
    lines = []
    for row, search in tuning.searches.items():
        best = tuning.best(row)
        ends = tuning.on_border(row)
        lines.append(
            [
                row,
                worth(search, 0),
                worth(search, best),
                str(best),
                changed(tuning, row) or "as published",
                ", ".join(ends) or "none",
                ", ".join(f"{name} {percent(share)}" for name, share in ranked(search.importance)[:3]),
            ]
        )
    left = "Method | Its settings | At an end | What matters, %"
    titles = "Method | Published | Best | Trial | Its settings | At an end | What matters, %"
    caption = "Clean / robust accuracy of trials in %, on held-out training images."
    return table(caption, titles, lines, left, left, size=8)


def compared(tuning: Tuning, claims: pd.DataFrame) -> list[dict[str, Any]]:
    """Tuned less published on the test images, with the tests that the other pairs of the report have."""
    lines = []
    for row in tuning.searches:
        both = {row, f"{row}{ENDING}"}
        pairs = claims[claims["a"].isin(both) & claims["b"].isin(both) & (claims["kind"] != "time")]
        for pair in pairs.to_dict("records"):
            sign = 1 if pair["b"] == row else -1
            low, high = sorted((sign * pair["lo"], sign * pair["hi"]))
            ahead = {"better": (pair["a"], pair["b"]), "worse": (pair["b"], pair["a"])}.get(pair["verdict"], ("",))[0]
            lines.append(
                [
                    row,
                    pair["protocol"],
                    whole(pair["seed"]) or "all",
                    f"{100 * sign * pair['difference']:+.1f}",
                    "" if pd.isna(low) else f"{100 * low:+.1f} to {100 * high:+.1f}",
                    number(pair["adjusted"], ".2g"),
                    {row: "published", "": "neither"}.get(ahead, "tuned"),
                ]
            )
    titles = "Method | Protocol | Seed | Tuned less published | 95 % | p (Holm) | Ahead"
    caption = "Robust accuracy on the test images, in points; p is adjusted over all pairs of the report."
    return [table(caption, titles, lines, "Method | Protocol | Seed | 95 % | Ahead", "Method", size=8)] if lines else []


def sentences(tuning: Tuning) -> list[str]:
    """What a reader should know before the tables: whose published settings won, and whose best lies at an end."""
    kept = [row for row in tuning.searches if not tuning.tuned_settings(row)]
    ends = [f"{row} ({', '.join(names)})" for row in tuning.searches if (names := tuning.on_border(row))]
    failed = {row: [t.status for t in search.trials].count("finished") for row, search in tuning.searches.items()}
    lost = [f"{row} {tuning.trials - ended}" for row, ended in failed.items() if ended < tuning.trials]
    said = {
        "The published settings were the best of their search, so there is no tuned row": kept,
        "At an end of its range, so that a better value may lie beyond it": ends,
        "Trials that diverged or ran out of memory, and count as 0": lost,
    }
    return [f"{what}: {', '.join(rows)}." for what, rows in said.items() if rows]


# ---------------------------------------------------------------- small parts


def worth(search: Search, place: int) -> str:
    """Clean and robust accuracy of a trial in %."""
    trial = search.trials[place]
    return f"{percent(trial.clean / trial.total)} / {percent(trial.robust / trial.total)}"


def changed(tuning: Tuning, row: str) -> str:
    """The settings of the best trial of a row, in words."""
    settings = tuning.tuned_settings(row).items()
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in settings)


def ranked(shares: dict[str, float]) -> list[tuple[str, float]]:
    """Settings by what they explain, the most first."""
    return sorted(shares.items(), key=lambda item: (-item[1], item[0]))


def drawn(tuning: Tuning) -> str:
    """A panel for each method, as SVG; the same bytes for the same search."""
    rows = list(tuning.searches)
    columns = min(COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.3 * columns, 1.7 * lines), layout="constrained")
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for panel in panels[len(rows) :]:
            panel.set_visible(False)
        for panel, row in zip(panels, rows, strict=False):
            values = [100 * value for value in tuning.values(row)]
            trials = range(len(values))
            panel.plot(trials, values, "o", color=QUIET, ms=2.5)
            panel.plot(0, values[0], "D", color=PALETTE[4], ms=4)
            panel.step(trials, best_so_far(values), where="post", color=PALETTE[0], linewidth=1.4)
            panel.plot(trials, expected_best(values), "--", color=PALETTE[0], linewidth=0.9)
            panel.set_title(printable(row), fontsize=8)
        figure.supxlabel("trial", fontsize=8)
        figure.supylabel(f"{tuning.objective} accuracy (%)", fontsize=8)
        return encoded(figure, "svg").decode()
