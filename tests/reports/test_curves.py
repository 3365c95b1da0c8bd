"""Curves over the training and the frontier over budgets: tables, figures, and ranks within one budget."""

import re

import pandas as pd
import pytest
from report_fixtures import manifest, records, write

from bench.commands.options import gather
from bench.options.resolve import resolve
from bench.spec import Budget, UsageError
from bench.storage.store import Point, RunFolder, Snapshot, load_curves
from reports import curves as over_time
from reports import plots
from reports.budgets import budget_of
from reports.build import build
from reports.captions import CAPTIONS, caption
from reports.charts import charts
from reports.curves import COLUMNS, curves
from reports.leaderboard import leaderboard, ranked_lines
from reports.pairs import pairs
from reports.rows import rows
from tests.reports.test_plots import drawn, words

METHODS = ("simclr_adv", "cf_amc_ssl")


def points(shift=0, joules=None, robust=True):
    """Three points whose counts grow by 10 of 100, and so do the costs."""
    return [
        Point(
            snapshot=Snapshot(
                percent=percent,
                progress=percent / 100,
                updates=percent,
                train_seconds=percent + shift,
                energy_joules=None if joules is None else joules * percent,
            ),
            passes_per_image=2.0 * percent,
            clean=(40 + percent // 2 + shift, 100),
            robust=(percent // 2, 50) if robust else None,
            eps=0.1,
            seconds=1.0,
        )
        for percent in (10, 50, 100)
    ]


def asked_and_found(seeds=2):
    asked = manifest(METHODS, seeds=seeds)
    return asked, records(asked)


def table_of(asked, found, **changes):
    return curves(asked, found, {record.spec.name: points(record.spec.seed, **changes) for record in found})


class TestTable:
    def test_a_row_for_each_run_and_point(self):
        asked, found = asked_and_found()
        table = table_of(asked, found, joules=3.0)
        assert {name: str(kind) for name, kind in table.dtypes.items()} == COLUMNS
        assert len(table) == 2 * 2 * 3
        row = table[(table["method"] == "cf_amc_ssl") & (table["seed"] == 1)].iloc[1]
        assert (row["clean"], row["robust"], row["energy_joules"], row["train_seconds"]) == (0.66, 0.5, 150.0, 51.0)

    def test_lines_are_means_and_ranges_over_seeds(self):
        table = table_of(*asked_and_found())
        lines = over_time.over(table, "train_seconds", "clean")
        assert list(lines) == list(METHODS)
        assert lines["simclr_adv"] == [
            pytest.approx(each)
            for each in ((10.5, 0.455, 0.45, 0.46), (50.5, 0.655, 0.65, 0.66), (100.5, 0.905, 0.9, 0.91))
        ]
        assert over_time.over(table, "energy_joules", "clean") == {}

    def test_without_curves_there_is_no_row(self):
        asked, found = asked_and_found()
        assert curves(asked, found, {}).empty


def test_the_caption_says_of_a_run_that_learns_no_robustness():
    asked, found = asked_and_found()
    found = [r.model_copy(update={"train": r.train.model_copy(update={"updates": 100})}) for r in found]
    table = table_of(asked, found)
    assert caption("curves", table) == CAPTIONS["curves"]
    hopeless = (table["method"] == "cf_amc_ssl") & (table["seed"] == 1) & (table["percent"] <= 50)
    table.loc[hopeless, "robust_correct"] = 0
    assert caption("curves", table) == (
        f"{CAPTIONS['curves']} cf_amc_ssl, seed 1: at 50 % of the budget none of 50 held-out training images stands "
        "PGD: it may be learning no robustness."
    )
    table.loc[(table["method"] == "cf_amc_ssl") & (table["percent"] <= 50), "robust_correct"] = 0
    assert caption("curves", table).count("it may be learning no robustness") == 1  # once for both of its runs
    assert "cf_amc_ssl, seeds 0, 1: at 50 %" in caption("curves", table)
    assert caption("robust_vs_eps", table) == CAPTIONS["robust_vs_eps"]
    assert caption("curves", table_of(asked, found, robust=False)) == CAPTIONS["curves"]


class TestFigure:
    @pytest.mark.parametrize(
        ("changes", "missing"),
        [({"joules": 3.0}, set()), ({}, {"energy (kJ)"}), ({"robust": False}, {"energy (kJ)", "robust accuracy (%)"})],
    )
    def test_it_has_a_legend_and_units_and_says_what_it_is_not(self, changes, missing):
        asked, found = asked_and_found()
        svg = drawn("curves", asked, found, table_of(asked, found, **changes))["svg"]
        text = set(words(svg))
        labels = {"training time (s)", "passes per image", "energy (kJ)", "clean accuracy (%)", "robust accuracy (%)"}
        assert labels & text == labels - missing
        assert {*METHODS, "clean, n = 100"} <= text
        assert {"held-out training", "images, unannealed", "snapshots"} <= text
        assert ("robust, n = 50" in text) is (changes.get("robust", True))

    def test_lines_are_dashed_and_the_bytes_the_same(self):
        asked, found = asked_and_found()
        first, second = (drawn("curves", asked, found, table_of(asked, found)) for _ in range(2))
        assert first == second
        assert len(re.findall(r"stroke-dasharray: [1-9]", first["svg"].decode())) >= len(METHODS) * 4

    def test_it_is_drawn_where_there_is_a_curve(self):
        asked, found = asked_and_found()
        board = leaderboard(rows(asked, found), found, 0.1)
        assert plots.wanted(board, pd.DataFrame()) == list(plots.FIGURES)
        assert plots.wanted(board, table_of(asked, found)) == [*plots.FIGURES, "curves"]


def test_the_page_has_a_dashed_chart_for_each_cost_that_is_known():
    asked, found = asked_and_found()
    table = rows(asked, found)
    data = charts(asked, found, table, leaderboard(table, found, 0.1), table_of(asked, found))
    lines = {each["id"]: each for each in data["lines"]}
    assert {"over-train-seconds", "over-passes-per-image"} <= set(lines)
    assert "over-energy-joules" not in lines
    clean, robust = lines["over-train-seconds"]["panels"]
    assert clean["series"][1]["points"][0] == pytest.approx([10.5, 45.5, 45, 46])
    assert robust["series"][0]["dashed"] is True
    assert (
        "held-out training images, unannealed snapshots: never the accuracy at that budget"
        in (lines["over-train-seconds"]["text"])
    )


# ---------------------------------------------------------------- several budgets


def swept(budgets=("1m", "5m"), methods=METHODS, seeds=1):
    """The runs of the fixtures, once for each budget, with the names that resolve gives them."""
    asked = manifest(methods, seeds=seeds)
    runs = [
        spec.model_copy(update={"budget": Budget.parse(budget), "label": f"{spec.method}-{budget}"})
        for budget in budgets
        for spec in asked.runs
    ]
    asked = asked.model_copy(update={"runs": runs, "budget": None})
    return asked, records(asked, diverged=())


def test_each_budget_has_its_own_ranks_and_claims():
    asked, found = swept()
    table = rows(asked, found)
    board = leaderboard(table, found, 0.1)
    alone = leaderboard(*[f(*swept(("1m",))) for f in (rows, lambda asked, found: found)], 0.1)
    for protocol in ("linear", "multi_patch"):
        for budget in ("1m", "5m"):
            part = board[(board["protocol"] == protocol) & (board["budget"] == budget)]
            assert len(part) == len(METHODS)
            same = alone[alone["protocol"] == protocol]
            for name in ("rank_lo", "rank_hi", "best"):
                assert list(part[name]) == list(same[name])
    claimed = pairs(found, 0.1, ranked_lines(board))
    assert set(claimed["budget"]) == {"1m", "5m"}
    assert all(row["a"].endswith(row["budget"]) and row["b"].endswith(row["budget"]) for _, row in claimed.iterrows())


def test_rows_that_state_a_budget_each_stay_in_one_table():
    asked, found = asked_and_found(1)
    other = found[1].spec.model_copy(update={"budget": Budget.parse("5m")})
    found[1] = found[1].model_copy(update={"spec": other})
    assert budget_of(found) == {}
    board = leaderboard(rows(asked, found), found, 0.1)
    assert board["budget"].isna().all()
    assert set(board["rank_hi"]) & {2}


def test_the_frontier_is_a_solid_line_for_each_method_over_the_budgets():
    asked, found = swept(("1m", "5m", "30m"), seeds=2)
    board = leaderboard(rows(asked, found), found, 0.1)
    assert plots.wanted(board, pd.DataFrame())[0] == "frontier"
    text = words(drawn("frontier", asked, found)["svg"])
    assert {
        *METHODS,
        "training budget",
        "1m",
        "5m",
        "30m",
        "clean accuracy (%)",
        "robust accuracy at eps 0.1 (%)",
    } <= set(text)
    assert [word for word in text if word in METHODS] == list(METHODS)
    largest = words(drawn("clean_vs_robust", asked, found)["svg"])
    assert any("budget 30m" in word for word in largest)


def test_the_frontier_of_pgd_alone_says_so():
    asked, found = swept(("1m", "5m"))
    found = [r.model_copy(update={"results": [x for x in r.results if x.attack in ("none", "pgd")]}) for r in found]
    text = words(drawn("frontier", asked, found)["svg"])
    assert {"SLF (linear probe), n = 300", "accuracy under PGD at eps 0.1 (%)"} <= set(text)
    assert not set(text) & {"robust accuracy at eps 0.1 (%)", "SLF (linear probe), n = 0"}


def options(**given):
    common = {"data": "synthetic", "methods": "simclr,cf_amc_ssl", "device": "cpu"}
    return resolve(gather(common | given))


def test_several_budgets_make_a_run_each():
    specs, budget, _, _ = options(budget=("5m,2m",), seeds="2")
    assert budget is None
    assert [spec.name for spec in specs[:4]] == ["simclr-2m-s0", "cf_amc_ssl-2m-s0", "simclr-5m-s0", "cf_amc_ssl-5m-s0"]
    assert len({spec.name for spec in specs}) == 8
    assert {(spec.method, str(spec.budget)) for spec in specs} == {
        (method, each) for method in ("simclr", "cf_amc_ssl") for each in ("2m", "5m")
    }
    specs, budget, _, _ = options(budget=("5m",))
    assert ([spec.name for spec in specs], str(budget)) == (["simclr-s0", "cf_amc_ssl-s0"], "5m")


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("2m,20ep", "expected budgets of one kind (time, epochs or updates), got '2m,20ep'"),
        ("2m,120s", "expected each budget once, got '2m,120s'"),
        ("2m,", "expected a budget such as"),
    ],
)
def test_budgets_that_do_not_fit_together_are_refused(budget, message):
    with pytest.raises(UsageError) as error:
        options(budget=(budget,))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("level", "expected"), [("quick", "off"), ("standard", "robust"), ("full", "robust")])
def test_the_curve_is_off_at_quick_and_robust_above(level, expected):
    assert options(budget=("5m",), eval=level)[0][0].eval.over_time == expected
    assert options(budget=("5m",), eval=level, curve="clean")[0][0].eval.over_time == "clean"


# ---------------------------------------------------------------- all of it


def test_a_folder_with_budgets_and_curves_is_built(tmp_path, monkeypatch):
    picture = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    monkeypatch.setattr(plots, "render", lambda *_: {"png": b"", "svg": picture})  # drawn above
    asked, found = swept()
    write(tmp_path, asked, found)
    for record in found:
        RunFolder(tmp_path, record.spec).save_curve(points())
    assert build(tmp_path) == []
    table = pd.read_csv(tmp_path / "curves.csv")
    assert (len(table), set(table["budget"])) == (12, {"1m", "5m"})
    assert len(load_curves(tmp_path)) == 4
    assert {file.stem for file in (tmp_path / "figures").glob("*.svg")} == {"frontier", *plots.FIGURES, "curves"}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "unannealed snapshots: never the accuracy at that budget" in page
