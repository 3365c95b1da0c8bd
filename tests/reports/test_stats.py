"""Every statistic against scipy, statsmodels, a closed form, a slow definition or the figures of the protocol."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_ind
from statsmodels.stats.api import CompareMeans, DescrStatsW, confint_proportions_2indep, proportion_effectsize
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from reports.stats import (
    Pool,
    Spread,
    cohens_h,
    discordant,
    holm,
    image_variance,
    mcnemar,
    newcombe,
    paired_bootstrap,
    pareto,
    pool_seeds,
    ratio_of_medians,
    seed_image_interval,
    seed_image_test,
    spread,
    superiority,
    welch,
    wilson,
)


@given(st.integers(1, 20000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_is_scipys(counts):
    correct, total = counts
    expected = binomtest(correct, total).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(correct, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_is_exact_at_the_ends_and_knows_nothing_without_images():
    assert wilson(0, 64)[0] == 0.0
    assert wilson(64, 64)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_takes_a_mean_over_seeds():
    """Three seeds with 30, 31 and 33 of 64: the interval of 31.33 of 64 lies between those of 31 and of 32."""
    lo, hi = wilson((30 + 31 + 33) / 3, 64)
    assert wilson(31, 64)[0] < lo < wilson(32, 64)[0]
    assert wilson(31, 64)[1] < hi < wilson(32, 64)[1]
    assert (hi - lo) / 2 == pytest.approx(0.119, abs=1e-3)  # as wide as one seed's, not a third of its variance


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_pareto_is_its_definition(points):
    def beats(a, b):
        return all(x >= y for x, y in zip(a, b, strict=True)) and a != b

    assert pareto(points).tolist() == [not any(beats(other, own) for other in points) for own in points]


def test_pareto_keeps_twins_and_drops_gaps():
    assert pareto([(1, 2), (1, 2), (np.nan, 9), (0, 2)]).tolist() == [True, True, False, False]
    assert pareto([(1, 2), (None, 9)]).tolist() == [True, False]
    assert pareto(np.empty((0, 2))).tolist() == []


@pytest.mark.parametrize(
    ("total", "half", "half_at_30"), [(200, 6.9, 6.3), (1000, 3.1, 2.8), (2000, 2.2, 2.0), (10_000, 0.98, 0.90)]
)
def test_half_widths_of_the_protocol(total, half, half_at_30):
    """Protocol 5.1, in points."""
    for share, expected in ((0.5, half), (0.3, half_at_30)):
        lo, hi = wilson(share * total, total)
        assert 50 * (hi - lo) == pytest.approx(expected, abs=0.005 if total == 10_000 else 0.05)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_that_of_statsmodels_and_scipy(b, c):
    assert mcnemar(b, c) == mcnemar(c, b)
    assert mcnemar(b, c) == pytest.approx(statsmodels_mcnemar([[7, b], [c, 5]], exact=True).pvalue, rel=1e-9)
    if b + c:
        greater, less = (binomtest(b, b + c, 0.5, side).pvalue for side in ("greater", "less"))
        assert mcnemar(b, c, "greater") == pytest.approx(greater, rel=1e-9)
        assert mcnemar(b, c, "less") == pytest.approx(less, rel=1e-9)


def test_mcnemar_knows_nothing_where_no_image_is_discordant():
    assert mcnemar(0, 0) == mcnemar(0, 0, "greater") == mcnemar(0, 0, "less") == 1.0
    assert mcnemar(5, 0) == 2 * 0.5**5
    assert mcnemar(5, 0, "greater") == 0.5**5


@pytest.mark.parametrize(
    ("total", "share", "points"),
    [
        (1000, 0.02, (1.0, 1.6, 2.0)),
        (1000, 0.05, (1.4, 2.4, 3.2)),
        (1000, 0.10, (1.8, 3.2, 4.4)),
        (10_000, 0.02, (0.26, 0.46, 0.62)),
        (10_000, 0.05, (0.38, 0.72, 0.98)),
        (10_000, 0.10, (0.54, 1.0, 1.36)),
    ],
)
def test_smallest_differences_of_the_protocol(total, share, points):
    """Protocol 5.2: the smallest |b - c| / n that reaches .05, .001 and 1e-5, one-sided."""
    discordant_images = round(share * total)
    for level, expected in zip((0.05, 1e-3, 1e-5), points, strict=True):
        more = range(math.ceil(discordant_images / 2), discordant_images + 1)
        b = next(b for b in more if mcnemar(b, discordant_images - b, "greater") <= level)
        assert 100 * (2 * b - discordant_images) / total == pytest.approx(expected, abs=1e-9)


def test_discordant_counts_each_side():
    assert discordant([1, 1, 0, 0, 1], [1, 0, 1, 0, 0]) == (2, 1)
    assert discordant(np.array([1.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])) == (2, 1)  # as pandas reads a gappy column


def test_paired_bootstrap_is_drawing_images_with_replacement():
    rng = np.random.default_rng(1)
    first, second = rng.random((4, 200)).round(), rng.random((4, 200)).round()
    q_first, q_second = first.mean(axis=0), second.mean(axis=0)  # any paired numbers, such as means over seeds
    for a, b in ((first[0], second[0]), (q_first, q_second)):
        slow = (a - b)[rng.integers(200, size=(20_000, 200))].mean(axis=1)
        assert paired_bootstrap(a, b) == pytest.approx(np.quantile(slow, (0.025, 0.975)), abs=0.006)
    assert paired_bootstrap(first[0], second[0]) == paired_bootstrap(first[0], second[0])
    assert paired_bootstrap(first[0], second[0]) != paired_bootstrap(first[0], second[0], seed=1)


def test_paired_bootstrap_is_normal_for_many_images_and_a_point_for_equal_ones():
    rng = np.random.default_rng(2)
    a, b = rng.random(10_000) < 0.40, rng.random(10_000) < 0.37
    difference, half = a.mean() - b.mean(), 1.96 * math.sqrt((0.4 * 0.6 + 0.37 * 0.63) / 10_000)
    assert paired_bootstrap(a, b) == pytest.approx((difference - half, difference + half), abs=0.0008)
    assert paired_bootstrap(a, a) == (0.0, 0.0)


def test_ratio_of_medians():
    a, b = np.array([10.0, 11.0, 12.0, 13.0, 40.0]), np.array([5.0, 6.0, 6.0, 6.0, 7.0])
    ratio, lo, hi = ratio_of_medians(a, b)
    assert ratio == 2.0
    assert a.min() / b.max() <= lo < ratio < hi <= a.max() / b.min()
    assert ratio_of_medians([3.0], [2.0]) == (1.5, 1.5, 1.5)
    # many runs: log-normal times with sd .1 and true ratio 1.2; the sd of a log median is 1.2533 * .1 / sqrt(n)
    rng = np.random.default_rng(3)
    a, b = np.exp(rng.normal(np.log(1.2), 0.1, 400)), np.exp(rng.normal(0, 0.1, 400))
    ratio, lo, hi = ratio_of_medians(a, b)
    assert math.log(hi / lo) / 2 == pytest.approx(1.96 * 1.2533 * 0.1 * math.sqrt(2 / 400), rel=0.25)
    assert lo < 1.2 < hi


@pytest.mark.parametrize("tests", [1, 2, 7, 28])
def test_holm_is_that_of_statsmodels(tests):
    p = np.random.default_rng(tests).random(tests).round(2) ** 3  # some equal, some small
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)


def test_holm_of_nothing():
    assert holm([]).tolist() == []


def test_superiority_is_the_share_of_pairs_won():
    assert superiority([1, 2, 3], [0, 0]) == 1.0
    assert superiority([1, 1], [1, 1, 1]) == 0.5
    assert superiority([3, 1], [2, 0, 4]) == 0.5  # wins 3>2, 3>0, 1>0 of six
    assert superiority([1], [2, 2]) == 0.0


# ---------------------------------------------------------------- seeds and images (protocol 5.3)

A = np.array([[1, 1, 0, 0], [1, 0, 0, 0]])
B = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])


def test_spread_by_hand():
    a = spread(A)
    assert (a.seeds, a.per_image.tolist()) == (2, [1, 0.5, 0, 0])
    assert a.between_seeds == pytest.approx(0.03125)  # of .5 and .25
    assert a.within_image == pytest.approx(0.125)  # .5 at the second image, 0 at the three others


def test_the_standard_error_by_hand():
    """s^2 = .03125; d = 0, -.5, -1, -.5 has variance 1/6, of which (w_A + w_B)/S = 1/8 belongs to the seeds; so
    SE^2 = 2 s^2 / 2 + (1/6 - 1/8) / 4 = 1/24, t = .5 sqrt 24, and with 2 degrees of freedom p = 1 - t / sqrt(2 + t^2).
    """
    spreads = {"a": spread(A), "b": spread(B)}
    assert image_variance(spreads["a"], spreads["b"]) == pytest.approx(1 / 24)
    pool = pool_seeds(spreads)
    assert (pool.methods, pool.freedom) == ({"a", "b"}, 2)
    assert pool.variance == pytest.approx(0.03125)
    se, p = seed_image_test("a", "b", spreads, pool)
    assert se == pytest.approx(24**-0.5)
    assert p == pytest.approx(1 - 0.75**0.5)


def test_spread_is_numpys_variance_and_needs_two_seeds():
    outcomes = np.random.default_rng(4).integers(2, size=(7, 50))
    found = spread(outcomes)
    assert found.within_image == pytest.approx(outcomes.var(axis=0, ddof=1).mean())
    assert found.between_seeds == pytest.approx(outcomes.mean(axis=1).var(ddof=1))
    with pytest.raises(ValueError, match="expected at least 2 seeds, got 1"):
        spread(outcomes[:1])


def test_the_parts_are_unbiased():
    """Each image's chance p_i known: w -> mean p (1 - p), s^2 -> w / n, Var_i of the difference -> Var(p_A - p_B)."""
    rng = np.random.default_rng(5)
    p_a, p_b = rng.random(400), rng.random(400)
    drawn = [
        (spread(rng.random((3, 400)) < p_a), spread(rng.random((5, 400)) < p_b)) for _ in range(400)
    ]  # 3 and 5 seeds
    w = (p_a * (1 - p_a)).mean()
    assert np.mean([a.within_image for a, _ in drawn]) == pytest.approx(w, rel=0.01)
    assert np.mean([a.between_seeds for a, _ in drawn]) == pytest.approx(w / 400, rel=0.15)
    assert np.mean([image_variance(a, b) for a, b in drawn]) == pytest.approx((p_a - p_b).var(ddof=1), rel=0.02)


