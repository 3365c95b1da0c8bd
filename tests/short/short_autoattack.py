"""The authors' AutoAttack with all of its stages, each short; at full length: tests/attacks/test_attack_oracles.py."""

from types import SimpleNamespace

from attacks.common.package import load_package


def short_package(load=load_package):
    """What ``attacks.autoattack.load_package`` returns, with few steps in each stage."""
    package = load()

    class Short(package.AutoAttack):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            self.apgd.n_iter = 20
            self.apgd_targeted.n_iter = self.fab.n_iter = 5
            self.square.n_queries = 50

    return SimpleNamespace(AutoAttack=Short, checks=package.checks)
