"""Decoded once: every pixel in its place, whatever is killed, damaged or changed on the way."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from data_fixtures import array_of, load, numbers, picture, write_images

from bench.data import cache, decoders
from bench.spec import UsageError
from bench.storage.lock import owned


@pytest.fixture
def decodings(monkeypatch):
    """Names of the images that this process has decoded."""
    names, real = [], cache.decode

    def decode(name, file, size):
        names.append(name)
        return real(name, file, size)

    monkeypatch.setattr(cache, "decode", decode)
    monkeypatch.setattr(decoders, "decode", decode)
    return names


def test_every_image_is_in_its_place_and_decoded_once(tmp_path, decodings):
    root = write_images(tmp_path / "set", 300, 20)
    train, test = load(root)
    assert sorted(numbers(train.images[:])) == list(range(300))
    assert [number * 2 // 300 for number in numbers(train.images[:])] == train.labels.tolist()
    assert sorted(numbers(test.images[:])) == list(range(20))
    assert len(decodings) == 322  # the first of each split also says what the others have to be
    again, _ = load(root)
    assert len(decodings) == 322
    assert torch.equal(again.images[:], train.images[:])
    assert again.sha256 == train.sha256


def test_the_file_is_an_array_that_numpy_maps(tmp_path):
    root = write_images(tmp_path / "set", 12)
    load(root)
    array = np.load(array_of(root), mmap_mode="r")
    assert (array.shape, array.dtype) == ((12, 3, 5, 6), np.uint8)
    assert array[:, 0, 2, 3].tolist() == list(range(12))


def test_another_size_is_another_array_and_another_name(tmp_path):
    root = write_images(tmp_path / "set", 12)
    whole, (small, _) = load(root)[0], load(root, image_size=8)
    assert (whole.label, whole.image_shape) == ("set", (3, 5, 6))
    assert (small.label, small.image_shape) == ("set-8px", (3, 8, 8))
    assert sorted(numbers(small.images[:])) == list(range(12))


def test_several_processes_give_the_same_array(tmp_path, monkeypatch):
    root = write_images(tmp_path / "set", 300)
    expected, _ = load(root)
    whole = array_of(root).read_bytes()
    shutil.rmtree(tmp_path / "kept")
    monkeypatch.setattr(cache, "FEW", 10)
    monkeypatch.setattr(cache, "cores", lambda: 1)
    assert load(root)[0].sha256 == expected.sha256
    assert array_of(root).read_bytes() == whole


PATH = os.pathsep.join([str(place) for place in Path(__file__).parents[1:3]])
KILL = """
import os, sys
from pathlib import Path
from data_fixtures import load
from bench.data import decoders
real, names = decoders.checksum, []
decoders.checksum = lambda pixels: (names.append(0), len(names) > 300 and os.kill(os.getpid(), 9), real(pixels))[2]
load(Path(sys.argv[1]))
"""


@pytest.mark.ci
def test_what_a_killed_decoding_has_left_is_never_believed(tmp_path, decodings):
    root = write_images(tmp_path / "set", 400)
    killed = subprocess.run([sys.executable, "-c", KILL, root], env=os.environ | {"PYTHONPATH": PATH}, check=False)
    assert killed.returncode == -signal.SIGKILL
    (half,) = (tmp_path / "kept" / "decoded").glob("*/pixels.npy")
    assert half.stat().st_size > 4096 + 90 * 200
    train, _ = load(root)
    assert len(decodings) == 406  # all, the test images, and the first of each split once more
    assert sorted(numbers(train.images[:])) == list(range(400))


POOL = """
import sys
from pathlib import Path
from data_fixtures import load
from bench.data import cache, decoders
if __name__ == "__main__":
    cache.FEW = decoders.TOGETHER = 1
    load(Path(sys.argv[1]))
