"""What a training says of its machine: whether its time is fair, and whether its budget held enough updates.

Everything here follows from what is stored (TrainResult). The clock probe is bench.device.clock_probe's.
"""

from bench.record import TrainResult
from bench.spec import Budget

DISTURBED = 0.03  # of a machine's pace: a larger difference between two clock probes marks a timed run
LEARNING_UPDATES = 60  # before about so many updates an encoder is not robust yet (seen on digits)


def disturbed(result: TrainResult, machine: float | None = None) -> bool | None:
    """Whether the clock probe differs after and before, or from the machine's median; None without a probe."""
    if result.calibration is None:
        return None
    before, after = result.calibration
    pairs = [(after, before)] + ([(before, machine), (after, machine)] if machine else [])
    return any(abs(ours / usual - 1) > DISTURBED for ours, usual in pairs)


def stalled(result: TrainResult) -> bool:
    """Whether several threads were slower than one would have been: they shared their cores with other work."""
    return result.thread_gain is not None and result.thread_gain < 1


def too_few(result: TrainResult, budget: Budget) -> bool:
    """Whether a budget in time held too few updates for a method to learn anything."""
    return budget.unit == "seconds" and result.status == "finished" and result.updates < LEARNING_UPDATES


def remarks(result: TrainResult, budget: Budget, threads: int) -> list[str]:
    """What to say of the machine after a training, a line each; none where all was well."""
    lines = [complaint(result)]
    if stalled(result):
        lines.append(
            f"stalled: {threads} threads are {result.thread_gain:.1f} times as fast as one, because they share their "
            "cores with other work; use --threads 1"
        )
    if too_few(result, budget):
        lines.append(
            f"{result.updates} updates in {budget}: too few for this method to learn, as this machine is too slow or "
            "too busy for that budget; give a longer one, or updates, such as --budget 300up"
        )
    return [line for line in lines if line]


def complaint(result: TrainResult) -> str:
    """One line about a machine that was not the same after the training as before; "" where it was, or is unknown."""
    if result.calibration is None or not disturbed(result):
        return ""
    before, after = result.calibration
    change = f"{abs(after / before - 1):.0%}".replace("%", " %")
    pace = "slower" if after > before else "faster"
    return f"disturbed: this machine was {change} {pace} after the training than before; run it again for a fair time"
