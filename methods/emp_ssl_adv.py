"""EMP-SSL with PGD-5 adversarial training on 16 crops (arXiv:2501.03507, row "Crop-based EMP-SSL")."""

from dataclasses import dataclass

from methods import emp_ssl
from methods.common.base import AdversaryName, setting

TITLE = "EMP-SSL, PGD-5"


@dataclass(frozen=True)
class Config(emp_ssl.Config):
    adversary: AdversaryName = setting("pgd", "text")


Method = emp_ssl.Method
