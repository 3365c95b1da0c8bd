"""The power fails at any moment: what was saved is there, and the run goes on to the same bytes (promise P3)."""

import random
from contextlib import suppress
from unittest.mock import patch

import pytest
from disks import CrashDisk, NoFolderSync, NoSync, StopDisk, Stopped, Watched, using
from story import check_readable, kept, story

CALLS = 1500  # more than a story makes: some are told to the end


@pytest.fixture(scope="module")
def whole():
    """(the files of an undisturbed run, what it saved)."""
    disk, log = CrashDisk(), []
    with using(Watched(disk)) as watched:
        story(log)
    assert watched.count < CALLS
    return kept(disk), log


def stop(disk, at, log):
    """Tell the story up to a call, as a process with a number of its own."""
    with using(StopDisk(disk, at)), suppress(Stopped), patch("os.getpid", return_value=10**6 + at):
        story(log)


def cut(whole, make, seed):
    """A power cut, in half of the cases of a run that was killed before. Raises where anything is lost."""
    chance, disk, log = random.Random(seed), make(), []
    if chance.random() < 0.5:
        stop(disk, chance.randrange(1, CALLS), log)
    stop(disk, chance.randrange(1, CALLS), log)
    disk.cut(chance)
    with using(disk):
        check_readable(log, whole[1])
        story()
    assert kept(disk) == whole[0]


def violations(whole, make, seeds):
    found = 0
    for seed in seeds:
        try:
            cut(whole, make, seed)
        except Exception:
            found += 1
    return found


PARTS = [pytest.param(range(start, start + 200), marks=pytest.mark.chaos) for start in range(60, 2060, 200)]


@pytest.mark.parametrize("seeds", [pytest.param(range(60), id="60 cuts", marks=pytest.mark.ci), *PARTS])
def test_no_cut_loses_what_was_saved(whole, seeds):
    for seed in seeds:
        cut(whole, CrashDisk, seed)


@pytest.mark.parametrize("mutant", [NoSync, NoFolderSync])
@pytest.mark.parametrize("seeds", [range(20), pytest.param(range(1000), marks=pytest.mark.chaos)], ids=len)
def test_a_disk_that_does_not_sync_is_noticed(whole, mutant, seeds):
    found = violations(whole, mutant, seeds)
    print(f"{mutant.__name__}: {found} violations in {len(seeds)} cuts")
    assert found >= max(1, len(seeds) // 100)


def test_the_disk_in_memory_forgets_what_was_not_synced(tmp_path):
    """Old, new, empty, torn and zeroed contents, and a lost name, all come up."""
    from pathlib import Path

    path, seen = Path("/file"), set()
    for seed in range(200):
        disk = CrashDisk()
        handle = disk.create(path)
        disk.write(handle, memoryview(b"abcd"))
        if seed % 2:
            disk.sync_folder(Path("/"))
        disk.cut(random.Random(seed))
        seen.add(disk.read(path) if disk.exists(path) else None)
    assert seen >= {None, b"", b"abcd", b"ab", b"a\0\0\0"}
    disk = CrashDisk()
    handle = disk.create(path)
    disk.write(handle, memoryview(b"abcd"))
    disk.sync(handle)
    disk.sync_folder(Path("/"))
    disk.cut(random.Random(0))
    assert disk.read(path) == b"abcd"
