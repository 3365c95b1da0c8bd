"""The rules of the gate: what is a loss, what is a gain, what is chance, and what one look never proves."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import ttest_ind

from bench.spec import UsageError
from reports import gate
from reports.findings import Comparison, losses, moved
from reports.regression import Baseline, Fixed, Reading, Series, default_baseline
from tests.gate.test_regression import baseline, reading

CELL = ("cf_amc_ssl", "linear, pgd at eps 0.1", "robust accuracy")


def changed(found: Reading, key: tuple[str, str, str], values: Sequence[int | float | str | None]) -> Reading:
    """The reading with other values of one series; the type stays."""
    series = [s.model_copy(update={"values": list(values)}) if s.key == key else s for s in found.series]
    return found.model_copy(update={"series": series})


def one(compared: Sequence[Comparison], key: tuple[str, str, str]) -> Comparison:
    """The comparison of a series."""
    cell = f"{key[0]}, {key[1]}" if key[1] else key[0]
    (found,) = [each for each in compared if (each.cell, each.metric) == (cell, key[2])]
    return found


def spread_out(values: Sequence[int], key: tuple[str, str, str] = CELL) -> Baseline:
    """A baseline of so many seeds with these counts."""
    known = baseline(len(values))
    return Baseline.model_validate(dict(known) | {"series": changed(known, key, values).series})


def run(values: Sequence[int | str | float | None], key: tuple[str, str, str] = CELL) -> Reading:
    """A run of three fresh seeds with these values."""
    return changed(reading(3).model_copy(update={"seeds": [100, 101, 102]}), key, values)


class TestExact:
    def test_equal_counts_differ_nowhere(self) -> None:
        assert {each.verdict for each in gate.exact(reading(), baseline())} == {"same"}

    @pytest.mark.parametrize("by", [-1, 1])
    def test_one_image_differs_in_both_directions_and_fails_only_where_asked(self, by: int) -> None:
        values = next(s for s in reading().series if s.key == CELL).numbers
        found = moved(gate.exact(changed(reading(), CELL, [int(values[0]) + by, *map(int, values[1:])]), baseline()))
        assert len(found) == 1
        assert losses(found) == []
        assert str(found[0]).startswith("differs cf_amc_ssl, linear, pgd at eps 0.1, robust accuracy: ")
        assert len(losses(gate.exact(changed(reading(), CELL, [0, 0, 0]), baseline(), strict=True))) == 1

    def test_a_cell_that_is_gone_or_is_added_differs(self) -> None:
        found = reading()
        less = found.model_copy(update={"series": [s for s in found.series if s.key != CELL]})
        assert one(gate.exact(less, baseline()), CELL).after == "not measured"
        known = baseline()
        known = known.model_copy(update={"series": [s for s in known.series if s.key != CELL]})
        assert one(gate.exact(found, known), CELL).before == "not measured"

    def test_only_shared_seeds_are_compared(self) -> None:
        assert gate.unlike(run([1, 1, 1]), baseline()).startswith("seeds: the baseline has [0, 1, 2")
        two = reading().model_copy(update={"seeds": [0, 1, 99]})
        assert one(gate.exact(two, baseline()), CELL).verdict == "same"

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"platform": "Linux aarch64 x, cpu"}, "platform"),
            ({"threads": 1}, "threads"),
            ({"versions": {"torch": "1.0"}}, "torch"),
        ],
    )
    def test_where_counts_need_not_be_equal(self, changes: dict[str, object], reason: str) -> None:
        known = baseline()
        assert gate.unlike(reading(), known) == ""
        assert gate.unlike(reading().model_copy(update=changes), known).startswith(reason)
        assert "budget in time" in gate.unlike(reading(), baseline(budget="1m"))


class TestComparable:
    @pytest.mark.parametrize("name", ["dataset", "budget", "level", "test_sha256"])
    def test_another_question_is_nothing_to_compare(self, name: str) -> None:
        gate.require_comparable(reading(), baseline())
        with pytest.raises(UsageError, match=f"nothing to compare: the baseline is for {name}"):
            gate.require_comparable(reading().model_copy(update={name: "b" * 63 + "a"}), baseline())

    def test_no_results_no_common_metric_and_other_images(self) -> None:
        with pytest.raises(UsageError, match="no results"):
            gate.require_comparable(reading().model_copy(update={"series": []}), baseline())
        other = [s.model_copy(update={"method": "another"}) for s in reading().series]
        with pytest.raises(UsageError, match="no metric in common"):
            gate.require_comparable(reading().model_copy(update={"series": other}), baseline())
        fewer = [s.model_copy(update={"total": 7}) if s.key == CELL else s for s in reading().series]
        with pytest.raises(UsageError, match="300 images in the baseline, 7 here"):
            gate.require_comparable(reading().model_copy(update={"series": fewer}), baseline())


class TestAccuracies:
    COUNTS = (150, 153, 148, 151, 155, 149, 150, 152, 147, 151, 150, 154)

    def test_the_p_is_that_of_students_test_after_holm(self) -> None:
        known, found = spread_out(self.COUNTS), run([135, 139, 131])
        compared = gate.retrained(found, known)
        ours = one(compared, CELL)
        accuracies = [
            s
            for s in known.series
            if s.metric in gate.ACCURACIES and gate.mean(s) > gate.tolerance_of(s, known.tolerances)
        ]
        theirs = ttest_ind([135, 139, 131], self.COUNTS, alternative="less").pvalue
        assert ours.p == pytest.approx(min(1, theirs * len(accuracies)), rel=1e-9)
        assert ours.verdict == "worse"
        assert (ours.before, ours.after) == (f"{np.mean(self.COUNTS) / 3:.1f} %", "45.0 %")

    def test_a_rise_is_a_gain_and_no_loss(self) -> None:
        (found,) = moved([one(gate.retrained(run([190, 195, 188]), spread_out(self.COUNTS)), CELL)])
        assert found.outcome == "gain"
        assert str(found).startswith("gain ")

    @pytest.mark.parametrize("values", [[150, 151, 152], [145, 147, 146], [141, 158, 150]])
    def test_chance_is_the_same(self, values: list[int]) -> None:
        assert one(gate.retrained(run(values), spread_out(self.COUNTS)), CELL).verdict == "same"

    def test_no_spread_is_no_proof(self) -> None:
        """Twelve equal counts: one image less is not a loss, nor is what stays within the tolerance; ten points are."""
        known = spread_out([150] * 12)
        assert one(gate.retrained(run([149, 149, 149]), known), CELL).verdict == "same"
        assert one(gate.retrained(run([145, 145, 145]), known), CELL).verdict == "same"
        assert one(gate.retrained(run([120, 120, 120]), known), CELL).verdict == "worse"

    def test_what_cannot_fall_is_no_test_of_the_family(self) -> None:
        """A method without any robust accuracy makes the tests of the others no harder."""
        known, found = spread_out(self.COUNTS), run([135, 139, 131])
        p = one(gate.retrained(found, known), CELL).p
        gone = Series(method="cf_amc_ssl", where="x", metric="robust accuracy", total=300, values=[0] * 12)
        more = known.model_copy(update={"series": [*known.series, gone]})
        same = found.model_copy(update={"series": [*found.series, gone.model_copy(update={"values": [0] * 3})]})
        assert one(gate.retrained(same, more), CELL).p == p

    def test_seeds_of_the_run_are_no_reference(self) -> None:
        """With its own seeds in the baseline the run is compared with the others."""
        values = [*self.COUNTS, 0, 0, 0]
        found = run([0, 0, 0]).model_copy(update={"seeds": [12, 13, 14]})
        assert one(gate.retrained(found, spread_out(values)), CELL).before == f"{np.mean(self.COUNTS) / 3:.1f} %"

    def test_too_few_seeds_are_not_tested(self) -> None:
        known = spread_out(self.COUNTS[:5])
        assert not [each for each in gate.retrained(run([0, 0, 0]), known) if "accuracy" in each.metric]
        two = run([0, 0, None])
        assert not [
            each for each in gate.retrained(two, spread_out(self.COUNTS)) if (each.cell, each.metric) == CELL[1:]
        ]


class TestOtherMetrics:
    @pytest.mark.parametrize(
        ("metric", "where", "values", "verdict"),
        [
            ("audit", "linear", ["PASS", "FAIL", "PASS"], "worse"),
            ("audit", "linear", ["PASS", "never heard of", "PASS"], "worse"),
            ("audit", "linear", ["PASS", "PASS", "PASS"], "same"),
            ("status", "", ["finished", "diverged", "finished"], "worse"),
            ("passes per image", "", [145.0, 145.0, 145.0], "worse"),
            ("passes per image", "", [144.0, 144.0, 144.0], "same"),
            ("passes per image", "", [100.0, 100.0, 100.0], "better"),
            ("peak memory", "", [680e6 * 1.3] * 3, "worse"),
            ("peak memory", "", [680e6 * 1.1] * 3, "same"),
            ("peak memory", "", [680e6 * 2, 680e6, 680e6], "same"),
            ("peak memory", "", [680e6 / 2] * 3, "better"),
            ("peak memory", "", [None, None, None], "worse"),
        ],
    )
    def test_each_by_its_rule(self, metric: str, where: str, values: list[str], verdict: str) -> None:
        key = ("cf_amc_ssl", where, metric)
        assert one(gate.retrained(run(values, key), baseline(12)), key).verdict == verdict

    def test_a_flag_that_the_baseline_has_is_fine(self) -> None:
        key = ("cf_amc_ssl", "linear", "audit")
        known = baseline(12)
        known = known.model_copy(update={"series": changed(known, key, ["FLAG", *["PASS"] * 11]).series})
        assert one(gate.retrained(run(["FLAG"] * 3, key), known), key).verdict == "same"
        assert one(gate.retrained(run(["FLAG", "FAIL", "PASS"], key), known), key).verdict == "worse"

    def test_a_probe_that_was_not_fitted_to_the_end(self) -> None:
        def series(values: list[float]) -> Series:
            return Series(method="emp_ssl", where="linear", metric="probe gradient norm", values=list(values))

        tolerances = baseline().tolerances
        assert gate.gradient_rule(series([1e-7]), series([9e-7]), tolerances).verdict == "same"
        assert gate.gradient_rule(series([1e-7]), series([1e-7, 2e-6]), tolerances).verdict == "worse"


def fixed(outcomes: str, **changes: object) -> Fixed:
    """Stored weights of the project with other outcomes."""
    known = Baseline.read(default_baseline("ci")).fixed[0]
    return known.model_copy(update={"attacked": outcomes, "clean": "1" * len(outcomes), "speed": 2.0} | changes)


def weights(before: Fixed, after: Fixed) -> list[Comparison]:
    return gate.same_weights([after], baseline(fixed=[before]))


class TestSameWeights:
    @pytest.mark.parametrize(
        ("fell", "rose", "verdict"), [(9, 0, "same"), (10, 0, "worse"), (40, 10, "worse"), (30, 20, "same")]
    )
    def test_a_fall(self, fell: int, rose: int, verdict: str) -> None:
        """2^-9 is above .001 and 2^-10 below."""
        after = "0" * fell + "1" * (500 - fell) + "1" * rose + "0" * (500 - rose)
        found = weights(fixed("1" * 500 + "0" * 500), fixed(after))[0]
        assert found.verdict == verdict
        assert (found.before, found.after) == ("500 of 1000", f"{500 - fell + rose} of 1000")

    def test_more_images_that_stand_mean_a_weaker_attack(self) -> None:
        (found,) = moved(weights(fixed("1" * 500 + "0" * 500), fixed("1" * 530 + "0" * 470))[:1])
        assert found.outcome == "loss"
        assert "the attack is weaker" in found.rule

    def test_slower_by_more_than_the_tolerance(self) -> None:
        both = [weights(fixed("1"), fixed("1", speed=speed))[-1].verdict for speed in (2.9, 3.1, 1.2)]
        assert both == ["same", "worse", "better"]

    def test_speed_and_memory_are_those_of_a_platform(self) -> None:
        compared = gate.same_weights([fixed("1", speed=9.0)], baseline(fixed=[fixed("1")]), timed=False)
        assert [each.metric for each in compared] == ["robust accuracy", "clean accuracy"]
        elsewhere = reading().model_copy(update={"platform": "another"})
        assert "peak memory" not in {each.metric for each in gate.retrained(elsewhere, baseline())}
        assert "peak memory" in {each.metric for each in gate.retrained(reading(), baseline())}

    def test_weights_that_cannot_be_scored(self) -> None:
        (found,) = moved(weights(fixed("1"), fixed("", error="AssertionError: train mode")))
        assert found.outcome == "loss"
        assert found.after == "failed: AssertionError: train mode"

    def test_other_images_are_nothing_to_compare(self) -> None:
        with pytest.raises(UsageError, match="the fixed images are others"):
            weights(fixed("1"), fixed("1", images_sha256="f" * 64))

    def test_one_outcome_differs_for_g0(self) -> None:
        def look(after: str) -> Comparison:
            (found,) = gate.exact_weights([fixed(after)], baseline(fixed=[fixed("10")]))
            return found

        assert look("10").verdict == "same"
        assert (look("01").verdict, look("01").after) == ("differs", "2 differ")
        assert look("1").verdict == "differs"


class TestRepeat:
    FIRST = Comparison("G2", "m", "m", "robust accuracy", "50 %", "40 %", "worse", "t-test", 0.001)

    def test_a_first_alarm_alone_is_no_regression(self) -> None:
        again = Comparison("G2", "m", "m", "robust accuracy", "50 %", "49 %", "same", "t-test", 0.4)
        (settled,) = gate.confirmed([self.FIRST], [again])
        assert settled.verdict == "not confirmed"
        assert settled.rule == "t-test; the repeat gave 49 %"  # both results are told
        assert moved([settled]) == []

    def test_two_alarms_are(self) -> None:
        (found,) = moved(gate.confirmed([self.FIRST], [self.FIRST]))
        assert found.outcome == "loss"

    def test_an_evaluation_that_fails_once_is_none(self) -> None:
        once = Comparison("G1", "m", "m", "evaluation", "1 of 1", "failed: x", "worse", "can be scored")
        assert gate.confirmed([once], [])[0].verdict == "not confirmed"

    def test_only_what_alarmed_is_repeated(self) -> None:
        compared = gate.retrained(
            run([0, 0, 0]), spread_out(TestAccuracies.COUNTS), [one(gate.retrained(run([0, 0, 0]), baseline(12)), CELL)]
        )
        assert [(each.cell, each.metric) for each in compared] == [
            ("cf_amc_ssl, linear, pgd at eps 0.1", "robust accuracy")
        ]
        assert compared[0].p == pytest.approx(ttest_ind([0, 0, 0], TestAccuracies.COUNTS, alternative="less").pvalue)


class TestUnchangedCode:
    """A/A: draws from the stored runs of unchanged code, each against the rest."""

    def draw(self, known: Baseline, generator: random.Random) -> list[Comparison]:
        first, again = np.split(np.array(generator.sample(known.seeds, 6)), 2)
        rest = [seed for seed in known.seeds if seed not in {*first, *again}]

        def part(seeds: Sequence[int], kind: type[Reading]) -> Reading:
            series = list(known.of_seeds(list(seeds)).values())
            return known.model_copy(update={"seeds": list(map(int, seeds)), "series": series})

        less = part(rest, Baseline)
        assert isinstance(less, Baseline)
        looked = gate.retrained(part(first, Reading), less)
        alarms = gate.alarms(looked)
        return gate.confirmed(looked, gate.retrained(part(again, Reading), less, alarms)) if alarms else looked

    def test_no_false_alarm_in_100_draws(self) -> None:
        """None of 100 shows less than 3 % (the 95 % bound, 1 - .05^(1/100))."""
        known, generator = Baseline.read(default_baseline("ci")), random.Random(0)
        drawn = [gate.alarms(self.draw(known, generator)) for _ in range(100)]
        assert [alarms for alarms in drawn if alarms] == []
        assert len(known.seeds) >= 12
        assert 1 - 0.05 ** (1 / 100) < 0.03
