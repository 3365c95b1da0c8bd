"""``bench`` with an AutoAttack of few steps and without measuring the plan, so that an attempt takes seconds.

As a program it is a command; the processes that it starts import it too, as multiprocessing does with every main
program. As a module of a server of processes, which has imported all that a run needs, it makes a command by a fork.
"""

import os
import sys
from multiprocessing import forkserver
from types import SimpleNamespace

from attacks import autoattack
from bench import cli, run

load_package = autoattack.load_package


def few_steps():
    """The authors' package, all of its stages there and each short."""
    package = load_package()

    class AutoAttack(package.AutoAttack):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            self.apgd.n_iter = 20
            self.apgd_targeted.n_iter = self.fab.n_iter = 5
            self.square.n_queries = 100

    return SimpleNamespace(AutoAttack=AutoAttack, checks=package.checks)


autoattack.load_package = few_steps
run.measure_plan = lambda specs, log: []


def forked(given, log):
    """A command in a process of its own session, whose children come from the server that it comes from."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    sys.argv = ["bench", *given]
    forkserver._forkserver.ensure_running = lambda: None
    cli.main(given)


if __name__ == "__main__":
    cli.main()
