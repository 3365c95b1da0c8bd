"""SIGINT, SIGTERM and SIGUSR1 at random moments of a real run: it ends within 10 s, and goes on exactly (P9)."""

import contextlib
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest
from driver import Command, Forked, arguments, check_readable, outcome, phase, undisturbed

from bench.storage.signals import EXIT_INTERRUPTED
from bench.storage.store import load_records

EACH = 1  # signals in each phase of one folder, as expected
WITHIN, AT_ONCE = 10.0, 1.0  # seconds: after a signal; after a second SIGINT


@dataclass
class Stops:
    """What was done and what went wrong."""

    sent: Counter = field(default_factory=Counter)  # (phase, signal, to whom)
    slowest: float = 0.0  # seconds from the signal to the end of the last process
    slowest_second: float = 0.0  # seconds from the second SIGINT to the end of the command
    wrong: list = field(default_factory=list)

    def __str__(self):
        phases, kinds = Counter(), Counter()
        for (name, signum, whom), count in self.sent.items():
            phases[name] += count
            kinds[f"{signum.name} to the {whom}"] += count
        return (
            f"{self.sent.total()} signals: {dict(phases)}, {dict(kinds)}; all processes ended within "
            f"{self.slowest:.2f} s, after a second SIGINT within {self.slowest_second:.2f} s; wrong: {self.wrong}"
        )


def stop(command, here, chance, stops):
    """Send a signal, to the command or to its group as Ctrl-C does, and see how it ends; False where it had ended."""
    signum, whom = chance.choice(list(EXIT_INTERRUPTED)), chance.choice(["command", "group"])
    twice = signum == signal.SIGINT and chance.random() < 0.5
    began = time.monotonic()
    send = os.kill if whom == "command" else os.killpg
    try:
        send(command.pid, signum)
    except ProcessLookupError:
        return False
    if twice:
        time.sleep(chance.random() * 0.2)
        with contextlib.suppress(ProcessLookupError):
            send(command.pid, signum)
            began = time.monotonic()
            command.wait_for(lambda: command.ended)
            stops.slowest_second = max(stops.slowest_second, time.monotonic() - began)
    command.wait_until_all_have_ended()
    stops.slowest = max(stops.slowest, time.monotonic() - began)
    stops.sent[phase(here), signum, "group twice" if twice and whom == "group" else whom + " twice" * twice] += 1
    code = command.code
    expected = {EXIT_INTERRUPTED[signum], *([-signum] if twice else [])}
    said = "report" in here and "tables:" in command.said  # it was about to end anyway
    if code not in expected and not said and not (code == -signum and command.said == ""):
        stops.wrong.append(f"{here}: exit code {code} after {signum.name}: {command.said[-300:]}")
    if "Traceback" in command.said:
        stops.wrong.append(f"{here}: {command.said[-500:]}")
    print(f"{here}: {signum.name} to the {whom}{' twice' * twice}: {time.monotonic() - began:.2f} s", flush=True)
    return True


def stopped_run(out, given, times, chance, most, stops, kind):
    """Run the same command until it is finished, stopping it on the way, at most so often."""
    order, slots = list(times), Counter(phase(slot) for slot in times)
    slots["start"] = 30
    sent = 0
    while True:
        with kind(out, given) as command:
            was = None
            while not command.ended:
                slot = command.slot(order)
                if slot == was or slot is None:
                    time.sleep(0.01)
                    continue
                was = slot
                if sent == most or chance.random() > min(0.8, EACH / slots[phase(slot)]):
                    continue
                time.sleep(chance.random() * times[slot])
                if command.ended:
                    break
                sent += stop(command, command.slot(order) or slot, chance, stops)
            check_readable(out)
            records = load_records(out) if (out / "manifest.json").exists() else []
            stops.wrong += [f"{r.spec.name} has failed: {r.message}" for r in records if r.status == "failed"]
            if command.code == 0:
                break
            assert sent, command.said
    stops.wrong += [str(log) for log in out.rglob("*log.txt") if "Traceback" in log.read_text()]
    stops.wrong += [str(path) for path in out.rglob("*") if path.name.endswith((".tmp", ".damaged"))]
    return sent


def chaos(folder, audit, methods, signals, seed, kind=Forked, **others):
    """So many signals, in as many folders as that takes; each ends as the undisturbed run."""
    given, chance, stops, number = arguments(audit, methods, **others), random.Random(seed), Stops(), 0
    times = undisturbed(folder / "undisturbed", given, kind)
    expected = outcome(folder / "undisturbed")
    while stops.sent.total() < signals:
        out = folder / f"stopped{number}"
        stopped_run(out, given, times, chance, signals - stops.sent.total(), stops, kind)
        found = outcome(out)
        stops.wrong += [n for n in sorted(expected.keys() | found.keys()) if expected.get(n) != found.get(n)]
        number += 1
    print(stops, flush=True)
    return stops


def sound(stops):
    return not stops.wrong and stops.slowest < WITHIN and stops.slowest_second < AT_ONCE


@pytest.mark.ci
def test_after_three_signals_the_run_goes_on_exactly(tmp_path):
    """How long each takes is measured on a machine that has nothing else to do, below."""
    stops = chaos(tmp_path, "core", ("cf_amc_ssl",), 3, 5, protocols="linear", attacks="pgd")
    assert not stops.wrong, str(stops)


@pytest.mark.chaos
@pytest.mark.timeout(7200)
def test_fifty_signals_end_within_ten_seconds_and_the_run_goes_on_exactly(tmp_path):
    stops = chaos(tmp_path, "core", ("emp_ssl", "cf_amc_ssl"), 50, seed=0)
    assert sound(stops), str(stops)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_commands_that_start_python_anew_end_within_ten_seconds(tmp_path):
    stops = chaos(tmp_path, "core", ("cf_amc_ssl",), 10, seed=1, kind=Command)
    assert sound(stops), str(stops)


# ---------------------------------------------------------------- an update that takes too long

SLOW = """
import hashlib, time
from pathlib import Path
from methods import emp_ssl

Config = emp_ssl.Config
calls = []

class Method(emp_ssl.Method):
    def loss(self, views):
        calls.append(1)
        if len(calls) > 5:
            Path(r"{flag}").write_text("")
            {wait}
        return super().loss(views)
"""
PYTHON = "[time.sleep(0.01) for _ in range(6000)]"
C = "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2 * 10**8)"  # a minute in one call


@pytest.mark.chaos
@pytest.mark.parametrize("wait", [PYTHON, C], ids=["in Python", "in one call"])
def test_an_update_that_takes_a_minute_is_dropped(tmp_path, wait):
    flag, method = tmp_path / "flag", tmp_path / "slow.py"
    method.write_text(SLOW.format(flag=flag, wait=wait))
    with Forked(tmp_path / "out", arguments("off", [str(method)], "20up")) as command:
        command.wait_for(flag.exists)
        began = time.monotonic()
        os.kill(command.pid, signal.SIGTERM)
        command.wait_until_all_have_ended()
        seconds = time.monotonic() - began
    print(f"ended after {seconds:.2f} s")
    assert seconds < WITHIN
    assert command.code == 143
    (record,) = load_records(tmp_path / "out")
    assert (record.status, record.train) == ("preempted", None)
    assert list((tmp_path / "out").glob("runs/slow-s0/checkpoints/*/MANIFEST.json"))
    method.write_text(SLOW.format(flag=flag, wait="pass"))
    with Forked(tmp_path / "out", arguments("off", [str(method)], "20up")) as command:
        command.wait_for(lambda: command.ended)
    assert command.code == 0
