"""CF-AMC-SSL (Ghofrani & Jamshidi, 2025, arXiv:2501.03507): EMP-SSL on crops, free adversarial training, m = 3."""

from dataclasses import dataclass

from methods import emp_ssl
from methods.common.base import AdversaryName, setting

TITLE = "CF-AMC-SSL"


@dataclass(frozen=True)
class Config(emp_ssl.Config):
    batch: int = setting(100, "code")
    adversary: AdversaryName = setting("free", "text")


Method = emp_ssl.Method
