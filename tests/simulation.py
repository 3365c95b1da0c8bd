"""A cluster that fails, in virtual time, around the real Schedule: workers, nodes and drivers are lost at stated rates.

What is simulated is what the engines do. A cell begins with an overhead, saves a checkpoint every so many seconds of
work, and commits its result once, on a shared folder; a lost cell goes on from its last checkpoint. The driver hears of
an end and of a loss later than it happens. What it knows dies with it, and so do its cells; the next one starts from
the results that are there.
"""

import heapq
import itertools
import random
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bench.engines.cluster import Nodes
from bench.engines.queue import TRIES, Job, Schedule

HOUR = 3600.0
METHODS = 10


@dataclass(frozen=True, eq=False)
class Gpu:
    """One GPU, equal to itself alone, which takes a run from ``ready`` seconds on."""

    node: str
    number: int  # of its node among those of its kind, from 1
    place: int  # on its node
    kind: Nodes

    @property
    def ready(self) -> float:
        return self.kind.ready_seconds


def all_gpus(kinds: Sequence[Nodes]) -> list[Gpu]:
    """Every GPU of these nodes; node i of several is ``name-i``, from 1."""
    return [
        Gpu(kind.name if kind.count == 1 else f"{kind.name}-{number}", number, place, kind)
        for kind in kinds
        for number in range(1, kind.count + 1)
        for place in range(kind.gpus)
    ]


