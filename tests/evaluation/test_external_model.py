"""Anybody's model: taken as it is, and refused in one line where it is unusable."""

import re
import sys

import pytest
import torch
from evaluation_fixtures import CPU, generator, random_images
from foreign_fixtures import importable, refused, saved, untrained
from torch import nn

from bench.encoders.common.folding import fold_batch_norm
from bench.evaluation.external_model import Foreign, call_factory, check_module, load_module, mean_and_std
from bench.options.external_request import check_source, parse_normalize


@pytest.fixture
def models(tmp_path):
    with importable(tmp_path):
        yield


@pytest.fixture
def weights():
    return untrained()


# ---------------------------------------------------------------- a file of weights


def test_a_file_is_loaded_into_the_architecture_to_the_last_bit(weights, tmp_path):
    module = load_module(saved(weights, tmp_path), "resnet8", 1, ())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items())
    assert module(torch.rand(2, 1, 16, 16)).shape == (2, 16)
    assert not module.training
    assert not any(weight.requires_grad for weight in module.parameters())


def test_loading_draws_nothing_from_the_global_generator(weights, tmp_path):
    state = torch.get_rng_state()
    load_module(saved(weights, tmp_path), "resnet8", 1, ())
    assert torch.equal(torch.get_rng_state(), state)


def test_whatever_does_not_fit_is_listed(weights, tmp_path):
    del weights["backbone.0.weight"]
    weights["projector.weight"] = torch.zeros(2)
    weights["feature_layer.0.bias"] = torch.zeros(5)
    message = refused(load_module, saved(weights, tmp_path), "resnet8", 1, ())
    assert "does not fit resnet8 with 1 channels" in message
    assert "missing: backbone.0.weight" in message
    assert "unexpected: projector.weight" in message
    assert "shapes: feature_layer.0.bias (5,) for (16,)" in message


@pytest.mark.parametrize(
    ("architecture", "channels", "found"),
    [
        ("resnet8", 3, "shapes: backbone.0.weight (16, 1, 3, 3) for (16, 3, 3, 3)"),
        ("resnet18", 1, " more"),  # most names differ: the first ones and a count
        ("resnet80", 1, "unknown encoder 'resnet80'; did you mean 'resnet8"),
    ],
)
def test_weights_of_another_architecture_are_refused(weights, tmp_path, architecture, channels, found):
    message = refused(load_module, saved(weights, tmp_path), architecture, channels, ())
    assert found in message
    assert len(message) < 1000


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.uint8, torch.float8_e4m3fn, torch.complex64])
def test_numbers_that_are_no_weights_are_refused_with_their_type(weights, tmp_path, dtype):
    name = "backbone.0.weight"
    weights[name] = (weights[name] * 20).to(dtype)
    message = refused(load_module, saved(weights, tmp_path), "resnet8", 1, ())
    assert f"types: {name} {str(dtype).removeprefix('torch.')} for float32" in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(weights, tmp_path, dtype):
    cast = {name: tensor.to(dtype) for name, tensor in weights.items()}  # counters too, as ``half()`` of all has it
    module = load_module(saved(cast, tmp_path), "resnet8", 1, ())
    expected = weights["backbone.0.weight"].to(dtype).float()
    assert torch.equal(module.state_dict()["backbone.0.weight"], expected)


# ---------------------------------------------------------------- what the messages advise


def test_the_prefix_of_a_trainer_is_named_and_comes_off_as_advised(weights, tmp_path):
    prefixed = {f"model.{name}": tensor for name, tensor in weights.items()}
    message = refused(load_module, saved(prefixed, tmp_path), "resnet8", 1, ())
    assert "save them without 'model.'" in message
    without = eval(message.rpartition("save them without 'model.': ")[2], {"w": prefixed})
    assert set(load_module(saved(without, tmp_path), "resnet8", 1, ()).state_dict()) == set(weights)
    other = {f"layer{n}.weight": tensor for n, tensor in enumerate(weights.values())}
    assert "go through a factory" in refused(load_module, saved(other, tmp_path), "resnet8", 1, ())


def test_the_weights_of_a_whole_module_come_out_of_its_file_as_advised(tmp_path, monkeypatch):
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), tmp_path / "it's.pt")
    said = refused(load_module, str(tmp_path / "it's.pt"), "resnet8", 1, ())
    assert "needs torch.nn.modules" in said
    monkeypatch.chdir(tmp_path)
    exec(compile(re.search(r'python -c "(.*)"$', said)[1], "advice", "exec"), {})
    assert list(torch.load(tmp_path / "it's.weights.pth", weights_only=True)) == ["1.weight", "1.bias"]


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"not a header")
    assert "bad.safetensors" in refused(load_module, str(tmp_path / "bad.safetensors"), "resnet8", 1, ())


@pytest.mark.parametrize(
    ("source", "architecture", "message"),
    [
        ("no/such.safetensors", "resnet8", "no such file"),
        ("nothing", None, "a file of torch or package.module:factory, got 'nothing': no such file"),
        ("some.module:factory", "resnet8", "expected --architecture with a file only"),
        (__file__, None, "no file that torch has saved"),
    ],
)
def test_what_is_neither_a_file_nor_a_factory_is_refused(source, architecture, message):
    assert message in refused(check_source, source, architecture)


def test_a_file_needs_an_architecture(weights, tmp_path):
    said = refused(check_source, saved(weights, tmp_path), None)
    assert said.startswith("expected --architecture, such as resnet18 or timm:NAME, with the file")


