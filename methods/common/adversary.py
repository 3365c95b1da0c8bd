"""The adversary of training, a generator of losses: the trainer calls ``backward`` and steps between the yields.

``none`` yields one loss. ``pgd`` (Madry et al., 2018, arXiv:1706.06083) climbs with gradients of the views only and
yields one loss. ``free`` (Shafahi et al., 2019, arXiv:1904.12843) yields m losses and moves its perturbation by the
gradient that the trainer's ``backward`` has just left on it. All start at zero and step by alpha times the sign, as
the paper's code does (arXiv:2501.03507); unlike there, no gradient of the attack reaches an update.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from attacks.common.base import project, steepest
from methods.common.base import BaseConfig, BaseMethod


class Adversary:
    """No adversary: one loss on the clean views. ``delta`` is what is carried from batch to batch, if anything."""

    def __init__(self, config: BaseConfig) -> None:
        self.config = config
        self.delta: Tensor | None = None

    def losses(self, method: BaseMethod, views: Tensor, start: int = 0) -> Iterator[Tensor]:
        """Losses of this batch, one per update; ``start`` is the replay to go on with after an interruption."""
        yield method.loss(views)


class PGD(Adversary):
    """Moves the views ``steps`` times, then yields the loss there."""

    def losses(self, method: BaseMethod, views: Tensor, start: int = 0) -> Iterator[Tensor]:
        unmoved = views[method.moves]
        moved = unmoved
        with attack_mode(method, self.config.attack_batch_norm):
            with torch.no_grad():
                clean = method.clean(views)
            for _ in range(self.config.steps):
                moved = moved.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(method.adversarial_loss(moved, clean), moved)
                moved = project(moved.detach() + self.config.step * steepest(gradient), unmoved, self.config.eps)
        yield method.loss(replaced(views, moved, method.moves))


class Free(Adversary):
    """Replays each batch m times; delta moves once per update and is carried over to the next batch by position."""

    def losses(self, method: BaseMethod, views: Tensor, start: int = 0) -> Iterator[Tensor]:
        unmoved = views[method.moves]
        if self.delta is None:
            self.delta = torch.zeros_like(unmoved)
        for _ in range(start, self.config.replays):
            # The first replay starts from another image's delta, so it is clamped to this image's box.
            moved = project(unmoved + self.delta, unmoved, self.config.eps).requires_grad_()
            try:
                yield method.loss(replaced(views, moved, method.moves))
            finally:  # also when the trainer stops here: the update has been made
                if moved.grad is not None:
                    stepped = moved.detach() + self.config.step * steepest(moved.grad)
                    self.delta = project(stepped, unmoved, self.config.eps) - unmoved


ADVERSARIES: dict[str, type[Adversary]] = {"none": Adversary, "pgd": PGD, "free": Free}


def replaced(views: Tensor, moved: Tensor, moves: slice) -> Tensor:
    """The views (V, B, C, H, W) with the moved ones in their places; gradients flow to ``moved``."""
    start, stop, _ = moves.indices(len(views))
    return moved if (start, stop) == (0, len(views)) else torch.cat([views[:start], moved, views[stop:]])


@contextmanager
def attack_mode(method: nn.Module, mode: str) -> Iterator[None]:
    """Batch norm while an attack climbs: ``batch`` statistics, buffers left alone; ``eval``; or ``released``."""
    norms = [m for m in method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    try:
        for norm in norms:
            norm.train(mode != "eval")
            norm.track_running_stats = mode != "batch"
        yield
    finally:
        for norm in norms:
            norm.train()
            norm.track_running_stats = True
