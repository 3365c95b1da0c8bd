"""SimCLR with PGD-5 adversarial training (arXiv:2501.03507, row "Crop-based SimCLR")."""

from dataclasses import dataclass

from methods import simclr
from methods.common.base import AdversaryName, setting


@dataclass(frozen=True)
class Config(simclr.Config):
    adversary: AdversaryName = setting("pgd", "text")


Method = simclr.Method
