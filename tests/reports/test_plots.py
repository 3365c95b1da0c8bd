"""Figures say what they stand on, and survive any name and any gap."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import get_args

import pytest
from report_fixtures import CIFAR, DIGITS, METHODS, manifest, records

from methods.common.base import AdversaryName
from reports import plots
from reports.leaderboard import leaderboard
from reports.rows import rows


def drawn(name, asked, found, over=None):
    """The figure as SVG: its pixels, which take half of the time, are made by the test of a whole folder."""
    table, write = rows(asked, found), plots.encoded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "encoded", lambda figure, kind: write(figure, kind) if kind == "svg" else b"")
        return plots.render(name, asked, found, table, leaderboard(table, found, asked.main_eps), over)


def words(svg):
    """matplotlib writes each text as a comment above its letters, which are drawn as paths."""
    return [line.strip()[5:-4] for line in svg.decode().splitlines() if line.strip().startswith("<!-- ")]


@pytest.mark.parametrize("name", plots.FIGURES)
def test_says_data_set_seeds_images_and_level(name):
    asked = manifest(("simclr", "simclr_patch_adv", "cf_amc_ssl"), data=CIFAR, eps=(4 / 255, 8 / 255), seeds=2)
    pictures = drawn(name, asked, records(asked))
    text = words(pictures["svg"])
    assert "cifar10[2000/1000] · 2 seeds · budget 1m · quick evaluation, not comparable" in text
    assert ("SLF (linear probe), n = 300" if name == "robust_vs_eps" else "SLF (linear probe), n = 64") in text
    assert {"cf_amc_ssl", "simclr_patch_adv", "(1 of 2 diverged)"} <= set(text)
    assert not [node for node in ElementTree.fromstring(pictures["svg"]).iter() if node.tag.endswith("date")]


def test_axes_have_units():
    asked = manifest(METHODS[:3], data=CIFAR, eps=(4 / 255, 8 / 255), level="standard")
    text = words(drawn("clean_vs_robust", asked, records(asked))["svg"])
    assert {"clean accuracy (%)", "robust accuracy at eps 8/255 (%)", "Pareto front"} <= set(text)
    assert [word for word in text if re.fullmatch(r"[0-9.]+ s", word)] == ["59.7 s"]  # equal times are shown once
    assert not any("quick" in word for word in text)
    text = words(drawn("robust_vs_eps", asked, records(asked))["svg"])
    assert {"eps of the l-inf ball (255ths)", "0", "2", "4", "6", "8", "12", "16"} <= set(text)
    text = words(drawn("accuracy_vs_cost", asked, records(asked))["svg"])
    assert {"training time (s)", "training computation (FLOPs)", "accuracy (%)"} <= set(text)


def test_decimal_eps_stays_decimal():
    asked = manifest(("simclr_adv",))
    assert {"eps of the l-inf ball", "0.025", "0.1"} <= set(words(drawn("robust_vs_eps", asked, records(asked))["svg"]))


def test_a_bar_says_what_a_whole_training_took():
    asked = manifest(("simclr", "simclr_adv"))
    found = records(asked)
    assert plots._flops(asked, found)["simclr"] == pytest.approx(7.2e7 * 30 * DIGITS.train)
    text = words(drawn("accuracy_vs_cost", asked, found)["svg"])
    assert {"3.1e+12", "1.35e+13", "59.7", "59.6"} <= set(text)
    assert text.index("simclr_adv") < text.index("simclr")  # the more robust on top


def test_equal_costs_put_no_method_on_the_spot_of_another(monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "encoded", lambda figure, kind: (figures.append(figure), b"")[1])
    asked = manifest(METHODS)
    alike = [r.model_copy(update={"train": r.train.model_copy(update={"train_seconds": 60.0})}) for r in records(asked)]
    drawn("accuracy_vs_cost", asked, alike)
    *accuracies, seconds, _ = (axes for axes in figures[0].axes if axes.get_visible())
    assert len({bar.get_y() for bar in seconds.patches}) == len(seconds.patches) == len(METHODS)
    for axes in accuracies:
        marks = [line for line in axes.lines if line.get_marker() != "None"]
        lines = [tuple(line.get_ydata()) for line in marks]
        assert len(set(lines)) == len(marks) / 2 == len(METHODS) - 1  # one of them diverged


def test_a_method_keeps_its_colour_and_its_adversarys_marker():
    asked = manifest(("simclr", "simclr_free", "cf_amc_ssl"))
    found = records(asked)
    table = rows(asked, found)
    looks = plots._looks(table, leaderboard(table, found, 0.1))  # the leaderboard has another order
    assert [look.colour for look in looks.values()] == list(plots.PALETTE[:3])
    assert [look.marker for look in looks.values()] == ["o", "^", "^"]


@pytest.mark.parametrize("name", plots.FIGURES)
def test_hostile_names_and_gaps(name):
    names = ("$x_{", "<script>", "a--b", "y" * 200)
    asked = manifest(names)
    pictures = drawn(name, asked, records(asked, diverged=("<script>-s0",)))
    assert "$x_{" in words(pictures["svg"])
    assert not [node for node in ElementTree.fromstring(pictures["svg"]).iter() if node.tag.endswith("script")]
    nothing = records(asked, diverged=tuple(f"{name}-s0" for name in names))
    assert "$x_{" in words(drawn(name, asked, nothing)["svg"])


def without_autoattack(found, *methods):
    """As ``--attacks pgd`` leaves them, whose number is PGD's on all its images."""
    left = lambda record: [each for each in record.results if each.attack in ("none", "pgd")]  # noqa: E731
    return [
        record.model_copy(update={"results": left(record), "audits": []}) if record.spec.method in methods else record
        for record in found
    ]


