"""Encoders: shapes, sizes as published, and weights that are a function of the seed."""

import sys

import pytest
import torch
import torchvision

from bench import registry
from bench.encoders.common.base import BaseEncoder, FeatureEncoder
from bench.encoders.common.build import build_encoder, check_images
from bench.encoders.common.folding import fold_batch_norm
from bench.spec import Budget, DataSpec, RunSpec, UsageError
from bench.training.build import build_method

DIGITS = registry.load("dataset", "digits").Dataset()


def built(method="simclr", seed=0, encoder="resnet8", **settings):
    spec = RunSpec(
        method=method,
        seed=seed,
        data=DataSpec(name="digits"),
        budget=Budget.parse("1up"),
        encoder=encoder,
        settings=settings,
    )
    return build_method(spec, DIGITS, 1)[0]


def parameter_count(module):
    """Number of trainable numbers."""
    return sum(parameter.numel() for parameter in module.parameters())


class TestShapes:
    @pytest.mark.parametrize(("name", "width", "channels"), [("resnet18", 512, 3), ("resnet8", 64, 1)])
    def test_features_and_backbone(self, name, width, channels):
        encoder = build_encoder(name, channels, 48).eval()
        images = torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            hidden, features = encoder.backbone(images), encoder(images)
        assert hidden.shape == (2, width)
        assert features.shape == (2, 48)
        assert (encoder.backbone_width, encoder.width) == (width, 48)
        assert features.min() == 0  # after the ReLU
        assert 0 < features.max() < torch.inf

    @pytest.mark.parametrize("name", registry.names("encoder"))
    @pytest.mark.parametrize("size", [16, 32])
    def test_any_image_size(self, name, size):
        with torch.no_grad():
            assert build_encoder(name, 3, 8).eval()(torch.rand(2, 3, size, size)).shape == (2, 8)

    def test_resnet18_keeps_the_size_in_its_stem(self):
        backbone = build_encoder("resnet18", 3, 8).backbone
        with torch.no_grad():
            stem = backbone.maxpool(backbone.conv1(torch.rand(1, 3, 32, 32)))
        assert stem.shape == (1, 64, 32, 32)

    def test_an_unknown_name(self):
        with pytest.raises(UsageError, match=r"unknown encoder 'resnet9'; did you mean 'resnet8'\? known: resnet18"):
            build_encoder("resnet9", 3, 8)


