"""Before hours of work: what a command would do and cost, and a question, where somebody can answer."""

import sys
from typing import TYPE_CHECKING, Any

import click

from bench.text import say

if TYPE_CHECKING:
    from bench.options.options import Options

LONG = 3600.0  # seconds of planned work from which on a terminal is asked
MAIN_BUDGET = "2h"  # of `bench run` without options


def on_terminal() -> bool:
    """Whether somebody reads and can answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def offered(given: dict[str, Any], yes: bool) -> bool:
    """Whether `bench run` was given no options, and there is somebody to offer the main command to, or a --yes."""
    return not any(value not in (None, ()) for value in given.values()) and (yes or on_terminal())


def agreed(question: str) -> bool:
    """The answer on the terminal; no, where none comes."""
    try:
        return click.confirm(question, default=False, err=True)
    except click.Abort:
        return False


def describe(options: "Options") -> list[str]:
    """What the main command does on this machine and what it costs at least, a line each."""
    from bench import registry
    from bench.cores import cores
    from bench.device import device as devices
    from bench.options.options import chosen_rows
    from bench.runs.plan import duration
    from bench.spec import Budget

    rows, budget = chosen_rows(options), Budget.parse(options.budget or MAIN_BUDGET)
    device = devices.resolve(options.device)
    places = len(devices.visible_gpus()) if device.type == "cuda" else cores()
    what = "GPU" if device.type == "cuda" else "CPU core"
    where = f"{places} {what}{'s' * (places > 1)}" + ", as there is no GPU here" * (device.type != "cuda")
    at_a_time = min(len(rows), places)
    training = budget.amount * -(-len(rows) // at_a_time)
    lines = [
        f"bench run without options is the main command: bench run --methods all --budget {budget}",
        f"It trains {len(rows)} methods for {budget} each on {options.data} with {where}, and attacks every encoder "
        "with PGD and AutoAttack under each protocol.",
        f"The training takes {duration(training)}, {at_a_time} at a time; the attacks come on top, and are in the plan "
        "that is shown first.",
        f"Data: {registry.describe('dataset', options.data_spec.name)}",
    ]
    if device.type != "cuda":
        lines.append("On a CPU these budgets teach a ResNet-18 little.")
    return [*lines, "For a first look in minutes: bench run --suite quick"]


def show_offer(options: "Options") -> None:
    """Print it on standard error."""
    for line in describe(options):
        say(line, err=True)
