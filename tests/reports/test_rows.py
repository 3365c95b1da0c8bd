"""One row for each cell, the two derived attacks, and runs without results."""

import pandas as pd
import pytest
from report_fixtures import METHODS, manifest, records, result

from bench.audit.audit import all_checks
from bench.record import Record
from reports import sections
from reports.checks import CHECKS
from reports.leaderboard import leaderboard, ranked_lines
from reports.pairs import pairs
from reports.rows import ATTACKS, COLUMNS, derived, rows


@pytest.fixture(scope="module")
def asked():
    return manifest(seeds=2)


@pytest.fixture(scope="module")
def table(asked):
    return rows(asked, records(asked))


def cell(table, method="simclr_adv", seed=0, protocol="linear", attack="pgd", eps=0.1):
    found = table[(table["method"] == method) & (table["seed"] == seed) & (table["protocol"] == protocol)]
    found = found[(found["attack"] == attack) & (found["eps"] == eps)]
    assert len(found) == 1
    return found.iloc[0]


def derive(*results):
    """What is derived from these results of a run of all its protocols."""
    return derived(Record(spec=manifest(("simclr_adv",)).runs[0], results=results))


def test_worst_is_the_and_over_the_images_that_both_attacked():
    pgd, autoattack = result("linear", "pgd", 0.1, "1101110"), result("linear", "autoattack", 0.1, "10111")
    (worst,) = derive(pgd, autoattack)
    assert (worst.attack, worst.threat_space, worst.eps) == ("worst", "image", 0.1)
    assert worst.outcomes == "10011"
    assert worst.config_hash == "pgd-hash+autoattack-hash"
    assert worst.seconds == 0.0


def test_pgd_only_where_autoattack_did_not_run_at_that_eps():
    found = derive(result("linear", "pgd", 0.05, "110"), result("linear", "autoattack", 0.1, "1"))
    assert [(each.attack, each.eps, each.outcomes) for each in found] == [("pgd_only", 0.05, "110")]
    assert found[0].note.startswith("upper bound")


def test_autoattack_of_another_protocol_or_space_makes_no_worst():
    pgd = result("linear", "pgd", 0.1, "110")
    assert derive(pgd, result("multi_patch", "autoattack", 0.1, "000"))[0].outcomes == "110"
    (found,) = derive(pgd, result("linear", "autoattack", 0.1, "000", threat_space="crop"))
    assert (found.attack, found.threat_space, found.outcomes) == ("pgd_only", "image", "110")


def test_what_is_in_l2_makes_no_worst_and_takes_none_away():
    pgd, autoattack = result("linear", "pgd", 0.1, "11"), result("linear", "autoattack", 0.1, "10")
    in_l2 = [result("linear", name, 0.1, "00", norm="l2") for name in ("pgd", "autoattack", "mine")]
    assert derive(pgd, autoattack, *in_l2) == derive(pgd, autoattack)
    assert [derived.attack for derived in derive(pgd, in_l2[1])] == ["pgd_only"]
    assert derive(*in_l2) == []


def test_the_norm_is_a_column():
    asked = manifest(("emp_ssl",))
    (found,) = records(asked, diverged=())
    both = [result("linear", "mine", 0.5, "10"), result("linear", "mine", 0.5, "11", norm="l2")]
    table = rows(asked, [found.model_copy(update={"results": both})])
    assert table[["norm", "eps", "correct"]].to_numpy().tolist() == [["linf", 0.5, 1], ["l2", 0.5, 2]]


def test_the_curve_and_the_papers_protocol_give_nothing():
    pgd, autoattack = result("linear", "pgd", 0.1, "11", curve=True), result("linear", "autoattack", 0.1, "11")
    assert derive(pgd, autoattack, result("published_eval", "pgd", 0.1, "11")) == []


def test_columns_types_and_gaps(table):
    assert list(table.columns) == list(COLUMNS)
    assert {name: str(kind) for name, kind in table.dtypes.items()} == COLUMNS
    lost = table[table["status"] == "diverged"]
    assert len(lost) == 1
    row = lost.iloc[0]
    assert (row["method"], row["seed"], row["updates"], row["train_seconds"]) == ("simclr_patch_adv", 0, 41, 3.25)
    assert row["note"] == "the loss was not finite after 41 updates"
    assert row[["protocol", "attack", "eps", "correct", "total", "accuracy", "lo", "hi", "curve"]].isna().all()


