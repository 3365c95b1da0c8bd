"""Cells, counting and trust: what is planned, what is counted, and that an attack which lies is caught."""

import contextlib
import importlib
import itertools
import logging
import types
from pathlib import Path

import pyautoattack
import pytest
import torch
from evaluation_fixtures import CPU, Shelf, random_images, state_hash, tiny_encoder

from attacks import none, pgd
from bench import device as devices
from bench import evaluate as module
from bench import registry
from bench.engine import build_method
from bench.evaluate import Cell, build_attack, check_protocols, evaluate, plan_cells, run_cell
from bench.options import Options, evaluation
from bench.protocols import Classifier, OfCrops, build_classifier, fixed_boxes
from bench.repro import stream
from bench.spec import Budget, DataSpec, EvalSpec, RunSpec, ThreatModel, UsageError
from bench.train import train

SYNTHETIC = registry.load("dataset", "synthetic").Dataset()
TRAIN, TEST = SYNTHETIC.load(Path(), "train").first(60), SYNTHETIC.load(Path(), "test").first(20)
QUICK = EvalSpec(attacks=("pgd",), eps=(0.01, 0.02), main_eps=0.02, curve=(0.25, 0.5, 1.5), crops=3, pgd_images=None)


def run(spec=QUICK, shelf=None, encoder=None, seed=0, images=TEST, report=lambda event: None):
    shelf = Shelf() if shelf is None else shelf
    shelf.missing = evaluate(encoder or tiny_encoder(), TRAIN, images, spec, seed, CPU, shelf, report)
    return shelf


def spec_of(level, data, **options):
    return evaluation(Options(eval=level, **options), registry.load("dataset", data).Dataset(), CPU)


# ---------------------------------------------------------------- the plan


def planned(level, data, images, **options):
    """(protocol, attack, eps in 255ths or as it is, images, curve) of every cell."""
    unit = 255 if data == "cifar10" else 1
    cells = plan_cells(spec_of(level, data, **options), images)
    assert [c.attack for c in cells] == sorted((c.attack for c in cells), key=["none", "pgd", "autoattack"].index)
    names = list(dict.fromkeys(c.protocol for c in cells))
    cells.sort(key=lambda c: names.index(c.protocol))
    return [(c.protocol, c.attack, round(c.eps * unit, 9), c.images, c.curve) for c in cells]


def expected(protocol, main, asked, curve, pgd_images, curve_images, autoattack, test):
    """A block of one protocol: clean, PGD by growing eps, AutoAttack."""
    by_eps = [(eps, pgd_images, False) for eps in asked] + [(eps, curve_images, True) for eps in curve]
    return [
        (protocol, "none", 0.0, test, False),
        *[(protocol, "pgd", *each) for each in sorted(by_eps)],
        (protocol, "autoattack", main, autoattack, False),
    ]


def published(asked, images, test):
    return [("published_eval", "none", 0.0, test, False)] + [
        ("published_eval", "pgd", eps, images, False) for eps in asked
    ]


def test_quick_plan_on_digits():
    block = ((0.05, 0.1), (0.025, 0.075, 0.15, 0.2))
    assert planned("quick", "digits", 297) == [
        *expected("linear", 0.1, *block, 297, 297, 64, 297),
        *expected("multi_patch", 0.1, *block, 297, 100, 32, 297),
        *published((0.05, 0.1), 297, 297),
    ]


@pytest.mark.parametrize(
    ("level", "images", "pgd_images", "curve_images", "autoattack", "patch_autoattack"),
    [
        ("quick", 10_000, 300, 300, 64, 32),
        ("standard", 10_000, 10_000, 300, 1000, 1000),
        ("standard", 800, 800, 300, 800, 800),
        ("full", 10_000, 10_000, 300, 10_000, 10_000),
    ],
)
def test_plan_on_cifar10(level, images, pgd_images, curve_images, autoattack, patch_autoattack):
    eps = ((4, 8), (2, 6, 12, 16), pgd_images)
    block, patch_block = (*eps, curve_images), (*eps, 100 if level == "quick" else curve_images)
    found = planned(level, "cifar10", images)
    assert found == [
        *expected("linear", 8, *block, autoattack, images),
        *expected("multi_patch", 8, *patch_block, patch_autoattack, images),
        *published((4, 8), pgd_images, images),
        *(expected("linear_backbone", 8, *block, autoattack, images) if level == "full" else []),
    ]


