"""One run in a process of its own: train, evaluate, audit. What the store already has is not done again."""

import hashlib
import json
import math
import signal
from pathlib import Path
from typing import Any

import torch

from bench import registry
from bench.audit.audit import audit
from bench.data.images import ImageSet, data_info, load_data
from bench.device import clock_probe
from bench.device import device as devices
from bench.distributed.ranks import ALONE, Ranks
from bench.engines.team import Crew
from bench.evaluation.curve import MARKS, curve
from bench.evaluation.embedding import encoder_shift
from bench.evaluation.evaluate import evaluate
from bench.evaluation.evaluated import Evaluated
from bench.evaluation.examples import examples
from bench.evaluation.search import in_this_process
from bench.events import Event, Report
from bench.fairness import remarks
from bench.identity.again import check_run
from bench.identity.signed import Signed
from bench.identity.source import TRAINING, sources
from bench.random import environment
from bench.record import DataInfo, Record, Setting, TrainResult
from bench.runs.heartbeat import Heartbeat, beat_seconds
from bench.runs.same_inputs import check_copies, check_extra
from bench.spec import RunSpec, UsageError
from bench.storage.repair import repair
from bench.storage.signals import Interrupted, StopFlag, Stuck
from bench.storage.store import Snapshot
from bench.training.build import build_method
from bench.training.state import Training
from bench.training.train import Keeper, train

WARM_UP_SECONDS = 600.0  # that the warm-up may take, compilation included


def execute(
    out: Path,
    spec: RunSpec,
    report: Report,
    flag: StopFlag,
    save_every: float = math.inf,
    ranks: Ranks = ALONE,
    images: DataInfo | None = None,
    code: str = "",
) -> None:
    """Do a run as far as it goes; its status is in its record at the end.

    This is rank 0 of the ``ranks``; the others are told what to do (bench.engines.assist). Audit and curve are made
    here alone. Where this machine, or that of a rank, has other ``images`` than the run is asked for on, or other code
    than rank 0, nothing is done; nor where its code is not that of what is there, or of the command (its hash,
    ``code``).

    Raises Interrupted after a signal, with what can go on saved; UsageError, DiskError and what a method raises.
    """
    now = sources([spec])[spec.row]  # before it is loaded: what is changed meanwhile is told the next time
    folder = Signed(out, spec, now)
    for damage in repair(folder):
        report({"event": "damaged", "message": f"{damage}; it is put aside and made again"})
    check_run(folder, now, code)
    device = devices.resolve(spec.device)
    devices.prepare(device, spec.threads)
    dataset = registry.load("dataset", spec.data.name).Dataset()
    train_set, test_set = load_data(dataset, spec.data)
    data = data_info(train_set, test_set)
    check_copies(spec, data, images, ranks)
    method, settings = build_method(spec, dataset, train_set.image_shape[0], train_set.classes)
    check_extra(extra := method.extra_data(), ranks)
    record = Record(
        spec=spec,
        title=own_title(spec),
        adversary=method.adversary,
        supervised=method.supervised,
        data=data,
        settings=[*settings, encoder_setting(spec, dataset)],
        environment=environment(str(device), spec.precision, ranks.size),
        sources=now,
    )
    folder.save_record(record)

    def ended(status: str, message: str = "", missing: str = "") -> None:
        message = message or missing
        folder.save_record(record.model_copy(update={"status": status, "message": message, "missing": missing}))
        report({"event": "ended", "status": status, "message": message})

    try:
        trained = folder.trained()
        if trained is not None and trained[0].status == "failed":  # not one update fitted: on an idle machine one may
            folder.remove("train.json")
            trained = None
        if trained is None:
            made_from = identity(settings, data, folder.codes[TRAINING] + extra)
            result = train_run(folder, method, train_set, device, made_from, extra, report, flag, save_every, ranks)
        else:
            ranks.tell(None)
            result, weights = trained
            if result.extra_data != extra:
                was, now_is = result.extra_data or "no extra data", extra or "none"
                raise UsageError(f"the encoder in {folder.path} was trained with {was}, and this command has {now_is}")
        encoder = devices.place(method.kept(), device)
        if trained is not None and result.status == "finished":
            encoder.load_state_dict(weights)
    except Interrupted:
        ended("preempted", "stopped in the training; the same command goes on from there")
        raise
    if result.status != "finished":
        ranks.tell(None)
        ended(result.status, result.note or f"after {result.updates} updates")
        return
    train_set = train_set.seen_as(test_set)
    report({"event": "trained", "updates": result.updates, "seconds": result.train_seconds, "loss": result.last_loss,
            "remarks": remarks(result, spec.budget, torch.get_num_threads())})  # fmt: skip
    crew = Crew(ranks, spec.eval) if ranks.size > 1 else None
    it = Evaluated(encoder, train_set, test_set, spec.eval, spec.seed, device, folder, report)
    try:
        missing = [curve(it, result, record.adversary)]  # first: an alarm comes before the hours of an evaluation
        if crew is not None:
            crew.summon(encoder)
        missing += [evaluate(it, crew or in_this_process)]
        if crew is not None:
            crew.dismiss()
        missing += [encoder_shift(it), audit(it)]
        examples(it)
    except Interrupted:
        ended("preempted", "stopped in the evaluation; the same command goes on from there")
        raise
    except Exception as error:
        if not devices.is_out_of_memory(error):
            raise
        ended("oom", f"out of memory in the evaluation: {error}".splitlines()[0])
        return
    ended("finished", missing="; ".join(filter(None, missing)))


