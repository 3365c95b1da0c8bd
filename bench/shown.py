"""What tables need to know of a protocol. Of one that is not in the project's folder the settings of a run say it."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict


@dataclass(frozen=True)
class Shown:
    """As the class of a protocol says it (bench.protocols.common.base).

    ``path``: the .py file of a user's own protocol; "" where a name finds it. ``base``: the protocol of which this is
    another with settings of its own, as --protocols NAME=PROTOCOL asks for; "" where it is that itself.
    """

    title: str
    ranked: bool = False
    own_attacks: bool = False  # in place of those of the run
    paper: str = ""
    path: str = ""
    base: str = ""

    def plugin(self, name: str) -> str:
        """The name, or path, of the plug-in behind the protocol ``name``."""
        return self.path or self.base or name

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
