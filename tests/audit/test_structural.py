"""Each structural check on a subject that is sound, and on one that is broken in the way that it looks for."""

from dataclasses import replace

import pytest
import torch
from audit_fixtures import classifier, result, subject
from torch import nn

from bench.audit.checks.structural import CHECKS

EPS = 0.1


def run(id, found):
    return CHECKS[id][1](found)


class Wrapped(nn.Module):
    """Images -> change(logits)."""

    def __init__(self, change):
        super().__init__()
        self.inner, self.change = classifier(), change
        self.eval().requires_grad_(False)

    def forward(self, images):
        return self.change(self.inner(images))


def with_results(found, attack, eps=EPS, **changes):
    """The same subject with another published result."""
    other = found.results[attack, eps].model_copy(update=changes)
    return replace(found, results=found.results | {(attack, eps): other})


@pytest.mark.parametrize("id", CHECKS)
def test_a_sound_subject_passes(id):
    found = run(id, subject())
    assert (found.id, found.verdict, found.note.count("Error")) == (id, "PASS", 0)
    assert CHECKS[id][0] == "core"


@pytest.mark.parametrize("id", ["S1", "S2", "S3", "S4", "S5", "S8", "S12", "S13", "S14"])
def test_missing_evidence_raises(id):
    """The audit takes that as NOT_RUN."""
    with pytest.raises(LookupError):
        run(id, subject(results={}, adversarial={}, stored={}))


def test_s1_a_hash_that_is_not_that_of_the_configuration():
    assert run("S1", with_results(subject(), "pgd", config_hash="0" * 16)).verdict == "FAIL"
    pgd, autoattack = (subject().results[name, EPS] for name in ("pgd", "autoattack"))
    assert run("S1", subject()).note == f"{pgd.config_hash}+{autoattack.config_hash}"


@pytest.mark.parametrize(
    ("steps", "start", "reach", "verdict"),
    [(8, True, 2.0, "PASS"), (7, True, 1.75, "FAIL"), (4, False, 1.0, "PASS"), (3, False, 0.75, "FAIL")],
)
def test_s2_too_few_steps_for_the_ball(steps, start, reach, verdict):
    config = {"steps": steps, "relative_step": 0.25, "absolute_step": None, "random_start": start}
    found = run("S2", with_results(subject(), "pgd", config=config))
    assert (found.value, found.verdict) == (pytest.approx(reach), verdict)


def test_s3_survivors_that_were_never_moved_far():
    sound = subject()
    clean = sound.images
    half = {"pgd": clean + (sound.adversarial["pgd"] - clean) / 2}
    found = run("S3", replace(sound, adversarial=sound.adversarial | half))
    assert (found.verdict, found.value, found.n) == ("FAIL", 0.0, 6)
    one = sound.adversarial["pgd"].clone()
    one[0] = clean[0]
    found = run("S3", replace(sound, adversarial=sound.adversarial | {"pgd": one}))
    assert (found.verdict, found.value) == ("WARN", pytest.approx(5 / 6))  # one image fails no number
    broken = with_results(sound, "pgd", outcomes="0" * 8)
    assert run("S3", broken).verdict == "N/A"


@pytest.mark.parametrize("move", [lambda x: x + 2 * EPS, lambda x: x - 2, lambda x: x * torch.nan])
def test_s4_one_pixel_outside_the_ball_or_the_box(move):
    sound = subject()
    moved = sound.adversarial["pgd"].clone()
    moved[2, 0, 0, 0] = move(moved[2, 0, 0, 0])
    found = run("S4", replace(sound, adversarial=sound.adversarial | {"pgd": moved}))
    assert (found.verdict, found.value, found.n) == ("FAIL", 1.0, 14)
    assert run("S4", replace(sound, images=sound.images * 255)).verdict == "FAIL"


def test_s5_other_weights_another_probe_or_another_clean_outcome():
    sound = subject()
    for name in ("encoder", "probe"):
        found = run("S5", replace(sound, loaded=sound.loaded | {name: "z"}))
        assert (found.verdict, found.note) == ("FAIL", f"other {name} than stored")
    found = run("S5", with_results(sound, "none", 0.0, outcomes="11111101"))
    assert (found.verdict, found.value, found.n) == ("FAIL", 1.0, 8)
    other = subject(classifier(seed=1))
    assert run("S5", replace(other, labels=sound.labels)).verdict == "FAIL"


class CountsPasses(nn.Module):
    """Batch norm in train mode, say: each pass moves a buffer."""

    def __init__(self, training):
        super().__init__()
        self.inner = classifier()
        self.register_buffer("passes", torch.zeros(()))
        self.eval().requires_grad_(False).train(training)

    def forward(self, images):
        self.passes += 1
        return self.inner(images)


def test_s6_train_mode_and_state_that_a_pass_changes():
    still = subject(classifier())
    still.model.model.probe.train()
    assert (run("S6", still).verdict, run("S6", still).value) == ("FAIL", 1.0)
    found = run("S6", subject(CountsPasses(False)))
    assert (found.verdict, found.note) == ("FAIL", "changed: state")
    assert run("S6", with_results(subject(), "pgd", traces=["modes"])).note == "changed: modes"


class Gradient(nn.Module):
    """Another function where gradients are wanted: what is attacked is not what is scored."""

    def __init__(self, only_first=False):
        super().__init__()
        self.inner, self.only_first = classifier(), only_first
        self.eval().requires_grad_(False)

    def forward(self, images):
        logits = self.inner(images)
        if self.only_first:  # depends on the place in the batch
            return logits + torch.nn.functional.one_hot(torch.zeros(1, dtype=torch.long), len(logits)).float().mT
        return logits + 0.01 * torch.is_grad_enabled()


