"""A real `bench run` in processes of its own, watched from outside: where it is, and what it has left behind."""

import contextlib
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from multiprocessing import forkserver
from pathlib import Path

import fork
import pandas as pd

from bench.storage.files import unsealed
from bench.storage.store import load_records

ROOT = Path(__file__).parent.parent.parent
METHODS = ("emp_ssl", "simclr_adv", "cf_amc_ssl", "emp_ssl_adv")
SMALL = ["--data", "digits", "--train-images", "64", "--test-images", "12", "--encoder", "resnet8"]
SMALL += ["--threads", "1", "--device", "cpu", "--set", "all.batch=16", "--set", "all.views=2"]
BOTH = "linear,multi_patch"
PRELOAD = ["torch", "torchvision.models", "sklearn.datasets", "reports.build"]
PRELOAD += ["bench.runs.execute", "bench.audit.transfer", "small"]
MARK = "BENCH_TEST_PROCESS"
LIMIT = 600.0  # seconds, on whatever machine: only so that what hangs ends


def arguments(audit, methods=METHODS, budget="30up", every="0.2s", attacks="pgd,autoattack", protocols=BOTH):
    """Of a run of some seconds."""
    chosen = ["--methods", ",".join(methods), "--budget", budget, "--checkpoint-every", every]
    chosen += ["--attacks", attacks, "--protocols", protocols, "--audit", audit, "--eps", "0.03", "--eval", "quick"]
    return ["run", *chosen, *SMALL]


