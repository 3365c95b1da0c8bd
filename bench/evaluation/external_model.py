"""Anybody's encoder or classifier, audited and scored as our own: loaded whole, checked at the door, then evaluated.

A file has a place for every weight of the encoder or is refused. A factory ``package.module:name`` is code, and so it
counts only where the command line names it; it runs in the process of the evaluation, never in the parent.
"""

import importlib
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.data.images import ImageSet
from bench.encoders.common.base import FeatureEncoder
from bench.encoders.common.build import build_encoder
from bench.evaluation.matching import fit, listed
from bench.evaluation.search import one_line
from bench.evaluation.torch_file import read_checkpoint
from bench.options.external_request import Kind, check_source
from bench.record import ProbeResult
from bench.spec import UsageError, unknown
from bench.storage.files import load_tensors
from bench.storage.store import RunFolder

FEATURE_LAYER = "feature_layer.0.weight"
DEFAULT_WIDTH = 4096  # of the features, where the file has none
WEIGHTS = "encoder.safetensors"  # in the run's folder: a copy of the file that was evaluated


# ---------------------------------------------------------------- loading


@dataclass(frozen=True)
class Loading:
    """How a file is to be read, where it can be read in several ways."""

    prefix: str | None = None  # of the encoder's weights; None: the only one under which all of them are
    branch: str | None = None  # of batch norm; None: there is one


def load_module(source: str, architecture: str | None, channels: int, normalize: tuple[float, ...]) -> nn.Module:
    """The module: images (B, C, H, W) in [0, 1] -> features or logits; in eval mode, frozen. Raises UsageError."""
    return load_told(source, architecture, channels, normalize)[0]


def load_told(
    source: str, architecture: str | None, channels: int, normalize: tuple[float, ...], loading: Loading = Loading()
) -> tuple[nn.Module, dict[str, Tensor], list[str]]:
    """(module as of ``load_module``, the weights of a file under the encoder's names, what to say of the loading)."""
    check_source(source, architecture)
    weights: dict[str, Tensor] = {}
    said: list[str] = []
    if architecture is None:
        module = call_factory(source)
    else:
        path = Path(source)
        if path.suffix == ".safetensors":
            weights = load_tensors(path.resolve())  # what the command line names may be a link
        else:
            weights, said = found_weights(path, architecture, channels, loading)
        module = placed(weights, path, architecture, channels)
    if normalize or not architecture:
        module = Foreign(module, *mean_and_std(normalize, channels))
    return module.eval().requires_grad_(False), weights, said