@pytest.mark.parametrize("only_first", [False, True])
def test_s7_attacked_and_scored_functions_differ(only_first):
    found = run("S7", subject(Gradient(only_first)))
    assert found.verdict == "FAIL"
    assert found.value > 1e-4


def test_s8_results_of_other_images():
    assert run("S8", with_results(subject(), "pgd", outcomes="1111")).note == "pgd"
    short = with_results(subject(), "none", 0.0, outcomes="1111", config={"images": 4})
    assert run("S8", short).verdict == "FAIL"
    sound = subject()
    assert run("S8", replace(sound, loaded=sound.loaded | {"test": "z"})).verdict == "FAIL"


def test_s9_probabilities():
    found = run("S9", subject(Wrapped(lambda logits: logits.softmax(dim=1))))
    assert (found.verdict, found.value < 1e-5) == ("FAIL", True)


def test_s10_noise_in_the_forward_pass():
    generator = torch.Generator().manual_seed(3)
    noisy = Wrapped(lambda logits: logits + 0.01 * torch.randn(logits.shape, generator=generator))
    found = run("S10", subject(noisy))
    assert found.verdict == "FAIL"
    assert 1e-4 < found.value < 1


def test_s11_optimisation_in_the_forward_pass():
    from torch.autograd import grad  # bound before anybody counts

    def optimised(logits):
        with torch.enable_grad():
            start = logits.detach().requires_grad_()
            return logits - grad(start.square().sum(), start)[0]

    found = run("S11", subject(Wrapped(optimised)))
    assert (found.verdict, found.value >= 1) == ("FAIL", True)
    assert torch.autograd.grad is grad


def test_s12_few_classes_are_named():
    found = run("S12", subject(classes=4))
    assert (found.verdict, found.note) == ("N/A", "reduced to apgd-ce, apgd-t, fab-t, square")


def test_s13_half_precision_inside_the_model():
    class Half(nn.Module):
        def forward(self, logits):
            return logits.to(torch.float16)

    half = Half().eval()
    found = run("S13", subject(Wrapped(lambda logits: half(logits).float())))
    assert found.verdict == "PASS"  # not a part of the model: nobody sees it
    model = Wrapped(lambda logits: logits)
    model.half, model.change = half, lambda logits: half(logits).float()
    found = run("S13", subject(model))
    assert (found.verdict, found.note) == ("FAIL", "float16")
    assert run("S13", with_results(subject(), "pgd", flips=2)).note == "2 flips"


def test_s14_more_robust_than_clean_and_rising_stages():
    found = run("S14", with_results(subject(), "none", 0.0, outcomes="11110000"))
    assert (found.verdict, found.note) == ("FAIL", "pgd at eps 0.1, autoattack at eps 0.1")
    rising = with_results(subject(), "autoattack", stages=[("apgd-ce", 3), ("apgd-t", 4)])
    assert run("S14", rising).note == "autoattack at eps 0.1"


def test_s15_generators_and_seeds():
    assert run("S15", with_results(subject(), "pgd", traces=["generators"])).note == "pgd"
    drawing = Wrapped(lambda logits: logits + 0 * torch.rand(1))
    state = torch.get_rng_state()
    assert run("S15", subject(drawing)).note == "the audit"
    torch.set_rng_state(state)
    assert run("S15", subject(seed=1)).verdict == "FAIL"
    assert result("pgd", EPS, "1").config["seed"] == 0


class OfItsBatch(nn.Module):
    """Batch norm of the batch: an image's logits depend on its neighbours."""

    def __init__(self):
        super().__init__()
        self.inner = classifier()
        self.eval().requires_grad_(False)

    def forward(self, images):
        logits = self.inner(images)
        return logits - logits.mean(dim=0) if len(logits) > 1 else logits


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("chunk", [1, 4, 512, 2048])
def test_s7_finds_answers_that_depend_on_the_batch_whatever_the_images_and_the_chunk(count, chunk):
    found = subject(OfItsBatch())
    few = replace(found, images=found.images[:count], labels=found.labels[:count], chunk=chunk)
    assert (run("S7", few).verdict, run("S7", few).n) == ("FAIL", count)
    sound = replace(subject(), images=found.images[:count], labels=found.labels[:count], chunk=chunk)
    assert run("S7", sound).verdict == "PASS"


def test_s7_takes_rounding_for_no_other_function():
    """Weights whose sum depends on the order, as with another kernel: far apart in float32, not in float64."""

    class Rounds(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier()

        def forward(self, images):
            logits = self.inner(images)
            return logits + 1e-4 * (len(images) if logits.dtype == torch.float32 else 0)

    found = run("S7", subject(Rounds().eval().requires_grad_(False)))
    assert (found.verdict, found.value < 1e-12) == ("PASS", True)


class Large(nn.Module):
    """Another way for more than five images at once."""

    def __init__(self, way):
        super().__init__()
        self.inner, self.way = classifier(), way
        self.eval().requires_grad_(False)

    def forward(self, images):
        logits = self.inner(images)
        return self.way(logits) if len(images) > 5 else logits


def test_s11_and_s13_look_at_a_batch_of_the_evaluation():
    half = nn.Flatten()
    half.forward = lambda logits: logits.to(torch.float16)
    model = Large(lambda logits: half(logits).float())
    model.half = half.eval()
    assert run("S13", subject(model, chunk=8)).note == "float16"

    def optimised(logits):
        with torch.enable_grad():
            start = logits.detach().requires_grad_()
            return logits - torch.autograd.grad(start.square().sum(), start)[0]

    assert run("S11", subject(Large(optimised), chunk=8)).verdict == "FAIL"
