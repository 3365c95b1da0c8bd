"""Which cells are planned, and that each is filled, counted and kept as it should be."""

import itertools
import types

import pytest
import torch
from evaluation_fixtures import (
    CPU,
    QUICK,
    TEST,
    TRAIN,
    Shelf,
    build_classifier,
    evaluated,
    run,
    spy,
    standing,
    tiny_encoder,
)

from attacks import pgd
from bench import registry
from bench.evaluation import attack_cell
from bench.evaluation import evaluate as module
from bench.evaluation.attack_cell import run_cell
from bench.evaluation.cells import plan_cells
from bench.evaluation.search import Cell
from bench.options.options import Options
from bench.options.scoring import asked_protocols, evaluation
from bench.protocols.common import base
from bench.protocols.common import probe as probe_module
from bench.protocols.common.classifier import Classifier
from bench.protocols.common.probe import fit_probe, linear
from bench.spec import EvalSpec, UsageError

PROTOCOLS = ("linear", "linear_backbone", "multi_patch", "published_eval")


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
        asked_protocols(Options(protocols="linear,lineer"))


# ---------------------------------------------------------------- counting


@pytest.fixture(scope="module")
def quick():
    """A shelf that is only read."""
    torch.set_num_threads(1)
    return run()


def test_every_planned_cell_is_filled_and_counts_its_images():
    shelf, events = Shelf(), []
    spec = QUICK.model_copy(
        update={
            "pgd_images": 12,
            "curve_images": dict.fromkeys(PROTOCOLS, 7),
            "protocols": PROTOCOLS,
        }
    )
    run(spec, shelf, report=events.append)
    cells = plan_cells(spec, 20)
    assert [(c.protocol, c.attack, c.eps) for c in cells] == list(shelf.results)
    assert sorted(shelf.probes) == sorted(PROTOCOLS)
    for cell in cells:
        result = shelf.results[cell.protocol, cell.attack, cell.eps]
        assert len(result.outcomes) == result.total == cell.images
        assert result.correct == sum(outcome == "1" for outcome in result.outcomes)
        assert (result.curve, result.threat_space, result.note) == (cell.curve, "image", "")
    assert sum(event["event"] == "cell" for event in events) == len(cells)
    widths = {name: probe.feature_width for name, (probe, _) in shelf.probes.items()}
    assert widths == {"linear": 24, "multi_patch": 24, "published_eval": 24, "linear_backbone": 128}


def test_every_probe_every_chunk_and_every_cell_is_reported():
    events = []
    spec = QUICK.model_copy(update={"protocols": ("linear",), "curve": (), "chunk": 8, "attacks": ("pgd", "fgsm")})
    shelf = run(spec, report=events.append)
    keys = [("none", 0.0), ("pgd", 0.01), ("pgd", 0.02), ("fgsm", 0.01), ("fgsm", 0.02)]
    said = [event for event in events if event["event"] != "cell"]
    assert said[0] == {"event": "probe", "protocol": "linear"}
    assert said[1:] == [
        {"event": "attack", "protocol": "linear", "attack": attack, "eps": eps, "done": done, "total": 20}
        for attack, eps in keys
        for done in (8, 16, 20)
    ]
    fields = ("protocol", "attack", "eps", "seconds", "note", "correct", "total")
    assert [event for event in events if event["event"] == "cell"] == [
        {"event": "cell"} | {name: getattr(shelf.results["linear", *key], name) for name in fields} for key in keys
    ]


def test_the_config_says_from_which_smaller_eps_broken_images_are_carried():
    results = run(QUICK.model_copy(update={"protocols": ("linear",), "attacks": ("pgd", "fgsm")})).results
    assert {eps: r.config["carried_from"] for (_, attack, eps), r in results.items() if attack == "pgd"} == {
        0.005: [],
        0.01: [],  # .005 is of the curve, which may look at fewer images
        0.02: [0.01],
        0.03: [0.005, 0.01, 0.02],
    }
    assert not any("carried_from" in result.config for key, result in results.items() if key[1] != "pgd")


def test_an_eps_that_was_asked_for_is_attacked_alike_on_all_images_whatever_the_curve(quick):
    """The curve breaks some of its first images; the cells that were asked for are those of a run without it."""
    spec = QUICK.model_copy(update={"curve_images": {"linear": 8}, "eps": (0.05, 0.1), "main_eps": 0.1})
    with_curve, without = run(spec), run(spec.model_copy(update={"curve": ()}))
    (first,) = (r for (protocol, _, _), r in with_curve.results.items() if protocol == "linear" and r.eps == 0.025)
    assert len(standing(first.outcomes)) < len(first.outcomes) == 8
    for key, alone in without.results.items():
        found = with_curve.results[key]
        assert (found.outcomes, found.config_hash) == (alone.outcomes, alone.config_hash)
    for key, pictures in without.images.items():
        assert torch.equal(with_curve.images[key], pictures)


def test_clean_outcomes_are_those_of_the_stored_probe(quick):
    encoder, shelf = tiny_encoder(), quick
    images = TEST.images.float() / 255
    for protocol in ("linear", "multi_patch"):
        probe, tensors = shelf.probes[protocol]
        model = build_classifier(protocol, encoder, (16, 16), 3, 0)
        predicted = (model.features(images) @ tensors["weight"].T + tensors["bias"]).argmax(1)
        right = "".join("1" if p == y else "0" for p, y in zip(predicted, TEST.labels, strict=True))
        assert shelf.results[protocol, "none", 0.0].outcomes == right
        features = model.features(TRAIN.images.float() / 255)
        trained = features @ tensors["weight"].T + tensors["bias"]
        assert probe.train_correct == int(trained.argmax(1).eq(TRAIN.labels).sum())
        fit = fit_probe(features, TRAIN.labels, 10)
        assert (probe.train_total, probe.penalty, probe.held_out) == (60, fit.penalty, fit.held_out)
        assert probe.scale == pytest.approx(fit.scale, rel=1e-5)
        assert probe.gradient_norm <= 1e-6
        assert probe.note == ""


