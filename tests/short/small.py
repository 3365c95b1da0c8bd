"""``bench`` with an AutoAttack of few steps, a state of a head kept after each epoch, and no measuring of the plan.

As a program it is a command, and the server of the processes that it starts imports it too, so that its runs are as
short. A server that has imported it makes such commands by a fork (tests/chaos/fork.py). Importing it changes the
process that does, so no test may.
"""

import os
from pathlib import Path

from short_autoattack import short_package

from attacks import autoattack
from bench import cli
from bench.engines.child import PRELOAD
from bench.evaluation import heads
from bench.runs import measuring

autoattack.load_package = short_package
heads.SAVE_EVERY = 0.0
measuring.measure_plan = lambda *given: []


if __name__ == "__main__":
    PRELOAD.append("small")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    cli.main()
