"""FMN: exact distances on linear models, in the cell of an evaluation and without its package."""

import importlib.util
import math

import pytest
import torch
from evaluation_fixtures import QUICK, TEST, evaluated
from evaluation_fixtures import run as evaluate_tiny
from test_attack_oracles import correct, generator, linear_model
from test_attacks import scene

from attacks import fmn, fmn_l2
from attacks.common.package import load_fmn
from attacks.common.threat import geometry
from bench.evaluation.cells import plan_cells
from bench.evaluation.search import Cell
from bench.options.attacks import attack_fields
from bench.options.options import Options
from bench.spec import EvalSpec, ThreatModel, UsageError

needs_package = pytest.mark.skipif(importlib.util.find_spec("adv_lib") is None, reason="needs adv-lib, an extra")
DUAL = {"linf": 1, "l2": 2}
WIDE = {"linf": ThreatModel(eps=1), "l2": ThreatModel(norm="l2", eps=100)}


def exact(model, images, labels, norm):
    """min over j of (z_y - z_j) / ||w_y - w_j|| in the dual norm, in slow loops. The box is far away."""
    logits, weight = model(images), model[1].weight
    return torch.stack(
        [
            min(
                (z[y] - z[j]) / torch.linalg.norm(weight[y] - weight[j], DUAL[norm]) for j in range(len(z)) if j != y
            )
            for z, y in zip(logits, labels.tolist(), strict=True)
        ]
    )  # fmt: skip


@needs_package
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("classes", [2, 10])
def test_the_distance_on_linear_models_is_exact_to_one_percent(classes, norm):
    """All of them with two classes. With ten it may go to another class than the nearest: 93 % and 87 %."""
    model = linear_model(classes)
    images = 0.4 + 0.2 * torch.rand(60, 3, 4, 4, generator=generator(1))
    labels = model(images).argmax(1)
    attack = {"linf": fmn.Attack, "l2": fmn_l2.Attack}[norm]()
    moved = attack.perturb(model, images, labels, WIDE[norm], generator())
    assert not correct(model, moved, labels).any()
    off = geometry(WIDE[norm]).distance(moved, images) / exact(model, images, labels, norm) - 1
    assert off.min() > -1e-3  # logits are rounded, and some distances are tiny
    within = (off < 0.01).double().mean()
    assert within == 1 if classes == 2 else within >= 0.85


@needs_package
def test_what_is_further_than_the_threat_comes_back_clean():
    model, images, labels = scene("fmn")
    free = fmn.Attack().perturb(model, images, labels, WIDE["linf"], generator())
    away = geometry(WIDE["linf"]).distance(free, images)
    bar = float(away[:-1].median())
    held = fmn.Attack().perturb(model, images, labels, ThreatModel(eps=bar), generator())
    assert torch.equal(held[away <= bar], free[away <= bar])
    assert torch.equal(held[away > bar], images[away > bar])


@needs_package
def test_the_cell_keeps_the_distance_of_every_image_and_no_eps():
    spec = QUICK.model_copy(update={"attacks": ("fmn",), "minimum_norm": ("fmn",), "protocols": ("linear",)})
    shelf = evaluate_tiny(spec)
    result, clean = shelf.results["linear", "fmn", 1.0], shelf.results["linear", "none", 0.0]
    assert len(result.distances) == result.total == len(TEST)
    assert [distance is None for distance in result.distances] == [outcome == "1" for outcome in result.outcomes]
    assert [distance == 0 for distance in result.distances] == [outcome == "0" for outcome in clean.outcomes]
    assert result.apart
    # by hand, all in one batch
    classifier = evaluated(shelf, spec).stored_classifier("linear")
    images = TEST.pictures(slice(None), "cpu")
    moved = fmn.Attack().perturb(classifier, images, TEST.labels, WIDE["linf"], generator())
    expected = (moved - images).abs().amax((1, 2, 3)).tolist()
    assert [math.inf if each is None else each for each in result.distances] == pytest.approx(expected, rel=0.02)


def test_it_is_one_cell_in_a_ball_that_holds_every_image():
    spec = EvalSpec(
        attacks=("pgd", "fmn", "fmn_l2"), minimum_norm=("fmn", "fmn_l2"), attack_norms={"fmn_l2": "l2"}, eps_l2=(0.5,),
        protocols=("linear",),
    )  # fmt: skip
    cells = [cell for cell in plan_cells(spec, 20) if cell.attack.startswith("fmn")]
    assert cells == [Cell("linear", "fmn", 1.0, 20), Cell("linear", "fmn_l2", 1e4, 20, norm="l2")]


def test_threats_in_l2_bring_its_form():
    fields = attack_fields(Options(attacks="pgd,fmn", threats="l2:0.5"))
    assert fields["attacks"] == ("pgd", "fmn", "pgd_l2", "fmn_l2")
    assert fields["minimum_norm"] == ("fmn", "fmn_l2")


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    load_fmn.cache_clear()
    with pytest.raises(UsageError, match=r"^fmn needs adv-lib: pip install 'robust-ssl-bench\[minnorm\]', or pip"):
        load_fmn()


@pytest.mark.parametrize("setting", ["steps", "step", "shrink"])
def test_settings_that_are_none_are_refused(setting):
    with pytest.raises(UsageError, match="expected steps, step and shrink of fmn above 0"):
        fmn.Attack(**{setting: 0})
