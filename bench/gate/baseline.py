"""Makes a baseline of the regression gate from a finished run: its readings, and the weights that G1 scores."""

import datetime
import statistics
from collections.abc import Sequence
from pathlib import Path

from bench.gate.check import score_weights
from bench.protocols.common.base import protocol_of
from bench.record import Record
from bench.runs.progress import Display
from bench.spec import UsageError
from bench.storage.files import save_tensors, sha256, tensor_bytes
from bench.storage.store import RunFolder, load_manifest, load_records, write_text
from reports.regression import COUNTS, Baseline, Fixed, Reading, Series, Tolerances, names_code

SEEDS = 12  # the first three are those that a check trains again
LARGEST_WEIGHTS = 2**20  # bytes; larger ones have no place in a repository, and their gate is G2 alone
HARDEST = 1 / 3  # the accuracy near which an attack decides most


def make_baseline(folder: Path, file: Path, reason: str, scratch: Path, display: Display) -> Baseline:
    """The baseline of a finished run, written to ``file``, the weights beside it; tolerances of an earlier one stay.

    Raises UsageError where a run has not finished.
    """
    manifest, records = load_manifest(folder), load_records(folder)
    unfinished = [record.spec.name for record in records if record.status != "finished"]
    if unfinished:
        raise UsageError(f"expected finished runs only, got {', '.join(unfinished)}")
    reading = Reading.of(manifest, records)
    file.parent.mkdir(parents=True, exist_ok=True)
    asked = [kept for record in first_records(records) if (kept := keep_weights(folder, record, file)) is not None]
    fixed = score_weights(asked, file.parent, scratch, display) if asked else []
    failed = [f"{score.spec.row}: {score.error}" for score in fixed if score.error]
    if failed:
        raise UsageError(f"the stored weights were not scored: {'; '.join(failed)}")
    baseline = Baseline(
        **dict(reading),
        reason=reason,
        updated=datetime.datetime.now(datetime.UTC).date().isoformat(),
        tolerances=Baseline.read(file).tolerances if file.is_file() else Tolerances(),
        fixed=fixed,
    )
    write_text(file, baseline.text())
    return baseline


def first_records(records: Sequence[Record]) -> list[Record]:
    """The run of each method with the smallest seed."""
    by_seed = sorted(records, key=lambda record: record.spec.seed, reverse=True)
    rows = dict.fromkeys(record.spec.row for record in records)
    return [{record.spec.row: record for record in by_seed}[row] for row in rows]


def keep_weights(folder: Path, record: Record, file: Path) -> Fixed | None:
    """Encoder and probe in one file beside the baseline; None where they are too large, or nothing attacked them.

    The eps is that of the PGD results whose accuracy is nearest to a third.
    """
    run, spec = RunFolder(folder, record.spec), record.spec
    protocol = next((name for name in spec.eval.protocols if protocol_of(spec.eval, name).ranked), None)
    attacked = [r for r in record.results if (r.protocol, r.attack) == (protocol, "pgd") and r.total]
    probe = run.probe(protocol) if protocol else None
    if protocol is None or probe is None or not attacked or names_code(spec) or spec.foreign:
        return None
    trained = run.trained()
    if trained is None:
        raise UsageError(f"expected a trained encoder beside the probe in {run.path}")
    tensors = {f"encoder.{name}": value for name, value in trained[1].items()}
    tensors |= {f"probe.{name}": value for name, value in probe[1].items()}
    if len(tensor_bytes(tensors)) > LARGEST_WEIGHTS:
        return None
    name = f"{file.stem}-{spec.row}.safetensors"
    save_tensors(file.parent / name, tensors)
    return Fixed(
        spec=spec.model_copy(update={"data": spec.data.model_copy(update={"root": None})}),
        weights=name,
        sha256=sha256(tensors),
        protocol=protocol,
        eps=min(attacked, key=lambda r: abs(r.correct / r.total - HARDEST)).eps,
        seed=spec.seed,
        images_sha256="",
    )


def changes(before: Baseline | None, after: Baseline) -> list[list[str]]:
    """Rows of the table before and after: cell, metric, and the mean over the seeds of each."""
    known = {series.key: series for series in before.series} if before else {}
    rows = [
        [series.cell, series.metric, told(known.get(series.key)), told(series)]
        for series in after.series
        if series.metric != "accuracy on the curve"
    ]
    stored = {score.spec.row: score for score in before.fixed} if before else {}
    for score in after.fixed:
        texts = [
            f"{e.attacked.count('1')} of {len(e.attacked)}" if e else "" for e in (stored.get(score.spec.row), score)
        ]
        rows.append([score.cell, "robust accuracy", *texts])
    return rows


def told(series: Series | None) -> str:
    """A series in a few words."""
    if series is None:
        return ""
    if series.metric in COUNTS:
        shares = [100 * value / (series.total or 1) for value in series.numbers]
        sd = statistics.stdev(shares) if len(shares) > 1 else 0.0
        return f"{statistics.fmean(shares):.1f} % (sd {sd:.1f}, n = {len(shares)})"
    if series.numbers:
        return f"{statistics.median(series.numbers):.4g}"
    values = [str(value) for value in series.values]
    return ", ".join(f"{values.count(value)} {value}" for value in sorted(set(values)))
