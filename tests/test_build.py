"""All files of a folder: the same bytes again, no formula in a table, and a failure that costs only its own part."""

import io

import pandas as pd
import pytest
from report_fixtures import manifest, records, write

from bench.spec import Record
from reports import build as builder
from reports import plots
from reports.build import build, csv

FILES = {"results.csv", "leaderboard.csv", "report.pdf"} | {
    f"figures/{name}.{kind}" for name in plots.FIGURES for kind in ("png", "svg")
}


def derived(folder):
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


@pytest.fixture
def folder(tmp_path):
    asked = manifest(("simclr_adv", "cf_amc_ssl"))
    return write(tmp_path, asked, records(asked, diverged=()))


def test_builds_everything_and_the_same_again(folder):
    assert build(folder) == []
    first = derived(folder)
    assert set(first) == FILES
    assert first["report.pdf"].startswith(b"%PDF")
    assert build(folder) == []
    assert derived(folder) == first
    table = pd.read_csv(folder / "leaderboard.csv")
    assert table["rank"].tolist() == [1, 2, 1, 2]
    assert len(pd.read_csv(folder / "results.csv")) == 2 * 23


@pytest.mark.parametrize("kept", ["nothing", "none", "pgd", "published_eval"])
def test_a_folder_with_gaps_builds_without_a_warning(tmp_path, kept):
    """Before the first run; clean accuracy alone; no AutoAttack; the paper's protocol alone."""
    asked = manifest(("simclr_adv", "cf_amc_ssl"))
    found = [
        record.model_copy(update={"results": [r for r in record.results if kept in (r.protocol, r.attack)]})
        for record in records(asked)
    ]
    pending = [Record(spec=spec) for spec in asked.runs]
    assert build(write(tmp_path, asked, pending if kept == "nothing" else found)) == []
    table = pd.read_csv(tmp_path / "leaderboard.csv")
    assert table["rank"].isna().all()
    assert set(table["status"]) == {"pending" if kept == "nothing" else "finished"}


def test_a_failing_figure_costs_only_itself(folder, monkeypatch):
    def broken(material):
        raise RuntimeError("no ink")

    monkeypatch.setitem(plots.FIGURES, "robust_vs_eps", broken)
    assert build(folder) == ["figures/robust_vs_eps could not be built: RuntimeError: no ink"]
    assert set(derived(folder)) == FILES - {"figures/robust_vs_eps.png", "figures/robust_vs_eps.svg"}


def test_a_failing_report_leaves_the_tables(folder, monkeypatch):
    monkeypatch.setattr(builder.pdf, "content", lambda *_: {})
    (warning,) = build(folder)
    assert warning.startswith("report.pdf could not be built")
    assert set(derived(folder)) == FILES - {"report.pdf"}


def test_no_text_cell_is_a_formula_and_numbers_stay_numbers():
    names = ["=1+1", "+a", "-a", "@a", "\ta", "\ra", "a=b", "#x"]
    table = pd.DataFrame({"method": names, "value": [-0.1] * 7 + [1 / 3], "n": pd.array([*range(7), None], "Int64")})
    text = csv(table)
    back = pd.read_csv(io.StringIO(text), keep_default_na=False)
    assert back["method"].tolist() == ["'=1+1", "'+a", "'-a", "'@a", "'\ta", "' a", "a=b", "#x"]
    assert back["value"].tolist() == table["value"].tolist()
    assert "\n#x,0.3333333333333333,\n" in text
