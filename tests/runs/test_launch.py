"""A run on two ranks as the engine starts it: killed, stopped, refused, out of memory."""

import json
import multiprocessing
import os
import signal
import threading

import pytest
from process_fixtures import EVAL, spec

from bench.runs.child_main import SAVE_EVERY
from bench.runs.launch import OUT_OF_MEMORY, RESTARTS, launch
from bench.storage.signals import Interrupted, signals_raise
from bench.storage.store import RunFolder

SMALL = {"batch": 16, "views": 2, "feature_width": 16, "hidden_width": 16, "embedding_width": 8}
CLEAN = EVAL.model_copy(update={"protocols": ("linear",), "curve": ()})
OWN_LOSS = """
import torch
from methods.simclr import Config, Method as SimCLR

class Method(SimCLR):
    def loss(self, views):
        {body}
"""


class Cell:
    """A run of two ranks in a folder; ``on`` is called with each of its events, in another thread."""

    def __init__(self, out, on=lambda event: None, save_every=SAVE_EVERY, **changes):
        self.folder = RunFolder(out, spec(**{"gpus_per_run": 2, "settings": SMALL, "eval": CLEAN} | changes))
        self.on, self.save_every = on, save_every
        self.events, self.said = [], []

    def run(self):
        """The exit code."""
        self.folder.place("x").parent.mkdir(parents=True, exist_ok=True)
        receive, send = os.pipe()
        reader = threading.Thread(target=self.listen, args=(receive,))
        reader.start()
        task = {"out": str(self.folder.out), "spec": self.folder.spec.model_dump(mode="json")}
        try:
            return launch(task | {"save_every": self.save_every}, self.said.append, send, None)
        finally:
            os.close(send)
            reader.join()

    def listen(self, handle):
        with open(handle, encoding="utf-8") as lines:
            for line in lines:
                self.events.append(json.loads(line))
                self.on(self.events[-1])

    def weights(self):
        return self.folder.trained()[1]


def kill(rank, signum=signal.SIGKILL):
    """Send a signal to a rank of the run that this process has started."""
    found = [each for each in multiprocessing.active_children() if each.name == f"rank {rank}"]
    os.kill(found[0].pid, signum)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    cell = Cell(tmp_path_factory.mktemp("undisturbed"), budget="20up")
    assert cell.run() == 0
    return cell


@pytest.mark.ci
def test_a_run_is_finished_and_says_on_how_many_devices(undisturbed):
    record = undisturbed.folder.record()
    assert (record.status, record.train.updates, record.train.preemptions) == ("finished", 20, 0)
    assert record.environment.device_name.startswith("2 x ")
    assert [event["event"] for event in undisturbed.events][-1] == "ended"
    assert len(record.results) == 2
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.ci)])
def test_a_killed_rank_ends_the_others_and_the_run_goes_on_to_the_same_bytes(rank, undisturbed, tmp_path):
    killed = []

    def on(event):
        if event["event"] == "train" and not killed:
            killed.append(event["updates"])
            kill(rank)

    cell = Cell(tmp_path, on, save_every=0.0, budget="20up")
    assert cell.run() == 0
    record, expected = cell.folder.record(), undisturbed.folder.record()
    assert [each["message"] for each in cell.said] == [
        "a process of the run died of SIGKILL; the run goes on from its checkpoint"
    ]
    assert (record.status, record.train.updates, record.train.preemptions) == ("finished", 20, 1)
    assert record.train.encoder_sha256 == expected.train.encoder_sha256
    assert [each.outcomes for each in record.results] == [each.outcomes for each in expected.results]


@pytest.mark.slow
def test_a_rank_that_dies_each_time_ends_the_run(tmp_path):
    cell = Cell(tmp_path, lambda event: kill(1) if event["event"] == "train" else None, budget="500up")
    assert cell.run() == signal.SIGKILL
    assert len(cell.said) == RESTARTS + 1
    assert cell.said[-1]["message"].endswith(f"for the {RESTARTS + 1}th time, and the run ends")
    assert cell.folder.record().status == "pending"


@pytest.mark.parametrize("to", [pytest.param("all", marks=pytest.mark.ci), pytest.param("one", marks=pytest.mark.slow)])
def test_a_stop_is_saved_and_gone_on_from(to, undisturbed, tmp_path):
    sent = []

    def on(event):
        if event["event"] == "train" and not sent:
            sent.append(0)
            kill(1, signal.SIGTERM) if to == "one" else os.kill(os.getpid(), signal.SIGTERM)

    cell = Cell(tmp_path, on, budget="20up")
    if to == "all":
        with signals_raise(), pytest.raises(Interrupted):
            cell.run()
    else:
        assert cell.run() == 143
    assert cell.folder.record().status == "preempted"
    assert 1 <= cell.folder.checkpoint()[0]["updates"] < 20
    assert cell.run() == 0
    record = cell.folder.record()
    assert (record.status, record.train.preemptions) == ("finished", 1)
    assert record.train.encoder_sha256 == undisturbed.folder.record().train.encoder_sha256


def test_a_loss_of_the_own_part_is_refused(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN_LOSS.format(body="return self.encoder(views.flatten(0, 1)).square().mean()"))
    cell = Cell(tmp_path / "out", method="own", method_path=str(file), settings={"batch": 16})
    assert cell.run() == 2
    errors = [event for event in cell.events if event["event"] == "error"]
    assert errors
    assert all("a loss of the whole batch on each of 2 GPUs" in each["message"] for each in errors)


def test_one_rank_out_of_memory_is_the_status_of_the_run(tmp_path):
    file = tmp_path / "own.py"
    body = "import torch.distributed as dist\n        if dist.get_rank() == 1: raise torch.OutOfMemoryError('full')\n"
    file.write_text(OWN_LOSS.format(body=body + "        return super().loss(views)"))
    cell = Cell(tmp_path / "out", method="own", method_path=str(file), settings={"batch": 16})
    assert cell.run() == OUT_OF_MEMORY
    record = cell.folder.record()
    assert (record.status, record.message) == ("oom", "out of memory with the parts of the batch on 2 GPUs")
