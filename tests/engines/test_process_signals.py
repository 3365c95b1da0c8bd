"""A run that is stopped: signals to the child, to the parent, to the server, and processes that are killed."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import pytest
from process_fixtures import CELLS, Shown, handlers_given_back, in_process, spec, task, weights

from bench.engines.child import run_child
from bench.engines.local import LocalEngine
from bench.runs.child_main import SAVE_EVERY
from bench.runs.conduct import run_all
from bench.spec import UsageError
from bench.storage.lock import owned
from bench.storage.signals import EXIT_INTERRUPTED, Interrupted
from bench.storage.store import RunFolder

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_signal_handlers():
    with handlers_given_back():
        yield


# ---------------------------------------------------------------- signals


LONG = spec("80up", method="cf_amc_ssl")  # free training carries a perturbation from batch to batch


@pytest.mark.parametrize(("signum", "code"), sorted(EXIT_INTERRUPTED.items()))
def test_a_signal_in_training_is_a_checkpoint_and_its_exit_code(tmp_path, signum, code):
    run = spec("50up")
    sent = []

    def once(event):
        if event["event"] == "train" and not sent:
            sent.append(event["updates"])
            os.kill(os.getpid(), signum)

    found, events = in_process(tmp_path, run, once)
    assert found == code
    assert events[-1]["status"] == "preempted"
    assert RunFolder(tmp_path, run).checkpoint()[0]["updates"] == sent[0] == 1


def test_a_signal_that_comes_while_the_process_starts_is_its_exit_code(tmp_path):
    """It is blocked until the process listens; sent to this thread, as another one of the test's would not block it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    assert in_process(tmp_path, spec()) == (143, [])
    assert not (tmp_path / "runs").exists()


def test_a_signal_that_a_library_makes_an_error_of_its_own_is_still_its_exit_code(tmp_path, monkeypatch):
    """As pydantic's compiled code does while it builds a model: what the handler raises comes out as a SchemaError."""

    def wrapped(*given, **more):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Interrupted as interrupted:
            raise ValueError(f"Error building a validator: Interrupted: {interrupted}") from None

    monkeypatch.setattr("bench.runs.execute.execute", wrapped)
    code, events = in_process(tmp_path, spec("5up"), lambda event: None)
    assert code == 143
    assert not [event for event in events if event["event"] == "error"]


def test_a_signal_in_the_evaluation_keeps_the_finished_cells(tmp_path):
    run = spec()

    def at_the_second_cell(event):
        if event["event"] == "cell" and (event["attack"], event["eps"]) == ("pgd", 0.025):
            os.kill(os.getpid(), signal.SIGINT)

    code, events = in_process(tmp_path, run, at_the_second_cell)
    record = RunFolder(tmp_path, run).record()
    assert (code, record.status) == (130, "preempted")
    assert events[-1]["message"] == "stopped in the evaluation; the same command goes on from there"
    assert sorted((r.attack, r.eps) for r in record.results) == [("none", 0.0), ("pgd", 0.025)]
    assert record.train.status == "finished"
    code, events = in_process(tmp_path, run)
    assert code == 0
    assert sum(event["event"] == "cell" for event in events) == len(CELLS) - 2
    assert RunFolder(tmp_path, run).record().status == "finished"


def test_a_signal_to_the_parent_reaches_the_child_which_saves(tmp_path):
    run = spec("20000up")

    def interrupted(event):
        raise Interrupted(signal.SIGINT)  # as signals_raise() does in the parent

    with pytest.raises(Interrupted) as raised:
        run_child(task(tmp_path, run), interrupted, tmp_path / "log.txt")
    assert raised.value.signum == signal.SIGINT
    assert RunFolder(tmp_path, run).record().status == "preempted"
    assert RunFolder(tmp_path, run).checkpoint()[0]["updates"] > 0
    assert (tmp_path / "log.txt").read_text() == ""


