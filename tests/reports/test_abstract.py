"""The abstract: each sentence stands where its condition holds, with the numbers of the tables, and nowhere else."""

import pandas as pd
import pytest
from report_fixtures import CIFAR, MACHINE, audited, manifest, probe, records, result

from bench.spec import Budget
from reports.abstract import abstract, listed
from reports.leaderboard import leaderboard, ranked_lines
from reports.pairs import pairs
from reports.rows import rows

STAND = {"good": 600, "close": 598, "bad": 500}  # of 1,000 images


def told(asked, found):
    """Paragraphs by name, and the leaderboard they speak of."""
    table = rows(asked, found)
    board = leaderboard(table, found, asked.main_eps)
    claims = pairs(found, asked.main_eps, ranked_lines(board))
    return dict(abstract(asked, found, table, board, claims)), board


def of(seeds=1, level="full", stand=STAND, verdict="PASS", **changes):
    """A manifest and records of ``stand``, linear alone; each seed turns the images by 100."""
    asked = manifest(tuple(stand), seeds=seeds, level=level)
    found = []
    for record in records(asked, diverged=()):
        bits = "1" * stand[record.spec.method] + "0" * (1000 - stand[record.spec.method])
        bits = bits[100 * record.spec.seed :] + bits[: 100 * record.spec.seed]
        results = [result("linear", attack, 0.1 * (attack != "none"), bits) for attack in ("none", "pgd", "autoattack")]
        band = probe("linear", *((lambda_, bits.count("1"), 1000) for lambda_ in (0.1, 0.01, 0.001)))
        update = {"results": results, "probes": [band], "audits": [audited("linear", results, 0.1, verdict)]}
        found.append(record.model_copy(update=update | changes))
    return asked, found


def changed(record, **train):
    return record.model_copy(update={"train": record.train.model_copy(update=train)})


def test_what_was_run():
    said, _ = told(*of(seeds=5))
    assert said["What was run"] == (
        "3 methods (good, close and bad) were trained on digits (1437 training images), 1 min each, with seeds 0, 1, "
        "2, 3 and 4, on AMD EPYC 9654. Clean accuracy is counted on 360 test images, robust accuracy as the worst "
        "case of PGD and AutoAttack at eps 0.1 on 1000 of them."
    )


def test_methods_of_several_budgets_are_named_once():
    asked, found = of(stand={"good-5m": 600, "good-1m": 500})
    found = [
        r.model_copy(update={"spec": r.spec.model_copy(update={"budget": Budget.parse(r.spec.method[-2:])})})
        for r in found
    ]
    said, _ = told(asked.model_copy(update={"budget": None}), found)
    assert said["What was run"].startswith(
        "1 method (good) was trained on digits (1437 training images), once for each"
    )
    assert "budget of 1 min and 5 min, with seed 0" in said["What was run"]
    assert "SLF (linear probe) at 1m: the highest ranked robust accuracy is 50.0 %" in said["What came out"]
    assert said["What can be claimed"].startswith("No two lines can be compared")


def test_a_model_trained_elsewhere_is_not_said_to_have_a_budget():
    asked, found = of(stand={"good": 600})
    spec = found[0].spec.model_copy(update={"settings": {"weights_sha256": "a" * 64}})
    said, _ = told(asked, [found[0].model_copy(update={"spec": spec})])
    assert said["What was run"].startswith("1 method (good), trained elsewhere, scored on AMD EPYC 9654.")


def test_the_best_come_with_their_intervals():
    said, board = told(*of(seeds=5))
    best = board.iloc[0]
    lo, hi = (f"{100 * best[name]:.1f}" for name in ("worst_lo", "worst_hi"))
    assert said["What came out"] == (
        f"SLF (linear probe): the highest ranked robust accuracy is 60.0 % (95 % interval over images {lo} to {hi}, "
        "mean of 5 seeds), of good, which no test tells apart from close; the highest clean accuracy is 60.0 % (95 % "
        f"interval over images {lo} to {hi}, mean of 5 seeds), of good (not tested against the others)."
    )


def test_one_method_leads_nobody_and_equal_ones_share_the_clean_place():
    alone, _ = told(*of(stand={"good": 600}))
    assert "tells apart" not in alone["What came out"]
    assert "not tested" not in alone["What came out"]
    assert alone["What can be claimed"] == "No two lines can be compared: no protocol ranks more than one."
    equal, _ = told(*of(stand={"a": 600, "b": 600}))
    assert equal["What came out"].endswith("one seed), of a and b.")


def test_of_several_seeds_encoders_are_compared_at_every_one():
    said, _ = told(*of(seeds=2))
    assert "of good, not significantly above close at every seed;" in said["What came out"]


def test_nothing_is_called_best_that_an_audit_took_out():
    said, _ = told(*of(verdict="FAIL"))
    assert said["What came out"] == "SLF (linear probe): no robust accuracy is ranked."
    assert "What can be claimed" not in said
    assert said["The audit"] == (
        "Of 3 robust accuracies 0 passed, 0 passed with a flag, and 3 were taken out of the ranking "
        "(bad, linear: FAIL; close, linear: FAIL and good, linear: FAIL)."
    )


