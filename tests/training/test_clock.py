"""The clock under a fake now and a fake synchronize: nothing here sleeps."""

import ast
import random
import time
from pathlib import Path

import pytest

import bench.training.clock
from bench.spec import Budget
from bench.training.clock import Clock

SECONDS = 10**9


class Fake:
    """A time that moves only when told, and a device that counts how often it is waited for."""

    def __init__(self):
        self.nanoseconds, self.waits = 123 * SECONDS, 0

    def now(self):
        return self.nanoseconds

    def synchronize(self):
        self.waits += 1

    def sleep(self, seconds):
        self.nanoseconds += round(seconds * SECONDS)

    def clock(self, budget, total_updates=None, **resumed):
        clock = Clock(Budget.parse(budget), total_updates, now=self.now, synchronize=self.synchronize)
        if resumed:
            clock.go_on(**{"durations": [], "paused": {}} | resumed)
        return clock


@pytest.fixture
def fake():
    return Fake()


def spend(fake, clock, duration):
    """Updates of duration() seconds until the clock says stop; whether the last one had to be undone."""
    clock.start()
    undone = False
    while not clock.exhausted and not undone:
        fake.sleep(duration())
        undone = not clock.tick()
    clock.stop()
    return undone


class TestBudgetInTime:
    def test_is_never_exceeded_and_hardly_left(self):
        for seed in range(100):
            fake, rng = Fake(), random.Random(seed)
            update = rng.uniform(0.01, 2.0)
            budget, jitter = update * rng.uniform(2.5, 200), rng.choice([0.0, 0.02, 0.1])
            clock = fake.clock(f"{budget:.9f}s")
            spend(fake, clock, lambda: update * rng.uniform(1 - jitter, 1 + jitter))  # noqa: B023
            assert clock.updates >= 1, seed
            assert clock.train_seconds <= clock.budget.amount, seed
            assert clock.budget.amount - clock.train_seconds <= 1.5 * clock.median_update, seed

    def test_is_never_exceeded_by_wild_durations(self):
        for seed in range(100):
            fake, rng = Fake(), random.Random(seed)
            clock = fake.clock("20s")
            kept = 0.0
            clock.start()
            while not clock.exhausted:
                duration = rng.paretovariate(1.1) / 10
                fake.sleep(duration)
                if not clock.tick():
                    assert kept + duration > 20, seed
                    break
                kept += duration
            clock.stop()
            assert clock.train_seconds == pytest.approx(kept, abs=1e-6), seed
            assert clock.train_seconds <= 20, seed

    def test_equal_updates_fill_it(self, fake):
        clock = fake.clock("10s")
        assert not spend(fake, clock, lambda: 0.5)
        assert (clock.updates, clock.train_seconds, clock.progress) == (20, 10.0, 1.0)

    def test_an_update_that_ends_past_it_does_not_count(self, fake):
        clock = fake.clock("10s")
        durations = iter([1.0] * 8 + [2.5])
        assert spend(fake, clock, lambda: next(durations))
        assert (clock.updates, clock.train_seconds, clock.median_update) == (8, 8.0, 1.0)
        assert list(clock.durations) == [1.0] * 8
        assert clock.seconds == 10.5  # it was spent all the same
        assert clock.progress == 1.0

    def test_a_first_update_longer_than_it_leaves_nothing(self, fake):
        clock = fake.clock("1s")
        assert spend(fake, clock, lambda: 5.0)
        assert (clock.updates, clock.train_seconds, clock.median_update) == (0, 0.0, 0.0)

    def test_one_slow_update_does_not_end_it_early(self, fake):
        """The reserve is at most 1.5 medians, however long the longest update was."""
        clock = fake.clock("100s")
        durations = iter([1.0, 30.0, 1.0, 30.0])
        spend(fake, clock, lambda: next(durations, 1.0))
        assert clock.train_seconds >= 98.5

    def test_progress_and_seconds_left_follow_the_time(self, fake):
        clock = fake.clock("10s")
        clock.start()
        seen = []
        for _ in range(4):
            fake.sleep(2.5)
            seen.append((clock.progress, clock.seconds_left))
            clock.tick()
        assert seen == [(0.25, 7.5), (0.5, 5.0), (0.75, 2.5), (1.0, 0.0)]
        fake.sleep(1)
        assert (clock.progress, clock.seconds_left) == (1.0, 0.0)


