"""The leaderboard: one line per method and protocol, the mean over seeds, ranked by ``worst`` at the main eps.

A rank is a range, ``rank_lo`` to ``rank_hi``: what the claims allow to say (see reports/claims.py). ``standing`` says
whether they rank methods or encoders. What moves the number stands apart: ``seed_sd`` over seeds, ``probe_lo`` to
``probe_hi`` over the probe band, ``attack_spread`` over attack seeds (check A6), each a mean over seeds but the first.

Only attacks on the image count, and only those in l-inf. A line is ranked where every seed finished, was attacked by
PGD and AutoAttack, and has an audit of PASS or FLAG; the others are listed below without a rank, and so are the
supervised ceilings. Where one seed was attacked with different settings in different rows, no line of that protocol is
ranked (check S1).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.record import Record
from reports import protocols as known
from reports.budgets import budget_of
from reports.claims import outcomes, rank_ranges, ranking, standing, wins
from reports.limits import limits
from reports.prices import Prices
from reports.stats import wilson

COLUMNS = {
    "rank_lo": "Int64",
    "rank_hi": "Int64",
    "best": "boolean",  # not significantly worse than the first line
    "method": "object",
    "supervised": "boolean",
    "extra_data": "object",
    "dataset": "object",
    "budget": "object",  # within which the line is ranked, where methods have several; else a gap
    "protocol": "object",
    "seeds": "Int64",
    "clean": "float64",
    "clean_lo": "float64",
    "clean_hi": "float64",
    "clean_n": "Int64",  # images, as every n
    "pgd": "float64",
    "pgd_n": "Int64",
    "pgd_ranked": "float64",  # on the n images of the worst case, which PGD may have attacked more than
    "autoattack": "float64",
    "autoattack_n": "Int64",
    "worst": "float64",
    "worst_lo": "float64",
    "worst_hi": "float64",
    "seed_sd": "float64",
    "probe_lo": "float64",
    "probe_hi": "float64",
    "attack_spread": "float64",
    "n": "Int64",
    "audit": "object",
    "audit_level": "object",
    "worst_audited": "float64",
    "best_known": "float64",  # per image the worst of every attack there, on the images of ``worst``, else of PGD
    "best_known_n": "Int64",
    "feature_shift": "float64",  # of the encoder, before any head: the same under every protocol
    "feature_shift_median": "float64",
    "feature_cosine": "float64",
    "feature_n": "Int64",
    "train_seconds": "float64",
    "compile_seconds": "float64",
    "head_seconds": "float64",  # of fitting the protocol's head, and its passes of one image
    "head_passes": "float64",
    "disturbed": "Int64",  # runs whose clock probe says that the machine changed
    "energy_joules": "float64",
    "money": "float64",  # of a training, in the currency of the prices (reports/prices.py)
    "currency": "object",
    "co2_grams": "float64",
    "flops_per_image": "float64",
    "peak_memory_bytes": "Int64",
    "device": "object",
    "precision": "object",
    "eval": "object",
    "status": "object",
    "standing": "object",
    "detectable": "float64",  # the smallest difference between neighbours of its table that is found (reports/limits)
    "order_kept": "float64",  # the share of pairs that have the same order in two halves of the images
}
VERDICTS = ("FAIL", "NOT_RUN", "off", "FLAG", "PASS")  # of several seeds the first of these counts


def leaderboard(
    rows: pd.DataFrame, records: Sequence[Record], main_eps: float, prices: Prices | None = None
) -> pd.DataFrame:
    """Ranked table of the ``rows`` of ``records``, by accuracy within a protocol and budget, the others last.

    ``prices`` make money and CO2 of its times and energies; without them these columns are gaps.
    """
    asked = [record.spec for record in records]
    ranked_ones = known.ranked(asked) or list(known.shown(asked))
    protocols = [name for name in ranked_ones if (rows["protocol"] == name).any()] or ranked_ones
    different = different_attacks(rows, main_eps)
    lines = [
        _line(str(method), protocol, of_method, main_eps, protocol not in different)
        for protocol in protocols
        for method, of_method in rows.groupby("method", sort=False)
    ]
    budgets = budget_of(records)
    order: list[str | None] = list(dict.fromkeys(budgets.values()))
    devices = {record.spec.row: record.spec.gpus_per_run for record in records}
    for line in lines:
        line["budget"] = budgets.get(line["method"])
        line |= priced(line, prices, devices.get(line["method"], 1)) if prices else {}
    # equal but for the rounding of a mean: the name decides
    lines.sort(
        key=lambda line: (
            line["protocol"],
            order.index(line["budget"]) if line["budget"] in order else 0,
            -round(line["worst"], 12) if line["ranked"] else 1,
            line["method"],
        )
    )
    for budget in order or [None]:
        within = [line for line in lines if line["ranked"] and line["budget"] == budget]
        compared = [(line["method"], line["protocol"]) for line in within]
        for protocol, methods in outcomes(records, main_eps, compared).items():
            won = wins(ranking(methods))
            ranges = rank_ranges(methods, won)
            seen = limits(methods)
            ranked = [line for line in within if line["protocol"] == protocol]
            for line in ranked:
                line["rank_lo"], line["rank_hi"] = ranges[line["method"]]
                line["best"] = (ranked[0]["method"], line["method"]) not in won
                line["standing"] = standing(methods) or None
                if seen is not None:
                    line["detectable"], line["order_kept"] = seen.detectable, seen.kept
    return pd.DataFrame(lines, columns=list(COLUMNS)).astype(COLUMNS)


def priced(line: Mapping[str, Any], prices: Prices, devices: int) -> dict[str, Any]:
    """Money and CO2 of a line's training, where they can be said."""
    known: dict[str, Any] = {}
    if pd.notna(line["train_seconds"]):
        known["money"] = prices.money(line["device"], float(line["train_seconds"]), devices)
        known["currency"] = prices.currency + " (assumed)" * prices.assumed if known["money"] is not None else None
    if pd.notna(line["energy_joules"]):
        known["co2_grams"] = prices.co2_grams(float(line["energy_joules"]))
    return known


