"""AutoAttack in l2 (Croce & Hein, 2020, arXiv:2003.01690): the same four in another ball, from the authors' package.

The package may leave the ball by rounding. What it returns is brought back to ball and box before it is looked at, so
an image counts as broken only where a picture inside breaks it; those that broke outside alone are named in the note.
"""

from dataclasses import dataclass
from typing import ClassVar

from attacks import autoattack
from bench.spec import Norm


@dataclass(frozen=True)
class Attack(autoattack.Attack):
    """The settings of ``autoattack``."""

    norm: ClassVar[Norm] = "l2"