@pytest.mark.ci
def test_a_signal_to_the_child_alone_leaves_it_preempted(tmp_path):
    """Whoever stops one process, the command goes on with the next run, and the same command with this one."""
    runs, said = [spec("20000up"), spec("2up", seed=1)], []

    def once(run, event):
        if event["event"] == "train" and not said:
            said.append(event)
            os.kill(child_of_this_process(), signal.SIGTERM)

    assert run_all(tmp_path, runs, Shown(once), None, LocalEngine(tmp_path, SAVE_EVERY, None)) == [runs[0].name]
    assert [RunFolder(tmp_path, run).record().status for run in runs] == ["preempted", "finished"]


# ---------------------------------------------------------------- processes that die


def child_of_this_process():
    """The pid of the process that the server of this one has made."""
    server = forkserver._forkserver._forkserver_pid
    return int(Path(f"/proc/{server}/task/{server}/children").read_text().split()[0])


def blocked(pid):
    """The signals that a process does not take now."""
    mask = int(re.search(r"SigBlk:\s(\w+)", Path(f"/proc/{pid}/status").read_text())[1], 16)
    return {signum for signum in EXIT_INTERRUPTED if mask >> (signum - 1) & 1}


@pytest.mark.ci
def test_the_server_takes_no_signal_to_the_group_and_the_child_takes_all(tmp_path):
    found = {}

    def look(event):
        if event["event"] == "train":
            found["server"] = blocked(forkserver._forkserver._forkserver_pid)
            found["child"] = blocked(child_of_this_process())

    resource_tracker._resource_tracker._stop()
    forkserver._forkserver._stop()  # so that both are started here
    assert run_child(task(tmp_path, spec("1up")), look, tmp_path / "log.txt") == 0
    assert found == {"server": set(EXIT_INTERRUPTED), "child": set()}
    assert blocked(os.getpid()) == set()


@pytest.mark.ci
def test_a_killed_server_costs_nothing(tmp_path):
    runs, killed = [spec("20up"), spec("2up", seed=1)], []

    def once(run, event):
        if event["event"] == "train" and not killed:
            killed.append(forkserver._forkserver._forkserver_pid)
            os.kill(killed[0], signal.SIGKILL)

    assert run_all(tmp_path, runs, Shown(once), None, LocalEngine(tmp_path, SAVE_EVERY, None)) == []
    assert [RunFolder(tmp_path, run).record().status for run in runs] == ["finished", "finished"]
    assert len(killed) == 1


PARENT = """
import json, sys
from pathlib import Path
from bench.engines.child import run_child
from bench.storage.lock import owned
if __name__ == "__main__":
    out = Path(sys.argv[1])
    with owned(out) as lock:
        run_child(json.loads(sys.argv[2]), lambda event: print(json.dumps(event), flush=True), out / "log.txt", lock)
"""


@pytest.mark.ci
def test_a_child_whose_parent_is_killed_saves_ends_and_holds_the_lock_until_then(tmp_path):
    run, out = LONG, tmp_path / "a"
    out.mkdir()
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py"), str(out), json.dumps(task(out, run))]
    parent = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True
    )
    with parent, parent.stdout:
        assert json.loads(parent.stdout.readline())["event"] == "train"
        (server, child) = of_the_session(parent.pid)
        os.kill(child, signal.SIGSTOP)  # until its parent is gone and has been seen to be
        parent.kill()
        assert parent.wait() == -signal.SIGKILL
        with pytest.raises(UsageError, match=f"in use by process {parent.pid} on "), owned(out, 0):
            pass
        os.kill(child, signal.SIGCONT)
        with owned(out):  # which waits so long as a user's next command does
            assert not is_running(child)
    while is_running(server):
        time.sleep(0.05)
    folder = RunFolder(out, run)
    assert folder.record().status == "preempted"
    assert 0 < folder.checkpoint()[0]["updates"] < 80
    assert (out / "log.txt").read_text() == ""
    assert (in_process(out, run)[0], in_process(tmp_path / "undisturbed", run)[0]) == (0, 0)
    assert weights(out, run) == weights(tmp_path / "undisturbed", run)


def of_the_session(leader):
    """(server, child) of a process that runs a child: the one is its child, the other that of the server."""
    for pid in Path(f"/proc/{leader}/task/{leader}/children").read_text().split():
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(pid), int(children[0])
    raise AssertionError("it has no child")


def is_running(pid):
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
