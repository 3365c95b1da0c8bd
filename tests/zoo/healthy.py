"""Healthy defences: encoders that the project trained on digits (``train_healthy.py``), and their subjects.

Each file holds the encoder in float16, its linear probe and what AutoAttack returned for the first images in float32,
and as metadata the probe's record and AutoAttack's count of standing images after each stage.
"""

import functools
import json
from pathlib import Path

import torch
from evaluation_fixtures import CPU, Shelf, build_classifier
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from attacks import autoattack, none, pgd
from attacks.common.base import config_hash, maximize
from bench import registry
from bench.audit.checks.subject import Counted, Subject
from bench.data.images import ImageSet, load_data
from bench.encoders.common.base import FeatureEncoder
from bench.encoders.common.build import build_encoder
from bench.encoders.common.folding import fold_batch_norm
from bench.evaluation.evaluated import Evaluated
from bench.evaluation.heads import fitted_classifier
from bench.evaluation.traces import Before
from bench.protocols.common.classifier import Classifier
from bench.protocols.common.probe import linear
from bench.random import stream
from bench.record import EvalResult, ProbeResult
from bench.spec import DataSpec, EvalSpec, ThreatModel
from bench.storage.files import sha256

FOLDER = Path(__file__).parent / "healthy"
NAMES = tuple(sorted(file.stem for file in FOLDER.glob("*.safetensors")))
SPEC = EvalSpec(protocols=("linear",), crops=4, protocol_settings={"adversarial_linear": {"epochs": 5}})
EPS, CLASSES, SEED, AUDITED = SPEC.main_eps, 10, 0, 64
PGD = pgd.Attack(restarts=SPEC.restarts, chunk=SPEC.chunk)


# ---------------------------------------------------------------- models


@functools.cache
def digits() -> tuple[ImageSet, ImageSet]:
    """The training and the test images, in the fixed order of every evaluation."""
    return load_data(registry.load("dataset", "digits").Dataset(), DataSpec(name="digits"))


def new_encoder(seed: int = 0) -> FeatureEncoder:
    """An untrained encoder of digits; weights are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder("resnet8", 1, 256).eval().requires_grad_(False)


def encoder(name: str) -> FeatureEncoder:
    """The trained encoder, frozen, in float32."""
    tensors = load_file(FOLDER / f"{name}.safetensors")
    state = {key.removeprefix("encoder."): value for key, value in tensors.items() if key.startswith("encoder.")}
    trained = new_encoder()
    trained.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    )
    return trained


def classifier(name: str) -> tuple[Classifier, ProbeResult]:
    """The trained encoder, batch norm folded as the harness does, under its stored linear probe."""
    tensors = load_file(FOLDER / f"{name}.safetensors")
    found = build_classifier("linear", fold_batch_norm(encoder(name)), (16, 16), 1, 0)
    found.probe = linear(tensors["probe.weight"], tensors["probe.bias"])
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        return found, ProbeResult.model_validate_json(file.metadata()["probe"])


def fitted(
    encoder: nn.Module,
    protocol: str = "linear",
    band_images: int = SPEC.band_images,
    train_images: int | None = None,
) -> tuple[Classifier, ProbeResult]:
    """The harness's own classifier on any encoder of digits, its probe fitted on the first training images, or all."""
    shelf, spec = Shelf(), SPEC.model_copy(update={"band_images": band_images})
    train, test = digits()
    it = Evaluated(encoder, train.first(train_images), test, spec, SEED, CPU, shelf)
    found = fitted_classifier(it, protocol, {})
    probe, tensors = shelf.probes[protocol]
    return found, probe.model_copy(update={"sha256": sha256(tensors)})  # as the store adds it


# ---------------------------------------------------------------- subjects


