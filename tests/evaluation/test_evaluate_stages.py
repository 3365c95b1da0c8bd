"""Cells of several stages: AutoAttack, a limit of time, the images that are kept, the precision of the search."""

import contextlib
import importlib
import itertools
import logging
import types
from pathlib import Path

import pyautoattack
import pytest
import torch
from evaluation_fixtures import CPU, FEW_STEPS, QUICK, TEST, Shelf, evaluated, run, standing
from short_autoattack import short_package

from attacks import pgd
from bench import registry
from bench.device import device as devices
from bench.evaluation import attack_cell, heads
from bench.evaluation import evaluate as module
from bench.evaluation.attack_cell import run_cell
from bench.evaluation.evaluate import evaluate
from bench.evaluation.search import Cell
from bench.protocols.common.classifier import Classifier
from bench.random import stream
from bench.spec import Budget, DataSpec, EvalSpec, RunSpec
from bench.storage import store
from bench.training.build import build_method
from bench.training.train import train

STAGED = EvalSpec(
    attacks=("autoattack", "pgd"), eps=(0.04,), main_eps=0.04, curve=(), protocols=("linear",), band_images=1,
    autoattack_images={"linear": 8}, autoattack_batch=3, pgd_images=8, attack_settings=FEW_STEPS,
)  # fmt: skip
SHORT = ("apgd-ce", "fab-t")


@pytest.fixture
def short(monkeypatch):
    """AutoAttack of two short stages and one target class, which takes seconds less."""
    autoattack = importlib.import_module("attacks.autoattack")
    monkeypatch.setattr(autoattack, "load_package", short_package)
    monkeypatch.setattr(autoattack, "ensemble", lambda classes: (list(SHORT), 1))


@pytest.fixture
def seconds(monkeypatch):
    """A clock that goes on by one with every look, so that every stage and every probe takes a second."""
    clock = itertools.count()
    for place in (attack_cell, heads):
        monkeypatch.setattr(place, "time", types.SimpleNamespace(monotonic=lambda: float(next(clock))))


def key_of(result):
    return result.model_copy(update={"seconds": 0}).model_dump_json()


@pytest.mark.slow  # tests/attacks/test_attack_oracles.py compares the attack alone
def test_stages_on_the_images_still_standing_are_the_package_bit_for_bit(monkeypatch):
    stage = importlib.import_module("attacks.autoattack").Stage
    original, found = stage.perturb, {}

    def remember(self, model, images, labels, threat, generator):
        moved = original(self, model, images, labels, threat, generator)
        found.update({image.numpy().tobytes(): (model, after) for image, after in zip(images, moved, strict=True)})
        return moved

    monkeypatch.setattr(stage, "perturb", remember)
    spec = STAGED.model_copy(update={"eps": (0.037,), "main_eps": 0.037, "autoattack_images": {"linear": 5}})
    result = run(spec).results["linear", "autoattack", 0.037]
    clean, labels = TEST.images[:5].float() / 255, TEST.labels[:5]
    model = found[clean[0].numpy().tobytes()][0]
    seed = stream(0, "attack", "autoattack", 0).initial_seed() % 2**31
    with torch.random.fork_rng(devices=[]):
        package = pyautoattack.AutoAttack(model, norm="Linf", eps=0.037, seed=seed, version="standard")
        expected, predicted = package.run_standard_evaluation(clean, labels, batch_size=3)
    assert torch.equal(torch.stack([found[image.numpy().tobytes()][1] for image in clean]), expected)
    assert result.outcomes == "".join("1" if right else "0" for right in predicted.eq(labels).tolist())
    assert [name for name, _ in result.stages] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert 0 < result.correct < 5


