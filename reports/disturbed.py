"""Which timed runs were disturbed: the clock probe after against before, both against the machine's median (T-probe).

Judged from what the runs have stored each time a report is made, since every later run of a folder moves the median.
"""

import statistics
from collections.abc import Iterable
from typing import Any

from bench.fairness import disturbed
from bench.spec import Record

ENOUGH = 3  # runs of one machine that make a median


def clock_probe(record: Record, records: Iterable[Record]) -> dict[str, Any]:
    """The columns of results.csv about a run's clock probe; gaps where none was made.

    ``calibration_ratio``: seconds per unit of the load after the training over those before; above 1 is slower.
    """
    if record.train is None or record.train.calibration is None:
        return {"disturbed": None, "calibration_ratio": None}
    before, after = record.train.calibration
    median = machine_median(record, records)
    return {"disturbed": disturbed(record.train, median), "calibration_ratio": after / before}


def machine_median(record: Record, records: Iterable[Record]) -> float | None:
    """Median seconds per unit over the finished timed runs on the same hardware; None for fewer than three."""
    alike = [
        other.train.calibration
        for other in records
        if other.train is not None
        and other.train.status == "finished"
        and other.train.calibration is not None
        and hardware(other) == hardware(record)
    ]
    return statistics.median(seconds for pair in alike for seconds in pair) if len(alike) >= ENOUGH else None


def hardware(record: Record) -> tuple[Any, ...] | None:
    """What decides how long a unit takes when nothing disturbs it: machine, threads, torch and precision."""
    machine = record.environment
    if machine is None:
        return None
    return machine.device_name, machine.cpu, machine.cores, machine.threads, machine.torch, machine.precision
