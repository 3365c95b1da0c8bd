"""Ranks, ties, intervals and what is not ranked."""

import pandas as pd
import pytest
from report_fixtures import audited, manifest, probe, records, result

from bench.record import Check
from reports.leaderboard import COLUMNS, different_attacks, leaderboard, ranked_lines
from reports.rows import rows
from reports.stats import wilson


def ranked(outcomes, main_eps=0.1, **others):
    """Leaderboard of methods a, b, ... with these outcomes of ``none``, ``pgd`` and ``autoattack`` for each seed."""
    asked = manifest(tuple(outcomes), seeds=max(len(seeds) for seeds in outcomes.values()))
    found = []
    for record in records(asked, diverged=()):
        cells = outcomes[record.spec.method][record.spec.seed]
        results = [
            result("linear", attack, 0.0 if attack == "none" else 0.1, bits, **others)
            for attack, bits in zip(("none", "pgd", "autoattack"), cells, strict=False)
        ]
        found.append(record.model_copy(update={"results": results}))
    return leaderboard(rows(asked, found), found, main_eps).set_index("method")


def test_columns():
    asked = manifest(seeds=2)
    found = records(asked)
    table = leaderboard(rows(asked, found), found, 0.1)
    assert {name: str(kind) for name, kind in table.dtypes.items()} == COLUMNS
    assert list(table["protocol"]) == ["linear"] * 9 + ["multi_patch"] * 9
    assert table["worst"][:8].is_monotonic_decreasing
    assert table["rank_lo"].isna().tolist() == ([False] * 8 + [True]) * 2  # one diverged
    assert table["method"][0] == table["method"][9] == "cf_amc_ssl"


def test_sorted_by_worst_and_what_is_not_told_apart_shares_its_range():
    table = ranked(
        {
            "a": [("1111", "1110", "1100")],
            "b": [("1111", "1111", "1110")],
            "c": [("1110", "1100", "1111")],
            "d": [("1111", "0000", "1111")],
        }
    )
    assert table["worst"].to_dict() == {"b": 0.75, "a": 0.5, "c": 0.5, "d": 0.0}
    assert list(table.index) == ["b", "a", "c", "d"]
    assert list(table["rank_lo"]) == [1] * 4  # four images tell nothing apart
    assert list(table["rank_hi"]) == [4] * 4
    assert table["best"].all()
    assert table.loc["a", ["clean", "pgd", "autoattack", "n"]].tolist() == [1.0, 0.75, 0.5, 4]


def test_each_number_says_on_how_many_images_and_pgd_stands_on_those_of_the_worst_case_too():
    """PGD attacked six images and AutoAttack three of them, so the worst case is above PGD on all of its own."""
    line = ranked({"a": [("1111111", "101000", "111")]}).loc["a"]
    assert line[["clean_n", "pgd_n", "autoattack_n", "n"]].tolist() == [7, 6, 3, 3]
    assert line[["pgd", "worst", "pgd_ranked"]].tolist() == [2 / 6, 2 / 3, 2 / 3]


def test_rank_ranges_by_hand():
    """12 images. a stands on all, b on 11, c on 3, d on none: McNemar's p by hand, 2 / 2^k for k images of one side,
    against Holm's .05 over 6 pairs. a-d 2/2^12, b-d 2/2^11, a-c 2/2^9 and b-c 2/2^8 (times 3: .023) are told apart;
    c-d 2/2^3 and a-b 1 are not.
    """
    table = ranked({name: [("1" * 12, "1" * stand + "0" * (12 - stand)) * 2]
                    for name, stand in (("d", 0), ("c", 3), ("b", 11), ("a", 12))})  # fmt: skip
    assert list(table.index) == ["a", "b", "c", "d"]
    assert [tuple(line) for line in table[["rank_lo", "rank_hi"]].to_numpy()] == [(1, 2), (1, 2), (3, 4), (3, 4)]
    assert table["best"].tolist() == [True, True, False, False]
    assert set(table["standing"].str.partition(".")[0]) == {
        "This table ranks encoders, not methods: it has one seed and it is evaluated at quick (not comparable)"
    }


def test_equal_means_are_in_the_order_of_names():
    tenth, two, three = ("1" * k + "0" * (10 - k) for k in (1, 2, 3))
    table = ranked(
        {
            "a": [(tenth,) * 3, (two,) * 3, (three,) * 3],
            "b": [(three,) * 3, (two,) * 3, (tenth,) * 3],
            "c": [(two,) * 3, (two,) * 3, (two,) * 3],
        }
    )
    assert list(table.index) == ["a", "b", "c"]
    assert table["rank_hi"].tolist() == [3, 3, 3]


