"""How to make the numbers once more: the command with versions, commit and data, as lines to copy into a shell."""

import re
import shlex
import textwrap
from collections.abc import Sequence

from bench.record import Manifest
from reports.inert import printable

LINE = 92  # letters at most


def reproduction(manifest: Manifest) -> list[str]:
    """Lines for a POSIX shell, at most LINE letters each: versions, commit and data as comments, then the command."""
    data = manifest.data
    told = [
        software(manifest),
        f"commit {commit(manifest) or 'unknown'}",
        f"{data.label}: training data {data.train_sha256}",
        f"{data.label}: test data {data.test_sha256}",
    ]
    comments = [line for text in told for line in textwrap.wrap(f"# {printable(text)}", LINE, subsequent_indent="#   ")]
    return comments + shell_lines(manifest.command)


def shell_lines(command: Sequence[str]) -> list[str]:
    """``command`` over several lines that a shell reads as one; a word that is too long is cut, at a comma if it can.

    >>> shell_lines(["bench", "run", "--methods", "all"])
    ['bench run --methods all']
    """
    lines, line = [], ""
    for word in command:
        pieces = [shlex.quote(piece) for piece in re.findall(r".{1,70}\Z|.{1,70},|.{1,70}", word, re.DOTALL) or [""]]
        if line and len(line) + len(pieces[0]) + 3 > LINE:
            lines.append(f"{line} \\")
            line = "  "
        elif line:
            line += " "
        for piece in pieces[:-1]:  # no blank at the cut: the shell joins what stands there
            lines.append(f"{line}{piece}\\")
            line = ""
        line += pieces[-1]
    return [*lines, line]


def software(manifest: Manifest) -> str:
    """Names and versions, ours first."""
    machine = manifest.environment
    versions = {"bench": manifest.bench_version, "Python": machine.python, "torch": machine.torch}
    others = {name: version for name, version in machine.versions.items() if name not in versions}
    return ", ".join(f"{name} {version}" for name, version in (versions | others).items())


def commit(manifest: Manifest) -> str:
    """Of the code, and whether it had changes beside it; empty where it is not known."""
    machine = manifest.environment
    changed = " with uncommitted changes" if machine.dirty else ""
    return f"{machine.commit}{changed}" if machine.commit else ""
