"""What follows from the trials of a search: the best, the curve, what lies at an end; and the ranges themselves."""

import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tuning_fixtures import search, trial, tuning

from bench.ranges import Range, around, between, log_range
from bench.spec import UsageError
from bench.storage.files import read, save
from bench.tuned import Trial, Tuning, best_so_far, expected_best


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_the_expected_best_is_the_mean_over_all_choices(values):
    for k, expected in enumerate(expected_best(values), start=1):
        mean = statistics.fmean(max(chosen) for chosen in itertools.combinations(values, k))
        assert expected == pytest.approx(mean, abs=1e-12)


def test_the_best_so_far_never_falls():
    assert best_so_far([0.2, 0.5, 0.1, 0.6]) == [0.2, 0.5, 0.5, 0.6]


def test_of_equal_trials_the_published_one_is_best():
    found = tuning({"simclr": search(trial(40), trial(40, lr=1.0), trial(39))})
    assert found.best("simclr") == 0
    assert found.tuned_settings("simclr") == {}


@pytest.mark.parametrize(("objective", "best"), [("robust", 1), ("clean", 2), ("pareto", 3)])
def test_what_is_maximized_decides_which_is_best(objective, best):
    trials = trial(40, clean=90), trial(60, clean=50), trial(10, clean=99), trial(55, clean=80)
    found = tuning({"simclr": search(*trials)}, objective=objective)
    assert found.best("simclr") == best


def test_a_training_that_diverged_is_worth_nothing():
    lost = trial(0, clean=0, status="diverged").model_copy(update={"total": 1})
    assert tuning({"simclr": search(trial(1), lost)}).values("simclr") == [0.01, 0.0]


def test_a_best_value_at_an_end_of_its_range_is_named():
    found = tuning({"simclr": search(trial(1), trial(9, lr=2.9, temperature=0.3))})
    assert found.on_border("simclr") == ["lr"]


def test_a_search_is_read_as_it_was_written(tmp_path):
    found = tuning({"simclr": search(trial(1), trial(2, lr=1.0))}, trials=3)
    save(tmp_path / "tuning.json", found)
    assert read(Tuning, tmp_path / "tuning.json") == found
    assert not found.done
    assert found.with_trials({"simclr": trial(3)}).done


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"robust": 101}, "expected at most 100 correct images, got 101"),
        ({"total": 0}, "greater than 0"),
        ({"settings": {"lr": 0.3}}, "expected settings lr, temperature of trial 0"),
        ({"settings": {"lr": 9.0, "temperature": 0.1}}, "expected lr of trial 0 in its range, 0.03 to 3"),
        ({"settings": {"lr": "9", "temperature": 0.1}}, "expected lr of trial 0 in its range"),
    ],
)
def test_a_search_that_cannot_have_been(changed, message):
    with pytest.raises(ValidationError, match=message):
        search(Trial.model_validate(trial(1).model_dump() | changed))


def test_an_unknown_row():
    with pytest.raises(UsageError, match="unknown tuned row 'simclrr'; did you mean 'simclr'"):
        tuning({"simclr": search(trial(1))}).best("simclrr")


class TestRange:
    def test_a_factor_lies_about_the_published_value(self):
        bounds = around(10).about(0.3)
        assert (bounds.low, bounds.high, bounds.log) == (0.03, 3.0, True)
        assert around(10).about(-2.0).log is False

    @given(st.floats(1e-6, 1e6), st.floats(1.5, 100))
    def test_the_published_value_lies_inside_and_at_no_end(self, value, factor):
        bounds = around(factor).about(value)
        assert value in bounds
        assert not bounds.on_border(value)

    def test_a_factor_that_moves_nothing(self):
        with pytest.raises(UsageError, match=r"expected a factor that moves 0.3 in four digits, got 1.00001"):
            around(1.00001).about(0.3)

    def test_whole_numbers(self):
        bounds = around(3).about(4).whole()  # 1.333 to 12
        assert (bounds.low, bounds.high, bounds.log) == (2, 12, True)
        with pytest.raises(UsageError, match=r"several whole numbers, got 1.5 to 2.5"):
            between(1.5, 2.5).whole()

    def test_the_twentieth_at_each_end_is_the_border(self):
        assert [between(0, 1).on_border(value) for value in (0.04, 0.06, 0.94, 0.96)] == [True, False, False, True]
        assert [log_range(1, 100).on_border(value) for value in (1.2, 1.3, 79, 80)] == [True, False, False, True]
        assert not Range(choices=("a", "b")).on_border("a")

    @pytest.mark.parametrize(
        ("said", "message"),
        [
            ({}, "expected low and high, or factor, or choices"),
            ({"low": 1}, "expected low and high"),
            ({"low": 2, "high": 1}, "expected low below high, got 2 and 1"),
            ({"low": 0, "high": 1, "log": True}, "expected log beside a low above 0"),
            ({"factor": 1}, "greater than 1"),
            ({"factor": 2, "low": 1, "high": 2}, "expected low and high, or factor, or choices"),
            ({"choices": ("a",)}, "at least two choices"),
        ],
    )
    def test_ranges_that_are_none(self, said, message):
        with pytest.raises(ValidationError, match=message):
            Range(**said)