def test_one_seed_has_wilsons_interval_and_several_seeds_do_not_narrow_it():
    bits = "1" * 30 + "0" * 34
    one, three = ranked({"a": [(bits,) * 3]}).loc["a"], ranked({"a": [(bits,) * 3] * 3}).loc["a"]
    assert (one["worst_lo"], one["worst_hi"]) == (one["clean_lo"], one["clean_hi"]) == wilson(30, 64)
    assert (three["worst_lo"], three["worst_hi"]) == pytest.approx(wilson(30, 64))
    assert (one["seeds"], one["n"], three["seeds"], three["n"]) == (1, 64, 3, 64)


def test_without_autoattack_at_the_main_eps_there_is_no_rank():
    table = ranked({"a": [("11", "11")], "b": [("11", "10", "10")]})
    assert list(table.index) == ["b", "a"]
    assert table["rank_lo"].isna().to_dict() == {"b": False, "a": True}
    assert table["rank_hi"]["b"] == 1  # a is not counted
    assert not table.loc["a", "best"]
    assert table.loc["a", "pgd"] == 1.0
    assert table.loc["a", ["worst", "n"]].isna().all()
    assert ranked({"b": [("11", "10", "10")]}, main_eps=0.2)["rank_lo"].isna().all()


def test_one_seed_without_autoattack_takes_the_rank_away():
    table = ranked({"a": [("11", "11", "11"), ("11", "11")]})
    assert (table.loc["a", "seeds"], table.loc["a", "worst"]) == (2, 1.0)
    assert pd.isna(table.loc["a", "rank_lo"])


def test_attacks_on_crops_are_in_no_column():
    table = ranked({"a": [("11", "11", "11")]}, threat_space="crop")
    assert table.loc["a", "clean"] == 1.0
    assert table.loc["a", ["rank_lo", "rank_hi", "pgd", "autoattack", "worst", "n"]].isna().all()


def test_attacks_in_l2_move_no_line():
    asked = manifest(("simclr_adv", "emp_ssl_adv"), seeds=2)
    found = records(asked, diverged=())
    more = [
        each.model_copy(update={"results": [*each.results, result("linear", "mine", 0.1, "000", norm="l2")]})
        for each in found
    ]
    before, after = (leaderboard(rows(asked, each), each, 0.1) for each in (found, more))
    pd.testing.assert_frame_equal(before, after)
    in_l2 = ranked({"a": [("11", "11", "11")]}, norm="l2")
    assert in_l2.loc["a", ["rank_lo", "pgd", "autoattack", "worst"]].isna().all()


def test_diverged_runs_are_listed_last_without_a_rank():
    asked = manifest(("simclr_adv", "emp_ssl_adv", "cf_amc_ssl"), seeds=3)
    found = records(asked, diverged=("cf_amc_ssl-s1", "simclr_adv-s0", "simclr_adv-s1", "simclr_adv-s2"))
    table = leaderboard(rows(asked, found), found, 0.1)
    linear = table[table["protocol"] == "linear"].set_index("method")
    assert linear["status"].to_dict() == {
        "emp_ssl_adv": "finished",
        "cf_amc_ssl": "1 of 3 diverged",
        "simclr_adv": "diverged",
    }
    assert linear["rank_lo"].tolist() == linear["rank_hi"].tolist() == [1, pd.NA, pd.NA]
    assert linear["seeds"].tolist() == [3, 2, 0]
    assert linear.loc["cf_amc_ssl", "train_seconds"] > 59  # the cost of the models that are scored
    assert linear.loc["simclr_adv", "train_seconds"] == 3.25


def test_nothing_but_diverged_runs_still_gives_a_table():
    asked = manifest(("simclr", "emp_ssl"))
    found = records(asked, diverged=("simclr-s0", "emp_ssl-s0"))
    table = leaderboard(rows(asked, found), found, 0.1)
    assert list(table["protocol"]) == ["linear", "linear", "multi_patch", "multi_patch"]
    assert table["rank_lo"].isna().all()
    assert set(table["status"]) == {"diverged"}


# ---------------------------------------------------------------- the audit


def audited_board(verdicts, **others):
    """The line of one method at ``linear``, whose seeds have audits with these verdicts (None: no audit)."""
    asked = manifest(("cf_amc_ssl",), seeds=len(verdicts))
    found = [
        record.model_copy(
            update={
                "audits": [audited("linear", record.results, 0.1, verdict).model_copy(update=others)] if verdict else []
            }
        )
        for record, verdict in zip(records(asked), verdicts, strict=True)
    ]
    return leaderboard(rows(asked, found), found, 0.1).iloc[0]


@pytest.mark.parametrize(
    ("verdicts", "audit", "rank"),
    [
        (["PASS", "PASS"], "PASS", 1),
        (["PASS", "WARN"], "FLAG", 1),
        (["WARN", None], "NOT_RUN", None),
        (["NOT_RUN", "FAIL"], "FAIL", None),
    ],
)
def test_a_line_is_ranked_only_if_the_audit_of_every_seed_lets_it(verdicts, audit, rank):
    line = audited_board(verdicts)
    assert (line["audit"], line["audit_level"]) == (audit, "core")
    assert line["worst"] > 0  # the number is shown
    assert line["rank_lo"] == rank if rank else pd.isna(line["rank_lo"])


