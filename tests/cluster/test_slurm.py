"""Runs as jobs: submitit's local executor, whose jobs are preempted, queued again and lost as those of Slurm."""

import contextlib
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from cluster_fixtures import HELD, LIMIT, Heard, Once, cells, measured, opened, updates_saved
from held import HOLD

from bench.engines.local import LocalEngine
from bench.engines.slurm import JOBS, SlurmEngine, parse_parameters
from bench.runs.child_main import SAVE_EVERY
from bench.runs.conduct import run_all
from bench.spec import UsageError
from bench.storage.signals import Interrupted, signals_raise
from bench.storage.store import RunFolder

submitit = pytest.importorskip("submitit")
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3 * LIMIT), pytest.mark.filterwarnings("ignore")]


class Preempting(SlurmEngine):
    """The first job is preempted in its training, the last one is lost; until then no training ends."""

    preempted = killed = False

    def poll(self, seconds):
        first, *_, last = sorted(self._specs)
        if not self.preempted and first in self._jobs and begun(self, first):
            os.kill(task_of(self._jobs[first]), signal.SIGUSR2)  # as Slurm does, told by submitit
            self.preempted = True
        if not self.killed and last in self._jobs and begun(self, last):
            os.kill(task_of(self._jobs[last]), signal.SIGKILL)
            self.killed = True
        if self.preempted and self.killed:
            Path(os.environ[HOLD]).unlink(missing_ok=True)
        return super().poll(0.2)


def task_of(job) -> int:
    """The process of a local job's one task, whose parent stands in for Slurm."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == job._process.pid:
                    return int(entry.name)
    raise AssertionError(f"job {job.job_id} has no process")


def begun(engine: SlurmEngine, name: str) -> bool:
    """Whether something of the training is saved."""
    return updates_saved(RunFolder(engine._out, engine._specs[name])) > 0


def test_preempted_and_lost_jobs_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.engines.slurm.ARRIVES", 1.0)
    monkeypatch.setenv(HOLD, str(tmp_path / "hold"))
    specs = cells(2, 40, HELD)
    serial = tmp_path / "serial"
    assert run_all(serial, specs, Heard(), None, LocalEngine(serial, SAVE_EVERY, None)) == []
    (tmp_path / "hold").touch()
    out, display = opened(tmp_path / "out", specs), Heard()
    engine = Preempting(out, 0.0, specs, {}, cluster="local")
    with contextlib.closing(engine):
        assert run_all(out, specs, display, None, engine) == []
    assert (engine.preempted, engine.killed) == (True, True)
    assert display.finished == {f"{spec.name} finished": 1 for spec in specs}
    assert measured(out, specs) == measured(serial, specs)
    assert RunFolder(out, specs[0]).record().train.preemptions >= 1


def test_at_the_deadline_jobs_save_and_end_without_being_cancelled(tmp_path, monkeypatch):
    monkeypatch.setattr(submitit.LocalJob, "cancel", lambda job, check: pytest.fail("what Slurm does is to kill"))
    monkeypatch.setattr("bench.engines.slurm.PATIENCE", LIMIT)
    specs = cells(2, updates=100_000)
    out = opened(tmp_path / "out", specs)
    monkeypatch.setattr("bench.runs.conduct.time", Once(out, specs))
    engine = SlurmEngine(out, 0.0, specs, {}, cluster="local")
    with contextlib.closing(engine):
        assert run_all(out, specs, Heard(), None, engine, deadline=1.0) == [spec.name for spec in specs]
    for spec in specs:
        assert RunFolder(out, spec).record().message.startswith("stopped in the training")
        assert RunFolder(out, spec).checkpoint()[0] is not None


def test_a_signal_between_the_jobs_and_their_list_comes_after_the_list(tmp_path, monkeypatch):
    specs = cells(2)
    engine = SlurmEngine(opened(tmp_path / "out", specs), 0.2, specs, {}, cluster="local")
    made = []

    def submit(job):
        made.append(SimpleNamespace(job_id=str(len(made))))
        os.kill(os.getpid(), signal.SIGTERM)
        return made[-1]

    monkeypatch.setattr(engine, "_executor", SimpleNamespace(batch=contextlib.nullcontext, submit=submit))
    engine.start(specs[0])
    with pytest.raises(Interrupted), signals_raise():
        engine.poll(0)
    assert json.loads((tmp_path / "out" / JOBS).read_bytes()) == {specs[0].name: "0"}
    assert engine._jobs == {specs[0].name: made[0]}


def test_parameters():
    assert parse_parameters(("partition=gpu", "time=90", "mem=64")) == {
        "slurm_partition": "gpu",
        "timeout_min": 90,
        "slurm_mem": 64,
    }
    for wrong in ("partition", "=gpu", "time=2h"):
        with pytest.raises(UsageError, match="expected --slurm"):
            parse_parameters((wrong,))


def test_without_slurm_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="--engine slurm: "):
        SlurmEngine(tmp_path, 1.0, cells(1), {})
