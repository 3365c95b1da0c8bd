"""The only training loop: a method and its adversary under one clock.

Everything that the loop draws is a function of (seed, epoch, image, view), so the state of a run is its weights, its
optimizer, the adversary's delta, the clock, and one number: how many updates have been made. Generators that a method
of the user's may draw from are part of it too.

Several ranks run the same loop side by side (bench.distributed.ranks), each on its own part of every batch. Loss,
weights and clock are the same on all of them, so all decide alike at every place.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.data.images import ImageSet
from bench.device import device as devices
from bench.distributed.batch_norm import synchronized
from bench.distributed.ranks import ALONE, Ranks
from bench.random import Draws, stream
from bench.spec import Budget, Precision, Status, TrainResult, UsageError
from bench.storage.signals import Interrupted
from bench.training.clock import Clock
from bench.training.course import Course
from bench.training.feed import Feed
from bench.training.learning import Traced, check_learning, gradients_seen
from bench.training.optim import LARS, cosine, gradients_of
from bench.training.state import Training, Undo, kept_generators, seed_generators
from methods.common.adversary import ADVERSARIES
from methods.common.base import BaseMethod

Report = Callable[[dict[str, Any]], None]
REPORT_EVERY = 0.5  # seconds between two lines of progress
FINITE_EVERY = 25  # updates between two looks at every weight, buffer and momentum
SLOW = 1.0  # seconds: beside an update that takes longer, a copy of the state costs nothing


@dataclass(frozen=True)
class Keeper:
    """How a training is kept: ``save`` takes a state to go on from, every so many seconds, off the clock.

    On several ranks ``every`` and ``marks`` are the same on all, and a stop that is asked for on one stops all.
    """

    save: Callable[[dict[str, Any]], None] = lambda state: None
    every: float = math.inf
    stop: Callable[[], bool] = lambda: False  # asked after each update
    report: Report = lambda event: None
    marks: tuple[int, ...] = ()  # percent of the budget, rising
    snapshot: Callable[[int, Training], None] = lambda mark, training: None  # at the first update at or past each


def train(
    method: BaseMethod,
    images: ImageSet,
    budget: Budget,
    seed: int,
    device: torch.device,
    *,
    precision: Precision = "fp32",
    compiled: bool = False,
    resume: dict[str, Any] | None = None,
    lost_seconds: float = 0.0,
    keeper: Keeper = Keeper(),
    now: Callable[[], int] = time.monotonic_ns,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """The method trained in place until the budget is spent: what it cost.

    Status ``finished``; ``diverged`` once the loss or the state is not finite; ``oom``; ``preempted`` when the keeper
    says stop or a signal interrupts an update, which is then dropped: ``resume`` with a state that was saved goes on
    exactly; ``failed`` when not one update fits into the budget. ``lost_seconds`` were trained after that state.

    Several ``ranks`` each get all images and make their part of every batch; the result is that of one device, its
    times those of the slowest rank. There a rank that runs out of memory, or is interrupted in the middle of an update,
    raises: the others cannot go on without it.
    """
    config = method.config
    devices.reset_peak_memory(device)
    course = Course(len(images), config.batch, config.updates_per_batch, ranks.size)
    now = ranks.latest(now)
    training = Training(
        devices.place(method, device).train(),
        LARS(method.parameters(), config.lr, config.momentum, config.weight_decay, config.trust),
        ADVERSARIES[config.adversary](config),
        Clock(budget, course.total_updates(budget), now=now, synchronize=lambda: devices.synchronize(device)),
        device,
        ranks,
    )
    images = images.to(device, devices.room_for_images(device))
    note = ""
    with kept_generators(device), devices.mixed(method, precision), shared(method, ranks):
        seed_generators(seed)
        if resume is not None:
            training.load(resume)
            training.preemptions += 1
            training.lost_seconds += lost_seconds
        status = attempt(training, images, course, seed, compiled, now, keeper)
        if status == "oom":  # outside the handler, which keeps the tensors of the failed update alive
            note = f"out of memory with a batch of {config.batch} and {config.views} views; "
            note += advice(training, images, course)
    if status == "finished" and training.clock.updates == 0:
        status = "failed"
        note = f"not one update fits into {budget}: the warm-up took {training.compile_seconds:.3g} s"
    return summary(training, course, status, note, precision)


def attempt(
    training: Training,
    images: ImageSet,
    course: Course,
    seed: int,
    compiled: bool,
    now: Callable[[], int],
    keeper: Keeper,
) -> Status:
    """Warm up, then train; how it ended. Out of memory is a status, every other error is raised."""
    method, device = training.method, training.device
    try:
        began = now()
        training.meter = warm_up(training, images, course, seed)
        training.passes = training.meter.passes(method.encoder, blank_view(method, images, device))
        if compiled:  # the meter sees single operations, so it counts before they are fused
            devices.compile_modules(*method.children())
            warm_up(training, images, course, seed, metered=False)
        training.compile_seconds = (now() - began) / 1e9
        training.phases, training.energy = devices.Phases(device), devices.Energy(device)
        if training.clock.exhausted:
            return "finished"
        status = run_updates(training, images, course, seed, keeper)
        # in the last updates, after the last look
        return "diverged" if status == "finished" and not training.finite() else status
    except Exception as error:
        if training.ranks.size > 1 or not devices.is_out_of_memory(error):
            raise
        return "oom"


def summary(training: Training, course: Course, status: Status, note: str, precision: Precision) -> TrainResult:
    """What the training gave and what it cost."""
    clock, losses, spent = training.clock, training.losses, training.spent
    per_image = course.updates_per_batch / course.batch  # updates per image and epoch
    own = per_image * training.ranks.size  # and per image of this rank's part, which the meter has seen
    flops = training.meter.flops if training.meter else 0
    forward, backward_input, backward_weight = (round(count * own, 6) for count in training.passes)
    peak_memory = training.ranks.most(devices.peak_memory_bytes(training.device))
    trained = status == "finished" and clock.train_seconds > 0
    peak = devices.matrix_peak(training.device, precision) if trained else math.inf
    return TrainResult(
        status=status,
        updates=clock.updates,
        epochs=clock.updates / course.updates_per_epoch,
        train_seconds=clock.train_seconds,
        compile_seconds=training.compile_seconds,
        paused=clock.paused,
        preemptions=training.preemptions,
        lost_seconds=training.lost_seconds,
        progress=clock.progress,
        images_per_second=clock.updates / per_image / clock.train_seconds if clock.train_seconds else 0.0,
        forward_per_image=forward,
        backward_input_per_image=backward_input,
        backward_weight_per_image=backward_weight,
        flops_per_image=round(flops * own, 1),
        peak_memory_bytes=peak_memory,
        matrix_share=flops * clock.updates / clock.train_seconds / peak if trained else None,
        schedule_active=training.optimizer.schedule_active if status != "diverged" else None,
        data_seconds=spent.get("data", 0.0),
        data_wait_seconds=spent.get("wait", 0.0),
        attack_seconds=spent.get("attack", 0.0),
        update_seconds=spent.get("update", 0.0),
        energy_joules=spent.get("joules"),
        median_update_seconds=clock.median_update,
        first_loss=losses[0][1] if losses else None,
        last_loss=losses[-1][1] if losses else None,
        last_lr=float(training.optimizer.param_groups[0]["lr"]),
        losses=losses,
        note=note,
    )


def warm_up(training: Training, images: ImageSet, course: Course, seed: int, metered: bool = True) -> devices.Meter:
    """One whole update on noise, its passes counted, then everything as it was, weights to generators.

    Off the clock (house rule 3). The noise has its own stream, and no other generator is touched. Where it is metered,
    a method that would train nothing raises UsageError (bench.training.learning).
    """
    undo, method, ranks = Undo(training), training.method, training.ranks
    shape = (course.batch, *images.image_shape)
    noise = torch.randint(0, 256, shape, generator=stream(seed, "warm-up"), dtype=torch.uint8).to(training.device)
    ids = torch.arange(course.batch)
    meter = devices.Meter(images.image_shape[0], devices.own_weights(method.encoder, method))
    draws = Draws(seed, -1, ranks.part(ids), method.config.views, training.device)

    def one_update() -> tuple[bool, bool]:
        """Whether a gradient has reached the encoder, and whether the loss is known to be computed from the views."""
        with contextlib.closing(training.adversary.losses(method, views, draws=draws)) as losses:
            with trace if metered else contextlib.nullcontext():
                loss = next(losses)
            check_shared(ranks, loss)
            with gradients_seen(method.encoder) as seen:
                update(training, loss)
        return ranks.any(seen()), trace.reaches(loss)

    trace = Traced()
    with kept_generators(training.device):
        with meter if metered else contextlib.nullcontext():
            views = method.augment(ranks.part(noise), draws)
            trace.follow(views)
            show_labels(method, images, ids.to(training.device))
            found = one_update()
        if metered:
            check_learning(method, views, *found, one_update)
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


def advice(training: Training, images: ImageSet, course: Course) -> str:
    """What to do about a batch that does not fit: the largest of its halves whose update does."""
    training.adversary.delta = None  # of the batch that did not fit
    while course.batch >= 4:
        course = replace(course, batch=course.batch // 2)
        devices.release_memory(training.device)
        try:
            warm_up(training, images, course, seed=0, metered=False)
        except Exception as error:
            if not devices.is_out_of_memory(error):
                raise
        else:
            return f"{course.batch} fits, but is another recipe: batch norm and the losses depend on the batch"
    return "no smaller one fits either"


def show_labels(method: BaseMethod, images: ImageSet, ids: Tensor) -> None:
    """Labels are for the supervised ceilings alone."""
    if method.supervised:
        method.labels = images.labels[ids]


def update(training: Training, loss: Tensor) -> None:
    """One optimizer step on this loss, and on what an adversary of the released kind has left on the weights."""
    loss.backward()
    training.ranks.average(gradients_of(training.optimizer.param_groups[0]["params"]))
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    training.method.after_update()


def run_updates(training: Training, images: ImageSet, course: Course, seed: int, keeper: Keeper) -> Status:
    """Updates until the budget is spent; the clock runs from the first batch request to the last update."""
    clock, undo = training.clock, Undo(training)
    # a full disk shows before the training, there is always a finite state, and a next kill finds this one counted
    keeper.save(training.state())
    clock.start()
    try:
        with Feed(images, course, seed, training.device, training.ranks.part) as feed:
            status = loop(training, undo, images, course, seed, keeper, feed)
            clock.stop()
    except Interrupted:
        if training.ranks.size > 1:
            raise
        clock.stop()
        if not undo.current:
            return "preempted"  # in the middle of an update that cannot be taken back: the last checkpoint counts
        undo.restore()
        status = "preempted"
    if status == "preempted":
        if not training.finite():
            return "diverged"
        keeper.save(training.state())
    return status


def loop(
    training: Training, undo: Undo, images: ImageSet, course: Course, seed: int, keeper: Keeper, feed: Feed
) -> Status:
    """The loop over batches and their replays. Raises Interrupted in the middle of an update."""
    clock, method, config, device = training.clock, training.method, training.method.config, training.device
    phases, ranks = training.phases, training.ranks
    assert phases is not None
    training.adversary.climbed = lambda: phases.mark("attack")
    timed = clock.total_updates is None
    pacer = devices.Pacer(device)
    read_every = 1 if device.type == "cpu" else 25  # reading a loss waits for the device
    marks = list(keeper.marks)
    reported, saved = -math.inf, clock.seconds
    sound = torch.ones((), dtype=torch.bool, device=device)  # whether every loss was finite
    while not clock.exhausted:
        epoch, batch, replay = course.locate(clock.updates)
        phases.mark(None)
        waited = feed.waited
        ids, pixels = feed(epoch, batch)
        phases.add("wait", feed.waited - waited)
        draws = Draws(seed, epoch, ranks.part(ids), config.views, device)
        views = method.augment(pixels, draws)
        show_labels(method, images, ids)
        phases.mark("data")
        losses = training.adversary.losses(method, views, replay, draws)
        with contextlib.closing(losses):
            for loss in losses:
                undo.follow()  # the replay before has moved delta only now
                training.optimizer.param_groups[0]["lr"] = cosine(clock.progress * config.schedule_waves, config.lr)
                update(training, loss)
                phases.mark("update")
                if timed and clock.seconds_left < 4 * max(clock.durations, default=0.0):
                    devices.synchronize(device)  # near the end each is waited for, so that none ends past it
                else:
                    pacer.launched()
                if not clock.tick():
                    losses.close()
                    undo.restore()
                    return "finished"
                if timed or clock.median_update > SLOW:
                    undo.save()  # before the next forward, which feeds the running statistics
                while marks and 100 * clock.kept_progress >= marks[0] - 1e-9:
                    with clock.pause("snapshot"):
                        keeper.snapshot(marks.pop(0), training)
                    phases.mark(None)
                last = clock.exhausted
                sound = sound & loss.detach().isfinite()
                if clock.updates % read_every == 0 or last:
                    value = float(loss.detach())
                    if ranks.any(not sound) or (clock.updates % FINITE_EVERY == 0 and not training.finite()):
                        return "diverged"
                    if not training.losses or clock.progress - training.losses[-1][0] >= 0.005 or last:
                        training.losses.append((round(clock.progress, 6), value))
                    if clock.seconds - reported >= REPORT_EVERY or last:
                        reported = clock.seconds
                        keeper.report(progress_event(training, course, value))
                if last or ranks.any(keeper.stop()):
                    break
        undo.follow()
        if ranks.any(keeper.stop()) and not clock.exhausted:
            return "preempted"
        if clock.seconds - saved > keeper.every and not clock.exhausted:
            with clock.pause("checkpoint"):
                if not training.finite():
                    return "diverged"
                keeper.save(training.state())
            saved = clock.seconds
    return "finished"


def progress_event(training: Training, course: Course, loss: float) -> dict[str, Any]:
    """What a reader of the progress wants to know."""
    clock = training.clock
    images = clock.updates * course.batch / course.updates_per_batch
    return {
        "event": "train",
        "progress": round(clock.progress, 4),
        "loss": round(loss, 4),
        "updates": clock.updates,
        "seconds": clock.train_seconds,
        "images_per_second": round(images / max(clock.train_seconds, 1e-9), 1),
        "seconds_left": round(clock.seconds_left, 1),
    }
