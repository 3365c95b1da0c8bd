"""The only training loop: a method and its adversary under one clock.

Everything that the loop draws is a function of (seed, epoch, image, view), so the state of a run is its weights, its
optimizer, the adversary's delta, the clock, and one number: how many updates have been made.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bench import device as devices
from bench.clock import Clock
from bench.data import ImageSet, permutation
from bench.optim import LARS, cosine
from bench.repro import Draws, stream
from bench.spec import Budget, Precision, Status, TrainResult, UsageError
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
    device: torch.device
    losses: list[tuple[float, float]] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=dict)  # seconds of each phase, and joules
    meter: devices.Meter | None = None  # of one update, as the warm-up found it
    passes: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of one update: forward, backward to input, to weights
    compile_seconds: float = 0.0

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
            "schedule": self.optimizer.schedule_meter,
            "spent": self.spent,
        }

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Put a saved state back; the clock is given its numbers when it is made."""
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.adversary.delta = None if state["delta"] is None else state["delta"].to(device)
        self.losses = [(progress, loss) for progress, loss in state["losses"]]
        self.optimizer.schedule_meter.copy_(state["schedule"])
        self.spent = dict(state["spent"])

    def tensors(self) -> list[Tensor]:
        """Everything that an update changes in place."""
        momenta = [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        return [*self.method.parameters(), *self.method.buffers(), *momenta, self.optimizer.schedule_meter]


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
    precision: Precision = "fp32",
    compiled: bool = False,
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
        device,
    )
    if resume:
        training.load(resume, device)
    images = images.to(device)
    note = ""
    with devices.mixed(method, precision):
        status = attempt(training, images, course, seed, compiled, now, report, stop)
        if status == "oom":  # outside the handler, which keeps the tensors of the failed update alive
            note = f"out of memory with a batch of {config.batch} and {config.views} views; "
            note += advice(training, images, course)
    if status == "finished" and clock.updates == 0:
        status = "failed"
        note = f"not one update fits into {budget}: the warm-up took {training.compile_seconds:.3g} s"
    return summary(training, course, status, note, precision), training.state()


def attempt(
    training: Training,
    images: ImageSet,
    course: Course,
    seed: int,
    compiled: bool,
    now: Callable[[], int],
    report: Report,
    stop: Callable[[], bool],
) -> Status:
    """Warm up, then train; how it ended. Out of memory is a status, every other error is raised."""
    method, device = training.method, training.device
    phases, energy = devices.Phases(device), devices.Energy(device)
    status: Status = "finished"
    try:
        began = now()
        training.meter = warm_up(training, images, course, seed)
        training.passes = training.meter.passes(method.encoder, images.images[0].float() / 255)
        if compiled:  # the meter sees single operations, so it counts before they are fused
            devices.compile_modules(*method.children())
            warm_up(training, images, course, seed, metered=False)
        training.compile_seconds = (now() - began) / 1e9
        energy = devices.Energy(device)
        if not training.clock.exhausted:
            status = run_updates(training, images, course, seed, phases, report, stop)
            if status == "finished" and not all(bool(t.isfinite().all()) for t in training.tensors()):
                status = "diverged"  # in the last updates, after the last loss that was read
    except Exception as error:
        if not devices.is_out_of_memory(error):
            raise
        status = "oom"
    for name, amount in (phases.seconds() | {"joules": energy.joules()}).items():
        if amount is not None:
            training.spent[name] = training.spent.get(name, 0.0) + amount
    return status


def summary(training: Training, course: Course, status: Status, note: str, precision: Precision) -> TrainResult:
    """What the training gave and what it cost."""
    clock, losses, spent = training.clock, training.losses, training.spent
    per_image = course.updates_per_batch / course.batch  # updates per image and epoch
    flops = training.meter.flops if training.meter else 0
    forward, backward_input, backward_weight = (round(count * per_image, 6) for count in training.passes)
    peak_memory = devices.peak_memory_bytes(training.device)
    trained = status == "finished" and clock.train_seconds > 0
    peak = devices.matrix_peak(training.device, precision) if trained else math.inf
    return TrainResult(
        status=status,
        updates=clock.updates,
        epochs=clock.updates / course.updates_per_epoch,
        train_seconds=clock.train_seconds,
        compile_seconds=training.compile_seconds,
        progress=clock.progress,
        images_per_second=clock.updates / per_image / clock.train_seconds if clock.train_seconds else 0.0,
        forward_per_image=forward,
        backward_input_per_image=backward_input,
        backward_weight_per_image=backward_weight,
        flops_per_image=round(flops * per_image, 1),
        peak_memory_bytes=peak_memory,
        matrix_share=flops * clock.updates / clock.train_seconds / peak if trained else None,
        schedule_active=training.optimizer.schedule_active,
        data_seconds=spent.get("data", 0.0),
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
    """One whole update on noise, its passes counted, then everything as it was: weights, buffers, optimizer, delta.

    Off the clock (house rule 3). The noise has its own stream, and no other generator is touched.
    """
    undo, method = Undo(training), training.method
    shape = (course.batch, *images.images.shape[1:])
    noise = torch.randint(0, 256, shape, generator=stream(seed, "warm-up"), dtype=torch.uint8).to(training.device)
    ids = torch.arange(course.batch)
    meter = devices.Meter(images.images.shape[1])
    with meter if metered else contextlib.nullcontext():
        draws = Draws(seed, -1, ids, method.config.views, training.device)
        views = method.augment(noise, draws)
        show_labels(method, images, ids.to(training.device))
        losses = training.adversary.losses(method, views, draws=draws)
        update(training, next(losses))
    losses.close()
    undo.restore()
    return meter


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
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    training.method.after_update()


def run_updates(
    training: Training,
    images: ImageSet,
    course: Course,
    seed: int,
    phases: devices.Phases,
    report: Report,
    stop: Callable[[], bool],
) -> Status:
    """Updates until the budget is spent; the clock runs from the first batch request to the last update."""
    clock, method, config, device = training.clock, training.method, training.method.config, training.device
    training.adversary.climbed = lambda: phases.mark("attack")
    timed = clock.total_updates is None
    pacer, undo = devices.Pacer(device), Undo(training)
    read_every = 1 if device.type == "cpu" else 25  # reading a loss waits for the device
    order, order_epoch, reported = torch.empty(0), -1, -math.inf
    clock.start()
    while not clock.exhausted:
        epoch, batch, replay = course.locate(clock.updates)
        if epoch != order_epoch:
            order, order_epoch = permutation(len(images), seed, epoch).to(device), epoch  # waits, once per epoch
        phases.mark(None)
        ids = order[batch * course.batch : (batch + 1) * course.batch]
        draws = Draws(seed, epoch, ids, config.views, device)
        views = method.augment(images.images[ids], draws)
        show_labels(method, images, ids)
        phases.mark("data")
        losses = training.adversary.losses(method, views, replay, draws)
        for loss in losses:
            undo.delta = training.adversary.delta  # the replay before has moved it only now
            training.optimizer.param_groups[0]["lr"] = cosine(clock.progress * config.schedule_waves, config.lr)
            update(training, loss)
            phases.mark("update")
            if timed and clock.seconds_left < 4 * max(clock.durations, default=0.0):
                devices.synchronize(device)  # near the end each update is waited for, so that none ends past it
            else:
                pacer.launched()
            if not clock.tick():
                losses.close()
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
        losses.close()
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
