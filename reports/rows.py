"""The rows of results.csv: one per method, seed, protocol, attack, norm and eps; a run without results has one of gaps.

Two attacks are derived here from the stored outcomes of single images. ``worst``: the image stands under PGD and under
AutoAttack, over the images that both attacked. ``pgd_only``: PGD where AutoAttack did not run, an upper bound. Both
are of l-inf.
"""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench.record import EvalResult, Manifest, Record, TrainResult
from reports import codes
from reports.best_known import best_known
from reports.disturbed import clock_probe, machine_medians
from reports.protocols import own_attacks
from reports.stats import wilson

COLUMNS = {
    "method": "object",
    "adversary": "object",
    "supervised": "boolean",
    "extra_data": "object",  # what a run has learnt from beside its images and its budget
    "dataset": "object",
    "encoder": "object",  # a file of the user's own goes by its name
    "seed": "Int64",
    "protocol": "object",
    "attack": "object",
    "threat_space": "object",
    "norm": "object",  # that eps is measured in
    "eps": "float64",
    "correct": "Int64",
    "total": "Int64",
    "accuracy": "float64",
    "lo": "float64",
    "hi": "float64",
    "best_known": "float64",  # of the same images: those that stand under every attack at this threat
    "best_known_n": "Int64",
    "curve": "boolean",
    "flips": "Int64",  # of an attack searched in TF32: images broken in it alone, and attacked again in float32
    "failed": "boolean",  # the attack: the note says why there is no number
    "audit": "object",  # of the ranked number: on its row only
    "audit_level": "object",
    "worst_audited": "float64",
    "pgd_ranked": "float64",  # of the ranked number too: accuracy under PGD alone on the images that it counts
    "probe_lo": "float64",  # and the least and the most accuracy of the probe band
    "probe_hi": "float64",
    "attack_spread": "float64",  # of the audit's check A6: the most minus the least accuracy over attack seeds
    "feature_shift": "float64",  # of the encoder, on all rows of its run: mean over images, in distances between them
    "feature_shift_median": "float64",
    "feature_cosine": "float64",  # mean, between centred features before and after
    "feature_n": "Int64",
    "budget": "object",
    "train_seconds": "float64",
    "compile_seconds": "float64",
    "updates": "Int64",
    "images_per_second": "float64",
    "forward_per_image": "float64",
    "backward_input_per_image": "float64",
    "backward_weight_per_image": "float64",
    "flops_per_image": "float64",
    "peak_memory_bytes": "Int64",
    "matrix_share": "float64",
    "schedule_active": "float64",
    "data_seconds": "float64",
    "data_wait_seconds": "float64",
    "attack_seconds": "float64",
    "update_seconds": "float64",
    "energy_joules": "float64",
    "disturbed": "boolean",
    "calibration_ratio": "float64",
    "head_seconds": "float64",  # that fitting the protocol's head took, and its passes of one image
    "head_passes": "float64",
    "eval_seconds": "float64",
    "device": "object",
    "node": "object",  # names a machine, and never decides a class of hardware
    "precision": "object",
    "eval": "object",
    "config_hash": "object",
    "code": "object",  # training.head.attack: the beginning of the hash of the code behind each
    "status": "object",
    "note": "object",
}
COSTS = (COLUMNS.keys() & TrainResult.model_fields.keys()) - {"status", "note", "code"}
DERIVED = ("worst", "pgd_only")
ATTACKS = ("none", "fgsm", "noise", "pgd", "autoattack", "worst", "pgd_only", "pgd_crop")  # the order of the rows


def rows(manifest: Manifest, records: Sequence[Record]) -> pd.DataFrame:
    """All results of a run folder, in a fixed order; accuracies and eps are fractions, missing values are gaps."""
    methods = list(dict.fromkeys([run.row for run in manifest.runs] + [record.spec.row for record in records]))
    lines: list[dict[str, Any]] = []
    medians = machine_medians(records)
    for record in sorted(records, key=lambda record: (methods.index(record.spec.row), record.spec.seed)):
        attacked = (result for result in record.results if not result.apart)  # the others: see reports.threats
        results = sorted([*attacked, *derived(record), *record.failed], key=place)
        cells = [_row(manifest, record, result) for result in results] or [_row(manifest, record)]
        probe = clock_probe(record, medians)
        lines += [cell | probe for cell in cells]
    return pd.DataFrame(lines, columns=list(COLUMNS)).astype(COLUMNS)


def derived(record: Record) -> list[EvalResult]:
    """``worst`` or ``pgd_only`` for every PGD result that was asked for: not the curve, not in l2, and not under a
    protocol that has attacks of its own."""
    apart = own_attacks([record.spec])
    asked = (r for r in record.results if not r.curve and r.protocol not in apart and r.norm == "linf")
    cells = {(r.protocol, r.attack, r.eps): r for r in asked}
    return [
        _worst(pgd, cells.get((protocol, "autoattack", eps)))
        for (protocol, attack, eps), pgd in cells.items()
        if attack == "pgd"
    ]


