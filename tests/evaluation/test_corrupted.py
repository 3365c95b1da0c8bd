"""Corrupted images: the same for everybody whatever the order, and their cell, resumed and apart from the attacks."""

import importlib.util

import numpy as np
import pytest
import torch
from evaluation_fixtures import QUICK, Shelf, evaluated, random_images
from evaluation_fixtures import run as evaluate_tiny

from bench.data import corruptions
from bench.data.corruptions import SEVERITIES, TYPES, corrupted
from bench.evaluation.cells import plan_cells
from bench.evaluation.corrupted import corrupted_cell
from bench.evaluation.search import Cell
from bench.options.door import check
from bench.options.options import Options
from bench.options.resolve import resolve
from bench.options.threats import check_images
from bench.spec import EvalSpec, UsageError

pytest.importorskip("imagecorruptions")

IMAGES = random_images(6, shape=(3, 32, 32))
SPEC = QUICK.model_copy(update={"corruption_images": 3, "protocols": ("linear",), "eps": (0.02,), "curve": ()})


def photo(side=32, channels=3, seed=0):
    """A smooth picture with an edge: on noise a blur would look as a contrast does."""
    across, down = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    planes = [(across + down * (seed + k + 1) / 3) % 1.2 / 1.2 for k in range(channels)]
    image = np.stack(planes, -1)
    image[side // 4 : side // 2, side // 3 :] *= 0.3
    return (255 * image).astype(np.uint8)


def test_the_types_are_those_of_the_package_in_the_order_of_the_paper() -> None:
    from imagecorruptions import get_corruption_names

    assert list(TYPES) == get_corruption_names("common")
    assert (len(TYPES), SEVERITIES) == (15, (1, 2, 3, 4, 5))


@pytest.mark.ci
@pytest.mark.parametrize("kind", TYPES)
def test_a_corruption_is_a_function_of_image_type_severity_and_place_alone(kind: str) -> None:
    image = photo()
    before, state = image.copy(), np.random.get_state()  # noqa: NPY002
    first = [corrupted(image, kind, severity, 4) for severity in SEVERITIES]
    np.random.seed(9)  # noqa: NPY002
    for severity in reversed(SEVERITIES):  # another order, other images between, another state of the process
        corrupted(photo(seed=1), kind, severity, 5)
        again = corrupted(image, kind, severity, 4)
        np.testing.assert_array_equal(again, first[severity - 1])
        assert (again.shape, again.dtype) == (image.shape, np.uint8)
    np.random.set_state(state)  # noqa: NPY002
    np.testing.assert_array_equal(image, before)
    assert all((each != image).any() for each in first)
    distances = [np.abs(each.astype(float) - image).mean() for each in first]
    assert distances[0] < distances[4]  # a higher severity is further away


def test_places_and_severities_draw_apart() -> None:
    image = photo()
    drawn = [corrupted(image, "gaussian_noise", 1, place) for place in (0, 1)]
    assert (drawn[0] != drawn[1]).mean() > 0.5


def test_numpy_draws_on_as_if_nothing_had_happened() -> None:
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.rand(4)  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    corrupted(photo(), "snow", 3, 0)
    np.testing.assert_array_equal(np.random.rand(4), expected)  # noqa: NPY002


def test_grey_images_stay_grey() -> None:
    assert corrupted(photo(channels=1), "frost", 2, 0).shape == (32, 32, 1)


def by_hand(it, classifier, count):
    """Outcomes in slow loops, one image at a time: type, severity, image."""
    said = ""
    for kind in TYPES:
        for severity in SEVERITIES:
            for place in range(count):
                image = it.test.images[place].permute(1, 2, 0).numpy()
                moved = torch.from_numpy(corrupted(image, kind, severity, place)).permute(2, 0, 1)[None].float() / 255
                said += str(int(classifier(moved).argmax() == it.test.labels[place]))
    return said


def test_the_cell_counts_every_image_under_every_type_and_severity_whatever_the_chunk() -> None:
    shelf = evaluate_tiny(SPEC, images=IMAGES)
    result = shelf.results["linear", "corruptions", 0.0]
    it = evaluated(shelf, SPEC, test=IMAGES)
    classifier = it.stored_classifier("linear")
    assert result.outcomes == by_hand(it, classifier, 3)
    assert result.complete
    assert [(name, count) for name, count in result.stages] == [
        (kind, result.outcomes[15 * n : 15 * (n + 1)].count("1")) for n, kind in enumerate(TYPES)
    ]
    assert result.config["package"].startswith("imagecorruptions")
    one = evaluated(Shelf(), SPEC.model_copy(update={"chunk": 1}), test=IMAGES)
    *_, last = corrupted_cell(one, classifier, Cell("linear", "corruptions", 0.0, 3))
    assert last.outcomes == result.outcomes
    assert last.config_hash == result.config_hash


def test_a_cell_goes_on_after_the_types_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    it = evaluated(shelf := evaluate_tiny(SPEC, images=IMAGES), SPEC, test=IMAGES)
    classifier, cell = it.stored_classifier("linear"), Cell("linear", "corruptions", 0.0, 3)
    parts = list(corrupted_cell(it, classifier, cell))
    assert [part.complete for part in parts] == [False] * 14 + [True]
    asked = []
    original = corruptions.corrupted
    monkeypatch.setattr(
        "bench.evaluation.corrupted.corrupted", lambda *given: (asked.append(given[1]), original(*given))[1]
    )
    *_, last = corrupted_cell(it, classifier, cell, parts[12])
    assert set(asked) == set(TYPES[13:])
    assert last.outcomes == shelf.results["linear", "corruptions", 0.0].outcomes
    other = parts[12].model_copy(update={"config_hash": "another"})
    assert len(list(corrupted_cell(it, classifier, cell, other))) == 15


def test_protocols_with_attacks_of_their_own_have_no_corruptions() -> None:
    spec = SPEC.model_copy(update={"protocols": ("linear", "published_eval")})
    assert [cell.protocol for cell in plan_cells(spec, 6) if cell.attack == "corruptions"] == ["linear"]
    assert not [cell for cell in plan_cells(QUICK, 6) if cell.attack == "corruptions"]


# ---------------------------------------------------------------- at the door


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 32, 31), (2, 32, 32), (4, 64, 64)])
def test_images_that_the_package_does_not_take_are_refused(shape: tuple[int, ...]) -> None:
    check_images(EvalSpec(corruption_images=1), (1, 32, 32))
    with pytest.raises(UsageError, match=rf"at least 32 x 32 pixels for the threat corruptions, got {shape[0]} x"):
        check_images(EvalSpec(corruption_images=1), shape)


def test_small_digits_are_refused_before_any_training() -> None:
    asked = Options(data="digits", methods="simclr", budget="1up", device="cpu", threats="corruptions")
    check(asked)
    with pytest.raises(UsageError, match="expected images of 1 or 3 channels and at least 32 x 32 pixels"):
        resolve(asked)


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    asked = Options(data="cifar10", methods="simclr", budget="1up", threats="linf:8/255,corruptions")
    with pytest.raises(UsageError, match=r"needs its package: pip install 'robust-ssl-bench\[corruptions\]'$"):
        check(asked)


def test_corruptions_alone_leave_the_radii_of_the_data_set() -> None:
    asked = Options(data="synthetic", methods="simclr", budget="1up", device="cpu", threats="corruptions", eps="0.1")
    check(asked)
    with pytest.raises(UsageError, match="for the threat corruptions, got 3 x 16 x 16"):
        resolve(asked)
