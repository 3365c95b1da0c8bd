"""Trainings of heads by gradient steps, on clean images or on images that an attack moves against the current head.

All draws of an epoch are functions of (seed, training, epoch), and what is reached is kept after each epoch, so a
training that is killed goes on to the same weights.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from attacks.common.base import last_iterate, predicted, random_start
from bench.protocols.common.base import Material
from bench.random import stream

JUDGED = 2000  # held-out training images that choose a learning rate, at most


@dataclass(frozen=True)
class Epoch:
    """``attacked``: whether its images are moved. ``factor``: of the learning rate."""

    attacked: bool = True
    factor: float = 1.0


def decayed(epochs: int) -> list[Epoch]:
    """So many attacked epochs whose learning rate falls to a tenth after three and after four fifths of them.

    >>> [epoch.factor for epoch in decayed(5)]
    [1.0, 1.0, 1.0, 0.1, 0.01]
    """
    return [Epoch(factor=10.0 ** -((5 * n >= 3 * epochs) + (5 * n >= 4 * epochs))) for n in range(epochs)]


Objective = Callable[[Tensor, Epoch, Generator], Tensor]  # places of a batch, its epoch, its draws -> a scalar


def train(
    name: str,
    model: nn.Module,
    optimizer: Optimizer,
    epochs: list[Epoch],
    ids: Tensor,
    batch: int,
    objective: Objective,
    material: Material,
) -> None:
    """Minimize the objective over the training images ``ids`` (M,), in place, from where the draft of ``name`` ends.

    Batches of ``batch`` images, the rest of an epoch left out.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    reached = material.draft.states.get(name, {"epochs": 0})
    if reached["epochs"]:
        model.load_state_dict(reached["weights"])
    if 0 < reached["epochs"] < len(epochs):
        optimizer.load_state_dict(reached["optimizer"])
    for number in range(reached["epochs"], len(epochs)):
        epoch, draws = epochs[number], stream(material.seed, "head", name, number)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * epoch.factor
        order = ids[torch.randperm(len(ids), generator=draws)]
        for places in order.split(batch)[: len(ids) // batch]:
            optimizer.zero_grad()
            objective(places, epoch, draws).backward()
            optimizer.step()
        ended = number + 1 == len(epochs)
        weights = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
        momenta = {} if ended else copy.deepcopy(optimizer.state_dict())  # it holds the tensors themselves
        material.draft.put(name, {"epochs": number + 1, "weights": weights, "optimizer": momenta})


def batch_size(most: int, images: int) -> int:
    """Images of a batch: ``most``, but an epoch of fewer images still has some 20; two at least, for batch norm."""
    return min(most, max(2, images // 20))


def steps_of(images: int, batch: int) -> int:
    """Images that an epoch sees, where the rest that fills no batch is left out."""
    return images // batch * batch


@torch.no_grad()
def robust_count(
    model: nn.Module, material: Material, ids: Tensor, steps: int, step: float, seen: str
) -> tuple[int, int]:
    """(correct, total) of the training images ``ids`` after PGD from a random start, the last iterate, in eval mode.

    ``seen``: the name of the draw; the same draw for every model that is to be compared.
    """
    draws, correct = stream(material.seed, "head", seen), 0
    for places in ids.split(material.chunk):
        images, labels = material.train.pictures(places, material.device), material.labels[places]
        start = random_start(images, material.threat.eps, draws)
        with torch.enable_grad():
            moved = last_iterate(model, images, labels, material.threat, steps=steps, step=step, start=start)
        correct += int(predicted(model(moved)).eq(labels).sum())
    return correct, len(ids)
