"""The end of a run in the terminal: bars of clean and robust accuracy, three sentences, and what to run next.

Made of the tables as they are on disk, so it says what they say.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from bench.record import Manifest
from bench.spec import format_eps
from reports.abstract import listed, spelled
from reports.claims import LEVEL, SEEDS
from reports.titled import flagged

TABLES = ("results.csv", "leaderboard.csv", "claims.csv")
WIDTH = 40  # cells of a bar: 100 %
SOLID, LIGHT, EMPTY = "█", "░", " "  # robust, clean, neither
PLAIN = {SOLID: "#", LIGHT: "-", EMPTY: " "}  # for a terminal without them
NAMES = {"pgd": "PGD", "autoattack": "AutoAttack"}


def read_tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """(rows, leaderboard, claims) of a folder that has been built."""
    rows, board, claims = (pd.read_csv(folder / name) for name in TABLES)
    return flagged(rows), flagged(board), claims


def drawing(board: pd.DataFrame) -> list[str]:
    """A bar for each line of the leaderboard's first protocol: solid is robust, light is clean accuracy.

    Where no line was attacked by both PGD and AutoAttack, robust is PGD alone. A line that is not ranked says why, and
    is not solid. [] where nothing was attacked.
    """
    first, robust = first_protocol(board)
    lines = first[first["clean"].notna() & first[robust].notna()]
    if lines.empty:
        return []
    width = max(map(len, lines["method"].astype(str)))
    what = "the worse of PGD and AutoAttack" if robust == "worst" else "under PGD"
    title = f"{lines.iloc[0]['protocol']}: {SOLID} robust ({what}), {LIGHT} clean"
    drawn = [f"{title:<{width + WIDTH + 2}}  robust  clean"]
    for line in lines.to_dict("records"):
        why = unranked(line) if robust == "worst" else ""
        solid, light = (round(WIDTH * line[name]) for name in (robust, "clean"))
        bar = (SOLID * solid * (not why) + LIGHT * max(0, light - solid * (not why))).ljust(WIDTH, EMPTY)
        numbers = f"{100 * line[robust]:4.1f} %  {100 * line['clean']:3.0f} %"
        drawn.append(f"{line['method']:<{width}}  {bar}  {numbers}{why}")
    return drawn


def first_protocol(board: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The lines of the first protocol, and the column of their robust accuracy."""
    first = next((lines for _, lines in board.groupby("protocol", sort=False)), board)
    return first, "worst" if first["worst"].notna().any() else "pgd"


def unranked(line: dict[Any, Any]) -> str:
    """What to say beside a line that has no rank; "" for one that has."""
    if pd.notna(line["rank_lo"]):
        return ""
    if line["supervised"]:
        return "  not ranked: it learns from labels"
    sound = line["status"] != "finished" or line["audit"] in ("PASS", "FLAG")
    return f"  not ranked: {line['status'] if sound else 'audit ' + str(line['audit'])}"


def sentences(manifest: Manifest, rows: pd.DataFrame, board: pd.DataFrame, claims: pd.DataFrame) -> list[str]:
    """Three: what was run, what came out, what can be claimed. Fewer where there is nothing to say."""
    return [said for said in (ran(manifest, rows), came_out(rows, board), claimed(board, claims)) if said]


def ran(manifest: Manifest, rows: pd.DataFrame) -> str:
    """How many methods, for how long, attacked by what on how many images."""
    methods = rows["method"].nunique()
    if not methods:
        return ""
    budget = f"for {spelled(str(manifest.budget))} each" if manifest.budget else "each for its own budget"
    foreign = all(spec.foreign for spec in manifest.runs)
    trained = "trained elsewhere" if foreign else f"trained {budget} on {manifest.data.label}"
    seeds = f" with {len(manifest.seeds)} seeds" if len(manifest.seeds) > 1 else ""
    attacked = rows[rows["attack"].isin(list(NAMES)) & (rows["eps"].sub(manifest.main_eps).abs() < 1e-9)]
    counts = [
        f"{NAMES[str(attack)]} on {' or '.join(f'{n:.0f}' for n in dict.fromkeys(part['total'].dropna()))} images"
        for attack, part in attacked.groupby("attack", sort=False)
    ]
    by = f", then attacked at eps {format_eps(manifest.main_eps)} by {listed(counts)}" if counts else ""
    return f"{methods} method{'s were' if methods > 1 else ' was'} {trained}{seeds}{by}."


