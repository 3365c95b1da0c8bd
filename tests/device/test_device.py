"""Devices by name, and the meter: passes against closed forms, FLOPs against the figures of the network."""

import copy
import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from training_fixtures import trained

from bench import registry
from bench.device import device as devices
from bench.device.device import is_out_of_memory, resolve
from bench.device.meters import Meter, Work
from bench.encoders.common.build import build_encoder
from bench.spec import Budget, DataSpec, RunSpec, UsageError
from bench.training.build import build_method
from bench.training.state import begun
from bench.training.step import warm_up
from bench.training.train import train

CPU = torch.device("cpu")
V, M, STEPS = 4, 3, 5  # crops on digits, replays, steps of PGD
EMP_FREE, EMP_PGD, SIMCLR_PGD = (
    (M * V, M * V, M * V),
    ((STEPS + 1) * V, (STEPS + 1) * V, V),
    (1 + STEPS + 2, STEPS + 2, 2),
)
PASSES = {  # per image and epoch: forward, backward to the input, backward to the weights
    "emp_ssl": (V, V, V),
    "emp_ssl_adv": EMP_PGD,
    "emp_ssl_patch_adv": EMP_PGD,
    "emp_ssl_patch_free": EMP_FREE,
    "cf_amc_ssl": EMP_FREE,
    "simclr": (2, 2, 2),
    "simclr_adv": SIMCLR_PGD,  # the embedding of x1 is computed once per attack, without gradients
    "simclr_patch_adv": SIMCLR_PGD,
    "simclr_free": (M * 2, M * 2, M * 2),
    "supervised_pgd": (STEPS + 1, STEPS + 1, 1),
    "supervised_free": (M, M, M),
    "supervised_nfgsm": (2, 2, 1),
}


class TestResolve:
    def test_names(self):
        assert resolve("cpu") == resolve("cpu:0") == CPU
        assert resolve("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")

    @pytest.mark.parametrize("name", ["gpu", "", "tpu:0", "cuda:", "cuda:-1", "meta", "mps"])
    def test_refuses(self, name):
        with pytest.raises(UsageError, match=f"expected a device such as auto, cpu or cuda:0, got '{name}'"):
            resolve(name)

    @pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3"])
    def test_a_gpu_that_is_not_there(self, name, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UsageError, match=f"{name} is not available: this machine has 0 CUDA devices; .* cpu"):
            resolve(name)

    def test_a_gpu_beyond_the_last(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert resolve("cuda") == torch.device("cuda:0")
        assert resolve("cuda:1") == resolve("cuda:1") == torch.device("cuda:1")
        assert resolve("auto") == torch.device("cuda:0")
        with pytest.raises(UsageError, match="cuda:2 is not available: this machine has 2 CUDA devices"):
            resolve("cuda:2")


class TestPasses:
    @pytest.mark.parametrize("name", PASSES)
    def test_on_digits_have_a_closed_form(self, name, digits):
        few = {"batch": 8}  # passes are counted for each image
        spec = RunSpec(method=name, settings=few, data=DataSpec(name="digits"), budget=Budget.parse("1up"))
        method, _ = build_method(spec, registry.load("dataset", "digits").Dataset(), 1)
        result = train(method, digits.first(method.config.batch), spec.budget, 0, CPU)
        counted = (result.forward_per_image, result.backward_input_per_image, result.backward_weight_per_image)
        assert counted == PASSES[name]

    def test_do_not_depend_on_the_shape_of_the_images(self, tiny, digits):
        """Views are squares as wide as the image."""
        few = digits.first(6)
        for rows in (8, 16):
            images = dataclasses.replace(few, images=few.images[:, :, :rows])
            result = train(tiny("simclr"), images, Budget.parse("1up"), 0, CPU)
            assert (result.forward_per_image, result.backward_weight_per_image) == (2, 2)

    @pytest.mark.parametrize(("adversary", "times"), [("none", 3), ("pgd", 3 + 2 * STEPS), ("free", 3 * M)])
    def test_and_flops_agree(self, tiny, digits, adversary, times):
        """Backward to the stem's input is only needed where images move; the losses' own products are below 3 %."""
        method = tiny("emp_ssl", adversary=adversary, batch=8)
        with torch.no_grad(), Meter(1) as one:
            method.eval().embed(torch.rand(1, 8, 1, 16, 16))
        with torch.no_grad(), Meter(1) as stem:
            method.encoder.backbone[0](torch.rand(8, 1, 16, 16))
        expected = times * one.flops - (0 if adversary == "free" else stem.flops)
        result = train(method, digits.first(8), Budget.parse("1up"), 0, CPU)
        assert result.flops_per_image * 8 / 3 == pytest.approx(expected, rel=0.03)

    def test_counting_leaves_the_mode_as_it_was(self, tiny):
        encoder = tiny("simclr").encoder.train()
        Meter(1).passes(encoder, torch.rand(1, 16, 16))
        assert all(module.training for module in encoder.modules())
        norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {int(norm.num_batches_tracked) for norm in norms} == {0}


class TestFlops:
    @pytest.mark.parametrize(("method", "gigaflops"), [("emp_ssl", 1.1570), ("simclr", 1.1496)])
    def test_of_one_forward_of_the_whole_network(self, method, gigaflops):
        module = registry.load("method", method)
        config = module.Config()
        network = module.Method(config).attach(build_encoder("resnet18", 3, config.feature_width)).eval()
        with torch.no_grad(), Meter(3) as meter:
            network.embed(torch.rand(1, 1, 3, 32, 32))
        assert meter.flops / 1e9 == pytest.approx(gigaflops, rel=1e-3)
        with torch.no_grad(), Meter(3) as meter:
            network.encoder.backbone(torch.rand(1, 3, 32, 32))
        assert meter.flops / 1e9 == pytest.approx(1.1108, rel=1e-3)

    def test_of_a_convolution_by_hand(self):
        """2 multiply-adds per weight and output pixel, forward and for each of the two gradients."""
        layer = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        images = torch.rand(2, 4, 5, 5, requires_grad=True)
        forward = 2 * (2 * 8 * 5 * 5) * (4 * 3 * 3)
        with Meter(1) as meter:
            layer(images).sum().backward()
        assert meter.convolutions == Work(forward, forward, forward)
        assert meter.flops == 3 * forward
        with Meter(1) as meter:
            torch.autograd.grad(layer(images).sum(), images)
        assert meter.convolutions == Work(forward, forward, 0)


class TestWarmUp:
    @pytest.mark.parametrize(
        ("name", "fresh"), [("simclr", True), ("emp_ssl_adv", True), ("simclr_adv", False), ("cf_amc_ssl", False)]
    )
    def test_leaves_everything_as_it_was(self, tiny, digits, name, fresh):
        method = tiny(name)
        if not fresh:
            _, state = trained(method, digits.first(12), "3up")
        training = begun(method.train(), 12, Budget.parse("9up"), CPU)
        if not fresh:
            training.load(state)
        weights, optimizer = copy.deepcopy(method.state_dict()), copy.deepcopy(training.optimizer.state_dict())
        delta = copy.deepcopy(training.adversary.delta)
        assert (delta is None) == (fresh or method.config.adversary != "free")
        generators = torch.get_rng_state(), numpy_state(), random.getstate()

        warm_up(training, digits, seed=0)

        same(method.state_dict(), weights)
        same(training.optimizer.state_dict(), optimizer)
        assert (training.adversary.delta is None) if delta is None else torch.equal(training.adversary.delta, delta)
        assert all(p.grad is None for p in method.parameters())
        assert all(module.training for module in method.modules())
        assert torch.equal(torch.get_rng_state(), generators[0])
        assert numpy_state() == generators[1]
        assert random.getstate() == generators[2]


def numpy_state():
    return str(np.random.get_state())  # noqa: NPY002 (the global generator is what must not move)


def same(a, b):
    """Nested dictionaries and lists of tensors and numbers are bitwise equal."""
    assert type(a) is type(b) or isinstance(a, dict)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


class TestOutOfMemory:
    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (torch.OutOfMemoryError("CUDA out of memory"), True),
            (MemoryError(), True),
            (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
            (RuntimeError("shape mismatch"), False),
            (ValueError("DefaultCPUAllocator"), False),
            (KeyboardInterrupt(), False),
        ],
    )
    def test_is_known(self, error, expected):
        assert is_out_of_memory(error) is expected

    def test_of_the_real_allocator_is_known(self):
        with pytest.raises(RuntimeError) as caught:
            torch.empty(2**62, dtype=torch.uint8)
        assert is_out_of_memory(caught.value)


