"""The harness: trains, attacks, stores and reports under one clock. ``bench.load("DIR")`` gives a run as tables."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reports.load import Run

__version__ = "0.1.0"


def load(folder: "Path | str") -> "Run":
    """The ``results``, ``leaderboard``, ``claims`` and ``curves`` of a run folder as pandas frames, and its manifest.

    Reads only. Raises bench.spec.UsageError for a folder that holds no run or a damaged file.
    """
    from reports.load import load

    return load(folder)