def test_depth_of_the_levels():
    quick, standard, full = (spec_of(level, "cifar10") for level in ("quick", "standard", "full"))
    assert (quick.restarts, standard.restarts, full.restarts) == (1, 5, 5)
    assert (quick.crops, quick.crop_seed, spec_of("quick", "digits").crops) == (16, 0, 4)
    assert (quick.band_images, standard.band_images, full.band_images) == (100, 1000, 1000)
    backbone = spec_of("quick", "cifar10", protocols="linear_backbone")
    assert [c.images for c in plan_cells(backbone, 10_000) if c.attack == "autoattack"] == [64]


def test_a_point_of_the_curve_beside_an_eps_that_was_asked_for_is_that_one():
    cells = plan_cells(EvalSpec(attacks=("pgd",), eps=(0.075, 0.1), main_eps=0.1, protocols=("linear",)), 1000)
    assert [(c.eps, c.curve) for c in cells if 0.07 < c.eps < 0.08] == [(0.075, False)]  # .75 * .1 is another number
    assert max(c.eps for c in plan_cells(EvalSpec(eps=(0.9,), main_eps=0.9, attacks=("pgd",)), 10)) == 0.9


def test_other_attacks_run_at_every_eps_without_a_curve():
    cells = plan_cells(QUICK.model_copy(update={"attacks": ("none", "fgsm", "pgd_crop")}), 20)
    block = [("none", 0.0), ("fgsm", 0.01), ("fgsm", 0.02), ("pgd_crop", 0.01), ("pgd_crop", 0.02)]
    assert [(c.attack, c.eps) for c in cells if c.protocol == "linear"] == block
    assert [(c.attack, c.eps) for c in cells if c.protocol == "multi_patch"] == block


def test_unknown_protocol_is_a_usage_error():
    with pytest.raises(UsageError, match="unknown protocol 'lineer'; did you mean 'linear'"):
        check_protocols(("linear", "lineer"))


# ---------------------------------------------------------------- counting


def test_every_planned_cell_is_filled_and_counts_its_images():
    shelf, events = Shelf(), []
    spec = QUICK.model_copy(
        update={
            "pgd_images": 12,
            "curve_images": dict.fromkeys(module.PROTOCOLS, 7),
            "protocols": module.PROTOCOLS,
        }
    )
    run(spec, shelf, report=events.append)
    cells = plan_cells(spec, 20)
    assert [(c.protocol, c.attack, c.eps) for c in cells] == list(shelf.results)
    assert sorted(shelf.probes) == sorted(module.PROTOCOLS)
    for cell in cells:
        result = shelf.results[cell.protocol, cell.attack, cell.eps]
        assert len(result.outcomes) == result.total == cell.images
        assert result.correct == sum(outcome == "1" for outcome in result.outcomes)
        assert (result.curve, result.threat_space, result.note) == (cell.curve, "image", "")
    assert sum(event["event"] == "cell" for event in events) == len(cells)
    widths = {name: probe.feature_width for name, (probe, _) in shelf.probes.items()}
    assert widths == {"linear": 24, "multi_patch": 24, "published_eval": 24, "linear_backbone": 128}


def test_clean_outcomes_are_those_of_the_stored_probe():
    encoder, shelf = tiny_encoder(), run()
    images = TEST.images.float() / 255
    for protocol in ("linear", "multi_patch"):
        probe, tensors = shelf.probes[protocol]
        model = build_classifier(protocol, encoder, (16, 16), 3, 0)
        predicted = (model.features(images) @ tensors["weight"].T + tensors["bias"]).argmax(1)
        right = "".join("1" if p == y else "0" for p, y in zip(predicted, TEST.labels, strict=True))
        assert shelf.results[protocol, "none", 0.0].outcomes == right
        trained = model.features(TRAIN.images.float() / 255) @ tensors["weight"].T + tensors["bias"]
        assert probe.train_correct == int(trained.argmax(1).eq(TRAIN.labels).sum())
        assert [total for _, _, total in probe.band] == [20] * 3
        assert [penalty for penalty, _, _ in probe.band] == pytest.approx(
            [probe.penalty / 10, probe.penalty, 10 * probe.penalty]
        )


