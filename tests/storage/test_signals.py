"""Signals ask a process to stop: at once, after the update under way, or after the moment that it is given."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.storage import signals
from bench.storage.signals import EXIT_INTERRUPTED, Interrupted, StopFlag, Stuck, signals_raise, signals_wait

ROOT = Path(__file__).parents[2]
ALL = list(EXIT_INTERRUPTED)


@pytest.fixture(autouse=True)
def own_handlers():
    """A flag takes the handlers of its process; here they are given back."""
    before = {signum: signal.getsignal(signum) for signum in (*ALL, signal.SIGALRM)}
    hook = sys.unraisablehook
    yield
    sys.unraisablehook = hook
    for signum, handler in before.items():
        signal.signal(signum, handler)


def send(signum):
    os.kill(os.getpid(), signum)


# ---------------------------------------------------------------- the parent


@pytest.mark.parametrize("signum", ALL)
def test_they_raise_and_are_given_back(signum):
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as raised, signals_raise():
        send(signum)
    assert raised.value.signum == signum
    assert signal.getsignal(signum) == before


def test_an_interruption_is_no_exception_that_a_method_could_swallow():
    assert not issubclass(Interrupted, Exception)


def test_what_has_to_be_done_whole_is_and_then_they_raise():
    before, done = signal.getsignal(signal.SIGTERM), []

    def work():
        with signals_raise(), signals_wait():
            send(signal.SIGTERM)
            done.append("whole")

    with pytest.raises(Interrupted) as raised:
        work()
    assert (raised.value.signum, done) == (signal.SIGTERM, ["whole"])
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_one_waits_for_nothing():
    done = []

    def work():
        with signals_raise(), signals_wait():
            send(signal.SIGINT)
            done.append("after one")
            send(signal.SIGTERM)
            done.append("after two")

    with pytest.raises(Interrupted) as raised:
        work()
    assert (raised.value.signum, done) == (signal.SIGINT, ["after one"])


def test_without_one_nothing_is_raised():
    with signals_raise():
        handler = signal.getsignal(signal.SIGINT)
        with signals_wait():
            assert signal.getsignal(signal.SIGINT) != handler
        assert signal.getsignal(signal.SIGINT) == handler


class Finalized:
    """A signal comes while it is finalized."""

    def __del__(self):
        send(signal.SIGTERM)
        sum(range(1000))


def finalize_and_go_on():
    """For a minute, of which a moment is needed."""
    Finalized()
    for _ in range(6000):
        time.sleep(0.01)


def raising():
    with signals_raise():
        finalize_and_go_on()


def in_a_child():
    StopFlag()
    finalize_and_go_on()


@pytest.mark.parametrize("process", [raising, in_a_child])
def test_one_that_python_drops_in_a_finalizer_comes_again(process):
    with pytest.raises(Interrupted) as raised:
        process()
    assert raised.value.signum == signal.SIGTERM


CLEANING_UP = """
import time
from bench.storage.signals import Interrupted, signals_raise
with signals_raise():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except Interrupted:
        print("saving", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("signum", ALL)
def test_a_second_signal_ends_the_process_at_once(signum):
    with subprocess.Popen([sys.executable, "-c", CLEANING_UP], stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "saving\n"
        child.send_signal(signum)
        assert child.wait() == -signum  # else it would end by itself, with 0


SLEEPING_COMMAND = """
import time
from bench import cli
@cli.cli.command()
def wait():
    print("ready", flush=True)
    time.sleep(60)
cli.main(["wait"])
"""


@pytest.mark.parametrize(("signum", "code"), EXIT_INTERRUPTED.items())
def test_every_command_ends_with_one_line_and_its_exit_code(signum, code):
    child = subprocess.Popen(
        [sys.executable, "-c", SLEEPING_COMMAND], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    with child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signum)
        _, errors = child.communicate()
    assert (child.returncode, errors) == (code, "bench: stopped; the same command goes on from here\n")


# ---------------------------------------------------------------- a child


def test_outside_of_training_it_raises_at_once():
    flag = StopFlag()
    with pytest.raises(Interrupted):
        send(signal.SIGUSR1)
    assert not flag()


@pytest.mark.parametrize("signum", ALL)
def test_in_training_the_first_is_a_flag(signum):
    flag = StopFlag()
    with flag.in_training():
        assert not flag()
        send(signum)
        assert flag()
        assert flag.signum == signum


def alarm():
    """Seconds until the alarm goes off; 0 where none is set."""
    return signal.getitimer(signal.ITIMER_REAL)[0]


def test_a_flag_that_is_heeded_raises_nothing_later():
    flag = StopFlag()
    with flag.in_training():
        send(signal.SIGTERM)
        assert 0 < alarm() <= signals.GRACE
    assert alarm() == 0
    assert flag()


def hang(flag, *signums):
    """An update of a minute, in whose beginning these signals come."""
    with flag.in_training():
        for signum in signums:
            send(signum)
        for _ in range(6000):
            time.sleep(0.01)


def test_an_update_that_takes_longer_than_the_grace_is_interrupted(monkeypatch):
    monkeypatch.setattr(signals, "GRACE", 0.2)
    began = time.monotonic()
    with pytest.raises(Interrupted) as raised:
        hang(StopFlag(), signal.SIGTERM)
    assert time.monotonic() - began >= 0.2
    assert raised.value.signum == signal.SIGTERM


def test_what_takes_longer_than_its_limit_is_stuck_and_no_handler_of_exceptions_holds_it():
    flag = StopFlag()
    with flag.in_training():
        flag.limit(60)
        assert alarm() > 0
        flag.settle()
        assert alarm() == 0

    def stuck():
        with flag.in_training(), contextlib.suppress(Exception):
            flag.limit(0.05)
            time.sleep(60)

    with pytest.raises(Stuck):
        stuck()


def test_a_second_one_in_training_interrupts_the_update():
    with pytest.raises(Interrupted) as raised:
        hang(StopFlag(), signal.SIGTERM, signal.SIGINT)
    assert raised.value.signum == signal.SIGINT  # after the grace it would be the first
