"""The only training loop: a method and its adversary under one clock.

Everything that the loop draws is a function of (seed, epoch, image, view), so the state of a run is its weights, its
optimizer, the adversary's delta, the clock, and one number: how many updates have been made.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench import device as devices
from bench.clock import Clock
from bench.data import ImageSet, permutation
from bench.optim import LARS, cosine
from bench.repro import Draws, stream
from bench.spec import Budget, Status, TrainResult, UsageError
from methods.common.adversary import ADVERSARIES, Adversary
from methods.common.base import BaseMethod

Report = Callable[[dict[str, Any]], None]
REPORT_EVERY = 0.5  # seconds between two lines of progress


@dataclass
class Course:
    """What is decided before the first update: which batch, epoch and replay an update belongs to."""

    images: int
    batch: int
    updates_per_batch: int

    def __post_init__(self) -> None:
        if self.batch > self.images:
            raise UsageError(
                f"expected a batch of at most {self.images} (the training images), got {self.batch}; "
                f"take more images or set a smaller batch with --set METHOD.batch={self.images}"
            )

    @property
    def updates_per_epoch(self) -> int:
        """One pass over the images, the last incomplete batch dropped, each replay an update."""
        return self.images // self.batch * self.updates_per_batch

    def total_updates(self, budget: Budget) -> int | None:
        """Updates of a budget in updates or epochs; None for a budget in time."""
        if budget.unit == "seconds":
            return None
        updates = budget.amount * (self.updates_per_epoch if budget.unit == "epochs" else 1)
        return max(1, math.ceil(round(updates, 6)))  # 0.55 epochs of 100 updates are 55, not 56

    def locate(self, update: int) -> tuple[int, int, int]:
        """(epoch, batch within the epoch, replay) of an update counted from 0."""
        epoch, within = divmod(update, self.updates_per_epoch)
        return epoch, *divmod(within, self.updates_per_batch)


@dataclass
class Training:
    """The moving parts of one run, and how they are saved and put back."""

    method: BaseMethod
    optimizer: LARS
    adversary: Adversary
    clock: Clock
    losses: list[tuple[float, float]] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """All that is needed to go on exactly here; plain tensors, numbers and lists."""
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "delta": self.adversary.delta,
            "updates": self.clock.updates,
            "seconds": self.clock.train_seconds,
            "durations": list(self.clock.durations),
            "losses": [list(point) for point in self.losses],
        }

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Put a saved state back; the clock is given its numbers when it is made."""
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.adversary.delta = None if state["delta"] is None else state["delta"].to(device)
        self.losses = [(progress, loss) for progress, loss in state["losses"]]

    def tensors(self) -> list[Tensor]:
        """Everything that an update changes in place."""
        momenta = [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        return [*self.method.parameters(), *self.method.buffers(), *momenta]


class Undo:
    """A copy of the state, so that an update can be taken back: the warm-up, or one that ended past the budget."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.tensors: list[Tensor] = []
        self.copies: list[Tensor] = []
        self.save()

    def save(self) -> None:
        """Remember the state as it is now."""
        tensors = [t.detach() for t in self.training.tensors()]
        if len(tensors) != len(self.copies):
            self.copies = [t.clone() for t in tensors]
        else:
            for copy, tensor in zip(self.copies, tensors, strict=True):
                copy.copy_(tensor)
        self.tensors, self.delta = tensors, self.training.adversary.delta
        self.lr = self.training.optimizer.param_groups[0]["lr"]
        self.known = set(self.training.optimizer.state)

    def restore(self) -> None:
        """Put the remembered state back; optimizer state that is newer than it is forgotten."""
        for copy, tensor in zip(self.copies, self.tensors, strict=True):
            tensor.copy_(copy)
        self.training.adversary.delta = self.delta
        self.training.optimizer.param_groups[0]["lr"] = self.lr
        for parameter in set(self.training.optimizer.state) - self.known:
            del self.training.optimizer.state[parameter]
        self.training.optimizer.zero_grad(set_to_none=True)


def train(
    method: BaseMethod,
    images: ImageSet,
    budget: Budget,
    seed: int,
    device: torch.device,
    *,
    resume: dict[str, Any] | None = None,
    report: Report = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
    now: Callable[[], int] = time.monotonic_ns,
) -> tuple[TrainResult, dict[str, Any]]:
    """The method trained in place until the budget is spent: (what it cost, the state to go on from).

    Status ``finished``; ``diverged`` once a loss is not finite; ``oom``; ``preempted`` when ``stop()`` says so, with a
    state from which ``resume`` goes on exactly; ``failed`` when not one update fits into the budget.
    """
    config = method.config
    devices.reset_peak_memory(device)
    course = Course(len(images), config.batch, config.updates_per_batch)
    clock = Clock(
        budget,
        course.total_updates(budget),
        seconds=resume["seconds"] if resume else 0.0,
        updates=resume["updates"] if resume else 0,
        durations=resume["durations"] if resume else None,
        now=now,
        synchronize=lambda: devices.synchronize(device),
    )
    training = Training(
        devices.place(method, device).train(),
        LARS(method.parameters(), config.lr, config.momentum, config.weight_decay, config.trust),
        ADVERSARIES[config.adversary](config),
        clock,
    )
    if resume:
        training.load(resume, device)
    images = images.to(device)
    status: Status = "finished"
    note = ""
    compile_seconds, meter = 0.0, devices.Meter(images.images.shape[1])
    passes = (0.0, 0.0, 0.0)
    try:
        began = now()
        meter = warm_up(training, images, course, seed)
        compile_seconds = (now() - began) / 1e9
        passes = meter.passes(method.encoder, images.images[0].float() / 255)
        if not clock.exhausted:
            status = run_updates(training, images, course, seed, device, report, stop)
            if status == "finished" and not all(bool(t.isfinite().all()) for t in training.tensors()):
                status = "diverged"  # in the last updates, after the last loss that was read
    except Exception as error:
        if not devices.is_out_of_memory(error):
            raise
        status, note = "oom", f"out of memory with a batch of {config.batch} and {config.views} views"
    if status == "finished" and clock.updates == 0:
        status, note = "failed", f"not one update fits into {budget}: the warm-up took {compile_seconds:.3g} s"
    per_image = course.updates_per_batch / config.batch  # updates per image and epoch
    losses = training.losses
    result = TrainResult(
        status=status,
        updates=clock.updates,
        epochs=clock.updates / course.updates_per_epoch,
        train_seconds=clock.train_seconds,
        compile_seconds=compile_seconds,
        progress=clock.progress,
        images_per_second=clock.updates / per_image / clock.train_seconds if clock.train_seconds else 0.0,
        forward_per_image=round(passes[0] * per_image, 6),
        backward_input_per_image=round(passes[1] * per_image, 6),
        backward_weight_per_image=round(passes[2] * per_image, 6),
        flops_per_image=round(meter.flops * per_image, 1),
        peak_memory_bytes=devices.peak_memory_bytes(device),
        median_update_seconds=clock.median_update,
        first_loss=losses[0][1] if losses else None,
        last_loss=losses[-1][1] if losses else None,
        last_lr=float(training.optimizer.param_groups[0]["lr"]),
        losses=losses,
        note=note,
    )
    return result, training.state()


def warm_up(training: Training, images: ImageSet, course: Course, seed: int) -> devices.Meter:
    """One whole update on noise, its passes counted, then everything as it was: weights, buffers, optimizer, delta.

    Off the clock (house rule 3). The noise has its own stream, and no other generator is touched.
    """
    undo = Undo(training)
    shape = (course.batch, *images.images.shape[1:])
    noise = torch.randint(0, 256, shape, generator=stream(seed, "warm-up"), dtype=torch.uint8).to(images.images.device)
    ids = torch.arange(course.batch)
    meter = devices.Meter(images.images.shape[1])
    with meter:
        views = training.method.augment(noise, Draws(seed, -1, ids, training.method.config.views, noise.device))
        losses = training.adversary.losses(training.method, views)
        update(training, next(losses))
    losses.close()  # type: ignore[attr-defined]
    undo.restore()
    return meter


def update(training: Training, loss: Tensor) -> None:
    """One optimizer step on this loss."""
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    training.optimizer.step()
    training.method.after_update()


def run_updates(
    training: Training,
    images: ImageSet,
    course: Course,
    seed: int,
    device: torch.device,
    report: Report,
    stop: Callable[[], bool],
) -> Status:
    """Updates until the budget is spent; the clock runs from the first batch request to the last update."""
    clock, method, config = training.clock, training.method, training.method.config
    timed = clock.total_updates is None
    pacer, undo = devices.Pacer(device), Undo(training)
    read_every = 1 if device.type == "cpu" else 25  # reading a loss waits for the device
    order, order_epoch, reported = torch.empty(0), -1, -math.inf
    clock.start()
    while not clock.exhausted:
        epoch, batch, replay = course.locate(clock.updates)
        if epoch != order_epoch:
            order, order_epoch = permutation(len(images), seed, epoch), epoch
        ids = order[batch * course.batch : (batch + 1) * course.batch]
        views = method.augment(images.images[ids.to(device)], Draws(seed, epoch, ids, config.views, device))
        losses = training.adversary.losses(method, views, replay)
        for loss in losses:
            undo.delta = training.adversary.delta  # the replay before has moved it only now
            training.optimizer.param_groups[0]["lr"] = cosine(clock.progress, config.lr)
            update(training, loss)
            if timed and clock.seconds_left < 4 * max(clock.durations, default=0.0):
                devices.synchronize(device)  # near the end each update is waited for, so that none ends past it
            else:
                pacer.launched()
            if not clock.tick():
                losses.close()  # type: ignore[attr-defined]
                undo.restore()
                clock.stop()
                return "finished"
            if timed:
                undo.save()  # before the next forward, which feeds the running statistics
            last = clock.exhausted
            if clock.updates % read_every == 0 or last:
                value = float(loss.detach())
                if not math.isfinite(value):
                    clock.stop()
                    return "diverged"
                if not training.losses or clock.progress - training.losses[-1][0] >= 0.005 or last:
                    training.losses.append((round(clock.progress, 6), value))
                if clock.seconds - reported >= REPORT_EVERY or last:
                    reported = clock.seconds
                    report(progress_event(training, course, value))
            if last or stop():
                break
        losses.close()  # type: ignore[attr-defined]
        if stop() and not clock.exhausted:
            clock.stop()
            return "preempted"
    clock.stop()
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
        "images_per_second": round(images / max(clock.train_seconds, 1e-9), 1),
        "seconds_left": round(clock.seconds_left, 1),
    }
