"""claims.csv and its sentences: which kinds of claims a folder allows, and that the words are the numbers."""

import pandas as pd
import pytest
from report_fixtures import manifest, probe, records, result
from scipy.stats import binomtest

from bench.spec import Budget
from reports.pairs import COLUMNS, pairs, sentences

STAND = {"good": 600, "close": 598, "bad": 500}  # of 1,000 images
LINEAR = [(name, "linear") for name in STAND]


def found_of(seeds, level="full", budget="30up", **changes):
    """Records of the three methods; each seed turns the images by 100 and loses three more of them."""
    asked = manifest(tuple(STAND), seeds=seeds, level=level)
    found = []
    for record in records(asked, diverged=()):
        seed = record.spec.seed
        stand = STAND[record.spec.method] - 3 * seed
        bits = "1" * stand + "0" * (1000 - stand)
        bits = bits[100 * seed :] + bits[: 100 * seed]
        band = probe("linear", *((lambda_, bits.count("1"), 1000) for lambda_ in (0.1, 0.01, 0.001)))
        update = {
            "results": [result("linear", attack, 0.1, bits) for attack in ("none", "pgd", "autoattack")],
            "probes": [band],
            "spec": record.spec.model_copy(update={"budget": Budget.parse(budget)}),
            "train": record.train.model_copy(
                update={"train_seconds": {"good": 10.0, "close": 10.1, "bad": 30.0}[record.spec.method] + 0.01 * seed}
            ),
        }
        found.append(record.model_copy(update=update | changes))
    return found


def test_five_seeds_at_full_claim_methods():
    table = pairs(found_of(5, budget="60s"), 0.1, LINEAR)
    assert {name: str(kind) for name, kind in table.dtypes.items()} == COLUMNS
    assert set(table["kind"]) == {"method"}
    lines = table.set_index(["a", "b"])
    assert lines["verdict"].to_dict() == {
        ("good", "close"): "tie",
        ("good", "bad"): "better",
        ("close", "bad"): "better",
    }
    good = lines.loc["good", "bad"]
    assert good["difference"] == pytest.approx(0.1)
    assert good["lo"] < 0.1 < good["hi"]
    assert good[["seeds", "n", "probability_of_superiority"]].tolist() == [5, 1000, 1.0]
    assert pd.isna(good["seed"])
    assert pd.isna(good["reason"])
    first, second = sentences(table, 0.1)
    assert first == (
        "good is better than bad under the worst case of PGD and AutoAttack at eps 0.1 (linear): 10.0 points, "
        f"95 % interval {100 * good['lo']:.1f} to {100 * good['hi']:.1f}, 5 seeds, 1000 images."
    )
    assert second.startswith("close is better than bad under")


@pytest.mark.parametrize(
    ("seeds", "level", "reason"),
    [
        (1, "full", "fewer than 5 seeds"),
        (5, "standard", "not evaluated at full"),
        (4, "quick", "fewer than 5 seeds; not evaluated at full"),
    ],
)
def test_else_encoders_are_compared_and_methods_are_not(seeds, level, reason):
    table = pairs(found_of(seeds, level, budget="60s"), 0.1, LINEAR)
    methods, encoders = (table[table["kind"] == kind] for kind in ("method", "encoder"))
    assert set(methods["verdict"]) == {"tie"}
    assert set(methods["reason"]) == {reason}
    assert methods[["lo", "hi", "p", "adjusted"]].isna().all(axis=None)
    assert len(encoders) == 3 * seeds
    assert encoders["seed"].tolist() == [*range(seeds)] * 3
    by_hand = encoders[(encoders["a"] == "good") & (encoders["b"] == "close")]["p"]
    assert by_hand.tolist() == pytest.approx([binomtest(2, 2, 0.5).pvalue] * seeds)  # two images of one side
    assert all("the encoder of" in sentence for sentence in sentences(table, 0.1)[:10])


def test_a_worse_first_method_is_named_second():
    found = sorted(found_of(5, budget="60s"), key=lambda record: record.spec.method)
    turned = pairs(found, 0.1, [("good", "linear"), ("bad", "linear")])
    (line,) = turned.to_dict("records")
    assert (line["a"], line["verdict"]) == ("bad", "worse")
    (sentence,) = sentences(turned, 0.1)
    assert sentence.startswith("good is better than bad")
    assert f": 10.0 points, 95 % interval {-100 * line['hi']:.1f} to {-100 * line['lo']:.1f}, 5 seeds" in sentence


def test_only_ranked_lines_are_compared():
    table = pairs(found_of(5, budget="60s"), 0.1, LINEAR[1:])
    assert list(zip(table["a"], table["b"], strict=True)) == [("close", "bad")]
    assert pairs(found_of(5, budget="60s"), 0.1, []).empty
    assert sentences(pairs([], 0.1, []), 0.1) == []


def test_times_are_compared_where_the_budget_leaves_them_open():
    table = pairs(found_of(5), 0.1, LINEAR)
    times = table[table["kind"] == "time"].set_index(["a", "b"])
    assert times["verdict"].to_dict() == {
        ("good", "close"): "tie",
        ("good", "bad"): "faster",
        ("close", "bad"): "faster",
    }
    assert times["ratio"]["good", "bad"] == pytest.approx(30.02 / 10.02)  # medians of five
    assert times["reason"]["good", "close"] == "ratio below 1.05"
    assert times["protocol"].isna().all()
    for none in (found_of(5, budget="60s"), found_of(4), found_of(5, environment=None, status="diverged")):
        assert "time" not in set(pairs(none, 0.1, LINEAR)["kind"])


def test_ten_sentences_and_how_many_are_left():
    table = pairs(found_of(4, "quick", budget="60s"), 0.1, LINEAR)
    assert ["is better than" in sentence for sentence in sentences(table, 0.1)] == [True] * 8
    text = sentences(table, 0.1, most=5)
    assert len(text) == 6
    assert text[-1] == "3 more differences can be claimed: claims.csv has them all."


def test_what_p_alone_would_claim_is_told_with_its_reason():
    table = pairs([record.model_copy(update={"probes": []}) for record in found_of(5)], 0.1, LINEAR)
    (sentence,) = sentences(table, 0.1)
    assert sentence == (
        "Not claimed, although p is at most 0.05, because of this: the probe band was not measured. "
        "good and bad; close and bad."
    )


def test_pairs_that_were_not_tested_are_counted_with_their_reason():
    others = found_of(5)
    others = [r.model_copy(update={"environment": None}) if r.spec.method == "bad" else r for r in others]
    assert sentences(pairs(others, 0.1, LINEAR), 0.1) == ["2 pairs were not tested: not on one class of hardware."]
