"""FMN in l2 (Pintor et al., 2021, arXiv:2102.12827): the nearest misclassified image by the length of the move."""

from dataclasses import dataclass
from typing import ClassVar

from attacks import fmn
from bench.spec import Norm


@dataclass(frozen=True)
class Attack(fmn.Attack):
    """The settings of ``fmn``."""

    norm: ClassVar[Norm] = "l2"