def standing(outcomes):
    return {n for n, outcome in enumerate(outcomes) if outcome == "1"}


def test_an_image_broken_at_a_smaller_eps_counts_as_broken_at_every_larger_one(monkeypatch):
    """An attack that breaks image 4 at eps .01 only (and returns all others as they are) breaks it from there on."""

    class OnlyAtOne(pgd.Attack):
        def perturb(self, model, images, labels, threat, generator, attacked=None):
            moved = images.clone()
            if threat.eps == 0.01:
                moved[4] = (moved[4] + 0.01).clamp(0, 1)
            return moved

    class Marked(Classifier):
        """Right on every image, except where the picture is not the original."""

        def forward(self, images):
            labels = torch.stack([TEST.labels[self.index(image)] for image in images])
            return torch.nn.functional.one_hot(labels, 10).float()

        def index(self, image):
            distance = (TEST.images.float() / 255 - image).abs().amax((1, 2, 3))
            nearest = int(distance.argmin())
            return nearest if distance[nearest] == 0 else (nearest + 1) % 10

    monkeypatch.setattr(registry, "load", lambda kind, name: types.SimpleNamespace(Attack=OnlyAtOne))
    monkeypatch.setattr(module, "fitted_classifier", lambda *args: Marked(tiny_encoder()).eval())
    shelf = run(QUICK.model_copy(update={"protocols": ("linear",)}))
    found = {
        eps: set(range(20)) - standing(r.outcomes) for (_, attack, eps), r in shelf.results.items() if attack == "pgd"
    }
    assert found == {0.005: set(), 0.01: {4}, 0.02: {4}, 0.03: {4}}
    again = Shelf()  # the flags are carried over stored cells too
    again.results = {key: r for key, r in shelf.results.items() if key[2] != 0.02}
    run(QUICK.model_copy(update={"protocols": ("linear",)}), again)
    assert again.results["linear", "pgd", 0.02].outcomes == shelf.results["linear", "pgd", 0.02].outcomes


def test_robust_images_are_nested_over_eps_and_among_the_clean_ones():
    shelf = run(QUICK.model_copy(update={"eps": (0.1, 0.2), "main_eps": 0.2}))
    for protocol in ("linear", "multi_patch"):
        results = [r for key, r in shelf.results.items() if key[0] == protocol]
        assert [r.eps for r in results] == pytest.approx([0, 0.05, 0.1, 0.2, 0.3])
        sets = [standing(r.outcomes) for r in results]
        assert all(larger <= smaller for smaller, larger in itertools.pairwise(sets))
        assert 20 >= len(sets[0]) > len(sets[-1])


def test_finished_cells_are_not_run_again(monkeypatch):
    calls = []
    original = module.attack_cell
    monkeypatch.setattr(module, "attack_cell", lambda *args: (calls.append(args[2]), original(*args))[1])
    shelf = run()
    assert len(calls) == 2 * (1 + 5 - 1 + 3)  # for each protocol: clean, four eps, and three for the probe band
    first = dict(shelf.results)
    calls.clear()
    run(shelf=shelf)
    assert calls == []
    assert shelf.results == first
    del shelf.results["multi_patch", "pgd", 0.01]
    run(shelf=shelf)
    assert [(c.protocol, c.eps) for c in calls] == [("multi_patch", 0.01)]
    assert shelf.results["multi_patch", "pgd", 0.01].outcomes == first["multi_patch", "pgd", 0.01].outcomes


def test_repeating_gives_the_same_bytes_and_another_seed_other_draws():
    def text(shelf):
        probes = [p.model_copy(update={"seconds": 0}).model_dump_json() for p, _ in shelf.probes.values()]
        return probes + [r.model_copy(update={"seconds": 0}).model_dump_json() for r in shelf.results.values()]

    first = text(run())
    torch.manual_seed(99)
    assert text(run()) == first
    assert run(seed=1).results["linear", "pgd", 0.01].config_hash != run().results["linear", "pgd", 0.01].config_hash


