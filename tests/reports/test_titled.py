"""Figures and reports call methods what people call them; files for computing keep the names of the command line."""

import pandas as pd
import pytest
from report_fixtures import manifest, records, write

from bench import registry
from bench.identity.outline import method_title
from reports.build import build
from reports.titled import titles


@pytest.mark.parametrize("method", registry.names("method"))
def test_every_method_of_the_project_has_a_title_that_is_its_own(method):
    assert method_title(method) not in {method_title(other) for other in registry.names("method") if other != method}
    assert method_title(method) != method
    assert len(method_title(method)) <= 28  # what a legend holds


def test_a_row_keeps_what_it_adds_to_its_method_and_a_name_of_its_own():
    (spec,) = manifest(("cf_amc_ssl",)).runs
    rows = {
        label: spec.model_copy(update={"label": label}) for label in (None, "cf_amc_ssl-5m", "cf_amc_ssl_wide", "ours")
    }
    own = spec.model_copy(update={"method": "mine", "method_path": "mine.py"})
    assert titles([*rows.values(), own]) == {
        "cf_amc_ssl": "CF-AMC-SSL",
        "cf_amc_ssl-5m": "CF-AMC-SSL-5m",
        "cf_amc_ssl_wide": "cf_amc_ssl_wide",
        "ours": "ours",
        "mine": "mine",
    }


def test_two_rows_under_one_title_keep_their_names(monkeypatch):
    monkeypatch.setattr("reports.titled.method_title", lambda method: "SimCLR")
    specs = manifest(("simclr", "simclr_adv")).runs
    assert set(titles(specs).values()) == {"simclr", "simclr_adv"}


def test_the_report_has_titles_and_the_tables_have_names(tmp_path):
    asked = manifest(("simclr_adv", "cf_amc_ssl"))
    write(tmp_path, asked, records(asked, diverged=()))
    assert build(tmp_path) == []
    assert set(pd.read_csv(tmp_path / "leaderboard.csv")["method"]) == {"simclr_adv", "cf_amc_ssl"}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    figure = (tmp_path / "figures" / "clean_vs_robust.svg").read_text(encoding="utf-8")
    for text in (page, figure):
        assert "CF-AMC-SSL" in text
        assert "SimCLR, PGD-5" in text
