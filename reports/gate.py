"""The rules of the regression gate, as pure functions: a reading and a baseline -> comparisons (protocol 5.4).

G0: equal integers where platform and versions are equal. G1: the same stored weights, image by image (McNemar).
G2: what was trained again, over seeds (t-test). A metric that is worse is an alarm; it is a loss only when a repeat
with fresh seeds finds it worse as well.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from bench.spec import UsageError, format_eps
from reports.findings import Comparison, Verdict
from reports.power import LEVEL_FIXED, LEVEL_RETRAINED, t_test
from reports.regression import ACCURACIES, COUNTS, Baseline, Fixed, Reading, Series, Tolerances
from reports.stats import discordant, holm, mcnemar

VERDICTS = ("PASS", "FLAG", "NOT_RUN", "FAIL")  # of an audit, from good to bad
LEAST_SEEDS = 3  # of what was trained again; twice as many of the baseline


def require_same_question(asked: Reading, baseline: Baseline) -> None:
    """Raises UsageError where the two do not ask for the same thing."""
    for name in ("dataset", "budget", "level", "test_sha256"):
        before, after = getattr(baseline, name), getattr(asked, name)
        if before != after:
            raise UsageError(f"nothing to compare: the baseline is for {name} {before}, this is {after}")


def require_comparable(found: Reading, baseline: Baseline) -> None:
    """Raises UsageError where the two did not measure the same thing, or nothing was measured."""
    require_same_question(found, baseline)
    if not any(series.metric in COUNTS and series.numbers for series in found.series):
        raise UsageError("nothing to compare: the run has no results")
    if not {series.key for series in found.series} & {series.key for series in baseline.series}:
        raise UsageError("nothing to compare: the run and the baseline have no metric in common")
    for known in paired(found, baseline):
        if known[0].total != known[1].total:
            raise UsageError(
                f"nothing to compare: {known[0].cell}: {known[0].total} images in the baseline, {known[1].total} here"
            )


def paired(found: Reading, baseline: Baseline) -> list[tuple[Series, Series]]:
    """(before, after) of the series that both have."""
    after = {series.key: series for series in found.series}
    return [(before, after[before.key]) for before in baseline.series if before.key in after]


# ---------------------------------------------------------------- G0


def unlike(found: Reading, baseline: Baseline) -> str:
    """In what the two differ so that counts need not be equal, in words; "" where they must be."""
    if baseline.budget.endswith(("s", "m", "h")):
        return f"a budget in time ({baseline.budget}) repeats no count"
    for name in ("platform", "threads"):
        before, after = getattr(baseline, name), getattr(found, name)
        if before != after:
            return f"{name}: the baseline is of {before}, this is {after}"
    for name, version in baseline.versions.items():
        if name != "python" and found.versions.get(name) != version:
            return f"{name}: the baseline is of {version}, this is {found.versions.get(name)}"
    if not {*found.seeds} & {*baseline.seeds}:
        return f"seeds: the baseline has {baseline.seeds}, this has {found.seeds}"
    return ""


def exact(found: Reading, baseline: Baseline, strict: bool = False) -> list[Comparison]:
    """G0: every count of every seed that both have; ``strict``: one that differs is a loss."""
    seeds = [seed for seed in found.seeds if seed in baseline.seeds]
    before, after = baseline.of_seeds(seeds), found.of_seeds(seeds)
    methods = {series.method for series in found.series}
    compared = []
    for key in dict.fromkeys([*before, *after]):
        known, got = before.get(key), after.get(key)
        series = known or got
        assert series is not None
        if series.metric not in (*COUNTS, "audit", "status") or series.method not in methods:
            continue
        old, new = (", ".join(map(str, measured.values)) if measured else "not measured" for measured in (known, got))
        verdict: Verdict = "same" if old == new else "worse" if strict else "differs"
        rule = "equal for each seed"
        compared.append(Comparison("G0", series.method, series.cell, series.metric, old, new, verdict, rule))
    return compared


def exact_weights(found: Sequence[Fixed], baseline: Baseline, strict: bool = False) -> list[Comparison]:
    """G0 of the stored weights: every outcome of every image, clean and attacked."""
    after = {fixed.spec.row: fixed for fixed in found}
    compared = []
    for known in (fixed for fixed in baseline.fixed if fixed.spec.row in after):
        got = after[known.spec.row]
        pairs = list(zip(known.clean + known.attacked, got.clean + got.attacked, strict=False))
        differ = sum(one != other for one, other in pairs) + len(known.clean + known.attacked) - len(pairs)
        old, new, rule = f"{len(pairs)} outcomes", f"{differ} differ", "equal for each image"
        verdict: Verdict = "same" if not differ else "worse" if strict else "differs"
        compared.append(Comparison("G0", known.spec.row, known.cell, "outcomes", old, new, verdict, rule))
    return compared


# ---------------------------------------------------------------- G1


def same_weights(found: Sequence[Fixed], baseline: Baseline, timed: bool = True) -> list[Comparison]:
    """G1: the outcomes of the stored weights that were scored again, and how fast their method trains.

    The weights are the same, so whatever moves is the code's doing: where more images stand, the attack is weaker, and
    that is as bad as where fewer do. Each direction is a family of its own under Holm. ``timed``: whether speeds of the
    two machines can be compared.
    """
    after = {fixed.spec.row: fixed for fixed in found}
    pairs = [(before, after[before.spec.row]) for before in baseline.fixed if before.spec.row in after]
    compared = [broken(before, now) for before, now in pairs if now.error]
    pairs = [(before, now) for before, now in pairs if not now.error]
    for before, now in pairs:
        if before.images_sha256 != now.images_sha256:
            raise UsageError(f"nothing to compare: {before.cell}: the fixed images are others than the baseline's")
    splits = [discordant(list(map(int, b.attacked)), list(map(int, n.attacked))) for b, n in pairs]
    fell = holm([mcnemar(b, c, "greater") for b, c in splits])
    rose = holm([mcnemar(b, c, "less") for b, c in splits])
    for (before, now), (b, c), down, up in zip(pairs, splits, fell, rose, strict=True):
        old, new = (f"{fixed.attacked.count('1')} of {len(fixed.attacked)}" for fixed in (before, now))
        worse = min(down, up) < LEVEL_FIXED
        what = "fewer images stand" if down <= up else "more images stand, so the attack is weaker"
        rule = f"McNemar below {LEVEL_FIXED:g}; {b} fell, {c} rose; {what}" if worse else f"{b} fell, {c} rose"
        cell = f"{before.cell}, pgd at eps {format_eps(before.eps)}"
        verdict: Verdict = "worse" if worse else "same"
        compared.append(
            Comparison("G1", before.spec.row, cell, "robust accuracy", old, new, verdict, rule, float(min(down, up)))
        )
        compared.append(clean_outcomes(before, now))
        if timed and before.speed is not None and now.speed is not None:
            compared.append(speed(before, now, baseline.tolerances.speed))
    return compared


def broken(before: Fixed, now: Fixed) -> Comparison:
    """The stored weights could not be scored."""
    text = f"{before.attacked.count('1')} of {len(before.attacked)}"
    rule = "the stored weights can be scored"
    return Comparison("G1", before.spec.row, before.cell, "evaluation", text, f"failed: {now.error}", "worse", rule)


def clean_outcomes(before: Fixed, now: Fixed) -> Comparison:
    """Clean accuracy of the stored weights, in no family of tests: no draw is in it, and only rounding may move it."""
    b, c = discordant(list(map(int, before.clean)), list(map(int, now.clean)))
    p = mcnemar(b, c, "greater")
    old, new = (f"{fixed.clean.count('1')} of {len(fixed.clean)}" for fixed in (before, now))
    verdict: Verdict = "worse" if p < LEVEL_FIXED else "better" if mcnemar(b, c, "less") < LEVEL_FIXED else "same"
    rule = f"McNemar below {LEVEL_FIXED:g}; {b} fell, {c} rose"
    return Comparison("G1", before.spec.row, f"{before.cell}, clean", "clean accuracy", old, new, verdict, rule, p)


def speed(before: Fixed, now: Fixed, tolerance: float) -> Comparison:
    """Seconds of an update, in units of the calibration loop of the same process."""
    assert before.speed is not None
    assert now.speed is not None
    rule = f"at most {100 * tolerance:g} % slower, relative to a calibration loop in the same process"
    old, new = (f"{loops:.3g} loops an update" for loops in (before.speed, now.speed))
    return Comparison(
        "G1", before.spec.row, before.cell, "speed", old, new, ratio(before.speed, now.speed, tolerance), rule
    )


def ratio(before: float, after: float, tolerance: float) -> Verdict:
    """Of a cost: worse where it is above the tolerance, better where it is as far below."""
    return "worse" if after > before * (1 + tolerance) else "better" if before > after * (1 + tolerance) else "same"


# ---------------------------------------------------------------- G2


def retrained(found: Reading, baseline: Baseline, only: Sequence[Comparison] | None = None) -> list[Comparison]:
    """G2: what was trained again. The seeds of the run are left out of the baseline: a run is never its own reference.

    Accuracies by a one-sided t-test, Holm over those that can fall; the rest by a rule each, memory only on the same
    platform. ``only``: the alarms that are repeated, nothing else.
    """
    references = [seed for seed in baseline.seeds if seed not in found.seeds] or baseline.seeds
    before, after = baseline.of_seeds(references), found.of_seeds(found.seeds)
    methods = {series.method for series in found.series}
    known = [series for series in before.values() if series.method in methods]
    if only is not None:
        asked = {alarm.key for alarm in only}
        known = [series for series in known if ("G2", series.cell, series.metric) in asked]
    if found.platform != baseline.platform:
        known = [series for series in known if series.metric != "peak memory"]
    compared = []
    for series in known:
        got = after.get(series.key)
        if got is None or not [value for value in got.values if value is not None]:
            compared.append(gone(series))
        elif series.metric in RULES:
            compared.append(RULES[series.metric](series, got, baseline.tolerances))
    pairs = [(series, after[series.key]) for series in known if series.metric in ACCURACIES and series.key in after]
    return compared + accuracies([(b, a) for b, a in pairs if a.numbers], baseline.tolerances)


def gone(series: Series) -> Comparison:
    """What the baseline has and the run has not."""
    text = f"{len(series.values)} seeds"
    return Comparison(
        "G2", series.method, series.cell, series.metric, text, "not measured", "worse", "measured in every run"
    )


def accuracies(pairs: Sequence[tuple[Series, Series]], tolerances: Tolerances) -> list[Comparison]:
    """The t-tests of all accuracies, each direction a family. One that stands at 0 cannot fall, at 1 not rise."""
    tested = [pair for pair in pairs if len(pair[1].numbers) >= LEAST_SEEDS <= len(pair[0].numbers) // 2]
    tests = [t_test(percent(before), percent(after), 100 / (before.total or 1)) for before, after in tested]
    points = [tolerance_of(before, tolerances) for before, _ in tested]
    falls, rises = (
        family(
            [getattr(test, p) for test in tests], [room(pair[0]) > by for pair, by in zip(tested, points, strict=True)]
        )
        for p, room in (("fall", mean), ("rise", lambda series: 100 - mean(series)))
    )
    compared = []
    for (before, after), least, test, fall, rise in zip(tested, points, tests, falls, rises, strict=True):
        verdict: Verdict = "same"
        if fall < LEVEL_RETRAINED and test.difference < -least:
            verdict = "worse"
        elif rise < LEVEL_RETRAINED and test.difference > least:
            verdict = "better"
        seeds = f"{len(after.numbers)} seeds against {len(before.numbers)}"
        rule = f"t-test below {LEVEL_RETRAINED:g} and more than {least:g} points, {seeds}"
        old, new = (f"{mean(series):.1f} %" for series in (before, after))
        p = rise if test.difference > 0 else fall
        compared.append(Comparison("G2", before.method, before.cell, before.metric, old, new, verdict, rule, p))
    return compared


def family(p: Sequence[float], possible: Sequence[bool]) -> list[float]:
    """Holm over the tests that are possible; 1 for the others."""
    adjusted = iter(holm([value for value, testable in zip(p, possible, strict=True) if testable]).tolist())
    return [next(adjusted) if testable else 1.0 for testable in possible]


def percent(series: Series) -> list[float]:
    """Accuracies in percent."""
    return [100 * value / (series.total or 1) for value in series.numbers]


def mean(series: Series) -> float:
    """Mean accuracy in percent."""
    return statistics.fmean(percent(series))


def tolerance_of(series: Series, tolerances: Tolerances) -> float:
    """Points that an accuracy may fall."""
    kind = series.metric.partition(" ")[0]
    return float(getattr(tolerances, f"{kind}_points"))


def status_rule(before: Series, after: Series, _: Tolerances) -> Comparison:
    """Every run finishes, unless one of the baseline did not."""
    texts, bad = counted(before), [value for value in after.values if value not in ("finished", *before.values)]
    verdict: Verdict = "worse" if bad else "same"
    return Comparison("G2", before.method, before.cell, "status", texts, counted(after), verdict, "every run finishes")


def audit_rule(before: Series, after: Series, _: Tolerances) -> Comparison:
    """The worst verdict over the seeds is none that is worse than the baseline's worst."""
    worst, worst_now = (max(map(badness, series.values)) for series in (before, after))
    verdict: Verdict = "worse" if worst_now > worst else "same"
    rule = "no verdict worse than the worst of the baseline"
    return Comparison("G2", before.method, before.cell, "audit", counted(before), counted(after), verdict, rule)


