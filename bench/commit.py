"""The commit of the checkout that this code runs from, if it runs from one."""

import subprocess
from pathlib import Path


def checkout(package: Path) -> tuple[str | None, bool | None]:
    """Commit of the git checkout that holds the package folder, and whether code beside it is uncommitted.

    (None, None) outside a checkout. The folder must be tracked: a package installed below someone else's checkout does
    not carry that commit.
    """
    if git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    commit = git(package, "rev-parse", "HEAD")
    changes = git(package, "status", "--porcelain", "--", ".", "../methods", "../attacks")
    return (None, None) if commit is None or changes is None else (commit, changes != "")


def git(folder: Path, *arguments: str) -> str | None:
    """What git prints in the folder; None where git is missing, slow or unhappy."""
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
