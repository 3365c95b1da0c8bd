"""What a leaderboard cannot see: against other people's power analyses, simulations and orders that are known."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_fixtures import manifest, records, write
from scipy.stats import nct, t

from reports.build import build
from reports.claims import ALPHA, MARGIN, SEEDS, Outcomes, claims
from reports.limits import POWER, STEP, between_encoders, limits, order_kept, sentence, shift_found
from reports.power import mcnemar_power


def method(name, outcomes, levels=("full",)):
    outcomes = np.atleast_2d(np.asarray(outcomes, dtype=np.uint8))
    seeds = tuple(range(len(outcomes)))
    return Outcomes(name, seeds, outcomes, hardware=("cpu",), levels=levels, band=None)


def drawn(rng, accuracy, difficulty, seeds):
    """Outcomes (seeds, n) of a method: its images differ in how hard they are, its seeds in how good they are."""
    chance = 1 / (1 + np.exp(-(np.log(accuracy / (1 - accuracy)) + difficulty + rng.normal(0, 0.1, (seeds, 1)))))
    return rng.random((seeds, len(difficulty))) < chance


@pytest.mark.parametrize("freedom", [4.0, 8.0, 32.0])
@pytest.mark.parametrize("level", [0.05, 0.05 / 36])
def test_the_shift_is_that_of_a_power_analysis(freedom, level):
    shift = shift_found(freedom, level)
    assert nct.sf(t.isf(level / 2, freedom), freedom, shift) == pytest.approx(POWER, abs=1e-6)


def test_a_difference_of_that_size_is_found_as_often_as_it_says():
    """Tables of two methods whose true difference is what such a table says that it finds, on average."""
    rng, images = np.random.default_rng(0), 300
    hard = rng.normal(0, 1.5, images)
    told = [
        limits([method("a", drawn(rng, 0.5, hard, SEEDS)), method("b", drawn(rng, 0.5, hard, SEEDS))])
        for _ in range(60)
    ]
    size = float(np.mean([each.detectable for each in told]))
    gained, found = [], 0
    for _ in range(400):
        hard = rng.normal(0, 1.5, images)
        better, usual = drawn(rng, 0.5 + 1.45 * size, hard, SEEDS), drawn(rng, 0.5, hard, SEEDS)
        (claim,) = claims([method("a", better), method("b", usual)])
        gained.append(claim.difference)
        found += claim.p < ALPHA
    assert np.mean(gained) == pytest.approx(size, rel=0.2)  # logits are not shares: the gain was set by trial
    assert found / 400 == pytest.approx(POWER, abs=0.12)


def test_between_encoders_the_smallest_step_is_named():
    rng = np.random.default_rng(1)
    a, b = (method(name, rng.random(500) < share) for name, share in (("a", 0.6), ("b", 0.5)))
    changed = float((a.outcomes != b.outcomes).mean())
    found = between_encoders([a, b])
    assert mcnemar_power(500, changed, found, ALPHA / 2) >= POWER > mcnemar_power(500, changed, found - STEP, ALPHA / 2)


def test_encoders_of_several_seeds_are_told_apart_where_every_seed_says_so():
    rng = np.random.default_rng(3)
    one = [method(name, rng.random((1, 500)) < share) for name, share in (("a", 0.6), ("b", 0.5))]
    four = [method(m.method, np.repeat(m.outcomes, 4, axis=0)) for m in one]
    changed = float((one[0].outcomes != one[1].outcomes).mean())
    found = between_encoders(four)  # the family is four tests, and each has to find it
    assert found > between_encoders(one)
    for size, enough in ((found, True), (found - STEP, False)):
        assert (mcnemar_power(500, changed, size, ALPHA / 4 / 2) ** 4 >= POWER) is enough


def test_what_may_not_be_compared_finds_nothing_and_no_claim_is_below_the_margin():
    rng = np.random.default_rng(4)
    a, b = (method(name, rng.random((SEEDS, 300)) < 0.5) for name in "ab")
    other = Outcomes("b", b.seeds, b.outcomes, hardware=("gpu",), levels=("full",), band=None)
    assert limits([a, b]).detectable > MARGIN
    assert limits([a, other]).detectable is None
    huge = np.tile(np.arange(4000) % 2, (SEEDS, 1))
    close = huge.copy()
    close[np.arange(SEEDS), np.arange(SEEDS)] ^= 1  # an image of each seed
    assert limits([method("a", huge), method("b", close)]).detectable == MARGIN


def test_few_images_find_nothing():
    a, b = method("a", [1, 1, 1, 0]), method("b", [1, 1, 0, 1])
    assert limits([a, b]).detectable is None
    assert limits([a]) is None
    assert limits([a, a]).detectable is None  # nothing changes between the two: nothing is known of how much does


def test_an_order_that_holds_on_every_image_is_kept_and_one_of_noise_half_the_time():
    rng = np.random.default_rng(2)
    base = rng.random(200)
    assert order_kept(np.stack([base + 0.2, base + 0.1, base])) == 1.0
    assert order_kept(rng.random((20, 200))) == pytest.approx(0.5, abs=0.06)
    assert order_kept(np.stack([base, base])) == 1.0


@given(st.integers(2, 5), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_share_is_a_share(count, images, seed):
    kept = order_kept(np.random.default_rng(seed).integers(0, 2, (count, images)).astype(float))
    assert 0 <= kept <= 1


def test_what_is_said():
    line = {"detectable": 0.0834, "order_kept": 0.957}
    order = "96 % of its pairs keep their order between two halves of the images."
    found = "Between neighbours this table would find a true difference of 8.3 points in 80 % of repetitions"
    none = "Between neighbours this table would find no difference: too few images differ, or none may be compared"
    assert sentence(line) == f"{found}; {order}"
    assert sentence(line | {"detectable": None}) == f"{none}; {order}"
    assert sentence({"order_kept": float("nan"), "detectable": None}) == sentence({}) == ""


def test_every_table_and_page_says_it(tmp_path):
    run = manifest(("simclr_adv", "cf_amc_ssl", "emp_ssl_adv"), seeds=2)
    write(tmp_path, run, records(run))
    assert build(tmp_path, texts=["md"]) == []
    board = pd.read_csv(tmp_path / "leaderboard.csv")
    ranked = board[board["rank_lo"].notna()]
    assert len(ranked)
    for _, lines in ranked.groupby("protocol"):
        assert lines["order_kept"].nunique() == 1
        said = sentence(lines.iloc[0])
        assert said
        assert said in (tmp_path / "report.html").read_text(encoding="utf-8")
        assert said in (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert board[board["rank_lo"].isna()]["order_kept"].isna().all()