def ranked_lines(board: pd.DataFrame) -> list[tuple[str, str]]:
    """(method, protocol) of the lines that have a rank: those that claims may be made of."""
    ranked = board[board["rank_lo"].notna()]
    return list(zip(ranked["method"], ranked["protocol"], strict=True))


def different_attacks(rows: pd.DataFrame, main_eps: float) -> dict[str, list[str]]:
    """Check S1: protocol -> the hashes of the ranked attacks, where rows of one seed have different ones.

    So it is where the code differs that fitted the heads or attacked.
    """
    worst = rows[(rows["attack"] == "worst") & np.isclose(rows["eps"].astype(float), main_eps)]
    differing: dict[str, list[str]] = {}
    for (protocol, _), of_seed in worst.groupby(["protocol", "seed"]):
        hashes = sorted({_attack(*pair) for pair in of_seed[["config_hash", "code"]].itertuples(index=False)} - {""})
        if len(hashes) > 1:
            differing[str(protocol)] = hashes
    return differing


def _attack(config_hash: object, code: object) -> str:
    known = f" by the code {code.partition('.')[2]}" if isinstance(code, str) else ""
    return f"{config_hash}{known}" if isinstance(config_hash, str) else ""


def _line(
    method: str, protocol: str, of_method: pd.DataFrame, main_eps: float, one_attack: bool = True
) -> dict[str, Any]:
    runs = of_method.drop_duplicates("seed")
    scored = of_method[of_method["protocol"] == protocol]
    clean = scored[scored["attack"] == "none"]
    ranked = (scored["threat_space"] == "image") & (scored["norm"] == "linf")
    attacked = scored[np.isclose(scored["eps"], main_eps) & ranked]
    pgd, autoattack, worst = (attacked[attacked["attack"] == name] for name in ("pgd", "autoattack", "worst"))
    finished = runs[runs["status"] == "finished"]
    audit = _audit(worst) if one_attack or worst.empty else "FAIL"
    costs = runs if finished.empty else finished  # the cost of the models that are scored
    return {
        "method": method,
        "supervised": bool(runs["supervised"].any()),
        "extra_data": _names(runs["extra_data"]),
        "dataset": _names(runs["dataset"]),
        "protocol": protocol,
        "seeds": scored["seed"].nunique(),
        **_accuracy("clean", clean),
        "clean_n": clean["total"].min(),
        "pgd": pgd["accuracy"].mean(),
        "pgd_n": pgd["total"].min(),
        "pgd_ranked": worst["pgd_ranked"].mean(),
        "autoattack": autoattack["accuracy"].mean(),
        "autoattack_n": autoattack["total"].min(),
        **_accuracy("worst", worst),
        "seed_sd": worst["accuracy"].std(),
        **{name: worst[name].mean() for name in ("probe_lo", "probe_hi", "attack_spread")},
        "n": worst["total"].min(),
        "audit": audit,
        "audit_level": _names(worst["audit_level"]),
        "worst_audited": worst["worst_audited"].mean(),
        "best_known": (pgd if worst.empty else worst)["best_known"].mean(),
        "best_known_n": (pgd if worst.empty else worst)["best_known_n"].min(),
        **{name: runs[name].mean() for name in ("feature_shift", "feature_shift_median", "feature_cosine")},
        "feature_n": runs["feature_n"].min(),
        "train_seconds": costs["train_seconds"].mean(),
        "compile_seconds": costs["compile_seconds"].mean(),
        "energy_joules": costs["energy_joules"].mean(),
        "head_seconds": clean["head_seconds"].mean(),
        "head_passes": clean["head_passes"].mean(),
        "disturbed": runs["disturbed"].sum(min_count=1),
        "flops_per_image": costs["flops_per_image"].mean(),
        "peak_memory_bytes": _whole(costs["peak_memory_bytes"]),
        "device": _names(runs["device"]),
        "precision": _names(runs["precision"]),
        "eval": _names(runs["eval"]),
        "status": _status(runs["status"]),
        "best": False,
        "ranked": len(finished) == len(worst) == len(runs)
        and bool(worst["total"].min() > 0)
        and audit in ("PASS", "FLAG")
        and not runs["supervised"].any(),
    }


