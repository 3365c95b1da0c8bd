"""Conducts the regression gate: runs the suite, scores the stored weights, compares, and repeats once what alarms.

Runs of the suite use the same CPU kernels on every x86-64 machine (AVX2, no wider ones), because a training that
differs in the last bit after one update differs in counts after a hundred.
"""

import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.engines.child import run_child
from bench.engines.local import LocalEngine
from bench.events import Event
from bench.identity.source import together
from bench.options.options import load_suite, options_of
from bench.options.resolve import resolve
from bench.record import Manifest
from bench.runs.child_main import SAVE_EVERY, task_of
from bench.runs.conduct import make_manifest, opened, run_all
from bench.runs.progress import Display
from bench.spec import RunSpec, UsageError
from bench.storage.files import read
from bench.storage.signals import signals_raise
from bench.storage.store import load_manifest, load_records
from reports import gate
from reports.findings import Comparison
from reports.power import LEVEL_FIXED, smallest_drop, smallest_fall
from reports.regression import ACCURACIES, Baseline, Fixed, FixedRun, Reading

FIXED = "fixed.json"  # in the folder of a checked run
REPEAT = "repeat"  # the folder of the repeat, in that of the run

# Read by ATen, oneDNN and MKL when the child process starts.
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Outcome:
    """What was compared, alarms settled by their repeat, and what people should know beside it, a sentence each.

    ``visible``: the smallest drops that the gate could have seen, in words.
    """

    compared: list[Comparison]
    notes: list[str]
    visible: str = ""


def use_portable_kernels() -> None:
    """The processes that this one starts from here on, whatever is compared."""
    os.environ.update(PORTABLE)


def ask_suite(suite: str, seeds: str | None = None) -> Manifest:
    """What a suite asks for here; the processes that follow use portable kernels."""
    use_portable_kernels()
    options = options_of(load_suite(suite) | ({"seeds": seeds} if seeds else {}))
    specs, budget, total, data = resolve(options)
    return make_manifest(specs, budget, total, data, ["bench", "check", "--suite", suite])


def run_suite(manifest: Manifest, out: Path | None, stack: contextlib.ExitStack, display: Display) -> Path:
    """The folder with all runs, made here; temporary unless ``out``, a folder that is new, is given."""
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            f"expected a new or empty folder for the runs of the gate, got {out}; to check it, name it RUN"
        )
    folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-check-")))
    stack.enter_context(signals_raise())
    run_specs(folder, manifest, display)
    return folder


def run_specs(folder: Path, manifest: Manifest, display: Display) -> None:
    """Every run of the manifest that has not ended; what other code made there is made again: this asks of the code."""
    use_portable_kernels()
    with (
        opened(folder, manifest, again=True) as lock,
        contextlib.closing(LocalEngine(folder, SAVE_EVERY, lock)) as engine,
    ):
        run_all(folder, manifest.runs, display, None, engine, lock=lock)


def score_weights(asked: Sequence[Fixed], weights: Path, folder: Path, display: Display) -> list[Fixed]:
    """The stored weights in the folder ``weights``, scored in a fresh process; kept in ``folder`` as fixed.json."""
    use_portable_kernels()
    messages: list[str] = []
    specs = {weight.spec.row: weight.spec for weight in asked}
    about: RunSpec | None = None

    def listen(event: Event) -> None:
        nonlocal about
        if event["event"] == "about":
            about = specs[event["name"]]
        elif event["event"] == "error":
            messages.append(event["message"])
        elif about is not None:
            display.event(about, event)

    dumped = [weight.model_dump(mode="json") for weight in asked]
    task = task_of("fixed", weights=str(weights), out=str(folder / FIXED), fixed=dumped)
    if run_child(task, listen, folder / "fixed-log.txt"):
        raise UsageError(f"the stored weights were not scored: {messages[-1] if messages else f'see {folder}'}")
    return read(FixedRun, folder / FIXED).fixed


def stored_scores(folder: Path, code: str = "") -> list[Fixed]:
    """Those of an earlier check of this run, by the code of this hash if one is given; none where there was none."""
    if not (folder / FIXED).is_file():
        return []
    scored = read(FixedRun, folder / FIXED)
    return scored.fixed if "" in (code, scored.code) or code == scored.code else []


# ---------------------------------------------------------------- the check


def check_suite(
    suite: str, file: Path, exact: bool, out: Path | None, stack: contextlib.ExitStack, display: Display
) -> Outcome:
    """Run the suite and compare it, all gates. Raises UsageError where there is nothing to compare."""
    baseline, manifest = Baseline.read(file), ask_suite(suite)
    asked = Reading.of(manifest, [])
    gate.require_same_question(asked, baseline)  # before minutes are spent
    if exact:
        require_alike(asked, baseline)
    folder = run_suite(manifest, out, stack, display)
    if baseline.fixed:
        score_weights(baseline.fixed, file.parent, folder, display)
    return check_run(folder, file, exact, display)


