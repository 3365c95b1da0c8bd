"""The adversary of training, a generator of losses: the trainer calls ``backward`` and steps between the yields.

``none`` yields one loss. ``pgd`` (Madry et al., 2018, arXiv:1706.06083) climbs with gradients of the views only and
yields one loss; so does ``nfgsm`` (de Jorge et al., 2022, arXiv:2202.01181), in one step from noise. ``free`` (Shafahi
et al., 2019, arXiv:1904.12843) yields m losses and moves its perturbation by the gradient that the trainer's
``backward`` has just left on it. All step by the sign. Settings switch to what the paper's code does (arXiv:2501.03507)
where it differs.

The trainer clears gradients after each step, never before a loss: what an attack has left on the weights is part of
the update.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from attacks.common.base import project, steepest
from bench.spec import UsageError
from methods.common.augment import Draws
from methods.common.base import BaseConfig, BaseMethod

Losses = Generator[Tensor, None, None]
NOISE = 2.0  # k of N-FGSM, in eps


class Adversary:
    """No adversary: one loss on the clean views. ``delta`` is what is carried from batch to batch, if anything."""

    def __init__(self, config: BaseConfig) -> None:
        self.config = config
        self.delta: Tensor | None = None
        self.climbed: Callable[[], None] = lambda: None  # called where an attack ends and the update's forward begins

    def losses(self, method: BaseMethod, views: Tensor, start: int = 0, draws: Draws | None = None) -> Losses:
        """Losses of this batch, one per update; ``start`` is the replay to go on with after an interruption.

        ``draws`` gives the numbers of a random start, those after the ones that made the views.
        """
        yield scalar(method.objective(views, views), "loss")


class PGD(Adversary):
    """Moves the views ``steps`` times, then yields the loss there. Leaves no gradients, or those of all its steps."""

    @property
    def steps(self) -> int:
        return self.config.steps

    def start(self, unmoved: Tensor, moves: slice, draws: Draws | None) -> Tensor:
        """Where the attack begins."""
        return uniform_start(unmoved, moves, self.config.eps, draws) if self.config.random_start else unmoved

    def climb(self, moved: Tensor, gradient: Tensor, unmoved: Tensor) -> Tensor:
        """The views after a step."""
        return project(moved + self.config.step * steepest(gradient), unmoved, self.config.eps)

    def losses(self, method: BaseMethod, views: Tensor, start: int = 0, draws: Draws | None = None) -> Losses:
        config, unmoved = self.config, views[method.moves]
        moved = self.start(unmoved, method.moves, draws)
        weights = nullcontext() if config.leak_attack_gradients else frozen(method)
        with attack_mode(method, config.attack_batch_norm), weights:
            with torch.no_grad():
                clean = method.clean(views)
            for _ in range(self.steps):
                moved = moved.detach().requires_grad_()
                scalar(method.adversarial_loss(moved, clean), "adversarial_loss").backward()
                if moved.grad is None:
                    raise UsageError("adversarial_loss: expected it to depend on the views that it is given")
                moved = self.climb(moved.detach(), moved.grad, unmoved)
        self.climbed()
        yield scalar(method.objective(views, replaced(views, moved, method.moves)), "loss")


class NFGSM(PGD):
    """One step of eps from noise that is uniform within ``NOISE`` eps. Their sum is clamped to [0, 1], to no ball.

    Clipping the whole perturbation to the ball is what lets one-step training overfit catastrophically (section 4.2).
    """

    @property
    def steps(self) -> int:
        return 1

    def start(self, unmoved: Tensor, moves: slice, draws: Draws | None) -> Tensor:
        return uniform_start(unmoved, moves, NOISE * self.config.eps, draws)

    def climb(self, moved: Tensor, gradient: Tensor, unmoved: Tensor) -> Tensor:
        return (moved + self.config.eps * steepest(gradient)).clamp(0, 1)


class Free(Adversary):
    """Replays each batch m times; delta moves once per update and is carried over to the next batch by position."""

    def losses(self, method: BaseMethod, views: Tensor, start: int = 0, draws: Draws | None = None) -> Losses:
        unmoved = views[method.moves]
        if self.delta is None:
            self.delta = torch.zeros_like(unmoved)
        for _ in range(start, self.config.replays):
            moved = unmoved + self.delta
            if self.config.clamp_carried:  # delta comes from another image in the first replay
                moved = project(moved, unmoved, self.config.eps)
            moved.requires_grad_()
            try:
                yield scalar(method.objective(views, replaced(views, moved, method.moves)), "loss")
            finally:  # also when the trainer stops here: the update has been made
                if moved.grad is not None:
                    stepped = moved.detach() + self.config.step * steepest(moved.grad)
                    self.delta = project(stepped, unmoved, self.config.eps) - unmoved


ADVERSARIES: dict[str, type[Adversary]] = {"none": Adversary, "pgd": PGD, "free": Free, "nfgsm": NFGSM}


def scalar(loss: object, name: str) -> Tensor:
    """The loss that a method has returned. Raises UsageError unless it is one real number that gradients flow from."""
    if not isinstance(loss, Tensor):
        size = f" of {len(loss)}" if isinstance(loss, tuple | list | dict) else ""
        got = "None" if loss is None else f"a {type(loss).__name__}{size}"
        hint = "; let it end with return" if loss is None else ""
        raise UsageError(f"{name}: expected a scalar tensor, got {got}{hint}")
    if loss.numel() != 1:
        raise UsageError(f"{name}: expected a scalar tensor, got one of shape {tuple(loss.shape)}; take its mean")
    if not loss.is_floating_point():
        raise UsageError(f"{name}: expected a scalar tensor of real numbers, got {str(loss.dtype).split('.')[1]}")
    if not loss.requires_grad:
        raise UsageError(f"{name}: expected a scalar tensor that depends on weights and views, got a detached one")
    return loss


def replaced(views: Tensor, moved: Tensor, moves: slice) -> Tensor:
    """The views (V, B, C, H, W) with the moved ones in their places; gradients flow to ``moved``."""
    start, stop, _ = moves.indices(len(views))
    return moved if (start, stop) == (0, len(views)) else torch.cat([views[:start], moved, views[stop:]])


def uniform_start(unmoved: Tensor, moves: slice, eps: float, draws: Draws | None) -> Tensor:
    """A point for each moved view, uniform in the l-inf ball and then in [0, 1]: (len(moves), B, C, H, W).

    Raises ValueError without draws.
    """
    if draws is None:
        raise ValueError("expected draws for the random start of the adversary, got None")
    u = draws.uniform(unmoved[0, 0].numel())[moves].to(unmoved.dtype).view_as(unmoved)
    return project(unmoved + eps * (2 * u - 1), unmoved, eps)


@contextmanager
def frozen(method: nn.Module) -> Iterator[None]:
    """Weights that take no gradient while an attack climbs: compiled code computes all that may be asked for."""
    weights = [weight for weight in method.parameters() if weight.requires_grad]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_()


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
