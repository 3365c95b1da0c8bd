"""The clock probe: a fixed load, timed before and after a training in seconds, tells whether the machine changed.

Protocol T-probe. The load resembles training: matrix products and elementwise work on the same device, in the same
precision, with the same threads. It is off the clock and has tensors and a random stream of its own.
"""

import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.device import device as devices
from bench.device import nvml
from bench.random import stream
from bench.record import TrainResult
from bench.spec import Budget, Precision

SHARE, SHORTEST, LONGEST = 0.01, 0.5, 30.0  # of the budget; seconds
PRODUCTS = 4  # in one unit
Reading = dict[str, Any]  # plain numbers and lists, since it is part of a checkpoint


class Load:
    """One unit of fixed work at each call: a few milliseconds."""

    def __init__(self, device: torch.device, precision: Precision) -> None:
        size, dtype = (4096 if device.type == "cuda" else 384), torch.bfloat16 if precision == "bf16" else torch.float32
        start, weight = torch.randn(2, size, size, generator=stream(0, "calibration"))
        self._start, self._weight = start.to(device, dtype), (weight / math.sqrt(size)).to(device, dtype)

    @torch.no_grad()
    def __call__(self) -> None:
        x = self._start
        for _ in range(PRODUCTS):
            x = (x @ self._weight).clamp(-1, 1)


def probe_seconds(budget: Budget) -> float | None:
    """How long one probe takes: 1 % of the budget, within [0.5, 30] s; None for a budget in updates or epochs."""
    return min(max(SHARE * budget.amount, SHORTEST), LONGEST) if budget.unit == "seconds" else None


def measure(
    load: Callable[[], None],
    seconds: float,
    *,
    stop: Callable[[], bool] = lambda: False,
    now: Callable[[], int] = time.monotonic_ns,
    synchronize: Callable[[], None] = lambda: None,
) -> float | None:
    """Median seconds per unit of the load, repeated for so many seconds; None where ``stop()`` cuts it short."""
    load()  # the first unit pays for allocations
    synchronize()
    began = now()
    end = began + round(seconds * 1e9)
    units: list[float] = []
    while began < end:
        if stop():
            return None
        load()
        synchronize()
        ended = now()
        units.append((ended - began) / 1e9)
        began = ended
    return statistics.median(units)


def read_machine(
    budget: Budget,
    device: torch.device,
    precision: Precision,
    *,
    stop: Callable[[], bool] = lambda: False,
    now: Callable[[], int] = time.monotonic_ns,
) -> Reading | None:
    """Seconds per unit, load average before it, other processes and throttling of the GPU after it.

    None where the budget is not in seconds, or ``stop()`` cut it short.
    """
    seconds = probe_seconds(budget)
    if seconds is None:
        return None
    load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    load = Load(device, precision)
    unit = measure(load, seconds, stop=stop, now=now, synchronize=lambda: devices.synchronize(device))
    processes, throttling = nvml.other_processes(device), nvml.throttling(device)  # while it is still warm
    del load
    devices.release_memory(device)
    if unit is None:
        return None
    return {"unit": unit, "load_average": load_average, "processes": processes, "throttling": throttling}


def thread_gain(
    device: torch.device,
    *,
    stop: Callable[[], bool] = lambda: False,
    now: Callable[[], int] = time.monotonic_ns,
) -> float | None:
    """How many times as fast the load is on all threads of this process as on one.

    None on a GPU, for one thread, or where ``stop()`` cut it short. Below 1 the threads stall: each operation waits for
    its slowest thread, which shares a core with other work.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        return None
    load = Load(device, "fp32")
    together = measure(load, SHORTEST / 2, stop=stop, now=now)
    torch.set_num_threads(1)
    try:
        alone = measure(load, SHORTEST / 2, stop=stop, now=now)
    finally:
        torch.set_num_threads(threads)
    return alone / together if alone and together else None


def probed(result: TrainResult, before: Reading | None, after: Reading | None) -> TrainResult:
    """The result with both readings; as it is where one of them is missing."""
    if before is None or after is None:
        return result
    processes = [reading["processes"] for reading in (before, after) if reading["processes"] is not None]
    reasons = [reading["throttling"] for reading in (before, after) if reading["throttling"] is not None]
    return result.model_copy(
        update={
            "calibration": (before["unit"], after["unit"]),
            "load_average": before["load_average"],
            "gpu_processes": max(processes, default=None),
            "throttling": tuple(sorted({name for reason in reasons for name in reason})) if reasons else None,
        }
    )
