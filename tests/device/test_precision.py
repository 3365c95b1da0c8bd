"""What bf16 may and may not do: the stem, the weights and the losses stay float32, and no gradient is lost."""

import copy
import time

import pytest
import torch
from torch import nn
from training_fixtures import trained

from bench.device import device as devices
from bench.encoders.common.base import Stem
from bench.encoders.common.build import build_encoder
from bench.encoders.common.folding import fold_batch_norm
from bench.spec import Budget
from bench.training.train import train

CPU = torch.device("cpu")


def encoder():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_encoder("resnet8", 1, 32)


class TestStem:
    def test_computes_in_float32_and_hands_on_in_bf16(self):
        stem, images = Stem(1, 4, 3, padding=1, bias=False), torch.rand(2, 1, 8, 8)
        plain = nn.functional.conv2d(images, stem.weight, padding=1)
        assert torch.equal(stem(images), plain)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(stem(images), plain.bfloat16())

    def test_is_the_first_convolution_of_every_encoder(self):
        for name, channels in (("resnet8", 1), ("resnet18", 3)):
            convolutions = [m for m in build_encoder(name, channels, 16).modules() if isinstance(m, nn.Conv2d)]
            assert [isinstance(m, Stem) for m in convolutions] == [True] + [False] * (len(convolutions) - 1)

    def test_is_folded_for_evaluation(self):
        network = encoder().eval()
        images = torch.rand(4, 1, 16, 16)
        folded = fold_batch_norm(network)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        torch.testing.assert_close(folded(images), network(images), rtol=1e-4, atol=1e-5)
        assert isinstance(network.backbone[0], Stem)


class TestMixed:
    def test_modules_compute_in_bf16_and_hand_on_float32_and_nothing_else_does(self):
        method, x, inside = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), torch.rand(2, 8), []
        method[0].weight.register_hook(lambda gradient: inside.append(gradient.dtype))
        plain = method(x)
        with devices.mixed(method, "bf16"):
            out = method(x)
            assert (out.dtype, (out @ out.mT).dtype) == (torch.float32, torch.float32)
            assert torch.equal(out, out.bfloat16().float())  # but for bf16 it is exact
            assert not torch.equal(out, plain)
            out.sum().backward()
        assert inside == [torch.float32]
        assert torch.equal(method(x), plain)  # all hooks are gone
        with devices.mixed(method, "fp32"):
            assert torch.equal(method(x), plain)

    def test_a_module_that_fails_leaves_no_autocast_behind(self):
        method = nn.Sequential(nn.Linear(8, 8))
        with devices.mixed(method, "bf16"):
            with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                method(torch.rand(2, 3))
            assert not torch.is_autocast_enabled("cpu")

    def test_a_forward_without_gradients_does_not_cut_the_weights_off_the_next(self):
        """As a cache of cast weights would: the clean embedding is computed so before the loss."""
        method, x = nn.Sequential(nn.Linear(8, 8)), torch.rand(4, 8)
        with devices.mixed(method, "bf16"):
            with torch.no_grad():
                method(x)
            loss = method(x).square().sum()
        loss.backward()
        assert method[0].weight.grad.abs().sum() > 0

    @pytest.mark.parametrize(
        "name",
        ["simclr_adv", "cf_amc_ssl"]
        + [pytest.param(name, marks=pytest.mark.ci) for name in ("simclr", "emp_ssl", "emp_ssl_adv", "simclr_free")],
    )
    def test_training_keeps_float32_weights_and_a_loss_close_to_float32(self, tiny, digits, name):
        budget, images = Budget.parse("2up"), digits.first(12)
        one, method = tiny(name), tiny(name)
        method.load_state_dict(copy.deepcopy(one.state_dict()))
        plain = train(one, images, budget, 0, CPU)
        mixed, state = trained(method, images, budget, precision="bf16")
        # five steps of a sign attack on a batch of six magnify what bf16 rounds
        assert mixed.first_loss == pytest.approx(plain.first_loss, rel=0.25 if name.endswith("_adv") else 0.02)
        assert mixed.first_loss != plain.first_loss
        assert {t.dtype for t in state["method"].values()} == {torch.float32, torch.int64}
        assert state["delta"] is None or state["delta"].dtype == torch.float32
        for name in ("forward_per_image", "backward_input_per_image", "backward_weight_per_image", "flops_per_image"):
            assert getattr(mixed, name) == getattr(plain, name)


class TestMeters:
    def test_phases_add_up_and_leave_out_what_is_none(self, monkeypatch):
        times = iter([0.0, 1.0, 4.0, 9.0, 11.0, 15.0])  # 5 s lie between the two updates
        monkeypatch.setattr(time, "perf_counter", lambda: next(times))
        phases = devices.Phases(CPU)
        for _ in range(2):
            phases.mark(None)
            phases.mark("data")
            phases.mark("update")
        assert phases.seconds() == {"data": 1.0 + 2.0, "update": 3.0 + 4.0}

    def test_a_training_knows_where_its_time_went(self, tiny, digits, monkeypatch):
        """In the time of the processor, of which other processes take none."""
        monkeypatch.setattr(time, "perf_counter", time.process_time)
        clock = {"now": time.process_time_ns}
        result = train(tiny("emp_ssl_adv"), digits.first(12), Budget.parse("12up"), 0, CPU, **clock)
        assert result.data_seconds > 0
        assert result.attack_seconds > result.update_seconds > 0  # five passes against one
        spent = result.data_seconds + result.attack_seconds + result.update_seconds
        assert 0.8 * result.train_seconds < spent <= result.train_seconds
        clean = train(tiny("emp_ssl"), digits.first(12), Budget.parse("3up"), 0, CPU, **clock)
        assert clean.attack_seconds == 0

    def test_the_share_of_the_peak_is_a_share(self, tiny, digits, quick_peak, monkeypatch):
        monkeypatch.setattr(devices, "matrix_peak", quick_peak)  # the real one
        result = train(tiny("simclr"), digits.first(12), Budget.parse("2up"), 0, CPU)
        assert 0 < result.matrix_share < 1
        assert devices.matrix_peak(CPU, "fp32") > 1e9

    def test_a_cpu_has_no_energy_meter_and_says_so(self):
        assert devices.Energy(CPU).joules() is None

    def test_tf32_is_given_back_and_means_nothing_on_a_cpu(self):
        before = torch.backends.cudnn.allow_tf32
        with devices.tf32(CPU, True):
            assert not torch.backends.cudnn.allow_tf32
        with devices.tf32(torch.device("cuda"), True):
            assert torch.backends.cudnn.allow_tf32
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32 == before


class TestCompiled:
    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore")  # of the compiler
    @pytest.mark.parametrize("name", ["emp_ssl_adv", "simclr_free"])
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_equals_eager(self, tiny, digits, name, precision):
        budget, images = Budget.parse("2up"), digits.first(12)
        one, method = tiny(name), tiny(name)
        method.load_state_dict(copy.deepcopy(one.state_dict()))
        plain = train(one, images, budget, 0, CPU, precision=precision)
        compiled = train(method, images, budget, 0, CPU, precision=precision, compiled=True)
        # five steps of a sign attack on a batch of six magnify what fusing rounds
        attacked = {"fp32": 0.05, "bf16": 0.25}
        tolerance = (attacked if name.endswith("_adv") else {"fp32": 1e-4, "bf16": 0.02})[precision]
        assert compiled.first_loss == pytest.approx(plain.first_loss, rel=tolerance)
        assert compiled.forward_per_image == plain.forward_per_image
        assert compiled.compile_seconds > plain.compile_seconds
