"""What the tests of anybody's model share: a module of theirs, weights of an encoder, an evaluation."""

import contextlib
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bench.encoders.common.build import build_encoder
from bench.runs.external import evaluate_foreign
from bench.spec import EvalSpec, UsageError
from bench.storage.store import load_records

EVAL = EvalSpec(attacks=("pgd",), eps=(0.05, 0.1), main_eps=0.1, protocols=("linear",), curve=(), audit="off")
MODELS = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(2, 64, generator=generator) / 8)

    def forward(self, images):
        return images.flatten(1) @ self.weight.T

def three():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

def words():
    return {"model": "none"}

def fails():
    raise ValueError("no weights here\\nand more")

constant = 3
"""


def refused(call, *arguments):
    """What the user reads: one line."""
    with pytest.raises(UsageError) as found:
        call(*arguments)
    assert "\n" not in str(found.value)
    return str(found.value)


@contextlib.contextmanager
def importable(folder):
    """The module ``their_models`` in this folder, which is the working one, and importable from there only."""
    (folder / "their_models.py").write_text(MODELS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        yield
    sys.modules.pop("their_models", None)


def untrained():
    """The weights of an untrained ResNet-8 for digits, 16 features wide."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_encoder("resnet8", 1, 16).state_dict()


def saved(weights, tmp_path):
    save_file(weights, tmp_path / "theirs.safetensors")
    return str(tmp_path / "theirs.safetensors")


def score(request):
    """(the only run of the folder, the events) of an evaluation in this process."""
    events = []
    evaluate_foreign(request, events.append)
    (record,) = load_records(Path(request.out))
    return record, events
