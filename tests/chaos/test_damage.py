"""Files go bad: every flipped bit, cut and hole is noticed, named, and made good (promise P4)."""

import random
from collections import Counter

import pytest
from disks import CrashDisk, using
from story import OUT, SPEC, kept, story

from bench.spec import UsageError
from bench.storage.checkpoint import load_generation
from bench.storage.files import Damaged
from bench.storage.repair import repair
from bench.storage.store import RunFolder, load_manifest


@pytest.fixture(scope="module")
def finished():
    """A finished run."""
    disk = CrashDisk()
    with using(disk):
        story()
    return disk


@pytest.fixture(scope="module")
def training():
    """A run in training, with two generations of its checkpoint."""
    disk = CrashDisk()
    with using(disk):
        story(stop_after=4)
    assert sum("checkpoints" in path.parts for path in disk.files()) == 6
    return disk


def flip(data, chance):
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]


def truncate(data, chance):
    return data[: chance.randrange(len(data))]


def zero(data, chance):
    """A hole of up to 64 bytes, not all of them zero before."""
    place = chance.choice([place for place, byte in enumerate(data) if byte])
    length = chance.randrange(1, 65)
    return data[:place] + bytes(min(length, len(data) - place)) + data[place + length :]


def noticed(path):
    """Whether the store says what is wrong with the file, and puts it aside or passes it over."""
    run = RunFolder(OUT, SPEC)
    if path.name == "manifest.json":
        with pytest.raises(Damaged, match=str(path)):
            load_manifest(OUT)
        return True
    if path.name == "beat.json":
        return run.beat() is None
    if "checkpoints" in path.parts:
        with pytest.raises(Damaged, match=str(path)):
            load_generation(path.parent)
        newest = path.parent.name == "000003"
        state, damaged = run.checkpoint()
        assert state["updates"] == (3 if newest else 4)
        return [each.path for each in damaged] == [path] * newest
    with pytest.raises(UsageError) as error:
        readers(run, path)
    assert "\n" not in str(error.value)
    record_damaged = []
    run.record(record_damaged)  # the rest can be shown
    assert path.suffix != ".json" or [each.path for each in record_damaged] == [path]
    aside = repair(run)
    return [each.path for each in aside] == [path] or any(path.stem in str(each) for each in aside)


def readers(run, path):
    """Read all that is in a run."""
    run.record()
    run.trained()
    for protocol in SPEC_PROTOCOLS:
        run.probe(protocol)
        for attack in ("pgd", "autoattack"):
            run.adversarial(protocol, attack)


SPEC_PROTOCOLS = ("linear", "multi_patch")


def spoil(begin, finished, harm, seed):
    """Spoil one file, look, and let the run go on. Returns the kind of the file."""
    chance = random.Random(f"{harm.__name__} {seed}")
    disk = begin.copy()
    path, data = chance.choice(sorted(disk.files().items()))
    worse = harm(data, chance)
    assert worse != data
    disk.spoil(path, worse)
    with using(disk):
        assert noticed(path), path
    again = begin.copy()  # and where nobody has looked yet
    again.spoil(path, worse)
    for each in (disk, again):
        with using(each):
            story()
        assert kept(each) == kept(finished)
    return path.suffix if "checkpoints" not in path.parts else path.name


SHORT = [(flip, range(60)), (truncate, range(12)), (zero, range(3))]
FULL = [(flip, range(start, start + 250)) for start in range(60, 1060, 250)]
FULL += [(truncate, range(12, 212)), (zero, range(3, 53))]


@pytest.mark.parametrize(
    ("harm", "seeds"),
    [
        *(pytest.param(*short, marks=pytest.mark.ci) for short in SHORT),
        *(pytest.param(*full, marks=pytest.mark.chaos) for full in FULL),
    ],
)
def test_every_damage_is_noticed_and_made_good(finished, training, harm, seeds):
    kinds = Counter(spoil((finished, training)[seed % 2], finished, harm, seed) for seed in seeds)
    print(f"{harm.__name__}: {len(seeds)} of {len(seeds)} noticed, {dict(kinds)}")
    assert kinds.total() == len(seeds)
    if len(seeds) >= 50:
        assert set(kinds) == {".json", ".safetensors", "MANIFEST.json", "state.json", "tensors.safetensors"}
