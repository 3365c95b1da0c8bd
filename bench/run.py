"""The conductor: plan -> train and evaluate each run in a process of its own -> the store.

It has no logic of its own: the options say what to run, the engine does it, the store keeps it.
"""

import hashlib
from pathlib import Path
from typing import Any

from bench import __version__, registry
from bench.engine import run_child
from bench.options import Options
from bench.plan import Estimate, Measured, estimate
from bench.progress import Display
from bench.spec import Budget, DataInfo, Manifest, RunSpec, UsageError
from bench.store import MANIFEST, RunFolder, load_manifest, save


def default_out(options: Options, specs: list[RunSpec]) -> Path:
    """``runs/<data>-<budget>-<hash of everything>``: the same command finds its folder again."""
    text = "".join(spec.model_dump_json() for spec in specs)
    budgets = {str(spec.budget) for spec in specs}
    name = options.data.partition(":")[0]
    budget = budgets.pop() if len(budgets) == 1 else "rows"
    return Path("runs") / f"{name}-{budget}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


# ---------------------------------------------------------------- the run


def open_folder(out: Path, manifest: Manifest) -> Manifest:
    """The manifest of the folder: the stored one if it asks for the same runs, else the new one, now stored.

    Raises UsageError if the folder holds another run's settings or other files, or cannot be written.
    """
    if (out / MANIFEST).exists():
        stored = load_manifest(out)
        if unlimited(stored.runs) != unlimited(manifest.runs) or stored.budget != manifest.budget:
            raise UsageError(
                f"{out} holds a run with other settings ({difference(stored, manifest)}); choose another --out"
            )
        if (stored.data.train_sha256, stored.data.test_sha256) != (
            manifest.data.train_sha256,
            manifest.data.test_sha256,
        ):
            raise UsageError(f"{out} was made with other images of {stored.data.label}; choose another --out")
        return stored
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"expected a new or empty folder, or one of a run, got {out}; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        save(out / MANIFEST, manifest)
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
    return manifest


def unlimited(specs: list[RunSpec]) -> list[RunSpec]:
    """The runs without a limit on the time of their evaluation: with another one they go on in the same folder."""
    return [spec.model_copy(update={"eval": spec.eval.model_copy(update={"budget_seconds": None})}) for spec in specs]


def difference(stored: Manifest, new: Manifest) -> str:
    """The first thing in which two manifests differ, in words."""
    names = ([run.name for run in stored.runs], [run.name for run in new.runs])
    if names[0] != names[1]:
        return f"runs {', '.join(names[0])}"
    for old, now in zip(unlimited(stored.runs), unlimited(new.runs), strict=True):
        for key in RunSpec.model_fields:
            if getattr(old, key) != getattr(now, key):
                return f"{key} of {old.name}: {getattr(old, key)}"
    return f"budget {stored.budget}"


def measure_plan(specs: list[RunSpec], log: Path) -> list[Estimate]:
    """What each run will take, from a few steps of every method, measured in one fresh process. Raises UsageError."""
    first = {spec.row: spec for spec in reversed(specs)}
    measured: dict[str, Measured] = {}
    messages: list[str] = []

    def listen(event: dict[str, Any]) -> None:
        if event.pop("event") == "measured":
            measured[event["row"]] = Measured.model_validate(event)
        elif "message" in event:
            messages.append(event["message"])

    task = {"task": "measure", "specs": [spec.model_dump(mode="json") for spec in first.values()]}
    code = run_child(task, listen, log)
    if code:
        raise UsageError(f"the plan could not be measured: {messages[-1] if messages else f'see {log}'}")
    return [estimate(spec, measured[spec.row]) for spec in specs]


def run_all(out: Path, specs: list[RunSpec], display: Display, estimates: list[Estimate] | None) -> list[str]:
    """Every run that is not finished, one after the other; the names of those that did not finish.

    One whose evaluation ran out of time is finished and says what is missing: it goes on. ``diverged`` and ``oom`` are
    results and stay; ``failed`` is tried again by the same command.
    """
    display.begin(specs, estimates)
    for spec in specs:
        folder = RunFolder(out, spec)
        record = folder.record()
        if record.status in ("diverged", "oom") or (record.status == "finished" and not record.message):
            display.skipped(spec, record.status)
            continue
        display.started(spec)
        messages: list[str] = []

        def listen(event: dict[str, Any], spec: RunSpec = spec, messages: list[str] = messages) -> None:
            if event.get("event") == "error":
                messages.append(event["message"])
            display.event(spec, event)

        log = folder.path / "log.txt"
        code = run_child({"task": "run", "out": str(out), "spec": spec.model_dump(mode="json")}, listen, log)
        record = folder.record()
        if code or record.status == "pending":
            message = messages[-1] if messages else f"the process ended with code {code}; see {log}"
            folder.save_record(record.model_copy(update={"status": "failed", "message": message}))
        record = folder.record()
        display.ended(spec, record.status, record.message)
    return [spec.name for spec in specs if RunFolder(out, spec).record().status != "finished"]


def make_manifest(
    specs: list[RunSpec],
    budget: Budget | None,
    total: Budget | None,
    data: DataInfo,
    command: list[str],
) -> Manifest:
    """What is asked for and where it runs."""
    import datetime

    from bench.repro import environment

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
        environment=environment(specs[0].device, specs[0].precision),
    )
