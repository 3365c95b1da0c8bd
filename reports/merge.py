"""Several run folders, of different machines or days, as one: what a report over them shows, and what it leaves out.

Runs of a method become one line only where all but seed and machine is the same, code too, and no seed occurs twice.
Otherwise its runs are named by their folder, as ``cf_amc_ssl@day2``. Runs of several budgets are named by budget.
"""

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from bench.record import Manifest, Record
from bench.spec import UsageError, format_eps
from reports.budgets import base
from reports.claims import hardware_class
from reports.codes import conflict, relabelled
from reports.differences import Folder, differences, facts, versions

OF_MACHINE = (  # columns that say nothing about a method where the machines differ
    "train_seconds",
    "compile_seconds",
    "head_seconds",
    "images_per_second",
    "peak_memory_bytes",
    "data_seconds",
    "attack_seconds",
    "update_seconds",
    "energy_joules",
    "eval_seconds",
)
LEFT_OUT = (
    "Times, memory and energy are left empty: these runs are from different hardware. "
    "results.csv has those of each run, beside its hardware."
)
UNEQUAL = "Equal training time bought different amounts of computation."
HEADED = (
    "data set",
    "training images",
    "test images",
    "budget",
    "main eps",
    "hardware",
    "system",
    "precision",
    "commit",
)
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class View:
    """What a report is made of. Of a single run folder: its manifest and records, and nothing else."""

    manifest: Manifest
    records: Sequence[Record]
    facts: Mapping[str, str] = field(default_factory=dict)  # of the first page; empty: those of the manifest
    sources: Mapping[str, str] = field(default_factory=dict)  # name of a run -> its folder, where there are several

    @property
    def mixed(self) -> bool:
        """Whether the runs were trained on more than one class of hardware, and come from several folders."""
        trained = {hardware_class(record.environment) for record in self.records if record.train is not None}
        return bool(self.sources) and len(trained) > 1

    def stored(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table of runs as written to a file: of several folders with the source and the hardware of each run."""
        if not self.sources:
            return table
        machines = {record.spec.name: hardware_class(record.environment) for record in self.records}
        runs = [f"{method}-s{seed}" for method, seed in table[["method", "seed"]].itertuples(index=False)]
        return table.assign(source=[self.sources[run] for run in runs], hardware=[machines[run] for run in runs])

    def comparable(self, table: pd.DataFrame) -> pd.DataFrame:
        """The same without what may not stand in one column: the costs of different machines."""
        if not self.mixed:
            return table
        all_rows = np.ones(len(table), dtype=bool)
        return table.assign(**{name: table[name].mask(all_rows) for name in OF_MACHINE if name in table})

    def noted(self, board: pd.DataFrame) -> pd.DataFrame:
        """The leaderboard, with a sentence about what was left empty."""
        if not self.mixed:
            return board
        timed = any(record.spec.budget.unit == "seconds" for record in self.records)
        note = f"{LEFT_OUT} {UNEQUAL}" if timed else LEFT_OUT
        return board.assign(standing=[f"{standing or ''} {note}".strip() for standing in board["standing"]])


@dataclass(frozen=True, eq=False)
class Merged:
    """One view of several folders, and for each folder the name that each of its runs has there -> here."""

    view: View
    names: Sequence[Mapping[str, str]]

    def together(self, parts: Sequence[Mapping[str, T]]) -> dict[str, T]:
        """What the folders hold for each run (pictures, curves), under the names of the view."""
        return {
            names[run]: content
            for names, part in zip(self.names, parts, strict=True)
            for run, content in part.items()
            if run in names
        }


def merge(folders: Sequence[Folder]) -> Merged:
    """The runs of all ``folders``, in their order; a run that several hold unchanged once.

    A run that has not begun gives way to one that has. Raises UsageError for other data or another main eps.
    """
    for other in folders[1:]:
        _check(folders[0], other)
    taken = _taken(folders)
    by_budget = len({folder.manifest.budget for folder in folders}) > 1
    by_folder = _apart(folders, taken)
    records: list[Record] = []
    sources: dict[str, str] = {}
    names: list[dict[str, str]] = [{} for _ in folders]
    for place, record in taken:
        folder, spec = folders[place].name, record.spec
        row = base(spec.row, str(spec.budget)) if by_budget else spec.row
        label = row + f"@{folder}" * (_method(record) in by_folder) + f"-{spec.budget}" * by_budget
        named = record.model_copy(update={"spec": relabelled(spec, label)})
        records.append(named)
        sources[named.spec.name] = folder
        names[place][spec.name] = named.spec.name
    return Merged(View(_manifest(folders, records), records, _told(folders, records, sources), sources), names)


def _check(first: Folder, other: Folder) -> None:
    expected, got = (
        {
            "data": f"{f.manifest.data.label} (training images {f.manifest.data.train_sha256[:12]}, "
            f"test images {f.manifest.data.test_sha256[:12]})",
            "main eps": format_eps(f.manifest.main_eps),
        }
        for f in (first, other)
    )
    for what in expected:
        if expected[what] != got[what]:
            raise UsageError(
                f"expected the same {what} in all folders: {expected[what]} as in {first.name}, got {got[what]} in "
                f"{other.name}; such runs need a report each"
            )


# ---------------------------------------------------------------- which runs, under which names


def _taken(folders: Sequence[Folder]) -> list[tuple[int, Record]]:
    """(place of the folder, record) of every run that is shown."""
    begun = {_run(r) for folder in folders for r in folder.records if r.status != "pending"}
    taken: list[tuple[int, Record]] = []
    for place, folder in enumerate(folders):
        for record in folder.records:
            known = [other for _, other in taken if _run(other) == _run(record)]
            waiting = record.status == "pending" and (_run(record) in begun or bool(known))
            if not waiting and record not in known:
                taken.append((place, record))
    return taken


def _apart(folders: Sequence[Folder], taken: Sequence[tuple[int, Record]]) -> set[tuple[str, str]]:
    """Methods that several folders have, and whose runs are not one line: other recipes, or a seed twice."""
    runs: dict[tuple[str, str], list[tuple[int, Record]]] = {}
    for place, record in taken:
        runs.setdefault(_method(record), []).append((place, record))
    return {
        method
        for method, pairs in runs.items()
        if len({place for place, _ in pairs}) > 1
        and (not _one_recipe([r for _, r in pairs]) or len({r.spec.seed for _, r in pairs}) < len(pairs))
    }


def _method(record: Record) -> tuple[str, str]:
    return record.spec.row, str(record.spec.budget)


def _run(record: Record) -> tuple[str, str, int]:
    return *_method(record), record.spec.seed


def _one_recipe(records: Sequence[Record]) -> bool:
    """Whether the records say the same of everything but seed, machine and the place of files."""
    where = {"seed", "device", "threads", "data", "method_path", "encoder_path"}  # the same run, made elsewhere
    asked = [r.spec.model_dump(exclude=where) for r in records]
    for spec in asked:
        spec["eval"].pop("attack_paths", None)
        for protocol in spec["eval"].get("own_protocols", {}).values():
            del protocol["path"]
    resolved = [[(s.name, s.value) for s in r.settings] for r in records if r.settings]
    if any(conflict(one, other) for one, other in combinations(records, 2)):
        return False
    return all(request == asked[0] for request in asked) and all(settings == resolved[0] for settings in resolved)


# ---------------------------------------------------------------- what is said of them


def _manifest(folders: Sequence[Folder], records: Sequence[Record]) -> Manifest:
    """The first one, with what is true of all."""
    manifests = [folder.manifest for folder in folders]

    def common(values: Iterable[Any]) -> Any:
        listed = list(values)
        return listed[0] if all(value == listed[0] for value in listed) else None

    searches = [manifest.tuning for manifest in manifests]
    return manifests[0].model_copy(
        update={
            "command": ["bench", "report", *(folder.name for folder in folders)],
            "created": max(manifest.created for manifest in manifests),
            "budget": common(manifest.budget for manifest in manifests),
            "total_budget": common(manifest.total_budget for manifest in manifests),
            "runs": [record.spec for record in records],
            "seeds": sorted({record.spec.seed for record in records}),
            "tuning": common(search for search in searches if search is not None) if any(searches) else None,
        }
    )


def _told(folders: Sequence[Folder], records: Sequence[Record], sources: Mapping[str, str]) -> dict[str, str]:
    """The facts of the first page: where the runs are from, what differs, then what all share."""

    def by_folder(values: Iterable[str]) -> str:
        return "; ".join(f"{value} ({folder.name})" for folder, value in zip(folders, values, strict=True) if value)

    counts, methods = Counter(sources.values()), len({record.spec.row for record in records})
    different = {difference.what: difference.values for difference in differences(folders)}
    software = versions(folders[0])
    shared = {name: value for name, value in facts(folders[0]).items() if name not in different}
    plain = {name: value for name, value in shared.items() if name not in software and ": " not in name}
    level = (f"{name} {shared[key]}" for name in ("level", "eps") if (key := f"evaluation: {name}") in shared)
    return {
        "Merged from": ", ".join(f"{f.name} ({(n := counts[f.name])} run{'s' * (n != 1)})" for f in folders),
        "What differs": ", ".join(different) or "nothing that is listed here",
        **{_title(name): by_folder(values) for name, values in different.items()},
        **{_title(name): value for name, value in plain.items()},
        "Runs": f"{methods} methods, seeds {', '.join(map(str, sorted({r.spec.seed for r in records})))}",
        "Evaluation": ", ".join(level),
        "Software": ", ".join(f"{name} {shared[name]}" for name in software if name in shared),
        "Commands": by_folder(shlex.join(folder.manifest.command) for folder in folders),
        "Dates": by_folder(folder.manifest.created for folder in folders),
    }


def _title(name: str) -> str:
    """``Data set``; a package or a setting keeps the name that it has."""
    return name[0].upper() + name[1:] if name in HEADED else name
