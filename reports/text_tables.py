r"""leaderboard.tex and leaderboard.md: the main table (see reports/main_table.py) for a paper and for a repository.

Every text may have been written by anybody: in LaTeX no character of it is a command, in Markdown none is markup.
"""

import re
from collections.abc import Callable
from typing import Any

import pandas as pd

from bench.record import Manifest
from reports.inert import printable
from reports.main_table import LEGEND, main_tables
from reports.reproduction import reproduction

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",
    "[": "{[}",  # after the end of a row it would open an argument
    "]": "{]}",
    "–": r"\textendash{}",
} | {letter: f"\\{letter}" for letter in "{}$&#_%"}
MARKDOWN = re.compile(r"[\\`*_{}\[\]<>#|~&@$!]|:(?=//)|(?<=www)\.", re.IGNORECASE)
UNSEEN = "<!-- -->"  # between @ and a name: the name of a method calls nobody
PREAMBLE = r"""% Needs in the preamble:
%   \usepackage{booktabs}
%   \usepackage{graphicx}          % a table that is too wide is made smaller
%   \usepackage[normalem]{ulem}    % struck-through numbers
% A name in letters other than Latin needs xelatex or lualatex and a font that has them.
"""


def latex(manifest: Manifest, board: pd.DataFrame) -> str:
    """The tables in booktabs style, one ``table`` for each protocol and budget."""
    comments = "".join(f"% {printable(line)}\n" for line in reproduction(manifest))
    tables = [_latex_table(table, place) for place, table in enumerate(main_tables(manifest, board), 1)]
    return "\n".join([comments + PREAMBLE, *tables])


def markdown(manifest: Manifest, board: pd.DataFrame) -> str:
    """The tables in GitHub's Markdown, with the command that made them."""
    command = [printable(line) for line in reproduction(manifest)]
    fence = "`" * max(3, 1 + max(len(run) for run in re.findall("`*", "".join(command))))
    parts = [_markdown_table(table) for table in main_tables(manifest, board)]
    return "\n\n".join([*parts, plain_markdown(LEGEND), "\n".join([f"{fence}sh", *command, fence])]) + "\n"


def plain_latex(text: str) -> str:
    r"""``text`` as LaTeX that shows it.

    >>> plain_latex(r"a_b\input{c}")
    'a\\_b\\textbackslash{}input\\{c\\}'
    """
    shown = "".join(LATEX.get(letter, letter) for letter in printable(text))
    return re.sub("-(?=-)", "-{}", shown)  # two would become a dash


def plain_markdown(text: str) -> str:
    r"""``text`` as Markdown that shows it: no emphasis, link, HTML, cell border, mention or mathematics.

    >>> plain_markdown("a_b|<i>")
    'a\\_b\\|\\<i\\>'
    """
    return MARKDOWN.sub(lambda match: f"\\{match[0]}", printable(text).strip()).replace("@", f"@{UNSEEN}")


def _latex_table(table: dict[str, Any], place: int) -> str:
    columns = table["columns"]
    heads = [plain_latex(column["title"]) for column in columns]
    rows = [
        [
            rf"{{\scriptsize {text}}}" if column["quiet"] and text else text
            for column, text in zip(columns, _cells(row, plain_latex, r"\textbf{%s}", r"\sout{%s}"), strict=True)
        ]
        for row in table["rows"]
    ]
    said = " ".join(filter(None, [table["caption"], LEGEND, table["note"]]))
    lines = [
        r"\begin{table}",
        r"\centering",
        r"\small",
        r"\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{plain_latex(said)}}}",
        rf"\label{{tab:leaderboard-{place}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{''.join('r' if column['right'] else 'l' for column in columns)}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _markdown_table(table: dict[str, Any]) -> str:
    columns = table["columns"]
    lines = [
        [plain_markdown(column["title"]) for column in columns],
        ["---:" if column["right"] else ":---" for column in columns],
        *(_cells(row, plain_markdown, "**%s**", "~~%s~~") for row in table["rows"]),
    ]
    drawn = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join(filter(None, [f"**{plain_markdown(table['caption'])}**", drawn, plain_markdown(table["note"])]))


def _cells(row: list[Any], plain: Callable[[str], str], bold: str, struck: str) -> list[str]:
    """The row as texts; ``bold`` and ``struck``: forms with a ``%s``."""
    forms = {"bold": bold, "struck": struck}
    return [
        next(forms[look] % plain(text) for look, text in cell.items()) if isinstance(cell, dict) else plain(cell)
        for cell in row
    ]