class TestBudgetInUpdates:
    @pytest.mark.parametrize("budget", ["7up", "0.5ep"])
    def test_ends_after_exactly_so_many_however_long_they_take(self, fake, budget):
        clock = fake.clock(budget, 7)
        assert not spend(fake, clock, lambda: 1000.0)
        assert (clock.updates, clock.progress, clock.exhausted) == (7, 1.0, True)

    def test_progress_follows_the_updates_and_not_the_time(self, fake):
        clock = fake.clock("4up", 4)
        clock.start()
        seen = []
        for duration in (1, 100, 1, 1):
            seen.append(clock.progress)
            fake.sleep(duration)
            assert clock.progress == seen[-1]
            clock.tick()
        assert seen == [0.0, 0.25, 0.5, 0.75]
        assert clock.progress == 1.0

    def test_seconds_left_are_updates_left_times_the_mean(self, fake):
        """The first replay of a batch waits for its views: of 9, 2, 2 the median would promise half of the time."""
        clock = fake.clock("9up", 9)
        assert clock.seconds_left == 0.0  # nothing is known yet
        clock.start()
        for duration in (9, 2, 2):
            fake.sleep(duration)
            clock.tick()
        assert clock.seconds_left == pytest.approx(26)

    def test_a_total_belongs_to_them_alone(self, fake):
        with pytest.raises(ValueError, match="expected a number of updates"):
            fake.clock("10s", 7)
        with pytest.raises(ValueError, match="expected a number of updates"):
            fake.clock("7up", None)


class TestResume:
    def test_restores_a_duration(self, fake):
        clock = fake.clock("10s", seconds=6.0, updates=3, durations=[2.0, 2.0, 2.0])
        fake.sleep(10**6)  # the machine was off
        assert (clock.seconds, clock.train_seconds, clock.progress) == (6.0, 6.0, 0.6)
        spend(fake, clock, lambda: 2.0)
        assert (clock.updates, clock.train_seconds) == (5, 10.0)

    @pytest.mark.parametrize("stop_after", [1, 7, 19])
    def test_goes_on_as_if_nothing_had_happened(self, stop_after):
        durations = [0.5 + 0.01 * (n % 5) for n in range(100)]

        def run(clock, fake, updates):
            clock.start()
            while not clock.exhausted and clock.updates < updates:
                fake.sleep(durations[clock.updates])
                clock.tick()
            clock.stop()
            return clock

        whole = run((fake := Fake()).clock("12s"), fake, 10**6)
        first = run((fake := Fake()).clock("12s"), fake, stop_after)
        fake = Fake()
        rest = fake.clock("12s", seconds=first.train_seconds, updates=first.updates, durations=list(first.durations))
        run(rest, fake, 10**6)
        assert rest.updates == whole.updates
        assert rest.train_seconds == pytest.approx(whole.train_seconds, abs=1e-6)

    def test_a_finished_run_has_nothing_to_do(self, fake):
        assert fake.clock("10s", seconds=9.5, updates=9, durations=[1.0] * 9).exhausted
        assert fake.clock("9up", 9, seconds=9.5, updates=9).exhausted

    def test_restores_what_was_off_the_clock(self, fake):
        clock = fake.clock("10s", seconds=1.0, updates=1, durations=[1.0], paused={"checkpoint": 5.0})
        clock.start()
        with clock.pause("checkpoint"):
            fake.sleep(2)
        assert clock.paused == {"checkpoint": 7.0}

    def test_keeps_a_copy_of_what_was_off_the_clock(self, fake):
        paused = {"checkpoint": 5.0}
        clock = fake.clock("10s", seconds=1.0, updates=1, paused=paused)
        clock.start()
        with clock.pause("checkpoint"):
            fake.sleep(2)
        assert paused == {"checkpoint": 5.0}


