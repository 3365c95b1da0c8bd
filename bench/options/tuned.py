"""What ``--tuned DIR`` adds to a run: beside each row one with the best settings that `bench tune` found for it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.names import check_labels
from bench.spec import NAME, UsageError
from bench.storage.disk import is_there
from bench.storage.files import read
from bench.tuned import ENDING, FILE, SEED, Tuning

if TYPE_CHECKING:
    from bench.options.options import Options, Row


def read_tuning(folder: str) -> Tuning:
    """A finished search. Raises UsageError where the folder holds none, or one that is still to go on."""
    file = Path(folder).expanduser() / FILE
    if not is_there(file):
        raise UsageError(f"expected the folder of a search, made by bench tune, got --tuned {folder}: it has no {FILE}")
    tuning = read(Tuning, file)
    if not tuning.done:
        least = min(len(search.trials) for search in tuning.searches.values())
        raise UsageError(
            f"expected a search that is done, got {least} of {tuning.trials} trials in {folder}; its command goes on"
        )
    return tuning


def tuned_values(folder: str) -> dict[str, str]:
    """What a run of a search's methods on its data asks for, where the command says nothing else. Raises UsageError."""
    tuning = read_tuning(folder)
    methods = [
        found.method if row == Path(found.method).stem else f"{row}={found.method}"
        for row, found in tuning.searches.items()
    ]
    return {"methods": ",".join(methods), "data": tuning.images}


def with_tuned(options: "Options", rows: "list[Row]", seeds: Sequence[int]) -> "list[Row]":
    """The rows, and behind each one with the best settings of the search; none where these are the published ones.

    Raises UsageError where the search was over something else: another method, data set or fixed settings.
    """
    if options.tuned is None:
        return rows
    tuning = read_tuning(options.tuned)
    if (tuning.data, tuning.path) != (options.data_spec.name, options.data_spec.path):
        raise UsageError(f"expected --data {tuning.images}, on which {options.tuned} was tuned, got {options.data}")
    if options.budget and "," in options.budget:
        raise UsageError(f"expected one budget with --tuned, got {options.budget}")
    if SEED in seeds:
        raise UsageError(f"expected seeds other than {SEED}, with which the trials were trained")
    both: list[Row] = []
    for row in rows:
        best = tuning.tuned_settings(row.label)  # raises for a row that was not tuned
        method = str(Path(row.method).resolve()) if row.method.endswith(".py") else row.method
        if method != tuning.searches[row.label].method:
            was = tuning.searches[row.label].method
            raise UsageError(f"expected {row.label} as {was}, which was tuned under this name, got {method}")
        if fixed := differing(options, row, tuning):
            raise UsageError(f"expected the settings of {row.label} with which it was tuned, got others: {fixed}")
        both.append(row)
        name = f"{row.label}{ENDING}"
        if name in options.settings:
            raise UsageError(f"--set {name}: its settings are what the search has found; set those of {row.label}")
        if best and not re.fullmatch(NAME, name):
            raise UsageError(f"expected a row whose name leaves room for {ENDING}, got {row.label}; rename it")
        if best:
            changed = {"name": name, "settings": options.settings_of(row) | best, "tuned": True}
            both.append(row.model_copy(update=changed))
    check_labels(((row.label, row.method) for row in both), suite=True)
    return both


def differing(options: "Options", row: "Row", tuning: Tuning) -> str:
    """The settings of a suite or --set that differ from those of the search, in words; "" where none does."""
    there, now = tuning.searches[row.label].fixed, options.settings_of(row)
    usual = "as published"
    values = {name: (there.get(name, usual), now.get(name, usual)) for name in {**there, **now}}
    return ", ".join(f"{name}: {a} there, {b} now" for name, (a, b) in values.items() if plain(a) != plain(b))


def plain(value: object) -> object:
    """A value as the command line and a suite both mean it: a number, or its text."""
    try:
        return float(str(value))
    except ValueError:
        return str(value).lower()


def check_tuned_encoder(options: "Options", encoder: str) -> None:
    """Raises UsageError where the search trained other encoders than this one."""
    tuned_on = read_tuning(options.tuned).encoder if options.tuned else encoder
    if tuned_on != encoder:
        raise UsageError(f"expected --encoder {tuned_on}, which {options.tuned} was tuned with, got {encoder}")
