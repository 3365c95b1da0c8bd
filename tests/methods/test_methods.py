"""What holds for every method, those of the folder and those of a user's, and how settings are given."""

import dataclasses

import pytest
import torch

from bench import registry
from bench.random import Draws
from bench.spec import UsageError
from methods.common.base import BaseMethod, resolve
from tests.plugins import METHODS

NAMES = [*registry.names("method"), *(str(file) for file in METHODS)]
LOSSES = list({registry.load("method", name).Method.loss: name for name in NAMES[::-1]}.values())  # a method of each
DIGITS = registry.load("dataset", "digits").Dataset().OVERRIDES


def config_of(name):
    return registry.load("method", name).Config


def views_of(method, images, start=0, seed=0):
    """Views of a batch of six; a supervised method is shown its labels."""
    own = slice(start, start + 6)
    if method.supervised:
        method.labels = images.labels[own]
    return method.augment(images.images[own], Draws(seed, 0, torch.arange(6), method.config.views))


@pytest.mark.parametrize("name", NAMES)
class TestEveryMethod:
    def test_works_without_arguments(self, name):
        module = registry.load("method", name)
        method = module.Method(module.Config())
        assert isinstance(method, BaseMethod)
        assert method.config == module.Config()
        assert list(method.parameters()) == []  # heads are built when the encoder comes

    @pytest.mark.parametrize("channels", [1, 3])
    def test_augment_gives_views_of_every_image(self, name, channels, tiny, digits, synthetic):
        method, images = tiny(name, channels=channels), {1: digits, 3: synthetic}[channels]
        views = views_of(method, images)
        assert views.shape == (method.config.views, 6, channels, 16, 16)
        assert 0 <= views.min() < views.max() <= 1
        assert not views.requires_grad
        assert torch.equal(views, views_of(method, images))
        assert not torch.equal(views, views_of(method, images, seed=1))
        assert len(views) == 1 or not torch.equal(views[0], views[1])

    def test_loss_is_a_finite_scalar_whose_gradient_reaches_every_parameter_in_some_stage(self, name, tiny, digits):
        method = tiny(name).train()
        config = method.config
        for number, stage in enumerate(method.stages()):
            method.config = dataclasses.replace(config, **stage.settings)
            method.begin(number)
            for start in (0, 6):  # centres of clusters begin at the first features
                views = views_of(method, digits, start)
                loss = method.objective(views, views)
                assert loss.shape == ()
                assert loss.isfinite()
                loss.backward()
        assert {key.partition(".")[0] for key, _ in method.named_parameters()} > {"encoder"}
        for key, parameter in method.named_parameters():
            if key.startswith("teacher."):
                assert parameter.grad is None, key
                continue
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            if parameter.ndim > 1:  # a bias just before batch norm has gradient 0
                assert parameter.grad.abs().sum() > 1e-6, key

    def test_gradient_reaches_the_views_that_may_move(self, name, tiny, digits):
        method = tiny(name).train()
        views = views_of(method, digits)
        moved = (views[method.moves] + 0.05 * torch.rand_like(views[method.moves])).clamp(0, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(method.adversarial_loss(moved, method.clean(views)), moved)
        assert gradient.shape == moved.shape
        assert (gradient.flatten(2).abs().sum(dim=2) > 0).all()

    def test_every_setting_has_a_source(self, name):
        kind = config_of(name)
        config, settings = resolve(kind, "cifar10", {}, {})
        assert config == kind()
        assert [s.name for s in settings] == [f.name for f in dataclasses.fields(config)]
        assert {s.source for s in settings} <= {"text", "sound", "code", "unverified", "own"}
        assert {s.name: s.value for s in settings} == dataclasses.asdict(config)


@pytest.mark.parametrize("name", LOSSES)
def test_20_gradient_steps_lower_a_loss(name, tiny, digits):
    method = tiny(name).train()
    views = views_of(method, digits)
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-3)
    losses = []
    for _ in range(21):
        losses.append(method.loss(views))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1
    assert min(losses[10:]) < min(losses[:10])


