"""SimCLR on two patches with PGD-5 (arXiv:2501.03507, row "Patch-based SimCLR"; its patch scale is unverified)."""

from dataclasses import dataclass

from methods import simclr_adv
from methods.common.base import setting

TITLE = "SimCLR, patches, PGD-5"


@dataclass(frozen=True)
class Config(simclr_adv.Config):
    crop_scale: tuple[float, float] = setting((0.25, 0.25), "unverified")
    crop_ratio: tuple[float, float] = setting((1.0, 1.0), "unverified")


Method = simclr_adv.Method
