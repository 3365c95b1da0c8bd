"""The masking alarm: PGD far above AutoAttack, against binomial sums written out, and on the zoo."""

from math import comb

import pytest
from audit_fixtures import result, subject
from zoo import broken, healthy

from bench.audit.checks.masking import GAP, GAP_P, masking


def published(pgd, autoattack, eps=0.1, robust=True):
    """A subject of these outcomes at the main eps."""
    cells = {("pgd", eps): result("pgd", eps, pgd), ("autoattack", eps): result("autoattack", eps, autoattack)}
    return subject(eps=eps, results=cells, robust=robust)


def apart(count, n):
    """PGD leaves all of n images standing and AutoAttack breaks so many of them."""
    return masking(published("1" * n, "0" * count + "1" * (n - count)))


def fewest(n):
    """The fewest of n images whose share is above GAP for sure: P(X >= k) < GAP_P for X ~ Bin(n, GAP), summed."""
    tail, k = 0.0, n + 1
    while tail < GAP_P:
        k -= 1
        tail += comb(n, k) * GAP**k * (1 - GAP) ** (n - k)
    return k + 1


@pytest.mark.parametrize(("n", "count"), [(10, 5), (32, 9), (64, 13), (300, 44), (1000, 124)])
def test_it_warns_from_the_fewest_images_that_chance_does_not_explain(n, count):
    assert fewest(n) == count
    assert apart(count, n).verdict == "WARN"
    assert apart(count - 1, n).verdict == "PASS"


def test_one_image_never_warns():
    assert apart(1, 1).verdict == "PASS"


def test_its_value_is_the_difference_on_the_images_that_both_saw():
    check = masking(published("1110" + "1" * 96, "0011"))
    assert (check.value, check.n, check.note) == (0.25, 4, "PGD 3, AutoAttack 2 of 4")
    assert masking(published("0011", "1110")).value == -0.25  # PGD may be the stronger one
    assert masking(published("0011", "1110")).verdict == "PASS"


def test_it_judges_a_number_of_zero_too_and_asks_the_model_nothing():
    zero = published("1" * 64, "0" * 64, robust=False)
    assert masking(zero).verdict == "WARN"
    assert zero.model.passes == 0


def test_without_one_of_the_two_it_has_not_run():
    for cells in ({}, {("pgd", 0.1): result("pgd", 0.1, "11")}):
        assert masking(subject(results=cells)).verdict == "NOT_RUN"
    assert masking(published("", "")).verdict == "NOT_RUN"


@pytest.mark.ci
@pytest.mark.parametrize("name", healthy.NAMES)
def test_no_healthy_encoder_sets_it_off(name):
    check = masking(healthy.make(name))
    assert check.verdict == "PASS"
    assert check.value <= 0.11


def test_logits_that_saturate_the_cross_entropy_set_it_off():
    check = masking(broken.BROKEN["logits x 1e4"].make())
    assert check.verdict == "WARN"
    assert check.value > 0.3