def wheel(counts, images=20):
    """Outcomes (S, images) with these numbers of ones, dealt in turn: every image gets as many, so no image differs."""
    outcomes, place = np.zeros((len(counts), images), dtype=int), 0
    for row, count in zip(outcomes, counts, strict=True):
        row[(place + np.arange(count)) % images] = 1
        place += count
    assert np.ptp(outcomes.sum(axis=0)) == 0
    return outcomes


@pytest.mark.parametrize(("inside", "equal_var"), [({"a", "b"}, True), (set(), False), ({"a"}, False)])
@pytest.mark.parametrize("second", [[8, 7, 10, 9, 6], [2, 18, 7, 13], [19, 5, 0, 12, 3, 1]])
def test_without_image_variance_it_is_the_t_test_or_welchs_of_scipy(inside, equal_var, second):
    first = [13, 11, 12, 14, 10]
    spreads = {"a": spread(wheel(first)), "b": spread(wheel(second))}
    pool = pool_seeds(spreads)
    pool = Pool(frozenset(inside), pool.variance, pool.freedom)
    expected = ttest_ind(first, second, equal_var=equal_var)
    interval = expected.confidence_interval(0.95)
    assert image_variance(spreads["a"], spreads["b"]) == 0.0
    assert seed_image_test("a", "b", spreads, pool)[1] == pytest.approx(expected.pvalue, rel=1e-9)
    found = seed_image_interval("a", "b", spreads, pool)  # of accuracies: the counts are of 20 images
    assert found == pytest.approx((interval.low / 20, interval.high / 20), rel=1e-9)


