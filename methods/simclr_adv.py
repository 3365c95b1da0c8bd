"""SimCLR with PGD-5 adversarial training (arXiv:2501.03507, row "Crop-based SimCLR").

The attack runs in eval mode, as in RoCL, ACL and DynACL: with batch statistics it wins so early against the pair
(x1, x2 + delta) that the loss goes to ln(2b - 1), that of equal similarities, on digits for each of 6 seeds.
"""

from dataclasses import dataclass

from methods import simclr
from methods.common.base import AdversaryName, BatchNormMode, setting

TITLE = "SimCLR, PGD-5"


@dataclass(frozen=True)
class Config(simclr.Config):
    adversary: AdversaryName = setting("pgd", "text")
    attack_batch_norm: BatchNormMode = setting("eval", "sound")


Method = simclr.Method