"""


@pytest.mark.ci
def test_a_script_without_a_main_guard_decodes_once(tmp_path):
    root = write_images(tmp_path / "set", 40)
    script = POOL.replace('if __name__ == "__main__":', f"with open({str(tmp_path / 'times')!r}, 'a') as file:")
    (tmp_path / "pool.py").write_text(script.replace("cache.FEW", "file.write('x'); cache.FEW"))
    subprocess.run([sys.executable, tmp_path / "pool.py", root], env=os.environ | {"PYTHONPATH": PATH}, check=True)
    assert (tmp_path / "times").read_text() == "x"


@pytest.mark.ci
def test_workers_end_with_a_killed_parent(tmp_path):
    root = write_images(tmp_path / "set", 300)
    (tmp_path / "pool.py").write_text(POOL)
    process = subprocess.Popen([sys.executable, tmp_path / "pool.py", root], env=os.environ | {"PYTHONPATH": PATH})
    listing = f"/proc/{process.pid}/task/{process.pid}/children"
    children = []
    while len(children) < 2 and process.poll() is None:
        with open(listing) as file:
            children = file.read().split()
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert len(children) >= 2
    while any(os.path.exists(f"/proc/{child}") for child in children):
        time.sleep(0.01)
    assert sorted(numbers(load(root)[0].images[:])) == list(range(300))


@pytest.mark.parametrize("place", [17, 4096 + 200 * 90 + 17])
def test_a_damaged_array_is_noticed_and_made_again(tmp_path, decodings, place):
    root = write_images(tmp_path / "set", 300)
    train, _ = load(root)
    pixels, array = train.images[:].clone(), array_of(root)
    with array.open("r+b") as file:
        file.seek(place)
        file.write(b"\x99")
    decodings.clear()
    assert torch.equal(load(root)[0].images[:], pixels)
    assert len(decodings) == 301


def test_an_array_that_was_copied_costs_a_look_and_no_decoding(tmp_path, decodings):
    root = write_images(tmp_path / "set", 20)
    expected = load(root)[0].sha256
    os.utime(array_of(root), ns=(1, 1))
    decodings.clear()
    assert load(root)[0].sha256 == expected
    assert decodings == []
    os.utime(array_of(root), ns=(2, 2))
    with array_of(root).open("ab") as file:
        file.write(b"more")
    assert load(root)[0].sha256 == expected
    assert len(decodings) == 21


@pytest.mark.parametrize(("name", "decoded"), [("manifest.json", 21), ("checksums", 0)])
@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"", lambda data: data[:5] + b"#" + data[6:]])
def test_a_damaged_record_is_noticed_and_made_again(tmp_path, decodings, name, decoded, damage):
    root = write_images(tmp_path / "set", 20)
    expected = load(root)[0].sha256
    file = array_of(root).with_name(name)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    decodings.clear()
    assert load(root)[0].sha256 == expected
    assert len(decodings) == decoded
    assert name == "manifest.json" or file.read_bytes() == whole


def test_an_array_cut_short_or_gone(tmp_path):
    root = write_images(tmp_path / "set", 300)
    expected = load(root)[0].sha256
    os.truncate(array_of(root), 4096 + 90 * 150)
    assert load(root)[0].sha256 == expected
    array_of(root).unlink()
    assert load(root)[0].sha256 == expected
    assert sorted(numbers(load(root)[0].images[:])) == list(range(300))


def test_a_changed_source_gets_a_new_array_and_the_old_one_stays_for_who_has_it(tmp_path):
    root = write_images(tmp_path / "set", 20)
    before, _ = load(root)
    pixels = before.images[:].clone()
    file = root / "train" / "a" / "00003.png"
    file.write_bytes(picture(999))
    after, _ = load(root)
    assert sorted(numbers(after.images[:])) == sorted({*range(20), 999} - {3})
    assert after.sha256 != before.sha256
    assert torch.equal(before.images[:], pixels)
    file.unlink()
    assert sorted(numbers(load(root)[0].images[:])) == sorted({*range(20)} - {3})


def test_a_file_of_the_same_size_written_later_is_a_change(tmp_path):
    root = write_images(tmp_path / "set", 20)
    load(root)
    file = root / "train" / "a" / "00003.png"
    size = file.stat().st_size
    file.write_bytes(picture(4))
    assert file.stat().st_size == size
    assert sorted(numbers(load(root)[0].images[:])) == sorted([*range(3), 4, *range(4, 20)])


def test_a_damaged_image_is_named_and_leaves_nothing_to_believe(tmp_path):
    root = write_images(tmp_path / "set", 300)
    bad = root / "train" / "b" / "00200.png"
    good = bad.read_bytes()
    for damage, reason in ((good[:40], ".*"), (b"nothing", "no format that is read here .*")):
        bad.write_bytes(damage)
        with pytest.raises(UsageError, match=rf"cannot read the image {bad}: {reason}; replace or remove it"):
            load(root)
    bad.write_bytes(good)
    assert sorted(numbers(load(root)[0].images[:])) == list(range(300))


def test_a_damaged_image_is_named_by_the_process_that_meets_it(tmp_path, monkeypatch):
    root = write_images(tmp_path / "set", 30)
    bad = root / "train" / "b" / "00020.png"
    bad.write_bytes(b"nothing")
    monkeypatch.setattr(cache, "FEW", 10)
    monkeypatch.setattr(cache, "cores", lambda: 0)
    with pytest.raises(UsageError, match=rf"cannot read the image {bad}: no format that is read here .*; replace"):
        load(root)


def test_a_dataset_with_the_longest_name_that_a_disk_takes(tmp_path):
    for name in ("n" * 255, "\u65e5" * 85):
        assert load(write_images(tmp_path / name, 4))[0].label == name


def test_a_disk_that_is_too_small(tmp_path, monkeypatch):
    root = write_images(tmp_path / "set", 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 2000))
    with pytest.raises(
        UsageError, match=r"expected 6.8e-06 GB for the decoded images, found 2e-06 GB free in \S+; make room, or"
    ):
        load(root)


def test_a_second_process_waits_and_then_has_nothing_to_do(tmp_path, decodings):
    root = write_images(tmp_path / "set", 20, 20)
    load(root)
    folders = [path.parent for path in (tmp_path / "kept" / "decoded").glob("*/manifest.json")]
    kept = [(path, path.read_bytes()) for path in (folder / "manifest.json" for folder in folders)]
    for path, _ in kept:
        path.unlink()
    decodings.clear()
    found = []
    with owned(folders[0]), owned(folders[1]):
        waiting = threading.Thread(target=lambda: found.append(load(root)))
        waiting.start()
        time.sleep(0.3)
        assert not found
        for path, data in kept:  # what another process would have made meanwhile
            path.write_bytes(data)
    waiting.join()
    assert len(found) == 1
    assert decodings == []


def test_a_place_that_cannot_be_written_names_the_way_to_another(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"cannot write to .*; give another folder with --data-root or B"):
        cache.writable(tmp_path / "file" / "decoded")