class TestPause:
    def test_is_off_the_clock_and_logged_with_its_reason(self, fake):
        clock = fake.clock("10s")
        clock.start()
        fake.sleep(1)
        for seconds in (50, 25):
            with clock.pause("checkpoint"):
                fake.sleep(seconds)
                assert clock.seconds == 1.0
        with clock.pause("evaluation"):
            fake.sleep(7)
        fake.sleep(1)
        assert clock.tick()
        assert clock.paused == {"checkpoint": 75.0, "evaluation": 7.0}
        assert (clock.train_seconds, list(clock.durations)) == (2.0, [2.0])

    def test_ends_also_with_an_error(self, fake):
        clock = fake.clock("10s")
        clock.start()

        def fail():
            with clock.pause("checkpoint"):
                fake.sleep(5)
                raise OSError("full")

        with pytest.raises(OSError, match="full"):
            fail()
        fake.sleep(1)
        assert (clock.seconds, clock.paused) == (1.0, {"checkpoint": 5.0})


class TestWaitsForTheDevice:
    def test_at_the_borders_only(self, fake):
        clock = fake.clock("100s")
        assert fake.waits == 0
        clock.start()
        assert fake.waits == 1
        for _ in range(10):
            fake.sleep(1)
            clock.tick()
            _ = clock.exhausted, clock.progress, clock.seconds, clock.seconds_left, clock.median_update
        assert fake.waits == 1
        with clock.pause("checkpoint"):
            assert fake.waits == 2
        assert fake.waits == 3
        clock.stop()
        assert fake.waits == 4

    def test_before_it_reads_the_time(self, fake):
        """What the device still does when the clock is stopped has to be paid for."""
        clock = Clock(Budget.parse("10s"), None, now=fake.now, synchronize=lambda: fake.sleep(3))
        clock.start()
        assert clock.seconds == 0.0
        clock.stop()
        assert clock.seconds == 3.0


def test_wall_clock_and_other_clocks_are_never_read(fake, monkeypatch):
    def forbidden(*_):
        raise AssertionError("read another clock than the injected one")

    with monkeypatch.context() as patch:
        for name in ("time", "time_ns", "perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns"):
            patch.setattr(time, name, forbidden)
        clock = fake.clock("10s")
        spend(fake, clock, lambda: 1.0)
        with clock.pause("checkpoint"):
            fake.sleep(1)
    assert clock.updates == 10


def test_the_default_clock_is_monotonic():
    clock = Clock(Budget.parse("1h"), None)
    assert clock._now is time.monotonic_ns
    clock.start()
    first, second = clock.seconds, clock.seconds
    assert 0 <= first <= second < 3600


@pytest.mark.parametrize(
    "file",
    [
        *("training/train", "training/clock", "training/state", "runs/execute"),
        *("evaluation/evaluate", "evaluation/search", "audit/audit"),
    ],
)
def test_the_time_of_day_measures_nothing(file):
    """It jumps (promise P11): only the monotonic clock and the performance counter are asked."""
    tree = ast.parse((Path(bench.training.clock.__file__).parents[1] / f"{file}.py").read_text())
    asked = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_named(node.value, "time")}
    imported = [
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", ""), *(alias.name for alias in node.names)]
    ]
    assert asked <= {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"}
    assert "datetime" not in imported
    assert not any(isinstance(node, ast.ImportFrom) and node.module == "time" for node in ast.walk(tree))


def is_named(node, name):
    return isinstance(node, ast.Name) and node.id == name
