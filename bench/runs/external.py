"""The evaluation of a foreign module, in a process of its own: into a run folder, audited as our own."""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from bench import registry
from bench.audit.audit import audit
from bench.data.images import ImageSet, checked_info, data_info, load_data, remarks
from bench.device import device as devices
from bench.encoders.common.names import encoder_fields
from bench.evaluation.embedding import encoder_shift
from bench.evaluation.evaluate import evaluate
from bench.evaluation.evaluated import Evaluated
from bench.evaluation.examples import examples
from bench.evaluation.external_model import WEIGHTS, Loading, canary, check_module, load_told, own_logits
from bench.evaluation.search import one_line
from bench.events import Report
from bench.identity.again import check_run
from bench.identity.signed import Signed
from bench.identity.source import sources
from bench.options.external_request import Request
from bench.options.threats import check_images
from bench.random import environment
from bench.record import Record, Setting, TrainResult
from bench.runs.conduct import make_manifest, opened
from bench.spec import Budget, RunSpec
from bench.storage.files import Damaged, save_tensors, sha256
from bench.storage.repair import repair
from bench.storage.signals import Interrupted
from bench.storage.store import RunFolder, load_manifest

ELSEWHERE = "trained elsewhere: no budget, no cost and no adversary of training is known"


def evaluate_foreign(request: Request, report: Report) -> None:
    """Load, check, then evaluate into a run folder; what the folder already has is not done again.

    Nothing is written before the module has been found usable. Events: those of a run, ``remark`` on the images, and
    ``opened`` with the folder.
    """
    now = sources([run_spec(request, "")])[request.row]  # before it is loaded
    device = devices.resolve(request.device)
    devices.prepare(device, request.threads)
    train, test = load_data(registry.load("dataset", request.data.name).Dataset(), request.data)
    info = checked_info(train, test)
    for remark in remarks(info):
        report({"event": "remark", "message": remark})
    check_images(request.eval, test.image_shape)
    loading = Loading(request.prefix, request.branch)
    channels = test.image_shape[0]
    module, stored, said = load_told(request.source, request.architecture, channels, request.normalize, loading)
    devices.place(module, device)
    width = check_module(module, request.kind, test, device, request.source)
    if request.architecture is not None and request.kind == "encoder":
        said.append(canary(module, train.seen_as(test), test, device))
    for remark in said:
        report({"event": "remark", "message": remark})
    weights = sha256(module.state_dict())
    spec = run_spec(request, weights)
    out = Path(request.out) if request.out else default_folder(spec)
    manifest = make_manifest([spec], None, None, info, list(request.command))
    with opened(out, manifest, again=request.again):
        folder = Signed(out, spec, now)
        check_run(folder, now, load_manifest(out).code[spec.row])
        score(request, module, stored, width, train.seen_as(test), test, spec, folder, device, report)


def score(
    request: Request,
    module: nn.Module,
    weights: dict[str, Tensor],
    width: int,
    train: ImageSet,
    test: ImageSet,
    spec: RunSpec,
    folder: Signed,
    device: torch.device,
    report: Report,
) -> None:
    """Evaluate and audit a module that is usable, into a folder that is owned."""
    repair(folder)
    record = Record(
        spec=spec,
        adversary="unknown",
        supervised=request.kind == "classifier",  # its own head has seen labels
        data=data_info(train, test),
        settings=[Setting(name=name, value=value, source="bench evaluate") for name, value in spec.settings.items()]
        + [Setting(name="output_width", value=width, source="found")],
        environment=environment(str(device), "fp32"),
        sources=folder.found,
    )
    if request.architecture is not None:
        save_tensors(folder.place(WEIGHTS), weights)
    folder.save_record(record)
    report({"event": "opened", "out": str(folder.out)})

    def ended(status: str, message: str = "", missing: str = "") -> None:
        message = message or missing
        said = f"{message}; {ELSEWHERE}" if message else ELSEWHERE
        folder.save_record(record.model_copy(update={"status": status, "message": said, "missing": missing}))
        report({"event": "ended", "status": status, "message": message})

    if request.kind == "classifier" and folder.probe("linear") is None:
        folder.save_probe(*own_logits(width, train))
    try:
        it: Evaluated[RunFolder] = Evaluated(module, train, test, spec.eval, spec.seed, device, folder, report)
        missing = [evaluate(it)]
        if request.kind == "encoder":  # a classifier is its own head
            missing.append(encoder_shift(it))
        missing.append(audit_folder(it, folder))
        examples(it)
    except Interrupted:
        ended("preempted", "stopped in the evaluation; the same command goes on from there")
        raise
    except Exception as error:
        if not devices.is_out_of_memory(error):
            ended("failed", one_line(error))
            raise
        ended("oom", f"out of memory in the evaluation: {one_line(error)}")
        return
    ended("finished", missing="; ".join(filter(None, missing)))


class Loaded(Signed):
    """The run's folder, whose record also says which weights were loaded: here the loading stands for the training."""

    def record(self, damaged: list[Damaged] | None = None) -> Record:
        known = {"status": "finished", "encoder_sha256": self.spec.settings["weights_sha256"]}
        nothing = {name: 0 for name, field in TrainResult.model_fields.items() if field.is_required()}
        train = TrainResult.model_validate(nothing | known)
        return super().record(damaged).model_copy(update={"train": train})


def audit_folder(it: Evaluated[RunFolder], folder: Signed) -> str:
    """Audit the numbers in the folder, which stays without a training; returns what is missing, or ""."""
    return audit(replace(it, cells=Loaded(folder.out, folder.spec, folder.found)))


def run_spec(request: Request, weights: str) -> RunSpec:
    """The run that stands for this evaluation; other weights are another run, whatever their name."""
    return RunSpec(
        method=request.row,
        settings={
            "source": request.source,
            "kind": request.kind,
            "architecture": request.architecture or "its own",
            "normalize": list(request.normalize),
            "weights_sha256": weights,
        },
        data=request.data,
        budget=Budget(amount=1, unit="updates"),  # a run has one; no training is done here
        device=request.device,
        threads=request.threads,
        **encoder_fields(request.architecture),
        eval=request.eval,
    )


def default_folder(spec: RunSpec) -> Path:
    """``runs/<name>-<data>-<hash of everything>``: the same command finds its folder again."""
    return (
        Path("runs")
        / f"{spec.method}-{spec.data.name}-{hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:6]}"
    )
