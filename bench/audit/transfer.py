"""The transfer stage (A14 of protocol 3.3): when all runs have ended, adversarial images of each are tried on others.

A source makes its images once, in its own folder, under a name that says what they were made from. So the stage goes
on where it was stopped, and a source that has changed is made and tried again. One encoder is in memory at a time.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from attacks.common.base import config_hash
from bench.audit.audit import build_subject, run_check
from bench.audit.checks.subject import Counted
from bench.audit.checks.transfer import STEPS, adversarial_images, image_count, sources_of, transfer_not_better
from bench.audit.verify import load
from bench.device import device as devices
from bench.evaluation.evaluated import Evaluated, chunk_images
from bench.events import Report
from bench.protocols.common.base import protocol_of
from bench.random import stream
from bench.record import Record
from bench.spec import Data
from bench.storage.disk import is_there
from bench.storage.files import Damaged, load_tensors, read, save, save_tensors, sha256
from bench.storage.store import RunFolder, load_manifest


@dataclass(frozen=True)
class Source:
    """One run under one protocol; ``key`` is the hash of all that its images are made from."""

    run: RunFolder
    protocol: str
    key: str

    @property
    def file(self) -> Path:
        return self.run.path / "adversarial" / f"{self.protocol}-transfer-{self.key}.safetensors"

    def made(self) -> "Made | None":
        """What was made, if it is there and whole; what is damaged is made again."""
        try:
            if not is_there(self.file.with_suffix(".json")):
                return None
            made = read(Made, self.file.with_suffix(".json"))
            load_tensors(self.file, made.images_sha256)
        except Damaged:
            return None
        return made

    def images(self) -> Tensor:
        """(N, C, H, W) in [0, 1], for the first test images."""
        return load_tensors(self.file)["images"]


class Made(Data):
    """The images of a source, and what they cost; written after them."""

    images_sha256: str
    passes: float
    seconds: float


@dataclass(frozen=True)
class Target:
    """A number to try them on. ``proof`` is that of its A14: with these sources it is not asked again."""

    run: RunFolder
    protocol: str
    sources: list[Source]
    own: Source
    proof: str


def transfer(out: Path, report: Report = lambda event: None) -> None:
    """Ask A14 of every ranked number of the folder whose audit is ``full``, unless it was asked with these sources.

    Every file is saved as soon as it is known. A run that has not finished is no source and is not asked. The limit on
    the time of a run's evaluation does not hold here.
    """
    targets = due(out)
    sources = {source.file: source for target in targets for source in target.sources}
    runs = [RunFolder(out, spec) for spec in load_manifest(out).runs]
    for run in runs:
        missing = [s for s in sources.values() if s.run.path == run.path and s.made() is None]
        if missing:
            make(missing, report)
    for run in runs:
        asked = [target for target in targets if target.run.path == run.path]
        if asked:
            ask(asked, report)


def due(out: Path) -> list[Target]:
    """The numbers that A14 has not judged with the sources that there are."""
    runs = [RunFolder(out, spec) for spec in load_manifest(out).runs]
    records = {run.spec.name: run.record() for run in runs}
    ended = {name: record for name, record in records.items() if record.status == "finished" and record.train}
    folders = {run.spec.name: run for run in runs}
    targets = []
    for name, record in ended.items():
        for audit in (audit for audit in record.audits if audit.level == "full"):
            others = [other.spec for other in ended.values() if comparable(other, record, audit.protocol)]
            chosen = [spec.name for spec in sources_of(record.spec, others)]
            sources = [source(folders[source_name], ended[source_name], audit.protocol) for source_name in chosen]
            keys = {source.run.spec.name: source.key for source in sources}
            proof = config_hash({"sources": keys, "audited": audit.evidence})
            if not any(check.id == "A14" and check.proof == proof for check in audit.checks):
                own = source(folders[name], record, audit.protocol)
                targets.append(Target(folders[name], audit.protocol, sources, own, proof))
    return targets


def comparable(other: Record, target: Record, protocol: str) -> bool:
    """Whether images of one run say something about another: the same test images, main eps and protocol."""
    return (
        other.data is not None
        and target.data is not None
        and other.data.test_sha256 == target.data.test_sha256
        and math.isclose(other.spec.eval.main_eps, target.spec.eval.main_eps)
        and any(probe.protocol == protocol for probe in other.probes)
    )


def source(run: RunFolder, record: Record, protocol: str) -> Source:
    """A run as a source of images."""
    assert record.train is not None
    assert record.data is not None
    spec = record.spec.eval
    asked, probe = protocol_of(spec, protocol), next(probe for probe in record.probes if probe.protocol == protocol)
    made_from = {
        "encoder": record.train.encoder_sha256,
        "probe": probe.sha256,
        "test": record.data.test_sha256,
        "crops": list(asked.settings(spec).values()) or None,
        "eps": spec.main_eps,
        "seed": record.spec.seed,
        "steps": STEPS,
        "images": image_count(asked.dear),
    }
    return Source(run, protocol, config_hash(made_from))


def opened(run: RunFolder, record: Record) -> Evaluated[RunFolder]:
    """The run as it was evaluated. Raises RuntimeError where files are others than those recorded."""
    device = devices.resolve(record.spec.device)
    devices.prepare(device, record.spec.threads)
    it, changed = load(run, record, device, None)
    if changed:
        raise RuntimeError(f"{run.path}: {'; '.join(changed)}")
    devices.place(it.encoder, device)
    it.encoder.eval().requires_grad_(False)
    return it


def make(sources: list[Source], report: Report) -> None:
    """The images of one run under these protocols, each stored with what it cost."""
    run = sources[0].run
    record = run.record()
    it, spec = opened(run, record), record.spec.eval
    report({"event": "about", "name": run.spec.name})
    for source in sources:
        report({"event": "attack", "protocol": source.protocol, "attack": "transfer", "eps": spec.main_eps,
                "message": "images for the others"})  # fmt: skip
        began = time.monotonic()
        classifier = it.stored_classifier(source.protocol)
        if classifier is None:
            raise LookupError(f"{run.path} has no probe for {source.protocol}")
        count = image_count(protocol_of(spec, source.protocol).dear)
        model, first = Counted(classifier).eval(), it.test.first(count).to(it.device)
        images = adversarial_images(
            model,
            first.pictures(slice(None), it.device),
            first.labels,
            spec.main_eps,
            chunk_images(spec, source.protocol),
            stream(record.spec.seed, "audit", "A14"),
        )
        tensors, file = {"images": images}, run.place(f"adversarial/{source.file.name}")
        made = Made(images_sha256=sha256(tensors), passes=model.passes, seconds=time.monotonic() - began)
        save_tensors(file, tensors)
        save(file.with_suffix(".json"), made)


def ask(targets: list[Target], report: Report) -> None:
    """A14 of one run under these protocols. What it cost includes the images that the run itself gave to others."""
    run = targets[0].run
    record = run.record()
    it = opened(run, record)
    audits = {audit.protocol: audit for audit in record.audits}
    report({"event": "about", "name": run.spec.name})
    for target in targets:
        subject = build_subject(it, record, target.protocol)
        subject.sources = {source.run.spec.name: source.images for source in target.sources}
        check = run_check("A14", transfer_not_better, subject)
        if check.verdict != "NOT_RUN":
            passes, seconds = spent(target.own)
            cost = {"passes": check.passes + passes, "seconds": check.seconds + seconds}
            said = {"note": f"{check.note}; {len(target.sources)} sources", "proof": target.proof}
            check = check.model_copy(update=said | cost)
        earlier = audits[target.protocol]
        checks = [check if old.id == "A14" else old for old in earlier.checks]
        broken = {id: places for id, places in earlier.broken.items() if id != "A14"}
        broken |= {id: places for id, places in subject.broken.items() if places}
        audit = earlier.model_copy(update={"checks": checks, "broken": broken})
        audits[target.protocol] = audit
        run.save_audits(list(audits.values()))
        report({"event": "audit", "protocol": target.protocol, "verdict": audit.verdict, "level": audit.level})


def spent(source: Source) -> tuple[float, float]:
    """(passes, seconds) of making its images; none where no other run wanted them."""
    made = source.made()
    return (made.passes, made.seconds) if made else (0.0, 0.0)
