"""What stands apart from the attacks at an eps: corrupted images, and distances to the nearest adversarial image.

Rows of corruptions.csv and distances.csv, and the sections of the report. Neither enters a rank or a worst case.
"""

import math
from collections.abc import Iterator, Sequence
from statistics import mean, median
from typing import Any

import pandas as pd

from bench.known import SEVERITIES, TYPES
from bench.names import CORRUPTIONS
from bench.record import EvalResult, Manifest, Record
from reports import protocols as known
from reports.cells import number, percent, table

NAME = "corruptions (regenerated)"
RUN = {"method": "object", "dataset": "object", "seed": "Int64", "protocol": "object"}
CORRUPTED = RUN | {
    "threat": "object",  # NAME, in every row
    "type": "object",
    "severity": "Int64",
    "correct": "Int64",
    "total": "Int64",
    "accuracy": "float64",
    "config_hash": "object",
}
DISTANCES = RUN | {
    "attack": "object",
    "norm": "object",
    "median": "float64",  # over all images: 0 where the clean one is wrong, infinite where nothing was found
    "broken": "Int64",  # images for which one was found
    "total": "Int64",
    "eps": "float64",  # a point of the curve, and the accuracy that the distances leave there: an upper bound
    "accuracy": "float64",
    "config_hash": "object",
}
POINTS = 20  # of the curve over eps, evenly up to the largest distance


def corrupted(manifest: Manifest, records: Sequence[Record]) -> pd.DataFrame:
    """A row for each run, protocol, type and severity of a complete cell; accuracies are fractions."""
    lines = []
    for record, result in results(records):
        if result.attack != CORRUPTIONS or not result.complete:
            continue
        forms = [(kind, severity) for kind in TYPES for severity in SEVERITIES]
        images = result.total // len(forms)
        for place, (kind, severity) in enumerate(forms):
            right = result.outcomes[place * images : (place + 1) * images].count("1")
            row = {"threat": NAME, "type": kind, "severity": severity, "correct": right, "total": images}
            share = right / images if images else None
            lines.append(of_run(manifest, record, result) | row | {"accuracy": share})
    return pd.DataFrame(lines, columns=list(CORRUPTED)).astype(CORRUPTED)


def distances(manifest: Manifest, records: Sequence[Record]) -> pd.DataFrame:
    """The accuracy over eps that the distances of each run, protocol and attack leave, at POINTS and at 0."""
    lines = []
    for record, result in results(records):
        if not result.distances:
            continue
        known = [math.inf if distance is None else distance for distance in result.distances]
        finite = [distance for distance in known if distance < math.inf]
        row = of_run(manifest, record, result) | {"attack": result.attack, "norm": result.norm}
        row |= {"median": median(known), "broken": len(finite), "total": len(known)}
        for point in range(POINTS + 1):
            eps = max(finite, default=0.0) * point / POINTS
            left = sum(distance > eps for distance in known) / len(known)
            lines.append(row | {"eps": eps, "accuracy": left})
    return pd.DataFrame(lines, columns=list(DISTANCES)).astype(DISTANCES)


def results(records: Sequence[Record]) -> Iterator[tuple[Record, EvalResult]]:
    """(run, cell) of every cell that stands apart, in the order of the runs."""
    yield from ((record, result) for record in records for result in record.results if result.apart)


def of_run(manifest: Manifest, record: Record, result: EvalResult) -> dict[str, Any]:
    """What a row says of its run."""
    return {
        "method": record.spec.row,
        "dataset": (record.data or manifest.data).label,
        "seed": record.spec.seed,
        "protocol": result.protocol,
        "config_hash": result.config_hash or None,
    }


# ---------------------------------------------------------------- in the report


def sections(manifest: Manifest, records: Sequence[Record]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both sections of the report; one without content has no tables."""
    return (
        {
            "title": "Corruptions (regenerated)",
            "text": "Accuracy in % on images that nobody chose against the encoder: an average case, never in a worst "
            "case or a rank. 15 types in 5 severities (Hendrycks & Dietterich, 2019), made here with the constants of "
            "ImageNet-C: not the arrays of CIFAR-10-C, and not comparable with numbers on them. corruptions.csv has "
            "all 75.",
            "tables": _corrupted(manifest, corrupted(manifest, records)),
        },
        {
            "title": "Distance to the nearest adversarial image",
            "text": "What a minimum-norm attack found, without an eps: 0 where the clean image is wrong, infinite "
            "where nothing was found. It is an upper bound of the distance, so the accuracy that it leaves at an eps "
            "is one too; never in a worst case or a rank. distances.csv has the curve.",
            "tables": _distances(manifest, records),
        },
    )


def _corrupted(manifest: Manifest, rows: pd.DataFrame) -> list[dict[str, Any]]:
    titles = known.titles(manifest.runs)
    runs: dict[tuple[str, int, str], list[dict[Any, Any]]] = {}
    for cell in rows.to_dict("records"):
        runs.setdefault((cell["method"], cell["seed"], cell["protocol"]), []).append(cell)
    lines = []
    for (method, seed, protocol), cells in runs.items():
        types = {kind: mean(cell["accuracy"] for cell in cells if cell["type"] == kind) for kind in TYPES}
        kind, worst = min(types, key=lambda kind: types[kind]), min(cells, key=lambda cell: cell["accuracy"])
        line = [method, str(seed), titles[protocol], percent(mean(types.values())), percent(types[kind]), kind]
        line += [percent(worst["accuracy"]), f"{worst['type']} {worst['severity']}", str(worst["total"])]
        lines.append(line)
    names = "Method | Seed | Protocol | Mean % | Worst type % | Type | Worst of 75 % | Form | Images"
    left = "Method | Protocol | Type | Form"
    return [table(f"Accuracy under {NAME}.", names, lines, left, "Method", size=7.5)] if lines else []


def _distances(manifest: Manifest, records: Sequence[Record]) -> list[dict[str, Any]]:
    titles, lines = known.titles(manifest.runs), []
    for record, result in results(records):
        if result.distances:
            far = sorted(math.inf if distance is None else distance for distance in result.distances)
            quarters = [far[len(far) // 4], median(far), far[3 * len(far) // 4]]
            unit = 255 if result.norm == "linf" else 1
            shown = ["none found" if math.isinf(quarter) else number(quarter * unit, ".3g") for quarter in quarters]
            count = sum(map(math.isfinite, far))
            line = [record.spec.row, str(record.spec.seed), titles[result.protocol], result.attack, result.norm]
            lines.append([*line, *shown, f"{count} of {len(far)}"])
    names = "Method | Seed | Protocol | Attack | Norm | First quarter | Median | Last quarter | Found"
    caption = "Distances, in 255ths of the pixel range in l-inf and in the range itself in l2; quarters of all images."
    return [table(caption, names, lines, "Method | Protocol | Attack | Norm", "Method", size=7.5)] if lines else []
