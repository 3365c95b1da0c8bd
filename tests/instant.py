"""Processor seconds of a command, beside those of importing what every command needs: machines differ in pace."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
HALF = 0.5  # seconds
LIBRARIES = "import click, pydantic"
COMMAND = "import sys\nfrom bench.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass"


def processor_seconds(code: str, *arguments: str) -> float:
    """User and system seconds of a fresh process that runs the code."""
    last = f"{code}\nimport os, sys\nprint(sum(os.times()[:2]), file=sys.stderr)"
    child = [sys.executable, "-c", last, *arguments]
    done = subprocess.run(child, capture_output=True, text=True, cwd=ROOT, check=True)
    return float(done.stderr.split()[-1])


def is_instant(*arguments: str) -> bool:
    """Whether a command takes under half a second, or four times as long as the imports of the two libraries.

    Those take a tenth of a second where nothing slows the machine down, so there half a second is the bound. The best
    of some tries of both, in turns: other work in between makes either slow.
    """
    ours = libraries = float("inf")
    for _ in range(5):
        ours = min(ours, processor_seconds(COMMAND, *arguments))
        libraries = min(libraries, processor_seconds(LIBRARIES))
        if ours < max(HALF, 4 * libraries):
            return True
    return False