def test_images_that_a_smaller_eps_broke_cost_nothing_and_change_no_outcome(monkeypatch):
    passes = []
    original = pgd.Attack.perturb

    def counting(self, model, images, labels, threat, generator, attacked):
        hook = model.register_forward_hook(lambda m, inputs, out: passes.append((threat.eps, len(inputs[0]))))
        moved = original(self, model, images, labels, threat, generator, attacked)
        hook.remove()
        return moved

    spec = QUICK.model_copy(update={"chunk": 8, "protocols": ("linear",), "restarts": 2, "band_images": 1})
    with monkeypatch.context() as patch:
        patch.setattr(pgd.Attack, "perturb", counting)
        found = run(spec).results
    model = build_classifier("linear", tiny_encoder(), (16, 16), 3, 0)
    _, tensors = run(spec).probes["linear"]
    model.probe = module.linear(tensors["weight"], tensors["bias"])
    before = {*range(20)}
    for (_, attack, eps), result in found.items():
        if attack == "pgd":
            alone = run_cell(model, TEST, Cell("linear", "pgd", eps, 20), spec, 0, CPU, None, lambda event: None)
            assert max((size for each, size in passes if each == eps), default=0) <= len(before)
            before &= standing(alone.outcomes)
            assert standing(result.outcomes) == before
    assert 0 < len(before) < 20


def test_features_of_whole_images_are_read_once_for_two_protocols(monkeypatch):
    calls = []
    original = module.extract
    monkeypatch.setattr(module, "extract", lambda *args: (calls.append(type(args[0])), original(*args))[1])
    run(QUICK.model_copy(update={"protocols": ("linear", "multi_patch", "published_eval")}))
    assert [each.__name__ for each in calls] == ["Classifier", "MultiPatch"]


def test_every_parameter_that_an_attack_sees_is_frozen(monkeypatch):
    seen = spy(monkeypatch, "pgd")
    run(QUICK.model_copy(update={"protocols": module.PROTOCOLS}), encoder=tiny_encoder().requires_grad_(True))
    assert len(seen) > 4
    assert not any(parameter.requires_grad for model, *_ in seen for parameter in model.parameters())


def test_smaller_subsets_are_prefixes_of_larger():
    small, large = (
        run(QUICK.model_copy(update={"pgd_images": n, "chunk": 5, "protocols": ("linear",)})) for n in (10, 20)
    )
    for key, result in small.results.items():
        assert large.results[key].outcomes.startswith(result.outcomes)


# ---------------------------------------------------------------- no trace


def test_encoder_generator_and_test_set_stay_as_they_were():
    encoder = tiny_encoder().train().requires_grad_(True)
    before, images, state = state_hash(encoder), TEST.sha256, torch.get_rng_state()
    modes = []
    encoder.backbone[2].register_forward_hook(lambda m, *_: modes.append(m.training))  # batch norm is folded away
    spec = QUICK.model_copy(update={"attacks": ("pgd", "pgd_crop", "noise"), "protocols": module.PROTOCOLS})
    run(spec, encoder=encoder)
    assert state_hash(encoder) == before
    assert not any(modes)
    assert len(modes) > 50
    assert all(p.grad is None for p in encoder.parameters())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert type(TEST)(TEST.images, TEST.labels, 10, "random").sha256 == images


def test_listening_restores_the_loggers():
    loggers = [logging.getLogger(name) for name in ("attacks", "auto-attack")]
    own = logging.NullHandler()
    loggers[0].addHandler(own)
    loggers[0].setLevel(logging.ERROR)
    before = [(list(each.handlers), each.level, each.propagate) for each in loggers]
    events = []
    with contextlib.suppress(KeyError), module.listening(Cell("linear", "pgd", 0.1, 3), events.append) as warnings:
        loggers[0].warning("something %s", "odd")
        loggers[1].info("step 3")
        raise KeyError
    assert warnings == ["something odd"]
    assert [event["message"] for event in events] == ["step 3"]
    assert [(list(each.handlers), each.level, each.propagate) for each in loggers] == before
    loggers[0].removeHandler(own)
    loggers[0].setLevel(logging.NOTSET)


# ---------------------------------------------------------------- attacks that lie


def lying(change):
    """An attack that changes images (B, C, H, W) in its own way."""

    class Liar(none.Attack):
        def perturb(self, model, images, labels, threat, generator):
            return change(images, labels)

    return types.SimpleNamespace(Attack=Liar)