def test_an_interrupted_autoattack_goes_on_at_its_stage(short, monkeypatch):
    whole = run(STAGED)
    expected = whole.results["linear", "autoattack", 0.04]
    assert [name for name, _ in expected.stages] == list(SHORT)
    assert expected.stages[-1][1] == expected.correct > 0
    assert (expected.complete, expected.note) == (True, "")
    autoattack = importlib.import_module("attacks.autoattack")
    original, ran = autoattack.run, []

    def interrupted(stage, *args):
        if stage.name == "fab-t" and "apgd-ce" not in ran[:-1]:
            raise KeyboardInterrupt
        ran.append(stage.name)
        return original(stage, *args)

    shelf = Shelf()
    ran.append("")
    with monkeypatch.context() as patch:
        patch.setattr(autoattack, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(STAGED, shelf)
    bound = shelf.results["linear", "autoattack", 0.04]
    assert (bound.complete, bound.bound, bound.note) == (False, "upper bound: stopped after apgd-ce", "")
    assert bound.stages == expected.stages[:1]
    assert standing(bound.outcomes) >= standing(expected.outcomes)
    again = []
    monkeypatch.setattr(autoattack, "run", lambda stage, *args: (again.append(stage.name), original(stage, *args))[1])
    run(STAGED, shelf)
    assert again == ["fab-t"]
    assert key_of(shelf.results["linear", "autoattack", 0.04]) == key_of(expected)
    for attack in ("pgd", "autoattack"):
        assert torch.equal(shelf.images["linear", attack], whole.images["linear", attack])


def test_the_images_that_are_kept_are_those_that_decided(short):
    """Scored again they have the outcomes of the main eps; one that PGD broke at a smaller eps is in that ball."""
    spec = STAGED.model_copy(update={"eps": (0.02, 0.04, 0.08), "curve": (0.25, 1.5), "attacks": ("pgd", "autoattack")})
    spec = spec.model_copy(update={"protocols": ("linear", "published_eval"), "pgd_images": 12})
    shelf, images = run(spec), TEST.images.float() / 255
    assert shelf.images.keys() == {("linear", "pgd"), ("linear", "autoattack")}
    model = evaluated(shelf, spec).stored_classifier("linear")
    for attack, count in (("pgd", 12), ("autoattack", 8)):
        kept, result = shelf.images["linear", attack], shelf.results["linear", attack, 0.04]
        assert len(kept) == count
        right = model(kept).argmax(1) == TEST.labels[:count]
        assert "".join("1" if each else "0" for each in right) == result.outcomes
        assert result.images_sha256 == store.sha256({"images": kept})
        assert "0" in result.outcomes
        assert not torch.equal(kept, images[:count])
    distance = (shelf.images["linear", "pgd"] - images[:12]).flatten(1).abs().amax(dim=1)
    left = {eps: shelf.results["linear", "pgd", eps].outcomes for eps in (0.01, 0.02, 0.04)}
    for place in range(12):
        broken = next((eps for eps in sorted(left) if left[eps][place] == "0"), 0.04)
        assert distance[place] <= broken + 1e-6


def test_before_an_attack_has_returned_anything_the_clean_images_are_kept():
    def kept(protocol="linear", attack="pgd", eps=0.04, shelf=None, **changes):
        cell = Cell(protocol, attack, eps, 8)
        return module.kept_images(evaluated(shelf or Shelf(), STAGED.model_copy(update=changes)), cell)

    clean = TEST.images.float() / 255
    assert torch.equal(kept(), clean[:8])
    assert torch.equal(kept(eps=0.02, pgd_images=12), clean[:12])
    assert torch.equal(kept(pgd_images=None), clean)
    assert torch.equal(kept(attack="autoattack", pgd_images=12), clean[:8])
    assert kept(protocol="published_eval") is kept(attack="fgsm") is kept(eps=0.041) is None
    shelf = Shelf()
    shelf.images["linear", "pgd"] = torch.rand(3, 3, 16, 16)
    assert torch.equal(kept(shelf=shelf), shelf.images["linear", "pgd"])


def test_no_more_images_are_kept_than_the_audit_asks_for(short, monkeypatch):
    whole = run(STAGED).images
    monkeypatch.setattr(module, "KEPT", 5)
    few = run(STAGED.model_copy(update={"chunk": 3})).images
    assert {key: len(kept) for key, kept in few.items()} == {("linear", "pgd"): 5, ("linear", "autoattack"): 5}
    assert torch.equal(few["linear", "autoattack"], whole["linear", "autoattack"][:5])


def test_what_earlier_stages_said_and_left_is_kept_over_an_interruption(short, monkeypatch):
    """Each stage warns twice, once with its own name."""
    autoattack = importlib.import_module("attacks.autoattack")
    last = "fab-t"

    def warn(self, model, images, *rest):
        if self.name == last:
            raise KeyboardInterrupt
        for text in ("odd", f"in {self.name}"):
            logging.getLogger("attacks").warning(text)
        return images

    monkeypatch.setattr(autoattack.Stage, "perturb", warn)
    shelf = Shelf()
    with pytest.raises(KeyboardInterrupt):
        run(STAGED, shelf)
    bound = shelf.results["linear", "autoattack", 0.04]
    assert bound.remarks == ["upper bound: stopped after apgd-ce", "odd; in apgd-ce"]
    last = ""
    run(STAGED, shelf)
    result = shelf.results["linear", "autoattack", 0.04]
    assert result.note == "odd; in apgd-ce; in fab-t"
    assert result.seconds > bound.seconds


def test_a_stage_that_runs_out_of_memory_leaves_no_number_and_the_same_call_goes_on(short, monkeypatch):
    autoattack = importlib.import_module("attacks.autoattack")
    whole, original = run(STAGED), autoattack.run

    def full(stage, *given):
        if stage.name == "fab-t":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(stage, *given)

    with monkeypatch.context() as patched:
        patched.setattr(autoattack, "run", full)
        shelf = run(STAGED)
    failed = shelf.results["linear", "autoattack", 0.04]
    reason = "the attack autoattack under linear raised RuntimeError: out of memory: fab-t on 3 images at once"
    assert failed.failed.startswith(reason)
    assert (failed.complete, [name for name, _ in failed.stages]) == (False, ["apgd-ce"])
    assert shelf.missing.startswith(f"without a number: linear autoattack 0.04 ({reason}")
    assert shelf.results["linear", "pgd", 0.04].complete
    assert run(STAGED, shelf).missing == ""
    assert [key_of(shelf.results[key]) for key in whole.results] == [key_of(each) for each in whole.results.values()]


def test_stages_of_an_attack_with_other_settings_are_not_taken_up(short):
    shelf = run(STAGED)
    key = "linear", "autoattack", 0.04
    other = shelf.results[key].model_copy(
        update={"config_hash": "other", "complete": False, "outcomes": "0" * 8, "stages": [("apgd-ce", 0)]}
    )
    expected, shelf.results[key] = shelf.results[key], other
    run(STAGED, shelf)
    assert key_of(shelf.results[key]) == key_of(expected)


def test_a_limit_of_time_stops_between_stages_and_more_time_goes_on(short, seconds):
    shelf = Shelf()
    unlimited = run(STAGED).results
    clean = weak = 1  # one second for each cell
    first = run(STAGED.model_copy(update={"budget_seconds": 1e-6}))
    assert first.results == {}
    assert first.missing == (
        "the evaluation's 1e-06 s are spent; missing: linear none 0, linear pgd 0.04, linear autoattack 0.04"
    )
    spent = first.probes["linear"][0].seconds
    assert spent == 7.0  # two looks for each of the three cells of its band, and its own
    run(STAGED.model_copy(update={"budget_seconds": spent + clean + weak + 0.5}), shelf)
    bound = shelf.results["linear", "autoattack", 0.04]
    assert (bound.complete, bound.seconds) == (False, 1.0)
    assert bound.bound == "upper bound: stopped by --eval-budget after apgd-ce"
    assert shelf.missing.endswith("s are spent; missing: linear autoattack 0.04")
    before = dict(shelf.results)
    run(STAGED.model_copy(update={"budget_seconds": spent + clean + weak + 0.5}), shelf)
    assert shelf.results == before  # the limit is of the run, not of the call
    run(STAGED.model_copy(update={"budget_seconds": spent + clean + weak + 1.5}), shelf)
    assert shelf.missing == ""
    assert {key: key_of(result) for key, result in shelf.results.items()} == {
        key: key_of(result) for key, result in unlimited.items()
    }
    assert shelf.results["linear", "autoattack", 0.04].seconds == 2.0


class Coarse(Classifier):
    """Class 0 where the pixel is above a bar: .52 in float32, and .505 as long as the search is coarse."""

    coarse = False

    def forward(self, images):
        value = images[:, 0, 0, 0] - (0.505 if Coarse.coarse else 0.52)
        return torch.stack([-value, value], 1)


@contextlib.contextmanager
def coarse(device, enabled):
    Coarse.coarse = enabled
    try:
        yield
    finally:
        Coarse.coarse = False


def test_what_the_search_broke_only_in_its_own_precision_is_attacked_again_in_float32(monkeypatch):
    """Steps of .01 from .5: the coarse search ends at .51, which stands in float32; in float32 it goes on to .53."""
    monkeypatch.setattr(devices, "tf32", coarse)
    pixels = torch.tensor([128, 128, 0, 255], dtype=torch.uint8)[:, None, None, None].expand(4, 3, 4, 4)
    data = type(TEST)(pixels.contiguous(), torch.zeros(4, dtype=torch.long), 2, "flat")
    attack = types.SimpleNamespace(Attack=lambda: pgd.Attack(absolute_step=0.01, random_start=False))
    monkeypatch.setattr(registry, "load", lambda kind, name: attack)
    model = Coarse(torch.nn.Identity()).eval()
    in_float, cell = evaluated(None, test=data), Cell("linear", "pgd", 0.05, 4)
    in_tf32 = evaluated(None, QUICK.model_copy(update={"search": "tf32"}), test=data)
    fine = run_cell(in_float, model, cell)
    assert (fine.outcomes, fine.flips) == ("0010", 0)
    found = run_cell(in_tf32, model, cell)
    assert (found.outcomes, found.flips) == ("0010", 2)
    assert found.config["search"] == "tf32"
    assert "search" not in fine.config
    within = run_cell(in_tf32, model, Cell("linear", "pgd", 0.015, 4))
    assert (within.outcomes, within.flips) == ("1110", 2)  # float32 decides: this ball ends below its bar


# ---------------------------------------------------------------- AutoAttack, on a model that learned something


@pytest.fixture(scope="module")
def trained():
    """cf_amc_ssl on digits after 30 updates, and both sets of images."""
    torch.set_num_threads(1)
    spec = RunSpec(method="cf_amc_ssl", data=DataSpec(name="digits"), budget=Budget.parse("30up"))
    dataset = registry.load("dataset", "digits").Dataset()
    images, test = dataset.load(Path(), "train"), dataset.load(Path(), "test")
    method, _ = build_method(spec, dataset, 1)
    result = train(method, images, spec.budget, 0, CPU)
    assert result.updates == 30
    return method.encoder, images.first(500), test


@pytest.mark.slow  # by default tests/audit/test_zoo.py compares them, on images that AutoAttack has returned before
def test_pgd_leaves_no_fewer_images_standing_than_autoattack(trained):
    encoder, images, test = trained
    spec = EvalSpec(eps=(0.02, 0.05), main_eps=0.05, protocols=("linear",), pgd_images=100, curve=(), band_images=10)
    small = spec.model_copy(update={"autoattack_images": {"linear": 4}})
    shelf = Shelf()
    evaluate(evaluated(shelf, small, encoder, train=images, test=test))
    counts = {key[1:]: result for key, result in shelf.results.items()}
    clean, weak, strong = (counts[key] for key in (("none", 0.0), ("pgd", 0.05), ("autoattack", 0.05)))
    assert clean.correct > 0.8 * 297
    assert strong.total == 4
    assert weak.outcomes[:4].count("1") >= strong.correct - 1
    assert standing(strong.outcomes) <= standing(clean.outcomes)
    assert standing(weak.outcomes) <= standing(clean.outcomes)
    assert counts["pgd", 0.02].correct >= weak.correct
    assert strong.config["ensemble"] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert strong.note == ""