class TestLibraries:
    @pytest.mark.parametrize(
        ("name", "width", "parameters"),
        [
            ("torchvision:resnet18", 512, 11_176_512),  # as published, without the 513,000 of the classifier
            ("torchvision:resnet34", 512, 21_284_672),
            ("torchvision:resnet50", 2048, 23_508_032),
            ("torchvision:mobilenet_v3_small", 1024, None),
            ("timm:resnet18", 512, 11_176_512),
            ("timm:vit_tiny_patch16_224", 192, None),
        ],
    )
    def test_width_and_size(self, name, width, parameters):
        encoder = build_encoder(name, 3, 16)
        assert (encoder.backbone_width, encoder.feature_layer[0].in_features) == (width, width)
        assert parameters in (None, parameter_count(encoder.backbone))

    def test_the_stem_is_that_of_imagenet_and_in_float32(self):
        backbone = build_encoder("torchvision:resnet18", 3, 8).backbone[1]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            images = torch.rand(1, 3, 64, 64)
            stem = backbone.conv1(images)
            assert backbone.maxpool(stem).shape == (1, 64, 16, 16)
        exact = torch.nn.functional.conv2d(images, backbone.conv1.weight, stride=2, padding=3)
        assert torch.equal(stem, exact.bfloat16())

    def test_pixels_are_normalized_first(self):
        encoder = build_encoder("torchvision:resnet18", 3, 8).eval()
        images = torch.rand(2, 3, 64, 64)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        normalized = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        with torch.no_grad():
            torch.testing.assert_close(encoder.backbone(images), encoder.backbone[1](normalized))

    def test_the_networks_are_the_libraries_own(self):
        torch.manual_seed(0)
        ours = build_encoder("torchvision:resnet18", 3, 8).backbone[1].state_dict()
        torch.manual_seed(0)
        theirs = torchvision.models.resnet18().state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert theirs.keys() - ours.keys() == {"fc.weight", "fc.bias"}

    def test_timms_own_mean(self):
        mean = build_encoder("timm:vit_tiny_patch16_224", 3, 8).backbone[0].mean
        assert mean.flatten().tolist() == [0.5, 0.5, 0.5]

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (
                "torchvision:resnet81",
                r"unknown encoder 'torchvision:resnet81'; did you mean resnet\d+.* torchvision has",
            ),
            ("timm:resnet18x", r"unknown encoder 'timm:resnet18x'; did you mean resnet18"),
            ("tim:resnet18", "unknown library of encoders 'tim'; did you mean 'timm'"),
            ("torchvision:googlenet", "unknown encoder 'torchvision:googlenet'"),
            ("torchvision:squeezenet1_0", "torchvision:squeezenet1_0 has no linear layer at its end; choose another"),
        ],
    )
    def test_refused(self, name, message):
        with pytest.raises(UsageError, match=message):
            build_encoder(name, 3, 8)

    def test_one_for_images_of_its_own_size(self):
        assert build_encoder("timm:vit_tiny_patch16_384", 3, 16).backbone_width == 192

    def test_grey_images(self):
        with pytest.raises(UsageError, match=r"expected RGB images for torchvision:resnet18, got 1 channel; choose"):
            build_encoder("torchvision:resnet18", 1, 8)

    def test_without_timm(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(UsageError, match=r"needs timm: pip install 'robust-ssl-bench\[timm\]'"):
            build_encoder("timm:resnet18", 3, 8)

    @pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18", "timm:vit_tiny_patch16_224"])
    def test_folding_changes_nothing(self, name):
        torch.manual_seed(0)
        encoder = build_encoder(name, 3, 16).eval()
        images = torch.rand(2, 3, 224, 224)
        with torch.no_grad():
            expected, found = encoder(images), fold_batch_norm(encoder)(images)
        assert (expected - found).abs().max() <= 1e-5 * expected.abs().max()


class TestImagesThatItTakes:
    """What is refused before any run: a network that has one size only, and images of another."""

    @pytest.mark.parametrize(
        ("name", "size", "message"),
        [
            ("timm:vit_tiny_patch16_224", 32, r"such as 224 x 224 pixels, got views of 32 x 32 pixels \(Input height"),
            ("torchvision:vit_b_16", 256, r"such as 224 x 224 pixels, got views of 256 x 256 pixels \(Wrong image"),
            ("torchvision:alexnet", 16, r"got views of 16 x 16 pixels .*; change .* with --image-size .* or choose"),
        ],
    )
    def test_refused(self, name, size, message):
        with pytest.raises(UsageError, match=rf"expected images of a size that {name} takes, .*{message}"):
            check_images(name, 3, {(size, size): "views"})

    @pytest.mark.parametrize(
        ("name", "size"),
        [
            ("timm:vit_tiny_patch16_224", 224),
            ("torchvision:resnet18", 32),
            ("torchvision:regnet_y_400mf", 64),  # which cannot be built on the meta device
            ("resnet8", 16),
        ],
    )
    def test_taken(self, name, size):
        check_images(name, 3, {(size, size): "views"})

    def test_each_size_is_looked_at(self):
        sizes = {(224, 224): "views", (224, 256): "images to evaluate on"}
        with pytest.raises(UsageError, match="got images to evaluate on of 224 x 256 pixels"):
            check_images("timm:vit_tiny_patch16_224", 3, sizes)

    def test_channels(self):
        check_images("resnet18", 1, {(16, 16): "views"})
        with pytest.raises(
            UsageError, match="expected RGB images for timm:vit_tiny_patch16_224, got 1 channel; choose"
        ):
            check_images("timm:vit_tiny_patch16_224", 1, {(224, 224): "views"})


class TestSize:
    @pytest.mark.parametrize(("method", "parameters"), [("emp_ssl", 34_263_104), ("simclr", 30_592_192)])
    def test_with_its_heads_as_published(self, method, parameters):
        """ResNet-18 on RGB images with the settings of the paper, the projector included."""
        module = registry.load("method", method)
        config = module.Config()
        with torch.device("meta"):
            network = module.Method(config).attach(build_encoder("resnet18", 3, config.feature_width))
        assert parameter_count(network) == parameters

    def test_of_the_backbone(self):
        with torch.device("meta"):
            assert parameter_count(build_encoder("resnet18", 3, 4096).backbone) == 11_168_832

    def test_of_resnet8_by_hand(self):
        """Convolutions of the stem, of three blocks and of two shortcuts; two numbers per channel of batch norm."""
        convolutions = 9 * (1 * 16 + 2 * 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 16 * 32 + 32 * 64
        norms = 2 * (16 + 2 * 16 + 3 * 32 + 3 * 64)
        assert parameter_count(build_encoder("resnet8", 1, 8).backbone) == convolutions + norms


class TestInitialization:
    @pytest.mark.parametrize("name", registry.names("encoder"))
    def test_is_he_fan_out_but_for_the_stem(self, name):
        """The stem keeps PyTorch's default, uniform within 1 / sqrt(fan in); standard deviations within 15 %."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = build_encoder(name, 3, 8)
        stem, *others = [m for m in encoder.backbone.modules() if isinstance(m, torch.nn.Conv2d)]
        assert 0.9 / 27**0.5 < stem.weight.abs().max() <= 1 / 27**0.5
        for convolution in others:
            fan_out = convolution.out_channels * convolution.kernel_size[0] ** 2
            assert convolution.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)


class TestSeed:
    @staticmethod
    def weights(method):
        return torch.cat([p.detach().flatten() for p in method.parameters()])

    def test_same_seed_same_weights(self):
        assert torch.equal(self.weights(built(seed=3)), self.weights(built(seed=3)))

    def test_other_seed_other_weights_in_encoder_and_projector(self):
        a, b = built(seed=3), built(seed=4)
        for part in ("encoder", "projector"):
            for (name, p), q in zip(getattr(a, part).named_parameters(), getattr(b, part).parameters(), strict=True):
                constant = p.ndim == 1 and p.std() == 0  # gains and biases of batch norm
                assert constant or not torch.equal(p, q), f"{part}.{name}"

    def test_the_encoder_is_the_same_for_every_method(self):
        encoders = [self.weights(built(name).encoder) for name in ("simclr", "simclr_free", "emp_ssl", "cf_amc_ssl")]
        assert all(torch.equal(encoders[0], other) for other in encoders)

    def test_the_global_generator_neither_decides_nor_moves(self):
        torch.manual_seed(1)
        first = built(seed=3)
        torch.manual_seed(2)
        before = torch.get_rng_state()
        second = built(seed=3)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(self.weights(first), self.weights(second))

    def test_resnet18_is_drawn_as_torchvisions_and_its_stem_after_it(self):
        """So its weights are a function of the seed that no change of this project moves."""
        torch.manual_seed(3)
        expected = torchvision.models.resnet18().state_dict()
        stem = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        expected["conv1.weight"] = stem.weight.detach()
        torch.manual_seed(3)
        found = registry.load("encoder", "resnet18").Encoder(3).state_dict()
        assert expected.keys() - found.keys() == {"fc.weight", "fc.bias"}
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


class TestBuildMethod:
    def test_takes_the_settings_of_the_dataset_and_then_the_users(self):
        method = built("emp_ssl", batch="20", feature_width=24)
        assert (method.config.views, method.config.batch, method.config.hidden_width) == (4, 20, 256)
        assert method.encoder.width == method.encoder(torch.rand(2, 1, 16, 16)).shape[1] == 24
        assert isinstance(method.encoder, FeatureEncoder)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"method": "simclrr"}, "unknown method 'simclrr'"),
            ({"encoder": "resnet9"}, "unknown encoder 'resnet9'"),
            ({"temprature": 1}, "unknown setting 'temprature'; did you mean 'temperature'"),
            ({"batch": "many"}, "expected batch as int, got 'many'"),
        ],
    )
    def test_refuses(self, arguments, message):
        with pytest.raises(UsageError, match=message):
            built(**arguments)

    def test_a_file_of_the_users_own(self, tmp_path):
        path = tmp_path / "mine_too.py"
        path.write_text('"""Mine."""\nfrom methods.simclr import Config, Method\n')
        spec = RunSpec(
            method="mine_too", method_path=str(path), data=DataSpec(name="digits"), budget=Budget.parse("1up")
        )
        method, settings = build_method(spec, DIGITS, 1)
        assert type(method).__name__ == "Method"
        assert {s.name: s.source for s in settings}["batch"] == "digits"


class TestFold:
    def test_an_encoder_of_a_users_own_is_folded_where_it_says_that_it_can_be(self):
        class Own(BaseEncoder):
            width = 8

            def __init__(self):
                super().__init__()
                self.layers = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8))

            def forward(self, images):
                return self.layers(images + torch.rand(1)).mean(dim=(2, 3))  # a traced copy would freeze what is drawn

        class Plain(Own):
            foldable = True

            def forward(self, images):
                return self.layers(images).mean(dim=(2, 3))

        for kind, count in ((Own, 1), (Plain, 0)):
            folded = fold_batch_norm(FeatureEncoder(kind(), 8, 4))
            assert len([m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]) == count
            assert not any(m.training for m in folded.modules())

    @pytest.mark.parametrize("name", registry.names("encoder"))
    def test_the_same_function_without_batch_norm_in_the_convolutions(self, name):
        """With running statistics that are not those of a new network: to 1e-5 of the largest feature."""
        torch.manual_seed(0)
        encoder = build_encoder(name, 3, 32).train()
        with torch.no_grad():
            for _ in range(3):
                encoder(torch.rand(16, 3, 16, 16))
        encoder.eval()
        folded = fold_batch_norm(encoder)
        images = torch.rand(8, 3, 16, 16)
        expected, found = encoder(images), folded(images)
        assert (expected - found).abs().max() < 1e-5 * expected.abs().max()
        assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert not any(p.requires_grad for p in folded.parameters())
        assert not any(m.training for m in folded.modules())
        assert [m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]  # the original keeps its own

    def test_what_cannot_be_traced_stays_as_it_is(self):
        class Dynamic(torch.nn.Module):
            def forward(self, x):
                return x * 2 if x.sum() > 0 else x

        encoder = Dynamic()
        assert fold_batch_norm(encoder) is encoder