def check_run(folder: Path, file: Path, exact: bool, display: Display) -> Outcome:
    """Compare a finished run with a baseline; what alarms is repeated once with fresh seeds, in RUN/repeat.

    Raises UsageError where there is nothing to compare.
    """
    baseline, manifest = Baseline.read(file), load_manifest(folder)
    reading = Reading.of(manifest, load_records(folder))
    gate.require_comparable(reading, baseline)
    if exact:
        require_alike(reading, baseline)
    scores = stored_scores(folder)
    visible = sensitivity(reading, baseline, scores)
    compared, notes = [], [seen.words for seen in visible]
    left_out = {s.method for s in baseline.series} - {s.method for s in reading.series}
    if left_out:
        notes.append(f"not in this run: {', '.join(sorted(left_out))}")
    why = gate.unlike(reading, baseline)
    if why:
        notes.append(f"G0, equal counts, is not asked for: {why}")
    else:
        compared += gate.exact(reading, baseline, exact) + gate.exact_weights(scores, baseline, exact)
    timed = reading.platform == baseline.platform
    if not timed:
        notes.append("speed and memory are not compared: they are those of a platform")
    first = gate.same_weights(scores, baseline, timed) + gate.retrained(reading, baseline)
    alarms = gate.alarms(first)
    if alarms:
        first = gate.confirmed(first, repeat(folder, file, manifest, baseline, alarms, display))
    compared = first + compared
    if not any("accuracy" in comparison.metric for comparison in compared):
        raise UsageError(
            f"nothing to compare: {len(reading.seeds)} seeds here and {len(baseline.seeds)} in the baseline; "
            f"expected at least {gate.LEAST_SEEDS}, and twice as many in the baseline"
        )
    return Outcome(compared, notes, smallest_visible(visible))


def require_alike(reading: Reading, baseline: Baseline) -> None:
    """Raises UsageError where counts need not be equal."""
    why = gate.unlike(reading, baseline)
    if why:
        raise UsageError(f"nothing to compare exactly: {why}")


def repeat(
    folder: Path, file: Path, manifest: Manifest, baseline: Baseline, alarms: list[Comparison], display: Display
) -> list[Comparison]:
    """The alarmed methods once more: trained with as many fresh seeds, stored weights under the next attack seed."""
    for alarm in alarms:
        text = f"alarm, to be repeated: {alarm.cell}, {alarm.metric}: {alarm.before} -> {alarm.after} ({alarm.rule})"
        display.line(text, "yellow")
    again = folder / REPEAT
    again.mkdir(exist_ok=True)
    compared: list[Comparison] = []
    trained = [alarm for alarm in alarms if alarm.gate == "G2"]
    if trained:
        fresh = repeated(manifest, baseline, {alarm.method for alarm in trained})
        run_specs(again, fresh, display)
        compared += gate.retrained(Reading.of(fresh, load_records(again)), baseline, trained)
    methods = {alarm.method for alarm in alarms if alarm.gate == "G1"}
    if methods:
        asked = [
            weight.model_copy(update={"seed": weight.seed + 1})
            for weight in baseline.fixed
            if weight.spec.row in methods
        ]
        scores = stored_scores(again, together(weight.spec for weight in asked))
        scores = scores or score_weights(asked, file.parent, again, display)
        compared += gate.same_weights(scores, baseline)
    return compared


def repeated(manifest: Manifest, baseline: Baseline, methods: set[str]) -> Manifest:
    """The runs of these methods with as many seeds that neither the run nor the baseline has."""
    last = max(*manifest.seeds, *baseline.seeds)
    seeds = {seed: last + 1 + place for place, seed in enumerate(manifest.seeds)}
    runs = [s.model_copy(update={"seed": seeds[s.seed]}) for s in manifest.runs if s.row in methods]
    return manifest.model_copy(update={"runs": runs, "seeds": sorted(seeds.values())})


@dataclass(frozen=True)
class Visible:
    """The smallest drop that a test of the gate sees, in points; None where it sees none, and why in words."""

    gate: str
    points: float | None
    words: str


def sensitivity(reading: Reading, baseline: Baseline, scores: list[Fixed]) -> list[Visible]:
    """The smallest drops that the gate can see, each test apart."""
    seen = []
    if baseline.fixed and not scores:
        seen.append(Visible("G1", None, "G1 is left out: only a run of the suite scores the stored weights"))
    elif baseline.fixed:
        images, methods = min(len(score.attacked) for score in baseline.fixed), len(baseline.fixed)
        drop = smallest_drop(images, LEVEL_FIXED / methods)
        points = 100 * drop if drop < 1 else None
        words = "no drop" if points is None else f"a drop of {points:.1f} points"
        words = f"G1 sees in 3 of 4 first runs {words} on {images} images, where 5 % of them change"
        seen.append(Visible("G1", points, words))
    references = [seed for seed in baseline.seeds if seed not in reading.seeds] or baseline.seeds
    if len(reading.seeds) < gate.LEAST_SEEDS or len(references) < 2 * gate.LEAST_SEEDS:
        return seen
    tested = [s for s in baseline.of_seeds(references).values() if s.metric in ACCURACIES]
    tested = [s for s in tested if gate.mean(s) > gate.tolerance_of(s, baseline.tolerances)]
    for series in tested:
        fall = smallest_fall(gate.percent(series), len(reading.seeds), len(tested), 100 / (series.total or 1))
        fall = max(fall, gate.tolerance_of(series, baseline.tolerances))
        smallest = fall if fall < gate.mean(series) else None
        words = "no drop" if smallest is None else f"as often a drop of {smallest:.1f} points"
        metric = f"{series.cell}, {series.metric} ({gate.mean(series):.1f} %)"
        seen.append(Visible("G2", smallest, f"G2 sees {words}: {metric}"))
    return seen


def smallest_visible(visible: list[Visible]) -> str:
    """The range of the smallest visible drops of each gate, in words; "" where none is known."""
    parts = []
    for name, where in (("G1", "in stored weights"), ("G2", "after training again")):
        of_gate = [seen.points for seen in visible if seen.gate == name]
        points = sorted(drop for drop in of_gate if drop is not None)
        blind = f" (in {len(of_gate) - len(points)} of {len(of_gate)} numbers no drop is)" * (
            0 < len(points) < len(of_gate)
        )
        if points:
            ends = dict.fromkeys([f"{points[0]:.1f}", f"{points[-1]:.1f}"])
            parts.append(f"{' to '.join(ends)} points {where}{blind}")
    return ", ".join(parts)