def found_weights(
    path: Path, architecture: str, channels: int, loading: Loading
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights that a file of torch has for an encoder, and where they were. Raises UsageError unless it has all.

    With our feature layer where the file has one, else without: then the features are those of the backbone.
    """
    containers = read_checkpoint(path)
    layers = [t for tensors in containers.values() for name, t in tensors.items() if name.endswith(FEATURE_LAYER)]
    encoder = new_encoder(architecture, channels, len(layers[0]) if layers else DEFAULT_WIDTH)
    wanted = (encoder if layers else encoder.backbone).state_dict()
    match = fit(containers, wanted, loading.prefix, loading.branch)
    said = [f"weights: {len(match.weights)} of {len(wanted)}, 100 % of {architecture}, from {match.place}"]
    said += [f"renamed: {', '.join(match.renamed)}"] * bool(match.renamed)
    said += [f"branch of batch norm: {match.branch}"] * bool(match.branch)
    said += [f"left over: {listed(list(match.left_over))}"] * bool(match.left_over)
    said += [f"no feature layer: the features are those of the backbone, {encoder.backbone_width} wide"] * (not layers)
    return match.weights, said


def new_encoder(architecture: str, channels: int, feature_width: int) -> FeatureEncoder:
    """Untrained; the global generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        return build_encoder(architecture, channels, feature_width)


def placed(weights: dict[str, Tensor], path: Path, architecture: str, channels: int) -> nn.Module:
    """The architecture with every weight in its place. Raises UsageError that lists what does not fit.

    Weights of a backbone alone, under its own names, make an encoder without our feature layer.
    """
    features = weights.get(FEATURE_LAYER)
    whole = new_encoder(architecture, channels, DEFAULT_WIDTH if features is None else len(features))
    encoder = whole.backbone if weights.keys() == whole.backbone.state_dict().keys() else whole
    wanted = encoder.state_dict()
    misfits = {
        "missing": sorted(wanted.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - wanted.keys()),
        "shapes": [
            f"{name} {tuple(weights[name].shape)} for {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
        "types": [
            f"{name} {kind(weights[name])} for {kind(tensor)}"
            for name, tensor in wanted.items()
            if name in weights and not holds(weights[name], tensor)
        ],
    }
    if any(misfits.values()):
        problems = "; ".join(f"{what}: {listed(names)}" for what, names in misfits.items() if names)
        advice = advise(set(weights), set(wanted))
        advice += "; save weights as floating-point numbers, multiplied out with their scale" * bool(misfits["types"])
        raise UsageError(f"{path} does not fit {architecture} with {channels} channels: {problems}{advice}")
    encoder.load_state_dict(weights)
    return encoder


def advise(names: set[str], wanted: set[str]) -> str:
    """What to do where the names of a file are others than those that are wanted; "" where they are the same."""
    if names == wanted:
        return ""
    first = {name.partition(".")[0] for name in names}
    if len(first) == 1 and {name.partition(".")[2] for name in names} & wanted:
        (prefix,) = first
        return f"; save them without {prefix + '.'!r}: {{k.removeprefix({prefix + '.'!r}): v for k, v in w.items()}}"
    return "; weights that another program has named go through a factory that loads them, package.module:name"


def kind(tensor: Tensor) -> str:
    """``int8``."""
    return str(tensor.dtype).removeprefix("torch.")


def holds(given: Tensor, wanted: Tensor) -> bool:
    """Whether the numbers of a file are those that a layer wants, and not codes for them.

    Floating point of 16 bits or more is; float64 is rounded to float32. Integers, booleans and float8 stand for
    weights only with a scale that no layer here has; a complex number is two. A counter may be a whole floating number.
    """
    if wanted.is_floating_point():
        return given.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if given.is_floating_point():
        return given.dtype.itemsize > 1 and bool((given == given.round()).all())
    return not given.is_complex() and (given.dtype == torch.bool) == (wanted.dtype == torch.bool)


def call_factory(source: str) -> nn.Module:
    """What the factory returns, called without arguments. Raises UsageError if it cannot, or returns no module."""
    where, _, name = source.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that nothing there can stand in for a package of ours
    try:
        module = importlib.import_module(where)
    except Exception as error:
        raise UsageError(f"cannot import {where} of {source}: {one_line(error)}") from error
    if not hasattr(module, name):
        known = [member for member, value in vars(module).items() if callable(value) and not member.startswith("_")]
        raise UsageError(f"{where} has no such factory: " + unknown("factory", name, known))
    factory = getattr(module, name)
    if not callable(factory):
        raise UsageError(f"expected {source} to be callable without arguments, got {type(factory).__name__}")
    try:
        built = factory()
    except Exception as error:
        raise UsageError(f"the factory {source} failed: {one_line(error)}") from error
    if not isinstance(built, nn.Module):
        raise UsageError(f"expected a torch.nn.Module from {source}, got {type(built).__name__}")
    return built


class Foreign(nn.Module):
    """A module behind its normalization; images (B, C, H, W) in [0, 1] -> what the module returns.

    Whether the images are four-dimensional is asked of the value, so torch.fx cannot trace it and
    ``fold_batch_norm`` leaves it as it is: a traced copy would freeze whatever the module draws or decides.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4:
            raise ValueError(f"expected images (B, C, H, W), got {tuple(images.shape)}")
        output: Tensor = self.module((images - self.mean) / self.std)
        return output


def mean_and_std(numbers: tuple[float, ...], channels: int) -> tuple[Tensor, Tensor]:
    """(mean, std), each (1, C or 1, 1, 1), of the numbers of --normalize; 0 and 1 where none are given."""
    numbers = numbers or (0.0, 1.0)
    if len(numbers) not in (2, 2 * channels):
        expected = f"2 numbers, mean and std, or {2 * channels}, a mean and then a std for each channel"
        raise UsageError(f"expected --normalize with {expected}, got {len(numbers)}")
    mean, std = torch.tensor(numbers).view(2, 1, -1, 1, 1)
    if not bool((std > 0).all()) or not all(map(math.isfinite, numbers)):
        raise UsageError(f"expected --normalize with finite numbers and every std above 0, got {numbers}")
    return mean, std


# ---------------------------------------------------------------- at the door


def check_module(module: nn.Module, kind: Kind, test: ImageSet, device: torch.device, name: str) -> int:
    """Width of what it returns for the first images, black and white. Raises UsageError unless it is usable.

    Usable: float32 (B, width), finite, a gradient reaches the images, and a classifier has a logit for each class.
    """
    few = test.pictures(slice(4), device)
    images = torch.cat([few, torch.zeros_like(few[:1]), torch.ones_like(few[:1])]).requires_grad_()
    try:
        output = module(images)
    except Exception as error:
        shape = tuple(images.shape)
        raise UsageError(f"{name} fails on images {shape}, float32 in [0, 1]: {one_line(error)}") from error
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(images):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(f"expected {name} to return ({len(images)}, width) for {len(images)} images, got {got}")
    if output.dtype != torch.float32:
        raise UsageError(f"expected float32 from {name}, got {output.dtype}: float32 decides every number")
    training = [path or type(part).__name__ for path, part in module.named_modules() if part.training]
    training = [path.removeprefix("module.") for path in training]  # inside Foreign
    if training:
        raise UsageError(
            f"expected {name} to stay in eval mode, got train mode in {training[0]} after a pass: its answers would "
            "depend on the batch, or on chance; call no train() in forward()"
        )
    if not bool(output.isfinite().all()):
        raise UsageError(f"expected finite numbers from {name} for images in [0, 1], got NaN or infinity")
    if kind == "classifier" and output.shape[1] != test.classes:
        expected = f"expected {test.classes} logits from {name}, one for each class of {test.label}"
        raise UsageError(f"{expected}, got {output.shape[1]}")
    if not output.requires_grad:
        raise UsageError(f"expected {name} to be differentiable, got an output without a gradient to the images")
    return int(output.shape[1])


def canary(module: nn.Module, train: ImageSet, test: ImageSet, device: torch.device) -> str:
    """What the nearest of 1,000 training images say of 200 test images, by the cosine of the features: one line.

    It tells of weights that are not those of a trained encoder, or of another normalization, before hours of attacks.
    """

    def unit(images: ImageSet, count: int) -> Tensor:
        parts = [module(images.pictures(ids, device)) for ids in torch.arange(min(count, len(images))).split(100)]
        return F.normalize(torch.cat(parts), dim=1)

    with torch.no_grad():
        nearest = (unit(test, 200) @ unit(train, 1000).T).argmax(dim=1).cpu()
    count = len(nearest)
    right = int((train.labels[nearest] == test.labels[:count]).sum())
    share = 1 / test.classes
    by_chance = right < count * share + 3 * math.sqrt(count * share * (1 - share))
    said = f"canary: the nearest training image names the class of {right} of {count} test images"
    doubt = "; chance does as well: are these the weights of a trained encoder, and is --normalize right?"
    return said + doubt * by_chance


def own_logits(classes: int, train: ImageSet, protocol: str = "linear") -> tuple[ProbeResult, dict[str, Tensor]]:
    """A probe that hands a classifier's logits on as they are: the identity, to the last bit."""
    probe = ProbeResult(
        protocol=protocol,
        feature_width=classes,
        penalty=0.0,
        gradient_norm=0.0,
        scale=1.0,
        held_out=[],
        train_correct=0,
        train_total=0,
        seconds=0.0,
        note="the classifier's own logits: no probe was fitted",
    )
    return probe, {"weight": torch.eye(classes), "bias": torch.zeros(classes)}


def reload_module(run: RunFolder, channels: int) -> nn.Module:
    """The module of an evaluation once more: from the weights in its folder, or from the factory that it names.

    Raises UsageError where the weights do not fit, or the factory cannot be called from here.
    """
    given = run.spec.settings
    architecture = run.spec.encoder_path or run.spec.encoder
    source = given["source"] if architecture is None else str(run.path / WEIGHTS)
    try:
        return load_module(source, architecture, channels, tuple(given["normalize"]))
    except UsageError as error:
        advice = "run it where this can be imported" if architecture is None else "evaluate the model again"
        raise UsageError(f"cannot verify {run.spec.name}: {error}; {advice}") from error