def subject(
    model: nn.Module,
    probe: ProbeResult | None = None,
    *,
    attack: pgd.Attack = PGD,
    ensemble: tuple[Tensor, list[tuple[str, int]]] | None = None,
    protocol: str = "linear",
    audited: int = AUDITED,
) -> Subject:
    """What an evaluation of ``model`` publishes: clean, PGD and AutoAttack on the first test images, at the main eps.

    ``ensemble``: what AutoAttack returned for the first ``audited`` images, and how many stood after each stage. None:
    PGD on the margin stands in for it at a hundredth of the cost, published as an AutoAttack that did not end.
    """
    test = digits()[1]
    images, labels = test.images.float() / 255, test.labels
    first, truth = images[:audited], labels[:audited]
    threat = ThreatModel(eps=EPS)
    before = Before(model)
    moved = attack.perturb(model, first, truth, threat, stream(SEED, "attack", "pgd", 0))
    traces = before.traces()
    other, stages = ensemble or (by_margin(model, first, truth, attack), [])
    correct = right(model, images, labels)
    stands = {"pgd": right(model, moved, truth), "autoattack": right(model, other, truth)}
    standing = correct[:audited] & stands["pgd"] & stands["autoattack"]
    crops = {"crops": SPEC.crops, "crop_seed": SPEC.crop_seed} if protocol == "multi_patch" else {}
    config = none.Attack().describe(CLASSES) | {"eps": 0.0, "seed": SEED, "images": len(images)} | crops
    results = {("none", 0.0): result("none", 0.0, correct, config, protocol)}
    for name, settings in (("pgd", attack), ("autoattack", autoattack.Attack())):
        config = settings.describe(CLASSES) | {"eps": EPS, "seed": SEED, "images": audited} | crops
        results[name, EPS] = result(name, EPS, stands[name], config, protocol)
    ended = {"complete": ensemble is not None, "stages": stages}
    results["pgd", EPS] = results["pgd", EPS].model_copy(update={"traces": traces})
    results["autoattack", EPS] = results["autoattack", EPS].model_copy(update=ended)
    hashes = {"encoder": sha256(model.state_dict()), "probe": probe.sha256 if probe else "none", "test": test.sha256}
    return Subject(
        model=Counted(model).eval(),
        images=images,
        labels=labels,
        eps=EPS,
        protocol=protocol,
        classes=CLASSES,
        seed=SEED,
        chunk=SPEC.chunk,
        spec=SPEC.model_copy(update={"protocols": (protocol,)}),
        correct=correct,
        standing=standing,
        audited=audited,
        results=results,
        adversarial={"pgd": moved, "autoattack": other},
        robust=above_zero(int(standing.sum()), audited),
        probe=probe,
        band=probe.band if probe else [],
        stored=hashes,
        loaded=dict(hashes),
    )


def make(name: str) -> Subject:
    """The subject of a healthy model under ``linear``, with its stored AutoAttack."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        ensemble = file.get_tensor("autoattack"), [tuple(stage) for stage in json.loads(file.metadata()["stages"])]
    return subject(*classifier(name), ensemble=ensemble)


def undefended() -> Subject:
    """A clean method: an untrained encoder under a fitted probe, accurate on clean images and robust on none."""
    return subject(*fitted(new_encoder()))


def above_zero(standing: int, total: int) -> bool:
    """Wilson's lower bound is above 0.5 points."""
    from scipy import stats

    return bool(stats.binomtest(standing, total).proportion_ci(method="wilson").low > 0.005)


def by_margin(model: nn.Module, images: Tensor, labels: Tensor, attack: pgd.Attack = PGD) -> Tensor:
    """The same PGD on the margin loss, one restart: the part of AutoAttack that a saturated cross-entropy needs."""
    return maximize(
        model,
        images,
        labels,
        ThreatModel(eps=EPS),
        steps=attack.steps,
        step=attack.step(EPS),
        generator=stream(SEED, "attack", "autoattack", 0),
        loss=margin,
    )


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest other logit minus that of the label (Carlini & Wagner, 2017). (B, K), (B,) -> (B,)."""
    own = logits.gather(1, labels[:, None])[:, 0]
    return logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1) - own


def right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Which images are classified as labelled: (N,)."""
    with torch.no_grad():
        return torch.cat([model(part).argmax(dim=1) for part in images.split(SPEC.chunk)]) == labels


def result(attack: str, eps: float, stands: Tensor, config: dict[str, object], protocol: str) -> EvalResult:
    """A published cell."""
    return EvalResult(
        protocol=protocol,
        attack=attack,
        threat_space="image",
        eps=eps,
        outcomes="".join("1" if each else "0" for each in stands.tolist()),
        seconds=0.0,
        config=config,
        config_hash=config_hash(config),
    )
