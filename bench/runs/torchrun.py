"""One run on the GPUs of several machines: the same command, started by torchrun on each of them.

    torchrun --nnodes 2 --nproc-per-node 8 --max-restarts 3 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        -m bench run --methods cf_amc_ssl --budget 2h --out /shared/runs/cf_amc_ssl

torchrun starts the ranks, finds out who they are, and starts all again when one dies; the run goes on from its
checkpoint. Rank 0 alone reads and writes the folder; at a restart it may be on another machine, which has to see it.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from bench.record import Manifest
from bench.runs.conduct import build_report, opened
from bench.runs.progress import Display
from bench.spec import UsageError
from bench.storage.store import RunFolder


@dataclass(frozen=True)
class Place:
    """Which of the ranks this process is, over all machines and on its own."""

    rank: int
    size: int
    local_rank: int


def place() -> Place | None:
    """Where torchrun has put this process; None if it has not started it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return Place(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


def check(here: Place, gpus_per_run: int, **others: bool) -> None:
    """Raises UsageError for another number of GPUs than torchrun has started, and for options without a use here."""
    for option in (name for name, given in others.items() if given):
        raise UsageError(f"expected no --{option} under torchrun, which makes one run, at once and here; leave it out")
    if gpus_per_run not in (1, here.size):
        raise UsageError(f"expected --gpus-per-run {here.size}, as torchrun has started, got {gpus_per_run}")


def run(here: Place, out: Path, manifest: Manifest, every: float, again: bool) -> list[str] | None:
    """Take part in the one run of the manifest, up to its report: on rank 0 what is not finished, else None.

    Raises UsageError for more runs than one, Interrupted when it was stopped, and what a run raises.
    """
    from bench.device import device as devices
    from bench.distributed.ranks import joined
    from bench.engines.assist import assist
    from bench.runs.execute import execute
    from bench.storage.signals import StopFlag

    if len(manifest.runs) != 1:
        problem = f"got {len(manifest.runs)}; give one method, one seed and one budget"
        raise UsageError(f"expected one run under torchrun, {problem}")
    (spec,) = manifest.runs
    device = devices.of_rank(devices.resolve(spec.device), here.local_rank)
    devices.prepare(device, spec.threads)
    flag = StopFlag()
    with joined(here.rank, here.size, device, "env://") as ranks:
        if here.rank > 0:
            assist(spec, device, flag, ranks)
            return None
        with opened(out, manifest, True, again), Display() as display:  # torchrun has one rank 0, now here, now there
            display.begin([spec], None)
            display.started(spec)
            execute(out, spec, lambda event: display.event(spec, event), flag, every, ranks)
            record = RunFolder(out, spec).record()
            display.ended(spec, record.status, record.message)
            build_report(out, display)
    return [] if record.status == "finished" else [spec.name]