def in_place(images, labels):
    images += 0.05
    return images.clamp_(0, 1)


LIES = {
    "leaves the ball": (
        lambda x, y: (x + 0.021).clamp(0, 1),
        "liar under linear left its threat model: distance 0.021",
    ),
    "leaves the box": (lambda x, y: x + 0.019, r"liar under linear left its threat model.*pixels in \[0.019, 1.019\]"),
    "leaves the box below": (lambda x, y: x - 0.019, r"liar .* left its threat model.*pixels in \[-0.019, 0.981\]"),
    "moves what it was given": (in_place, "liar under linear left its threat model: distance 0.05"),
    "returns NaN": (lambda x, y: x * float("nan"), "liar under linear returned pixels that are not finite"),
    "returns fewer": (lambda x, y: x[:-1], r"liar under linear returned \(11, 3, 16, 16\) for \(12, 3, 16, 16\)"),
    "returns another size": (lambda x, y: x[..., :8], r"returned \(12, 3, 16, 8\) for \(12, 3, 16, 16\)"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_attack_that_lies_is_named(lie, monkeypatch):
    change, message = LIES[lie]
    monkeypatch.setattr(registry, "load", lambda kind, name: lying(change))
    before = TEST.images.clone(), TEST.labels.clone()
    model = Classifier(tiny_encoder()).eval()
    with pytest.raises(RuntimeError, match=message):
        run_cell(model, TEST, Cell("linear", "liar", 0.02, 12), QUICK, 0, CPU, None, lambda event: None)
    assert torch.equal(TEST.images, before[0])
    assert torch.equal(TEST.labels, before[1])


def test_an_attack_that_changes_the_labels_does_not_change_the_count(monkeypatch):
    monkeypatch.setattr(registry, "load", lambda kind, name: lying(lambda x, y: (y.fill_(0), x)[1]))
    labels = TEST.labels.clone()
    found = run_cell(
        Classifier(tiny_encoder()).eval(),
        TEST,
        Cell("linear", "liar", 0.1, 20),
        QUICK,
        0,
        CPU,
        None,
        lambda event: None,
    )
    monkeypatch.undo()
    clean = run_cell(
        Classifier(tiny_encoder()).eval(),
        TEST,
        Cell("linear", "none", 0.0, 20),
        QUICK,
        0,
        CPU,
        None,
        lambda event: None,
    )
    assert found.outcomes == clean.outcomes
    assert torch.equal(TEST.labels, labels)


def test_an_attack_that_leaves_train_mode_on_is_caught(monkeypatch):
    model = Classifier(tiny_encoder()).eval()
    monkeypatch.setattr(registry, "load", lambda kind, name: lying(lambda x, y: (model.train(), x)[1]))
    with pytest.raises(AssertionError, match="train mode"):
        run_cell(model, TEST, Cell("linear", "liar", 0.1, 20), QUICK, 0, CPU, None, lambda event: None)


def test_an_attack_of_the_users_own_goes_by_its_files_name(tmp_path):
    text = Path(importlib.import_module("attacks.fgsm").__file__).read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    spec = QUICK.model_copy(update={"attacks": (str(tmp_path / "mine.py"), "fgsm"), "protocols": ("linear",)})
    shelf = run(spec)
    assert [key[1] for key in shelf.results] == ["none", "mine", "mine", "fgsm", "fgsm"]
    assert shelf.results["linear", "mine", 0.01].outcomes == shelf.results["linear", "fgsm", 0.01].outcomes


# ---------------------------------------------------------------- settings of the attacks


def test_config_hash_is_equal_for_equal_settings_only():
    def hash_of(encoder=None, seed=0, images=10, eps=0.01, attack="pgd", protocol="linear", **changes):
        model = build_classifier(protocol, encoder or tiny_encoder(), (16, 16), 3, 0)
        cell = Cell(protocol, attack, eps, images)
        spec = QUICK.model_copy(update=changes)
        return run_cell(model, TEST, cell, spec, seed, CPU, None, lambda event: None).config_hash

    first = hash_of()
    assert len(first) == 16
    assert hash_of(encoder=tiny_encoder(seed=5)) == first  # two methods, one attack
    others = [
        hash_of(eps=0.02),
        hash_of(seed=1),
        hash_of(images=9),
        hash_of(attack="fgsm"),
        hash_of(chunk=100),
        hash_of(restarts=2),
        hash_of(protocol="multi_patch"),
        hash_of(protocol="multi_patch", crop_seed=1),
    ]
    assert len({first, *others}) == 9


def test_steps_are_part_of_the_config_hash(monkeypatch):
    hashes = set()
    for steps in (20, 21):
        attack = types.SimpleNamespace(Attack=lambda steps=steps: pgd.Attack(steps=steps))
        monkeypatch.setattr(registry, "load", lambda kind, name, attack=attack: attack)
        cell = Cell("linear", "pgd", 0.01, 4)
        result = run_cell(Classifier(tiny_encoder()).eval(), TEST, cell, QUICK, 0, CPU, None, lambda event: None)
        assert result.config["steps"] == steps
        hashes.add(result.config_hash)
    assert len(hashes) == 2


def test_published_eval_has_the_papers_own_pgd_and_probe():
    spec = EvalSpec(restarts=5, crops=16)
    attack = build_attack(Cell("published_eval", "pgd", 8 / 255, 10), spec)
    assert (attack.steps, attack.step(8 / 255), attack.random_start) == (20, 0.01, False)
    ranked = build_attack(Cell("linear", "pgd", 8 / 255, 10), spec)
    assert (ranked.steps, ranked.step(8 / 255), ranked.random_start, ranked.restarts) == (20, 2 / 255, True, 5)
    probe, tensors = run(QUICK.model_copy(update={"protocols": ("published_eval",)})).probes["published_eval"]
    assert (probe.penalty, probe.band, probe.held_out) == (0.0, [], [])
    assert probe.note == "Adam 3e-4, 20 epochs, batches of 256 (arXiv:2501.03507)"
    assert tensors["weight"].shape == (10, 24)


def test_batches_of_the_attacks_count_crops():
    spec = EvalSpec(crops=16, chunk=512, autoattack_batch=500)
    assert build_attack(Cell("linear", "pgd", 0.1, 10), spec).chunk == 512
    assert build_attack(Cell("multi_patch", "pgd", 0.1, 10), spec).chunk == 32
    assert build_attack(Cell("multi_patch", "autoattack", 0.1, 10), spec).batch == 31
    assert build_attack(Cell("multi_patch", "pgd", 0.1, 10), spec.model_copy(update={"chunk": 8})).chunk == 1


def test_the_probe_band_never_takes_more_crops_at_once_than_asked_for(monkeypatch):
    sizes = []
    original = Classifier.features_of_crops
    monkeypatch.setattr(
        Classifier, "features_of_crops", lambda self, x: (sizes.append(x.shape[0] * x.shape[1]), original(self, x))[1]
    )
    run(QUICK.model_copy(update={"chunk": 12, "protocols": ("multi_patch",)}))
    assert max(sizes) == 12


# ---------------------------------------------------------------- two spaces


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


def test_attack_in_crop_space_moves_every_crop_by_up_to_eps(monkeypatch):
    seen = spy(monkeypatch, "pgd_crop")
    shelf = run(QUICK.model_copy(update={"attacks": ("pgd_crop",), "protocols": ("multi_patch",)}))
    model, crops, moved, threat = seen[-1]
    assert isinstance(model, OfCrops)
    assert threat == ThreatModel(eps=0.02, space="crop")
    assert crops.shape == moved.shape == (20, 3, 3, 16, 16)
    right = torch.tensor([o == "1" for o in shelf.results["multi_patch", "none", 0.0].outcomes])
    distance = (moved - crops).abs().amax((2, 3, 4))[right]  # (images, crops); the wrong ones are left as they are
    assert float(distance.max()) <= 0.02 + 1e-6
    assert bool((distance > 0.009).all())
    spaces = {key[1]: result.threat_space for key, result in shelf.results.items()}
    assert spaces == {"none": "image", "pgd_crop": "crop"}
    assert shelf.results["multi_patch", "pgd_crop", 0.02].config["space"] == "crop"


def test_attack_in_image_space_moves_the_picture_only(monkeypatch):
    seen = spy(monkeypatch, "pgd")
    run(QUICK.model_copy(update={"protocols": ("multi_patch",)}))
    for model, images, moved, threat in seen:
        assert images.shape == moved.shape == (20, 3, 16, 16)
        assert threat.space == "image"
        assert model.rows.shape == (3, 16, 16)
        assert torch.equal(images, TEST.images.float() / 255)
    assert torch.equal(seen[-1][0].rows, build_classifier("multi_patch", tiny_encoder(), (16, 16), 3, 0).rows)
    assert fixed_boxes(3, (16, 16), 0).shape == (3, 4)


# ---------------------------------------------------------------- AutoAttack, on a model that learned something


@pytest.fixture(scope="module")
def trained():
    """cf_amc_ssl on digits after 30 updates, and both sets of images."""
    torch.set_num_threads(1)
    spec = RunSpec(method="cf_amc_ssl", data=DataSpec(name="digits"), budget=Budget.parse("30up"))
    dataset = registry.load("dataset", "digits").Dataset()
    images, test = dataset.load(Path(), "train"), dataset.load(Path(), "test")
    method, _ = build_method(spec, dataset, 1)
    result, _ = train(method, images, spec.budget, 0, CPU)
    assert result.updates == 30
    return method.encoder, images.first(500), test


def test_pgd_leaves_no_fewer_images_standing_than_autoattack(trained):
    encoder, images, test = trained
    spec = EvalSpec(eps=(0.02, 0.05), main_eps=0.05, protocols=("linear",), pgd_images=100, curve=(), band_images=10)
    small = spec.model_copy(update={"autoattack_images": {"linear": 4}})
    shelf = Shelf()
    evaluate(encoder, images, test, small, 0, CPU, shelf)
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


def test_warnings_of_an_attack_go_into_the_note():
    data = random_images(6, classes=3)
    spec = EvalSpec(attacks=("autoattack",), eps=(0.1,), main_eps=0.1, protocols=("linear",), band_images=2)
    shelf = Shelf()
    evaluate(tiny_encoder(), data, data, spec, 0, CPU, shelf)
    note = shelf.results["linear", "autoattack", 0.1].note
    assert note == "autoattack on 3 classes is reduced to apgd-ce, fab-t, square with 2 target classes"
    assert shelf.results["linear", "none", 0.0].note == ""


def test_crops_in_the_config_are_those_of_the_protocol():
    shelf = run()
    assert "crops" not in shelf.results["linear", "pgd", 0.01].config
    config = shelf.results["multi_patch", "pgd", 0.01].config
    assert (config["crops"], config["crop_seed"]) == (3, 0)


# ---------------------------------------------------------------- stages, a limit of time, precision of the search

STAGED = EvalSpec(
    attacks=("autoattack", "pgd"), eps=(0.04,), main_eps=0.04, curve=(), protocols=("linear",), band_images=1,
    autoattack_images={"linear": 8}, autoattack_batch=3, pgd_images=8,
)  # fmt: skip
SHORT = ("apgd-ce", "fab-t")


@pytest.fixture
def short(monkeypatch):
    """AutoAttack of two stages and one target class, which takes seconds less."""
    autoattack = importlib.import_module("attacks.autoattack")
    monkeypatch.setattr(autoattack, "ensemble", lambda classes: (list(SHORT), 1))


@pytest.fixture
def seconds(monkeypatch):
    """A clock that goes on by one with every look, so that every stage and every probe takes a second."""
    clock = itertools.count()
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: float(next(clock))))