def test_a_method_with_three_times_the_median_sd_leaves_the_pool():
    def of(sd, seeds=5):
        return Spread(seeds, np.zeros(4), sd * sd, 0.0)

    quiet = {"a": of(0.01), "b": of(0.01, seeds=9), "c": of(0.01)}
    assert pool_seeds(quiet | {"d": of(0.0299)}).methods == {"a", "b", "c", "d"}
    pool = pool_seeds(quiet | {"d": of(0.0301)})
    assert (pool.methods, pool.freedom) == ({"a", "b", "c"}, 4 + 8 + 4)
    assert pool.variance == pytest.approx(1e-4)
    weighted = pool_seeds({"a": of(0.01), "b": of(0.02, seeds=9)})
    assert weighted.variance == pytest.approx((4 * 1e-4 + 8 * 4e-4) / 12)
    assert pool_seeds({}).freedom == 0


def test_without_any_variance_the_sign_test_over_images_is_left():
    ones, zeros = np.ones((5, 8), dtype=int), np.zeros((5, 8), dtype=int)
    spreads = {"a": spread(ones), "b": spread(zeros), "c": spread(zeros)}
    pool = pool_seeds(spreads)
    assert seed_image_test("a", "b", spreads, pool) == (0.0, mcnemar(8, 0))
    assert seed_image_test("b", "c", spreads, pool) == (0.0, 1.0)
    alone = {name: spread(outcomes[:, :1]) for name, outcomes in (("a", ones), ("b", zeros))}
    assert seed_image_test("a", "b", alone, pool_seeds(alone)) == (math.inf, 1.0)  # one image says nothing


@pytest.mark.parametrize("counts", [(56, 70, 48, 80), (9, 10, 3, 10), (10, 10, 0, 20), (5, 56, 0, 29)])
def test_newcombe_is_statsmodels(counts):
    k1, n1, k2, n2 = counts
    expected = confint_proportions_2indep(k1, n1, k2, n2, method="newcomb", compare="diff")
    assert newcombe((k1, k2), (n1, n2)) == pytest.approx(expected, abs=1e-9)


@given(st.floats(0, 1), st.floats(0, 1))
def test_cohens_h_is_statsmodels_and_changes_its_sign_with_the_order(first, second):
    assert cohens_h(first, second) == pytest.approx(proportion_effectsize(first, second), abs=1e-12)
    assert cohens_h(first, second) == -cohens_h(second, first)


def test_welch_is_statsmodels():
    a, b = [0.61, 0.63, 0.58, 0.66], [0.55, 0.57, 0.52]
    means = CompareMeans(DescrStatsW(a), DescrStatsW(b))
    expected = (*means.tconfint_diff(usevar="unequal"), means.ttest_ind(usevar="unequal")[1])
    assert welch(a, b) == pytest.approx(expected, rel=1e-9)


def test_welch_is_silent_where_nothing_varies():
    assert welch([0.5, 0.5], [0.6, 0.6]) is None
    assert welch([0.5, 0.5], [0.6, 0.7])[2] < 1
