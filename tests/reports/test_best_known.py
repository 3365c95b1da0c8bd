"""What every attack that was tried leaves of a number, against loops over single images."""

import itertools
import random

import pandas as pd
import pytest
from report_fixtures import audited, manifest, records, result

from bench.record import Record
from reports.best_known import best_known
from reports.leaderboard import leaderboard
from reports.rows import rows

SPEC = manifest(("simclr_adv",)).runs[0]


def known(of, *others, audits=()):
    return best_known(Record(spec=SPEC, results=[of, *others], audits=list(audits)), of)


def slow(of, others, broken):
    """Image by image: does any attack of this norm, at this eps or below, break it?"""
    count = 0
    for place in range(of.total):
        fallen = place in broken if of.norm == "linf" else False
        for other in others:
            inside = other.norm == of.norm and other.eps <= of.eps
            if inside and other.threat_space == "image" and place < other.total:
                fallen = fallen or other.outcomes[place] == "0"
        count += not fallen
    return count


def test_it_is_the_loop_over_images_and_attacks():
    draw = random.Random(0)
    grid = itertools.product(("pgd", "autoattack", "fgsm", "mine"), ("linf", "l2"), (0.05, 0.1, 0.2), ("image",))
    cells = [
        result("linear", attack, eps, "".join(draw.choices("01", (1, 9), k=draw.randint(10, 40))), norm=norm,
               threat_space=space)
        for attack, norm, eps, space in [*grid, ("pgd_crop", "linf", 0.05, "crop")]
    ]  # fmt: skip
    elsewhere = [result("multi_patch", each.attack, each.eps, "0" * 40, norm=each.norm) for each in cells]
    audit = audited("linear", cells, 0.05).model_copy(update={"broken": {"A4": [3, 7], "A14": [7, 39]}})
    record = Record(spec=SPEC, results=[*cells, *elsewhere], audits=[audit])
    counts = [best_known(record, cell) for cell in cells[:-1]]
    assert counts == [slow(cell, cells, {3, 7, 39}) for cell in cells[:-1]]
    assert len(set(counts)) > 5
    assert best_known(record, cells[-1]) is None  # on crops


def test_attacks_that_saw_fewer_images_count_on_those_they_saw():
    assert known(result("linear", "pgd", 0.1, "111111"), result("linear", "mine", 0.1, "01")) == 5


def test_an_attack_at_a_smaller_eps_counts_and_one_at_a_larger_does_not():
    pgd = result("linear", "pgd", 0.1, "1111")
    assert known(pgd, result("linear", "fgsm", 0.05, "0111"), result("linear", "fgsm", 0.2, "0000")) == 3
    assert known(pgd, result("linear", "fgsm", 0.1 * (1 + 1e-12), "0111")) == 3  # 3/4 of an eps has a rounding


def test_the_clean_image_lies_in_every_ball():
    clean = result("linear", "none", 0.0, "0111")
    assert known(result("linear", "mine", 0.5, "1111", norm="l2"), clean) == 3


def test_the_audit_speaks_of_its_eps_and_larger_ones():
    audit = audited("linear", [], 0.1).model_copy(update={"broken": {"A13": [0, 9]}})
    for eps, left in ((0.05, 4), (0.1, 3), (0.2, 3)):
        assert known(result("linear", "pgd", eps, "1111"), audits=[audit]) == left
    assert known(result("linear", "mine", 0.5, "1111", norm="l2"), audits=[audit]) == 4


@pytest.fixture(scope="module")
def tables():
    """(rows, leaderboard) without and with attacks of a user's own, which break two of the 64 ranked images."""
    asked = manifest(("simclr_adv", "emp_ssl_adv"), seeds=2)
    found = records(asked, diverged=())
    more = []
    for record in found:
        both = [next(r.outcomes for r in record.results if (r.protocol, r.attack, r.eps) == ("linear", attack, 0.1))
                for attack in ("pgd", "autoattack")]  # fmt: skip
        standing = [place for place, pair in enumerate(zip(*both, strict=False)) if pair == ("1", "1")]
        mine = "".join("0" if place in standing[:2] else "1" for place in range(64))
        results = [*record.results, result("linear", "mine", 0.1, mine), result("linear", "mine", 0.5, "1", norm="l2")]
        more.append(record.model_copy(update={"results": results}))
    made = [rows(asked, each) for each in (found, more)]
    return made, [leaderboard(table, each, 0.1) for table, each in zip(made, (found, more), strict=True)]


def test_it_stands_beside_the_ranked_number_and_moves_no_rank(tables):
    (_, attacked), (before, after) = tables
    pd.testing.assert_frame_equal(before.drop(columns="best_known"), after.drop(columns="best_known"))
    linear = after[after["protocol"] == "linear"]
    assert (linear["worst"] - linear["best_known"]).tolist() == pytest.approx([2 / 64] * 2)
    assert linear["best_known_n"].tolist() == linear["n"].tolist() == [64, 64]
    assert (before["best_known"] <= before["worst"]).all()
    shown = attacked[(attacked["attack"] == "mine") & (attacked["norm"] == "l2")]
    assert set(shown["best_known"]) == {1.0}


def test_every_row_of_an_attack_on_the_image_has_one_and_none_is_above_its_accuracy(tables):
    (_, table), _ = tables
    attacked = table[table["attack"] != "none"]
    assert attacked["best_known"].notna().all()
    assert (attacked["best_known"] <= attacked["accuracy"]).all()
    assert (attacked["best_known_n"] == attacked["total"]).all()
    assert table[table["attack"] == "none"]["best_known"].isna().all()


def test_without_autoattack_it_is_on_the_images_of_pgd():
    asked = manifest(("simclr_adv",))
    (record,) = records(asked, diverged=())
    alone = [result("linear", "pgd", 0.1, "1110"), result("linear", "mine", 0.1, "01")]
    found = [record.model_copy(update={"results": alone, "audits": []})]
    line = leaderboard(rows(asked, found), found, 0.1).iloc[0]
    assert (line["pgd"], line["best_known"], line["best_known_n"]) == (0.75, 0.5, 4)