def test_claims_about_methods_are_counted_and_stated():
    asked, found = of(seeds=5)
    said, board = told(asked, found)
    line = pairs(found, 0.1, ranked_lines(board)).set_index(["a", "b"]).loc["good", "bad"]
    assert said["What can be claimed"].startswith(
        "Told apart are 2 of 3 pairs of methods. good is better than bad under the worst case of PGD and AutoAttack at "
        f"eps 0.1 (linear): 10.0 points, 95 % interval {100 * line['lo']:.1f} to {100 * line['hi']:.1f}, 5 seeds, 1000 "
        "images. close is better than bad under"
    )
    assert "encoder" not in said["What can be claimed"]
    assert "What cannot" not in said


def test_no_difference_is_said_plainly():
    said, _ = told(*of(stand={"good": 600, "close": 598}))
    assert said["What can be claimed"] == "No difference can be claimed: 0 of 1 pairs of encoders are told apart."


def test_few_seeds_claim_encoders_and_say_so():
    said, _ = told(*of())
    assert said["What can be claimed"].startswith(
        "Told apart are 2 of 3 pairs of encoders. The encoder of good (seed 0) is better than the encoder of bad "
    )
    assert said["What cannot"].startswith("With one seed nothing is said about methods, only about the encoders")


@pytest.mark.parametrize(
    ("level", "sentence"),
    [
        ("quick", "The evaluation is quick, with few images and one restart: no number is comparable."),
        ("standard", "The evaluation is standard: claims about methods need full."),
    ],
)
def test_the_level_of_the_evaluation_is_a_limit(level, sentence):
    said, _ = told(*of(seeds=5, level=level))
    assert said["What cannot"] == sentence


def test_a_subset_is_a_limit():
    asked, found = of(seeds=5)
    said, _ = told(asked.model_copy(update={"data": CIFAR}), found)
    assert said["What cannot"] == "The images are a subset of the data set: no number stands for the whole."


def test_a_budget_in_updates_is_no_equal_time():
    asked, found = of(seeds=5)
    spec = {"budget": Budget.parse("30up")}
    found = [
        changed(r, train_seconds=10.0 + r.spec.seed).model_copy(update={"spec": r.spec.model_copy(update=spec)})
        for r in found
    ]
    said, _ = told(asked.model_copy(update={"budget": Budget.parse("30up")}), found)
    assert "(1437 training images), 30 updates each," in said["What was run"]
    assert said["What cannot"] == "The budget counts updates: methods did not get equal time (10 to 14 s)."


def test_disturbed_runs_and_several_machines_are_limits():
    asked, found = of(seeds=5)
    found[0] = changed(found[0], calibration=(1.0, 1.5))
    found[1] = changed(found[1], calibration=(1.0, 1.0))
    other = MACHINE.model_copy(update={"device_name": "H100"})
    found[2] = found[2].model_copy(update={"environment": other})
    said, _ = told(asked, found)
    assert "on AMD EPYC 9654 and H100." in said["What was run"]
    assert said["What cannot"] == (
        "The runs stand on 2 kinds of hardware: no times are compared across them. 1 of 2 timed runs was disturbed "
        "(the clock probe moved by more than 3 %): their times are not fair."
    )


def test_attacks_cut_short_and_runs_that_did_not_finish_are_counted():
    asked, found = of(seeds=5)
    short = found[0].results[2].model_copy(update={"complete": False})
    found[0] = found[0].model_copy(update={"results": [*found[0].results[:2], short]})
    found[1] = found[1].model_copy(update={"results": [], "audits": [], "status": "oom"})
    said, _ = told(asked, found)
    assert said["What cannot"].endswith(
        "In 1 of 15 runs an attack was cut short: an upper bound, not ranked. "
        "1 of 15 runs did not finish (close-s0 oom)."
    )


def test_the_audit_counts_each_verdict():
    asked, found = of()
    found[1] = found[1].model_copy(update={"audits": [audited("linear", found[1].results, 0.1, "WARN")]})
    found[2] = found[2].model_copy(update={"audits": [audited("linear", found[2].results, 0.1, "NOT_RUN")]})
    said, _ = told(asked, found)
    assert said["The audit"] == (
        "Of 3 robust accuracies 1 passed, 1 passed with a flag, and 1 was taken out of the ranking "
        "(bad, linear: NOT_RUN)."
    )
    clean, _ = told(*of())
    assert clean["The audit"] == "Of 3 robust accuracies 3 passed, 0 passed with a flag, and none was taken out."


def test_without_an_audit_nothing_is_ranked():
    asked, found = of(stand={"good": 600})
    spec = found[0].spec.model_copy(update={"eval": found[0].spec.eval.model_copy(update={"audit": "off"})})
    said, _ = told(asked, [found[0].model_copy(update={"spec": spec, "audits": []})])
    assert said["The audit"] == "No audit was made: no robust accuracy is ranked."
    assert said["What came out"].startswith(
        "SLF (linear probe): no robust accuracy is ranked; the highest clean accuracy is"
    )


def test_nothing_measured_gives_no_number():
    asked = manifest(("simclr",))
    said, board = told(asked, records(asked, diverged=("simclr-s0",)))
    assert pd.isna(board["clean"]).all()
    assert set(said) == {"What was run", "What cannot"}
    assert said["What cannot"].endswith("1 of 1 runs did not finish (simclr-s0 diverged).")


def test_names_are_listed_up_to_six():
    assert [listed([]), listed(["a"]), listed(["a", "b"])] == ["", "a", "a and b"]
    assert listed(list("abcdef")) == "a, b, c, d, e and f"
    assert listed(list("abcdefg")) == "a, b, c, d, e and 2 more"
