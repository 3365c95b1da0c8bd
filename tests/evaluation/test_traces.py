"""An attack that changes the model or the process ends its own cell, named; the next starts from what is stored."""

import random
import types

import numpy as np
import pytest
import torch
from evaluation_fixtures import QUICK, TEST, build_classifier, evaluated, run, tiny_encoder
from torch import nn

from attacks import none, pgd
from bench import registry
from bench.engines.team import Crew, Job, serve
from bench.evaluation.attack_cell import build_attack, build_search
from bench.evaluation.search import Cell, TrainMode, check_eval_mode, predict
from bench.evaluation.traces import AttackError, Before, blame

SPEC = QUICK.model_copy(update={"attacks": ("liar", "pgd"), "protocols": ("linear",), "curve": (), "eps": (0.02,)})


def there_and_back(model):
    """Fifty passes in train mode: the statistics of batch norm have moved, and the mode is what it was."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.add_(1)
    model.eval()


CHANGES = {
    "a weight": (lambda model: next(model.parameters()).add_(0.5), "weights or buffers"),
    "a weight's data": (
        lambda model: setattr(next(model.parameters()), "data", torch.zeros(3)),
        "RuntimeError: weight should",
    ),
    "another weight": (lambda model: setattr(model.probe, "weight", nn.Parameter(torch.zeros(10, 24))), "weights or"),
    "the dtype": (lambda model: model.double(), "RuntimeError: "),
    "a new buffer": (lambda model: model.register_buffer("more", torch.zeros(1)), "weights or buffers"),
    "one module's mode": (
        lambda model: model.probe.train(),
        "eval mode, got train mode in probe",
    ),
    "requires_grad": (lambda model: model.requires_grad_(True), "which weights want a gradient"),
    "a hook": (lambda model: model.probe.register_forward_hook(lambda m, i, out: -out), "modules, their hooks"),
    "a forward": (lambda model: setattr(model.probe, "forward", lambda x: x[:, :10]), "modules, their hooks"),
    "a module": (lambda model: setattr(model, "probe", nn.Linear(24, 10).eval()), "modules, their hooks"),
    "torch's generator": (lambda model: torch.rand(1), "the global generators"),
    "numpy's generator": (lambda model: np.random.rand(), "the global generators"),  # noqa: NPY002
    "python's generator": (lambda model: random.random(), "the global generators"),
    "a seed": (lambda model: torch.manual_seed(5), "the global generators"),
    "no gradients": (lambda model: torch.set_grad_enabled(False), "global settings of torch"),
    "an error": (lambda model: {}["bad day"], "raised KeyError: 'bad day'"),
}


def changing(change, monkeypatch):
    """The attack ``liar``, which does this to the model and returns the images as they are."""

    class Liar(none.Attack):
        def perturb(self, model, images, labels, threat, generator):
            change(model)
            return images

    original = registry.load
    found = types.SimpleNamespace(Attack=Liar)
    monkeypatch.setattr(registry, "load", lambda kind, name: found if name == "liar" else original(kind, name))


@pytest.fixture(scope="module")
def alone():
    """PGD where there is no other attack."""
    return run(SPEC.model_copy(update={"attacks": ("pgd",)})).results["linear", "pgd", 0.02].outcomes


@pytest.mark.parametrize("what", CHANGES)
def test_the_attack_is_named_and_the_next_one_finds_everything_as_it_was(what, monkeypatch, alone):
    change, said = CHANGES[what]
    changing(change, monkeypatch)
    encoder, events = tiny_encoder(), []
    before = Before(encoder)
    shelf = run(SPEC, encoder=encoder, report=events.append)
    assert before.traces() == []
    failed = shelf.results["linear", "liar", 0.02]
    assert failed.failed.startswith(("the attack liar under linear ", "after the attack liar under linear: "))
    assert said in failed.failed
    assert (failed.outcomes, failed.complete) == ("", False)
    assert shelf.results["linear", "pgd", 0.02].outcomes == alone
    assert shelf.results["linear", "pgd", 0.02].failed == ""
    assert shelf.missing == f"without a number: linear liar 0.02 ({failed.failed})"
    assert [event["message"] for event in events if event["event"] == "failed"] == [failed.failed]


def test_the_same_call_tries_it_again(monkeypatch):
    changing(lambda model: model.train(), monkeypatch)
    shelf = run(SPEC)
    monkeypatch.undo()
    changing(lambda model: None, monkeypatch)
    run(SPEC, shelf)
    found = shelf.results["linear", "liar", 0.02]
    assert (found.failed, found.complete, found.outcomes) == ("", True, shelf.results["linear", "none", 0.0].outcomes)


def test_statistics_that_moved_behind_a_mode_that_is_as_before_are_seen():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    images = torch.rand(2, 3, 8, 8)
    before = Before(model)
    expected = model(images)
    there_and_back(model)
    assert before.traces() == ["state"]
    before.restore()
    assert before.traces() == []
    assert torch.equal(model(images), expected)


def test_where_pgd_fails_at_an_eps_it_has_no_number_at_a_larger_one(monkeypatch):
    original = pgd.Attack.perturb

    def at_first(self, model, images, labels, threat, generator, attacked=None):
        if threat.eps == 0.01:
            model.train()
        return original(self, model, images, labels, threat, generator, attacked)

    monkeypatch.setattr(pgd.Attack, "perturb", at_first)
    results = run(SPEC.model_copy(update={"attacks": ("pgd",), "eps": (0.01, 0.02)})).results
    assert "train mode" in results["linear", "pgd", 0.01].failed
    assert results["linear", "pgd", 0.02].failed == "pgd failed at a smaller eps, and what it breaks there counts here"


class Drawing(nn.Module):
    """Draws from the global generator in every pass; not traced, as its way depends on a value."""

    def __init__(self):
        super().__init__()
        self.inner = tiny_encoder()

    def forward(self, images):
        if images.ndim == 4:
            torch.rand(1)
        return self.inner(images)


def test_what_the_model_does_itself_is_written_down_and_no_fault_of_the_attack():
    state = torch.get_rng_state()
    results = run(SPEC.model_copy(update={"attacks": ("pgd",)}), encoder=Drawing().eval()).results
    torch.set_rng_state(state)
    assert {(r.attack, tuple(r.traces), r.failed) for r in results.values()} == {
        ("none", ("generators",), ""),
        ("pgd", ("generators",), ""),
    }


def test_blame_falls_on_the_model_only_for_what_it_does_when_it_is_asked():
    model = nn.Linear(2, 2).eval()
    before = Before(model)
    model.weight.data.add_(1)
    with pytest.raises(AttackError, match="the attack x changed weights or buffers; they are put back"):
        blame(before, "x", lambda: None)
    assert before.traces() == []
    model.weight.data.add_(1)
    assert blame(before, "x", lambda: model.weight.data.mul_(2)) == ["state"]
    assert before.traces() == []


def test_nan_weights_are_equal_to_themselves():
    model = nn.Linear(2, 2)
    model.weight.data.fill_(torch.nan)
    assert Before(model).traces() == []


def test_the_assertions_of_the_tests_hold_where_python_leaves_those_of_the_program_out():
    """Under ``python -O`` pytest's own rewriting keeps them; without it nothing here could fail."""
    with pytest.raises(AssertionError):
        assert CHANGES == {}


class TrainsItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(768, 10)

    def forward(self, images):
        self.net.train()
        return self.net(images.flatten(1))


def test_a_prediction_in_train_mode_is_an_error_and_no_assertion():
    """Before a pass and after it: ``python -O`` leaves assertions out."""
    images = TEST.pictures(slice(2), "cpu")
    with pytest.raises(TrainMode, match="expected every module in eval mode, got train mode in net"):
        predict(TrainsItself().eval(), images, 2)
    with pytest.raises(TrainMode, match="got train mode in TrainsItself and 1 more"):
        check_eval_mode(TrainsItself())


# ---------------------------------------------------------------- several processes


class Other:
    """Ranks of which this process is one: what it is told, and what the other answers."""

    size = 2

    def __init__(self, rank, told=(), answer=([], [], "")):
        self.rank, self.told, self.answer, self.heard = rank, list(told), answer, []

    def tell(self, message=None):
        return self.told.pop(0) if self.told else None

    def collect(self, answer):
        self.heard.append(answer)
        return [answer, self.answer]


CELL = Cell("linear", "liar", 0.02, 20)


def test_an_attack_that_fails_on_another_device_has_no_number(monkeypatch):
    changing(lambda model: None, monkeypatch)
    model = build_classifier("linear", tiny_encoder(), (16, 16), 1, 0)
    search = build_search(evaluated(None, SPEC), model, build_attack(CELL, SPEC), CELL)
    standing = torch.ones(20, dtype=torch.bool)
    with pytest.raises(AttackError, match="changed weights"):
        list(Crew(Other(0, answer=([], [], "the attack liar changed weights")), SPEC)(search, CELL, "", TEST, standing))
    assert len(list(Crew(Other(0), SPEC)(search, CELL, "", TEST, standing))) == 1


@pytest.mark.parametrize("what", ["a weight", "an error"])
def test_another_device_says_that_an_attack_failed_and_goes_on_from_the_stored_weights(what, monkeypatch):
    changing(CHANGES[what][0], monkeypatch)
    encoder, spec = tiny_encoder(), SPEC.model_copy(update={"chunk": 10})
    probe = {"weight": torch.zeros(10, 24), "bias": torch.zeros(10)}
    ranks = Other(1, [Job(CELL, "", torch.ones(20, dtype=torch.bool), probe)] * 2)
    before = Before(encoder)
    serve(evaluated(None, spec, encoder), ranks)
    assert all("the attack liar under linear " in complaint for _, _, complaint in ranks.heard)
    assert len(ranks.heard) == 2
    assert before.traces() == []
