"""M1 to M6 on a sound classifier, and beside each a twin that is broken in the one way that the check is for."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from evaluation_fixtures import CPU, Shelf, generator, random_images, tiny_encoder
from torch import nn

from bench.audit.audit import run_check
from bench.audit.checks.multi_patch import CHECKS, OfEveryCrop
from bench.audit.checks.subject import Counted, Subject
from bench.evaluation.evaluate import evaluate
from bench.evaluation.evaluated import Evaluated
from bench.evaluation.heads import fitted_classifier
from bench.protocols.common.classifier import MultiPatch, fixed_boxes
from bench.protocols.common.probe import linear
from bench.spec import EvalSpec

SPEC = EvalSpec(
    attacks=("pgd",), eps=(0.02,), main_eps=0.02, protocols=("multi_patch",), crops=4, curve=(), band_images=4, chunk=96
)
N, SIZE = 40, (16, 16)


def patterns(count, seed):
    """A pattern of 4x4 tiles for each class, under noise: what an untrained encoder can tell apart."""
    noise, of_class = random_images(count, seed=seed), torch.rand(10, 3, 4, 4, generator=generator(9))
    tiles = of_class.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)[noise.labels]
    return dataclasses.replace(noise, images=(0.8 * 255 * tiles + 0.2 * noise.images).to(torch.uint8))


@pytest.fixture(scope="module")
def scored():
    """(classifier, test images, cells) after a real evaluation: the probe fitted, clean and PGD results stored."""
    torch.set_num_threads(1)
    encoder, shelf = tiny_encoder(), Shelf()
    train, test = patterns(120, 1), patterns(N, 2)
    it = Evaluated(encoder, train, test, SPEC, 0, CPU, shelf)
    evaluate(it)
    classifier = fitted_classifier(it, "multi_patch", {})
    return classifier, test, shelf


@pytest.fixture
def subject(scored):
    """What the audit would look at: nothing about it is broken."""
    classifier, test, shelf = scored
    images = test.images.float() / 255
    results = {(attack, eps): result for (_, attack, eps), result in shelf.results.items()}
    standing = torch.tensor([outcome == "1" for outcome in results["pgd", 0.02].outcomes])
    with torch.no_grad():
        correct = classifier(images).argmax(dim=1) == test.labels
    assert int(correct.sum()) >= N / 2
    return Subject(
        model=Counted(classifier),
        images=images,
        labels=test.labels,
        eps=0.02,
        protocol="multi_patch",
        classes=10,
        seed=0,
        chunk=24,
        spec=SPEC,
        correct=correct,
        standing=standing,
        audited=N,
        results=results,
        probe=shelf.probes["multi_patch"][0],
    )


def run(name, subject):
    """What the audit stores of the check: its finding and its cost."""
    return run_check(name, CHECKS[name][1], subject)


def twin(subject, kind, boxes=None):
    """The same subject on a broken kind of classifier with the same encoder, probe and boxes."""
    sound = subject.model.model
    boxes = fixed_boxes(SPEC.crops, SIZE, SPEC.crop_seed) if boxes is None else boxes
    broken = kind(sound.encoder, boxes, SIZE)
    broken.probe = sound.probe
    return dataclasses.replace(subject, model=Counted(broken.eval()))


def with_results(subject, **changes):
    """The same subject, its PGD result changed."""
    config = subject.results["pgd", 0.02].config | changes.pop("config", {})
    changed = subject.results["pgd", 0.02].model_copy(update={"config": config} | changes)
    return dataclasses.replace(subject, results=subject.results | {("pgd", 0.02): changed})


def test_a_sound_classifier_passes_all_that_its_records_can_show(subject):
    verdicts = {name: run(name, subject).verdict for name in CHECKS}
    assert verdicts == dict.fromkeys(CHECKS, "PASS")
    assert {level for level, _ in CHECKS.values()} == {"full"}


# ---------------------------------------------------------------- M1: crops that know the image


class ByPlace(MultiPatch):
    """Rolls every image by its place in the batch before it is cut."""

    def crops(self, images):
        return super().crops(torch.stack([image.roll(place, dims=2) for place, image in enumerate(images)]))


class ByCompany(MultiPatch):
    """Shifts the picture by the mean of its batch."""

    def crops(self, images):
        return super().crops(images + 0.1 * images.mean(dim=(0, 2, 3), keepdim=True))


class Drawn(MultiPatch):
    """Cuts other boxes in every call."""

    def crops(self, images):
        boxes = fixed_boxes(SPEC.crops, SIZE, int(torch.randint(1000, (), generator=self.source)))
        return MultiPatch(self.encoder, boxes, SIZE).crops(images)

    source = generator(5)


@pytest.mark.parametrize("kind", [ByPlace, ByCompany, Drawn])
def test_m1_finds_crops_that_depend_on_more_than_the_image(subject, kind):
    check = run("M1", twin(subject, kind))
    assert check.verdict == "FAIL"
    assert check.value > 1e-3


def test_m1_counts_its_passes_and_says_how_little_a_sound_classifier_moves(subject):
    check = run("M1", subject)
    assert check.value < 1e-5
    assert check.passes == 32 + 32 + 11 + 1  # all, the permutation, every third of it, one alone
    assert check.n == 32


def test_m1_is_not_fooled_by_logits_that_are_no_numbers(subject):
    broken = twin(subject, MultiPatch)
    broken.model.model.probe = linear(torch.full((10, 24), torch.nan), torch.zeros(10))
    check = run("M1", broken)
    assert (check.verdict, check.value) == ("FAIL", 1.0)


# ---------------------------------------------------------------- M2: where the adversary stands


def test_m2_wants_the_ranked_attacks_on_the_image(subject):
    check = run("M2", with_results(subject, threat_space="crop", config={"space": "crop"}))
    assert (check.verdict, check.value) == ("FAIL", 1)
    assert "pgd" in check.note


def test_m2_wants_the_space_declared_and_true(subject):
    undeclared = with_results(subject)
    del undeclared.results["pgd", 0.02].config["space"]
    assert run("M2", undeclared).verdict == "FAIL"
    assert run("M2", with_results(subject, config={"space": "crop"})).verdict == "FAIL"


def test_m2_lets_an_attack_on_crops_be_called_one(subject):
    crop = subject.results["pgd", 0.02].model_copy(
        update={"attack": "pgd_crop", "threat_space": "crop", "config": {"space": "crop"}}
    )
    check = run("M2", dataclasses.replace(subject, results=subject.results | {("pgd_crop", 0.02): crop}))
    assert (check.verdict, check.n) == ("PASS", 3)


# ---------------------------------------------------------------- M3: other crops in attack and scoring


@pytest.mark.parametrize("config", [{"crop_seed": 1}, {"crops": 5}, {"crops": None}])
def test_m3_wants_one_crop_list_in_every_config(subject, config):
    check = run("M3", with_results(subject, config=config))
    assert check.verdict == "FAIL"
    assert check.value < 1e-5  # the model itself is fine
    assert "(4, 0) asked for" in check.note


def test_m3_finds_a_model_with_other_crops_than_it_states(subject):
    check = run("M3", twin(subject, MultiPatch, fixed_boxes(SPEC.crops, SIZE, 1)))
    assert check.verdict == "FAIL"
    assert check.value > 1e-3
    assert check.note == ""


# ---------------------------------------------------------------- M4: one crop of the whole image


class HalfPixel(MultiPatch):
    """Cuts half a pixel beside the box."""

    def crops(self, images):
        return super().crops((images + images.roll(1, dims=3)) / 2)


def test_m4_finds_crops_that_are_cut_beside_their_box(subject):
    check = run("M4", twin(subject, HalfPixel))
    assert check.verdict == "FAIL"
    assert check.value >= 1
    assert check.passes == 2 * N


def test_m4_counts_exactly_the_predictions_that_differ(subject):
    broken = twin(subject, HalfPixel)
    model = subject.model.model
    shifted = (subject.images + subject.images.roll(1, dims=3)) / 2
    flips = model.probe(model.encoder(shifted)).argmax(1) != model.probe(model.encoder(subject.images)).argmax(1)
    assert run("M4", broken).value == int(flips.sum())


# ---------------------------------------------------------------- M5: a loss that hides behind the mean


def test_the_loss_of_every_crop_is_their_mean_and_the_logits_are_the_published_ones(subject):
    model, images = subject.model.model, subject.images[:3]
    both = OfEveryCrop(model)
    logits = both(images)
    assert torch.equal(logits, model(images))
    crops = model.crops(images)
    expected = [
        sum(F.cross_entropy(model.probe(model.encoder(crop[None])), label[None]) for crop in of_image) / SPEC.crops
        for of_image, label in zip(crops, subject.labels[:3], strict=True)
    ]
    assert torch.allclose(both.loss(logits, subject.labels[:3]), torch.stack(expected), atol=1e-5)


def test_a_linear_probe_makes_the_mean_of_logits_and_the_logits_of_the_mean_one_function(subject):
    both = OfEveryCrop(subject.model.model)
    logits = both(subject.images[:8])
    assert torch.allclose(both.of_crops.mean(dim=1), logits, atol=1e-4)


class Masked(MultiPatch):
    """The same predictions, but its own forward pass hands out logits so large that cross-entropy is flat."""

    def forward(self, images):
        return super().forward(images) * 1e6


def test_m5_breaks_what_a_flat_loss_of_the_published_logits_protects(subject):
    """The ranked attacks saw the flat loss: all images stand that are right, far outside the margin of any at .1."""
    broken = dataclasses.replace(twin(subject, Masked), eps=0.1, standing=subject.correct.clone())
    check = run("M5", broken)
    assert check.verdict == "FAIL"
    assert check.value >= 3
    assert len(broken.broken["M5"]) >= check.value
    fair = dataclasses.replace(subject, eps=0.1, standing=subject.correct.clone(), broken={})
    assert run("M5", fair).value < check.value


def test_m5_attacks_only_what_the_ranked_attacks_left_and_reports_only_that(subject):
    nothing = dataclasses.replace(subject, standing=torch.zeros(N, dtype=torch.bool), broken={})
    check = run("M5", nothing)
    assert (check.verdict, check.value, nothing.broken) == ("PASS", 0, {"M5": []})
    one = torch.zeros(N, dtype=torch.bool)
    one[7] = True
    alone = dataclasses.replace(subject, eps=0.3, standing=one, broken={})
    run("M5", alone)
    assert alone.broken["M5"] == [7]


def test_m5_has_nothing_to_say_of_a_number_that_is_zero_and_none_without_images(subject):
    assert run("M5", dataclasses.replace(subject, robust=False)).verdict == "N/A"
    assert run("M5", dataclasses.replace(subject, audited=0)).verdict == "NOT_RUN"


# ---------------------------------------------------------------- M6: the head


def test_m6_wants_a_converged_probe_of_this_protocol_on_record(subject):
    check = run("M6", subject)
    assert check.n == 120
    assert "clean-trained linear probe on 24 features" in check.note
    assert run("M6", dataclasses.replace(subject, probe=None)).verdict == "FAIL"
    lazy = subject.probe.model_copy(update={"gradient_norm": 1e-3})
    assert run("M6", dataclasses.replace(subject, probe=lazy)).value == 1e-3
    assert run("M6", dataclasses.replace(subject, probe=lazy)).verdict == "FAIL"
    other = subject.probe.model_copy(update={"protocol": "linear"})
    assert run("M6", dataclasses.replace(subject, probe=other)).verdict == "FAIL"


def test_the_checks_leave_the_classifier_and_the_global_generator_alone(subject):
    state = torch.get_rng_state()
    probe = subject.model.model.probe
    for name in CHECKS:
        run(name, subject)
    assert torch.equal(torch.get_rng_state(), state)
    assert subject.model.model.probe is probe
    assert not any(module.training for module in subject.model.modules() if isinstance(module, nn.BatchNorm2d))