def test_images_that_only_the_audit_broke_are_counted_beside_the_ranked_number():
    line = audited_board(["PASS"], broken={"A12": [0, 1], "A13": [1]})
    assert line["worst"] - line["worst_audited"] == pytest.approx(2 / 64)


def test_an_audit_that_is_off_takes_the_rank_away():
    asked = manifest(("cf_amc_ssl",))
    spec = asked.runs[0]
    spec = spec.model_copy(update={"eval": spec.eval.model_copy(update={"audit": "off"})})
    (record,) = records(asked)
    found = [record.model_copy(update={"spec": spec, "audits": []})]
    line = leaderboard(rows(asked, found), found, 0.1).iloc[0]
    assert (line["audit"], line["audit_level"]) == ("off", "off")
    assert pd.isna(line["rank_lo"])


def test_rows_attacked_with_other_settings_are_not_ranked_together():
    asked = manifest(("simclr_adv", "cf_amc_ssl"))
    found = records(asked)
    other = [
        r.model_copy(update={"config_hash": "weaker"}) if (r.protocol, r.attack, r.eps) == ("linear", "pgd", 0.1) else r
        for r in found[0].results
    ]
    found = [found[0].model_copy(update={"results": other}), found[1]]
    table = rows(asked, found)
    board = leaderboard(table, found, 0.1)
    linear, patches = (board[board["protocol"] == name] for name in ("linear", "multi_patch"))
    assert linear["rank_lo"].isna().all()
    assert set(linear["audit"]) == {"FAIL"}
    assert patches["rank_hi"].tolist() == [2, 2]
    assert different_attacks(table, 0.1) == {"linear": ["pgd-hash+autoattack-hash", "weaker+autoattack-hash"]}


def test_a_failed_line_is_neither_ranked_nor_counted():
    """cf_amc_ssl would be first; with its FAIL the other two are lines 1 and 2 of two."""
    asked = manifest(("cf_amc_ssl", "simclr", "emp_ssl_adv"))
    found = records(asked)
    failed = audited("linear", found[0].results, 0.1, "FAIL")
    found[0] = found[0].model_copy(update={"audits": [failed, found[0].audits[1]]})
    board = leaderboard(rows(asked, found), found, 0.1)
    linear = board[board["protocol"] == "linear"]
    assert linear["method"].tolist() == ["emp_ssl_adv", "simclr", "cf_amc_ssl"]
    assert linear["rank_lo"].tolist() == linear["rank_hi"].tolist() == [1, 2, pd.NA]
    assert linear["best"].tolist() == [True, False, False]
    assert linear["worst"].notna().all()
    assert ranked_lines(board) == [("emp_ssl_adv", "linear"), ("simclr", "linear")] + [
        (name, "multi_patch") for name in ("cf_amc_ssl", "emp_ssl_adv", "simclr")
    ]


# ---------------------------------------------------------------- what moves a number


def test_seed_probe_and_attack_variance_stand_apart():
    asked = manifest(("cf_amc_ssl",), seeds=2)
    found = []
    for record, stand, spread in zip(records(asked), (30, 40), (1.5, 0.5), strict=True):
        bits = "1" * stand + "0" * (64 - stand)
        results = [result("linear", attack, 0.1, bits) for attack in ("pgd", "autoattack")]
        audit = audited("linear", results, 0.1)
        audit = audit.model_copy(update={"checks": [*audit.checks, Check(id="A6", verdict="PASS", value=spread)]})
        band = probe("linear", (0.1, stand, 100), (0.01, stand + 8, 100), (0.001, stand - 6, 100))
        found.append(record.model_copy(update={"results": results, "audits": [audit], "probes": [band]}))
    line = leaderboard(rows(asked, found), found, 0.1).iloc[0]
    assert line["seed_sd"] == pytest.approx(10 / 64 / 2**0.5)  # sd of two numbers: half their distance times sqrt(2)
    assert (line["probe_lo"], line["probe_hi"]) == pytest.approx((0.29, 0.43))
    assert line["attack_spread"] == pytest.approx(0.01)
    one = leaderboard(rows(asked, found[:1]), found[:1], 0.1).iloc[0]
    assert pd.isna(one["seed_sd"])
    bare = [found[0].model_copy(update={"probes": [], "audits": [audited("linear", found[0].results, 0.1)]})]
    gaps = leaderboard(rows(asked, bare), bare, 0.1).iloc[0]
    assert gaps[["probe_lo", "probe_hi", "attack_spread"]].isna().all()
    assert gaps["rank_lo"] == 1
