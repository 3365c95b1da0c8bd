"""Wilson against scipy and at its ends, the Pareto front against a slow definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from reports.stats import pareto, wilson


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
    assert pareto(np.empty((0, 2))).tolist() == []