def test_the_band_is_pgd_with_one_restart_around_the_penalty_that_was_chosen():
    spec = QUICK.model_copy(update={"protocols": ("linear",), "restarts": 3, "band_images": 15, "curve": ()})
    shelf = run(spec, seed=2)
    found, _ = shelf.probes["linear"]
    model = build_classifier("linear", tiny_encoder(), (16, 16), 3, 0)
    fit = fit_probe(model.features(TRAIN.images.float() / 255), TRAIN.labels, 10)
    once, expected = spec.model_copy(update={"restarts": 1}), []
    for penalty, layer in sorted((fit.others | {fit.penalty: fit.layer}).items()):
        model.probe = layer
        result = run_cell(evaluated(None, once, seed=2), model, Cell("linear", "pgd", 0.02, 15))
        expected.append((penalty, result.correct, 15))
    assert [penalty / fit.penalty for penalty, _, _ in expected] == pytest.approx([0.1, 1, 10])
    assert found.band == expected
    assert shelf.results["linear", "pgd", 0.02].config["restarts"] == 3


def test_a_probe_that_did_not_converge_says_so(monkeypatch):
    monkeypatch.setattr(probe_module, "GRADIENT_NORM", 0)
    probe, _ = run(QUICK.model_copy(update={"protocols": ("linear",), "curve": (), "eps": (0.02,)})).probes["linear"]
    assert probe.note == f"the probe did not converge: gradient norm {probe.gradient_norm:.2g} above 0"


def test_everything_runs_on_the_device_that_was_asked_for(monkeypatch):
    devices, extract, search = [], base.extract, attack_cell.Search
    monkeypatch.setattr(base, "extract", lambda *args: (devices.append(args[2]), extract(*args))[1])
    monkeypatch.setattr(attack_cell, "Search", lambda *args: (devices.append(args[7]), search(*args))[1])
    run(QUICK.model_copy(update={"protocols": PROTOCOLS, "curve": ()}))
    assert len(devices) == 3 + 4 * 3 + 3 * 3  # features, cells, and three for each probe band
    assert set(devices) == {CPU}


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

    original = registry.load
    only = types.SimpleNamespace(Attack=OnlyAtOne)
    monkeypatch.setattr(registry, "load", lambda kind, name: only if kind == "attack" else original(kind, name))
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


def test_the_stored_classifier_lies_on_the_device_as_a_whole():
    shelf = run(QUICK.model_copy(update={"curve": (), "eps": (0.02,)}))
    for protocol in ("linear", "multi_patch"):
        model = evaluated(shelf, device=torch.device("meta")).stored_classifier(protocol)
        assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    assert evaluated(shelf).stored_classifier("published_eval") is None


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
    for place in (module, attack_cell):
        monkeypatch.setattr(place, "attack_cell", lambda *args: (calls.append(args[2]), original(*args))[1])
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


def test_repeating_gives_the_same_bytes_and_another_seed_other_draws(quick):
    def text(shelf):
        probes = [p.model_copy(update={"seconds": 0}).model_dump_json() for p, _ in shelf.probes.values()]
        return probes + [r.model_copy(update={"seconds": 0}).model_dump_json() for r in shelf.results.values()]

    torch.manual_seed(99)
    assert text(run()) == text(quick)
    other = run(QUICK.model_copy(update={"protocols": ("linear",), "eps": (0.02,), "curve": (0.5,)}), seed=1)
    assert other.results["linear", "pgd", 0.01].config_hash != quick.results["linear", "pgd", 0.01].config_hash


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
    model.probe = linear(tensors["weight"], tensors["bias"])
    before = {*range(20)}
    for (_, attack, eps), result in found.items():
        if attack == "pgd":
            alone = run_cell(evaluated(None, spec), model, Cell("linear", "pgd", eps, 20))
            assert max((size for each, size in passes if each == eps), default=0) <= len(before)
            before &= standing(alone.outcomes)
            assert standing(result.outcomes) == before
    assert 0 < len(before) < 20


def test_features_of_whole_images_are_read_once_for_two_protocols(monkeypatch):
    calls = []
    original = base.extract
    monkeypatch.setattr(base, "extract", lambda *args: (calls.append(type(args[0])), original(*args))[1])
    run(QUICK.model_copy(update={"protocols": ("linear", "multi_patch", "published_eval")}))
    assert [each.__name__ for each in calls] == ["Classifier", "MultiPatch"]


def test_every_parameter_that_an_attack_sees_is_frozen(monkeypatch):
    seen = spy(monkeypatch, "pgd")
    run(
        QUICK.model_copy(update={"protocols": tuple(registry.names("protocol"))}),
        encoder=tiny_encoder().requires_grad_(True),
    )
    assert len(seen) > 4
    assert not any(parameter.requires_grad for model, *_ in seen for parameter in model.parameters())


def test_smaller_subsets_are_prefixes_of_larger():
    small, large = (
        run(QUICK.model_copy(update={"pgd_images": n, "chunk": 5, "protocols": ("linear",)})) for n in (10, 20)
    )
    for key, result in small.results.items():
        assert large.results[key].outcomes.startswith(result.outcomes)
