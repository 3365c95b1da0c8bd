"""The meter of networks without inner convolutions: passes against hand counts, FLOPs against a closed form."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import registry
from bench.device.meters import Meter, Work, own_weights
from bench.encoders.common.base import FeatureEncoder
from bench.encoders.common.build import build_encoder
from bench.spec import Budget
from bench.training.train import train
from methods import emp_ssl, simclr

CPU = torch.device("cpu")
VIT = str(Path(__file__).parents[1] / "plugins" / "small_vit.py")
PATCHES, WIDTH, HIDDEN, LAYERS, FEATURES = 16, 32, 64, 2, 24
V, M, STEPS = 3, 3, 5  # views, replays, steps of PGD
SMALL = {"batch": 4, "views": V, "feature_width": FEATURES, "hidden_width": 16, "embedding_width": 8}


def new_method(kind=emp_ssl, encoder=VIT, **settings):
    """A method on the small ViT, drawn from one seed."""
    config = kind.Config(**SMALL | settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind.Method(config).attach(build_encoder(encoder, 1, FEATURES))


def passes_of(result):
    return result.forward_per_image, result.backward_input_per_image, result.backward_weight_per_image


class Mlp(nn.Module):
    """Three layers on pixels: the first one is the stem."""

    width = 8

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(256, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8)
        )

    def forward(self, images):
        return self.layers(images)


class WithTeacher(simclr.Method):
    """The loss also wants the student near a teacher, a copy that takes no gradient."""

    whole = True

    def build(self, width):
        super().build(width)
        self.teacher = copy.deepcopy(self.encoder if self.whole else self.encoder.backbone).requires_grad_(False).eval()

    def loss(self, views):
        with torch.no_grad():
            wanted = self.teacher(views.flatten(0, 1))
        features = self.encoder(views.flatten(0, 1)) if self.whole else self.encoder.backbone(views.flatten(0, 1))
        return super().loss(views) + (features - wanted).square().mean()


class OfTheBackbone(WithTeacher):
    whole = False


class TestPasses:
    @pytest.mark.parametrize(
        ("adversary", "expected"),
        [
            ("none", (V, V, V)),
            ("pgd", ((STEPS + 1) * V, (STEPS + 1) * V, V)),
            ("free", (M * V, M * V, M * V)),
        ],
    )
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_of_a_transformer_are_those_of_a_convolutional_network(self, digits, adversary, expected, precision):
        method = new_method(adversary=adversary)
        result = train(method, digits.first(4), Budget.parse("1up"), 0, CPU, precision=precision)
        assert passes_of(result) == expected

    def test_of_a_perceptron_without_its_stem(self, digits):
        """In clean training nothing goes back to the pixels, and the stem is left out of every kind."""
        method = simclr.Method(simclr.Config(**SMALL | {"views": 2})).attach(Mlp())
        assert passes_of(train(method, digits.first(4), Budget.parse("1up"), 0, CPU)) == (2, 2, 2)

    @pytest.mark.parametrize("views", [2, 3])
    def test_of_a_single_product_count_it_although_it_is_the_stem(self, views):
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        with Meter(1, own_weights(encoder, encoder)) as meter:
            encoder(torch.rand(views, 1, 2, 2)).sum().backward()
        assert meter.passes(encoder, torch.rand(1, 2, 2)) == (views, 0, views)

    def test_of_a_teacher_count_and_those_of_heads_do_not(self, digits):
        """The student twice, or what is above its backbone once; the teacher once, forward only."""
        config = simclr.Config(**SMALL | {"views": 2, "hidden_width": FEATURES, "embedding_width": FEATURES})
        found = []
        for kind in (WithTeacher, OfTheBackbone):
            method = kind(config).attach(build_encoder(VIT, 1, FEATURES))
            found.append(passes_of(train(method, digits.first(4), Budget.parse("1up"), 0, CPU)))
        top = WIDTH * FEATURES / (LAYERS * PATCHES * (4 * WIDTH * WIDTH + 2 * WIDTH * HIDDEN) + WIDTH * FEATURES)
        assert found[0] == (6, 4, 4)
        assert found[1] == pytest.approx((6 - 4 * top, 4 - 2 * top, 4 - 2 * top), abs=1e-6)

    def test_of_frozen_weights_and_of_the_input_alone(self):
        encoder = build_encoder(VIT, 1, FEATURES).train()
        images = torch.rand(5, 1, 16, 16, requires_grad=True)
        with Meter(1, own_weights(encoder, encoder)) as frozen:
            torch.autograd.grad(encoder.requires_grad_(False)(images).sum(), images)
        assert frozen.passes(encoder, images.detach()[0]) == (5, 5, 0)

    @pytest.mark.parametrize("grad", [True, False])
    def test_in_eval_mode_a_fused_layer_hides_no_product(self, grad):
        encoder = build_encoder(VIT, 1, FEATURES).eval()
        before = torch.backends.mha.get_fastpath_enabled()
        with torch.set_grad_enabled(grad), Meter(1, own_weights(encoder, encoder)) as meter:
            encoder(torch.rand(3, 1, 16, 16))
        assert meter.passes(encoder, torch.rand(1, 16, 16)) == (3, 0, 0)
        assert torch.backends.mha.get_fastpath_enabled() == before

    def test_where_there_is_an_inner_convolution_products_do_not_count(self, tiny):
        encoder = tiny("simclr").encoder
        with Meter(1, own_weights(encoder, encoder)) as meter:
            encoder(torch.rand(4, 1, 16, 16)).sum().backward()
        assert meter.passes(encoder, torch.rand(1, 16, 16)) == (4, 4, 4)
        assert list(meter.products) == ["feature_layer.0.weight"]


class TestOwnWeights:
    def test_are_those_of_the_encoder_and_its_copies_by_the_names_of_the_encoder(self):
        method = WithTeacher(simclr.Config(**SMALL | {"views": 2})).attach(build_encoder(VIT, 1, FEATURES))
        names = [name for name, _ in own_weights(method.encoder, method)]
        assert set(names) == {name for name, _ in method.encoder.named_parameters()}
        weights = {weight.data_ptr() for _, weight in own_weights(method.encoder, method)}
        assert {p.data_ptr() for p in method.teacher.parameters()} < weights
        assert not weights & {p.data_ptr() for p in method.projector.parameters()}

    def test_a_head_of_the_same_type_and_another_shape_is_none(self):
        method = simclr.Method(simclr.Config(**SMALL | {"views": 2})).attach(build_encoder(VIT, 1, FEATURES))
        method.head = FeatureEncoder(nn.Linear(3, 3), 3, 4)
        weights = {weight.data_ptr() for _, weight in own_weights(method.encoder, method)}
        assert not weights & {p.data_ptr() for p in method.head.parameters()}


class TestFlops:
    @pytest.mark.parametrize("batch", [1, 3])
    def test_of_a_transformer_have_a_closed_form(self, batch):
        """2 a multiply-add: patches; queries, keys, values and what puts them together; scores and means; the MLP."""
        encoder = build_encoder(VIT, 1, FEATURES).eval()
        attention = 2 * PATCHES * 4 * WIDTH * WIDTH + 2 * 2 * PATCHES * PATCHES * WIDTH
        layer = attention + 2 * 2 * PATCHES * WIDTH * HIDDEN
        expected = 2 * PATCHES * 16 * WIDTH + LAYERS * layer + 2 * WIDTH * FEATURES
        with torch.no_grad(), Meter(1) as meter:
            encoder(torch.rand(batch, 1, 16, 16))
        assert meter.flops == batch * expected
        encoder.train()
        with Meter(1) as meter:
            encoder(torch.rand(batch + 1, 1, 16, 16))
        assert meter.flops == (batch + 1) * expected

    def test_the_work_of_a_weight_by_hand(self):
        """Forward and each of the two gradients of (5, 4) @ (4, 3)."""
        layer, x = nn.Linear(4, 3), torch.rand(5, 4, requires_grad=True)
        once = 2 * 5 * 4 * 3
        with Meter(1, layer.named_parameters()) as meter:
            layer(x).sum().backward()
        assert meter.products == {"weight": Work(once, once, once)}


def test_the_small_vit_is_a_plug_in():
    assert registry.load("encoder", VIT).Encoder.size == (16, 16)