class TestSet:
    @pytest.mark.parametrize(
        ("key", "text", "value"),
        [
            ("eps", "8/255", 8 / 255),
            ("eps", 0.05, 0.05),
            ("lr", "3e-2", 0.03),
            ("steps", "7", 7),
            ("crop_scale", "0.3,1", (0.3, 1.0)),
            ("crop_scale", "(0.25, 0.25)", (0.25, 0.25)),
            ("crop_scale", [0.2, 1], (0.2, 1.0)),
            ("crop_ratio", "3/4, 4/3", (0.75, 4 / 3)),
            ("jitter", "[.4,.4,.4,.1]", (0.4, 0.4, 0.4, 0.1)),
            ("adversary", "free", "free"),
            ("attack_batch_norm", " eval ", "eval"),
            ("horizon", "batches", "batches"),
            ("attack_pair", "x2", "x2"),
            ("leak_attack_gradients", "true", True),
            ("clamp_carried", False, False),
        ],
    )
    def test_text_and_values(self, key, text, value):
        config, settings = resolve(config_of("simclr"), "digits", DIGITS, {key: text})
        assert getattr(config, key) == value
        assert next(s for s in settings if s.name == key).source == "--set"

    @pytest.mark.parametrize(
        ("key", "text", "message"),
        [
            ("temprature", "1", "unknown setting 'temprature'; did you mean 'temperature'"),
            ("invariance", "1", "unknown setting 'invariance'; known: views, batch"),
            ("batch", "many", "expected batch as int, got 'many'"),
            ("batch", "1.5", "expected batch as int, got '1.5'"),
            ("eps", "8/0", "expected eps as float, got '8/0'"),
            ("eps", "a/b", "expected eps as float, got 'a/b'"),
            ("eps", "", "expected eps as float, got ''"),
            ("crop_scale", "0.3", r"expected crop_scale as tuple\[float, float\], got '0.3'"),
            ("crop_scale", "0.3,1,2", r"expected crop_scale as tuple\[float, float\]"),
            ("adversary", "pdg", r"expected adversary as Literal\['none', 'pgd', 'free', 'nfgsm'\], got 'pdg'"),
            ("attack_batch_norm", "train", r"expected attack_batch_norm as Literal\['batch'"),
            ("horizon", "replays", r"expected horizon as Literal\['scaled', 'batches'\], got 'replays'"),
            ("random_start", "maybe", "expected random_start as bool, got 'maybe'"),
            ("eps", "8", r"expected eps in \[0, 1\], got 8.0"),
            ("step", "-0.1", r"expected step in \[0, 1\], got -0.1"),
            ("batch", "1", "expected batch of at least 2, got 1"),
            ("steps", "0", "expected steps of at least 1, got 0"),
            ("replays", "0", "expected replays of at least 1, got 0"),
            ("embedding_width", "0", "expected embedding_width of at least 1, got 0"),
            ("crop_scale", "1,0.3", r"expected crop_scale in \(0, 1\], smaller value first, got \(1.0, 0.3\)"),
            ("crop_scale", "0,1", "expected crop_scale in"),
            ("crop_ratio", "2,1", "expected crop_ratio above 0, smaller value first"),
            ("flip", "1.5", r"expected flip in \[0, 1\], got 1.5"),
            ("lr", "0", "expected lr above 0, got 0.0"),
            ("lr", "inf", "expected lr finite, got inf"),
            ("weight_decay", "nan", "expected weight_decay finite, got nan"),
            ("jitter", "nan,0,0,0", "expected jitter finite"),
            ("momentum", "1", r"expected momentum in \[0, 1\), got 1.0"),
            ("trust", "-1", "expected trust of at least 0, got -1.0"),
            ("temperature", "0", "expected temperature above 0, got 0.0"),
            ("views", "3", "expected views of 2, for a loss of pairs, got 3"),
        ],
    )
    def test_refuses(self, key, text, message):
        with pytest.raises(UsageError, match=message):
            resolve(config_of("simclr"), "digits", DIGITS, {key: text})

    @pytest.mark.parametrize(("name", "views", "least"), [("emp_ssl", 1, 2), ("supervised_pgd", 0, 1)])
    def test_refuses_fewer_views_than_the_loss_needs(self, name, views, least):
        with pytest.raises(UsageError, match=f"expected views of at least {least}, got {views}"):
            resolve(config_of(name), "digits", DIGITS, {"views": views})

    def test_refuses_a_coding_eps_of_zero(self):
        with pytest.raises(UsageError, match=r"expected coding_eps above 0, got 0\.0"):
            resolve(config_of("emp_ssl"), "digits", DIGITS, {"coding_eps": "0"})