def _audit(worst: pd.DataFrame) -> str | None:
    """The gravest verdict over the seeds; None where there is no ranked number."""
    verdicts = set(worst["audit"].dropna())
    return next((verdict for verdict in VERDICTS if verdict in verdicts), None)


def _accuracy(name: str, results: pd.DataFrame) -> dict[str, float]:
    """Mean over seeds with its interval. Seeds share their test images: their counts are no independent draws, so the
    interval is that of the mean accuracy over the images of *one* seed. It speaks of the images, not of the seeds."""
    if results.empty:
        return {}
    accuracy, total = float(results["accuracy"].mean()), int(results["total"].min())
    lo, hi = wilson(accuracy * total, total)
    return {name: accuracy, f"{name}_lo": lo, f"{name}_hi": hi}


def _status(statuses: pd.Series) -> str:
    """``finished`` or ``diverged`` where all seeds agree, else ``1 of 3 diverged``."""
    counts = statuses.value_counts()
    if len(counts) == 1:
        return str(counts.index[0])
    return ", ".join(f"{counts[s]} of {len(statuses)} {s}" for s in sorted(counts.index) if s != "finished")


def _names(values: pd.Series) -> str | None:
    return ", ".join(values.dropna().unique()) or None


def _whole(values: pd.Series) -> int | None:
    return None if values.isna().all() else round(float(values.mean()))