class Command:
    """One `bench` command as a process in a session of its own, and all that it starts, found by a mark."""

    def __init__(self, out, given):
        self.mark = uuid.uuid4().hex
        self.out, self.log = Path(out), Path(out).with_suffix(f".{self.mark[:8]}.err")
        self.began, self.began_at = time.monotonic(), time.time_ns()
        environment = os.environ | {MARK: self.mark, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with open(self.log, "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "tests/short/small.py", *given, "--out", str(out)],
                cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
            )  # fmt: skip
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.kill("tree")

    @property
    def code(self):
        """Its exit code; None where it has not ended."""
        return self.process.poll()

    @property
    def ended(self):
        return self.code is not None

    @property
    def said(self):
        return self.log.read_text(encoding="utf-8")

    def alive(self):
        """pids of all its processes, those that have lost their parent included; not of the dead."""
        found = []
        for each in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ProcessLookupError):
                if each.name.isdecimal() and f"{MARK}={self.mark}".encode() in (each / "environ").read_bytes():
                    found.append(int(each.name))
        return found

    def child(self):
        """The pid of the process that does the work, which leads a session of its own; None where there is none."""
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                if pid != self.pid and os.getsid(pid) == pid:
                    return pid
        return None

    def kill(self, target):
        """Kill -9 of the ``child``, the ``parent`` or the whole ``tree``; of the parent where there is no child."""
        child = self.child() if target == "child" else None
        pids = [child] if child else [self.pid] if target != "tree" else [self.pid, *self.alive()]
        while pids:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            pids = self.alive() if target == "tree" else []
        return "child" if child else "tree" if target == "tree" else "parent"

    def wait_for(self, condition, seconds=LIMIT):
        """Until it holds; seconds that it took. Raises AssertionError."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < seconds, f"nothing for {seconds} s; it said:\n{self.said}"
            time.sleep(0.01)
        return time.monotonic() - began

    def wait_until_all_have_ended(self):
        """How long that took."""
        return self.wait_for(lambda: self.ended and not self.alive())

    # ------------------------------------------------------------ where it is

    def active(self):
        """``start``, the name of the run under way, ``transfer`` or ``report``: as it has said."""
        found = re.findall(r"^(?:(\S+): run \d+ of|(transfer): adv|(build)ing tables)", self.said, re.MULTILINE)
        run, transfer, report = found[-1] if found else ("start", "", "")
        return run or transfer or (report and "report")

    def slot(self, order, was=None):
        """The first thing of the order that the process is working on, since it has begun to work; else None."""
        active = self.active()
        if active == "start":
            return "start"
        if active not in ("transfer", "report"):
            record = self.out / "runs" / active / "run.json"
            if not record.exists() or record.stat().st_mtime_ns < self.began_at or self.child() is None:
                return None
        there = stored(self.out)
        return next((each for each in order if each.startswith(f"{active} ") and each not in there), None)


class Forked(Command):
    """The same command, forked from a server that has imported all that it needs: a start takes no time."""

    def __init__(self, out, given):
        os.environ["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests' / 'short'}"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self.out, self.log = Path(out), Path(out).with_suffix(f".{uuid.uuid4().hex[:8]}.err")
        self.log.write_text("")
        self.began, self.began_at = time.monotonic(), time.time_ns()
        self.process = context.Process(target=fork.forked, args=([*given, "--out", str(out)], str(self.log)))
        self.process.start()
        self.pid = self.process.pid

    @property
    def code(self):
        return self.process.exitcode

    def alive(self):
        server = forkserver._forkserver._forkserver_pid
        children = map(int, Path(f"/proc/{server}/task/{server}/children").read_text().split())
        return [pid for pid in children if pid != self.pid or not self.ended]


# ---------------------------------------------------------------- what is stored


def stored(out):
    """What is finished in the folder of a run, as ``<run> <kind> <what>``, each with the time at which it was."""
    found = {}

    def see(name, path):
        with contextlib.suppress(FileNotFoundError):
            found[name] = path.stat().st_mtime_ns

    for run in sorted((out / "runs").glob("*")):
        name = run.name
        see(f"{name} start", run / "checkpoints/000001/MANIFEST.json")
        see(f"{name} training", run / "train.json")
        if f"{name} training" in found:
            found.setdefault(f"{name} start", 0)
        for path in run.glob("probes/*.json"):
            see(f"{name} probe {path.stem}", path)
        for path in run.glob("results/*.json"):
            protocol, attack, _ = path.stem.split("-")
            if attack == "autoattack":
                for stage, _ in content(path).get("stages", []):
                    see(f"{name} {stage} {protocol}", path)
            else:
                see(f"{name} {'PGD' if attack == 'pgd' else 'clean'} {path.stem}", path)
        for each in content(run / "audit.json").get("audits", []):
            see(f"{name} audit {each['protocol']}", run / "audit.json")
            if any(check["id"] == "A14" and " sources " in check["note"] for check in each["checks"]):
                see(f"transfer transfer {name} {each['protocol']}", run / "audit.json")
        for path in run.glob("adversarial/*-transfer-*"):
            see(f"transfer transfer {name} {path.name[:8]}", path)
    for path in [*out.glob("*.csv"), *out.glob("figures/*.svg"), *out.glob("report.pdf")]:
        see(f"report report {path.name}", path)
    return found


def content(path):
    """The JSON object of a sealed file; an empty one where there is no file."""
    try:
        return json.loads(unsealed(path.read_bytes()))
    except FileNotFoundError:
        return {}


def phase(slot):
    """training, probe, PGD, apgd-ce, ... of a slot."""
    return slot.split()[1] if " " in slot else slot


def undisturbed(out, given, kind=Command):
    """Run to the end: {slot: seconds that it took}, in the order in which they were finished."""
    times, now = {}, {}
    with kind(out, given) as command:
        times["start"] = command.wait_for(lambda: command.active() != "start" or command.ended)
        last = time.monotonic()
        while not command.ended:
            time.sleep(0.01)
            new = {slot: at for slot, at in stored(out).items() if slot not in now}
            for slot in sorted(new, key=new.get):
                times[slot] = (time.monotonic() - last) / len(new)
            last = time.monotonic() if new else last
            now |= new
        for slot, at in stored(out).items():
            times.setdefault(slot, 0.05), now.setdefault(slot, at)
        assert command.code == 0, command.said
    return times


# ---------------------------------------------------------------- what it has left behind

TIMES = re.compile(r".*seconds|images_per_second|peak_memory_bytes|matrix_share|paused|preemptions|energy_joules")
COLUMNS = re.compile(rf"{TIMES.pattern}|disturbed|standing")


def outcome(out):
    """{file: what of it must not depend on when it was made or how often it was killed}."""
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = str(path.relative_to(out))
        if path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        elif name == "manifest.json":
            found[name] = {k: v for k, v in content(path).items() if k not in ("created", "command")}
        elif path.suffix == ".json":
            found[name] = timeless(content(path))
        elif path.suffix == ".csv":
            table = pd.read_csv(path)
            found[name] = table[[c for c in table if not COLUMNS.fullmatch(c)]].to_csv()
        else:
            found[name] = ""  # logs, figures and the report: that they are there
    return found


def timeless(value):
    """A JSON value without what was measured of time and memory."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if not TIMES.fullmatch(key)}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def finished_cells(out):
    """{file: time of change} of what must never be made again."""
    files = [path for path in (out / "runs").glob("*/train.json") if path.exists()]
    files += (out / "runs").glob("*/encoder.safetensors") if files else ()
    files += (out / "runs").glob("*/probes/*.json")
    files += [path for path in (out / "runs").glob("*/results/*.json") if content(path)["complete"]]
    trained = {path.parent for path in files if path.name == "train.json"}
    files = [path for path in files if path.name != "encoder.safetensors" or path.parent in trained]
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in files}


def cell_lines(said):
    """The lines about finished cells, their times aside."""
    found = re.findall(r"^(\S+: \S+ +(?:none|pgd|autoattack) +eps \S+)", said, re.MULTILINE)
    return [re.sub(r" +", " ", line) for line in found]


def check_readable(out):
    """No kill damages a file. Raises UsageError."""
    if (out / "manifest.json").exists():
        for record in load_records(out):
            assert record.status in ("pending", "preempted", "failed", "finished"), record.status
            for result in record.results:
                assert set(result.outcomes) <= {"0", "1"}
                assert math.isfinite(result.seconds)
