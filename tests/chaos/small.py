"""``bench`` with an AutoAttack of few steps, a state of a head kept after each epoch, and no measuring of the plan.

As a program it is a command; the processes that it starts import it too, as multiprocessing does with every main
program. A server of processes that has imported it makes such commands by a fork (tests/chaos/fork.py). Importing it
changes the process that does, so no test may.
"""

from types import SimpleNamespace

from attacks import autoattack
from bench import cli
from bench.evaluation import heads
from bench.runs import measuring

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
heads.SAVE_EVERY = 0.0
measuring.measure_plan = lambda *given: []


if __name__ == "__main__":
    cli.main()
