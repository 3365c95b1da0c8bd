"""Threats by --threats and --eps: what is asked for, which attacks come with it, and what is refused at the door."""

import math
from pathlib import Path

import pytest

from bench.commands.evaluate import gather
from bench.evaluation.attack_cell import build_attack
from bench.evaluation.cells import plan_cells
from bench.evaluation.search import Cell
from bench.options.door import check
from bench.options.options import Options, asked_attacks, load_suite, options_of
from bench.options.resolve import resolve
from bench.options.threats import Threats, check_images, parse_threats
from bench.radius import parse_radius
from bench.spec import EvalSpec, UsageError

L2 = str(Path(__file__).parents[1] / "plugins" / "l2.py")
ASKED = {"data": "synthetic", "methods": "simclr", "budget": "1up", "device": "cpu", "protocols": "linear"}


def asked(**changes: str) -> Options:
    return options_of(ASKED | changes)


def test_radii_of_both_norms_are_told_apart() -> None:
    assert parse_threats("l2:1.5,8/255, l2:128/255,0.1", None).radii == {
        "linf": (8 / 255, 0.1),
        "l2": (128 / 255, 1.5),
    }
    assert parse_threats("l2:0.5", None).radii == {"l2": (0.5,)}  # l-inf is then the data set's
    assert parse_threats(None, None) == Threats()
    assert parse_radius("linf:8/255") == ("linf", 8 / 255)


@pytest.mark.parametrize("option", ["eps", "threats"])
@pytest.mark.parametrize(
    ("radii", "message"),
    [
        ("l2:0", "expected eps above 0, got 'l2:0'"),
        (",", "expected eps above 0, got ','"),
        ("l1:0.5", "unknown norm 'l1'; known: linf, l2"),
        ("l2:x", "expected a radius in l2 such as l2:0.5 or l2:128/255, got 'l2:x'"),
        ("l2:-1", "expected a radius in l2 of at least 0, got l2:-1"),
        ("l2:inf", "got l2:inf"),
        ("l2:nan", "got l2:nan"),
        ("linf:8", r"expected eps in \[0, 1\], got 8; did you mean 8/255"),
        ("l2:0.5,l2:0.50000001", "expected eps that differ"),
    ],
)
def test_a_radius_that_is_none_is_refused(option: str, radii: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_threats(**({"eps": None, "threats": None} | {option: radii}))


def test_threats_bring_the_forms_of_the_attacks_and_eps_does_not() -> None:
    both = asked(threats="linf:8/255,l2:0.5,l2:1")
    assert [*asked_attacks(both)] == ["pgd", "autoattack", "pgd_l2", "autoattack_l2"]
    assert [*asked_attacks(asked(threats="l2:0.5", attacks=f"pgd,{L2}"))] == ["pgd", "l2", "pgd_l2"]
    assert [*asked_attacks(asked(threats="linf:8/255"))] == ["pgd", "autoattack"]
    assert [*asked_attacks(asked(eps="l2:0.5", attacks=f"pgd,{L2}"))] == ["pgd", "l2"]
    check(both)
    (spec,), *_ = resolve(both)
    assert (spec.eval.eps, spec.eval.main_eps, spec.eval.eps_l2) == ((8 / 255,), 8 / 255, (0.5, 1.0))
    assert spec.eval.attack_norms == {"pgd_l2": "l2", "autoattack_l2": "l2"}


def test_a_radius_is_given_once() -> None:
    with pytest.raises(UsageError, match=r"expected the radii in linf once, got --eps 0\.1 and --threats linf:8/255"):
        check(asked(eps="0.1", threats="linf:8/255"))
    assert parse_threats("0.1", "l2:0.5").radii == {"linf": (0.1,), "l2": (0.5,)}


def test_an_attack_without_a_form_in_a_norm_is_no_attack_for_it() -> None:
    with pytest.raises(UsageError, match=r"expected an attack in l2 .* got fgsm; --threats l2:0.5 brings those of pgd"):
        check(asked(threats="l2:0.5", attacks="fgsm"))


def test_the_forms_have_the_settings_and_images_of_their_attacks() -> None:
    spec = EvalSpec(
        attacks=("pgd", "autoattack", "pgd_l2", "autoattack_l2"), attack_norms={"pgd_l2": "l2", "autoattack_l2": "l2"},
        eps_l2=(0.5, 1.0), restarts=4, autoattack_batch=7, autoattack_images={"linear": 5}, protocols=("linear",),
    )  # fmt: skip
    cells = [cell for cell in plan_cells(spec, 20) if cell.norm == "l2"]
    assert [(cell.attack, cell.eps, cell.images) for cell in cells] == [
        ("pgd_l2", 0.5, 20), ("pgd_l2", 1.0, 20), ("autoattack_l2", 0.5, 5), ("autoattack_l2", 1.0, 5),
    ]  # fmt: skip
    assert plan_cells(spec, 20)[-3:] == [Cell("linear", "autoattack", 0.1, 5), *cells[2:]]  # what is dear comes last
    pgd, autoattack = (build_attack(cell, spec).describe(10) for cell in cells[1:3])
    assert (pgd["restarts"], pgd["norm"], pgd["steps"], autoattack["batch"]) == (4, "l2", 20, 7)


@pytest.mark.parametrize(("shape", "eps"), [((3, 32, 32), 55.5), ((1, 8, 8), 8.1)])
def test_a_ball_wider_than_the_box_is_refused(shape: tuple[int, ...], eps: float) -> None:
    check_images(EvalSpec(eps_l2=(math.sqrt(math.prod(shape)),)), shape)
    with pytest.raises(UsageError, match=r"radii in l2 of at most .* two images of . x \d+ x \d+ pixels can be, got"):
        check_images(EvalSpec(eps_l2=(0.5, eps)), shape)


def test_it_is_refused_before_any_training() -> None:
    with pytest.raises(UsageError, match=r"expected radii in l2 of at most 27\.71, .* got 28"):
        resolve(asked(threats="l2:28"))


def test_a_suite_and_an_evaluation_of_anybodys_model_take_the_same(tmp_path: Path) -> None:
    suite = tmp_path / "mine.toml"
    suite.write_text('threats = "linf:8/255,l2:0.5"\nbudget = "1up"\n')
    assert asked_attacks(options_of(ASKED | load_suite(str(suite)))).keys() >= {"pgd_l2", "autoattack_l2"}
    given = dict.fromkeys(["architecture", "normalize", "name", "image_size", "classes", "data_root", "train_images",
                           "test_images", "eval", "audit", "threads", "eps"])  # fmt: skip
    given |= {"kind": "classifier", "data": "synthetic", "device": "cpu", "settings": ()}
    found = gather("bench.cli:main", None, **given, attacks="pgd", threats="l2:0.5").eval
    assert (found.attacks, found.eps_l2) == (("pgd", "pgd_l2"), (0.5,))
