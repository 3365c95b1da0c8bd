"""The mistake of a user, told in one line, and what to say of a name that is not known."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A mistake of the user's: one clear line, exit code 2, nothing overwritten."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """``unknown method 'simclrr'; did you mean 'simclr'? known: ...``"""
    known = list(known)
    hint = "".join(f"did you mean {close!r}? " for close in difflib.get_close_matches(name, known, n=1))
    return f"unknown {kind} {name!r}; {hint}known: {', '.join(known)}"
