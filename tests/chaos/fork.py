"""A command forked from a server that has imported all that it needs, and ``small``: a start takes no time."""

import os
import sys
from multiprocessing import forkserver

from bench import cli


def forked(given, log):
    """A command in a process of its own session, whose children come from the server that it comes from."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    sys.argv = ["bench", *given]
    forkserver._forkserver.ensure_running = lambda: None
    cli.main(given)
