"""Cores that a process may use: its affinity, and the quota of its control group, read and in force."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.cores import GROUPS, cores, quota

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, float("inf")),
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),  # a container, which sees its group as the root
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2.0),  # of the group above
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "50000 100000"}, 0.5),
        ("0::/host/path\n", {"cpu.max": "100000 100000"}, 1.0),  # the path is the host's
        ("4:cpu,cpuacct:/d\n", {"cpu,cpuacct/d/cpu.cfs_quota_us": "300000",
                                "cpu,cpuacct/d/cpu.cfs_period_us": "100000"}, 3.0),
        ("4:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, float("inf")),
        ("1:cpu:/d\n0::/\n", {"cpu/d/cpu.cfs_quota_us": "250000", "cpu/d/cpu.cfs_period_us": "100000"}, 2.5),
        ("4:memory:/d\n", {"memory/d/cpu.cfs_quota_us": "1", "memory/d/cpu.cfs_period_us": "1"}, float("inf")),
        ("", {}, float("inf")),
        ("0::/\n", {"cpu.max": "nonsense"}, float("inf")),
    ],
)  # fmt: skip
def test_the_quota_is_the_smallest_of_all_groups_above(
    lines: str, files: dict[str, str], expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup").write_text(lines)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    given = tmp_path / "cgroup", tmp_path / "groups"
    assert min(quota(*given), 1000) == min(expected, 1000)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert cores(*given) == (64 if expected > 64 else max(1, int(expected + 0.5)))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3}, raising=False)
    assert cores(*given) == 1


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of version 1 with one core's worth of time, where this process may make one."""
    place = GROUPS / "cpu" / f"bench-test-{os.getpid()}"
    try:
        place.mkdir()
        (place / "cpu.cfs_quota_us").write_text("100000")
    except OSError as error:
        pytest.skip(f"no control group of our own: {error.strerror}")
    yield place
    place.rmdir()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a quota below one core")
def test_a_quota_in_force_leaves_one_core(group: Path) -> None:
    code = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')\nfrom bench.cores import cores\nprint(cores())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout == "1\n"


# ---------------------------------------------------------------- what a run makes of its share

TRAIN = """
import sys, time
import torch
from bench.device import device as devices
from bench.training.build import build_method
from bench.cores import cores, default_threads
from bench.data.images import load_data
from bench.datasets.digits import Dataset
from bench.spec import Budget, DataSpec, RunSpec
from bench.training.train import train
if sys.argv[1:]:
    open(sys.argv[1], "w").write("0")  # into a control group
spec = RunSpec(method="emp_ssl", data=DataSpec(name="digits"), budget=Budget.parse("12up"))
device = torch.device("cpu")
devices.prepare(device, default_threads("cpu"))
method, _ = build_method(spec, Dataset(), 1)
result = train(method, load_data(Dataset(), spec.data)[0], spec.budget, 0, device)
print(result.train_seconds)
"""
BUSY = "while True: pass"


def train_seconds(*group: str) -> float:
    """Seconds of a short training with the threads that a run has by default."""
    found = subprocess.run([sys.executable, "-c", TRAIN, *group], capture_output=True, text=True, cwd=ROOT, check=True)
    return float(found.stdout)


def ratio(loaded: Callable[[], float], quiet: Callable[[], float]) -> float:
    """The best of three over the best of three, taken in turns, as the machine may have other work."""
    pairs = [(loaded(), quiet()) for _ in range(3)]
    return min(first for first, _ in pairs) / min(second for _, second in pairs)


@pytest.mark.ci
@pytest.mark.skipif(cores() < 2, reason="a busy loop on the only core")
def test_a_busy_loop_on_another_core_costs_a_run_no_more_than_half_of_its_pace() -> None:
    def loaded() -> float:
        with subprocess.Popen([sys.executable, "-c", BUSY]) as busy:
            try:
                return train_seconds()
            finally:
                busy.kill()

    assert ratio(loaded, train_seconds) <= 1.5


@pytest.mark.ci
def test_a_quota_of_one_core_costs_a_run_no_more_than_half_of_its_pace(group: Path) -> None:
    assert ratio(lambda: train_seconds(str(group / "cgroup.procs")), train_seconds) <= 1.5
