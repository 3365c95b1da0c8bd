"""Money and CO2: by hand, from a file of the user's or assumed, and nothing where nothing is known."""

import pandas as pd
import pytest
from report_fixtures import MACHINE, manifest, records, write

from bench.cli import main
from bench.spec import UsageError
from reports.build import build
from reports.leaderboard import leaderboard
from reports.prices import Prices, read_prices
from reports.rows import rows

PRICES = Prices(currency="EUR", grams_per_kwh=60, per_hour={"GPU": 1.0, "Fast GPU": 4.0})


@pytest.mark.parametrize(
    ("device", "price"), [("NVIDIA FAST GPU", 4.0), ("Slow GPU", 1.0), ("CPU", None), (None, None)]
)
def test_the_longest_name_that_fits_has_the_price(device, price):
    assert PRICES.money(device, 3600) == price
    assert PRICES.money(device, 1800, devices=4) == (price and 2 * price)


def test_co2_is_energy_times_intensity():
    assert PRICES.co2_grams(3.6e6) == 60
    assert Prices().co2_grams(3.6e6) is None


def test_assumed_prices_say_so():
    prices = read_prices()
    assert prices.assumed
    assert prices.money("NVIDIA H200", 7200) == 2 * prices.per_hour["H200"]


def lines(prices, joules=None, gpus=1):
    """The leaderboard of two methods on a machine called EPYC, a minute each."""
    asked = manifest(("simclr", "cf_amc_ssl"))
    asked = asked.model_copy(update={"runs": [r.model_copy(update={"gpus_per_run": gpus}) for r in asked.runs]})
    found = [
        r.model_copy(update={"train": r.train.model_copy(update={"energy_joules": joules})}) for r in records(asked)
    ]
    return leaderboard(rows(asked, found), found, asked.main_eps, prices)


def test_a_line_has_the_price_of_all_its_devices():
    board = lines(Prices(currency="EUR", grams_per_kwh=100, per_hour={"epyc": 6.0}), joules=7.2e6, gpus=2)
    hours = board["train_seconds"] / 3600
    assert board["money"].tolist() == pytest.approx((2 * 6 * hours).tolist())
    assert set(board["currency"]) == {"EUR"}
    assert board["co2_grams"].tolist() == pytest.approx([200.0] * len(board))


def test_what_is_not_known_is_a_gap():
    board = lines(read_prices())  # no price for this processor, no energy measured
    assert board[["money", "currency", "co2_grams"]].isna().all(axis=None)


def test_the_report_shows_it_and_marks_what_is_assumed(tmp_path, capsys):
    gpu = MACHINE.model_copy(update={"device_name": "NVIDIA H200", "device": "cuda:0"})
    asked = manifest(("cf_amc_ssl",))
    found = [record.model_copy(update={"environment": gpu}) for record in records(asked)]
    write(tmp_path, asked, found)
    assert build(tmp_path) == []
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Money and CO2 of a training" in page
    assert "USD (assumed)" in page
    (tmp_path / "mine.toml").write_text('currency = "EUR"\n[per_hour]\nH200 = 3.2\n')
    with pytest.raises(SystemExit) as leaving:
        main(["report", str(tmp_path), "--prices", str(tmp_path / "mine.toml")])
    assert not leaving.value.code
    assert set(pd.read_csv(tmp_path / "leaderboard.csv")["currency"]) == {"EUR"}
    assert "(assumed)" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("per_hours = 3", "per_hours: extra inputs are not permitted; known: currency, grams_per_kwh, per_hour"),
        ("[per_hour]\nH200 = -1", "expected prices of at least 0, got -1.0 for H200"),
        ("[per_hour]\nH200 = nan", "per_hour.H200: input should be a finite number"),
        ("grams_per_kwh = 'much'", "grams_per_kwh: input should be a valid number"),
        ("[", "is not TOML"),
    ],
)
def test_files_of_prices_that_are_none(tmp_path, text, message):
    (tmp_path / "prices.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_prices(tmp_path / "prices.toml")


def test_no_file(tmp_path):
    with pytest.raises(UsageError, match="file of prices"):
        read_prices(tmp_path / "prices.toml")