def badness(verdict: object) -> int:
    """The place of a verdict from good to bad; one that is unknown is the worst, one that is missing says nothing."""
    return -1 if verdict is None else VERDICTS.index(str(verdict)) if verdict in VERDICTS else len(VERDICTS)


def counted(series: Series) -> str:
    """``12 PASS, 3 FLAG``."""
    values = [str(value) for value in series.values if value is not None]
    return ", ".join(f"{values.count(value)} {value}" for value in sorted(set(values)))


def gradient_rule(before: Series, after: Series, tolerances: Tolerances) -> Comparison:
    """Every probe was fitted to the end."""
    bound = max(tolerances.gradient_norm, *before.numbers)
    verdict: Verdict = "worse" if max(after.numbers) > bound else "same"
    old, new = (f"{max(series.numbers):.2g}" for series in (before, after))
    return Comparison("G2", before.method, before.cell, before.metric, old, new, verdict, f"at most {bound:.2g}")


def passes_rule(before: Series, after: Series, tolerances: Tolerances) -> Comparison:
    """Passes are counted, not measured."""
    least, most = statistics.median(before.numbers), statistics.median(after.numbers)
    rule = f"at most {100 * tolerances.passes:g} % more"
    verdict = ratio(least, most, tolerances.passes)
    return Comparison("G2", before.method, before.cell, before.metric, f"{least:.6g}", f"{most:.6g}", verdict, rule)


