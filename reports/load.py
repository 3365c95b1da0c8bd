"""A run folder as pandas frames, for notebooks: read from what is stored, so nothing has to be built before."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from bench.record import Manifest, Record
from bench.spec import UsageError
from bench.storage.store import Point, load_curves, load_manifest, load_records
from reports.codes import apart
from reports.curves import curves
from reports.leaderboard import leaderboard, ranked_lines
from reports.pairs import pairs
from reports.rows import rows


@dataclass(frozen=True)
class Run:
    """The tables of a run folder as it was when it was loaded; each is computed when it is first asked for.

    Their columns are those of the CSV files of the same names; accuracies are fractions, missing values gaps.
    """

    folder: Path
    manifest: Manifest
    records: list[Record]
    points: dict[str, list[Point]]

    @cached_property
    def results(self) -> pd.DataFrame:
        """One row per method, seed, protocol, attack and eps."""
        return rows(self.manifest, self.records)

    @cached_property
    def leaderboard(self) -> pd.DataFrame:
        """One row per method and protocol, ranked."""
        return leaderboard(self.results, self.records, self.manifest.main_eps)

    @cached_property
    def claims(self) -> pd.DataFrame:
        """One row per pair and protocol: who is better, or why it is a tie."""
        return pairs(self.records, self.manifest.main_eps, ranked_lines(self.leaderboard))

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row per run and snapshot; empty where ``--curve`` was off."""
        return curves(self.manifest, self.records, self.points)


def load(folder: Path | str) -> Run:
    """What is stored in a run folder. Writes nothing.

    Raises UsageError for a folder that holds no run, and Damaged (one of them) with the name of a damaged file.
    """
    if not isinstance(folder, Path | str):
        raise UsageError(f"expected the folder of a run, got {folder!r}")
    place = Path(folder)
    stored = load_records(place)
    records = apart(stored)
    names = {before.spec.name: after.spec.name for before, after in zip(stored, records, strict=True)}
    points = {names[name]: curve for name, curve in load_curves(place).items()}
    return Run(place, load_manifest(place), records, points)
