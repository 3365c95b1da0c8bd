"""Supervised N-FGSM (de Jorge et al., 2022, arXiv:2202.01181): training against one step, a ceiling, reads the labels.

One-step training may lose all its robustness within a few updates (catastrophic overfitting): see bench.alarms.
"""

from dataclasses import dataclass

from methods import supervised_pgd
from methods.common.base import AdversaryName, setting

TITLE = "Supervised, N-FGSM"


@dataclass(frozen=True)
class Config(supervised_pgd.Config):
    adversary: AdversaryName = setting("nfgsm", "own")


Method = supervised_pgd.Method
