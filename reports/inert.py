"""Text of records, which anybody may have written, made harmless before it is shown: no control codes, no formulas."""

from typing import Any

FORMULAS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # how a cell begins that a spreadsheet computes


def printable(value: Any) -> Any:
    """``value`` with a blank for every character that cannot be seen, in the texts of lists and dictionaries too."""
    if isinstance(value, str):
        return value if value.isprintable() else "".join(c if c.isprintable() else " " for c in value)
    if isinstance(value, dict):
        return {key: printable(item) for key, item in value.items()}
    return [printable(item) for item in value] if isinstance(value, list | tuple) else value


def cell(value: Any) -> Any:
    """``value`` for a spreadsheet: a text that would be computed begins with ', and a number stays one."""
    if not isinstance(value, str):
        return value
    shown: str = printable(value)
    return f"'{shown}" if shown.lstrip().startswith(FORMULAS) or not value[:1].isprintable() else shown
