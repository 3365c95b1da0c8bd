"""Kill -9 at random moments of every phase: nothing lost, nothing done twice, and the same bytes at the end (P1)."""

import random
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest
from driver import (
    METHODS,
    Command,
    Forked,
    arguments,
    cell_lines,
    check_readable,
    content,
    finished_cells,
    outcome,
    phase,
    undisturbed,
)

from bench.storage.store import load_records

EACH = 3  # kills of each phase in one folder, as expected


@dataclass
class Tally:
    """What was done and what went wrong."""

    kills: Counter = field(default_factory=Counter)  # (phase, target)
    folders: int = 0
    lost: int = 0
    duplicated: int = 0
    unequal: list = field(default_factory=list)
    left: list = field(default_factory=list)
    slowest: float = 0.0  # seconds until the last process has ended after its parent was killed

    @property
    def total(self):
        return self.kills.total()

    def __str__(self):
        phases, targets = Counter(), Counter()
        for (name, target), count in self.kills.items():
            phases[name] += count
            targets[target] += count
        return (
            f"{self.total} kills in {self.folders} folders: {dict(phases)}, {dict(targets)}; lost {self.lost}, "
            f"duplicated {self.duplicated}, unequal {self.unequal}, left over {self.left}; "
            f"orphans ended within {self.slowest:.2f} s"
        )


def killed_run(out, given, times, chance, most, tally, kind):
    """Run the same command until it is finished, killing it on the way, at most so often."""
    order, slots = list(times), Counter(phase(slot) for slot in times)
    slots["start"] = 40  # some in each attempt
    done, lines, kills = {}, Counter(), 0
    while True:
        with kind(out, given) as command:
            was = None
            while not command.ended:
                slot = command.slot(order)
                if slot == was or slot is None:
                    time.sleep(0.01)
                    continue
                was = slot
                if kills == most or chance.random() > min(0.8, EACH / slots[phase(slot)]):
                    continue
                time.sleep(chance.random() * times[slot])
                if command.ended:
                    break
                here = command.slot(order) or slot  # it may have come further
                target = command.kill(chance.choice(["child", "parent", "tree"]))
                kills += 1
                tally.kills[phase(here), target] += 1
                print(f"{time.monotonic() - command.began:6.1f} s: {here}: {target}", flush=True)
                if target == "parent":
                    tally.slowest = max(tally.slowest, command.wait_until_all_have_ended())
            code = command.code
            tally.slowest = max(tally.slowest, command.wait_until_all_have_ended())
            lines.update(cell_lines(command.said))
            check_readable(out)
            later = finished_cells(out)
            tally.lost += sum(name not in later for name in done)
            tally.duplicated += sum(later.get(name, at) != at for name, at in done.items())
            done |= later
            assert code in (0, 3, -9), command.said
            if code == 0:
                break
    tally.folders += 1
    tally.duplicated += sum(count > 1 for count in lines.values())
    left = [p.name for p in out.rglob("*") if p.name.endswith((".tmp", ".damaged")) or p.name in LEFT]
    tally.left += left
    tally.left += [str(log) for log in out.rglob("*log.txt") if "Traceback" in log.read_text()]
    return kills


LEFT = ("checkpoints", "beat.json")


def compared(reference, out, tally):
    """What differs from the undisturbed run."""
    expected, found = outcome(reference), outcome(out)
    tally.lost += len(expected.keys() - found.keys())
    tally.unequal += [name for name in sorted(expected) if name in found and expected[name] != found[name]]
    tally.unequal += sorted(found.keys() - expected.keys())


def chaos(folder, audit, methods, kills, seed, kind=Forked, **others):
    """So many kills, in as many folders as that takes."""
    given, chance, tally = arguments(audit, methods, **others), random.Random(seed), Tally()
    times = undisturbed(folder / "undisturbed", given, kind)
    totals = Counter()
    for slot, seconds in times.items():
        totals[phase(slot)] += seconds
    print({name: round(seconds, 2) for name, seconds in totals.items()}, flush=True)
    while tally.total < kills:
        out = folder / f"killed{tally.folders}"
        killed_run(out, given, times, chance, kills - tally.total, tally, kind)
        compared(folder / "undisturbed", out, tally)
        print(tally, flush=True)
    return tally


