"""One update of each method on given views: the objective, the attack on it, the step of the optimizer.

``network`` is the encoder followed by the projector, in train mode. An objective maps views (V, B, C, H, W) to a
scalar. As everywhere, deltas start at zero and step by alpha times the sign of the gradient (arXiv:2501.03507).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tests.reference.losses import coding_rate, invariance, nt_xent
from tests.reference.optim import LARS

Objective = Callable[[Tensor], Tensor]


def emp_ssl(network: nn.Module, weight: float, eps: float) -> Objective:
    """weight * invariance + coding rate; all views in one forward, so batch norm sees them together."""

    def loss(views: Tensor) -> Tensor:
        rows: Tensor = unit(network(torch.cat(list(views))))
        z = rows.reshape(len(views), -1, rows.shape[1])
        return weight * invariance(z) + coding_rate(z, eps)

    return loss


def simclr(network: nn.Module, temperature: float) -> Objective:
    """NT-Xent of two views, each in a forward of its own."""

    def loss(views: Tensor) -> Tensor:
        first, second = views
        return nt_xent(unit(network(first)), unit(network(second)), temperature)

    return loss


def unit(z: Tensor) -> Tensor:
    """Rows divided by their length: (B, D) -> (B, D)."""
    lengths: Tensor = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    return z / lengths


def clean_update(loss: Objective, views: Tensor, optimizer: LARS) -> Tensor:
    """One update on the clean views; returns the loss before it."""
    optimizer.zero_grad()
    value = loss(views)
    value.backward()
    optimizer.step()
    return value.detach()


def pgd_update(
    network: nn.Module,
    loss: Objective,
    views: Tensor,
    optimizer: LARS,
    *,
    moves: slice,
    eps: float,
    step: float,
    steps: int,
    in_eval_mode: bool,
) -> Tensor:
    """One update on views that ``steps`` ascents have moved; returns the loss there.

    Every ascent runs the whole objective and its whole backward pass; the gradients that it leaves on the weights are
    thrown away. ``moves`` says which views are moved. The attack leaves the running statistics of batch norm alone.
    """
    delta = torch.zeros_like(views[moves])
    with running_statistics_kept(network, in_eval_mode):
        for _ in range(steps):
            delta.requires_grad_()
            loss(added(views, delta, moves)).backward()
            delta = moved(views[moves], delta, eps, step)
    return clean_update(loss, added(views, delta, moves), optimizer)


def free_update(
    loss: Objective,
    views: Tensor,
    delta: Tensor,
    optimizer: LARS,
    *,
    moves: slice,
    eps: float,
    step: float,
    replays: int,
) -> tuple[list[Tensor], Tensor]:
    """``replays`` updates on one batch; each backward pass serves the weights and delta alike.

    ``delta`` comes from the batch before, by position. Returns the losses and the delta for the next batch.
    """
    delta = inside(views[moves], delta)
    losses = []
    for _ in range(replays):
        delta.requires_grad_()
        losses.append(clean_update(loss, added(views, delta, moves), optimizer))
        delta = moved(views[moves], delta, eps, step)
    return losses, delta


def added(views: Tensor, delta: Tensor, moves: slice) -> Tensor:
    """The views, with delta added to those that move."""
    moving = range(len(views))[moves]
    pictures = [view + delta[moving.index(place)] if place in moving else view for place, view in enumerate(views)]
    return torch.stack(pictures)


def moved(clean: Tensor, delta: Tensor, eps: float, step: float) -> Tensor:
    """delta after one ascent along the gradient that lies on it, inside the ball and the range of pixels."""
    assert delta.grad is not None
    return inside(clean, (delta.detach() + step * delta.grad.sign()).clamp(-eps, eps))


def inside(clean: Tensor, delta: Tensor) -> Tensor:
    """delta shortened where clean + delta would leave [0, 1]."""
    return (clean + delta).clamp(0, 1) - clean


@contextmanager
def running_statistics_kept(network: nn.Module, in_eval_mode: bool) -> Iterator[None]:
    """Buffers come back as they were; inside, batch norm uses its running averages if ``in_eval_mode``."""
    before = [buffer.clone() for buffer in network.buffers()]
    network.train(not in_eval_mode)
    yield
    network.train()
    for buffer, saved in zip(network.buffers(), before, strict=True):
        buffer.copy_(saved)
