"""The disk: a file is one complete version or another, whatever fails or kills on the way."""

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store_fixtures import files

from bench.storage import disk
from bench.storage.disk import (
    Disk,
    DiskError,
    is_there,
    listed,
    put_aside,
    remove_file,
    sync_folders,
    write_bytes,
    write_part,
)
from bench.storage.store import write_text


class Broken(Disk):
    """One method fails, each time that it is called; notes the names of all calls to write."""

    def __init__(self, method="", error=None):
        self.method, self.error, self.calls = method, error, []

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name not in ("create", "write", "sync", "close", "replace", "sync_folder", "make_folder", "names", "exists"):
            return found

        def call(*arguments):
            self.calls.append(name)
            if name == self.method:
                raise self.error
            return found(*arguments)

        return call


def broken(monkeypatch, method="", error=None):
    made = Broken(method, error or OSError(errno.EIO, "broken"))
    monkeypatch.setattr(disk, "DISK", made)
    return made


def test_write_replaces_the_whole_file_and_makes_its_folders(tmp_path):
    file = tmp_path / "a" / "b" / "file.bin"
    write_bytes(file, b"long content")
    write_bytes(file, b"short")
    assert file.read_bytes() == b"short"
    assert files(file.parent) == ["file.bin"]
    assert file.stat().st_mode & 0o777 == 0o644 & ~umask()
    write_text(file, "Grüße 8/255\n")
    assert file.read_bytes() == "Grüße 8/255\n".encode()


def umask():
    now = os.umask(0)
    os.umask(now)
    return now


