"""The conductor: plan -> train and evaluate each run in a process of its own -> the store.

It has no logic of its own: the options say what to run, the engine does it, the store keeps it.
"""

import contextlib
import hashlib
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from bench import __version__, registry
from bench.engines import Engine
from bench.engines.child import run_child
from bench.engines.queue import TRIES, Job, Schedule
from bench.events import Event, Last
from bench.identity.again import check_code
from bench.names import check_path
from bench.options.changes import MOST, between, changes, flat, unlimited
from bench.options.options import Options
from bench.record import DataInfo, Manifest, Record
from bench.runs.child_main import UNFIT, task_of
from bench.runs.plan import Estimate
from bench.runs.progress import Display
from bench.spec import Budget, RunSpec, UsageError
from bench.storage.disk import DiskError, put_aside
from bench.storage.files import Damaged, save
from bench.storage.lock import LOCK, owned
from bench.storage.repair import settle
from bench.storage.signals import EXIT_INTERRUPTED, Interrupted
from bench.storage.store import MANIFEST, RunFolder, load_manifest
from bench.tracking.tracking import Tracking
from bench.tuned import Tuning


def default_out(options: Options, specs: list[RunSpec]) -> Path:
    """``runs/<data>-<budget>-<hash of everything>``: the same command finds its folder again."""
    text = "".join(spec.model_dump_json() for spec in specs)
    budgets = {str(spec.budget) for spec in specs}
    name = options.data.partition(":")[0]
    budget = budgets.pop() if len(budgets) == 1 else "rows"
    return Path("runs") / f"{name}-{budget}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


# ---------------------------------------------------------------- the run

ENDED = ("finished", "diverged", "oom")  # whatever became of the process afterwards
POLL = 1.0  # seconds between two looks at the deadline and at the size of the cluster


