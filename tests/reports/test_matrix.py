"""The square of all pairs: antisymmetric, in the order of the lead, and bold where claims.csv claims something."""

import pytest
from report_fixtures import manifest

from reports.matrix import COLUMNS, matrices
from reports.pairs import pairs
from tests.reports.test_pairs import LINEAR, STAND, found_of

ASKED = manifest(tuple(STAND))


def square_of(table):
    """{(line, column): cell} by the names of the methods."""
    names = [line[0].split("  ")[1] for line in table["rows"]]
    return {
        (a, b): cell
        for a, line in zip(names, table["rows"], strict=True)
        for b, cell in zip(names, line[1:], strict=True)
    }


def test_a_cell_is_the_lead_of_its_line_and_its_mirror_the_same_with_the_other_sign():
    table = pairs(found_of(5), 0.1, LINEAR)
    accuracy, times = matrices(ASKED, table)
    cells = square_of(accuracy)
    assert [name for name, _ in cells][:: len(STAND)] == ["good", "close", "bad"]
    assert cells["good", "good"] == "·"
    assert cells["good", "bad"] == {"bold": "+10.0", "tone": "ahead", "small": "p < .001"}
    assert cells["bad", "good"] == {"bold": "−10.0", "tone": "behind", "small": "p < .001"}
    p = table.set_index(["kind", "a", "b"])["adjusted"]["method", "good", "close"]
    assert cells["good", "close"] == {"text": "+0.2", "small": f"p {p:.3f}".replace("0.", ".").replace("1.000", "1")}
    faster = square_of(times)
    assert faster["good", "bad"]["bold"] == "3.00"
    assert faster["bad", "good"] | {"small": ""} == {"bold": "0.33", "tone": "behind", "small": ""}
    assert "text" in faster["good", "close"]


def test_encoders_of_several_seeds_share_a_square_with_the_largest_p():
    table = pairs(found_of(3, "quick", budget="60s"), 0.1, LINEAR)
    (square,) = matrices(ASKED, table)
    cells = square_of(square)
    claims = table[table["kind"] == "encoder"].set_index(["a", "b"])
    assert cells["good", "bad"]["bold"] == f"{100 * claims['difference']['good', 'bad'].mean():+.1f}"
    assert cells["good", "close"]["small"] == "p 1"
    assert "Encoders, seed by seed" in square["caption"]


def test_a_pair_that_was_not_tested_has_no_p():
    records = found_of(5, budget="60s")
    records = [r.model_copy(update={"environment": None}) if r.spec.method == "bad" else r for r in records]
    (square,) = matrices(ASKED, pairs(records, 0.1, LINEAR))
    assert square_of(square)["good", "bad"] == {"text": "+10.0", "small": ""}


def test_a_square_of_many_methods_is_cut_into_tables_that_fit_on_a_page():
    methods = [f"m{place}" for place in range(COLUMNS + 3)]
    by_name = {record.spec.method: record for record in found_of(5, budget="60s")[: len(STAND)]}
    first = by_name["good"]
    records = [
        first.model_copy(update={"spec": first.spec.model_copy(update={"method": name, "seed": seed})})
        for name in methods
        for seed in range(5)
    ]
    table = pairs(records, 0.1, [(name, "linear") for name in methods])
    one, two = matrices(ASKED, table)
    assert [len(part["columns"]) for part in (one, two)] == [1 + COLUMNS, 1 + 3]
    assert {len(part["rows"]) for part in (one, two)} == {len(methods)}
    assert [row[0] for row in one["rows"]] == [row[0] for row in two["rows"]]


@pytest.mark.parametrize("ranked", [[], LINEAR[:1]])
def test_nothing_to_compare_is_no_square(ranked):
    assert matrices(ASKED, pairs(found_of(5, budget="60s"), 0.1, ranked)) == []
