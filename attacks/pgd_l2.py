"""PGD in l2 (Madry et al., 2018, arXiv:1706.06083): the loop of ``pgd`` in another ball, steps along the gradient."""

from dataclasses import dataclass
from typing import ClassVar

from attacks import pgd
from bench.spec import Norm


@dataclass(frozen=True)
class Attack(pgd.Attack):
    """The settings of ``pgd``: 20 steps of a quarter of the radius, random start, best iterate kept."""

    norm: ClassVar[Norm] = "l2"
