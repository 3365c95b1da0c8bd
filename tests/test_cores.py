"""Cores that a process may use: its affinity, and the quota of its control group, read and in force."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.cores import GROUPS, cores, default_threads, quota

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


def test_a_run_on_a_cpu_has_one_thread_by_default() -> None:
    """Several would wait for each other where one of them has to share its core."""
    assert (default_threads("cpu"), default_threads("cuda")) == (1, None)
