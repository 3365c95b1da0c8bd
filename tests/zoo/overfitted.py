"""A network that one-step training has overfitted (Wong et al., 2020, arXiv:2001.03994): it stands FGSM, not PGD.

`python tests/zoo/overfitted.py` trains it, half a minute, and writes its weights in float16. They are stored because
the training is on an edge: on another kind of processor the same seed learns nothing.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from zoo import healthy

from bench.protocols.common.classifier import Classifier
from bench.random import stream

FILE = Path(__file__).parent / "overfitted.safetensors"
SEED, EPS, EPOCHS = 1, 0.3, 15


def classifier() -> Classifier:
    """The stored network, frozen, in float32."""
    network = new_network()
    network.load_state_dict({name: weight.float() for name, weight in load_file(FILE).items()})
    found = Classifier(network[:-1])
    found.probe = network[-1]
    return found.eval().requires_grad_(False)


def new_network() -> nn.Sequential:
    """An untrained one; weights are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip


def train() -> nn.Sequential:
    """Trained against FGSM of radius EPS alone, three times the eps that it is judged at."""
    digits = healthy.digits()[0]
    images, labels, network = digits.images.float() / 255, digits.labels, new_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    generator = stream(SEED, "overfitted")
    for _ in range(EPOCHS):
        for ids in torch.randperm(len(images), generator=generator).split(100):
            clean, truth = images[ids].requires_grad_(), labels[ids]
            gradient = torch.autograd.grad(F.cross_entropy(network(clean), truth), clean)[0]
            moved = (clean.detach() + EPS * gradient.sign()).clamp(0, 1)
            optimizer.zero_grad()
            F.cross_entropy(network(moved), truth).backward()
            optimizer.step()
    return network


if __name__ == "__main__":
    torch.set_num_threads(1)
    save_file({name: weight.half() for name, weight in train().state_dict().items()}, FILE)
    FILE.chmod(0o644)
