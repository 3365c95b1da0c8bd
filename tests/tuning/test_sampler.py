"""The next settings to try: always the same for the same trials, inside their ranges, and better than chance."""

import math

import pytest
from tuning_fixtures import SPACE, trial

from bench.ranges import Range, between, log_range
from bench.tuned import Trial
from bench.tuning.sampler import importance, next_settings
from bench.tuning.space import Ground

GROUND = Ground(SPACE, {"lr": 0.3, "temperature": 0.07})


def tried(ground, count, worth, seed=0, objective="robust"):
    """So many trials, whose settings are worth what ``worth`` says, in images of 1,000."""
    trials: list[Trial] = []
    for _ in range(count):
        settings = next_settings(ground, trials, objective, seed)
        robust = round(1000 * worth(settings))
        trials.append(trial(0).model_copy(update={"settings": settings, "robust": robust, "clean": 500, "total": 1000}))
    return trials


def hill(settings):
    """Worth most at lr 1.5, whatever the temperature is."""
    return max(0.0, 1 - abs(math.log(settings["lr"] / 1.5)))


def test_the_first_trial_is_as_published():
    assert next_settings(GROUND, [], "robust", seed=5) == GROUND.published


def test_a_search_is_the_same_again_and_a_longer_one_begins_as_a_shorter_one():
    whole = tried(GROUND, 9, hill)
    assert [t.settings for t in tried(GROUND, 6, hill)] == [t.settings for t in whole[:6]]
    assert next_settings(GROUND, whole[:7], "robust", seed=0) == whole[7].settings  # after a kill, from the records
    assert tried(GROUND, 3, hill, seed=1)[1].settings != whole[1].settings


@pytest.mark.parametrize("objective", ["robust", "clean", "pareto"])
def test_settings_keep_to_their_ranges_and_kinds(objective):
    space = {"lr": log_range(0.03, 3.0), "steps": between(1, 7), "pair": Range(choices=("x1", "x2"))}
    ground = Ground(space, {"lr": 0.3, "steps": 5, "pair": "x1"}, whole=frozenset({"steps"}))
    for number, found in enumerate(tried(ground, 10, lambda s: s["lr"] / 3, objective=objective)):
        assert all(value in space[name] for name, value in found.settings.items())
        assert isinstance(found.settings["steps"], int)
        assert number == 0 or float(f"{found.settings['lr']:.4g}") == found.settings["lr"]  # four digits, to be copied


def test_the_search_learns_from_its_trials():
    """Within 24 trials it comes nearer to the best value than half of its first five, which are drawn at random."""
    values = [hill(t.settings) for t in tried(GROUND, 24, hill)]
    assert max(values) > 0.9
    assert sum(values[12:]) / 12 > sum(values[:5]) / 5


def test_the_setting_that_decides_is_the_one_that_matters():
    shares = importance(GROUND, tried(GROUND, 24, hill), "robust")
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    assert shares["lr"] > 0.8


def test_nothing_is_said_of_few_trials_or_of_equal_ones():
    assert importance(GROUND, tried(GROUND, 6, hill), "robust") == {}
    assert importance(GROUND, tried(GROUND, 14, lambda settings: 0.5), "robust") == {}
    one = iter([0.9, *[0.5] * 13])
    assert importance(GROUND, tried(GROUND, 14, lambda settings: next(one)), "robust") == {}  # nothing to tell from