def test_pgd_alone_is_drawn_with_its_own_images_and_is_no_worst_case():
    asked = manifest(("simclr_adv", "cf_amc_ssl"))
    found = without_autoattack(records(asked), "simclr_adv", "cf_amc_ssl")
    for name, said in [
        ("clean_vs_robust", "PGD alone"),
        ("accuracy_vs_cost", "PGD alone at eps 0.1"),
        ("robust_vs_eps", None),
    ]:
        text = set(words(drawn(name, asked, found)["svg"]))
        assert {"SLF (linear probe), n = 300", "multi-patch probe, n = 300"} <= text
        assert said is None or said in text
        assert not text & {"Pareto front", "robust at eps 0.1", "worst of PGD and", "n = 0"}


def test_pgd_alone_beside_worst_cases_is_told_apart():
    asked = manifest(("simclr_adv", "cf_amc_ssl"))
    found = without_autoattack(records(asked), "simclr_adv")
    text = set(words(drawn("clean_vs_robust", asked, found)["svg"]))
    assert {"SLF (linear probe), n = 64 to 300", "Pareto front", "PGD alone"} <= text
    text = set(words(drawn("accuracy_vs_cost", asked, found)["svg"]))
    assert {"robust at eps 0.1", "PGD alone at eps 0.1"} <= text


def test_a_long_title_is_broken_into_lines_that_its_panel_holds(monkeypatch):
    title = "Released head (2 epochs on clean images, then 2 on images of PGD, then 0 on clean images)"
    monkeypatch.setattr(plots, "titles", lambda specs: {"linear": title})
    asked = manifest(METHODS[:2])
    text = words(drawn("clean_vs_robust", asked, records(asked))["svg"])
    (begin,) = [place for place, word in enumerate(text) if word.startswith("released head")]
    assert " ".join(text[begin : begin + 3]) == f"{title.replace('R', 'r', 1)}, n = 64"
    assert max(map(len, text[begin : begin + 3])) <= plots.TITLE_WIDTH


def test_the_page_has_a_shape_for_each_adversary_and_one_for_any_other():
    script = (Path(plots.__file__).parent / "templates" / "charts.js").read_text(encoding="utf-8")
    shapes = script.partition("const MARKERS = [")[2].partition("];")[0]
    assert shapes.count("(r) =>") == len(plots.MARKERS) + 1
    assert plots.MARKERS.keys() == set(get_args(AdversaryName))
