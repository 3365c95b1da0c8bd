"""The ranks of one run on this machine: started together, ended together, and started again when one of them dies.

The process of the cell starts them, a process for each GPU, and waits. Rank 0 makes the run as a process alone would;
the others train beside it and take their share of its attacks (bench.engines.assist). All read the same task.
"""

import json
import multiprocessing
import os
import signal
import socket
import time
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.device import device as devices
from bench.distributed.ranks import joined
from bench.engines.assist import assist
from bench.engines.child import PRELOAD
from bench.events import Report
from bench.runs.child_main import PATIENCE, SAVE_EVERY, expected_images, forked, task_of
from bench.runs.execute import execute
from bench.spec import RunSpec
from bench.storage.signals import Interrupted, StopFlag
from bench.storage.store import RunFolder

RESTARTS = 3  # of a run of which a rank has died
OUT_OF_MEMORY = 5  # exit code of a rank; the status of the run is that of any of them


def launch(task: dict[str, Any], report: Report, events: int, lock: Connection | None) -> int:
    """Do the task of one run on as many ranks as it asks for: the exit code, as of one process.

    A rank that is killed ends the others, and the run goes on from its checkpoint, ``RESTARTS`` times at most. Events
    go to the handle ``events``. Raises Interrupted after a signal, when the ranks have saved.
    """
    folder = RunFolder(Path(task["out"]), RunSpec.model_validate(task["spec"]))
    for left in reversed(range(RESTARTS + 1)):
        code = run_ranks(task, folder, events, lock)
        if code >= 0:
            break
        end = "the run goes on from its checkpoint" if left else f"for the {RESTARTS + 1}th time, and the run ends"
        report({"event": "damaged", "message": f"a process of the run died of {signal.Signals(-code).name}; {end}"})
    if code == OUT_OF_MEMORY:
        batch = f"out of memory with the parts of the batch on {folder.spec.gpus_per_run} GPUs"
        folder.save_record(folder.record().model_copy(update={"status": "oom", "message": batch}))
    return abs(code)


def run_ranks(task: dict[str, Any], folder: RunFolder, events: int, lock: Connection | None) -> int:
    """Start all ranks and wait until they have ended: 0, an exit code, or minus the signal that one has died of."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    size, log = folder.spec.gpus_per_run, str(folder.place("log.txt"))
    stay_on_this_machine()
    ranks: list[BaseProcess] = []
    with TemporaryDirectory() as scratch:
        meeting = f"file://{Path(scratch) / 'meeting'}"
        alive, our_life = context.Pipe(duplex=False)
        try:
            for rank in range(size):
                mine = task | task_of("rank", rank=rank, meeting=meeting)
                sender = Connection(os.dup(events), readable=False)
                arguments = (json.dumps(mine), sender, alive, lock, log)
                process = context.Process(target=forked, name=f"rank {rank}", args=arguments)
                process.start()
                ranks.append(process)
                sender.close()
            return ended(ranks)
        except Interrupted as interrupted:
            for child in ranks:
                if child.is_alive():
                    assert child.pid is not None
                    os.kill(child.pid, interrupted.signum)
            ended(ranks)
            raise
        finally:
            for child in ranks:
                child.kill()
                child.join()
            alive.close()
            our_life.close()


def ended(ranks: list[BaseProcess]) -> int:
    """The code of all ranks; after the first that fails, the others have a moment to end by themselves."""
    until = None
    while running := [rank for rank in ranks if rank.is_alive()]:
        failed = any(rank.exitcode for rank in ranks)
        until = time.monotonic() + PATIENCE if failed and until is None else until
        left = None if until is None else until - time.monotonic()
        if left is not None and left <= 0:
            break
        wait([rank.sentinel for rank in running], left)
    codes = [rank.exitcode for rank in ranks if rank.exitcode is not None]
    if ranks[0].exitcode == 0:
        return 0
    # what one has died of, or has run out of, is the cause of what the others complain about
    return min(codes) if min(codes) < 0 else max(codes, key=lambda code: (code == OUT_OF_MEMORY, code == 2, code))


def take_part(task: dict[str, Any], report: Report, flag: StopFlag) -> int:
    """The process of one rank: its exit code. Raises what a run raises."""
    spec, rank = RunSpec.model_validate(task["spec"]), task["rank"]
    device = devices.of_rank(devices.resolve(spec.device), rank)
    devices.prepare(device, spec.threads)
    try:
        with joined(rank, spec.gpus_per_run, device, task["meeting"]) as ranks:
            if rank == 0:
                every, images = task.get("save_every", SAVE_EVERY), expected_images(task)
                execute(Path(task["out"]), spec, report, flag, every, ranks, images, task.get("code", ""))
            else:
                assist(spec, device, flag, ranks)
    except Exception as error:
        if not devices.is_out_of_memory(error):
            raise
        return OUT_OF_MEMORY
    return 0


def stay_on_this_machine() -> None:
    """Let gloo and NCCL talk over the loopback interface: no other machine can reach it, no name is looked up."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, loopback)
