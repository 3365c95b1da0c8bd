"""Supervised free adversarial training, m = 3 (Shafahi et al., 2019, arXiv:1904.12843): a ceiling, reads the labels."""

from dataclasses import dataclass

from methods import supervised_pgd
from methods.common.base import AdversaryName, setting

TITLE = "Supervised, free"


@dataclass(frozen=True)
class Config(supervised_pgd.Config):
    adversary: AdversaryName = setting("free", "own")


Method = supervised_pgd.Method
