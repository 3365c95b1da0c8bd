"""How a value reads in a table, and the tables themselves: the same in report.pdf, LaTeX and Markdown.

A cell is a text, ``{"bold": text}``, ``{"struck": text}`` or ``{"text": text}``; the last three may have a line
``small`` below and a ``tone``, ``ahead`` or ``behind``. A missing value is an empty text.
"""

from typing import Any

import pandas as pd


def table(
    caption: str, titles: str, rows: list[list[Any]], left: str = "", wide: str = "", quiet: str = "", size: float = 8.5
) -> dict[str, Any]:
    """A table: its caption, columns, rows of cells and size of letters in points.

    ``titles`` names the columns as ``A | B``; ``left`` those that are no numbers, ``wide`` those that may break, and
    ``quiet`` those that stand back, in the same form.
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


def percent(share: float) -> str:
    """``93.1`` of 0.931."""
    return "" if pd.isna(share) else f"{100 * share:.1f}"


def interval(line: dict[Any, Any], name: str, lo: str = "", hi: str = "") -> list[str]:
    """[value, interval] of a column with its ``_lo`` and ``_hi``, or with the columns ``lo`` and ``hi``."""
    low, high = line[lo or f"{name}_lo"], line[hi or f"{name}_hi"]
    return [percent(line[name]), "" if pd.isna(low) else f"{percent(low)}–{percent(high)}"]


def rank(line: dict[Any, Any], to: str = "-") -> str:
    """``2``, or the range ``2-4`` that the statistics allow."""
    return to.join(dict.fromkeys([whole(line["rank_lo"]), whole(line["rank_hi"])]))


def whole(count: Any) -> str:
    """``64``, without a decimal point."""
    return "" if pd.isna(count) else str(int(count))


def number(value: Any, form: str, per: float = 1.0) -> str:
    """``value / per`` in a format such as ``.2f``."""
    return "" if pd.isna(value) else format(value / per, form)


def text(value: Any) -> str:
    """``value`` as it is."""
    return "" if pd.isna(value) else str(value)