def whole(tally):
    return (tally.lost, tally.duplicated, tally.unequal, tally.left) == (0, 0, [], [])


def sound(tally):
    return whole(tally) and tally.slowest < 10


@pytest.mark.ci
def test_a_few_kills_lose_and_repeat_nothing(tmp_path):
    """How long orphans take to end is measured on a machine that has nothing else to do, below."""
    tally = chaos(tmp_path, "core", ("cf_amc_ssl",), 4, 2, protocols="linear", attacks="pgd")
    assert whole(tally), str(tally)
    assert tally.total == 4


@pytest.mark.chaos
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("audit", "methods", "kills", "seed"),
    [("core", METHODS, 75, 0), ("core", METHODS, 75, 1), ("full", METHODS[:2], 50, 3)],
)
def test_two_hundred_kills_lose_and_repeat_nothing(tmp_path, audit, methods, kills, seed):
    tally = chaos(tmp_path, audit, methods, kills, seed)
    assert sound(tally), str(tally)
    assert tally.total == kills


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_commands_that_start_python_anew_lose_and_repeat_nothing(tmp_path):
    tally = chaos(tmp_path, "core", ("cf_amc_ssl",), 10, seed=4, kind=Command)
    assert sound(tally), str(tally)


# ---------------------------------------------------------------- a budget in seconds


@pytest.mark.ci
def test_what_is_trained_again_after_a_kill_is_shown_and_not_charged(tmp_path):
    """Saved at the start only, so that all of the training before a kill is lost."""
    out, lost = tmp_path / "out", []
    given = arguments("off", ["cf_amc_ssl"], "4s", every="5m", attacks="pgd", protocols="linear")
    run = out / "runs" / "cf_amc_ssl-s0"
    for target in ("tree", "child"):
        with Forked(out, given) as command:
            command.wait_for(lambda: seconds_heard(run) > 0.4 and run_began(run, command))
            command.kill(target)
            command.wait_for(lambda: command.ended)
            lost.append(seconds_heard(run))
    with Forked(out, given) as command:
        command.wait_for(lambda: command.ended)
    assert command.code == 0, command.said
    (record,) = load_records(out)
    assert record.train.preemptions == 2
    assert record.train.lost_seconds == pytest.approx(sum(lost), abs=1e-9)
    assert 1 < record.train.train_seconds <= 4
    assert record.status == "finished"
    assert not (run / "beat.json").exists()


def seconds_heard(run):
    """Seconds of training in the newest sign of life."""
    try:
        return content(run / "beat.json").get("seconds", 0.0)
    except ValueError:
        return 0.0


def run_began(run, command):
    return (run / "beat.json").stat().st_mtime_ns > command.began_at


# ---------------------------------------------------------------- two commands


@pytest.mark.ci
def test_a_second_command_waits_for_what_a_killed_one_has_left_and_goes_on(tmp_path):
    given = arguments("off", ["cf_amc_ssl"], "60up", every="0.001s", attacks="pgd", protocols="linear")
    out = tmp_path / "out"
    with Forked(out, given) as first:
        first.wait_for(lambda: list(out.glob("runs/*/checkpoints/000002/MANIFEST.json")))
        first.kill("parent")
        with Forked(out, given) as second:
            second.wait_for(lambda: second.ended)
    assert second.code == 0, second.said
    (record,) = load_records(out)
    assert record.train.preemptions == 1
    assert record.train.lost_seconds == 0  # the child has saved
    undisturbed(tmp_path / "undisturbed", given, Forked)
    assert outcome(out) == outcome(tmp_path / "undisturbed")


@pytest.mark.chaos
def test_of_two_commands_at_once_one_runs_and_the_other_says_who_does(tmp_path):
    out, given = tmp_path / "out", arguments("off", ["cf_amc_ssl"], "60s", attacks="pgd")
    with Forked(out, given) as first:
        first.wait_for(lambda: list(out.glob("runs/*/beat.json")))
        began = time.monotonic()
        with Forked(out, given) as second:
            second.wait_for(lambda: second.ended)
            assert time.monotonic() - began > 10
            assert not first.ended
    assert second.code == 2
    (line,) = second.said.splitlines()
    assert line.startswith(f"bench: {out} is in use by process {first.pid} on ")