def came_out(rows: pd.DataFrame, board: pd.DataFrame) -> str:
    """The ranked robust accuracies under the first protocol: of encoders trained with an adversary, and without.

    Of PGD alone none is ranked; there it speaks of all.
    """
    first, robust = first_protocol(board)
    lines = first[first["rank_lo"].notna() | (robust == "pgd")]
    lines = lines[lines[robust].notna()].sort_values(robust, ascending=False, kind="stable")
    if lines.empty:
        return "No robust accuracy is ranked." if first["worst"].notna().any() else ""
    adversary = rows.drop_duplicates("method").set_index("method")["adversary"].fillna("none")
    clean = lines["method"].map(adversary).eq("none")
    best = lines.iloc[0]
    said = f"Under {best['protocol']}, "
    if clean.any() and not clean.all():
        said += (
            f"encoders trained against an adversary keep {span(lines[~clean], robust)} of the attacked images right "
            f"(most: {best['method']}), those trained without one {span(lines[clean], robust)}"
        )
    else:
        most = ", the most" if len(lines) > 1 else ""
        said += f"{best['method']} keeps {span(lines[:1], robust)} of the attacked images right{most}"
    return said + "."


def span(lines: pd.DataFrame, name: str) -> str:
    """``12 to 56 %`` of a column."""
    ends = dict.fromkeys(f"{100 * value:.0f}" for value in (lines[name].min(), lines[name].max()))
    return f"{' to '.join(ends)} %"


def claimed(board: pd.DataFrame, claims: pd.DataFrame) -> str:
    """How many pairs are told apart, and what a claim about methods would take."""
    told = claims[claims["kind"] != "time"]
    if told.empty:
        return ""
    counts = []
    for protocol, pairs in told.groupby("protocol", sort=False):
        kind = "encoder" if (pairs["kind"] == "encoder").any() else "method"
        tested = pairs[pairs["kind"] == kind]
        counts.append(f"{(tested['verdict'] != 'tie').sum()} of {len(tested)} pairs of {kind}s under {protocol}")
    if not board["standing"].notna().any():
        return f"Told apart are {listed(counts)}."
    return (
        f"Told apart are {listed(counts)}; of the methods themselves nothing can be claimed, as that takes {SEEDS} "
        f"seeds of each and --eval {LEVEL}."
    )


def next_command(manifest: Manifest) -> str:
    """What to run for numbers that count more than these; "" where there is nothing above them."""
    levels = {spec.eval.level for spec in manifest.runs}
    if all(spec.foreign for spec in manifest.runs):
        return ""
    if "quick" in levels:
        return "The real thing, on a GPU: bench run --methods all --budget 2h"
    if levels != {LEVEL} or len(manifest.seeds) < SEEDS:
        return f"For claims about methods: the same command with --seeds {SEEDS} --eval {LEVEL} and another --out"
    return ""


def ending(folder: Path, manifest: Manifest) -> list[str]:
    """All of it, a line each."""
    rows, board, claims = read_tables(folder)
    parts: list[list[Any]] = [drawing(board), sentences(manifest, rows, board, claims), [next_command(manifest)]]
    return [line for part in parts if any(part) for line in ["", *part]]


def plain_bars(line: str) -> str:
    """The line in letters that every terminal has."""
    return "".join(PLAIN.get(letter, letter) for letter in line)
