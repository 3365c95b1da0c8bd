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
from cluster_fixtures import (
    HELD,
    LIMIT,
    Heard,
    Once,
    bench_run,
    cells,
    measured,
    opened,
    updates_saved,
    wait_for,
)
from held import HOLD

from bench.engines.local import LocalEngine
from bench.engines.ray import RayEngine
from bench.runs.child_main import SAVE_EVERY
from bench.runs.conduct import run_all
from bench.spec import UsageError
from bench.storage.signals import Interrupted
from bench.storage.store import MANIFEST, RunFolder, load_manifest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3 * LIMIT), pytest.mark.filterwarnings("ignore")]
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


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """What the nodes know by their environment: the user's cache, and the file while which is there runs wait."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def cluster(home):
    """A head without CPUs, where the conductor is, and two nodes of two each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # unset it hangs on whether this user has ever had a token
        patch.setenv(HOLD, str(home / "hold"))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        made.add_node(num_cpus=2)
        made.add_node(num_cpus=2)
        yield made
        made.shutdown()


@pytest.fixture
def hold(home):
    """A file while which is there, from where a test makes it, runs of HELD wait in their training."""
    yield home / "hold"
    (home / "hold").unlink(missing_ok=True)


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
    """Workers are killed at random, and now and then a node is lost, and another one comes; then nothing is held."""

    def fight(self, cluster, hold: Path, kills: int, losses: int) -> None:
        self.cluster, self.hold, self.kills, self.losses = cluster, hold, kills, losses
        self.killed = self.lost = self.most = 0
        self.chance, self.next = random.Random(0), 0.0

    def poll(self, seconds):
        if time.monotonic() >= self.next:
            self.strike()
            self.next = time.monotonic() + self.chance.uniform(0.2, 1.2)
        if (self.killed, self.lost) == (self.kills, self.losses):
            self.hold.unlink(missing_ok=True)
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
    ("specs", "kills", "losses"),
    [(cells(3, 40, HELD), 3, 1), pytest.param(cells(24), 50, 5, marks=pytest.mark.chaos)],
    ids=["few", "many"],
)
def test_kills_and_lost_nodes_cost_no_result(cluster, hold, serial, tmp_path, specs, kills, losses):
    expected = serial(specs)
    hold.touch()
    out = opened(tmp_path / "out", specs)
    display, engine = Heard(), Harassed(out, 0.1, specs, cluster.address)
    engine.fight(cluster, hold, kills, losses)
    with contextlib.closing(engine):
        assert run_all(out, specs, display, None, engine) == []
    assert (engine.killed, engine.lost) == (kills, losses)
    assert engine.most <= 4  # a run has its core alone
    assert display.finished == {f"{spec.name} finished": 1 for spec in specs}
    assert measured(out, specs) == expected


def test_without_a_shared_folder_results_come_home_and_go_on_where_there_is_nothing(
    cluster, hold, home, serial, tmp_path, monkeypatch
):
    """After a signal what is made comes home; the next command finds nodes that have nothing, and sends it there."""
    monkeypatch.setattr("bench.engines.ray.PATIENCE", LIMIT)
    specs = cells(2, 40, HELD)
    expected = serial(specs)
    hold.touch()
    out = opened(tmp_path / "out", specs)
    engine = Stopped(out, 0.1, specs, cluster.address)
    engine._common["manifest"] = "0" * 64  # no worker finds the folder
    with contextlib.closing(engine), pytest.raises(Interrupted):
        run_all(out, specs, Heard(), None, engine)
    assert max(RunFolder(out, spec).reached() for spec in specs) > 0
    made = home / "cache" / "robust-ssl-bench" / "cells" / ("0" * 16)
    shutil.rmtree(made)
    engine = Harassed(out, 0.1, specs, cluster.address)
    engine.fight(cluster, hold, 2, 0)
    engine._common["manifest"] = "0" * 64  # no worker finds the folder
    with contextlib.closing(engine):
        assert run_all(out, specs, Heard(), None, engine) == []
    assert measured(out, specs) == expected
    assert sorted(path.name for path in (made / "runs").iterdir()) == [spec.name for spec in specs]
    assert max(RunFolder(out, spec).record().train.preemptions for spec in specs) >= 1


def driver(out: Path, address: str) -> subprocess.Popen:
    """``bench run`` of a short cell and a long one, in a process of its own; what it says goes to a file."""
    with open(out.parent / "said.txt", "a", encoding="utf-8") as said:
        return subprocess.Popen(bench_run(out, address, "--budget", "5up,40up"), stdout=said, stderr=said)


def stored(folder: RunFolder) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of every file of a run."""
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_killed_driver_costs_no_result(cluster, hold, serial, tmp_path):
    out = tmp_path / "out"
    hold.touch()
    first = driver(out, cluster.address)
    wait_for((out / MANIFEST).exists)
    short, long = (RunFolder(out, spec) for spec in load_manifest(out).runs)
    wait_for(lambda: short.record([]).status == "finished" and updates_saved(long) > 0)
    made = stored(short)
    theirs = family(set(workers()))
    assert len(theirs) > 1
    first.kill()
    first.wait()
    second = driver(out, cluster.address)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in theirs))
    hold.unlink()
    assert second.wait() == 0, (tmp_path / "said.txt").read_text()
    assert stored(short) == made
    assert long.record().train.preemptions == 1
    specs = [short.spec, long.spec]
    assert measured(out, specs) == serial(specs)


def test_at_the_deadline_runs_save_and_stop(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.engines.ray.PATIENCE", LIMIT)
    specs = cells(2, updates=100_000)
    out = opened(tmp_path / "out", specs)
    monkeypatch.setattr("bench.runs.conduct.time", Once(out, specs))
    engine = RayEngine(out, 0.1, specs, cluster.address)
    with contextlib.closing(engine):
        assert run_all(out, specs, Heard(), None, engine, deadline=1.0) == [spec.name for spec in specs]
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
