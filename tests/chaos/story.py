"""What a run writes, without its training: a run that is trained, probed, attacked and audited in milliseconds.

It goes on from what is there, as the engine does, and every number is made from what was stored before: so whatever is
lost, kept for too long or mixed up shows in the last bytes.
"""

import hashlib
from pathlib import Path

import torch
from store_fixtures import DATA, MACHINE

from bench.record import Audit, Check, EvalResult, Manifest, ProbeResult, Record, TrainResult
from bench.spec import Budget, DataSpec, RunSpec, UsageError
from bench.storage.files import save, sha256
from bench.storage.repair import repair, settle
from bench.storage.store import MANIFEST, Beat, RunFolder, load_manifest

OUT = Path("/results/first")
SPEC = RunSpec(method="emp_ssl", data=DataSpec(name="synthetic"), budget=Budget.parse("6up"), seed=3)
ASKED = Manifest(
    bench_version="0",
    command=["bench"],
    created="2025-01-01T00:00:00+00:00",
    budget=SPEC.budget,
    runs=[SPEC],
    seeds=[3],
    data=DATA,
    main_eps=0.1,
    environment=MACHINE,
)
RECORD = Record(spec=SPEC, adversary="free", data=DATA, environment=MACHINE)
TRAINED = TrainResult(
    status="finished",
    updates=6,
    epochs=2.0,
    train_seconds=1.5,
    compile_seconds=0.0,
    progress=1.0,
    images_per_second=42.0,
    forward_per_image=8.0,
    backward_input_per_image=8.0,
    backward_weight_per_image=8.0,
    flops_per_image=1e6,
    peak_memory_bytes=10**9,
    median_update_seconds=0.3,
    last_lr=0.0,
)
PROTOCOLS = ("linear", "multi_patch")
STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
CELLS = [("none", 0.0), ("pgd", 0.05), ("pgd", 0.1), ("pgd", 0.2), ("autoattack", 0.1)]
CHECKPOINTS = (2, 3, 4, 5)  # updates


def story(log=None, stop_after=None):
    """The run, from the beginning or from what is there. ``log`` gets (what, its value) of all that was saved.

    ``stop_after``: end after the checkpoint at so many updates.
    """
    log = [] if log is None else log
    settle(OUT)
    try:
        load_manifest(OUT)
    except UsageError:
        save(OUT / MANIFEST, ASKED)
    log.append(("manifest", ASKED))
    run = RunFolder(OUT, SPEC)
    repair(run)
    run.save_record(RECORD)
    log.append(("record", "pending"))
    if run.trained() is None:
        encoder = train(run, log, stop_after)
        if encoder is None:
            return
        run.save_trained(TRAINED, encoder)
        log.append(("trained", sha256(encoder)))
    for protocol in PROTOCOLS:
        probe(run, protocol, log)
        for attack, eps in CELLS:
            measure(run, protocol, attack, eps, log)
    if not run.audits():
        run.save_audits([audit(run, protocol) for protocol in PROTOCOLS])
        log.append(("audits", run.audits()))
    run.save_record(RECORD.model_copy(update={"status": "finished"}))
    log.append(("record", "finished"))


def train(run, log, stop_after):
    """The weights of six updates; every one adds to the last."""
    state, _ = run.checkpoint()
    state = state or {"updates": 0, "weights": {"w": torch.zeros(3, 2)}, "seconds": 0.0}
    for updates in range(state["updates"] + 1, 7):
        state = {
            "updates": updates,
            "weights": {"w": state["weights"]["w"] * 0.5 + torch.arange(6.0).view(3, 2) * updates},
            "seconds": updates / 4,
        }
        run.save_beat(Beat(seconds=updates / 4, updates=updates))
        if updates in CHECKPOINTS:
            run.save_checkpoint(state)
            log.append(("checkpoint", updates))
        if updates == stop_after:
            return None
    return state["weights"]


def probe(run, protocol, log):
    if run.probe(protocol) is None:
        tensors = {"weight": run.trained()[1]["w"] + len(protocol)}
        found = ProbeResult(
            protocol=protocol,
            feature_width=2,
            penalty=0.01,
            gradient_norm=1e-7,
            scale=1.0,
            held_out=[(0.01, 5, 6)],
            train_correct=30,
            train_total=32,
            seconds=0.5,
        )
        run.save_probe(found, tensors)
        log.append((f"probe {protocol}", sha256(tensors)))


def measure(run, protocol, attack, eps, log):
    """A cell: PGD goes on from the images of the smaller eps up to the main one, AutoAttack from those of a stage."""
    result = run.result(protocol, attack, eps)
    while result is None or not result.complete:
        stages = [] if result is None else result.stages
        if attack == "autoattack":
            stages = [*stages, (STAGES[len(stages)], 4 - len(stages))]
        result = EvalResult(
            protocol=protocol,
            attack=attack,
            threat_space="image",
            eps=eps,
            outcomes="0110",
            seconds=1.0,
            config={"eps": eps},
            complete=attack != "autoattack" or len(stages) == len(STAGES),
            stages=stages,
        )
        if attack != "none" and eps <= 0.1:
            before = run.adversarial(protocol, attack)
            before = run.probe(protocol)[1]["weight"] / 100 if before is None else before
            images = before * 0.75 + eps
            result = result.model_copy(update={"images_sha256": run.save_adversarial(protocol, attack, images)})
        run.save_result(result)
        log.append((f"result {protocol} {attack} {eps}", result))


def audit(run, protocol):
    """Its evidence is all that stands in the results."""
    results = [each.model_dump_json() for each in run.record().results if each.protocol == protocol]
    note = hashlib.sha256("".join(results).encode()).hexdigest()
    return Audit(
        protocol=protocol, level="core", eps=0.1, checks=[Check(id="S2", verdict="PASS", value=5.0, note=note)]
    )


# ---------------------------------------------------------------- what a reader finds


def found(what):
    """What is stored now, in the terms of the log."""
    run = RunFolder(OUT, SPEC)
    kind, *rest = what.split()
    if kind == "manifest":
        return load_manifest(OUT)
    if kind == "record":
        return run.record().status
    if kind == "checkpoint":
        return "trained" if run.trained() is not None else run.checkpoint()[0]["updates"]
    if kind == "trained":
        return sha256(run.trained()[1])
    if kind == "probe":
        return sha256(run.probe(rest[0])[1])
    if kind == "audits":
        return run.audits()
    protocol, attack, eps = rest
    if attack != "none":
        run.adversarial(protocol, attack)
    return run.result(protocol, attack, float(eps))


def check_readable(log, undisturbed):
    """Everything that was saved is there, or what an undisturbed run saved there later. Raises AssertionError."""
    for what, value in dict(log).items():
        later = [each for name, each in undisturbed if name == what]
        later = later[later.index(value) :] + ["trained"] * (what == "checkpoint")
        assert found(what) in later, f"{what} was saved and is lost"


def kept(disk):
    """The files that count."""
    return {path: data for path, data in disk.files().items() if not path.name.endswith((".damaged", ".lock"))}
