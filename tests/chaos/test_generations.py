"""Whatever happens to checkpoints, the two newest good generations are there (promise P5)."""

import random
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from disks import CrashDisk, FaultDisk, StopDisk, Stopped, using
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bench.spec import UsageError
from bench.storage.checkpoint import generations, load_checkpoint, load_generation, save_checkpoint
from bench.storage.disk import DiskError
from bench.storage.files import Damaged

FOLDER = Path("/checkpoints")
CALLS = st.integers(1, 90)  # a save makes some 60 to 90


def state(number):
    return {"updates": number, "weights": {"w": torch.full((2,), float(number))}, "lr": [0.1, None]}


class Generations(RuleBasedStateMachine):
    """``good``: the updates of the generations that must be there, the newest last.

    ``loose`` is one of them that a process had finished when it was stopped, but not synced: a power cut may take it.
    """

    @initialize()
    def begin(self):
        self.disk, self.good, self.number, self.loose = CrashDisk(), [], 0, None

    def try_to_save(self, disk):
        """Save the next state on a disk that may stop or fail: it counts where it can be loaded afterwards."""
        self.number += 1
        with using(disk), suppress(Stopped, DiskError):
            save_checkpoint(FOLDER, state(self.number))
        whole = self.whole()
        if self.number in whole:
            pruned = self.good[:-1] if set(self.good) - set(whole) else []  # the newest before it stays
            self.loose = self.loose if pruned else self.number
            self.good = [each for each in self.good if each not in pruned] + [self.number]

    def whole(self):
        """Updates of all generations that can be loaded -> their folder."""
        found = {}
        with using(self.disk):
            for path in generations(FOLDER):
                with suppress(UsageError):
                    found[load_generation(path)["updates"]] = path
        return found

    @rule()
    def save(self):
        self.number += 1
        with using(self.disk):
            save_checkpoint(FOLDER, state(self.number))
        self.good, self.loose = [*self.good[-1:], self.number], None
        assert sorted(self.whole()) == self.good  # and no more than these two

    @rule(at=CALLS)
    def kill(self, at):
        self.try_to_save(StopDisk(self.disk, at))

    @rule(at=CALLS, kind=st.sampled_from(["EIO", "ENOSPC", "short"]), lasting=st.booleans())
    def fail(self, at, kind, lasting):
        self.try_to_save(FaultDisk(self.disk, at, kind, lasting))

    @rule(at=CALLS, seed=st.integers(0, 10**6))
    def cut(self, at, seed):
        self.try_to_save(StopDisk(self.disk, at))
        self.disk.cut(random.Random(seed))
        if self.loose not in self.whole():
            self.good = [each for each in self.good if each != self.loose]
        self.loose = None

    @precondition(lambda self: self.good)
    @rule(file=st.integers(0, 2), bit=st.integers(0, 10**6))
    def corrupt_newest(self, file, bit):
        path = sorted(path for path in self.disk.files() if path.parent == self.whole()[self.good[-1]])[file]
        data = bytearray(self.disk.read(path))
        data[bit // 8 % len(data)] ^= 1 << bit % 8
        self.disk.spoil(path, bytes(data))
        self.good = self.good[:-1]

    @invariant()
    def the_newest_good_one_is_loaded(self):
        with using(self.disk):
            loaded, damaged = load_checkpoint(FOLDER)
        assert set(self.good) <= set(self.whole())
        if self.good:
            assert loaded == {**state(self.good[-1]), "weights": loaded["weights"]}
            assert torch.equal(loaded["weights"]["w"], state(self.good[-1])["weights"]["w"])
        assert all(isinstance(each, Damaged) for each in damaged)


@pytest.mark.parametrize("count", [25, pytest.param(2000, marks=pytest.mark.chaos)])
def test_the_two_newest_good_generations_are_always_there(count):
    run_state_machine_as_test(
        Generations,
        settings=settings(
            max_examples=count,
            stateful_step_count=12,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
