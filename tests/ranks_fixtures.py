"""What the tests of several ranks share: real processes on this machine that make one run by gloo."""

import contextlib
import multiprocessing
import pickle
import traceback
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bench.distributed.ranks import ALONE, joined
from bench.runs.launch import PRELOAD, stay_on_this_machine

CPU = torch.device("cpu")


def rank_main(function, rank, size, meeting, sender, arguments):
    """One rank: what the function returns for it, or the traceback."""
    torch.set_num_threads(1)
    stay_on_this_machine()
    try:
        with joined(rank, size, CPU, meeting) as ranks:
            sender.send_bytes(pickle.dumps((True, function(ranks, *pickle.loads(arguments)))))
    except BaseException:
        sender.send_bytes(pickle.dumps((False, traceback.format_exc())))
        raise


def on_ranks(size, function, *arguments):
    """[function(ranks, *arguments) of each of ``size`` ranks]; alone, in this process."""
    if size == 1:
        return [function(ALONE, *arguments)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    answers, processes, receivers = {}, [], {}
    sent = pickle.dumps(arguments)  # torch would let all processes share the memory of the tensors
    with TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for rank in range(size):
            receiver, sender = context.Pipe(duplex=False)
            receivers[receiver] = rank
            meeting = f"file://{Path(folder) / 'meeting'}"
            process = context.Process(target=rank_main, args=(function, rank, size, meeting, sender, sent))
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
            sender.close()
            processes.append(process)
        while len(answers) < size:
            for receiver in wait([each for each, rank in receivers.items() if rank not in answers]):
                fine, answer = pickle.loads(receiver.recv_bytes())
                assert fine, answer
                answers[receivers[receiver]] = answer
        for process in processes:
            process.join()
    return [answers[rank] for rank in range(size)]
