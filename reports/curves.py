"""The rows of curves.csv: one for each run and snapshot, on held-out training images (bench/evaluation/curve.py)."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.alarms import Judged, alarm, stage_share
from bench.record import Manifest, Record
from bench.storage.store import Point

COLUMNS = {
    "method": "object",
    "adversary": "object",
    "dataset": "object",
    "seed": "Int64",
    "budget": "object",
    "percent": "Int64",  # of the budget: the mark
    "progress": "float64",  # share of the budget that was spent, at or past the mark
    "updates": "Int64",
    "stage_share": "float64",  # of the last stage; below 0 in an earlier one, where the encoder is that of a teacher
    "train_seconds": "float64",
    "passes_per_image": "float64",  # of all kinds, so far
    "energy_joules": "float64",
    "clean_correct": "Int64",  # of held-out training images, as all that follow
    "clean_total": "Int64",
    "clean": "float64",
    "robust_correct": "Int64",  # under PGD with one restart at eps, on a fixed subset
    "robust_total": "Int64",
    "robust": "float64",
    "eps": "float64",
}
COSTS = {  # column -> (label with its unit, what one unit is)
    "train_seconds": ("training time (s)", 1.0),
    "passes_per_image": ("passes per image", 1.0),
    "energy_joules": ("energy (kJ)", 1e3),
}


def curves(manifest: Manifest, records: Sequence[Record], points: Mapping[str, Sequence[Point]]) -> pd.DataFrame:
    """All points of the runs, by name, in the order of ``records``; accuracies are fractions, missing values gaps."""
    lines = [_row(manifest, record, point) for record in records for point in points.get(record.spec.name, ())]
    return pd.DataFrame(lines, columns=list(COLUMNS)).astype(COLUMNS)


def _row(manifest: Manifest, record: Record, point: Point) -> dict[str, Any]:
    spec, counts = record.spec, {"clean": point.clean, "robust": point.robust}
    row: dict[str, Any] = {
        "method": spec.row,
        "adversary": record.adversary,
        "dataset": (record.data or manifest.data).label,
        "seed": spec.seed,
        "budget": str(spec.budget),
        "passes_per_image": point.passes_per_image,
        "eps": point.eps,
    }
    row |= point.snapshot.model_dump(exclude={"sha256"})
    if record.train is not None:
        row["stage_share"] = stage_share(record.train, point.snapshot.updates)
    for name, count in counts.items():
        if count is not None:
            row |= {f"{name}_correct": count[0], f"{name}_total": count[1], name: count[0] / count[1]}
    return row


def alarms(table: pd.DataFrame) -> list[str]:
    """What the course of a training warns of (bench.alarms): each sentence once, with the seeds that it is true of."""
    said: dict[tuple[str, str], list[str]] = {}
    known = table.dropna(subset=["robust", "stage_share"])
    for (method, seed, adversary), points in known.groupby(["method", "seed", "adversary"], sort=False):
        columns = points[["percent", "stage_share", "robust_correct", "robust_total"]]
        sentence = alarm(str(adversary), [Judged(*values) for values in columns.itertuples(index=False)])
        if sentence:
            said.setdefault((str(method), sentence), []).append(str(seed))
    return [f"{row}, seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}: {it}." for (row, it), seeds in said.items()]


def over(table: pd.DataFrame, cost: str, score: str) -> dict[str, list[tuple[float, float, float, float]]]:
    """Method -> (mean cost, mean, least, most of the score over seeds) of each mark, where both are known."""
    known = table.dropna(subset=[cost, score])
    by_method: dict[str, list[tuple[float, float, float, float]]] = {}
    for (method, _), marks in known.groupby(["method", "percent"], sort=False):
        values = marks[score].astype(float)
        at = float(marks[cost].mean()) / COSTS[cost][1]
        by_method.setdefault(str(method), []).append((at, values.mean(), values.min(), values.max()))
    return {method: sorted(points) for method, points in by_method.items()}
