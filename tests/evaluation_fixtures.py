"""What the tests of the evaluation share: a small frozen encoder, images, a dictionary for cells, a quick run."""

import copy
import hashlib
import importlib
from pathlib import Path

import torch
from torch import nn

from bench import registry
from bench.data.images import ImageSet
from bench.encoders.common.base import FeatureEncoder
from bench.evaluation.evaluate import evaluate
from bench.evaluation.evaluated import Evaluated, silent
from bench.protocols.common.base import protocol_of
from bench.record import EvalResult, ProbeResult
from bench.spec import EvalSpec
from bench.storage import store

CPU = torch.device("cpu")
SYNTHETIC = registry.load("dataset", "synthetic").Dataset()
TRAIN, TEST = SYNTHETIC.load(Path(), "train").first(60), SYNTHETIC.load(Path(), "test").first(20)
FEW_STEPS = {"pgd": {"steps": 5}}  # where the strength of the attack is no subject
ONE = {"epochs": 1, "learning_rates": [0.1], "steps": 2}
SHORT = dict.fromkeys(("adversarial_linear", "adversarial_linear_backbone", "adversarial_full"), ONE)
QUICK = EvalSpec(
    attacks=("pgd",),
    attack_settings=FEW_STEPS,
    protocol_settings=SHORT,
    eps=(0.01, 0.02),
    main_eps=0.02,
    curve=(0.25, 0.5, 1.5),
    crops=3,
    pgd_images=None,
    band_images=8,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny_encoder(channels=3, width=24, seed=0):
    """One convolution, then the feature layer; untrained, frozen, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = nn.Sequential(
            nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
        )
        return FeatureEncoder(backbone, 128, width).eval().requires_grad_(False)


def random_images(count, classes=10, shape=(3, 16, 16), seed=0):
    """Noise with labels in turn."""
    images = torch.randint(0, 256, (count, *shape), generator=generator(seed), dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % classes, classes=classes, label="random")


def blobs(count, width, classes=10, seed=0, spread=1.0):
    """Features (N, F) around one centre for each class, labels in a fixed shuffle; a wider ``spread`` overlaps more."""
    g = generator(seed)
    labels = (torch.arange(count) % classes)[torch.randperm(count, generator=g)]
    centres = torch.randn(classes, width, generator=g)
    scales = torch.logspace(0, -1.5, width)  # no two directions alike, as in real features
    return (centres[labels] + spread * torch.randn(count, width, generator=g)) * scales, labels


def build_classifier(protocol, encoder, size, crops, crop_seed):
    """The classifier of a protocol before anything is fitted."""
    spec = EvalSpec(crops=crops, crop_seed=crop_seed)
    return protocol_of(spec, protocol).build(encoder, size, spec)


def state_hash(module):
    """SHA-256 over all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


class Shelf:
    """Cells in a dictionary, and the order in which results came."""

    def __init__(self):
        self.probes: dict[str, tuple[ProbeResult, dict[str, torch.Tensor]]] = {}
        self.results: dict[tuple[str, str, float], EvalResult] = {}
        self.heads: dict[str, dict] = {}
        self.images: dict[tuple[str, str], torch.Tensor] = {}

    def probe(self, protocol):
        return self.probes.get(protocol)

    def save_probe(self, probe, tensors):
        self.probes[probe.protocol] = probe, tensors

    def head_state(self, protocol):
        return self.heads.get(protocol)

    def save_head_state(self, protocol, state):
        self.heads[protocol] = copy.deepcopy(state)

    def result(self, protocol, attack, eps, norm="linf"):
        return self.results.get((protocol, attack, eps if norm == "linf" else (norm, eps)))

    def adversarial(self, protocol, attack):
        found = self.images.get((protocol, attack))
        return None if found is None else found.clone()

    def save_adversarial(self, protocol, attack, images):
        self.images[protocol, attack] = images.clone()
        return store.sha256({"images": images})

    def save_result(self, result):
        key = result.protocol, result.attack, result.eps if result.norm == "linf" else (result.norm, result.eps)
        assert key not in self.results or not self.results[key].complete
        self.results[key] = result


def evaluated(shelf, spec=QUICK, encoder=None, seed=0, train=TRAIN, test=TEST, report=silent, device=CPU):
    """What an evaluation is given."""
    return Evaluated(encoder or tiny_encoder(), train, test, spec, seed, device, shelf, report)


def run(spec=QUICK, shelf=None, encoder=None, seed=0, images=TEST, report=silent):
    """Evaluate; the shelf with all cells, and in ``missing`` what the evaluation says is missing."""
    shelf = Shelf() if shelf is None else shelf
    shelf.missing = evaluate(evaluated(shelf, spec, encoder, seed, test=images, report=report))
    return shelf


def standing(outcomes):
    """Places of the images that stand."""
    return {n for n, outcome in enumerate(outcomes) if outcome == "1"}


def spy(monkeypatch, name):
    """What the attack saw and returned, and the model that it was given."""
    seen = []
    attack_of = importlib.import_module(f"attacks.{name}").Attack
    original = attack_of.perturb

    def perturb(self, model, images, labels, threat, generator, **attacked):
        moved = original(self, model, images, labels, threat, generator, **attacked)
        seen.append((model, images.clone(), moved.clone(), threat))
        return moved

    monkeypatch.setattr(attack_of, "perturb", perturb)
    return seen