def train_run(
    folder: Signed,
    method: Any,
    images: ImageSet,
    device: Any,
    made_from: str,
    extra_data: str,
    report: Report,
    flag: StopFlag,
    save_every: float,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Train from the newest checkpoint, or from the start; what came of it is stored.

    Raises Interrupted after a signal, and UsageError where the checkpoint belongs to other settings, images or code.
    """
    spec = folder.spec
    state, damaged = folder.checkpoint()
    for damage in damaged:
        report({"event": "damaged", "message": f"{damage}; training goes on from the checkpoint before it"})
    reading = None
    if state is not None:
        reading = state.pop("reading", None)
        if state.pop("made_from", None) != made_from:
            raise UsageError(
                f"the checkpoints of {spec.name} were made with other settings, images or code; "
                f"remove {folder.path / 'checkpoints'} to train from the start"
            )
    heartbeat = Heartbeat(folder, beat_seconds(spec.budget))
    with flag.in_training():
        gain = clock_probe.thread_gain(device, stop=flag)
        reading = reading or clock_probe.read_machine(spec.budget, device, spec.precision, stop=flag)

        def heard(event: Event) -> None:
            if event["event"] == "train":
                heartbeat.heard(event)
            report(event)

        def save(state: dict[str, Any]) -> None:
            flag.settle()  # what is saved is between two updates, and may take longer than the update was given
            folder.save_checkpoint(state | {"reading": reading, "made_from": made_from})
            heartbeat.save(state["seconds"], state["updates"])

        def snapshot(mark: int, training: Training) -> None:
            flag.settle()
            joules = training.spent.get("joules")
            taken = Snapshot(
                percent=mark,
                progress=training.clock.kept_progress,
                updates=training.clock.updates,
                train_seconds=training.clock.train_seconds,
                energy_joules=joules,
            )
            folder.save_snapshot(taken, dict(training.method.kept().state_dict()))

        there = folder.names("snapshots")
        marks = tuple(m for m in MARKS if f"snapshots/{m}.json" not in there) if spec.eval.over_time != "off" else ()
        keeper = Keeper(save=save, every=save_every, stop=flag, report=heard, marks=marks, snapshot=snapshot)
        beat, kept = folder.beat(), state["seconds"] if state else 0.0
        lost = max(0.0, beat.seconds - kept) if beat else 0.0
        ranks.tell({"resume": state, "lost_seconds": lost, "every": save_every, "marks": marks})
        flag.limit(WARM_UP_SECONDS)  # until the state before the first update is saved
        try:
            with heartbeat:
                result = train(
                    method,
                    images,
                    spec.budget,
                    spec.seed,
                    device,
                    precision=spec.precision,
                    compiled=spec.compiled,
                    resume=state,
                    lost_seconds=lost,
                    keeper=keeper,
                    ranks=ranks,
                )
        except Stuck:
            raise UsageError(
                f"the warm-up, one update, took longer than {WARM_UP_SECONDS:g} s; does the loss of {spec.row} return?"
            ) from None
        if result.status == "preempted":
            raise Interrupted(flag.signum or signal.SIGTERM)
        if result.status == "finished":
            after = clock_probe.read_machine(spec.budget, device, spec.precision, stop=flag)
            result = clock_probe.probed(result, reading, after).model_copy(update={"thread_gain": gain})
        result = result.model_copy(update={"extra_data": extra_data})
        folder.save_trained(result, dict(method.kept().state_dict()))
    if flag():
        raise Interrupted(flag.signum or signal.SIGTERM)
    return result


def own_title(spec: RunSpec) -> str:
    """What the file of a user's method says that people call it; "" for the methods of this project."""
    return str(getattr(registry.load("method", spec.method_path), "TITLE", "")) if spec.method_path else ""


def encoder_setting(spec: RunSpec, dataset: Any) -> Setting:
    """Which encoder a run has, and who chose it."""
    if spec.encoder is None:
        return Setting(name="encoder", value=dataset.encoder, source=spec.data.name)
    return Setting(name="encoder", value=spec.encoder, source="--encoder")


def identity(settings: list[Setting], data: DataInfo, code: str) -> str:
    """Hash of what a checkpoint belongs to: every setting of the method, the training images, and the code."""
    values = {setting.name: setting.value for setting in settings}
    text = json.dumps([values, data.train_sha256, code], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