def memory_rule(before: Series, after: Series, tolerances: Tolerances) -> Comparison:
    """The medians over seeds; resident memory moves with the system's mood."""
    medians = [statistics.median(series.numbers) for series in (before, after)]
    rule = f"at most {100 * tolerances.memory:g} % more"
    old, new = (f"{value / 2**20:.0f} MiB" for value in medians)
    verdict = ratio(medians[0], medians[1], tolerances.memory)
    return Comparison("G2", before.method, before.cell, before.metric, old, new, verdict, rule)


RULES: dict[str, Callable[[Series, Series, Tolerances], Comparison]] = {
    "status": status_rule,
    "audit": audit_rule,
    "probe gradient norm": gradient_rule,
    "passes per image": passes_rule,
    "peak memory": memory_rule,
}


# ---------------------------------------------------------------- alarms and their repeat


def alarms(compared: Iterable[Comparison]) -> list[Comparison]:
    """What is worse in a first look: to be repeated once, and no regression before."""
    return [comparison for comparison in compared if comparison.verdict == "worse"]


def confirmed(first: Sequence[Comparison], repeat: Sequence[Comparison]) -> list[Comparison]:
    """The first look, its alarms kept only where the repeat is worse too; the rule then names both results."""
    again = {repeated.key: repeated for repeated in repeat}
    settled = []
    for comparison in first:
        if comparison.verdict == "worse":
            other = again.get(comparison.key)
            after = other.after if other else "not measured"
            unseen = other is None and comparison.metric != "evaluation"  # which is there only where it failed
            stays = unseen or (other is not None and other.verdict == "worse")
            rule = f"{comparison.rule}; the repeat gave {after}"
            comparison = replace(comparison, verdict="worse" if stays else "not confirmed", rule=rule)
        settled.append(comparison)
    return settled
