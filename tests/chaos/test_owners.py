"""Processes that want one folder: one of them has it, and none waits for the dead (promise P10)."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.spec import UsageError
from bench.storage.lock import owned

ROOT = Path(__file__).parent.parent.parent

# owns the folder until its input ends; says how it went
OWNER = """
import sys
from pathlib import Path
from bench.storage.lock import owned
from bench.spec import UsageError
sys.stdin.readline()
try:
    with owned(Path(sys.argv[1]), float(sys.argv[2])):
        print("owner", flush=True)
        sys.stdin.read()
except UsageError as error:
    print(error, flush=True)
"""

# adds one to the number in the folder, as often as it is told, each time as its owner
WRITER = """
import sys
from pathlib import Path
from bench.storage.disk import write_bytes
from bench.storage.lock import owned
folder, times = Path(sys.argv[1]), int(sys.argv[2])
for _ in range(times):
    with owned(folder, 60):
        file = folder / "number"
        write_bytes(file, str(int(file.read_bytes()) + 1).encode(), synced=False)
"""

# gives the lock to a child that outlives it
PARENT = """
import subprocess, sys
from pathlib import Path
from bench.storage.lock import owned
with owned(Path(sys.argv[1])) as handle:
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], pass_fds=[handle])
    print(child.pid, flush=True)
    sys.stdin.readline()
"""


@contextmanager
def process(code, *arguments):
    """A process that is killed in the end."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def start(child):
    child.stdin.write("\n")
    child.stdin.flush()


@pytest.mark.parametrize("pairs", [pytest.param(5, marks=pytest.mark.ci), pytest.param(100, marks=pytest.mark.chaos)])
def test_of_two_processes_exactly_one_owns_the_folder(tmp_path, pairs):
    for number in range(pairs):
        folder = tmp_path / str(number)
        folder.mkdir()
        with process(OWNER, folder, 0) as first, process(OWNER, folder, 0) as second:
            start(first), start(second)
            said = {child.pid: child.stdout.readline().strip() for child in (first, second)}
            owner = next(pid for pid, line in said.items() if line == "owner")
            (other,) = (line for pid, line in said.items() if pid != owner)
            # where the loser came before the owner had written its number, it cannot name it
            assert re.fullmatch(rf"{folder} is in use by (process {owner} on '.+'|another process); wait .*", other)


@pytest.mark.parametrize("times", [pytest.param(10, marks=pytest.mark.ci), pytest.param(250, marks=pytest.mark.chaos)])
def test_eight_writers_lose_nothing(tmp_path, times):
    (tmp_path / "number").write_text("0")
    children = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(times)], cwd=ROOT) for _ in range(8)]
    assert [child.wait() for child in children] == [0] * 8
    assert int((tmp_path / "number").read_text()) == 8 * times


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.chaos)])
def test_the_lock_of_a_killed_owner_is_taken_over_at_once(tmp_path, kills):
    slowest = 0.0
    for _ in range(kills):
        with process(OWNER, tmp_path, 0) as child:
            start(child)
            assert child.stdout.readline() == "owner\n"
            os.kill(child.pid, signal.SIGKILL)
            began = time.monotonic()
            with owned(tmp_path, 5):
                slowest = max(slowest, time.monotonic() - began)
    print(f"{kills} takeovers, the slowest after {slowest:.3f} s")
    assert slowest < 5


def test_the_lock_of_a_living_owner_is_never_stolen(tmp_path):
    with process(OWNER, tmp_path, 0) as child:
        start(child)
        assert child.stdout.readline() == "owner\n"
        for _ in range(200):
            with pytest.raises(UsageError, match=f"in use by process {child.pid} on "), owned(tmp_path, 0):
                pass
        child.stdin.close()
        assert child.wait() == 0
    with owned(tmp_path, 0):
        pass


def test_a_child_that_holds_the_handle_keeps_the_lock_when_its_parent_is_killed(tmp_path):
    with process(PARENT, tmp_path) as parent:
        child = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        try:
            with pytest.raises(UsageError, match=f"in use by process {parent.pid} "), owned(tmp_path, 0.3):
                pass
        finally:
            os.kill(child, signal.SIGKILL)
        with owned(tmp_path, 5):
            pass
