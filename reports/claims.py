"""Which method is better than which (protocol 5.3), and which checkpoint where seeds are few (protocol 5.2).

Images are the unit: every method is scored on the same ones, under the ranked attack (the worst case per image).
Differences, standard errors and accuracies are fractions in [0, 1]. Only lines that the leaderboard ranks are compared.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.record import Environment, Record
from reports.rows import derived
from reports.stats import (
    discordant,
    holm,
    mcnemar,
    paired_bootstrap,
    pool_seeds,
    ratio_of_medians,
    seed_image_interval,
    seed_image_test,
    spread,
    superiority,
)

ALPHA = 0.05  # family-wise, after Holm
SEEDS = 5  # of each method, for a claim about methods
LEVEL = "full"  # of the evaluation, for a claim about methods (protocol 1.6); it is no count: test sets differ in size
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
    levels: tuple[str, ...] = (LEVEL,)  # of the evaluation of its runs
    # (S, B): PGD accuracy with the probe at lambda/10, lambda, 10 lambda, or at each learning rate that was tried; no
    # column where a head has nothing to choose, as a vote
    band: NDArray[np.float64] | None = None

    @cached_property
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
    se: float | None  # None where the pair may not be tested, and so are the four that follow
    lo: float | None  # 95 % interval of this pair alone
    hi: float | None
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
    bars = {(a.method, b.method): barred(a, b) for a, b in pairs}
    testable = {method for pair, reasons in bars.items() if not reasons for method in pair}
    spreads = {m.method: spread(m.outcomes) for m in methods if m.method in testable}
    pool = pool_seeds(spreads)
    tests = {pair: seed_image_test(*pair, spreads, pool) for pair, reasons in bars.items() if not reasons}
    intervals = {pair: seed_image_interval(*pair, spreads, pool) for pair in tests}
    adjusted = dict(zip(tests, holm([p for _, p in tests.values()]).tolist(), strict=True))
    decided = []
    for a, b in pairs:
        pair = a.method, b.method
        se, p = tests.get(pair, (None, None))
        lo, hi = intervals.get(pair, (None, None))
        difference = a.accuracy - b.accuracy
        reasons = bars[pair] or _reasons(a, b, difference, adjusted[pair])
        verdict: Verdict = "tie" if reasons else "better" if difference > 0 else "worse"
        above = superiority(a.accuracies, b.accuracies)
        decided.append(Claim(*pair, difference, se, lo, hi, p, adjusted.get(pair), above, verdict, "; ".join(reasons)))
    return decided


def barred(a: Outcomes, b: Outcomes) -> list[str]:
    """Protocol 1.6 and 5.3 (i), what is known before any outcome is compared."""
    return [
        *[f"fewer than {SEEDS} seeds"] * (min(len(a.seeds), len(b.seeds)) < SEEDS),
        *[f"not evaluated at {LEVEL}"] * ({*a.levels, *b.levels} != {LEVEL}),
        *["not on one class of hardware"] * (len({*a.hardware, *b.hardware}) != 1),
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
    # the plainest reading: ahead at each of the three lambdas as measured, by PGD on the images of the band. A reader
    # can check it, which is worth the power that its few images cost.
    band = a.band.mean(axis=0) - b.band.mean(axis=0)
    holds = (math.copysign(1, difference) * band > 1e-12).all()
    return [] if holds else ["does not hold over the probe band"]


# ---------------------------------------------------------------- ranks


def ranking(methods: Sequence[Outcomes]) -> list[Claim] | list[EncoderClaim]:
    """The claims that a table of ``methods`` is ranked by: about methods where all qualify, else about encoders."""
    return encoder_claims(methods) if standing(methods) else claims(methods)


def wins(found: Iterable[Claim | EncoderClaim]) -> set[tuple[str, str]]:
    """(winner, loser) of each pair that is told apart; encoders of several seeds: the same way at every shared seed."""
    verdicts: dict[tuple[str, str], set[Verdict]] = {}
    for claim in found:
        verdicts.setdefault((claim.a, claim.b), set()).add(claim.verdict)
    won = {pair for pair, ways in verdicts.items() if ways == {"better"}}
    return won | {(b, a) for (a, b), ways in verdicts.items() if ways == {"worse"}}


def rank_ranges(methods: Sequence[Outcomes], won: Collection[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """[1 + number significantly better, M - number significantly worse] for each of the M ``methods``; see ``wins``."""
    return {
        m.method: (
            1 + sum(loser == m.method for _, loser in won),
            len(methods) - sum(winner == m.method for winner, _ in won),
        )
        for m in methods
    }


def standing(methods: Sequence[Outcomes]) -> str:
    """A sentence for the table that says what it ranks; empty where all may carry a claim about methods."""
    fewest = min((len(m.seeds) for m in methods), default=SEEDS)
    lower = sorted({level for m in methods for level in m.levels} - {LEVEL})
    lacks = [
        *[f"it has {'one seed' if fewest == 1 else f'{fewest} seeds'}"] * (fewest < SEEDS),
        *[f"it is evaluated at {', '.join(lower)}{' (not comparable)' * ('quick' in lower)}"] * bool(lower),
    ]
    if not lacks:
        return ""
    needs = f"A claim about methods needs {SEEDS} seeds of each and an evaluation at {LEVEL}."
    return f"This table ranks encoders, not methods: {' and '.join(lacks)}. {needs}"


# ---------------------------------------------------------------- encoders and times


def encoder_claims(methods: Sequence[Outcomes]) -> list[EncoderClaim]:
    """Exact McNemar, two-sided, with Holm over all, on the checkpoints of each pair at every seed that both have
    (protocol 5.2)."""
    tested = []
    for a, b in combinations(methods, 2):
        for seed in sorted({*a.seeds} & {*b.seeds}):
            first, second = a.outcomes[a.seeds.index(seed)], b.outcomes[b.seeds.index(seed)]
            tested.append((a.method, b.method, seed, *discordant(first, second), paired_bootstrap(first, second)))
    images = methods[0].outcomes.shape[1] if methods else 0
    p = [mcnemar(only_a, only_b) for _, _, _, only_a, only_b, _ in tested]
    decided = []
    for (a_name, b_name, seed, only_a, only_b, (lo, hi)), own, adjusted in zip(
        tested, p, holm(p).tolist(), strict=True
    ):
        difference = (only_a - only_b) / images
        verdict: Verdict = "tie" if adjusted > ALPHA else "better" if difference > 0 else "worse"
        decided.append(EncoderClaim(a_name, b_name, seed, only_a, only_b, difference, lo, hi, own, adjusted, verdict))
    return decided


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
    records: Iterable[Record], main_eps: float, ranked: Collection[tuple[str, str]]
) -> dict[str, list[Outcomes]]:
    """Protocol -> its ``ranked`` lines, (method, protocol): ``worst`` at the main eps, on the images that all share.

    Which lines are ranked is the leaderboard's to decide; each of their runs has that result.
    """
    runs: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.spec.seed):
        runs.setdefault(record.spec.row, []).append(record)
    lines: dict[str, list[Outcomes]] = {}
    for protocol in dict.fromkeys(protocol for _, protocol in ranked):
        bits = {
            method: [_worst(record, protocol, main_eps) for record in of_method]
            for method, of_method in runs.items()
            if (method, protocol) in ranked
        }
        images = min(len(outcomes) for of_method in bits.values() for outcomes in of_method)
        lines[protocol] = [
            Outcomes(
                method=method,
                seeds=tuple(record.spec.seed for record in runs[method]),
                outcomes=np.array([list(map(int, outcomes[:images])) for outcomes in of_method], dtype=np.uint8),
                hardware=tuple(sorted({hardware_class(record.environment) for record in runs[method]})),
                levels=tuple(sorted({record.spec.eval.level for record in runs[method]})),
                band=_band(runs[method], protocol),
            )
            for method, of_method in bits.items()
        ]
    return lines


def hardware_class(environment: Environment | None) -> str:
    """What a record knows of protocol 4.2's T-hw: accelerator, CPU, cores, threads and torch."""
    if environment is None:
        return "unknown"
    e = environment
    return f"{e.device_name}, {e.cpu}, {e.cores} cores, {e.threads} threads, torch {e.torch}"


def _worst(record: Record, protocol: str, main_eps: float) -> str:
    return next(
        r.outcomes
        for r in derived(record)
        if (r.protocol, r.attack) == (protocol, "worst") and math.isclose(r.eps, main_eps)
    )


def _band(records: Sequence[Record], protocol: str) -> NDArray[np.float64] | None:
    """(S, 3) from lambda/10 to 10 lambda, or (S, B) over B learning rates; None where a run has not measured it.

    (S, 0) where no head has chosen anything, as a vote.
    """
    heads = [probe for record in records for probe in record.probes if probe.protocol == protocol]
    sizes = {len(head.band) for head in heads}
    whole = len(heads) == len(records) and len(sizes) == 1 and all(total for head in heads for *_, total in head.band)
    least = 3 if any(head.penalty for head in heads) else 2 if any(head.chosen for head in heads) else 0
    if not whole or min(sizes) < least:
        return None
    bands = [[correct / total for _, correct, total in sorted(head.band)] for head in heads]
    return np.array(bands).reshape(len(heads), -1)
