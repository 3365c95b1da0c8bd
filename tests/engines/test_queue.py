"""The schedule: every job once, in an order that compares all methods early, and again what was lost."""

import random
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.engines.queue import Job, Schedule


def jobs(methods: int, seeds: int) -> list[Job]:
    """Method i takes i seconds."""
    return [Job(f"m{method}-s{seed}", seed, method) for method in range(methods) for seed in range(seeds)]


def test_seeds_are_interleaved_over_methods_and_the_longest_comes_first() -> None:
    schedule = Schedule(jobs(3, 2), in_flight=6)
    assert [schedule.next() for _ in range(7)] == ["m2-s0", "m1-s0", "m0-s0", "m2-s1", "m1-s1", "m0-s1", None]


def test_at_most_so_many_are_out() -> None:
    schedule = Schedule(jobs(3, 1), in_flight=2)
    assert (schedule.next(), schedule.next(), schedule.next()) == ("m2-s0", "m1-s0", None)
    schedule.end("m2-s0")
    assert schedule.next() == "m0-s0"


def test_a_lost_job_goes_first_and_is_given_up_after_its_tries() -> None:
    schedule = Schedule(jobs(2, 2), in_flight=1, tries=2)
    assert schedule.next() == "m1-s0"
    assert schedule.lose("m1-s0", reached=5)
    assert schedule.next() == "m1-s0"
    assert not schedule.lose("m1-s0", reached=5)
    assert (schedule.next(), schedule.given_up, schedule.waiting) == ("m0-s0", {"m1-s0"}, 2)


def losses(schedule: Schedule, places: Iterable[float]) -> int:
    """How often the one job is lost at these places, one after the other, until it is given up or there are no more."""
    for count, place in enumerate(places, start=1):
        name = schedule.next()
        assert name is not None
        if not schedule.lose(name, place):
            return count
    return count


@pytest.mark.parametrize(
    ("places", "given_up_after"),
    [
        ([0] * 30, 10),  # it dies at once, each time
        ([7] * 30, 10),  # it dies each time at the same place, to which it came in its first try
        ([0] * 9 + [7] * 30, 19),  # or to which it came late
        ([7, 3] * 30, 10),  # what was kept before and is lost is no progress when it is made again
        ([7] * 9 + [8] + [7] * 30, 19),
        (range(30), None),  # it moves on between any two
        ([place // 9 for place in range(270)], None),  # or between the first and the last of nine
    ],
)
def test_ten_losses_at_one_place_give_a_job_up_and_any_number_on_the_way_do_not(
    places: Sequence[float], given_up_after: int | None
) -> None:
    schedule = Schedule(jobs(1, 1), in_flight=1)
    assert losses(schedule, places) == given_up_after or len(places)
    assert schedule.given_up == (set() if given_up_after is None else {"m0-s0"})
    assert schedule.over is (given_up_after is not None)


def test_each_job_has_its_own_tries() -> None:
    schedule = Schedule(jobs(2, 1), in_flight=2, tries=2)
    assert (schedule.next(), schedule.next()) == ("m1-s0", "m0-s0")
    assert (schedule.lose("m1-s0", 4), schedule.lose("m0-s0", 0)) == (True, True)
    assert (schedule.next(), schedule.next()) == ("m1-s0", "m0-s0")
    assert (schedule.lose("m1-s0", 4), schedule.lose("m0-s0", 1)) == (False, True)


def test_what_does_not_run_cannot_end() -> None:
    schedule = Schedule(jobs(1, 1), in_flight=1)
    with pytest.raises(KeyError):
        schedule.end("m0-s0")
    with pytest.raises(KeyError):
        schedule.lose("m0-s0", 1)
    assert schedule.waiting == 1


@pytest.mark.parametrize(("count", "in_flight", "tries"), [(2, 0, 1), (2, 1, 0)])
def test_nonsense_is_refused(count: int, in_flight: int, tries: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Schedule(jobs(count, 1), in_flight, tries)
    with pytest.raises(ValueError, match="every job once"):
        Schedule([Job("a", 0), Job("a", 1)], 1)


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 9), st.integers(1, 4), st.randoms(use_true_random=False))
def test_whatever_is_lost_no_job_is_doubled_and_none_forgotten(
    methods: int, seeds: int, in_flight: int, tries: int, chance: random.Random
) -> None:
    everything = jobs(methods, seeds)
    schedule = Schedule(everything, in_flight, tries)
    starts = dict.fromkeys(schedule.jobs, 0)
    reached = dict.fromkeys(schedule.jobs, 0)
    moved = dict.fromkeys(schedule.jobs, 0)  # how often it was further than before when it was lost
    while not schedule.over:
        while (name := schedule.next()) is not None:
            starts[name] += 1
        assert 1 <= len(schedule.running) <= in_flight
        chosen = chance.choice(sorted(schedule.running))
        if chance.random() < 0.5:
            further = chance.random() < 0.3
            reached[chosen] += further
            moved[chosen] += further
            schedule.lose(chosen, reached[chosen])
        else:
            schedule.end(chosen)
    assert schedule.ended | schedule.given_up == set(schedule.jobs)
    assert not schedule.ended & schedule.given_up
    assert all(1 <= starts[name] <= tries * (1 + moved[name]) for name in starts)
    assert all(starts[name] >= tries for name in schedule.given_up)
