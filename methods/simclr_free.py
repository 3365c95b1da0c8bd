"""SimCLR with free adversarial training, m = 3 (arXiv:2501.03507, row "Crop-based SimCLR-FreeAdv")."""

from dataclasses import dataclass

from methods import simclr
from methods.common.base import AdversaryName, setting

TITLE = "SimCLR, free"


@dataclass(frozen=True)
class Config(simclr.Config):
    adversary: AdversaryName = setting("free", "text")


Method = simclr.Method
