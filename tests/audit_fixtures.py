"""What the tests of the audit share: a small subject, and the folder of a small run that was evaluated."""

import importlib
import signal
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from evaluation_fixtures import tiny_encoder
from short_autoattack import short_package
from torch import nn

from attacks.common.base import config_hash
from bench import registry
from bench.audit.audit import audit
from bench.audit.checks.subject import Counted, Subject
from bench.data.images import load_data
from bench.evaluation.evaluated import Evaluated
from bench.protocols.common.classifier import Classifier
from bench.record import EvalResult
from bench.runs.execute import execute
from bench.spec import Budget, DataSpec, EvalSpec, RunSpec
from bench.storage.signals import StopFlag
from bench.storage.store import RunFolder
from bench.training.build import build_method

DEVICE = torch.device("cpu")
EVAL = EvalSpec(
    eps=(0.01, 0.02),
    main_eps=0.02,
    curve=(),
    protocols=("linear",),
    attack_settings={"pgd": {"steps": 8}},  # as far as check S2 asks for
    autoattack_images={"linear": 6},
    band_images=4,
    audit="off",
)


def classifier(seed=0):
    """Untrained, frozen: noise (B, 3, 16, 16) -> logits (B, 10)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(tiny_encoder())
        model.probe = nn.Linear(24, 10)
    return model.eval().requires_grad_(False)


def result(attack, eps, outcomes, **config):
    """As the evaluation leaves it."""
    config = {"images": len(outcomes), "seed": 0, "eps": eps} | config
    return EvalResult(
        protocol="linear",
        attack=attack,
        threat_space="image",
        eps=eps,
        outcomes=outcomes,
        seconds=1.0,
        config=config,
        config_hash=config_hash(config),
    )


def subject(model=None, eps=0.1, **changes):
    """A subject of 8 noise images that is sound in every structural respect, with these changes."""
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = classifier() if model is None else model
    with torch.no_grad():
        labels = model(images).argmax(dim=1)  # all correct without an attack
    signs = torch.where(images > 0.5, -1.0, 1.0)
    steps = {"steps": 20, "relative_step": 0.25, "absolute_step": None, "random_start": True, "restarts": 1}
    names = ["apgd-ce", "apgd-t", "fab-t", "square"]
    autoattack = result("autoattack", eps, "110110", ensemble=names)
    autoattack = autoattack.model_copy(update={"stages": [("apgd-ce", 5), ("apgd-t", 4)]})
    results = [result("none", 0.0, "1" * 8), result("pgd", eps, "11111010", **steps), autoattack]
    hashes = {"encoder": "a", "probe": "b", "test": "c"}
    whole = Subject(
        model=Counted(model).eval(),
        images=images,
        labels=labels,
        eps=eps,
        protocol="linear",
        classes=10,
        seed=0,
        chunk=4,
        spec=EvalSpec(eps=(eps,), main_eps=eps),
        correct=torch.ones(8, dtype=torch.bool),
        standing=torch.tensor([1, 1, 0, 1, 1, 0, 0, 0]).bool(),
        audited=6,
        results={(each.attack, each.eps): each for each in results},
        adversarial={"pgd": images + eps * signs, "autoattack": images[:6] + eps * signs[:6]},
        stored=hashes,
        loaded=dict(hashes),
    )
    return replace(whole, **changes)


@contextmanager
def short_autoattack():
    """AutoAttack of one short stage: a moment instead of ten seconds."""
    module = importlib.import_module("attacks.autoattack")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ensemble", lambda classes: (["apgd-ce"], 1))
        patch.setattr(module, "load_package", short_package)
        yield


def finished(out, **changes):
    """(folder, how it was evaluated) of a run of two updates on synthetic images, finished without an audit."""
    spec = RunSpec(
        method="emp_ssl",
        settings={"batch": 16, "views": 2},
        data=DataSpec(name="synthetic", train_images=32, test_images=16),
        budget=Budget.parse("2up"),
        threads=1,
        eval=EVAL.model_copy(update=changes),
    )
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        with short_autoattack():
            execute(out, spec, lambda event: None, StopFlag())
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    return RunFolder(out, spec), spec.eval.model_copy(update={"audit": "core"})


def rerun(folder, spec, report=lambda event: None):
    """Audit the run as a resumed command would: what is missing."""
    dataset = registry.load("dataset", "synthetic").Dataset()
    train, test = load_data(dataset, folder.spec.data)
    method, _ = build_method(folder.spec, dataset, 3, train.classes)
    method.encoder.load_state_dict(folder.trained()[1])
    encoder = method.encoder.eval().requires_grad_(False)
    return audit(Evaluated(encoder, train, test, spec, folder.spec.seed, DEVICE, folder, report))
