"""Numbers of others: complete, with source and date, apart from ours, and the same as on the page of the methods."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from report_fixtures import CIFAR, METHODS, manifest, records

from bench import registry
from reports.leaderboard import leaderboard
from reports.pairs import pairs
from reports.published import Published, of, published, tables
from reports.rows import rows
from reports.sections import body

ROOT = Path(__file__).parents[2]
PAPER = "arXiv:2501.03507"


def test_every_row_is_a_method_of_ours():
    assert {method for found in published() for method in found.rows} <= set(registry.names("method"))
    for data in ("cifar10", "cifar100"):
        assert of(PAPER, data).rows.keys() == set(METHODS) - {"simclr", "emp_ssl"}
    assert of(PAPER, "cifar10 (subset 2000/1000)").rows["cf_amc_ssl"] == ("CF-AMC-SSL", 75.88, 55.97, 33.34)
    assert of(PAPER, "cifar100").rows["cf_amc_ssl"][1:] == (50.74, 31.73, 17.19)
    assert of(PAPER, "digits") is None


def test_the_page_of_the_methods_has_the_same_numbers():
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    printed = re.findall(r"^\| (.+?) \| (.+ / .+) \| (.+ / .+) \| (.+ / .+) \|$", page, re.M)
    theirs = [numbers for found in published() if found.source != PAPER for _, *numbers in found.rows.values()]
    ours = [[float(number) for cell in cells for number in cell.split(" / ")] for _, *cells in printed]
    assert sorted(ours) == sorted(theirs)


def test_a_source_is_shown_where_it_has_a_method_of_the_run_and_does_not_stand_beside_it_already():
    assert [len(table["rows"]) for table in tables("cifar10", {"deacl"})] == [5, 1]
    assert [table["caption"].count("(date not known)") for table in tables("cifar10", {"deacl"})] == [1, 0]
    assert tables("cifar10", {"deacl"})[1]["rows"] == [["DeACL", "80.82", "46.14", "79.39", "45.55", "83.64", "50.75"]]
    assert [len(table["rows"]) for table in tables("cifar10", {"cf_amc_ssl"})] == [7]
    assert tables("cifar10", {"cf_amc_ssl"}, beside=PAPER) == tables("digits", {"deacl"}) == []


def test_a_report_says_that_they_are_not_its_own():
    asked = manifest(("dynacl", "cf_amc_ssl"), data=CIFAR, eps=(4 / 255, 8 / 255))
    found = records(asked)
    lines = rows(asked, found)
    nothing = pairs([], asked.main_eps, [])
    told = body(asked, found, lines, leaderboard(lines, found, asked.main_eps), nothing)
    (section,) = [section for section in told if section["title"] == "Reported by others"]
    assert "measured here" in section["text"]
    assert [row[0] for each in section["tables"] for row in each["rows"]][1] == "ACL"
    assert len(section["tables"]) == 1  # the paper's stands beside published_eval


@pytest.mark.parametrize("row", [("DeACL", 1.0), ("DeACL", 1.0, "2"), (1.0, 2.0, 3.0), ("DeACL", 1.0, 2.0, 3.0)])
def test_a_row_that_does_not_fill_its_columns(row):
    with pytest.raises(ValidationError, match="expected a name and 2 numbers for deacl"):
        Published(source="s", date="2024", data="cifar10", about="a", columns=("clean", "AA"), rows={"deacl": row})
