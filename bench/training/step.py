"""One update: what the method is told, its loss, the optimizer's step; and a whole one on noise before the first.

The training loop, the gate and the timing of steps make their updates here.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.data.images import ImageSet
from bench.device import device as devices
from bench.distributed.batch_norm import synchronized
from bench.distributed.ranks import Ranks
from bench.random import Draws, stream
from bench.spec import UsageError
from bench.training.learning import Traced, check_learning, gradients_seen
from bench.training.state import Training, Undo, kept_generators
from methods.common.base import BaseMethod
from methods.common.optim import gradients_of


def tell(training: Training, images: ImageSet, ids: Tensor) -> None:
    """What a method may know of an update: how far the stage is, and the labels, for the supervised ceilings alone."""
    method = training.method
    method.progress = training.clock.stage_progress
    if method.supervised:
        method.labels = images.labels[ids]


def set_rates(training: Training) -> None:
    """The learning rate of every group, as the schedule has it at this share of the stage."""
    factor = training.method.schedule(training.clock.stage_progress)
    for group in training.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def update(training: Training, loss: Tensor) -> None:
    """One optimizer step on this loss, and on what an adversary of the released kind has left on the weights."""
    loss.backward()
    training.ranks.average(gradients_of([w for group in training.optimizer.param_groups for w in group["params"]]))
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    training.method.after_update()


def warm_up(training: Training, images: ImageSet, seed: int, metered: bool = True) -> devices.Meter:
    """One whole update on noise, its passes counted, then everything as it was, weights to generators.

    Off the clock (house rule 3). The noise has its own stream, and no other generator is touched. Where it is metered,
    a method that would train nothing raises UsageError (bench.training.learning).
    """
    undo, method, ranks = Undo(training), training.method, training.ranks
    shape = (training.course.batch, *images.image_shape)
    noise = torch.randint(0, 256, shape, generator=stream(seed, "warm-up"), dtype=torch.uint8).to(training.device)
    ids = torch.arange(training.course.batch)
    meter = devices.Meter(images.image_shape[0], devices.own_weights(method.encoder, method))
    draws = Draws(seed, -1, ranks.part(ids), method.config.views, training.device)

    def one_update() -> tuple[bool, bool]:
        """Whether a gradient has reached the encoder, and whether the loss is known to be computed from the views."""
        with contextlib.closing(training.adversary.losses(method, views, draws=draws)) as losses:
            with trace if metered else contextlib.nullcontext():
                loss = next(losses)
            check_shared(ranks, loss)
            with gradients_seen(method.encoder if training.over else method) as seen:  # what is evaluated at last
                update(training, loss)
        return ranks.any(seen()), trace.reaches(loss)

    trace = Traced()
    with kept_generators(training.device):
        with meter if metered else contextlib.nullcontext():
            tell(training, images, ids.to(training.device))
            views = method.augment(ranks.part(noise), draws)
            trace.follow(views)
            learns, sees = one_update()
        if metered:
            check_learning(method, views, learns, sees, one_update)
    undo.restore()
    return meter


def blank_view(method: BaseMethod, images: ImageSet, device: torch.device) -> Tensor:
    """(C, H, W), of the size of a view."""
    channels, _, width = images.image_shape
    side = method.config.view_side(width)
    return torch.zeros(channels, side, side, device=device)


@contextlib.contextmanager
def shared(method: BaseMethod, ranks: Ranks) -> Iterator[None]:
    """Inside, the method's batch norms and its loss see the whole batch of all ranks."""
    alone, method.gather = method.gather, ranks.gather
    try:
        with synchronized(method, ranks):
            yield
    finally:
        method.gather = alone


def check_shared(ranks: Ranks, loss: Tensor) -> None:
    """Raises UsageError where the ranks have different losses, so that their mean is not that of the whole batch."""
    losses = ranks.stack(loss)
    if not torch.allclose(losses, losses[0], rtol=1e-3, equal_nan=True):
        raise UsageError(
            f"expected a loss of the whole batch on each of {ranks.size} GPUs, got {losses.tolist()}; "
            "let the method pass what it embeds through self.gather, or leave out --gpus-per-run"
        )
