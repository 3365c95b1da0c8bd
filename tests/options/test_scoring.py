"""--attack-images: how many images each attack of a quick evaluation gets, and the suite of `make run` that uses it."""

import pytest
import torch

from bench import registry
from bench.evaluation.cells import plan_cells
from bench.options.door import check
from bench.options.options import Options, load_suite, options_of
from bench.options.resolve import resolve
from bench.options.scoring import QUICK_IMAGES, asked_images, evaluation
from bench.spec import EvalSpec, UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {}),
        ("pgd=100", {"pgd_images": 100}),
        ("autoattack=8", {"autoattack_images": dict.fromkeys(
            ("linear", "multi_patch", "linear_backbone", "published_eval"), 8)}),
        ("autoattack.multi_patch=4", {"autoattack_images": QUICK_IMAGES["autoattack_images"] | {"multi_patch": 4}}),
        ("curve.linear=5, pgd=9", {"pgd_images": 9, "curve_images": {"multi_patch": 100, "linear": 5}}),
        ("band=7", {"band_images": 7}),
    ],
)  # fmt: skip
def test_what_is_said_changes_and_the_rest_stays_that_of_the_level(text, expected):
    found = asked_images(Options(attack_images=text))
    assert found == expected
    EvalSpec.model_validate(found)


@pytest.mark.parametrize("text", ["pgd", "pgd=0", "pgd=-3", "pgd=x", "band.linear=3", "fgsm=3", "=3", "autoattack=1.5"])
def test_anything_else_is_refused(text):
    with pytest.raises(UsageError, match="expected --attack-images such as pgd=100"):
        asked_images(Options(attack_images=text))


FULL = {"data": "digits", "methods": "simclr", "budget": "1up", "device": "cpu", "eval": "full", "protocols": "linear"}


@pytest.mark.parametrize(
    "text", ["pgd=9", "autoattack=9", "autoattack.linear=9", "autoattack.linear_backbone=9,band=9", "curve.linear=9"]
)
def test_the_images_of_a_ranked_number_are_those_of_the_level(text):
    with pytest.raises(UsageError, match=r"not ranked \(autoattack.linear_backbone\), got"):
        resolve(options_of(FULL | {"attack_images": text}))


@pytest.mark.parametrize(("level", "rest"), [("full", None), ("standard", 1000)])
def test_commas_alone_ask_for_nothing(level, rest):
    spec = resolve(options_of(FULL | {"eval": level, "attack_images": ", ,"}))[0][0].eval
    assert spec.autoattack_images.get("linear") == rest


@pytest.mark.parametrize(("level", "rest"), [("full", None), ("standard", 1000)])
def test_a_column_that_is_not_ranked_may_have_fewer_images_under_autoattack(level, rest):
    protocols = "linear,linear_backbone"
    asked = FULL | {"eval": level, "protocols": protocols, "attack_images": "autoattack.linear_backbone=64"}
    spec = resolve(options_of(asked))[0][0].eval
    assert (spec.autoattack_images["linear_backbone"], spec.autoattack_images.get("linear")) == (64, rest)
    counts = {cell.protocol: cell.images for cell in plan_cells(spec, 297) if cell.attack == "autoattack"}
    assert counts == {"linear": 297, "linear_backbone": 64}


def test_make_run_asks_all_methods_under_both_protocols_for_the_same_numbers_everywhere():
    options = options_of(load_suite("quick"))
    check(options)
    specs, budget, _, data = resolve(options)
    assert len(specs) == 9
    assert (str(budget), {spec.threads for spec in specs}, data.test) == ("100up", {1}, 100)
    cells = {(c.protocol, c.attack, c.curve): c.images for c in plan_cells(specs[0].eval, data.test)}
    assert {key: n for key, n in cells.items() if key[1] == "autoattack"} == {
        ("linear", "autoattack", False): 32,
        ("multi_patch", "autoattack", False): 4,
    }
    assert (cells["linear", "pgd", False], cells["multi_patch", "pgd", True], specs[0].eval.audit) == (100, 32, "core")


def test_a_search_in_tf32_is_asked_for_by_an_option_on_a_gpu_only():
    dataset = registry.load("dataset", "digits").Dataset()
    asked = Options(search="tf32")
    assert evaluation(asked, dataset, torch.device("cuda")).search == "tf32"
    assert evaluation(Options(), dataset, torch.device("cuda")).search == "fp32"
    with pytest.raises(UsageError, match=r"^expected --search tf32 on a GPU, .*, got cpu$"):
        evaluation(asked, dataset, torch.device("cpu"))
