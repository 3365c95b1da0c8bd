"""How many cores this process may use: its affinity, and the quota of its control group.

``os.cpu_count()`` counts the machine's. In a container with a quota of two cores on a machine of sixty-four, sixty-four
threads would wait for each other most of the time.
"""

import os
from pathlib import Path, PurePosixPath

SELF, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cores(groups_of: Path = SELF, groups: Path = GROUPS) -> int:
    """The cores that this process may use, at least 1; a quota of 1.5 counts as 2, one of 1.4 as 1."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(own, int(quota(groups_of, groups) + 0.5)))


def default_threads(device: str) -> int | None:
    """One thread for a run on a CPU, so that as many runs as there are cores go side by side; None on a GPU.

    Threads of one run wait for each other after every operation, and where one of them has to share its core all are
    as slow as that one: on two busy cores two threads took eight times as long as one (docs/measurements.md).
    """
    return 1 if device == "cpu" else None


def quota(groups_of: Path = SELF, groups: Path = GROUPS) -> float:
    """The cores' worth of time that the control groups of this process leave it; a large number without a limit.

    The smallest of its group and those above it, in version 2 (cpu.max) and version 1 (cpu.cfs_quota_us). Control
    groups: docs.kernel.org/admin-guide/cgroup-v2.html and docs.kernel.org/scheduler/sched-bwc.html.
    """
    least = float(1 << 20)
    for line in read(groups_of).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        hierarchies = [groups / controllers, groups / "cpu"] if controllers else [groups, groups / "unified"]
        own = PurePosixPath(path.lstrip("/"))
        for hierarchy in hierarchies:
            for part in (own, *own.parents):  # in a container the path may be the host's: its root is then the group
                least = min(least, limit(hierarchy / part, version=1 if controllers else 2))
    return least


def limit(group: Path, version: int) -> float:
    """Cores' worth of time of one control group."""
    if version == 2:
        allowed, period = [*read(group / "cpu.max").split(), "max", "1"][:2]
    else:
        allowed = read(group / "cpu.cfs_quota_us").strip() or "-1"
        period = read(group / "cpu.cfs_period_us").strip() or "1"
    try:
        return float(allowed) / float(period) if float(allowed) > 0 and float(period) > 0 else float("inf")
    except ValueError:  # max
        return float("inf")


def read(file: Path) -> str:
    """The text of a file; "" where there is none."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