def key_of(result):
    return result.model_copy(update={"seconds": 0}).model_dump_json()


def test_stages_on_the_images_still_standing_are_the_package_bit_for_bit(monkeypatch):
    stage = importlib.import_module("attacks.autoattack").Stage
    original, found = stage.perturb, {}

    def remember(self, model, images, labels, threat, generator):
        moved = original(self, model, images, labels, threat, generator)
        found.update({image.numpy().tobytes(): (model, after) for image, after in zip(images, moved, strict=True)})
        return moved

    monkeypatch.setattr(stage, "perturb", remember)
    result = run(STAGED.model_copy(update={"eps": (0.037,), "main_eps": 0.037})).results["linear", "autoattack", 0.037]
    clean, labels = TEST.images[:8].float() / 255, TEST.labels[:8]
    model = found[clean[0].numpy().tobytes()][0]
    seed = stream(0, "attack", "autoattack", 0).initial_seed() % 2**31
    with torch.random.fork_rng(devices=[]):
        package = pyautoattack.AutoAttack(model, norm="Linf", eps=0.037, seed=seed, version="standard")
        expected, predicted = package.run_standard_evaluation(clean, labels, batch_size=3)
    assert torch.equal(torch.stack([found[image.numpy().tobytes()][1] for image in clean]), expected)
    assert result.outcomes == "".join("1" if right else "0" for right in predicted.eq(labels).tolist())
    assert [name for name, _ in result.stages] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert 0 < result.correct < 8


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
    assert (bound.complete, bound.note) == (False, "upper bound: stopped after apgd-ce")
    assert bound.stages == expected.stages[:1]
    assert standing(bound.outcomes) >= standing(expected.outcomes)
    again = []
    monkeypatch.setattr(autoattack, "run", lambda stage, *args: (again.append(stage.name), original(stage, *args))[1])
    run(STAGED, shelf)
    assert again == ["fab-t"]
    assert key_of(shelf.results["linear", "autoattack", 0.04]) == key_of(expected)
    for attack in ("pgd", "autoattack"):
        assert torch.equal(shelf.images["linear", attack], whole.images["linear", attack])


