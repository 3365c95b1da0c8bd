"""The abstract of the report: generated sentences that state what the data and the statistics allow, and no more.

Each paragraph is a function of the tables, each sentence has its condition. What is compared, and how, is
reports/claims.py; a verdict is never made here.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench.fairness import DISTURBED, LEARNING_UPDATES, stalled, too_few
from bench.record import Manifest, Record
from bench.spec import format_eps
from reports.budgets import base, budget_of
from reports.cells import percent
from reports.claims import LEVEL, SEEDS
from reports.pairs import sentences, told
from reports.protocols import titles

NAMED = 6  # names in a sentence, before it counts the others
CLAIMS = 3  # sentences about pairs
PAIRS = {"method": "pairs of methods", "encoder": "pairs of encoders", "time": "pairs of training times"}
UNITS = {"up": "updates", "ep": "epochs", "m": "min"}


def abstract(
    manifest: Manifest, records: Sequence[Record], rows: pd.DataFrame, board: pd.DataFrame, found: pd.DataFrame
) -> list[list[str]]:
    """[name, text] of each paragraph that has something to say; ``found``: the claims (see reports/pairs.py)."""
    paragraphs = {
        "What was run": [*_trained(manifest, records), *_scored(manifest, board)],
        "What came out": _outcome(manifest, board),
        "What can be claimed": _claimed(manifest, board, found),
        "What cannot": _limits(manifest, records, rows),
        "The audit": _audited(board),
    }
    return [[name, " ".join(said)] for name, said in paragraphs.items() if said]


# ---------------------------------------------------------------- what was run


def _trained(manifest: Manifest, records: Sequence[Record]) -> list[str]:
    budgets = budget_of(records)
    rows = dict.fromkeys(record.spec.row for record in records)
    methods = list(dict.fromkeys(base(row, budgets[row]) if row in budgets else row for row in rows))
    count = f"{len(methods)} method{'s' * (len(methods) != 1)} ({listed(methods)})"
    if records and all(record.spec.foreign for record in records):
        return [f"{count}, trained elsewhere, scored on {_hardware(manifest, records)}."]
    seeds = f"seed{'s' * (len(manifest.seeds) != 1)} {listed([str(seed) for seed in manifest.seeds])}"
    data = f"{manifest.data.label} ({manifest.data.train} training images)"
    how = f"{_budget(manifest, records)}, with {seeds}, on {_hardware(manifest, records)}"
    return [f"{count} {'were' if len(methods) != 1 else 'was'} trained on {data}, {how}."]


def _budget(manifest: Manifest, records: Sequence[Record]) -> str:
    if manifest.budget is not None:
        return f"{spelled(str(manifest.budget))} each"
    known = sorted({record.spec.budget for record in records}, key=lambda budget: (budget.unit, budget.amount))
    budgets = listed([spelled(str(budget)) for budget in known])
    return f"once for each budget of {budgets}" if budget_of(records) else f"each row at its own budget ({budgets})"


def spelled(budget: str) -> str:
    """``40 updates`` of ``40up``."""
    unit = budget.lstrip("0123456789.e+")
    return f"{budget.removesuffix(unit)} {UNITS.get(unit, unit)}"


def _hardware(manifest: Manifest, records: Sequence[Record]) -> str:
    machines = [record.environment for record in records if record.environment] or [manifest.environment]
    return listed(list(dict.fromkeys(machine.device_name for machine in machines)))


def _scored(manifest: Manifest, board: pd.DataFrame) -> list[str]:
    if board["clean"].isna().all():
        return []
    said = f"Clean accuracy is counted on {manifest.data.test} test images"
    counts = sorted({int(count) for count in board["n"].dropna()})
    if not counts:
        return [f"{said}; no encoder was attacked by both PGD and AutoAttack."]
    images = " to ".join(str(count) for count in dict.fromkeys([counts[0], counts[-1]]))
    eps = format_eps(manifest.main_eps)
    return [f"{said}, robust accuracy as the worst case of PGD and AutoAttack at eps {eps} on {images} of them."]


# ---------------------------------------------------------------- what came out


def _outcome(manifest: Manifest, board: pd.DataFrame) -> list[str]:
    said, names = [], titles(manifest.runs)
    for (protocol, budget), lines in board.groupby(["protocol", "budget"], sort=False, dropna=False):
        where = names.get(str(protocol), str(protocol)) + (f" at {budget}" if isinstance(budget, str) else "")
        parts = [sentence for sentence in (_robust(lines), _clean(lines)) if sentence]
        said += [f"{where}: {'; '.join(parts)}."] if parts else []
    return said


def _robust(lines: pd.DataFrame) -> str:
    ranked = lines[lines["rank_lo"].notna()].to_dict("records")
    if not ranked:
        return "no robust accuracy is ranked" if lines["worst"].notna().any() else ""
    first, *others = ranked
    alike = listed([line["method"] for line in others if line["best"]])
    said = f"the highest ranked robust accuracy is {_number(first, 'worst')}, of {first['method']}"
    if not alike:
        return said
    if isinstance(first["standing"], str) and first["seeds"] > 1:  # encoders are compared seed by seed
        return f"{said}, not significantly above {alike} at every seed"
    return f"{said}, which no test tells apart from {alike}"


def _clean(lines: pd.DataFrame) -> str:
    """Of lines whose weights, images and counts no audit doubts; there is no test of clean accuracies to lean on."""
    sound = lines[lines["clean"].notna() & ~lines["audit"].isin(["FAIL", "NOT_RUN"])]
    sound = sound[(sound["status"] == "finished") & ~sound["supervised"]]
    if sound.empty:
        return ""
    best = sound[sound["clean"].round(12) == sound["clean"].max().round(12)]
    said = (
        f"the highest clean accuracy is {_number(best.to_dict('records')[0], 'clean')}, of {listed([*best['method']])}"
    )
    return f"{said} (not tested against the others)" if len(sound) > len(best) else said


def _number(line: dict[Any, Any], name: str) -> str:
    seeds = f"mean of {line['seeds']} seeds" if line["seeds"] > 1 else "one seed"
    lo, hi = percent(line[f"{name}_lo"]), percent(line[f"{name}_hi"])
    return f"{percent(line[name])} % (95 % interval over images {lo} to {hi}, {seeds})"


# ---------------------------------------------------------------- what can be claimed, and what cannot


def _claimed(manifest: Manifest, board: pd.DataFrame, claims: pd.DataFrame) -> list[str]:
    """How many pairs of each kind are told apart, then the largest differences. Where a protocol ranks encoders, its
    pairs of methods are all left out, as in the section of the claims."""
    pairs = told(claims)
    if pairs.empty:
        alone = board["rank_lo"].notna().sum() > 0
        return ["No two lines can be compared: no protocol ranks more than one."] if alone else []
    apart = pairs[pairs["verdict"] != "tie"]
    counts = [
        f"{(alike['verdict'] != 'tie').sum()} of {len(alike)} {PAIRS[str(kind)]}"
        for kind, alike in pairs.groupby("kind", sort=False)
    ]
    if apart.empty:
        return [f"No difference can be claimed: {listed(counts)} are told apart."]
    return [f"Told apart are {listed(counts)}.", *sentences(apart, manifest.main_eps, CLAIMS)]


def _limits(manifest: Manifest, records: Sequence[Record], rows: pd.DataFrame) -> list[str]:
    return [
        *_too_few(rows),
        *["The images are a subset of the data set: no number stands for the whole."] * manifest.data.subset,
        *[f"{manifest.data.duplicates} test images are training images too."] * bool(manifest.data.duplicates),
        *_times(records, rows),
        *_cut_short(records),
        *_unfinished(records),
    ]


def _too_few(rows: pd.DataFrame) -> list[str]:
    """Seeds and images below what a claim about methods needs."""
    said = []
    fewest = int(rows.groupby("method")["seed"].nunique().min()) if len(rows) else SEEDS
    if fewest < SEEDS:
        count = "With one seed" if fewest == 1 else f"With {fewest} seeds"
        said.append(f"{count} nothing is said about methods, only about the encoders as trained ({SEEDS} are needed).")
    levels = set(rows["eval"].dropna())
    if "quick" in levels:
        said.append("The evaluation is quick, with few images and one restart: no number is comparable.")
    elif levels - {LEVEL}:
        said.append(f"The evaluation is {listed(sorted(levels - {LEVEL}))}: claims about methods need {LEVEL}.")
    return said


def _times(records: Sequence[Record], rows: pd.DataFrame) -> list[str]:
    """Whether training times may be compared."""
    said = []
    runs = rows.drop_duplicates(["method", "seed"])
    seconds = runs["train_seconds"].dropna()
    units = {record.spec.budget.unit for record in records if not record.spec.foreign}
    if units and "seconds" not in units and len(seconds) > 1:
        ends = f"{seconds.min():.3g} to {seconds.max():.3g} s"
        said.append(f"The budget counts {listed(sorted(units))}: methods did not get equal time ({ends}).")
    hardware = runs["device"].dropna().nunique()
    if hardware > 1:
        said.append(f"The runs stand on {hardware} kinds of hardware: no times are compared across them.")
    probed = runs["disturbed"].dropna()
    if probed.any():
        count = f"{probed.sum()} of {len(probed)} timed runs {'was' if probed.sum() == 1 else 'were'} disturbed"
        said.append(f"{count} (the clock probe moved by more than {100 * DISTURBED:g} %): their times are not fair.")
    hurried = [record for record in records if record.train and too_few(record.train, record.spec.budget)]
    if hurried:
        counts = listed([f"{record.spec.name} {record.train.updates}" for record in hurried if record.train])
        said.append(
            f"{len(hurried)} of {len(records)} runs made fewer than {LEARNING_UPDATES} updates ({counts}): too few for "
            "a method to learn, as the machine was too slow or too busy for the budget. A budget in updates, such as "
            "--budget 300up, does not depend on its pace."
        )
    slow = [record.spec.name for record in records if record.train and stalled(record.train)]
    if slow:
        said.append(f"Several threads were slower than one in {listed(slow)}: they shared their cores with other work.")
    return said


def _cut_short(records: Sequence[Record]) -> list[str]:
    cut = sum(any(not result.complete for result in record.results) for record in records)
    return [f"In {cut} of {len(records)} runs an attack was cut short: an upper bound, not ranked."] if cut else []


def _unfinished(records: Sequence[Record]) -> list[str]:
    missing = [f"{record.spec.name} {record.status}" for record in records if record.status != "finished"]
    if not missing:
        return []
    return [f"{len(missing)} of {len(records)} runs did not finish ({listed(missing)})."]


# ---------------------------------------------------------------- the audit


def _audited(board: pd.DataFrame) -> list[str]:
    scored = board[board["worst"].notna()]
    if scored.empty:
        return []
    verdicts = scored["audit"].fillna("off")
    if (verdicts == "off").all():
        return ["No audit was made: no robust accuracy is ranked."]
    out = [
        f"{line['method']}, {line['protocol']}: {line['audit']}"
        for line in scored[~verdicts.isin(["PASS", "FLAG"])].to_dict("records")
    ]
    passed = f"{(verdicts == 'PASS').sum()} passed, {(verdicts == 'FLAG').sum()} passed with a flag"
    lost = f"{len(out)} {'was' if len(out) == 1 else 'were'} taken out of the ranking ({listed(out, '; ')})"
    return [f"Of {len(scored)} robust accuracies {passed}, and {lost if out else 'none was taken out'}."]


def listed(names: Sequence[str], comma: str = "") -> str:
    """``a, b and c``; at most NAMED of them and how many more. Semicolons stand between names that have commas.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    >>> listed(["a", "b, free", "c"])
    'a; b, free and c'
    """
    comma = comma or ("; " if any("," in name for name in names) else ", ")
    if len(names) > NAMED:
        return f"{comma.join(names[: NAMED - 1])} and {len(names) - NAMED + 1} more"
    return " and ".join(filter(None, [comma.join(names[:-1]), *names[-1:]]))
