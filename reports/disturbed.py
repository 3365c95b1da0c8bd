"""Which timed runs were disturbed: the clock probe after against before, both against the machine's median (T-probe).

Judged from what the runs have stored each time a report is made, since every later run of a folder moves the median.
"""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from bench.fairness import disturbed
from bench.record import Record

ENOUGH = 3  # runs of one machine that make a median


Hardware = tuple[Any, ...] | None


def clock_probe(record: Record, medians: Mapping[Hardware, float]) -> dict[str, Any]:
    """The columns of results.csv about a run's clock probe, held against the medians of all runs; gaps without one.

    ``calibration_ratio``: seconds per unit of the load after the training over those before; above 1 is slower.
    """
    if record.train is None or record.train.calibration is None:
        return {"disturbed": None, "calibration_ratio": None}
    before, after = record.train.calibration
    median = medians.get(hardware(record))
    return {"disturbed": disturbed(record.train, median), "calibration_ratio": after / before}


def machine_medians(records: Iterable[Record]) -> dict[Hardware, float]:
    """Median seconds per unit over the finished timed runs on each hardware; none of fewer than three runs."""
    by_machine: dict[Hardware, list[tuple[float, float]]] = {}
    for record in records:
        train = record.train
        if train is not None and train.status == "finished" and train.calibration is not None:
            by_machine.setdefault(hardware(record), []).append(train.calibration)
    enough = {machine: pairs for machine, pairs in by_machine.items() if len(pairs) >= ENOUGH}
    return {machine: statistics.median(s for pair in pairs for s in pair) for machine, pairs in enough.items()}


def hardware(record: Record) -> Hardware:
    """What decides how long a unit takes when nothing disturbs it: machine, threads, torch and precision."""
    machine = record.environment
    if machine is None:
        return None
    return machine.device_name, machine.cpu, machine.cores, machine.threads, machine.torch, machine.precision
