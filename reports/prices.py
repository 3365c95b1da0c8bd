"""Money and CO2 of a training, from its time, its energy, and prices: the user's, or assumed ones (prices.toml)."""

import tomllib
from pathlib import Path

from pydantic import Field, ValidationError

from bench.spec import Data, UsageError
from bench.text import read_text

ASSUMED = Path(__file__).with_name("prices.toml")


class Prices(Data):
    """What an hour of a device costs, and how much CO2 a kilowatt-hour stands for."""

    currency: str = Field(default="USD", min_length=1, max_length=8)
    grams_per_kwh: float = Field(default=0, ge=0, le=10_000)
    per_hour: dict[str, float] = Field(default_factory=dict)  # part of a device's name -> price of an hour of one
    assumed: bool = False  # by this project, not by the user

    def money(self, device: str | None, seconds: float, devices: int = 1) -> float | None:
        """The price of so many devices for so long; None where this device has none."""
        fitting = [name for name in self.per_hour if device and name.lower() in device.lower()]
        return devices * seconds / 3600 * self.per_hour[max(fitting, key=len)] if fitting else None

    def co2_grams(self, joules: float) -> float | None:
        """What the energy stands for; None where the intensity is not given."""
        return joules / 3.6e6 * self.grams_per_kwh if self.grams_per_kwh else None


def read_prices(file: Path | None = None) -> Prices:
    """The prices of a file, or the assumed ones. Raises UsageError for a file that is none."""
    text = read_text(file or ASSUMED, "file of prices")
    try:
        prices = Prices.model_validate(tomllib.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(name for name in Prices.model_fields if name != "assumed")
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{file}: {where}: {first['msg'].lower()}; known: {known}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the file of prices {file} is not TOML: {error}") from None
    if bad := [name for name, price in prices.per_hour.items() if price < 0]:
        raise UsageError(f"{file}: expected prices of at least 0, got {prices.per_hour[bad[0]]} for {bad[0]}")
    return prices if file else prices.model_copy(update={"assumed": True})
