"""The rows of claims.csv: one for each pair of ranked lines and protocol, and what they say in words.

``method``: two training procedures (protocol 5.3). ``encoder``: two checkpoints of one seed (protocol 5.2), where a
table ranks encoders. ``time``: the training times of two methods whose budgets are not in seconds. Differences are
fractions; ``lo`` and ``hi`` bound the difference, or the ratio of the times.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from bench.record import Record
from bench.spec import format_eps
from reports.budgets import budget_of
from reports.claims import (
    ALPHA,
    SEEDS,
    EncoderClaim,
    Outcomes,
    claims,
    encoder_claims,
    hardware_class,
    outcomes,
    standing,
    time_claim,
)

COLUMNS = {
    "kind": "object",
    "protocol": "object",  # a gap for a time
    "budget": "object",  # of both, where methods have several; else a gap
    "a": "object",
    "b": "object",
    "seed": "Int64",  # of an encoder
    "seeds": "Int64",  # the fewer of the two
    "n": "Int64",  # images
    "difference": "float64",  # accuracy of a minus that of b
    "ratio": "float64",  # of times: how many times as fast a is
    "lo": "float64",
    "hi": "float64",
    "p": "float64",
    "adjusted": "float64",  # Holm's, over all pairs of this kind and protocol that were tested
    "probability_of_superiority": "float64",
    "verdict": "object",  # of a, against b
    "reason": "object",  # of a tie
}


NAMED = 4  # pairs in a sentence, before it counts the others


def pairs(records: Sequence[Record], main_eps: float, ranked: Collection[tuple[str, str]]) -> pd.DataFrame:
    """All claims and ties between the ``ranked`` lines, (method, protocol), of a run folder, in a fixed order."""
    lines: list[dict[str, Any]] = []
    budgets = budget_of(records)
    for budget in dict.fromkeys(budgets.values()) or [None]:
        within = [line for line in ranked if budgets.get(line[0]) == budget]
        for protocol, methods in outcomes(records, main_eps, within).items():
            about = {"protocol": protocol, "budget": budget}
            lines += [{"kind": "method"} | about | method for method in _methods(methods)]
            if standing(methods):
                encoders = encoder_claims(methods)
                lines += [{"kind": "encoder"} | about | _encoder(encoder, methods) for encoder in encoders]
        alike = [record for record in records if budgets.get(record.spec.row) == budget]
        lines += [{"kind": "time", "budget": budget} | time for time in _times(alike)]
    return pd.DataFrame(lines, columns=list(COLUMNS)).astype(COLUMNS)


def told(table: pd.DataFrame) -> pd.DataFrame:
    """What a report tells of claims.csv: of a protocol that ranks encoders the pairs of encoders, not of methods."""
    encoders = set(table.loc[table["kind"] == "encoder", "protocol"])
    return table[(table["kind"] != "method") | ~table["protocol"].isin(encoders)]


def sentences(table: pd.DataFrame, main_eps: float, most: int = 10) -> list[str]:
    """What can be claimed of accuracies: the ``most`` largest differences, and how many are left.

    Then what a reader of p alone would miss: pairs that are ties for another reason, and pairs that were not tested.
    [] where nothing of that is there.
    """
    pairs = told(table)[lambda lines: lines["kind"] != "time"]
    apart = pairs[pairs["verdict"] != "tie"]
    largest = apart.assign(size=-apart["difference"].abs()).sort_values("size", kind="stable").head(most)
    texts = [_sentence(line, main_eps) for line in largest.to_dict("records")]
    left = len(apart) - len(texts)
    texts += [f"{left} more difference{'s' * (left > 1)} can be claimed: claims.csv has them all."] * (left > 0)
    ties = pairs[(pairs["verdict"] == "tie") & (pairs["adjusted"] <= ALPHA)]
    texts += [_ties(str(reason), lines) for reason, lines in ties.groupby("reason", sort=False)]
    barred = pairs[pairs["p"].isna()]["reason"].value_counts(sort=False)
    return texts + [
        f"{count} pair{'s were' if count > 1 else ' was'} not tested: {why}." for why, count in barred.items()
    ]


def _methods(methods: Sequence[Outcomes]) -> Iterable[dict[str, Any]]:
    seeds = {m.method: len(m.seeds) for m in methods}
    for claim in claims(methods):
        yield {
            "a": claim.a,
            "b": claim.b,
            "seeds": min(seeds[claim.a], seeds[claim.b]),
            "n": methods[0].outcomes.shape[1],
            "difference": claim.difference,
            "lo": claim.lo,
            "hi": claim.hi,
            "p": claim.p,
            "adjusted": claim.adjusted,
            "probability_of_superiority": claim.superiority,
            "verdict": claim.verdict,
            "reason": claim.reason or None,
        }


def _encoder(claim: EncoderClaim, methods: Sequence[Outcomes]) -> dict[str, Any]:
    return {
        "a": claim.a,
        "b": claim.b,
        "seed": claim.seed,
        "seeds": 1,
        "n": methods[0].outcomes.shape[1],
        "difference": claim.difference,
        "lo": claim.lo,
        "hi": claim.hi,
        "p": claim.p,
        "adjusted": claim.adjusted,
        "verdict": claim.verdict,
        "reason": f"not significant (adjusted p {claim.adjusted:.2g})" if claim.verdict == "tie" else None,
    }


def _times(records: Sequence[Record]) -> Iterable[dict[str, Any]]:
    """Methods of at least 5 runs on one class of hardware, all finished, whose budgets leave the time open.

    Not those with extra data: how long that took is not known.
    """
    runs: dict[str, list[Record]] = {}
    for record in records:
        runs.setdefault(record.spec.row, []).append(record)
    seconds = {
        method: [record.train.train_seconds for record in of_method if record.train and record.status == "finished"]
        for method, of_method in runs.items()
        if all(record.spec.budget.unit != "seconds" and not record.extra_data for record in of_method)
    }
    hardware = {method: {hardware_class(record.environment) for record in runs[method]} for method in seconds}
    for a, b in combinations(seconds, 2):
        whole = all(len(runs[method]) == len(seconds[method]) >= SEEDS for method in (a, b))
        if whole and len(hardware[a] | hardware[b]) == 1:
            claim = time_claim(seconds[a], seconds[b])
            yield {
                "a": a,
                "b": b,
                "seeds": min(len(seconds[a]), len(seconds[b])),
                "ratio": claim.ratio,
                "lo": claim.lo,
                "hi": claim.hi,
                "verdict": claim.verdict,
                "reason": claim.reason or None,
            }


def _sentence(line: dict[Any, Any], main_eps: float) -> str:
    """Of a pair that is told apart."""
    a, b = _names(line)
    sign = 1 if line["verdict"] == "better" else -1
    if sign < 0:
        a, b = b, a
    points = sorted(100 * sign * line[bound] for bound in ("lo", "hi"))
    counted = f"{line['seeds']} seeds, {line['n']} images" if line["kind"] == "method" else f"{line['n']} images"
    subject = a[0].upper() + a[1:] if line["kind"] == "encoder" else a  # the name of a method stays as it is
    return (
        f"{subject} is better than {b} under the worst case of PGD and AutoAttack at eps {format_eps(main_eps)} "
        f"({line['protocol']}): {100 * abs(line['difference']):.1f} points, "
        f"95 % interval {points[0]:.1f} to {points[1]:.1f}, {counted}."
    )


def _ties(reason: str, lines: pd.DataFrame) -> str:
    """Of pairs that a test tells apart, and another rule does not."""
    names = [" and ".join(_names(line)) for line in lines.head(NAMED).to_dict("records")]
    more = f"; {len(lines) - NAMED} more" * (len(lines) > NAMED)
    return f"Not claimed, although p is at most {ALPHA:g}, because of this: {reason}. {'; '.join(names)}{more}."


def _names(line: dict[Any, Any]) -> tuple[str, str]:
    form = f"the encoder of {{}} (seed {line['seed']})" if line["kind"] == "encoder" else "{}"
    return form.format(line["a"]), form.format(line["b"])