def _worst(pgd: EvalResult, autoattack: EvalResult | None) -> EvalResult:
    if autoattack is None or not autoattack.complete or not pgd.threat_space == autoattack.threat_space == "image":
        why = ["upper bound: no AutoAttack on the image at this eps"]
        if autoattack is not None and not autoattack.complete:
            why = autoattack.remarks
        note = _join(*why, pgd.note)
        return pgd.model_copy(update={"attack": "pgd_only", "seconds": 0.0, "note": note})
    both = zip(pgd.outcomes, autoattack.outcomes, strict=False)  # one fixed test order: the first images are shared
    return EvalResult(
        protocol=pgd.protocol,
        attack="worst",
        threat_space="image",
        eps=pgd.eps,
        outcomes="".join(min(pair) for pair in both),
        seconds=0.0,  # costs nothing of its own
        config_hash=f"{pgd.config_hash}+{autoattack.config_hash}",
        code=f"{pgd.code}+{autoattack.code}",
    )


def place(result: EvalResult) -> tuple[str, int, str, float]:
    """What results are sorted by: protocol, attack in the order of ATTACKS, eps."""
    known = ATTACKS.index(result.attack) if result.attack in ATTACKS else len(ATTACKS)
    return result.protocol, known, result.attack, result.eps


def _row(manifest: Manifest, record: Record, result: EvalResult | None = None) -> dict[str, Any]:
    spec = record.spec
    row: dict[str, Any] = {
        "method": spec.row,
        "adversary": record.adversary if record.environment else None,  # not known before a run begins
        "supervised": record.supervised,
        "extra_data": record.extra_data or None,
        "dataset": (record.data or manifest.data).label,
        "encoder": next((s.value for s in record.settings if s.name == "encoder"), spec.encoder),
        "seed": spec.seed,
        "budget": None if spec.foreign else str(spec.budget),
        "device": record.environment.device_name if record.environment else None,
        "node": (record.environment.node or None) if record.environment else None,
        "precision": spec.precision,
        "eval": spec.eval.level,
        "code": codes.cell(record, result),
        "status": record.status,
    }
    if record.shift is not None:
        shift = record.shift
        row |= {"feature_shift": shift.mean, "feature_shift_median": shift.median}
        row |= {"feature_cosine": shift.cosine_mean, "feature_n": shift.images}
    if record.train is not None:
        row |= record.train.model_dump(include=COSTS)
    if result is not None:
        row |= result.model_dump(include={"protocol", "attack", "threat_space", "eps", "curve"})
        row |= {"failed": bool(result.failed), "norm": result.norm} | _head(record, result.protocol)
    if result is not None and not result.failed:
        lo, hi = wilson(result.correct, result.total)
        row |= {"correct": result.correct, "total": result.total, "lo": lo, "hi": hi}
        row |= {"accuracy": result.correct / result.total if result.total else None, "eval_seconds": result.seconds}
        row |= {"config_hash": result.config_hash or None}
        if result.total and result.attack != "none" and (known := best_known(record, result)) is not None:
            row |= {"best_known": known / result.total, "best_known_n": result.total}
        if spec.eval.search != "fp32" and result.attack not in DERIVED:
            row |= {"flips": result.flips}
        if result.attack == "worst" and math.isclose(result.eps, manifest.main_eps):
            row |= _audit(record, result.protocol) | _band(record, result.protocol) | _pgd(record, result)
    of_cell = [] if result is None else [result.failed] if result.failed else result.remarks
    notes = (record.message, record.train.note if record.train else "", *of_cell)
    return row | {"note": _join(*notes) or None}


def _audit(record: Record, protocol: str) -> dict[str, Any]:
    """The verdict on a ranked number: ``off`` where no audit was asked for, NOT_RUN where it has not come to one."""
    level = record.spec.eval.audit
    if level == "off":
        return {"audit": "off", "audit_level": level}
    audit = next((audit for audit in record.audits if audit.protocol == protocol), None)
    if audit is None:
        return {"audit": "NOT_RUN", "audit_level": level}
    accuracy = audit.worst_audited / audit.audited if audit.audited else None
    points = next((check.value for check in audit.checks if check.id == "A6"), None)
    spread = None if points is None else points / 100
    columns = {"audit": audit.verdict, "audit_level": audit.level, "worst_audited": accuracy}
    return columns | {"attack_spread": spread}


def _pgd(record: Record, worst: EvalResult) -> dict[str, float]:
    """PGD accuracy on the images of the ranked number, which are the first of those that PGD attacked."""
    cell = (worst.protocol, "pgd", worst.eps, "linf")
    pgd = next(r for r in record.results if (r.protocol, r.attack, r.eps, r.norm) == cell)
    shared = pgd.outcomes[: worst.total]
    return {"pgd_ranked": shared.count("1") / len(shared)} if shared else {}


def _band(record: Record, protocol: str) -> dict[str, float]:
    """PGD accuracy over lambda/10, lambda and 10 lambda; empty where it was not measured."""
    bands = [probe.band for probe in record.probes if probe.protocol == protocol]
    accuracies = [correct / total for band in bands for _, correct, total in band if total]
    return {"probe_lo": min(accuracies), "probe_hi": max(accuracies)} if accuracies else {}


def _head(record: Record, protocol: str) -> dict[str, float | None]:
    """What the head of a protocol has cost; its passes are not known of older records."""
    head = next((probe for probe in record.probes if probe.protocol == protocol), None)
    return {} if head is None else {"head_seconds": head.seconds, "head_passes": head.passes or None}


def _join(*notes: str) -> str:
    return "; ".join(dict.fromkeys(note for note in notes if note))
