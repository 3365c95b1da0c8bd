"""Runs as jobs of Slurm, one array of them, through submitit (the extra ``[slurm]``).

A job that Slurm preempts saves, is queued again, and goes on. Jobs outlive the conductor: one that is started again
finds those that still run.
"""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from bench.engines.parcel import Parcel
from bench.engines.worker import TELL_EVERY, Order, Outcome, answer, common, ended
from bench.events import Event
from bench.identity.source import source_hashes
from bench.runs.child_main import PATIENCE
from bench.spec import RunSpec, UsageError
from bench.storage.disk import is_there, write_bytes
from bench.storage.signals import signals_wait
from bench.storage.store import RunFolder

MOST = 1000  # jobs in one array: what Slurm allows where nobody has changed it (MaxArraySize)
FOREVER = 4320  # minutes: three days, where --slurm has no time
JOBS = "slurm/jobs.json"  # name of a run -> its last job
WORD, STOP, GO = "slurm/word", b"stop", b"go on"  # what the command has to say to its jobs, in a file that they read
LOOK_EVERY = 5.0  # seconds
ARRIVES = 15.0  # seconds that the result of a job that is over may need to be seen, on a slow file system


class Job:
    """What a job does. Called again from the start when Slurm has queued it again, it goes on from what was saved."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order

    def __call__(self) -> tuple[dict[str, Any], Parcel]:
        return answer(self.order, dict, lambda events: asked_to_stop(Path(self.order["out"])))

    def checkpoint(self) -> Any:
        """What submitit queues when the job is preempted or out of time: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def asked_to_stop(out: Path) -> bool:
    """Whether the command wants its jobs to save and end. Read anew: a network may hide for long that a file is new."""
    try:
        return (out / WORD).read_bytes() == STOP
    except OSError:
        return False


class SlurmEngine:
    """Runs of the folder ``out``, which every node sees, as jobs with ``parameters`` of submitit's (partition, ...).

    ``cluster``: ``slurm``, or ``local`` for processes of this machine that behave as jobs. Raises UsageError.
    """

    slots = MOST

    def __init__(
        self, out: Path, save_every: float, specs: list[RunSpec], parameters: dict[str, Any], cluster: str = "slurm"
    ) -> None:
        try:
            import submitit
        except ImportError:
            raise UsageError("--engine slurm needs submitit; pip install 'robust-ssl-bench[slurm]'") from None
        self._out, self._common = out, common(out, save_every)
        ranks = max(spec.gpus_per_run for spec in specs)
        gpus = ranks if specs[0].device.startswith("cuda") else 0
        asked = {
            "name": "bench",
            "timeout_min": FOREVER,
            "gpus_per_node": gpus,
            "cpus_per_task": ranks * max(spec.threads or 1 for spec in specs),
            "tasks_per_node": 1,
        }
        try:
            self._executor = submitit.AutoExecutor(folder=out / "slurm", cluster=cluster)
            self._executor.update_parameters(**asked | parameters)
        except (RuntimeError, TypeError, NameError, ValueError) as error:
            raise UsageError(f"--engine slurm: {str(error).splitlines()[0]}") from None
        self._job = submitit.SlurmJob if cluster == "slurm" else submitit.LocalJob
        self._waiting: list[RunSpec] = []
        self._jobs: dict[str, Any] = {}
        self._specs: dict[str, RunSpec] = {}
        write_bytes(out / WORD, GO)
        self._known = self._read_known()
        self._over: dict[str, float] = {}  # name of a run -> when its job was first seen to be over

    def _read_known(self) -> dict[str, str]:
        path = self._out / JOBS
        with contextlib.suppress(OSError, ValueError):
            jobs = json.loads(path.read_bytes()) if is_there(path) else {}
            return {str(name): str(job) for name, job in jobs.items()}
        return {}

    def start(self, spec: RunSpec) -> None:
        """See Engine: submitted with all others at the next look."""
        self._specs[spec.name] = spec
        before = self._known.get(spec.name)
        if before is not None:
            job: Any = self._job(self._executor.folder, before)
            if not job.done(force_check=True):
                self._jobs[spec.name] = job
                return
            del self._known[spec.name]
        self._waiting.append(spec)

    def _submit(self) -> None:
        source = source_hashes(self._waiting)
        orders = [Order(spec=spec, source=source[spec.row], **self._common) for spec in self._waiting]
        with signals_wait():  # no job without its place in the list, by which it is stopped and found again
            with self._executor.batch():
                jobs = [self._executor.submit(Job(order.model_dump(mode="json"))) for order in orders]
            for spec, job in zip(self._waiting, jobs, strict=True):
                self._jobs[spec.name] = job
                self._known[spec.name] = job.job_id
            self._waiting.clear()
            write_bytes(self._out / JOBS, json.dumps(self._known, indent=1).encode())

    def poll(self, seconds: float) -> list[tuple[str, Event]]:
        """See Engine. Of a job that runs there is nothing to hear but that it has ended."""
        if self._waiting:
            self._submit()
        until = time.monotonic() + seconds
        while True:
            over = [name for name in self._jobs if self._is_over(name)]
            left = until - time.monotonic()
            if over or left <= 0:
                return [(name, self._ended(name)) for name in over]
            time.sleep(min(left, LOOK_EVERY))

    def _is_over(self, name: str) -> bool:
        """Whether its job has ended, and its result is there or will not come. Never waits, as job.result would."""
        job = self._jobs[name]
        if not job.done():
            self._over.pop(name, None)  # queued again
            return False
        since = self._over.setdefault(name, time.monotonic())
        return bool(job.paths.result_pickle.exists()) or time.monotonic() - since > ARRIVES

    def _ended(self, name: str) -> Event:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        job = self._jobs.pop(name)
        self._known.pop(name)
        del self._over[name]
        if not job.paths.result_pickle.exists():
            job.cancel(check=False)  # so that Slurm does not start it once more beside the next one
            return {"event": "lost", "message": f"job {job.job_id} has ended without a result ({job.state})"}
        try:
            told, files = job.result()
        except FailedJobError as error:
            return {"event": "exit", "code": 1, "message": (str(error).strip().splitlines() or [repr(error)])[-1]}
        except (UncompletedJobError, OSError, EOFError) as error:
            return {"event": "lost", "message": f"job {job.job_id}: {str(error).strip().splitlines()[0]}"}
        return ended(Outcome.model_validate(told), files, RunFolder(self._out, self._specs[name]), stopping=False)

    def stop(self, signum: int) -> None:
        """See Engine: the jobs are told to save; those that have not ended then, or not begun, are cancelled.

        scancel alone would kill them: submitit takes no notice of the signal that comes before.
        """
        self._waiting.clear()
        write_bytes(self._out / WORD, STOP)
        until = time.monotonic() + 2 * TELL_EVERY + PATIENCE
        while time.monotonic() < until and not all(job.done() for job in self._jobs.values()):
            time.sleep(0.5)
        for job in self._jobs.values():
            if not job.done():
                job.cancel(check=False)

    def close(self) -> None:
        """See Engine. Jobs that run are left to Slurm: the same command finds them again."""


def parse_parameters(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``--slurm partition=gpu`` -> {"slurm_partition": "gpu"}; numbers are numbers. Raises UsageError."""
    parameters: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise UsageError(f"expected --slurm name=value, as partition=gpu, got {pair!r}")
        number = int(value) if value.isdigit() else value
        if name == "time":
            if not isinstance(number, int):
                raise UsageError(f"expected --slurm time=MINUTES, got {pair!r}")
            parameters["timeout_min"] = number
        else:
            parameters[f"slurm_{name}"] = number
    return parameters
