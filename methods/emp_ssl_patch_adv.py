"""EMP-SSL with PGD-5 on 16 patches of a quarter of the image (arXiv:2501.03507, row "Patch-based EMP-SSL")."""

from dataclasses import dataclass

from methods import emp_ssl_adv
from methods.common.base import setting

TITLE = "EMP-SSL, patches, PGD-5"


@dataclass(frozen=True)
class Config(emp_ssl_adv.Config):
    crop_scale: tuple[float, float] = setting((0.25, 0.25), "unverified")
    crop_ratio: tuple[float, float] = setting((1.0, 1.0), "unverified")


Method = emp_ssl_adv.Method
