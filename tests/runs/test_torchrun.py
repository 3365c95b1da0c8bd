"""The command under torchrun: one run, whose ranks may be on several machines."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.cli import cli
from bench.runs.torchrun import Place, place
from bench.spec import UsageError
from bench.storage.store import load_records

ROOT = Path(__file__).parents[2]
OPTIONS = [
    "--methods",
    "emp_ssl",
    "--set",
    "emp_ssl.batch=16",
    "--set",
    "emp_ssl.views=2",
    "--data",
    "synthetic",
    "--train-images",
    "32",
]
OPTIONS += [
    "--test-images",
    "8",
    "--threads",
    "1",
    "--device",
    "cpu",
    "--attacks",
    "pgd",
    "--protocols",
    "linear",
    "--checkpoint-every",
    "0.001s",
]


def torchrun(out, *arguments, budget="30up"):
    command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d", *arguments]
    command += ["-m", "bench", "run", *OPTIONS, "--budget", budget, "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_place(monkeypatch):
    assert place() is None
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert place() == Place(rank=9, size=16, local_rank=1)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "simclr", "--seeds", "2"], "expected one run under torchrun, got 2"),
        (["--methods", "simclr", "--gpus-per-run", "2"], "expected --gpus-per-run 4, as torchrun has started, got 2"),
        (["--methods", "simclr", "--track", "tensorboard"], "expected no --track under torchrun, which makes one run"),
        (["--methods", "simclr", "--deadline", "1h"], "expected no --deadline under torchrun, which makes one run"),
        (["--methods", "simclr", "--engine", "slurm"], "expected no --engine under torchrun, which makes one run"),
        (["--methods", "simclr", "--set", "simclr.batch=30"], "expected a batch in 4 equal parts, .* got 30"),
    ],
)
def test_what_it_cannot_start(options, message, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    arguments = ["run", "--data", "digits", "--budget", "1up", "--device", "cpu", *options]
    with pytest.raises(UsageError, match=message):
        CliRunner().invoke(cli, arguments, catch_exceptions=False)


@pytest.mark.slow
def test_two_machines_make_one_run(tmp_path):
    """Two of them on this one, which meet at an address."""
    where = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-endpoint", "localhost:29577", "--rdzv-id", "two"]
    both = [torchrun(tmp_path, *where, budget="4up") for _ in range(2)]
    said = [each.communicate(timeout=170)[0].decode() for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    (record,) = load_records(tmp_path)
    assert (record.status, record.train.updates, record.spec.gpus_per_run) == ("finished", 4, 2)
    assert record.environment.device_name.startswith("2 x ")


@pytest.mark.slow
def test_a_killed_rank_is_started_again_with_the_others(tmp_path):
    where = ["--nproc-per-node", "2", "--max-restarts", "1", "--rdzv-endpoint", "localhost:0"]
    process = torchrun(tmp_path, *where)
    checkpoints = tmp_path / "runs" / "emp_ssl-s0" / "checkpoints"
    deadline = time.monotonic() + 120
    while not (checkpoints.is_dir() and max(map(int, os.listdir(checkpoints)), default=0) > 2):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    said = process.communicate(timeout=170)[0].decode()
    assert process.returncode == 0, said
    (record,) = load_records(tmp_path)
    assert (record.status, record.train.updates, record.train.preemptions) == ("finished", 30, 1)
