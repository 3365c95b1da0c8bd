"""Which method is better than which (protocol 5.3), and which checkpoint where seeds are few (protocol 5.2).

Images are the unit: every method is scored on the same ones, under the ranked attack (the worst case per image).
Differences, standard errors and accuracies are fractions in [0, 1].
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.spec import Environment, EvalResult, Record
from reports.rows import derived
from reports.stats import (
    discordant,
    holm,
    mcnemar,
    paired_bootstrap,
    pool_seeds,
    ratio_of_medians,
    seed_image_test,
    spread,
    superiority,
)

ALPHA = 0.05  # family-wise, after Holm
SEEDS = 5  # of each method, for a claim about methods
MARGIN = 0.005  # the smallest difference worth a claim
FASTER = 1.05  # the smallest ratio of times worth a claim

Verdict = Literal["better", "worse", "tie"]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The runs of one method at one protocol. ``outcomes`` (S, n): 1 where the image stands, the same n for all."""

    method: str
    seeds: tuple[int, ...]
    outcomes: NDArray[np.uint8]
    hardware: tuple[str, ...]  # the classes its runs were trained on; a claim needs one
    band: NDArray[np.float64] | None = None  # (S, 3): accuracy with the probe at lambda/10, lambda, 10 lambda
    audit_failed: bool = False

    @property
    def accuracies(self) -> NDArray[np.float64]:
        """(S,), one for each seed."""
        accuracies: NDArray[np.float64] = self.outcomes.mean(axis=1, dtype=float)
        return accuracies

    @property
    def accuracy(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.accuracies))


@dataclass(frozen=True)
class Claim:
    """``a`` is ``verdict`` than ``b`` (or a tie, and why): about methods, that is training procedures."""

    a: str
    b: str
    difference: float  # mean accuracy of a minus that of b
    se: float | None  # None where the pair may not be tested
    p: float | None
    adjusted: float | None  # Holm's, over all pairs that may be tested
    superiority: float  # P(A > B) over seeds, descriptive
    verdict: Verdict
    reason: str  # of a tie


@dataclass(frozen=True)
class EncoderClaim:
    """The checkpoint of ``a`` is ``verdict`` than that of ``b`` at one seed: about these two files, not methods."""

    a: str
    b: str
    seed: int
    only_a: int  # images that stand under a alone: McNemar's b
    only_b: int  # and his c
    difference: float
    lo: float
    hi: float
    p: float
    adjusted: float
    verdict: Verdict


@dataclass(frozen=True)
class TimeClaim:
    """``ratio``: how many times as fast A is as B, median(B) / median(A)."""

    ratio: float
    lo: float
    hi: float
    verdict: Literal["faster", "slower", "tie"]
    reason: str


# ---------------------------------------------------------------- methods


def claims(methods: Sequence[Outcomes]) -> list[Claim]:
    """The rule of protocol 5.3 for every pair of ``methods``, in their order.

    Holm's family is every pair that may be tested, which is settled before outcomes are compared. Unequal numbers of
    seeds: see ``seed_image_test``, and t has the sum of all S - 1 as degrees of freedom.
    """
    pairs = list(combinations(methods, 2))
    barred = {(a.method, b.method): _barred(a, b) for a, b in pairs}
    testable = {method for pair, reasons in barred.items() if not reasons for method in pair}
    spreads = {m.method: spread(m.outcomes) for m in methods if m.method in testable}
    pool = pool_seeds(spreads)
    tests = {pair: seed_image_test(*pair, spreads, pool) for pair, reasons in barred.items() if not reasons}
    adjusted = dict(zip(tests, holm([p for _, p in tests.values()]).tolist(), strict=True))
    found = []
    for a, b in pairs:
        pair = a.method, b.method
        se, p = tests.get(pair, (None, None))
        difference = a.accuracy - b.accuracy
        reasons = barred[pair] or _reasons(a, b, difference, adjusted[pair])
        verdict: Verdict = "tie" if reasons else "better" if difference > 0 else "worse"
        above = superiority(a.accuracies, b.accuracies)
        found.append(Claim(*pair, difference, se, p, adjusted.get(pair), above, verdict, "; ".join(reasons)))
    return found


def _barred(a: Outcomes, b: Outcomes) -> list[str]:
    """Protocol 5.3 (i), what is known before any outcome is compared."""
    return [
        *[f"fewer than {SEEDS} seeds"] * (min(len(a.seeds), len(b.seeds)) < SEEDS),
        *["not on one class of hardware"] * (len({*a.hardware, *b.hardware}) != 1),
        *["an audit check failed"] * (a.audit_failed or b.audit_failed),
    ]


def _reasons(a: Outcomes, b: Outcomes, difference: float, adjusted: float) -> list[str]:
    """Why a tested pair is a tie: protocol 5.3 (ii), (iii) and the probe band of (i); empty: it is none."""
    reasons = [
        *[f"not significant (adjusted p {adjusted:.2g})"] * (adjusted > ALPHA),
        *[f"difference below {100 * MARGIN:g} points"] * (round(abs(difference), 12) < MARGIN),
    ]
    if reasons:
        return reasons
    if a.band is None or b.band is None:
        return ["the probe band was not measured"]
    # the band has few images: how lambda moves the difference on them is known better than the difference itself
    band = a.band.mean(axis=0) - b.band.mean(axis=0)
    holds = (math.copysign(1, difference) * (difference + band - band[1]) > 1e-12).all()
    return [] if holds else ["does not hold over the probe band"]