@pytest.mark.parametrize("method", ["create", "write", "sync", "close", "replace"])
def test_a_call_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, method):
    file = tmp_path / "file.bin"
    write_bytes(file, b"old")
    broken(monkeypatch, method)
    with pytest.raises(DiskError, match=rf"^cannot write {file}: broken; mend that, and the same command goes on.*$"):
        write_bytes(file, b"new")
    assert file.read_bytes() == b"old"
    assert files(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_an_interrupt_in_the_write_leaves_the_old_file(tmp_path, monkeypatch, error):
    file = tmp_path / "file.bin"
    write_bytes(file, b"old")
    broken(monkeypatch, "sync", error)
    with pytest.raises(type(error)):
        write_bytes(file, b"new")
    assert file.read_bytes() == b"old"
    assert files(tmp_path) == ["file.bin"]


def test_the_file_is_synced_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    watched = broken(monkeypatch)
    write_bytes(tmp_path / "file.bin", b"x")
    calls = [call for call in watched.calls if call != "exists"]
    assert calls == ["create", "write", "sync", "close", "replace", "sync_folder"]
    watched.calls.clear()
    write_bytes(tmp_path / "beat.bin", b"x", synced=False)
    assert [call for call in watched.calls if call != "exists"] == ["create", "write", "close", "replace"]
    watched.calls.clear()
    write_bytes(tmp_path / "a" / "b" / "file.bin", b"x")  # every folder is synced where it was made
    calls = [call for call in watched.calls if call != "exists"]
    assert calls[:4] == ["make_folder", "sync_folder"] * 2


def test_a_write_in_many_pieces_is_whole(tmp_path, monkeypatch):
    class Short(Disk):
        def write(self, handle, data):
            return super().write(handle, data[:3])

    monkeypatch.setattr(disk, "DISK", Short())
    write_bytes(tmp_path / "file.bin", bytes(range(250)))
    assert (tmp_path / "file.bin").read_bytes() == bytes(range(250))


@pytest.mark.parametrize(("offset", "length"), [(4096, 8192), (4096, 100), (7, 4096)])
def test_a_part_of_a_file_lands_in_its_place(tmp_path, monkeypatch, offset, length):
    class Short(Disk):
        def write_at(self, handle, data, offset):
            return super().write_at(handle, data[:3000], offset)

    file, data = tmp_path / "file", random.Random(0).randbytes(length)
    file.write_bytes(bytes(20_000))
    monkeypatch.setattr(disk, "DISK", Short())
    write_part(file, offset, data)
    assert file.read_bytes() == bytes(offset) + data + bytes(20_000 - offset - length)


@pytest.mark.parametrize("method", ["open_to_change", "write_at", "sync", "close"])
def test_a_part_that_cannot_be_written(tmp_path, monkeypatch, method):
    class Refusing(Disk):
        def __getattribute__(self, name):
            if name == method:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().__getattribute__(name)

    monkeypatch.setattr(disk, "DISK", Refusing())
    with pytest.raises(
        DiskError, match=r"cannot write .*file: No space left on device; mend that, and the same command"
    ):
        write_part(tmp_path / "file", 0, b"12345")


def test_what_a_killed_process_of_the_same_number_left_is_no_hindrance(tmp_path):
    (tmp_path / f".file.bin.{os.getpid()}.tmp").write_bytes(b"half")
    write_bytes(tmp_path / "file.bin", b"whole")
    assert files(tmp_path) == ["file.bin"]


def test_reading_takes_no_more_than_was_asked_for(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    assert [Disk().read(tmp_path / "file", most) for most in (-1, 4, 10, 99)] == [
        b"0123456789",
        b"0123",
        b"0123456789",
        b"0123456789",
    ]


@pytest.mark.parametrize(
    ("call", "method", "message"),
    [
        (is_there, "exists", "cannot look for"),
        (listed, "names", "cannot list"),
        (sync_folders, "sync_folder", "cannot sync"),
        (put_aside, "replace", "cannot put aside"),
    ],
)
def test_what_the_system_refuses_is_one_line(tmp_path, monkeypatch, call, method, message):
    folder = tmp_path / "folder"
    folder.mkdir()
    broken(monkeypatch, method)
    with pytest.raises(DiskError) as refused:
        call(folder)
    advice = "mend that, and the same command goes on: what was finished stays readable"
    assert str(refused.value) == f"{message} {folder}: broken; {advice}"


def test_only_files_are_read(tmp_path):
    """Neither a pipe, which would wait for ever, nor a link, which may lead anywhere."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file") as refused:
        Disk().read(tmp_path / "pipe", None)
    assert (refused.value.errno, refused.value.filename) == (errno.EINVAL, str(tmp_path / "pipe"))


def test_what_is_not_there_is_no_failure(tmp_path):
    assert not is_there(tmp_path / "a")
    assert listed(tmp_path / "a") == []
    remove_file(tmp_path / "a")
    sync_folders(tmp_path / "a")
    with pytest.raises(DiskError, match=rf"^cannot remove {tmp_path}: "):
        remove_file(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"cannot write .*/file/a: Not a directory"):
        write_bytes(tmp_path / "file" / "a", b"")


WRITER = """
import hashlib, sys
from pathlib import Path
from bench.storage.disk import write_bytes
print("ready", flush=True)
for number in range(10**9):
    content = bytes([number % 251]) * (1000 + 997 * (number % 200))
    write_bytes(Path(sys.argv[1]), hashlib.sha256(content).digest() + content)
"""


def test_kill_9_at_any_moment_leaves_a_complete_version(tmp_path):
    """20 kills at random moments of a process that writes all the time; on a slow machine more, and later ones."""
    file, moments, seen, kills = tmp_path / "file.bin", random.Random(0), set(), 0
    root = str(Path(disk.__file__).parents[2])
    while kills < 20 or len(seen) <= 3:
        kills += 1
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(file)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": root},
        )
        with child.stdout:
            assert child.stdout.readline() == b"ready\n"
            time.sleep(moments.uniform(0.005, 0.05 * max(1, kills - 20)))
            os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        data = file.read_bytes() if file.exists() else hashlib.sha256(b"").digest()
        assert hashlib.sha256(data[32:]).digest() == data[:32]
        seen.add(len(data))
    write_bytes(file, b"and the next one writes as ever")
    assert file.read_bytes() == b"and the next one writes as ever"
