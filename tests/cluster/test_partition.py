"""A node of a Ray cluster falls silent: its packets are dropped, and nothing closes a connection.

Head and nodes are network namespaces of this machine, each with a host name of its own. ``--cluster`` runs this.
"""

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster_fixtures import LIMIT, bench_run, updates_saved, wait_for

from bench.storage.store import MANIFEST, RunFolder, load_manifest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3 * LIMIT), pytest.mark.filterwarnings("ignore")]
pytest.importorskip("ray")

DOCS = Path(__file__).parent.parent.parent / "docs" / "cluster.md"
SETTINGS = dict(re.findall(r"(RAY_[a-z_]+)=(\d+)", DOCS.read_text(encoding="utf-8")))  # those that users are told
HEAD = "10.99.0.1"
NOTICED = 40.0  # seconds that docs/cluster.md allows until the runs of a silent node go on elsewhere
GONE = 26.0  # seconds after the last answer in which it says that a worker has ended


def ip(*words: str) -> str:
    """What ``ip`` prints. Raises CalledProcessError."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@dataclass
class Network:
    """A head and two nodes that see each other through a bridge in the head."""

    head: str
    nodes: tuple[str, str]
    token: Path

    def make(self) -> None:
        for name in (self.head, *self.nodes):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.head, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.head, "addr", "add", f"{HEAD}/24", "dev", "bridge")
        ip("-n", self.head, "link", "set", "bridge", "up")
        for place, node in enumerate(self.nodes, 2):
            ip("link", "add", f"to{place}", "netns", self.head, "type", "veth", "peer", "name", "eth0", "netns", node)
            ip("-n", self.head, "link", "set", f"to{place}", "master", "bridge", "up")
            ip("-n", node, "addr", "add", f"10.99.0.{place}/24", "dev", "eth0")
            ip("-n", node, "link", "set", "eth0", "up")

    def start(self, name: str, words: list[str], said: Path) -> subprocess.Popen:
        """A process in the namespace ``name``, whose host has that name; what it prints goes to a file."""
        named = ["unshare", "--uts", "sh", "-c", f'echo {name} > /proc/sys/kernel/hostname; exec "$@"', "sh"]
        env = os.environ | SETTINGS | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}
        with open(said, "w", encoding="utf-8") as file:
            return subprocess.Popen(["ip", "netns", "exec", name, *named, *words], stdout=file, stderr=file, env=env)

    def silence(self, node: str) -> None:
        ip("-n", self.head, "link", "set", f"to{self.nodes.index(node) + 2}", "down")

    def close(self) -> None:
        for name in (self.head, *self.nodes):
            with contextlib.suppress(subprocess.CalledProcessError):
                while pids := ip("netns", "pids", name).split():
                    for pid in pids:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(int(pid), signal.SIGKILL)
                    time.sleep(0.1)
                ip("netns", "del", name)


@pytest.fixture
def network(tmp_path):
    """The cluster, one core on each node and none on the head."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and ip (iproute2) for network namespaces")
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    made = Network(f"bench-{os.getpid()}-head", (f"bench-{os.getpid()}-a", f"bench-{os.getpid()}-b"), token)
    kept = tempfile.mkdtemp(prefix="ray-")  # short: sockets lie in it
    begun = []
    try:
        try:
            made.make()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        ray = str(Path(sys.executable).parent / "ray")
        head = ["--head", "--port", "6379", "--num-cpus", "0", "--include-dashboard=false", "--temp-dir", kept]
        node = ["--address", f"{HEAD}:6379", "--num-cpus", "1"]
        for place, (name, words) in enumerate(((made.head, head), (made.nodes[0], node), (made.nodes[1], node)), 1):
            said = tmp_path / f"{name}.txt"
            words = [ray, "start", *words, "--node-ip-address", f"10.99.0.{place}", "--block"]
            begun.append(made.start(name, words, said))
            try:
                wait_for(lambda said=said: "Ray runtime started" in said.read_text(encoding="utf-8"))
            except AssertionError:
                pytest.fail(said.read_text(encoding="utf-8"))
        yield made
    finally:
        made.close()
        for process in begun:
            process.wait()
        shutil.rmtree(kept, ignore_errors=True)


def at_work(network: Network, node: str, run: RunFolder) -> bool:
    """Whether a process on the node has a file of the run open: its lock or its log."""
    for pid in ip("netns", "pids", node).split():
        with contextlib.suppress(OSError):
            if any(os.readlink(file).startswith(str(run.path)) for file in Path(f"/proc/{pid}/fd").iterdir()):
                return True
    return False


def test_the_runs_of_a_silent_node_go_on_elsewhere(network, tmp_path):
    out, said = tmp_path / "out", tmp_path / "said.txt"
    words = bench_run(out, f"{HEAD}:6379", "--seeds", "2", "--budget", "20s")
    driver = network.start(network.head, words, said)
    wait_for((out / MANIFEST).exists)
    runs = [RunFolder(out, spec) for spec in load_manifest(out).runs]
    wait_for(lambda: any(updates_saved(run) for run in runs))
    moved, stayed = sorted(runs, key=updates_saved, reverse=True)
    silent, other = sorted(network.nodes, key=lambda node: not at_work(network, node, moved))
    assert at_work(network, silent, moved)

    network.silence(silent)
    began = time.monotonic()
    lost = re.compile(f"{moved.spec.name}: .*; it goes on elsewhere")  # whether Ray has noticed first or bench has
    wait_for(lambda: lost.search(said.read_text(encoding="utf-8")) is not None, NOTICED)
    noticed = time.monotonic() - began
    wait_for(lambda: not at_work(network, silent, moved), GONE - noticed)  # one run has one owner, locks or none
    assert driver.wait(LIMIT) == 0, said.read_text(encoding="utf-8")
    print(f"noticed after {noticed:.1f} s, all results after {time.monotonic() - began:.1f} s")

    records = [run.record() for run in (moved, stayed)]
    assert [record.status for record in records] == ["finished", "finished"]
    assert [record.environment.node for record in records] == [other, other]
    assert [record.train.preemptions for record in records] == [1, 0]
    for record in records:
        assert 15.0 < record.train.train_seconds <= 20.0  # an update that would end after the budget is not begun
        assert len(record.results) == len(records[1].results) > 0
