"""All files of a folder: the same bytes again, no formula in a table, and a failure that costs only its own part."""

import cProfile
import io
import pstats

import pandas as pd
import pytest
from html_fixtures import page_folder
from matplotlib.image import imread
from report_fixtures import manifest, records, tables_only, write

from bench import __version__
from bench.commands.output import print_leaderboard
from bench.record import Record
from reports import build as builder
from reports import plots
from reports.build import build, csv
from reports.leaderboard import leaderboard, ranked_lines
from reports.pairs import pairs
from reports.rows import rows

FILES = {"results.csv", "leaderboard.csv", "claims.csv", "report.pdf", "report.html"} | {
    f"figures/{name}.{kind}" for name in plots.FIGURES for kind in ("png", "svg")
}


def derived(folder):
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


@pytest.fixture
def folder(tmp_path):
    asked = manifest(("simclr_adv", "cf_amc_ssl"))
    return write(tmp_path, asked, records(asked, diverged=()))


def test_a_report_of_another_version_is_rendered_again_and_says_so(tmp_path):
    asked = manifest(("cf_amc_ssl",)).model_copy(update={"bench_version": "0.0.9"})
    write(tmp_path, asked, records(asked))
    assert build(tmp_path) == []
    said = f"by bench {__version__}, from what bench 0.0.9 has measured and stored on 2026-03-04"
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count(said) == 2  # on top, and among the facts
    now = manifest(("cf_amc_ssl",)).model_copy(update={"bench_version": __version__})
    write(tmp_path / "now", now, records(now))
    assert build(tmp_path / "now") == []
    assert "Rendered again" not in (tmp_path / "now" / "report.html").read_text(encoding="utf-8")


def test_builds_everything_and_the_same_again(folder):
    assert build(folder) == []
    first = derived(folder)
    assert set(first) == FILES
    assert first["report.pdf"].startswith(b"%PDF")
    pictures = [content for name, content in first.items() if name.endswith(".png")]
    assert {imread(io.BytesIO(content)).shape[1] for content in pictures} == {1440}
    assert build(folder) == []
    assert derived(folder) == first
    table = pd.read_csv(folder / "leaderboard.csv")
    assert table["rank_lo"].tolist() == [1, 2, 1, 1]  # 64 images tell the two apart, 32 do not
    assert table["rank_hi"].tolist() == [1, 2, 2, 2]
    assert len(pd.read_csv(folder / "results.csv")) == 2 * 23


def test_the_terminal_shows_ranges_what_is_ranked_and_how_much_is_claimed(folder, capsys):
    with tables_only():
        build(folder)
    print_leaderboard(folder)
    linear, patches = capsys.readouterr().out.split("digits, multi_patch (quick, not comparable)")
    assert [line.split("│")[1:3] for line in linear.splitlines() if "cf_amc_ssl" in line] == [
        [" 1    ", " cf_amc_ssl "]
    ]
    assert [line.split()[1] for line in patches.splitlines() if "│" in line] == ["1-2", "1-2"]
    for text, claimed in ((linear, 1), (patches, 0)):
        assert "This table ranks encoders, not methods: it has one seed" in text
        assert f"Claims: 0 of 1 pairs of methods, {claimed} of 1 pairs of encoders (claims.csv)." in text


@pytest.mark.parametrize(
    "kept", ["pgd", *(pytest.param(name, marks=pytest.mark.ci) for name in ("nothing", "none", "published_eval"))]
)
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
    assert table["rank_lo"].isna().all()
    assert len(pd.read_csv(tmp_path / "claims.csv")) == 0
    assert set(table["status"]) == {"pending" if kept == "nothing" else "finished"}


def test_a_damaged_picture_costs_the_pictures_of_its_run_only(tmp_path, monkeypatch):
    folder = page_folder(tmp_path, ("simclr_adv", "cf_amc_ssl"), seeds=1)
    name = "runs/cf_amc_ssl-s0/examples/linear.json"
    (folder / name).write_bytes((folder / name).read_bytes().replace(b'"label": 0', b'"label": 7'))
    monkeypatch.setattr(plots, "wanted", lambda *_: [])
    assert build(folder) == [f"{folder / name} is damaged: its pictures are left out"]
    assert set(derived(folder)) == {name for name in FILES if "/" not in name}
    assert pd.read_csv(folder / "leaderboard.csv")["worst"].notna().all()


def test_a_failing_figure_costs_only_itself(folder, monkeypatch):
    def broken(material):
        raise RuntimeError("no ink")

    monkeypatch.setitem(plots.FIGURES, "robust_vs_eps", broken)
    monkeypatch.setattr(plots, "wanted", lambda *_: ["robust_vs_eps", "clean_vs_robust"])
    assert build(folder) == ["figures/robust_vs_eps could not be built: RuntimeError: no ink"]
    drawn = {f"figures/clean_vs_robust.{kind}" for kind in ("png", "svg")}
    assert set(derived(folder)) == {name for name in FILES if "/" not in name} | drawn


def test_a_failing_report_leaves_the_tables(folder, monkeypatch):
    monkeypatch.setattr(builder.pdf, "content", lambda *_: {})
    monkeypatch.setattr(plots, "wanted", lambda *_: [])
    warnings = build(folder)
    assert [warning.partition(" ")[0] for warning in warnings] == ["report.pdf", "report.html"]
    assert set(derived(folder)) == {"results.csv", "leaderboard.csv", "claims.csv"}


def test_no_text_cell_is_a_formula_and_numbers_stay_numbers():
    names = ["=1+1", "+a", "-a", "@a", "\ta", "\ra", "a=b", "#x"]
    table = pd.DataFrame({"method": names, "value": [-0.1] * 7 + [1 / 3], "n": pd.array([*range(7), None], "Int64")})
    text = csv(table)
    back = pd.read_csv(io.StringIO(text), keep_default_na=False)
    assert back["method"].tolist() == ["'=1+1", "'+a", "'-a", "'@a", "' a", "' a", "a=b", "#x"]
    assert back["value"].tolist() == table["value"].tolist()
    assert "\n#x,0.3333333333333333,\n" in text


def calls(seeds):
    """Python calls that the tables of 2 methods with so many seeds take."""
    asked = manifest(("simclr_adv", "cf_amc_ssl"), seeds=seeds, level="full")
    found = records(asked, diverged=())
    timed = [r.model_copy(update={"train": r.train.model_copy(update={"calibration": (1.0, 1.0)})}) for r in found]
    profile = cProfile.Profile()
    with profile:
        table = rows(asked, timed)
        board = leaderboard(table, timed, asked.main_eps)
        pairs(timed, asked.main_eps, ranked_lines(board))
    return pstats.Stats(profile).total_calls


def test_the_work_grows_with_the_number_of_runs_and_no_faster():
    """Counted, not timed: 100 runs have to be drawn in a minute on any machine."""
    calls(2)  # imports and caches
    few, many = calls(5), calls(20)
    assert many < 4 * few  # four times the runs; fixed costs make it 2.4
