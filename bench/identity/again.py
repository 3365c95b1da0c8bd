"""What other code has made in a folder of runs: refused with the names of the files, or put aside to be made again.

A number belongs to the code that made it. What is stored carries the hash of that code (bench.identity.source), and
run.json the files behind it, so that those that have changed can be named. What has no hash was made by code that is
not known.
"""

import contextlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.identity.source import (
    AUDIT,
    CURVE,
    MODEL,
    SHIFT,
    TRAINING,
    Sources,
    attack_part,
    changed,
    code,
    head_part,
    run_code,
    sources,
)
from bench.spec import RunSpec, UsageError
from bench.storage.disk import is_there
from bench.storage.files import Damaged, read, save
from bench.storage.lock import owned
from bench.storage.store import ASIDE, MANIFEST, Curve, RunFolder, cell, load_manifest

LISTED = 5  # names in one line
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Outdated:
    """A part of a run that other code has made, and what goes with it."""

    row: str
    part: str
    files: tuple[str, ...]  # that have changed; none where the code that made it is not known
    touched: tuple[str, ...]  # in the folder of the run, in the order in which it is put aside


# ---------------------------------------------------------------- at the door


def check_code(out: Path, specs: list[RunSpec], again: bool = False) -> None:
    """Hold a folder of runs, which is owned, to the code as it is now, and write down what that is.

    What other code has made is put aside where it is to be made ``again``: then only that is missing. Raises
    UsageError otherwise, which names the files and what they touch, and DiskError.
    """
    now = sources(specs)
    stale = {spec.name: outdated(RunFolder(out, spec), now[spec.row]) for spec in specs}
    if not again and any(stale.values()):
        raise UsageError(refusal(out, [item for of_run in stale.values() for item in of_run]))
    for spec in specs:
        if stale[spec.name]:
            set_aside(RunFolder(out, spec), stale[spec.name])
    manifest = load_manifest(out)
    if manifest.code != (hashes := {row: run_code(parts) for row, parts in now.items()}):
        save(out / MANIFEST, manifest.model_copy(update={"code": hashes}))


def check_run(run: RunFolder, now: Sources, expected: str = "") -> None:
    """Raises UsageError unless a run, about to be made, is all of the code as it is now, which is the ``expected`` one.

    A file may have been changed while the command was running.
    """
    if expected and run_code(now) != expected:
        raise UsageError(
            f"the code of {run.spec.name} has been changed since the command began; give the same command again"
        )
    if stale := outdated(run, now):
        raise UsageError(refusal(run.path, stale))


def refusal(place: Path, stale: Iterable[Outdated]) -> str:
    """One line: which files have changed, what they touch, and the ways on."""
    return (
        f"{place} was made by other code: {described(stale)}; choose another --out, or add --again, which puts aside "
        "what that code made and makes it again"
    )


def described(found: Iterable[Outdated]) -> str:
    """Which files have changed, and what they touch."""
    stale = list(found)
    files = list(dict.fromkeys(name for item in stale for name in item.files))
    parts: dict[str, list[str]] = {}
    for item in stale:
        parts.setdefault(item.part, []).append(item.row)
    of_rows = [f"the {part} of {listed(dict.fromkeys(rows))}" for part, rows in parts.items() if part in WHOLE]
    others = [f"the {part}" for part in parts if part not in WHOLE]
    touched = ", ".join([*of_rows, *others])
    return f"{listed(files)} changed since, which touches {touched}" if files else f"that of {touched} is not known"


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:LISTED]) + f" and {len(names) - LISTED} more" * (len(names) > LISTED)


# ---------------------------------------------------------------- what other code has made

WHOLE = (TRAINING, MODEL)  # from which everything else of a run is made


