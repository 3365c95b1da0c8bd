"""The lock: one owner for each folder, whose name is told, and none after a death."""

import errno
import fcntl
import json
import os
import platform
import subprocess
import sys

import pytest
from store_fixtures import files

from bench.spec import UsageError
from bench.storage import lock
from bench.storage.disk import DiskError
from bench.storage.lock import LOCK, file_system, owned


def test_the_owner_is_written_down_and_the_folder_is_free_afterwards(tmp_path):
    for _ in range(2):
        with owned(tmp_path) as handle:
            assert json.loads((tmp_path / LOCK).read_text()) == {"pid": os.getpid(), "host": platform.node()}
            assert os.fstat(handle).st_ino == (tmp_path / LOCK).stat().st_ino
            assert not os.get_inheritable(handle)
    assert files(tmp_path) == [LOCK]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_folder_is_free_after_a_failure(tmp_path, error):
    with pytest.raises(error), owned(tmp_path):
        raise error
    with owned(tmp_path, 0):
        pass


def test_a_second_owner_is_told_who_is_the_first(tmp_path):
    line = rf"^{tmp_path} is in use by process {os.getpid()} on '.*'; wait until it has ended, or choose another --out$"
    with owned(tmp_path), pytest.raises(UsageError, match=line), owned(tmp_path, 0.05):
        pass


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"pid": "me", "host": ""}', b"\xff", b'{"pid": 1}', b"3"])
def test_an_owner_that_is_not_named_is_another_process(tmp_path, text):
    with owned(tmp_path):
        (tmp_path / LOCK).write_bytes(text)
        with pytest.raises(UsageError, match="in use by another process; wait"), owned(tmp_path, 0):
            pass


def test_a_hostile_name_in_the_lock_is_no_terminal_code(tmp_path):
    with owned(tmp_path):
        (tmp_path / LOCK).write_text(json.dumps({"pid": 1, "host": "\x1b[31m" + "x" * 500}))
        with pytest.raises(UsageError) as error, owned(tmp_path, 0):
            pass
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 300 + len(str(tmp_path))


def test_a_shorter_owner_replaces_a_longer_one(tmp_path):
    (tmp_path / LOCK).write_text("x" * 1000)
    with owned(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_it_waits_as_long_as_it_was_told(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(lock.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    with owned(tmp_path), pytest.raises(UsageError), owned(tmp_path, 15.0):
        pass
    assert 15.0 <= now[0] <= 15.2


def test_it_takes_a_folder_that_becomes_free(tmp_path, monkeypatch):
    first = os.open(tmp_path / LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(first, fcntl.LOCK_EX)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: fcntl.flock(first, fcntl.LOCK_UN))
    with owned(tmp_path, 5.0):
        pass
    os.close(first)


@pytest.mark.parametrize("call", ["open", "ftruncate", "pwrite"])
def test_what_the_system_refuses_is_one_line(tmp_path, monkeypatch, call):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(lock.os, call, fail)
    with pytest.raises(DiskError, match=rf"^cannot lock {tmp_path}: No space left on device; "), owned(tmp_path):
        pass
    monkeypatch.undo()
    with owned(tmp_path, 0):
        pass


def test_a_failure_of_the_owner_is_not_one_of_the_lock(tmp_path):
    with pytest.raises(OSError, match="its own") as error, owned(tmp_path):
        raise OSError("its own")
    assert not isinstance(error.value, DiskError)


@pytest.mark.parametrize(("kind", "host", "refused"), [
    ("nfs4", "elsewhere", True),
    ("cifs", "elsewhere", True),
    ("fuse.sshfs", "elsewhere", True),
    ("nfs4", platform.node(), False),
    ("ext4", "elsewhere", False),
])  # fmt: skip
def test_another_machine_on_a_network_is_refused(tmp_path, monkeypatch, kind, host, refused):
    (tmp_path / LOCK).write_text(json.dumps({"pid": 1, "host": host}))
    monkeypatch.setattr(lock, "file_system", lambda path: kind)
    if not refused:
        with owned(tmp_path, 0):
            pass
        return
    with (
        pytest.raises(UsageError, match=rf"on a network \({kind}\) and was last written by 'elsewhere'.*remove .*lock"),
        owned(tmp_path, 0),
    ):
        pass
    assert json.loads((tmp_path / LOCK).read_text())["host"] == "elsewhere"


def test_the_file_system_is_that_of_the_deepest_mount(tmp_path, monkeypatch):
    lines = "/dev/a / ext4 rw 0 0\nserver:/x /data nfs4 rw 0 0\n/dev/b /data/local xfs rw 0 0\n"
    mounts = tmp_path / "mounts"
    mounts.write_text(lines)
    real = lock.Path
    monkeypatch.setattr(lock, "Path", lambda name: mounts if name == "/proc/mounts" else real(name))
    found = [file_system(real(each)) for each in ("/home/me", "/data/runs", "/data/local/runs", "/database")]
    assert found == ["ext4", "nfs4", "xfs", "ext4"]
    mounts.unlink()
    assert file_system(real("/home")) == ""


def test_the_lock_needs_no_torch():
    code = "import sys, bench.storage.lock, bench.storage.disk, bench.storage.files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
