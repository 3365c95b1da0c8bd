"""What tables need to know of a protocol. Of one that is not in the project's folder the settings of a run say it."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict


@dataclass(frozen=True)
class Shown:
    """As the class of a protocol says it (bench.protocols.common.base).

    ``path``: the .py file of a user's own protocol; "" where a name finds it.
    """

    title: str
    ranked: bool = False
    own_attacks: bool = False  # in place of those of the run
    paper: str = ""
    path: str = ""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
