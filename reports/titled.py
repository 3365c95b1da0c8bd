"""Rows under the names that people use: CF-AMC-SSL for cf_amc_ssl. Figures and reports have them; CSV files do not."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pandas as pd

from bench.identity.outline import method_title
from bench.record import Manifest, Record
from bench.spec import RunSpec

T = TypeVar("T")


EXTRA = " (extra data)"


def titles(specs: Iterable[RunSpec], records: Sequence[Record] = ()) -> dict[str, str]:
    """Row -> title, with what the row adds to the name of its method: ``CF-AMC-SSL-5m``.

    A row that has a name of its own keeps it, and so do rows that one title would stand for. The records know the
    titles of a user's methods, and who has learnt from extra data: that stands behind the title.
    """
    own = {record.spec.row: record.title for record in records if record.title}
    extra = {record.spec.row for record in records if record.extra_data}
    said = {}
    for spec in specs:
        added = spec.row.removeprefix(spec.method)
        title = own.get(spec.row) or (spec.method if spec.method_path or spec.foreign else method_title(spec.method))
        fits = not added or added[0] in "-@"
        marked = EXTRA * (spec.row in extra)  # before what is added: the budget ends the name of a row
        said[spec.row] = f"{title}{marked}{added}" if fits else f"{spec.row}{marked}"
    times = Counter(said.values())
    return {row: title if times[title] == 1 else row + EXTRA * (row in extra) for row, title in said.items()}


def flagged(table: pd.DataFrame) -> pd.DataFrame:
    """Results or the leaderboard under the names of rows, with EXTRA after those that have learnt from extra data."""
    mark = table["extra_data"].notna().map({True: EXTRA, False: ""}) if "extra_data" in table else ""
    return table.assign(method=table["method"].astype(str) + mark)


@dataclass(frozen=True)
class Titled:
    """What a report shows, with titles in place of the names of rows."""

    names: Mapping[str, str]  # row -> title

    def manifest(self, manifest: Manifest) -> Manifest:
        tuning = manifest.tuning and manifest.tuning.renamed(self.names)
        return manifest.model_copy(update={"runs": [self._spec(spec) for spec in manifest.runs], "tuning": tuning})

    def records(self, records: Sequence[Record]) -> list[Record]:
        return [record.model_copy(update={"spec": self._spec(record.spec)}) for record in records]

    def table(self, table: pd.DataFrame) -> pd.DataFrame:
        """Of methods, or of pairs of them."""
        columns = [name for name in ("method", "a", "b") if name in table]
        return table.assign(**{name: table[name].map(lambda row: self.names.get(row, row)) for name in columns})

    def by_run(self, parts: Mapping[str, T], records: Sequence[Record]) -> dict[str, T]:
        """What belongs to the name of each run."""
        names = {record.spec.name: self._spec(record.spec).name for record in records}
        return {names.get(name, name): part for name, part in parts.items()}

    def _spec(self, spec: RunSpec) -> RunSpec:
        title = self.names.get(spec.row, spec.row)
        return spec if title == spec.row else spec.model_copy(update={"label": title})
