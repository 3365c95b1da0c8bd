"""The memory that fine-tuning takes is counted, and a device that has too little is refused."""

import pytest
import torch
from torch import nn

from bench.options import memory
from bench.options.memory import bytes_needed, check_memory, free_bytes
from bench.spec import EvalSpec, UsageError

CPU = torch.device("cpu")
AFF = EvalSpec(protocols=("linear", "adversarial_full"))


@pytest.mark.parametrize("images", [2, 256])
def test_a_linear_layer_keeps_its_input_and_a_relu_its_output(images):
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 10), nn.ReLU())
    weights = 4 * (48 * 10 + 10)
    assert bytes_needed(network, (3, 4, 4), images) == images * 4 * (48 + 10) + 8 * weights


def test_too_little_memory_is_refused_by_name_and_frozen_encoders_need_none(monkeypatch):
    assert free_bytes(CPU) > 0
    check_memory(AFF, "resnet8", (1, 16, 16), 1500, CPU)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1e6)
    check_memory(EvalSpec(), "resnet8", (1, 16, 16), 1500, CPU)
    with pytest.raises(
        UsageError, match="GiB free on cpu; ask for smaller batches: --protocols small=adversarial_full"
    ):
        check_memory(AFF, "resnet8", (1, 16, 16), 1500, CPU)
