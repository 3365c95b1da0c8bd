"""The section "Published against tuned": what it says, beside which test, and nothing where nothing was tuned."""

import pandas as pd
import pytest
from report_fixtures import manifest, records, write
from tuning_fixtures import search, trial, tuning

from reports import tuning as shown
from reports.build import build
from reports.pairs import COLUMNS

FOUND = tuning(
    {
        "simclr": search(trial(30), trial(50, lr=2.9, temperature=0.2), trial(40, lr=1.0)),
        "emp_ssl": search(trial(60), trial(0, clean=0, status="diverged"), trial(40, lr=1.0)),
    }
)


def claims(**changed):
    line = {"kind": "method", "protocol": "linear", "a": "simclr-tuned", "b": "simclr", "seeds": 5, "n": 297}
    line |= {"difference": 0.125, "lo": 0.05, "hi": 0.2, "p": 0.001, "adjusted": 0.003, "verdict": "better"}
    return pd.DataFrame([line | changed], columns=list(COLUMNS)).astype(COLUMNS)


def asked(found=FOUND):
    return manifest(("simclr", "emp_ssl")).model_copy(update={"tuning": found})


def test_nothing_is_said_where_nothing_was_tuned():
    assert shown.section(asked(None), claims())["tables"] == []


def test_what_the_search_has_found():
    first, second = shown.section(asked(), claims())["tables"][0]["rows"]
    settings = "lr 2.9, temperature 0.2"
    assert first == ["simclr", "90.0 / 30.0", "90.0 / 50.0", "1", settings, "lr", ""]
    assert second == ["emp_ssl", "90.0 / 60.0", "90.0 / 60.0", "0", "as published", "none", ""]
    assert list(shown.sentences(FOUND)) == [
        "The published settings were the best of their search, so there is no tuned row: emp_ssl.",
        "At an end of its range, so that a better value may lie beyond it: simclr (lr).",
        "Trials that diverged or ran out of memory, and count as 0: emp_ssl 1.",
    ]


@pytest.mark.parametrize(
    ("changed", "row"),
    [
        ({}, ["+12.5", "+5.0 to +20.0", "0.003", "tuned"]),
        (
            {"a": "simclr", "b": "simclr-tuned", "difference": -0.125, "lo": -0.2, "hi": -0.05, "verdict": "worse"},
            ["+12.5", "+5.0 to +20.0", "0.003", "tuned"],
        ),
        (
            {"difference": -0.125, "lo": -0.2, "hi": -0.05, "verdict": "worse"},
            ["-12.5", "-20.0 to -5.0", "0.003", "published"],
        ),
        ({"verdict": "tie", "adjusted": 0.4}, ["+12.5", "+5.0 to +20.0", "0.4", "neither"]),
    ],
)  # fmt: skip
def test_tuned_less_published_whichever_stands_first(changed, row):
    _, compared = shown.section(asked(), claims(**changed))["tables"]
    assert compared["rows"] == [["simclr", "linear", "all", *row]]


def test_other_pairs_and_times_are_left_out():
    for changed in ({"b": "emp_ssl"}, {"kind": "time"}):
        assert len(shown.section(asked(), claims(**changed))["tables"]) == 1


def test_the_figure_is_the_same_every_time():
    assert shown.drawn(FOUND) == shown.drawn(FOUND)
    assert shown.drawn(FOUND).count("<svg") == 1


def test_the_page_and_the_pdf_show_it_under_titles(tmp_path):
    run = asked()
    write(tmp_path, run, records(run))
    assert build(tmp_path) == []
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Published against tuned" in page
    assert "3 trials of 150up each, for robust accuracy on held-out training images" in page
    assert "there is no tuned row: EMP-SSL." in page
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
