"""The end of a run in the terminal: bars to scale, sentences that say what the tables say, the command to give next."""

from pathlib import Path

import pandas as pd
import pytest
from report_fixtures import manifest, records, tables_only, write

from bench.commands.ending import print_ending
from reports.build import build
from reports.terminal import (
    LIGHT,
    SOLID,
    WIDTH,
    came_out,
    claimed,
    drawing,
    ending,
    next_command,
    plain_bars,
    ran,
    read_tables,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean method, a robust one, and one that diverged."""
    asked = manifest(methods=("emp_ssl", "cf_amc_ssl", "simclr_patch_adv"))
    out = write(tmp_path_factory.mktemp("run"), asked, records(asked))
    with tables_only():
        build(out)
    return out


def board(**columns: list[object]) -> pd.DataFrame:
    usual = {"protocol": ["linear"] * 2, "method": ["a", "bcd"], "pgd": [None, None], "worst": [0.5, 0.0]}
    usual |= {"rank_lo": [1, 2], "supervised": [False] * 2, "status": ["finished"] * 2, "audit": ["PASS"] * 2}
    return pd.DataFrame(usual | {"clean": [0.75, 1.0]} | columns)


def test_a_bar_is_to_scale() -> None:
    title, first, second = drawing(board())
    assert "worse of PGD and AutoAttack" in title
    assert (first.count(SOLID), first.count(LIGHT)) == (WIDTH // 2, WIDTH // 4)
    assert (second.count(SOLID), second.count(LIGHT)) == (0, WIDTH)
    assert first.split() == ["a", SOLID * 20 + LIGHT * 10, "50.0", "%", "75", "%"]
    assert len({line.rindex(" %") for line in (first, second)}) == 1


def test_robust_above_clean_draws_no_light_and_pgd_alone_is_said() -> None:
    title, first, _ = drawing(board(worst=[None, None], pgd=[0.75, 0.1], clean=[0.5, 0.5]))
    assert "under PGD" in title
    assert (first.count(SOLID), first.count(LIGHT)) == (30, 0)


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"audit": ["FAIL", "PASS"]}, "not ranked: audit FAIL"),
        ({"audit": ["NOT_RUN", "PASS"]}, "not ranked: audit NOT_RUN"),
        ({"supervised": [True, False]}, "not ranked: it learns from labels"),
        ({"status": ["failed", "finished"]}, "not ranked: failed"),
    ],
)
def test_a_number_without_a_rank_is_not_praised(columns: dict[str, list[object]], why: str) -> None:
    lines = board(rank_lo=[None, 1], worst=[0.5, 0.25], **columns)
    _, first, second = drawing(lines)
    assert first.endswith(why)
    assert (first.count(SOLID), first.count(LIGHT), second.count(SOLID)) == (0, 30, 10)
    rows = pd.DataFrame({"method": ["a", "bcd"], "adversary": ["pgd", "pgd"]})
    assert came_out(rows, lines) == "Under linear, bcd keeps 25 % of the attacked images right."
    assert came_out(rows, board(rank_lo=[None, None])) == "No robust accuracy is ranked."


def test_only_the_first_protocol_is_drawn_and_nothing_where_nothing_was_attacked() -> None:
    assert len(drawing(board(protocol=["linear", "multi_patch"]))) == 2
    assert drawing(board(worst=[None, None])) == []


def test_the_sentences_say_what_the_tables_say(folder: Path) -> None:
    rows, lines, _ = read_tables(folder)
    text = ending(folder, manifest(methods=("emp_ssl", "cf_amc_ssl", "simclr_patch_adv")))
    said = "\n".join(text)
    assert (
        "3 methods were trained for 1 min each on digits, then attacked at eps 0.1 by PGD on 300 images and AutoAttack "
        "on 64 or 32 images."
    ) in text
    robust, clean = (100 * lines[lines["method"] == name]["worst"].iloc[0] for name in ("cf_amc_ssl", "emp_ssl"))
    assert f"against an adversary keep {robust:.0f} % of the attacked images right (most: cf_amc_ssl)" in said
    assert f"those trained without one {clean:.0f} %." in said
    assert (
        "Told apart are 1 of 1 pairs of encoders under linear and 1 of 1 pairs of encoders under multi_patch;" in said
    )
    assert "nothing can be claimed, as that takes 5 seeds of each and --eval full" in said
    assert text[-1] == "The real thing, on a GPU: bench run --methods all --budget 2h"
    assert len(rows["method"].unique()) == 3


def test_methods_without_a_single_pair_or_attack_are_not_compared() -> None:
    none = pd.DataFrame({"kind": [], "protocol": [], "verdict": []})
    assert claimed(board(standing=[None, None]), none) == ""
    rows = pd.DataFrame({"method": ["a"], "attack": ["none"], "eps": [0.0], "total": [9]})
    assert ran(manifest(methods=("a",)), rows) == "1 method was trained for 1 min each on digits."


def test_claims_about_methods_need_no_further_sentence() -> None:
    pairs = pd.DataFrame({"kind": ["method"] * 3, "protocol": ["linear"] * 3, "verdict": ["better", "tie", "worse"]})
    assert claimed(board(standing=[None, None]), pairs) == "Told apart are 2 of 3 pairs of methods under linear."


@pytest.mark.parametrize(
    ("level", "seeds", "words"),
    [
        ("quick", 5, "--budget 2h"),
        ("full", 1, "--seeds 5 --eval full"),
        ("standard", 5, "--eval full"),
        ("full", 5, ""),
    ],
)
def test_the_next_command_leads_to_numbers_that_count_more(level: str, seeds: int, words: str) -> None:
    command = next_command(manifest(level=level, seeds=seeds))
    assert (words in command) if words else command == ""


def test_a_terminal_without_blocks_gets_letters(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plain_bars(f"a {SOLID}{LIGHT} b") == "a #- b"
    print_ending(folder)
    assert SOLID in capsys.readouterr().out
    print_ending(folder / "none")
    assert capsys.readouterr().out == ""
