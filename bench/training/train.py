"""The only training loop: a method and its adversary, in one stage or several, under one clock.

Everything that the loop draws is a function of (seed, epoch, image, view), so the state of a run is its weights, its
optimizer, the adversary's delta, the clock, and one number: how many updates have been made. Generators that a method
of the user's may draw from are part of it too.

Several ranks run the same loop side by side (bench.distributed.ranks), each on its own part of every batch. Loss,
weights and clock are the same on all of them, so all decide alike at every place.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from bench.data.images import ImageSet
from bench.device import device as devices
from bench.distributed.ranks import ALONE, Ranks
from bench.events import Report, TrainProgress, silent
from bench.random import Draws
from bench.record import Status, TrainResult
from bench.spec import Budget, Precision
from bench.storage.signals import Interrupted
from bench.training.feed import Feed
from bench.training.stages import flops_per_image, per_image
from bench.training.state import Training, Undo, begun, kept_generators, seed_generators
from bench.training.step import blank_view, set_rates, shared, tell, update, warm_up
from methods.common.base import BaseMethod

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
    report: Report = silent
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
    devices.reset_peak_memory(device)
    now = ranks.latest(now)
    devices.place(method, device).train()
    note = ""
    with kept_generators(device), devices.mixed(method, precision), shared(method, ranks):
        seed_generators(seed)
        training = begun(method, len(images), budget, device, ranks, now)
        images = images.to(device, devices.room_for_images(device))
        if resume is not None:
            training.load(resume)
            training.preemptions += 1
            training.lost_seconds += lost_seconds
        status = attempt(training, images, seed, compiled, now, keeper)
        if status == "oom":  # outside the handler, which keeps the tensors of the failed update alive
            config = method.config
            note = f"out of memory with a batch of {config.batch} and {config.views} views; "
            note += advice(training, images)
    method.config = training.config  # that of no stage
    training.account()
    if status == "finished" and not all(cost.updates for cost in training.costs):
        status = "failed"
        empty = next(cost.name for cost in training.costs if not cost.updates)
        of_stage = f" of {empty}" if len(training.stages) > 1 else ""
        note = f"not one update{of_stage} fits into {budget}: the warm-up took {training.compile_seconds:.3g} s"
    return summary(training, status, note, precision)


def attempt(
    training: Training, images: ImageSet, seed: int, compiled: bool, now: Callable[[], int], keeper: Keeper
) -> Status:
    """Every stage that is left; how the training ended. Out of memory is a status, every other error is raised."""
    try:
        while (status := run_stage(training, images, seed, compiled, now, keeper)) == "finished" and not training.over:
            training.enter()
        # in the last updates, after the last look
        return "diverged" if status == "finished" and not training.finite() else status
    except Exception as error:
        if training.ranks.size > 1 or not devices.is_out_of_memory(error):
            raise
        return "oom"


def run_stage(
    training: Training, images: ImageSet, seed: int, compiled: bool, now: Callable[[], int], keeper: Keeper
) -> Status:
    """Warm up, off the clock, then make the updates of this stage."""
    method, device, cost = training.method, training.device, training.cost
    began = now()
    meter = warm_up(training, images, seed)
    cost.flops, cost.passes = meter.flops, meter.passes(method.encoder, blank_view(method, images, device))
    if compiled:  # the meter sees single operations, so it counts before they are fused
        devices.compile_modules(*method.children())
        warm_up(training, images, seed, metered=False)
    training.compile_seconds += (now() - began) / 1e9
    training.phases = training.phases or devices.Phases(device)
    training.energy = training.energy or devices.Energy(device)
    return "finished" if training.clock.exhausted else run_updates(training, images, seed, keeper)


def summary(training: Training, status: Status, note: str, precision: Precision) -> TrainResult:
    """What the training gave and what it cost."""
    clock, losses, spent, costs = training.clock, training.losses, training.spent, training.costs
    size = training.ranks.size  # each of them has seen its part of every image that was shown
    forward, backward_input, backward_weight = (round(size * per_image(costs, place), 6) for place in range(3))
    flops = sum(cost.flops * cost.updates for cost in costs)
    shown = sum(cost.images * cost.updates for cost in costs)
    peak_memory = training.ranks.most(devices.peak_memory_bytes(training.device))
    trained = status == "finished" and clock.train_seconds > 0
    peak = devices.matrix_peak(training.device, precision) if trained else math.inf
    active = getattr(training.optimizer, "schedule_active", None)
    return TrainResult(
        status=status,
        updates=clock.updates,
        epochs=sum(cost.updates / cost.updates_per_epoch for cost in costs),
        train_seconds=clock.train_seconds,
        compile_seconds=training.compile_seconds,
        paused=clock.paused,
        preemptions=training.preemptions,
        lost_seconds=training.lost_seconds,
        progress=clock.progress,
        images_per_second=shown / clock.train_seconds if clock.train_seconds else 0.0,
        forward_per_image=forward,
        backward_input_per_image=backward_input,
        backward_weight_per_image=backward_weight,
        flops_per_image=round(size * flops_per_image(costs), 1),
        peak_memory_bytes=peak_memory,
        matrix_share=flops / clock.train_seconds / peak if trained else None,
        schedule_active=active if status != "diverged" else None,
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
        stages=[asdict(cost) for cost in costs] if len(training.stages) > 1 else [],
        note=note,
    )


def advice(training: Training, images: ImageSet) -> str:
    """What to do about a batch that does not fit: the largest of its halves whose update does."""
    training.adversary.delta = None  # of the batch that did not fit
    while training.course.batch >= 4:
        training.course = replace(training.course, batch=training.course.batch // 2)
        devices.release_memory(training.device)
        try:
            warm_up(training, images, seed=0, metered=False)
        except Exception as error:
            if not devices.is_out_of_memory(error):
                raise
        else:
            return f"{training.course.batch} fits, but is another recipe: batch norm and the losses depend on the batch"
    return "no smaller one fits either"


def run_updates(training: Training, images: ImageSet, seed: int, keeper: Keeper) -> Status:
    """Updates until the stage is over; the clock runs from the first batch request to the last update."""
    clock, undo = training.clock, Undo(training)
    # a full disk shows before the training, there is always a finite state, and a next kill finds this one counted
    keeper.save(training.state())
    clock.start()
    try:
        with Feed(images, training.course, seed, training.device, training.ranks.part) as feed:
            status = loop(training, undo, images, seed, keeper, feed)
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


def loop(training: Training, undo: Undo, images: ImageSet, seed: int, keeper: Keeper, feed: Feed) -> Status:
    """The loop over batches and their replays. Raises Interrupted in the middle of an update.

    An adversary yields a loss for each update of a batch, and moves what it carries when it is asked for the next one
    or closed. So the copy for ``undo`` is taken in two parts: delta at the beginning of an update, all else at its end.
    """
    clock, method, config, device = training.clock, training.method, training.method.config, training.device
    phases, ranks, course = training.phases, training.ranks, training.course
    assert phases is not None
    training.adversary.climbed = lambda: phases.mark("attack")
    timed = clock.total_updates is None
    pacer = devices.Pacer(device)
    read_every = 1 if device.type == "cpu" else 25  # reading a loss waits for the device
    marks = list(keeper.marks[training.marked :])
    reported, saved = -math.inf, clock.seconds
    sound = torch.ones((), dtype=torch.bool, device=device)  # whether every loss was finite
    while not clock.exhausted:
        epoch, batch, replay = course.locate(clock.updates - training.cost.first_update)
        epoch += training.first_epoch
        phases.mark(None)
        waited = feed.waited
        ids, pixels = feed(epoch, batch)
        phases.add("wait", feed.waited - waited)
        draws = Draws(seed, epoch, ranks.part(ids), config.views, device)
        tell(training, images, ids)
        views = method.augment(pixels, draws)
        phases.mark("data")
        losses = training.adversary.losses(method, views, replay, draws)
        with contextlib.closing(losses):
            for loss in losses:
                undo.follow()  # the replay before has moved delta only now
                set_rates(training)
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
                method.progress = clock.stage_progress  # of the next replay
                if timed or clock.median_update > SLOW:
                    undo.save()  # before the next forward, which feeds the running statistics
                while marks and 100 * clock.kept_progress >= marks[0] - 1e-9:
                    with clock.pause("snapshot"):
                        keeper.snapshot(marks.pop(0), training)
                    training.marked += 1
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
                        keeper.report(progress_event(training, value))
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


def progress_event(training: Training, loss: float) -> TrainProgress:
    """What a reader of the progress wants to know."""
    clock = training.clock
    training.account()
    images = sum(cost.images * cost.updates for cost in training.costs)
    return {
        "event": "train",
        "progress": round(clock.progress, 4),
        "loss": round(loss, 4),
        "updates": clock.updates,
        "seconds": clock.train_seconds,
        "images_per_second": round(images / max(clock.train_seconds, 1e-9), 1),
        "seconds_left": round(clock.seconds_left, 1),
    }