# ---------------------------------------------------------------- a factory


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no_such_module:make", "cannot import no_such_module of no_such_module:make: ModuleNotFoundError"),
        ("their_models:tree", "unknown factory 'tree'; did you mean 'three'"),
        ("their_models:words", "expected a torch.nn.Module from their_models:words, got dict"),
        ("their_models:constant", "expected their_models:constant to be callable without arguments, got int"),
        ("their_models:fails", "the factory their_models:fails failed: ValueError: no weights here"),
    ],
)
def test_a_factory_that_gives_no_module_is_one_line(models, source, message):
    assert message in refused(call_factory, source)


def test_a_factory_is_found_in_the_working_folder_behind_all_packages(models, tmp_path):
    assert call_factory("their_models:three")[1].out_features == 3
    assert sys.path[-1] == str(tmp_path)


def test_tracing_never_freezes_what_a_module_draws():
    class Noisy(nn.Module):
        def forward(self, images):
            return images.flatten(1) + torch.rand(1)

    module = Foreign(Noisy(), *mean_and_std((), 3))
    folded = fold_batch_norm(module)
    assert folded is module
    images = torch.zeros(1, 3, 2, 2)
    assert not torch.equal(folded(images), folded(images))


# ---------------------------------------------------------------- pixels


def test_normalization_is_the_first_layer():
    images = torch.rand(5, 3, 4, 4, generator=generator())
    both = Foreign(nn.Identity(), *mean_and_std((0.5, 0.25), 3))
    assert torch.allclose(both(images), (images - 0.5) / 0.25)
    each = Foreign(nn.Identity(), *mean_and_std((0.1, 0.2, 0.3, 1.0, 0.5, 0.25), 3))
    expected = torch.stack([images[:, 0] - 0.1, (images[:, 1] - 0.2) * 2, (images[:, 2] - 0.3) * 4], dim=1)
    assert torch.allclose(each(images), expected)
    assert torch.equal(Foreign(nn.Identity(), *mean_and_std((), 3))(images), images)


@pytest.mark.parametrize("numbers", [(0.5,), (0.5, 0.0), (0.5, -1.0), (0.5, float("nan")), (0.1, 0.2, 0.3)])
def test_a_normalization_that_is_none_is_refused(numbers):
    assert "expected --normalize with" in refused(mean_and_std, numbers, 3)


@pytest.mark.parametrize("text", ["half", "0.5;0.5", ""])
def test_normalize_takes_numbers(text):
    assert "such as 0.5,0.25" in refused(parse_normalize, text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("123.675,58.395", "of pixels in 0..255 these are --normalize 0.485,0.229"),
        ("0.485,58.395", "of pixels in 0..255 these are --normalize 0.00190196,0.229"),
        ("-1,0.5", "a layer with others is for a factory of your own"),
        ("0.5,300", "a layer with others is for a factory of your own"),
        ("nan,0.5", "finite numbers"),
    ],
)
def test_mean_and_std_of_another_range_are_refused_with_those_that_may_be_meant(text, hint):
    assert hint in refused(parse_normalize, text)


@pytest.mark.parametrize(("given", "ends"), [("0.5,0.5", (-1.0, 1.0)), ("0,0.00392157", (0.0, 255.0))])
def test_a_first_layer_gives_a_model_the_range_that_it_takes(given, ends):
    """As the documentation has them."""
    layer = Foreign(nn.Identity(), *mean_and_std(parse_normalize(given), 1))
    reached = layer(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)).flatten()
    assert torch.allclose(reached, torch.tensor(ends), atol=1e-6 * max(map(abs, ends)))


# ---------------------------------------------------------------- at the door


class Returns(nn.Module):
    """Hands the flat images to a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images.flatten(1))


def test_a_usable_module_gives_its_width():
    test = random_images(6)
    assert check_module(Returns(lambda x: x[:, :10]).eval(), "classifier", test, CPU, "theirs") == 10
    assert check_module(Returns(lambda x: x[:, :7]).eval(), "encoder", test, CPU, "theirs") == 7


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x[:, :7], "expected 10 logits from theirs, one for each class of random, got 7"),
        (lambda x: x[:, :10] / 0, "expected finite numbers from theirs for images in [0, 1], got NaN or infinity"),
        (lambda x: x[:, :10].log(), "expected finite numbers"),  # the black image
        (lambda x: x[0], "expected theirs to return (6, width) for 6 images, got (768,)"),
        (lambda x: [x], "for 6 images, got list"),
        (lambda x: x[:, :10].double(), "expected float32 from theirs, got torch.float64"),
        (lambda x: x[:, :10].detach(), "expected theirs to be differentiable"),
        (lambda x: x @ torch.zeros(3, 3), "theirs fails on images (6, 3, 16, 16), float32 in [0, 1]: RuntimeError"),
    ],
)
def test_an_unusable_module_is_refused(function, message):
    assert message in refused(check_module, Returns(function).eval(), "classifier", random_images(6), CPU, "theirs")


def test_a_module_that_trains_itself_is_refused():
    class TrainsItself(Returns):
        def forward(self, images):
            self.train()
            return super().forward(images)

    module = TrainsItself(lambda x: x[:, :10]).eval()
    said = refused(check_module, module, "classifier", random_images(6), CPU, "theirs")
    assert "expected theirs to stay in eval mode, got train mode in TrainsItself after a pass" in said
