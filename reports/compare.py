"""Two run folders side by side: B against A in each cell that both have, with tests and effect sizes.

A cell is a method, seed, protocol, attack, norm and eps. Differences are B minus A and ratios B over A; accuracies are
fractions. Two cells of one seed are two checkpoints (protocol 5.2); only the seeds together speak of the training.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from bench.record import EvalResult, Record
from bench.spec import Norm, UsageError
from reports.claims import ALPHA, hardware_class
from reports.codes import apart
from reports.differences import Difference, Folder, differences
from reports.rows import derived, place
from reports.stats import (
    cohens_h,
    discordant,
    holm,
    mcnemar,
    newcombe,
    paired_bootstrap,
    ratio_of_medians,
    superiority,
    welch,
    wilson,
)

COSTS = {  # name -> (unit, what one unit is, whether it depends on the machine)
    "training time": ("s", 1.0, True),
    "time of an update": ("ms", 1e-3, True),
    "passes per image": ("", 1.0, False),
    "peak memory": ("GB", 1e9, True),
    "energy": ("kJ", 1e3, True),
}
Key = tuple[str, str, str, Norm, float]  # method, protocol, attack, norm, eps


@dataclass(frozen=True)
class Share:
    """Images that stand, of how many, with Wilson's 95 % interval."""

    correct: int
    total: int
    accuracy: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Cell:
    """One cell of both folders: two checkpoints. ``only_a`` and ``only_b`` are None where images are not paired."""

    method: str
    protocol: str
    attack: str
    norm: Norm
    eps: float
    seed: int
    a: Share
    b: Share
    difference: float
    lo: float  # 95 %: paired bootstrap over images, or Newcombe's for independent counts
    hi: float
    only_a: int | None
    only_b: int | None
    h: float  # Cohen's
    p: float | None  # McNemar's exact test, two-sided; None for independent counts
    adjusted: float | None  # Holm's, over all cells with a p
    note: str

    @property
    def differs(self) -> bool:
        """Whether chance over images does not explain the difference, all cells taken together."""
        return self.adjusted is not None and self.adjusted <= ALPHA


@dataclass(frozen=True)
class Seeds:
    """All seeds of one method in both folders, at least two in each: the training, by Welch's t-test."""

    method: str
    protocol: str
    attack: str
    norm: Norm
    eps: float
    seeds: tuple[int, int]  # how many in A, in B
    a: float  # mean over seeds
    b: float
    difference: float
    lo: float | None  # None where no seed differs from another
    hi: float | None
    p: float | None
    adjusted: float | None  # Holm's, over all such lines
    superiority: float  # P(B > A) over pairs of seeds

    @property
    def differs(self) -> bool:
        """As of a cell, over seeds."""
        return self.adjusted is not None and self.adjusted <= ALPHA


@dataclass(frozen=True)
class Cost:
    """Medians over the finished runs of a method, and their ratio with a 95 % interval; ``note`` says why a gap."""

    method: str
    what: str
    unit: str
    a: float
    b: float
    ratio: float | None
    lo: float | None  # None for single runs
    hi: float | None
    note: str


@dataclass(frozen=True)
class Comparison:
    """Everything that is said of two folders."""

    differences: list[Difference]
    notes: list[str]
    cells: list[Cell]
    seeds: list[Seeds]
    costs: list[Cost]
    code_known: bool = True  # of all runs that have results

    def as_json(self) -> dict[str, Any]:
        """All fields by name, but whether the code is known: where it is not, no difference in it can be told."""
        return {name: value for name, value in asdict(self).items() if name != "code_known"}


