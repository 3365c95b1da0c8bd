"""EMP-SSL with free adversarial training on 16 patches (arXiv:2501.03507, row "Patch-based EMP-FreeAdv")."""

from dataclasses import dataclass

from methods import cf_amc_ssl
from methods.common.base import setting

TITLE = "EMP-SSL, patches, free"


@dataclass(frozen=True)
class Config(cf_amc_ssl.Config):
    crop_scale: tuple[float, float] = setting((0.25, 0.25), "unverified")
    crop_ratio: tuple[float, float] = setting((1.0, 1.0), "unverified")


Method = cf_amc_ssl.Method
