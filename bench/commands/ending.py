"""What a run prints last: bars of clean and robust accuracy, three sentences, and the command to give next."""

import sys
from pathlib import Path

from bench.text import say


def print_ending(folder: Path) -> None:
    """Print it for a folder that has been built (reports.terminal); nothing where its tables are not there."""
    from bench.storage.store import load_manifest
    from reports.terminal import TABLES, ending, plain_bars

    if not all((folder / name).is_file() for name in TABLES):
        return
    lines = ending(folder, load_manifest(folder))
    try:
        "\n".join(lines).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        lines = [plain_bars(line) for line in lines]
    for line in lines:
        say(line)
