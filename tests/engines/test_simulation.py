"""The real scheduler on a simulated cluster: 10,000 cells, 1,000 nodes, failures; nothing lost, nothing doubled."""

import itertools
import statistics
import time
import tracemalloc
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.engines.queue import Job, Schedule
from tests.simulation import FailingCluster, Rates, cells

CELLS, NODES = 10_000, 1000
STATED = Rates(worker_kills=0.02, node_losses=0.01, preemptions=0.1, driver_kills=0.2)


@pytest.fixture(scope="module", params=[(1, 0), (2, 1)], ids=["one-out", "two-out"])
def failed(request: pytest.FixtureRequest) -> FailingCluster:
    """10,000 cells to their end on 1,000 nodes of one GPU each, under STATED; one or two cells out for each GPU."""
    ahead, seed = request.param
    jobs, work = cells(CELLS)
    cluster = FailingCluster(jobs, work, NODES, 1, STATED, seed=seed, ahead=ahead)
    cluster.run()
    return cluster


class TestTenThousandCells:
    def test_no_cell_is_lost_and_none_doubled(self, failed: FailingCluster) -> None:
        assert set(failed.committed.values()) == {1}
        assert failed.schedule.given_up == set()

    def test_the_stated_failures_have_happened(self, failed: FailingCluster) -> None:
        """Within 5 standard deviations of their rates times hours; a cell that was found done is rare, and there."""
        hours, counts = failed.now / 3600, failed.counts
        for found, expected in (
            (counts.worker_kills, STATED.worker_kills * failed.counts.spent_seconds / 3600),
            (counts.node_losses, STATED.node_losses * NODES * hours),
            (counts.preemptions, STATED.preemptions * NODES * hours),
            (counts.driver_kills, STATED.driver_kills * hours),
        ):
            assert abs(found - expected) < 5 * expected**0.5, (found, expected)
        assert counts.driver_kills >= 1
        assert counts.starts > CELLS + counts.preemptions / 2
        assert counts.repeated >= 1

    def test_the_makespan_is_within_a_tenth_of_the_lower_bound(self, failed: FailingCluster) -> None:
        assert 1 <= failed.now / failed.lower_bound() <= 1.10

    def test_every_second_of_a_gpu_is_work_or_overhead_or_lost(self, failed: FailingCluster) -> None:
        """The work of all cells is done once, whatever was lost on the way."""
        counts = failed.counts
        useful = counts.spent_seconds - counts.overhead_seconds - counts.lost_seconds
        assert useful == pytest.approx(sum(failed.work.values()), rel=1e-9)
        assert counts.lost_seconds <= STATED.checkpoint * (counts.starts - CELLS)


def test_without_failures_no_start_is_repeated() -> None:
    jobs, work = cells(1000)
    cluster = FailingCluster(jobs, work, 100, 1, Rates())
    cluster.run()
    assert (cluster.counts.starts, cluster.counts.lost_seconds) == (1000, 0)
    assert 1 <= cluster.now / cluster.lower_bound() <= 1.10


class TestTheDriver:
    """What the schedule itself takes, for each cell, does not grow with the number of cells."""

    def drive(self, count: int) -> None:
        """Every cell once, a hundred out at a time, each tenth lost once."""
        schedule = Schedule(cells(count)[0], in_flight=100)
        out: deque[str] = deque()
        lost: set[str] = set()
        while not schedule.over:
            while (name := schedule.next()) is not None:
                out.append(name)
            name = out.popleft()
            if name.endswith("7") and name not in lost:
                lost.add(name)
                schedule.lose(name, 0)
            else:
                schedule.end(name)

    def bytes_per_cell(self, count: int) -> float:
        tracemalloc.start()
        try:
            self.drive(count)
            return tracemalloc.get_traced_memory()[1] / count
        finally:
            tracemalloc.stop()

    def seconds_per_cell(self, count: int) -> float:
        began = time.process_time()
        self.drive(count)
        return (time.process_time() - began) / count

    def test_memory(self) -> None:
        few, many = self.bytes_per_cell(1000), self.bytes_per_cell(10_000)
        assert many < 2000
        assert many / few < 1.25

    def test_time(self) -> None:
        """A cell costs as much among ten times as many: a driver that looks at every cell would take ten times as long.

        Fewer cells fit in the caches of a processor, which alone makes a ratio of two on some.
        """
        pairs = [(self.seconds_per_cell(1000), self.seconds_per_cell(10_000)) for _ in range(5)]
        assert min(many for _, many in pairs) < 1e-3
        assert statistics.median(many / few for few, many in pairs) < 4


