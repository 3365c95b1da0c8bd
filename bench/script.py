"""The user's own script, where the command line is called from one: no process that is started runs it again."""

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType


@contextlib.contextmanager
def main_hidden() -> Iterator[None]:
    """Inside, no new process runs the main module of this one again, as multiprocessing has it: none needs it.

    A script that calls the command line without ``if __name__ == "__main__"`` would begin the command anew in each
    process; one from standard input is nowhere to be found.
    """
    ours = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = ours
