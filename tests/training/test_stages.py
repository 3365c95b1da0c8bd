"""Stages share one clock: where each begins and ends, in updates, epochs and seconds, and what an update has cost."""

import pytest
from tiny_fixtures import build_tiny

from bench.spec import Budget, UsageError
from bench.training.clock import Clock
from bench.training.course import Course
from bench.training.stages import Cost, boundaries, check_stages, flops_per_image, per_image
from methods.common.base import Stage

HALVES = [Stage(0.25, "first"), Stage(0.75, "second")]
COURSES = [Course(100, 10, 1), Course(100, 25, 3)]  # 10 updates an epoch, and 4 batches of 3 replays


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("40up", ([0.25, 1.0], 40)),
        ("60s", ([0.25, 1.0], None)),
        ("8ep", ([20 / 92, 1.0], 92)),  # 2 epochs of 10 updates, then 6 of 12
    ],
)
def test_boundaries(budget, expected):
    assert boundaries(HALVES, COURSES, Budget.parse(budget)) == expected


def test_one_stage_is_the_whole_budget():
    assert boundaries([Stage()], COURSES[:1], Budget.parse("0.55ep")) == ([1.0], 6)


@pytest.mark.parametrize("shares", [[], [0.5], [0.5, 0.6], [1.0, 0.0], [-0.5, 1.5]])
def test_shares_that_are_no_whole_are_refused(shares):
    with pytest.raises(UsageError, match="expected stages whose shares of the budget are above 0 and sum to 1"):
        boundaries([Stage(share) for share in shares], COURSES, Budget.parse("9up"))


@pytest.mark.parametrize(("method", "budget", "least"), [("advcl", "20up", 24), ("deacl", "2up", 3)])
def test_a_budget_without_an_update_for_a_stage_is_refused(method, budget, least):
    chosen = build_tiny(method)
    with pytest.raises(UsageError, match=rf"{budget} leaves no update for stage \w+, .* give at least {least} updates"):
        check_stages(chosen, 600, Budget.parse(budget))
    for enough in (f"{least}up", "0.01ep", "1s"):
        check_stages(chosen, 600, Budget.parse(enough))


class TestClock:
    def test_in_updates_each_stage_has_its_own_progress(self):
        clock, seen = Clock(Budget.parse("8up"), 8), []
        clock.start()
        for begin, end in ((0.0, 0.25), (0.25, 1.0)):
            clock.enter(begin, end)
            while not clock.exhausted:
                seen.append((round(clock.stage_progress, 6), clock.progress))
                assert clock.tick()
        of_stages = [0, 0.5, *(round(n / 6, 6) for n in range(6))]
        assert seen == [(stage, n / 8) for n, stage in enumerate(of_stages)]

    def test_in_time_a_stage_ends_at_its_share_and_an_update_past_the_budget_is_undone(self):
        now = [0]
        clock, made = Clock(Budget.parse("10s"), None, now=lambda: now[0]), []
        clock.start()
        for begin, end in ((0.0, 0.5), (0.5, 1.0)):
            clock.enter(begin, end)
            while not clock.exhausted:
                made.append(round(clock.stage_progress, 2))
                now[0] += 2 * 10**9
                assert clock.tick()
        # after 4 s another 2 would end past the first stage's 5; the second goes on to the end of the budget
        assert made == [0.0, 0.4, 0.0, 0.2, 0.6]
        assert (clock.updates, clock.train_seconds, clock.stage_progress) == (5, 10.0, 1.0)
        now[0] += 10**9
        assert not clock.tick()


def test_what_an_image_costs_is_the_mean_over_all_that_were_shown():
    clean = Cost("a", 0, 0.0, 10, updates=30, images=10.0, passes=(20.0, 20.0, 20.0), flops=100.0)
    moved = Cost("b", 30, 1.0, 10, updates=10, images=20.0, passes=(120.0, 80.0, 40.0), flops=900.0)
    assert per_image([clean], 0) == 2
    assert [per_image([clean, moved], place) for place in range(3)] == [1800 / 500, 1400 / 500, 1000 / 500]
    assert flops_per_image([clean, moved]) == (3000 + 9000) / 500
    none = Cost("a", 0, 0.0, 10, images=10.0, passes=(20.0, 20.0, 20.0))
    assert per_image([none], 0) == 2  # as if it had made one
