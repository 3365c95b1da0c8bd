"""The pictures: what is drawn is what was stored, and the predictions are those of the classifier."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from bench.evaluation.examples import COUNT, LARGEST, magnified, picture
from bench.storage.store import Example, Examples


def pixels(encoded):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_holds_the_pixels_of_the_image(channels):
    image = torch.rand(channels, 7, 5, generator=torch.Generator().manual_seed(0))
    found = pixels(picture(image))
    expected = (image * 255).round().permute(1, 2, 0).numpy()
    assert (found.reshape(7, 5, channels) == expected).all()


def test_a_large_image_is_drawn_small_and_in_proportion():
    assert pixels(picture(torch.rand(3, 224, 112))).shape == (LARGEST, LARGEST // 2, 3)


def test_the_perturbation_is_grey_at_zero_and_full_at_eps():
    assert magnified(torch.tensor([-0.1, 0.0, 0.05, 0.1]), 0.1).tolist() == pytest.approx([0.0, 0.5, 0.75, 1.0])
    assert magnified(torch.zeros(2), 0.0).tolist() == [0.5, 0.5]


def test_pictures_are_base64_and_nothing_else():
    plain = {
        "label": 0,
        "before": 0,
        "after": 1,
        "attack": "pgd",
        "image": "aGk=",
        "adversarial": "",
        "perturbation": "",
    }
    assert Examples(protocol="linear", eps=0.1, examples=[Example(**plain)]).examples[0].image == "aGk="
    for hostile in ('"><script>', "data:text/html,x", "aGk=\n", "a b"):
        with pytest.raises(ValueError, match="image"):
            Example(**plain | {"image": hostile})


def test_a_run_ends_with_its_pictures(tmp_path):
    from bench.runs.execute import execute
    from bench.spec import Budget, DataSpec, EvalSpec, RunSpec
    from bench.storage.signals import StopFlag
    from bench.storage.store import RunFolder

    spec = RunSpec(
        method="simclr",
        data=DataSpec(name="synthetic", test_images=16),
        budget=Budget(amount=2, unit="updates"),
        settings={"batch": 6, "feature_width": 16, "hidden_width": 16, "embedding_width": 8},
        encoder="resnet8",
        threads=1,
        eval=EvalSpec(attacks=("pgd",), eps=(0.1,), protocols=("linear",), curve=(), pgd_images=8, audit="off"),
    )
    execute(tmp_path, spec, lambda event: None, StopFlag())
    run = RunFolder(tmp_path, spec)
    (found,) = run.examples()
    moved = run.adversarial("linear", "pgd")
    stands = run.result("linear", "pgd", 0.1).outcomes
    assert len(found.examples) == COUNT
    for place, example in enumerate(found.examples):
        assert (example.after == example.label) == (stands[place] == "1")
        assert (pixels(example.adversarial) == (moved[place] * 255).round().permute(1, 2, 0).numpy()).all()
