"""What stands apart: corrupted images and distances, in files and tables of their own and in no other."""

import pandas as pd
import pytest
from report_fixtures import manifest, records, write

from bench.known import SEVERITIES, TYPES
from bench.record import EvalResult
from reports import threats
from reports.build import build
from reports.compare import _results
from reports.regression import series_of
from reports.rows import rows

ASKED = manifest(("simclr_adv",))
FORMS = [(kind, severity) for kind in TYPES for severity in SEVERITIES]


def cell(attack, **given):
    return EvalResult(protocol="linear", attack=attack, threat_space="image", seconds=1.0, **given)


@pytest.fixture
def found():
    """A run with four corrupted images, of which snow at severity 3 leaves none right, and with five distances."""
    plain = records(ASKED, diverged=())
    outcomes = "".join("0000" if form == ("snow", 3) else "1110" for form in FORMS)
    more = [
        cell("corruptions", eps=0.0, outcomes=outcomes),
        cell("fmn", eps=1.0, outcomes="00010", distances=[0.0, 0.02, 0.03, None, 0.01]),
    ]
    return plain, [plain[0].model_copy(update={"results": [*plain[0].results, *more]}), *plain[1:]]


def test_every_form_is_a_row_and_the_worst_is_named(found):
    _, with_threats = found
    table = threats.corrupted(ASKED, with_threats)
    assert list(zip(table["type"], table["severity"], strict=True)) == FORMS
    assert table["accuracy"].tolist() == [0.0 if form == ("snow", 3) else 0.75 for form in FORMS]
    assert set(table["threat"]) == {"corruptions (regenerated)"}
    (section, _) = threats.sections(ASKED, with_threats)
    (line,) = section["tables"][0]["rows"]
    mean, snow = 100 * 0.75 * 74 / 75, 100 * 0.75 * 4 / 5
    assert line[3:] == [f"{mean:.1f}", f"{snow:.1f}", "snow", "0.0", "snow 3", "4"]
    assert "not the arrays of CIFAR-10-C" in section["text"]


def test_the_curve_of_distances_is_counted_in_slow_loops(found):
    _, with_threats = found
    table = threats.distances(ASKED, with_threats)
    assert set(table["median"]) == {0.02}
    assert set(zip(table["broken"], table["total"], strict=True)) == {(4, 5)}
    for eps, accuracy in zip(table["eps"], table["accuracy"], strict=True):
        assert accuracy == sum(distance > eps for distance in (0.0, 0.02, 0.03, 9e9, 0.01)) / 5
    assert table["accuracy"].tolist()[:1] == [0.8]
    assert table["accuracy"].tolist()[-1:] == [0.2]
    (line,) = threats.sections(ASKED, with_threats)[1]["tables"][0]["rows"]
    assert line[3:] == ["fmn", "linf", "2.55", "5.1", "7.65", "4 of 5"]


def test_an_incomplete_cell_has_no_rows(found):
    _, with_threats = found
    results = [r.model_copy(update={"complete": r.attack != "corruptions"}) for r in with_threats[0].results]
    assert threats.corrupted(ASKED, [with_threats[0].model_copy(update={"results": results})]).empty


def test_they_are_in_no_other_table(found):
    plain, with_threats = found
    pd.testing.assert_frame_equal(rows(ASKED, with_threats), rows(ASKED, plain))
    assert _results(with_threats[0]) == _results(plain[0])
    assert series_of("simclr_adv", with_threats[:1]) == series_of("simclr_adv", plain[:1])


@pytest.mark.ci
def test_a_report_has_them_where_they_are_and_is_as_before_where_not(found, tmp_path):
    plain, with_threats = found
    write(tmp_path / "plain", ASKED, plain)
    write(tmp_path / "more", ASKED, with_threats)
    assert build(tmp_path / "plain") == build(tmp_path / "more") == []
    assert not list((tmp_path / "plain").glob("corruptions.csv")) + list((tmp_path / "plain").glob("distances.csv"))
    assert len(pd.read_csv(tmp_path / "more" / "corruptions.csv")) == 75
    assert len(pd.read_csv(tmp_path / "more" / "distances.csv")) == threats.POINTS + 1
    names = ("results.csv", "leaderboard.csv", "claims.csv")
    assert all((tmp_path / "plain" / n).read_bytes() == (tmp_path / "more" / n).read_bytes() for n in names)
    page = (tmp_path / "more" / "report.html").read_text()
    assert "Accuracy under corruptions (regenerated)." in page
    assert "Distance to the nearest adversarial image" in page
    assert "regenerated" not in (tmp_path / "plain" / "report.html").read_text()