def compare(a: Folder, b: Folder) -> Comparison:
    """Every cell, method over seeds, and cost that both have. Raises UsageError where there is neither of the first."""
    before, after = ({record.spec.name: record for record in folder.records} for folder in (a, b))
    shared = [name for name in before if name in after]
    cells = [cell for name in shared for cell in _cells(before[name], after[name])]
    trainings = _seeds(a.records, b.records)
    if not cells and not trainings:
        raise UsageError(
            f"nothing to compare: {a.name} and {b.name} have no cell in common; expected the same method, protocol, "
            f"attack, eps and seed in both, or 2 seeds in each, got {_listed(before)} against {_listed(after)}"
        )
    adjusted = iter(holm([cell.p for cell in cells if cell.p is not None]).tolist())
    cells = [cell if cell.p is None else replace(cell, adjusted=next(adjusted)) for cell in cells]
    known = all(record.sources for folder in (a, b) for record in folder.records if record.results)
    return Comparison(differences([a, b]), _notes(a, b), cells, trainings, _costs(a, b), known)


# ---------------------------------------------------------------- checkpoints


def _results(record: Record) -> dict[tuple[str, str, Norm, float], EvalResult]:
    """What was asked for and the ranked number, in the order of the tables; not what is drawn for a curve, or apart."""
    ranked = [result for result in derived(record) if result.attack == "worst"]
    results = [result for result in [*record.results, *ranked] if not (result.curve or result.apart) and result.total]
    return {(r.protocol, r.attack, r.norm, r.eps): r for r in sorted(results, key=place)}


def _cells(before: Record, after: Record) -> Iterable[Cell]:
    ours, theirs = _results(before), _results(after)
    one_order = _images(before) is not None and _images(before) == _images(after)
    for key in (key for key in ours if key in theirs):
        yield _cell(before, key, ours[key], theirs[key], one_order)


def _images(record: Record) -> str | None:
    """Which test images in which order: outcomes are stored in that of the data set."""
    return record.data.test_sha256 if record.data else None


def _cell(record: Record, key: tuple[str, str, Norm, float], a: EvalResult, b: EvalResult, one_order: bool) -> Cell:
    notes = ["the attack has other settings"] * (a.config_hash != b.config_hash)
    notes += ["the attack is of other code"] * (a.code != b.code)
    first, second = a.outcomes, b.outcomes
    only: tuple[int, int] | tuple[None, None] = (None, None)
    p = None
    if one_order:
        shared = min(len(first), len(second))
        if len(first) != len(second):
            notes.append(f"on the first {shared} images, which both attacked")
        first, second = first[:shared], second[:shared]
        bits_a, bits_b = (np.array(list(map(int, outcomes))) for outcomes in (first, second))
        only = discordant(bits_a, bits_b)
        p = mcnemar(*only)
        lo, hi = paired_bootstrap(bits_b, bits_a)
    else:
        notes.append("other test images: not paired, no test")
        lo, hi = newcombe((second.count("1"), first.count("1")), (len(second), len(first)))
    before, after = _share(first), _share(second)
    return Cell(
        method=record.spec.row,
        protocol=key[0],
        attack=key[1],
        norm=key[2],
        eps=key[3],
        seed=record.spec.seed,
        a=before,
        b=after,
        difference=after.accuracy - before.accuracy,
        lo=lo,
        hi=hi,
        only_a=only[0],
        only_b=only[1],
        h=cohens_h(after.accuracy, before.accuracy),
        p=p,
        adjusted=None,
        note="; ".join(notes),
    )


def _share(outcomes: str) -> Share:
    correct, total = outcomes.count("1"), len(outcomes)
    return Share(correct, total, correct / total, *wilson(correct, total))


# ---------------------------------------------------------------- trainings


def _seeds(before: Sequence[Record], after: Sequence[Record]) -> list[Seeds]:
    ours, theirs = _accuracies(before), _accuracies(after)
    keys = [key for key in ours if min(len(ours[key]), len(theirs.get(key, ()))) > 1]
    tests = [welch(theirs[key], ours[key]) for key in keys]
    adjusted = iter(holm([test[2] for test in tests if test]).tolist())
    compared = []
    for key, test in zip(keys, tests, strict=True):
        a, b = ours[key], theirs[key]
        lo, hi, p = test or (None, None, None)
        means = float(np.mean(a)), float(np.mean(b))
        own = next(adjusted) if test else None
        counts = (len(a), len(b))
        compared.append(Seeds(*key, counts, *means, means[1] - means[0], lo, hi, p, own, superiority(b, a)))
    return compared