@contextlib.contextmanager
def opened(out: Path, manifest: Manifest, moves: bool = False, again: bool = False) -> Iterator[int]:
    """Own the folder of a run, made now or found: yields the handle of its lock (bench.storage.lock, also ``moves``).

    Raises UsageError if the folder holds another run's settings or other files, cannot be written, or is in use; also
    if it holds what other code has made, unless that is to be made ``again`` (bench.identity.again).
    """
    check_path(out)
    try:
        begun = {LOCK, "runs", f"{MANIFEST}.damaged"}
        if out.exists() and not (out / MANIFEST).exists():
            names = {path.name for path in out.iterdir()} if out.is_dir() else {out.name}
            if {name for name in names - begun if not name.endswith(".tmp")}:
                raise UsageError(f"expected a new or empty folder, or one of a run, got {out}; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
    with owned(out, moves=moves) as lock:
        settle(out)
        check_code(out, open_folder(out, manifest).runs, again)
        yield lock


def open_folder(out: Path, manifest: Manifest) -> Manifest:
    """The manifest of the folder, which is there: the stored one if it asks for the same runs, else the new one.

    A damaged one is put aside where every run that was begun is one of ours. Raises UsageError if the folder holds
    another run's settings or images.
    """
    try:
        stored = load_manifest(out) if (out / MANIFEST).exists() else None
    except Damaged:
        put_aside(out / MANIFEST)
        stored = None
    if stored is None:
        for spec in manifest.runs:
            record = RunFolder(out, spec).record([])
            if fields := between(flat(unlimited(record.spec)), flat(unlimited(spec))):
                other = "; ".join(fields[:MOST])
                raise UsageError(f"{out} holds a run {spec.name} with other settings ({other}); choose another --out")
        save(out / MANIFEST, manifest)
        return manifest
    if other := changes(stored, manifest):
        raise UsageError(f"{out} holds a run with other settings ({other}); choose another --out")
    images = [(data.train_sha256, data.test_sha256) for data in (stored.data, manifest.data)]
    if images[0] != images[1]:
        raise UsageError(f"{out} was made with other images of {stored.data.label}; choose another --out")
    return stored


def run_all(
    out: Path,
    specs: list[RunSpec],
    display: Display,
    estimates: list[Estimate] | None,
    engine: Engine,
    deadline: float = math.inf,
    lock: int | None = None,
    tracking: Tracking | None = None,
) -> list[str]:
    """Every run that is not finished, as the engine has room; the names of those that did not finish.

    One whose evaluation ran out of time is finished and says what is missing: it goes on. ``diverged`` and ``oom`` are
    results and stay; ``failed`` is tried again by the same command. At ``deadline``, of time.monotonic, what runs
    saves and stops. The transfer stage follows, as ``transfer``. Hooks hear of what is done in this call. Raises
    DiskError at the first file that cannot be written, and Interrupted.
    """
    tracking = tracking or Tracking([], out, display.line)
    display.begin(specs, estimates, engine.slots)
    folders = {spec.name: RunFolder(out, spec) for spec in specs}  # all of them while the folder is there
    todo = [folder.spec for folder in folders.values() if not settled(folder, display)]
    seconds = {f"{estimate.row}-s{estimate.seed}": estimate.seconds for estimate in estimates or () if engine.slots > 1}
    schedule = Schedule([Job(spec.name, spec.seed, seconds.get(spec.name, 0.0)) for spec in todo], engine.slots)
    messages: dict[str, list[str]] = {spec.name: [] for spec in todo}
    refused: list[str] = []  # a machine that cannot make one run cannot make the next, and would be given all of them
    try:
        while not schedule.over and time.monotonic() < deadline and not (refused and not schedule.running):
            schedule.in_flight = max(1, engine.slots)
            while not refused and (name := schedule.next()) is not None:
                display.started(folders[name].spec)
                tracking.started(folders[name].spec)
                engine.start(folders[name].spec)
            for name, event in engine.poll(POLL):
                folder = folders[name]
                if event["event"] == "lost" and schedule.lose(name, folder.reached()):
                    display.line(f"{name}: {event['message']}; it goes on elsewhere", "yellow")
                elif event["event"] == "lost" or event["event"] == "exit":
                    record = conclude(folder, event, messages[name])
                    if event["event"] == "exit":
                        schedule.end(name)
                    if event.get("code") == UNFIT:
                        refused.append(name)
                        why = complaint(folder, event, messages[name])
                        display.line(f"{name}: {why}; no other run is begun", "red")
                    display.ended(folder.spec, record.status, record.message)
                    tracking.ended(record)
                else:
                    if event["event"] == "error":
                        messages[name].append(event["message"])
                    display.event(folder.spec, event)
                    tracking.event(name, event)
        if schedule.running:
            display.line("the deadline: what runs saves and stops", "yellow")
            engine.stop(signal.SIGTERM)
    except Interrupted as interrupted:
        engine.stop(interrupted.signum)
        raise
    finally:
        for name in schedule.running:
            with contextlib.suppress(DiskError):
                mark_stopped(folders[name])
                tracking.ended(folders[name].record([]))
    unfinished = [name for name, folder in folders.items() if name in refused or not finished(folder)]
    if time.monotonic() >= deadline:
        return unfinished
    return unfinished + ["transfer"] * (not run_transfer(out, specs, display, lock))


def settled(folder: RunFolder, display: Display) -> bool:
    """Whether the store has all of this run, and nothing of it is damaged."""
    damaged: list[Damaged] = []
    record = folder.record(damaged)
    folder.curve(damaged)
    done = record.status in ("diverged", "oom") or (record.status == "finished" and not record.missing)
    if done and not damaged:
        display.skipped(folder.spec, record.status)
    return done and not damaged


def finished(folder: RunFolder) -> bool:
    """Whether this run has come to its end, and what it left can be read; its evaluation may have run out of time.

    Not where an attack failed: its cell has no number.
    """
    damaged: list[Damaged] = []
    record = folder.record(damaged)
    return record.status == "finished" and not record.failed and not damaged


def conclude(folder: RunFolder, last: Last, messages: list[str]) -> Record:
    """The record of a run that has ended, as it is stored; marked as failed where the run has not said how it ended.

    A damaged file fails this run and no other. Raises DiskError.
    """
    damaged: list[Damaged] = []
    code, record = (last["code"] if last["event"] == "exit" else 1), folder.record(damaged)
    if code in EXIT_INTERRUPTED.values() and not damaged:  # a signal to the child alone, which may not have begun
        mark_stopped(folder)
        record = folder.record()
    stopped = code in EXIT_INTERRUPTED.values() and record.status == "preempted"
    if damaged or record.status == "pending" or (code and not stopped and record.status not in ENDED):
        message = complaint(folder, last, messages)
        if last["event"] == "lost":
            message = (
                f"lost {TRIES} times in a row and no further than the first time; the last time: {message}; "
                "the same command goes on from what is saved"
            )
        if damaged:
            message = f"{damaged[0]}; the same command makes it again"
        record = record.model_copy(update={"status": "failed", "message": message})
        folder.save_record(record)
    return record


def complaint(folder: RunFolder, last: Last, messages: list[str]) -> str:
    """What a run, or else its worker, has said last of what is wrong, and where."""
    code, node = (last["code"], last.get("node", "")) if last["event"] == "exit" else (1, "")
    log = f"the process ended with code {code}; see {folder.place('log.txt')}"
    said = [log, *messages, *filter(None, [last.get("message")])][-1]
    return f"{said} (on {node})" if node and node not in said else said


def mark_stopped(folder: RunFolder) -> None:
    """Say so of a run that was stopped before it could say it itself. Raises DiskError."""
    record = folder.record([])
    if record.status == "pending":
        message = "stopped before it could save; the same command goes on from what there is"
        folder.save_record(record.model_copy(update={"status": "preempted", "message": message}))


def run_transfer(out: Path, specs: list[RunSpec], display: Display, lock: int | None = None) -> bool:
    """The last stage of a full audit, over all runs (bench.audit.transfer), in its own process: whether it went well.

    It knows itself what is done. Where no audit is full, or a run is alone, there is nothing to do.
    """
    if len(specs) < 2 or all(spec.eval.audit != "full" for spec in specs):
        return True
    by_name, messages, log = {spec.name: spec for spec in specs}, [], out / "transfer-log.txt"
    about = specs[0]

    def listen(event: Event) -> None:
        nonlocal about
        if event["event"] == "about":
            about = by_name[event["name"]]
        elif event["event"] == "error":
            messages.append(event["message"])
        else:
            display.event(about, event)

    display.line("transfer: adversarial images of each run on the others", "bold")
    code = run_child(task_of("transfer", out=str(out)), listen, log, lock)
    if code:
        reason = messages[-1] if messages else f"the process ended with code {code}; see {log}"
        display.line(f"transfer: failed: {reason}", "red")
    return code == 0


def build_report(out: Path, display: Display) -> None:
    """Build tables, figures and reports of the folder, and say what could not be built."""
    from reports.build import build

    display.line("building tables and figures")
    for warning in build(out):
        display.line(f"warning: {warning}", "yellow")


def make_manifest(
    specs: list[RunSpec],
    budget: Budget | None,
    total: Budget | None,
    data: DataInfo,
    command: list[str],
    tuning: Tuning | None = None,
) -> Manifest:
    """What is asked for and where it runs."""
    import datetime

    from bench.random import environment

    return Manifest(
        bench_version=__version__,
        command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        budget=budget,
        total_budget=total,
        runs=specs,
        seeds=sorted({spec.seed for spec in specs}),
        data=data,
        dataset_source=registry.describe("dataset", specs[0].data.name),
        main_eps=specs[0].eval.main_eps,
        environment=environment(specs[0].device, specs[0].precision, specs[0].gpus_per_run),
        tuning=tuning,
    )