class VirtualCluster:
    """The jobs of a schedule on GPUs in virtual time: what has waited longest on the fastest free GPU.

    A run takes ``seconds(run, gpu)``. What else may happen is put in by ``at``.
    """

    def __init__(self, schedule: Schedule, gpus: Sequence[Gpu], seconds: Callable[[str, Gpu], float]) -> None:
        self.schedule, self.seconds = schedule, seconds
        self.now = 0.0
        self.queue: deque[str] = deque()  # out, and waiting for a GPU
        self._order = itertools.count()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.idle: list[tuple[float, int, Gpu]] = []
        for gpu in gpus:
            self.at(gpu.ready, partial(self.free, gpu))

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do this at that time; what falls on the same time is done in the order in which it was said."""
        heapq.heappush(self.events, (when, next(self._order), action))

    def run(self) -> None:
        """Go on until every job has ended or is given up. Raises RuntimeError where jobs wait and nothing happens."""
        while not self.schedule.over:
            if not self.events:
                raise RuntimeError(f"{self.schedule.waiting} jobs wait and nothing happens any more")
            self.now = self.events[0][0]
            while self.events and self.events[0][0] == self.now:
                heapq.heappop(self.events)[-1]()
            while (name := self.schedule.next()) is not None:
                self.queue.append(name)
            while self.queue and self.idle:
                self.begin(self.queue.popleft(), heapq.heappop(self.idle)[-1])

    def free(self, gpu: Gpu) -> None:
        """This GPU takes the next run."""
        heapq.heappush(self.idle, (-gpu.kind.speed, next(self._order), gpu))

    def begin(self, name: str, gpu: Gpu) -> None:
        """This run starts here."""
        self.at(self.now + self.seconds(name, gpu), lambda: self.end(name, gpu))

    def end(self, name: str, gpu: Gpu) -> None:
        """This run has ended here."""
        self.schedule.end(name)
        self.free(gpu)


@dataclass(frozen=True)
class Rates:
    """What fails how often, per hour, and how long things take, in seconds."""

    worker_kills: float = 0.0  # of each cell that runs
    node_losses: float = 0.0  # of each node
    preemptions: float = 0.0  # of each node, whose cells save before they go
    driver_kills: float = 0.0
    node_back: float = 1800.0
    preempted_back: float = 600.0
    driver_back: float = 120.0
    notice: float = 30.0  # until the driver has heard of a lost node
    report: float = 10.0  # until it has heard of an end or a killed worker; the cell keeps its GPU until then
    overhead: float = 30.0  # start of a cell
    checkpoint: float = 300.0  # of work between two


@dataclass(eq=False)
class Attempt:
    """A cell on a GPU."""

    name: str
    gpu: Gpu
    began: float
    found: bool  # the result was there when it began: it has nothing to do
    alive: bool = True


@dataclass
class Counts:
    """What has happened."""

    starts: int = 0
    repeated: int = 0  # starts of a cell whose result was there: its end had not been heard of
    worker_kills: int = 0
    node_losses: int = 0
    preemptions: int = 0
    driver_kills: int = 0
    overhead_seconds: float = 0.0  # of GPUs: starts and reports, also of what was lost
    lost_seconds: float = 0.0  # of work that was done again
    spent_seconds: float = 0.0  # of GPUs, in all


class FailingCluster(VirtualCluster):
    """Jobs of ``work`` seconds each, under ``rates``, on ``nodes`` of ``gpus`` each; ``committed`` counts the results.

    ``ahead``: how many cells are out for each GPU, as with an engine that has a queue of its own.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        work: dict[str, float],
        nodes: int,
        gpus: int,
        rates: Rates,
        seed: int = 0,
        ahead: int = 1,
        tries: int = TRIES,
    ) -> None:
        every = all_gpus([Nodes(name="n", count=nodes, gpus=gpus, gpu="simulated", speed=1)])
        self.in_flight, self.tries = ahead * len(every), tries
        super().__init__(Schedule(jobs, self.in_flight, tries), every, lambda name, gpu: work[name])
        self.jobs, self.work, self.rates = jobs, work, rates
        self.saved = dict.fromkeys(work, 0.0)  # seconds of work in the last checkpoint
        self.committed = dict.fromkeys(work, 0)
        self.attempts: dict[Gpu, Attempt] = {}
        self.busy: set[str] = set()  # the cells of these attempts
        self.counts = Counts()
        self.drivers = 1
        self.down: set[str] = set()  # nodes
        self.nodes: dict[str, list[Gpu]] = defaultdict(list)
        for gpu in every:
            self.nodes[gpu.node].append(gpu)
        self.names = list(self.nodes)
        self.capacity = [(0.0, len(every))]  # since when so many GPUs are there
        self.chance = random.Random(seed)
        self.strike(rates.node_losses * nodes, self.lose_node)
        self.strike(rates.preemptions * nodes, self.preempt_node)
        self.strike(rates.driver_kills, self.kill_driver)

    def strike(self, per_hour: float, action: Callable[[], None]) -> None:
        """Do this at random times, at this rate."""
        if per_hour:

            def again() -> None:
                action()
                self.strike(per_hour, action)

            self.at(self.now + self.chance.expovariate(per_hour / HOUR), again)

    # -------------------------------------------------------------- a cell

    def begin(self, name: str, gpu: Gpu) -> None:
        assert name not in self.busy, f"{name} runs twice at a time"
        self.busy.add(name)
        attempt = self.attempts[gpu] = Attempt(name, gpu, self.now, found=self.committed[name] > 0)
        self.counts.starts += 1
        self.counts.repeated += attempt.found
        left = 0.0 if attempt.found else self.work[name] - self.saved[name]
        self.at(self.now + self.rates.overhead + left, lambda: self.commit(attempt))
        if self.rates.worker_kills:
            strikes = self.now + self.chance.expovariate(self.rates.worker_kills / HOUR)
            self.at(strikes, lambda: self.kill_worker(attempt))

    def commit(self, attempt: Attempt) -> None:
        """Its result is there; whoever found one when it began leaves it."""
        if attempt.alive:
            self.committed[attempt.name] += not attempt.found
            self.at(self.now + self.rates.report, lambda: self.heard(attempt))

    def heard(self, attempt: Attempt) -> None:
        """The driver hears of an end, and the GPU is free."""
        if attempt.alive:
            self.stop(attempt)
            self.schedule.end(attempt.name)
            self.free(attempt.gpu)

    def stop(self, attempt: Attempt, saves: bool = False) -> None:
        """The process is gone. What it had done since its last checkpoint is lost, unless it ``saves``."""
        attempt.alive = False
        del self.attempts[attempt.gpu]
        self.busy.remove(attempt.name)
        name, spent = attempt.name, self.now - attempt.began
        before = self.saved[name]
        to_do = 0.0 if attempt.found else self.work[name] - before
        done = min(to_do, max(0.0, spent - self.rates.overhead))
        whole = saves or self.committed[name] > 0
        kept = done if whole else done // self.rates.checkpoint * self.rates.checkpoint
        self.saved[name] = before + kept
        self.counts.spent_seconds += spent
        self.counts.lost_seconds += done - kept
        self.counts.overhead_seconds += spent - done

    # -------------------------------------------------------------- what fails

    def tell_loss(self, name: str, after: float) -> None:
        """The driver hears of a lost cell, if it is still the same one."""
        driver = self.drivers

        def hear() -> None:
            if driver == self.drivers:
                self.schedule.lose(name, self.saved[name] + self.committed[name])

        self.at(self.now + after, hear)

    def kill_worker(self, attempt: Attempt) -> None:
        if attempt.alive:
            self.counts.worker_kills += 1
            self.stop(attempt)
            self.tell_loss(attempt.name, self.rates.report)
            self.free(attempt.gpu)

    def lose_node(self) -> None:
        self.counts.node_losses += self.take_node(self.rates.node_back, self.rates.notice, saves=False)

    def preempt_node(self) -> None:
        self.counts.preemptions += self.take_node(self.rates.preempted_back, self.rates.report, saves=True)

    def take_node(self, back: float, notice: float, saves: bool) -> bool:
        """Any node is gone for a while: whether it was there."""
        node = self.chance.choice(self.names)
        if node in self.down:
            return False
        for gpu in self.nodes[node]:
            if gpu in self.attempts:
                self.tell_loss(self.attempts[gpu].name, notice)
                self.stop(self.attempts[gpu], saves)
        self.down.add(node)
        self.idle = [entry for entry in self.idle if entry[-1].node != node]
        heapq.heapify(self.idle)
        self.capacity.append((self.now, self.capacity[-1][1] - len(self.nodes[node])))
        self.at(self.now + back, lambda: self.return_node(node))
        return True

    def return_node(self, node: str) -> None:
        self.down.remove(node)
        self.capacity.append((self.now, self.capacity[-1][1] + len(self.nodes[node])))
        for gpu in self.nodes[node]:
            self.free(gpu)

    def kill_driver(self) -> None:
        """Its cells die with it; the next one starts, a while later, what has no result."""
        self.counts.driver_kills += 1
        self.drivers += 1
        self.queue.clear()
        for attempt in list(self.attempts.values()):
            self.stop(attempt)
            self.free(attempt.gpu)
        self.schedule = Schedule([job for job in self.jobs if not self.committed[job.name]], self.in_flight, self.tries)
        self.schedule.in_flight, driver = 0, self.drivers

        def restart() -> None:
            if driver == self.drivers:
                self.schedule.in_flight = self.in_flight

        self.at(self.now + self.rates.driver_back, restart)

    # -------------------------------------------------------------- what it is compared with

    def lower_bound(self) -> float:
        """No order of these cells on these GPUs with these failures ends earlier, in seconds.

        The later of two times. When the GPUs that are alive, counted at every moment, have had as many GPU-seconds as
        were spent: the work of every cell, the work that was lost and done again, and the overhead of every start, also
        of those that were lost. And the longest cell with one overhead. A GPU is alive unless its node is lost or
        preempted: that the driver is dead, or has not heard of a loss or an end, takes nothing off the bound.
        """
        longest = max(self.work.values()) + self.rates.overhead
        left = self.counts.spent_seconds
        for (since, alive), (until, _) in itertools.pairwise([*self.capacity, (float("inf"), 0)]):
            if alive and left <= alive * (until - since):
                return max(longest, since + left / alive)
            left -= alive * (until - since)
        raise AssertionError("more was spent than there was")


def cells(count: int, seed: int = 0) -> tuple[list[Job], dict[str, float]]:
    """Jobs, and the seconds that each takes: ten methods over seeds, the slowest trains twice as long as the fastest.

    Method i trains for 1 + i / 9 hours, within 5 %; its evaluation takes a quarter of an hour to an hour, whoever
    trained it. What the driver expects is the mean of the method.
    """
    chance = random.Random(seed)
    jobs, work = [], {}
    for place in range(count):
        method, turn = place % METHODS, place // METHODS
        name, train = f"m{method}-s{turn}", (1 + method / (METHODS - 1)) * HOUR
        jobs.append(Job(name, turn, train + 0.625 * HOUR))
        work[name] = train * chance.uniform(0.95, 1.05) + chance.uniform(0.25, 1) * HOUR
    return jobs, work
