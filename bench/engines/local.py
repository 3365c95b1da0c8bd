"""Runs in fresh processes of this machine: one on each GPU, or as many on a CPU as there are cores for."""

import time
from multiprocessing.connection import Connection, wait
from pathlib import Path

from bench.cores import cores
from bench.engines import codes_of, images_of, run_task
from bench.engines.child import Child
from bench.events import Event
from bench.runs.child_main import PATIENCE
from bench.spec import RunSpec, UsageError
from bench.storage.store import RunFolder


class LocalEngine:
    """``jobs`` runs at a time into the folder ``out``, which is owned through ``lock``.

    ``gpus`` are what CUDA_VISIBLE_DEVICES is to be, one for each job; none on a CPU.
    """

    def __init__(self, out: Path, save_every: float, lock: int | None, jobs: int = 1, gpus: tuple[str, ...] = ()):
        if gpus and len(gpus) != jobs:
            raise ValueError(f"expected a GPU for each of {jobs} jobs, got {len(gpus)}")
        self.slots = jobs
        self._out, self._save_every, self._lock = out, save_every, lock
        self._images, self._codes = images_of(out), codes_of(out)
        self._free = list(gpus)
        self._children: dict[str, Child] = {}
        self._gpu: dict[str, str] = {}

    def start(self, spec: RunSpec) -> None:
        """See Engine."""
        if self._free:
            self._gpu[spec.name] = self._free.pop(0)
        code = self._codes.get(spec.row, "")
        task = run_task(self._out, spec, self._save_every, self._images, self._gpu.get(spec.name), code)
        self._children[spec.name] = Child(task, RunFolder(self._out, spec).place("log.txt"), self._lock)

    def poll(self, seconds: float) -> list[tuple[str, Event]]:
        """See Engine."""
        names: dict[object, str] = {child.events: name for name, child in self._children.items()}
        pipes: list[Connection] = [child.events for child in self._children.values()]
        heard: list[tuple[str, Event]] = []
        for pipe in wait(pipes, seconds):
            name = names[pipe]
            child = self._children[name]
            events = child.heard()
            if events is None:
                events = [{"event": "exit", "code": child.ended()}]
                self._children.pop(name).close()
                self._free += [self._gpu.pop(name)] if name in self._gpu else []
            heard += [(name, event) for event in events]
        return heard

    def stop(self, signum: int) -> None:
        """See Engine: all of them end within the patience together."""
        until = time.monotonic() + PATIENCE
        for child in self._children.values():
            child.pass_on(signum)
        for child in self._children.values():
            child.leave(until - time.monotonic())

    def close(self) -> None:
        """See Engine."""
        for child in self._children.values():
            child.close()
        self._children.clear()


def local_jobs(specs: list[RunSpec], device: str, jobs: int | None) -> tuple[int, tuple[str, ...]]:
    """(jobs, the GPUs of each): a job for each GPU, or group of them, unless ``device`` names one; on a CPU as many as
    there are cores for.

    Raises UsageError where two timed runs would share a GPU or the cores.
    """
    from bench.device import device as devices

    if jobs is not None and jobs < 1:
        raise UsageError(f"expected --jobs of at least 1, got {jobs}")
    per_run = max(spec.gpus_per_run for spec in specs)
    seen = devices.visible_gpus() if device in ("auto", "cuda") else ()
    gpus = tuple(",".join(seen[start : start + per_run]) for start in range(0, len(seen) - per_run + 1, per_run))
    if gpus:
        if (jobs or 0) > len(gpus):
            raise UsageError(f"expected --jobs of at most {len(gpus)} on {len(seen)} GPUs, got {jobs}")
        most = gpus[: jobs or len(gpus)]
        return len(most), most if len(gpus) > 1 else ()
    usual = 1 if specs[0].device.startswith("cuda") else min(len(specs), cores() // threads_of(specs))
    return check_cores(specs, jobs or max(1, usual)), ()


def threads_of(specs: list[RunSpec]) -> int:
    """Cores that one run keeps busy, at most."""
    return max((spec.threads or cores()) * spec.gpus_per_run for spec in specs)


def check_cores(specs: list[RunSpec], jobs: int) -> int:
    """``jobs``, where runs in time do not share a core. Raises UsageError."""
    timed, threads, there = any(spec.budget.unit == "seconds" for spec in specs), threads_of(specs), cores()
    if jobs > 1 and timed and jobs * threads > there:
        ranks = max(spec.gpus_per_run for spec in specs)
        fit = there // (jobs * ranks)
        way = f"--threads {fit}" if fit else f"--jobs {max(1, there // ranks)} --threads 1"
        raise UsageError(
            f"expected runs in time to have their cores alone, got --jobs {jobs} of {threads} threads on {there} "
            f"cores; use {way}, or a budget in updates"
        )
    return jobs