def test_the_numbers_of_one_cell(asked, table):
    found = records(asked)[1]
    pgd = next(r for r in found.results if (r.protocol, r.attack, r.eps) == ("linear", "pgd", 0.1))
    row = cell(table)
    assert (row["correct"], row["total"]) == (pgd.outcomes.count("1"), 300)
    assert row["accuracy"] == pgd.outcomes.count("1") / 300
    assert row["lo"] < row["accuracy"] < row["hi"]
    assert (row["adversary"], row["budget"], row["eval"], row["device"]) == ("pgd", "1m", "quick", "AMD EPYC 9654")
    assert (row["dataset"], row["config_hash"], row["eval_seconds"]) == ("digits", "pgd-hash", 1.5)
    assert (row["forward_per_image"], row["peak_memory_bytes"]) == (12.0, 260_000_000)


def test_worst_counts_no_more_images_than_autoattack_and_is_no_better(table):
    for protocol, images in (("linear", 64), ("multi_patch", 32)):
        worst, pgd = cell(table, protocol=protocol, attack="worst"), cell(table, protocol=protocol)
        autoattack = cell(table, protocol=protocol, attack="autoattack")
        assert worst["total"] == autoattack["total"] == images < pgd["total"]
        assert worst["correct"] <= autoattack["correct"]


def test_order_is_fixed(table, asked):
    places = [
        (METHODS.index(r["method"]), r["seed"], r["protocol"], ATTACKS.index(r["attack"]), r["eps"])
        for r in table.dropna(subset="attack").to_dict("records")
    ]
    assert places == sorted(places)
    pd.testing.assert_frame_equal(table, rows(asked, records(asked)[::-1]))


def test_the_node_of_each_run_and_none_in_records_that_are_older(asked):
    older, made = records(asked)[:2]
    machine = older.environment.model_dump()
    del machine["node"]
    older = Record.model_validate(older.model_dump() | {"environment": machine})
    made = made.model_copy(update={"environment": made.environment.model_copy(update={"node": "gpu-7"})})
    table = rows(asked, [older, made])
    assert table[table["method"] == older.spec.row]["node"].isna().all()
    assert set(table[table["method"] == made.spec.row]["node"]) == {"gpu-7"}


def test_a_run_that_has_not_begun_is_shown(asked):
    table = rows(asked, [Record(spec=spec) for spec in asked.runs])
    assert len(table) == 18
    assert set(table["status"]) == {"pending"}
    assert table[["adversary", "updates", "train_seconds", "device", "accuracy"]].isna().all(axis=None)


def test_no_images_is_no_accuracy(asked):
    found = records(asked)[0].model_copy(update={"results": [result("linear", "none", 0.0, "")]})
    row = rows(asked, [found]).iloc[0]
    assert (row["correct"], row["total"], row["lo"], row["hi"]) == (0, 0, 0.0, 1.0)
    assert pd.isna(row["accuracy"])


def test_flips_are_told_of_attacks_that_were_searched_in_tf32_only(asked, table):
    """Not of the derived ones, whose images have been counted with the attacks that they are made of."""
    assert table["flips"].isna().all()
    assert all("TF32" not in section["text"] for section in sections.body(asked, records(asked), table, *board(asked)))
    runs = [spec.model_copy(update={"eval": spec.eval.model_copy(update={"search": "tf32"})}) for spec in asked.runs]
    coarse = asked.model_copy(update={"runs": runs})
    found = [
        record.model_copy(update={"results": [each.model_copy(update={"flips": 2}) for each in record.results]})
        for record in records(coarse)
    ]
    searched = rows(coarse, found)
    derived_rows = searched["attack"].isin(("worst", "pgd_only"))
    assert searched[derived_rows]["flips"].isna().all()
    assert set(searched[~derived_rows]["flips"].dropna()) == {2}
    count = 2 * sum(len(record.results) for record in found)
    texts = [section["text"] for section in sections.body(coarse, found, searched, *board(coarse))]
    assert any(f"{count} images were broken in TF32 alone, and attacked again in float32" in text for text in texts)


def board(asked):
    """(leaderboard, pairs) of the records."""
    found = records(asked)
    lines = leaderboard(rows(asked, found), found, asked.main_eps)
    return lines, pairs(found, asked.main_eps, ranked_lines(lines))


def test_every_check_of_the_audit_has_a_text_and_no_other():
    assert set(CHECKS) == all_checks("multi_patch").keys()
