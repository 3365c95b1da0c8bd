"""Figures and reports call methods what people call them; files for computing keep the names of the command line."""

import pandas as pd
import pytest
from report_fixtures import manifest, records, write

from bench import registry
from bench.identity.outline import method_title
from bench.spec import Budget
from reports.build import build
from reports.codes import apart
from reports.terminal import drawing, read_tables
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
    (record,) = records(manifest(("cf_amc_ssl",)), diverged=())
    record = record.model_copy(update={"spec": own, "title": "Mine, free"})
    assert titles([own], [record]) == {"mine": "Mine, free"}
    assert titles([*rows.values(), own]) == {
        "cf_amc_ssl": "CF-AMC-SSL",
        "cf_amc_ssl-5m": "CF-AMC-SSL-5m",
        "cf_amc_ssl_wide": "cf_amc_ssl_wide",
        "ours": "ours",
        "mine": "mine",
    }


def test_a_row_with_extra_data_says_so_in_every_table_and_figure(tmp_path):
    """And in CSV files has a column for it; its time is compared with nobody's."""
    asked, teacher = manifest(("deacl", "simclr"), seeds=5), "a given teacher, 0123456789ab"
    budget = Budget.parse("300up")
    stored = [
        record.model_copy(
            update={
                "train": record.train.model_copy(update={"extra_data": teacher * (record.spec.method == "deacl")}),
                "spec": record.spec.model_copy(update={"budget": budget}),
            }
        )
        for record in records(asked, diverged=())
    ]
    runs = [spec.model_copy(update={"budget": budget}) for spec in asked.runs]
    write(tmp_path, asked.model_copy(update={"runs": runs, "budget": budget}), stored)
    assert build(tmp_path, texts=("md", "tex")) == []
    for name in ("results.csv", "leaderboard.csv"):
        table = pd.read_csv(tmp_path / name)
        assert set(table[table["method"] == "deacl"]["extra_data"]) == {teacher}
        assert table[table["method"] == "simclr"]["extra_data"].isna().all()
    assert "time" not in set(pd.read_csv(tmp_path / "claims.csv")["kind"])
    for name in ("report.html", "leaderboard.tex", "figures/clean_vs_robust.svg"):
        assert "(extra data)" in (tmp_path / name).read_text(encoding="utf-8"), name
    assert drawing(read_tables(tmp_path)[1])[1].startswith("deacl (extra data)")


def test_the_mark_stands_before_the_budget_which_ends_the_name_of_a_row():
    (spec,) = manifest(("deacl",)).runs
    spec = spec.model_copy(update={"label": "deacl-5m"})
    (record,) = records(manifest(("deacl",)), diverged=())
    train = record.train.model_copy(update={"extra_data": "a given teacher, 0123456789ab"})
    record = record.model_copy(update={"spec": spec, "train": train})
    assert titles([spec], [record]) == {"deacl-5m": "DeACL (extra data)-5m"}


def test_runs_of_one_row_with_different_teachers_are_two_rows():
    stored = records(manifest(("deacl",), seeds=2), diverged=())
    given = [
        record.model_copy(update={"train": record.train.model_copy(update={"extra_data": f"a given teacher, {seed}"})})
        for seed, record in enumerate(stored)
    ]
    assert len({record.spec.row for record in apart(given)}) == 2
    assert len({record.spec.row for record in apart(stored)}) == 1


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


def test_the_row_of_the_paper_stands_beside_the_method_under_its_title(tmp_path):
    asked = manifest(("cf_amc_ssl",))
    (stored,) = records(asked, diverged=())
    spec = stored.spec.model_copy(
        update={"eval": stored.spec.eval.model_copy(update={"protocols": ("published_eval",)})}
    )
    results = [each.model_copy(update={"protocol": "published_eval"}) for each in stored.results]
    results = [each for each in results if each.attack in ("none", "pgd")]
    kept = {(each.attack, each.eps): each for each in results}.values()
    data = asked.data.model_copy(update={"label": "cifar10"})
    stored = stored.model_copy(update={"spec": spec, "results": list(kept), "audits": [], "probes": [], "data": data})
    write(tmp_path, asked.model_copy(update={"runs": [spec], "data": data}), [stored])
    assert build(tmp_path) == []
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for said in ("Row of the paper", "75.88", "33.34"):
        assert said in page