def outdated(run: RunFolder, now: Sources) -> list[Outdated]:
    """The parts of a run that other code has made. What is damaged is no number; it is left to bench.storage.repair."""
    damaged: list[Damaged] = []
    try:
        record = run.record(damaged)
    except Damaged:  # its parts do not fit together, and so it cannot go on
        return []
    begun = is_there(run.path / "run.json") and run.path / "run.json" not in {error.path for error in damaged}
    before: Mapping[str, Mapping[str, str]] = record.sources
    cells = [name for kind in ("examples", "adversarial", "results") for name in run.names(kind)]

    def other(part: str, made: str, *touched: str) -> list[Outdated]:
        if made == code(now.get(part, {})):
            return []
        known = before.get(part, {}) if made and made == code(before.get(part, {})) else {}
        files = changed(known, now.get(part, {})) if known else ()
        return [Outdated(run.spec.row, part, tuple(files), touched)]

    everything = (
        "audit.json",
        "shift.json",
        "curve.json",
        *cells,
        *probe_files(run),
        *run.names("snapshots"),
        "beat.json",
    )
    training = (*everything, CHECKPOINTS, "encoder.safetensors", "train.json")
    stale: list[Outdated] = []
    if run.spec.foreign:
        if record.probes or record.results:
            stale = other(MODEL, code(before.get(MODEL, {})), *everything)
    elif record.train is not None:
        stale = other(TRAINING, record.train.code, *training)
    elif begun and is_there(run.path / CHECKPOINTS):
        stale = other(TRAINING, code(before.get(TRAINING, {})), *training)
    if stale:
        return stale
    for probe in record.probes:
        mine = [name for name in cells if protocol_of(name) == probe.protocol]
        fitted = [name for name in probe_files(run) if probe.protocol == stem(name)]
        stale += other(head_part(probe.protocol), probe.code, *mine, *fitted)
    heads = {name for item in stale for name in item.touched}
    for result in record.results:
        part, attacked = attack_part(result.attack), f"{result.protocol}-{result.attack}"
        pictures = f"examples/{result.protocol}.json" if result.images_sha256 else ""
        mine = [name for name in cells if name == pictures or cell(name) == attacked]
        if not heads.issuperset(mine):
            stale += other(part, result.code, *mine)
    transfer = [name for name in run.names("adversarial") if "-transfer-" in name]
    for audit in record.audits:
        stale += other(AUDIT, audit.code, *transfer, "audit.json")
    if record.shift is not None:
        stale += other(SHIFT, record.shift.code, "shift.json")
    if is_there(run.path / "curve.json"):
        with contextlib.suppress(Damaged):
            stale += other(CURVE, read(Curve, run.path / "curve.json").code, "curve.json")
    return stale


def probe_files(run: RunFolder) -> list[str]:
    """The tensors first, so that a probe which is still there names its code."""
    return sorted(run.names("probes"), key=lambda name: (name.endswith(".json"), name))


def protocol_of(name: str) -> str:
    """Of a file in results, adversarial or examples."""
    return cell(name).partition("-")[0] if not name.startswith("examples/") else stem(name)


def stem(name: str) -> str:
    """``linear`` of probes/linear.json."""
    return Path(name).stem


def set_aside(run: RunFolder, found: Iterable[Outdated]) -> None:
    """Move what other code has made into a folder aside/<n> of the run, with a copy of the record that was of it.

    A kill on the way leaves parts that are still told by their hash, and the same command goes on. Raises DiskError,
    and UsageError where another process makes this run.
    """
    with owned(run.path, moves=True):
        aside = next(name for n in itertools.count(1) if not is_there(run.path / (name := f"{ASIDE}/{n}")))
        record = run.record([])
        if is_there(run.path / "run.json"):
            alone = record.model_copy(update={"train": None, "probes": [], "results": [], "audits": [], "shift": None})
            save(run.place(f"{aside}/run.json"), alone)
            run.save_record(record.model_copy(update={"status": "pending", "message": ""}))
        run.set_aside(aside, list(dict.fromkeys(name for item in found for name in item.touched)))
