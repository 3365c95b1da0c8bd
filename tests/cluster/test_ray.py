"""Runs on a Ray cluster of two nodes, both on this machine: workers are killed, nodes lost, and the results are those
of a serial run.

``--cluster`` runs these; with ``--chaos`` too, in full numbers.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cluster_fixtures import Heard, bench_run, cells, measured, opened, updates_saved, wait_for

from bench.engines.local import LocalEngine
from bench.engines.ray import RayEngine
from bench.runs.child_main import SAVE_EVERY
from bench.runs.conduct import run_all
from bench.spec import UsageError
from bench.storage.signals import Interrupted
from bench.storage.store import MANIFEST, RunFolder, load_manifest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500), pytest.mark.filterwarnings("ignore")]
ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """``serial(specs)``: measured one after the other in processes of this machine."""
    folder = tmp_path_factory.mktemp("serial")

    def made(specs):
        out = folder / str(specs[0].budget)  # runs of other budgets have the same names
        assert run_all(out, specs, Heard(), None, LocalEngine(out, SAVE_EVERY, None)) == []
        return measured(out, specs)

    return made


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """A head without CPUs, where the conductor is, and two nodes of two each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # unset it hangs on whether this user has ever had a token
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.add_node(num_cpus=2)
    made.add_node(num_cpus=2)
    yield made
    ray.shutdown()
    made.shutdown()


