"""The largest shift of the features in every report: one number for each encoder, whatever its protocol."""

import pandas as pd
import pytest
from report_fixtures import manifest, records, write

from bench.record import EncoderShift
from bench.storage.store import RunFolder, load_records
from reports import html, pdf
from reports.leaderboard import leaderboard, ranked_lines
from reports.pairs import pairs
from reports.rows import rows

COLUMNS = ["feature_shift", "feature_shift_median", "feature_cosine", "feature_n"]


def shift(mean, **others):
    values = {"median": mean / 2, "cosine_mean": 0.8, "cosine_median": 0.9, "spread": 3.0, "images": 64, "seconds": 1.0}
    return EncoderShift(eps=0.1, mean=mean, **values | others)


@pytest.fixture(scope="module")
def found():
    """Two seeds of a method with shifts, and one of another that was made before there were any."""
    asked = manifest(("simclr_adv", "emp_ssl_adv"), seeds=2)
    means = {"simclr_adv-s0": 0.25, "simclr_adv-s1": 0.75}
    return [
        record.model_copy(update={"shift": shift(means[record.spec.name]) if record.spec.name in means else None})
        for record in records(asked, diverged=())
    ]


ASKED = manifest(("simclr_adv", "emp_ssl_adv"), seeds=2)


def test_every_row_of_a_run_has_that_of_its_encoder(found):
    table = rows(ASKED, found)
    first = table[(table["method"] == "simclr_adv") & (table["seed"] == 0)]
    assert len(first) > 10
    assert first[COLUMNS].drop_duplicates().to_numpy().tolist() == [[0.25, 0.125, 0.8, 64]]
    assert table[table["method"] == "emp_ssl_adv"][COLUMNS].isna().all(axis=None)


def test_the_leaderboard_has_the_mean_over_seeds_and_the_same_ranks(found):
    board = leaderboard(rows(ASKED, found), found, 0.1)
    mine = board[board["method"] == "simclr_adv"]
    assert mine[COLUMNS].to_numpy().tolist() == [pytest.approx([0.5, 0.25, 0.8, 64])] * 2
    assert board[board["method"] == "emp_ssl_adv"][COLUMNS].isna().all(axis=None)
    bare = [record.model_copy(update={"shift": None}) for record in found]
    pd.testing.assert_frame_equal(
        board.drop(columns=COLUMNS), leaderboard(rows(ASKED, bare), bare, 0.1).drop(columns=COLUMNS)
    )


def test_pages_show_it_where_there_is_one(found):
    for everything, there in ((found, True), ([r.model_copy(update={"shift": None}) for r in found], False)):
        table = rows(ASKED, everything)
        board = leaderboard(table, everything, 0.1)
        lines = html.leaderboard(table, board, {}, {})
        _, beside = lines["tables"]
        assert ("Shift" in [column["title"] for column in beside["columns"]]) == there
        claimed = pairs(everything, 0.1, ranked_lines(board))
        told = pdf.content(ASKED, everything, table, board, claimed, {})
        sections = [section for section in told["sections"] if section["title"] == "Encoders before any head"]
        assert bool(sections) == there
        if there:
            texts = [cell["text"] for cell in beside["lines"][-1]["cells"]]
            assert texts[texts.index("0.50") + 1] == "64"
            assert sections[0]["tables"][0]["rows"][1] == [
                "simclr_adv", "1", "0.750", "0.375", "0.800", "0.900", "0.1", "64", ""
            ]  # fmt: skip


def test_one_without_a_number_says_why(found):
    nothing = found[0].model_copy(update={"shift": EncoderShift(eps=0.1, images=64, seconds=1.0, note="all equal")})
    table = rows(ASKED, [nothing])
    assert table["feature_shift"].isna().all()
    told = pdf.content(ASKED, [nothing], table, leaderboard(table, [nothing], 0.1), pairs([nothing], 0.1, []), {})
    (section,) = [each for each in told["sections"] if each["title"] == "Encoders before any head"]
    assert section["tables"][0]["rows"][0][2:] == ["", "", "", "", "0.1", "64", "all equal"]


def test_it_is_read_from_the_folder(found, tmp_path):
    write(tmp_path, ASKED, found)
    for record in found:
        if record.shift is not None:
            RunFolder(tmp_path, record.spec).save_shift(record.shift)
    assert [record.shift for record in load_records(tmp_path)] == [record.shift for record in found]
