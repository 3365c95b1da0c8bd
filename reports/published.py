"""Numbers that others have reported (published.toml): not measured here, so they are shown apart."""

import re
import tomllib
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from bench.spec import Data
from reports.cells import table

FILE = Path(__file__).with_name("published.toml")


class Published(Data):
    """One table of a paper or a site. Raises ValidationError for rows that do not fill its columns."""

    source: str
    date: str = Field(default="", pattern=r"^(\d{4}(-\d\d)?)?$")  # of what was printed, by year or month; "": not known
    data: str  # as --data names it
    about: str  # the encoder, the head and the attack, as far as they are stated
    columns: tuple[str, ...]
    rows: dict[str, tuple[str | float, ...]]  # method, or any other key -> (name there, a number for each column)

    @model_validator(mode="after")
    def _filled(self) -> Self:
        for method, (name, *numbers) in self.rows.items():
            if not isinstance(name, str) or len(numbers) != len(self.columns) or str in map(type, numbers):
                raise ValueError(
                    f"expected a name and {len(self.columns)} numbers for {method}, got {(name, *numbers)}"
                )
        return self

    def on(self, label: str) -> bool:
        """Whether it is about the data of this label: ``cifar10 (subset 2000/1000)`` is cifar10, cifar100 is not."""
        return re.match(rf"{re.escape(self.data)}(-jpeg\w*|-webp\w*)?(?=$|[ ,[])", label) is not None


@cache
def published() -> tuple[Published, ...]:
    """All tables of the file, in its order."""
    with FILE.open("rb") as file:
        return tuple(Published.model_validate(each) for each in tomllib.load(file)["tables"])


def of(source: str, label: str) -> Published | None:
    """The table of a source on the data of this label, if there is one."""
    return next((found for found in published() if found.source == source and found.on(label)), None)


def tables(label: str, methods: Collection[str], beside: str = "") -> list[dict[str, Any]]:
    """A table (see reports/cells.py) for every source that has one of these methods on the data of this label.

    ``beside``: a source that stands beside our numbers elsewhere.
    """
    return [
        table(
            f"{found.source} ({found.date or 'date not known'}): {found.about}; in %.",
            " | ".join(["Row there", *found.columns]),
            [[name, *(f"{number:.2f}" for number in numbers)] for name, *numbers in found.rows.values()],
            left="Row there",
            wide="Row there",
            size=8,
        )
        for found in published()
        if found.on(label) and found.source != beside and found.rows.keys() & set(methods)
    ]