def test_peak_memory_is_that_of_the_process():
    block = torch.ones(2**25)  # 128 MiB
    devices.reset_peak_memory(CPU)
    assert 2**27 < devices.peak_memory_bytes(CPU) < 2**40
    assert block.sum() == 2**25


def test_place_keeps_the_numbers_and_makes_convolutions_channels_last(tiny):
    method = tiny("simclr")
    before = copy.deepcopy(method.state_dict())
    assert devices.place(method, CPU) is method
    same(method.state_dict(), before)
    convolutions = [m.weight for m in method.modules() if isinstance(m, nn.Conv2d)]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in convolutions)


def test_prepare_sets_threads_and_forbids_tf32():
    try:
        devices.prepare(CPU, 2)
        assert torch.get_num_threads() == 2
        devices.prepare(CPU, None)
        assert torch.get_num_threads() == 2
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.set_num_threads(1)


def test_the_pacer_has_nothing_to_do_on_a_cpu():
    pacer = devices.Pacer(CPU)
    for _ in range(5):
        pacer.launched()
    assert len(pacer._events) == 0


@pytest.mark.gpu
class TestGPU:
    def test_trains_with_the_same_passes_and_almost_the_same_loss(self, tiny, digits):
        here = train(tiny("cf_amc_ssl"), digits.first(12), Budget.parse("2up"), 0, CPU)
        there = train(tiny("cf_amc_ssl"), digits.first(12), Budget.parse("2up"), 0, resolve("cuda:0"))
        assert there.forward_per_image == here.forward_per_image == 9
        assert math.isclose(there.first_loss or math.nan, here.first_loss, rel_tol=1e-3)  # other order of the sums
        assert 0 < there.peak_memory_bytes < 2**32

    def test_the_pacer_waits_for_the_update_before_the_last(self):
        pacer = devices.Pacer(resolve("cuda:0"), lag=2)
        for _ in range(5):
            pacer.launched()
        assert len(pacer._events) == 2