def family(ancestors: set[int]) -> set[int]:
    """These processes and all that have come from them."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found, more = set[int](), ancestors
    while more:
        found |= more
        more = {child for child, parent in parents.items() if parent in more} - found
    return found


def workers() -> list[int]:
    """Processes of a cluster of this test that make a run."""
    found = []
    for pid in family({os.getpid()}):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::task"):
                found.append(pid)
    return sorted(found)


class Harassed(RayEngine):
    """Workers are killed at random, and now and then a node is lost, and another one comes."""

    def fight(self, cluster, kills: int, losses: int) -> None:
        self.cluster, self.kills, self.losses = cluster, kills, losses
        self.killed = self.lost = self.most = 0
        self.chance, self.next = random.Random(0), 0.0

    def poll(self, seconds):
        if time.monotonic() >= self.next:
            self.strike()
            self.next = time.monotonic() + self.chance.uniform(0.2, 1.2)
        self.most = max(self.most, len(workers()))
        return super().poll(0.2)

    def strike(self) -> None:
        if self.lost < self.losses and self.killed >= (self.lost + 1) * self.kills // (self.losses + 1):
            node = sorted(self.cluster.worker_nodes, key=str)[self.chance.randrange(2)]
            self.cluster.remove_node(node, allow_graceful=False)
            self.cluster.add_node(num_cpus=2)
            self.lost += 1
        elif self.killed < self.kills and (there := workers()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.chance.choice(there), signal.SIGKILL)
                self.killed += 1


class Stopped(RayEngine):
    """A signal comes when a run is in training."""

    def poll(self, seconds):
        found = super().poll(seconds)
        if not self._stopping and any(event["event"] == "train" for _, event in found):
            raise Interrupted(signal.SIGTERM)
        return found


@pytest.mark.parametrize(
    ("count", "kills", "losses"),
    [(4, 3, 1), pytest.param(24, 50, 5, marks=pytest.mark.chaos)],
)
def test_kills_and_lost_nodes_cost_no_result(cluster, serial, tmp_path, count, kills, losses):
    specs = cells(count)
    expected = serial(specs)
    out = opened(tmp_path / "out", specs)
    display, engine = Heard(), Harassed(out, 1.0, specs, cluster.address)
    engine.fight(cluster, kills, losses)
    with contextlib.closing(engine):
        assert run_all(out, specs, display, None, engine) == []
    assert (engine.killed, engine.lost) == (kills, losses)
    assert engine.most <= 4  # a run has its core alone
    assert display.finished == {f"{spec.name} finished": 1 for spec in specs}
    assert measured(out, specs) == expected


def test_without_a_shared_folder_results_come_home_and_go_on_where_there_is_nothing(cluster, serial, tmp_path):
    """After a signal what is made comes home; the next command finds nodes that have nothing, and sends it there."""
    specs = cells(2, updates=400)
    expected = serial(specs)
    out = opened(tmp_path / "out", specs)
    engine = Stopped(out, 1.0, specs, cluster.address)
    engine._common["manifest"] = "0" * 64  # no worker finds the folder
    with contextlib.closing(engine), pytest.raises(Interrupted):
        run_all(out, specs, Heard(), None, engine)
    left = sorted(spec.name for spec in specs if RunFolder(out, spec).record().status != "finished")
    assert max(RunFolder(out, spec).reached() for spec in specs if spec.name in left) > 0
    shutil.rmtree(tmp_path / "cache")
    engine = Harassed(out, 1.0, specs, cluster.address)
    engine.fight(cluster, 2, 0)
    engine._common["manifest"] = "0" * 64  # no worker finds the folder
    with contextlib.closing(engine):
        assert run_all(out, specs, Heard(), None, engine) == []
    assert measured(out, specs) == expected
    made = tmp_path / "cache" / "robust-ssl-bench" / "cells" / ("0" * 16)
    assert sorted(path.name for path in (made / "runs").iterdir()) == left
    assert max(RunFolder(out, spec).record().train.preemptions for spec in specs) >= 1


def driver(out: Path, address: str) -> subprocess.Popen:
    """``bench run`` of a short cell and a long one, in a process of its own; what it says goes to a file."""
    with open(out.parent / "said.txt", "a", encoding="utf-8") as said:
        return subprocess.Popen(bench_run(out, address, "--budget", "10up,300up"), stdout=said, stderr=said)


def stored(folder: RunFolder) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of every file of a run."""
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_killed_driver_costs_no_result(cluster, serial, tmp_path):
    out = tmp_path / "out"
    first = driver(out, cluster.address)
    wait_for((out / MANIFEST).exists, 60)
    short, long = (RunFolder(out, spec) for spec in load_manifest(out).runs)
    wait_for(lambda: short.record([]).status == "finished" and updates_saved(long) > 0, 120)
    made = stored(short)
    theirs = family(set(workers()))
    assert len(theirs) > 1
    first.kill()
    first.wait()
    assert driver(out, cluster.address).wait() == 0, (tmp_path / "said.txt").read_text()
    assert stored(short) == made
    assert long.record().train.preemptions == 1
    assert not {pid for pid in theirs if Path(f"/proc/{pid}").exists()}
    specs = [short.spec, long.spec]
    assert measured(out, specs) == serial(specs)


def test_at_the_deadline_runs_save_and_stop(cluster, serial, tmp_path):
    specs = cells(2, updates=100_000)
    out = opened(tmp_path / "out", specs)
    engine = RayEngine(out, 1.0, specs, cluster.address)
    with contextlib.closing(engine):
        assert run_all(out, specs, Heard(), None, engine, time.monotonic() + 20) == [spec.name for spec in specs]
    for spec in specs:
        folder = RunFolder(out, spec)
        assert folder.record().status == "preempted"
        assert folder.checkpoint()[0] is not None


def test_what_a_cluster_does_not_have_is_said(cluster, tmp_path):
    specs = [spec.model_copy(update={"device": "cuda:0"}) for spec in cells(1)]
    with pytest.raises(UsageError, match=r"expected a cluster with \{'num_gpus': 1"):
        RayEngine(opened(tmp_path / "out", specs), 1.0, specs, cluster.address)


def test_a_token_that_the_cluster_does_not_ask_for_is_said(cluster, tmp_path):
    words = bench_run(tmp_path / "out", cluster.address, "--budget", "2up")
    env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a token"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "need the same RAY_AUTH_MODE" in done.stderr
    assert "Traceback" not in done.stderr
