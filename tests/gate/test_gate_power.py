"""What the gate can see: power figures against simulation and against the promise."""

import numpy as np
import pytest
from scipy.stats import binomtest

from reports.power import LEVEL_FIXED, LEVEL_RETRAINED, mcnemar_power, smallest_drop, smallest_fall, t_test
from reports.stats import mcnemar

METHODS = 2  # that the project's own baseline has weights of


def test_the_power_is_what_a_simulation_finds() -> None:
    generator = np.random.default_rng(0)
    draws = generator.multinomial(1000, [0.04, 0.01, 0.95], size=4000)
    caught = np.mean([mcnemar(b, c, "greater") < LEVEL_FIXED / METHODS for b, c, _ in draws])
    assert mcnemar_power(1000, 0.05, 0.03, LEVEL_FIXED / METHODS) == pytest.approx(caught, abs=0.02)  # 3.5 sd


def test_mcnemars_p_is_that_of_the_binomial_test() -> None:
    assert mcnemar(40, 10, "greater") == pytest.approx(binomtest(40, 50, alternative="greater").pvalue, rel=1e-9)


def test_three_points_at_five_percent_discordance_are_caught() -> None:
    """75 % of first runs and 98 % within three, also where the first look and the repeat were independent."""
    first = mcnemar_power(1000, 0.05, 0.03, LEVEL_FIXED / METHODS)
    assert first == pytest.approx(0.8414, abs=1e-4)
    assert 1 - (1 - first) ** 3 > 0.98
    both = first * mcnemar_power(1000, 0.05, 0.03, LEVEL_FIXED)  # only what alarmed is in the repeat's family
    assert both == pytest.approx(0.746, abs=1e-3)
    assert 1 - (1 - both) ** 3 > 0.98


def test_without_any_change_the_chance_is_below_the_level() -> None:
    assert mcnemar_power(1000, 0.05, 0.0, 0.001) < 0.001


def test_the_smallest_drop_is_where_the_power_begins() -> None:
    drop = smallest_drop(1000, 0.0005)
    assert mcnemar_power(1000, 0.05, drop, 0.0005) >= 0.75 > mcnemar_power(1000, 0.05, drop - 0.001, 0.0005)
    assert 0.02 < drop < 0.03
    assert smallest_drop(20, 0.0005) == 1.0  # no drop shows on 20 images


def test_the_smallest_fall_is_seen_as_often_as_it_says() -> None:
    """2 points at a seed sd of .5 are far above it; simulated with the sd that the baseline has."""
    before = list(np.random.default_rng(1).normal(50, 0.5, 12))
    sd = float(np.std(before, ddof=1))
    fall = smallest_fall(before, 3, 8, 0.0)
    assert fall < 2.0
    generator = np.random.default_rng(2)
    caught = np.mean(
        [
            t_test(generator.normal(50, sd, 12), generator.normal(50 - fall, sd, 3), 0.0).fall < LEVEL_RETRAINED / 8
            for _ in range(2000)
        ]
    )
    assert caught == pytest.approx(0.75, abs=0.06)  # the normal approximation of a shifted t


def test_a_sample_without_spread_has_the_least_sd() -> None:
    found = t_test([50.0] * 12, [49.0] * 3, 0.5)
    assert found.error == pytest.approx(0.5 * np.sqrt(1 / 12 + 1 / 3))
    assert found.difference == -1
    assert found.fall == pytest.approx(1 - found.rise)