def _accuracies(records: Sequence[Record]) -> dict[Key, list[float]]:
    """Cell without its seed -> the accuracy at each seed."""
    accuracies: dict[Key, list[float]] = {}
    several = _of_two_codes(records)
    for record in (record for record in records if record.spec.row not in several):
        for key, result in _results(record).items():
            accuracies.setdefault((record.spec.row, *key), []).append(result.correct / result.total)
    return accuracies


def _of_two_codes(records: Sequence[Record]) -> list[str]:
    """Methods whose seeds are none of one training, or of one evaluation."""
    named = zip(records, apart(records), strict=True)
    return list(dict.fromkeys(record.spec.row for record, other in named if record.spec.row != other.spec.row))


# ---------------------------------------------------------------- costs


def _costs(a: Folder, b: Folder) -> list[Cost]:
    ours, theirs = _trained(a.records), _trained(b.records)
    return [
        cost
        for method in ours
        if method in theirs
        for what in COSTS
        if (cost := _cost(method, what, ours[method], theirs[method])) is not None
    ]


def _trained(records: Sequence[Record]) -> dict[str, list[Record]]:
    by_row: dict[str, list[Record]] = {}
    for record in records:
        if record.train is not None and record.train.status == "finished":
            by_row.setdefault(record.spec.row, []).append(record)
    return by_row


def _cost(method: str, what: str, ours: Sequence[Record], theirs: Sequence[Record]) -> Cost | None:
    """None where a run has not measured it."""
    unit, per, of_machine = COSTS[what]
    a, b = ([value for record in records if (value := _spent(record, what))] for records in (ours, theirs))
    if len(a) < len(ours) or len(b) < len(theirs):
        return None
    plain = Cost(method, what, unit, float(np.median(a)) / per, float(np.median(b)) / per, None, None, None, "")
    machines = [sorted({hardware_class(record.environment) for record in records}) for records in (ours, theirs)]
    if of_machine and (machines[0] != machines[1] or len(machines[0]) > 1):
        return replace(plain, note=f"not compared: different hardware: {' against '.join(map('; '.join, machines))}")
    if what in ("training time", "energy") and any(record.extra_data for record in (*ours, *theirs)):
        return replace(plain, note="not compared: what its extra data has cost is not known")
    ratio, lo, hi = ratio_of_medians(b, a)
    if min(len(a), len(b)) < 2:
        return replace(plain, ratio=ratio, note="a single run has no interval")
    return replace(plain, ratio=ratio, lo=lo, hi=hi)


def _spent(record: Record, what: str) -> float | None:
    train = record.train
    if train is None:
        return None
    return {
        "training time": train.train_seconds,
        "time of an update": train.median_update_seconds,
        "passes per image": train.forward_per_image + train.backward_input_per_image + train.backward_weight_per_image,
        "peak memory": float(train.peak_memory_bytes),
        "energy": train.energy_joules,
    }[what]


# ---------------------------------------------------------------- words


def _notes(a: Folder, b: Folder) -> list[str]:
    """Runs that only one folder has, and runs that ended in another way."""
    status = [{record.spec.name: record.status for record in folder.records} for folder in (a, b)]
    alone = [[name for name in mine if name not in other] for mine, other in (status, status[::-1])]
    notes = [f"only in {letter}: {', '.join(names)}" for letter, names in zip("AB", alone, strict=True) if names]
    both = [name for name in status[0] if name in status[1]]
    for letter, folder in (("A", a), ("B", b)):
        mixed = _of_two_codes(folder.records)
        extra = dict.fromkeys(record.spec.row for record in folder.records if record.extra_data)
        notes += [f"with extra data in {letter}: {', '.join(extra)}"] * bool(extra)
        notes += [f"seeds that two codes made in {letter}, not taken together: {', '.join(mixed)}"] * bool(mixed)
    return notes + [
        f"{name}: {status[0][name]} in A, {status[1][name]} in B" for name in both if status[0][name] != status[1][name]
    ]


def _listed(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)