def rank_ranges(methods: Sequence[Outcomes], found: Iterable[Claim | EncoderClaim]) -> dict[str, tuple[int, int]]:
    """[1 + number significantly better, M - number significantly worse] for each method without an audit FAIL.

    ``found``: one claim for each pair; those about encoders rank the encoders of one seed.
    """
    names = [m.method for m in methods if not m.audit_failed]
    wins = [(c.a, c.b) if c.verdict == "better" else (c.b, c.a) for c in found if c.verdict != "tie"]
    return {
        name: (1 + sum(loser == name for _, loser in wins), len(names) - sum(winner == name for winner, _ in wins))
        for name in names
    }


def standing(methods: Iterable[Outcomes]) -> str:
    """A sentence for the table that says what it ranks; empty where every method has the seeds for a claim."""
    fewest = min((len(m.seeds) for m in methods), default=SEEDS)
    if fewest >= SEEDS:
        return ""
    seeds = "one seed" if fewest == 1 else f"{fewest} seeds"
    return f"This table ranks encoders, not methods: it has {seeds}, and a claim about methods needs {SEEDS}."


# ---------------------------------------------------------------- encoders and times


def encoder_claims(methods: Sequence[Outcomes]) -> list[EncoderClaim]:
    """Exact McNemar, two-sided, with Holm, on the checkpoints of pairs with fewer than 5 seeds (protocol 5.2).

    At every seed that both have; methods with an audit FAIL are left out.
    """
    tested = []
    for a, b in combinations([m for m in methods if not m.audit_failed], 2):
        if min(len(a.seeds), len(b.seeds)) < SEEDS:
            for seed in sorted({*a.seeds} & {*b.seeds}):
                first, second = a.outcomes[a.seeds.index(seed)], b.outcomes[b.seeds.index(seed)]
                tested.append((a.method, b.method, seed, *discordant(first, second), paired_bootstrap(first, second)))
    images = methods[0].outcomes.shape[1] if methods else 0
    p = [mcnemar(only_a, only_b) for _, _, _, only_a, only_b, _ in tested]
    found = []
    for (a_name, b_name, seed, only_a, only_b, (lo, hi)), own, adjusted in zip(
        tested, p, holm(p).tolist(), strict=True
    ):
        difference = (only_a - only_b) / images
        verdict: Verdict = "tie" if adjusted > ALPHA else "better" if difference > 0 else "worse"
        found.append(EncoderClaim(a_name, b_name, seed, only_a, only_b, difference, lo, hi, own, adjusted, verdict))
    return found


def time_claim(a: ArrayLike, b: ArrayLike) -> TimeClaim:
    """Whether A is faster than B from the seconds of their runs on one class of hardware (protocol 5.3)."""
    ratio, lo, hi = ratio_of_medians(b, a)
    if min(np.size(a), np.size(b)) < SEEDS:
        return TimeClaim(ratio, lo, hi, "tie", f"fewer than {SEEDS} runs")
    if lo <= 1 <= hi:
        return TimeClaim(ratio, lo, hi, "tie", "the interval of the ratio contains 1")
    if max(ratio, 1 / ratio) < FASTER:
        return TimeClaim(ratio, lo, hi, "tie", f"ratio below {FASTER:g}")
    return TimeClaim(ratio, lo, hi, "faster" if ratio > 1 else "slower", "")


# ---------------------------------------------------------------- from the records


def outcomes(
    records: Iterable[Record], main_eps: float, failed: Collection[tuple[str, str]] = ()
) -> dict[str, list[Outcomes]]:
    """Protocol -> the methods that are ranked there: ``worst`` at the main eps, on the images that all runs share.

    As on the leaderboard a method is in where each of its runs finished and has that result; supervised ceilings are
    not. ``failed``: (method, protocol) of the numbers that fail their audit.
    """
    runs: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.spec.seed):
        if not record.supervised:
            runs.setdefault(record.spec.row, []).append(record)
    cells: dict[str, dict[str, list[EvalResult]]] = {}
    for method, of_method in runs.items():
        for result in (each for record in of_method for each in _worst(record, main_eps)):
            cells.setdefault(result.protocol, {}).setdefault(method, []).append(result)
    found: dict[str, list[Outcomes]] = {}
    for protocol, by_method in cells.items():
        complete = {method: results for method, results in by_method.items() if len(results) == len(runs[method])}
        images = min((r.total for results in complete.values() for r in results), default=0)
        if images:
            found[protocol] = [
                Outcomes(
                    method=method,
                    seeds=tuple(record.spec.seed for record in runs[method]),
                    outcomes=np.array([list(map(int, r.outcomes[:images])) for r in results], dtype=np.uint8),
                    hardware=tuple(sorted({hardware_class(record.environment) for record in runs[method]})),
                    band=_band(runs[method], protocol),
                    audit_failed=(method, protocol) in failed,
                )
                for method, results in complete.items()
            ]
    return found


def hardware_class(environment: Environment | None) -> str:
    """What a record knows of protocol 4.2's T-hw: accelerator, CPU, cores, threads and torch."""
    if environment is None:
        return "unknown"
    e = environment
    return f"{e.device_name}, {e.cpu}, {e.cores} cores, {e.threads} threads, torch {e.torch}"


def _worst(record: Record, main_eps: float) -> list[EvalResult]:
    if record.status != "finished":
        return []
    return [r for r in derived(record.results) if r.attack == "worst" and math.isclose(r.eps, main_eps)]


def _band(records: Sequence[Record], protocol: str) -> NDArray[np.float64] | None:
    """(S, 3) from lambda/10 to 10 lambda; None where a run has not measured it."""
    bands = [sorted(probe.band) for record in records for probe in record.probes if probe.protocol == protocol]
    if len(bands) != len(records) or any(len(band) != 3 or not all(total for *_, total in band) for band in bands):
        return None
    return np.array([[correct / total for _, correct, total in band] for band in bands])