class TestSmallClusters:
    """Whatever fails, and whenever."""

    @given(
        st.lists(st.floats(1, 7200), min_size=1, max_size=12),
        st.integers(1, 4),
        st.integers(1, 3),
        st.builds(
            Rates,
            worker_kills=st.sampled_from([0, 0.3, 1]),
            node_losses=st.sampled_from([0, 0.3, 1]),
            preemptions=st.sampled_from([0, 0.5, 1]),
            driver_kills=st.sampled_from([0, 0.3, 1]),
            report=st.sampled_from([0, 10, 200]),
            notice=st.sampled_from([0, 30, 3000]),
            checkpoint=st.sampled_from([60, 600]),
        ),
        st.integers(0, 10**6),
        st.integers(1, 3),
        st.integers(1, 10),
    )
    @settings(max_examples=60, deadline=None)
    def test_every_cell_is_there_once_or_was_lost_too_often(
        self, times: list[float], nodes: int, gpus: int, rates: Rates, seed: int, ahead: int, tries: int
    ) -> None:
        work = {f"m-s{place}": seconds for place, seconds in enumerate(times)}
        jobs = [Job(name, place, seconds) for place, (name, seconds) in enumerate(work.items())]
        cluster = FailingCluster(jobs, work, nodes, gpus, rates, seed, ahead, tries)
        cluster.run()
        assert set(cluster.committed.values()) <= {0, 1}
        missing = {name for name, count in cluster.committed.items() if not count}
        assert missing <= cluster.schedule.given_up
        assert not cluster.schedule.running
        if not missing:
            assert cluster.now >= cluster.lower_bound() * (1 - 1e-12)

    @given(st.lists(st.floats(1, 100), min_size=1, max_size=6), st.integers(1, 3))
    @settings(max_examples=40, deadline=None)
    def test_the_bound_is_below_the_best_order_and_list_scheduling_below_twice_the_best(
        self, times: list[float], gpus: int
    ) -> None:
        """The best over all assignments; Graham 1966: any list is within 2 - 1 / m of it."""
        rates = Rates(overhead=0, report=0)
        work = {f"m-s{place}": seconds for place, seconds in enumerate(times)}
        cluster = FailingCluster([Job(name, 0, work[name]) for name in work], work, 1, gpus, rates)
        cluster.run()
        best = min(
            max(sum(t for t, on in zip(times, chosen, strict=True) if on == gpu) for gpu in range(gpus))
            for chosen in itertools.product(range(gpus), repeat=len(times))
        )
        assert cluster.lower_bound() <= best * (1 + 1e-12)
        assert best * (1 - 1e-12) <= cluster.now <= (2 - 1 / gpus) * best * (1 + 1e-12)


class TestLosses:
    """One cell of a hundred hours on one node, which is taken away about once an hour."""

    @staticmethod
    def run(rates: Rates, schedule: type[Schedule] = Schedule) -> FailingCluster:
        jobs = [Job("m-s0", 0)]
        cluster = FailingCluster(jobs, {"m-s0": 360_000.0}, 1, 1, rates)
        cluster.schedule = schedule(jobs, 1)
        cluster.run()
        return cluster

    @pytest.mark.parametrize("rates", [Rates(preemptions=1), Rates(node_losses=1), Rates(worker_kills=1)])
    def test_while_it_moves_on_it_is_not_given_up(self, rates: Rates) -> None:
        cluster = self.run(rates)
        assert cluster.committed == {"m-s0": 1}
        assert cluster.counts.starts > 60
        assert cluster.schedule.given_up == set()

    def test_what_saves_nothing_is_given_up_after_ten(self) -> None:
        cluster = self.run(Rates(node_losses=1, checkpoint=1e9))
        assert (cluster.committed, cluster.schedule.given_up) == ({"m-s0": 0}, {"m-s0"})
        assert cluster.counts.starts == 10

    def test_one_that_does_not_see_the_progress_gives_it_up(self) -> None:
        class Blind(Schedule):
            def lose(self, name: str, reached: float) -> bool:
                return super().lose(name, 0)

        cluster = self.run(Rates(preemptions=1), Blind)
        assert (cluster.counts.starts, cluster.schedule.given_up) == (10, {"m-s0"})


class TestTheSimulationNotices:
    """A scheduler with a fault is found out."""

    def run(self, schedule: type[Schedule]) -> FailingCluster:
        jobs, work = cells(100)
        cluster = FailingCluster(jobs, work, 10, 1, Rates(worker_kills=0.5, report=600))
        cluster.schedule = schedule(jobs, 20)
        cluster.run()
        return cluster

    def test_one_that_forgets_what_is_lost(self) -> None:
        class Forgetful(Schedule):
            def lose(self, name: str, reached: float) -> bool:
                self.running.remove(name)
                return False

        assert 0 in self.run(Forgetful).committed.values()

    def test_one_that_starts_a_cell_twice(self) -> None:
        class Twice(Schedule):
            def lose(self, name: str, reached: float) -> bool:
                self._waiting.insert(0, self._place(name, lost=True))
                return super().lose(name, reached)

        with pytest.raises(AssertionError, match="runs twice at a time"):
            self.run(Twice)

    def test_one_that_waits_for_ever(self) -> None:
        class Idle(Schedule):
            def next(self) -> str | None:
                return None

        with pytest.raises(RuntimeError, match="100 jobs wait and nothing happens"):
            self.run(Idle)