def test_an_image_is_kept_as_the_attack_that_decided_returned_it(short):
    """Broken by PGD at a smaller eps: inside that ball; standing under AutoAttack: the clean image."""
    shelf = run(STAGED.model_copy(update={"eps": (0.02, 0.04, 0.08), "curve": (0.25, 1.5)}))
    images = TEST.images.float() / 255
    assert shelf.images.keys() == {("linear", "pgd"), ("linear", "autoattack")}
    moved = shelf.images["linear", "pgd"]
    distance = (moved - images[: len(moved)]).flatten(1).abs().amax(dim=1)
    left = {eps: shelf.results["linear", "pgd", eps].outcomes for eps in (0.01, 0.02, 0.04)}
    for place in range(min(map(len, left.values()))):
        broken = next((eps for eps in sorted(left) if left[eps][place] == "0"), 0.04)
        assert distance[place] <= broken + 1e-6
    autoattack = shelf.results["linear", "autoattack", 0.04].outcomes
    kept = shelf.images["linear", "autoattack"]
    assert len(kept) == len(autoattack)
    assert [outcome for outcome, a, b in zip(autoattack, kept, images, strict=False) if torch.equal(a, b)].count(
        "1"
    ) == autoattack.count("1")


def test_an_attack_that_leaves_a_trace_is_written_down(monkeypatch):
    original = pgd.Attack.perturb

    def careless(self, *args, **options):
        torch.rand(1)
        return original(self, *args, **options)

    clean = run(QUICK).results
    assert {trace for result in clean.values() for trace in result.traces} == set()
    monkeypatch.setattr(pgd.Attack, "perturb", careless)
    state = torch.get_rng_state()
    traces = {(r.attack, tuple(r.traces)) for r in run(QUICK).results.values() if r.protocol == "linear"}
    torch.set_rng_state(state)
    assert traces == {("none", ()), ("pgd", ("generators",))}


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
    run(STAGED.model_copy(update={"budget_seconds": spent + clean + weak + 0.5}), shelf)
    bound = shelf.results["linear", "autoattack", 0.04]
    assert (bound.complete, bound.seconds) == (False, 1.0)
    assert bound.note == "upper bound: stopped by --eval-budget after apgd-ce"
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
    args = data, Cell("linear", "pgd", 0.05, 4), QUICK, 0, CPU, None, lambda event: None
    fine = run_cell(model, *args)
    assert (fine.outcomes, fine.flips) == ("0010", 0)
    found = run_cell(model, *args[:2], QUICK.model_copy(update={"search": "tf32"}), *args[3:])
    assert (found.outcomes, found.flips) == ("0010", 2)
    assert found.config["search"] == "tf32"
    assert "search" not in fine.config
    within = run_cell(
        model, data, Cell("linear", "pgd", 0.015, 4), QUICK.model_copy(update={"search": "tf32"}), *args[3:]
    )
    assert (within.outcomes, within.flips) == ("1110", 2)  # float32 decides: this ball ends below its bar
