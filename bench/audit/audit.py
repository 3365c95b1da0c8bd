"""The audit: runs the checks on each ranked number of a run and stores what they say (protocol 3).

A check is a function of a Subject, in any file of bench/checks, listed there in CHECKS. One that raises, or for which
no time is left, is NOT_RUN, and a number with such a check is not ranked. A check that has spoken about the same
weights, images and results is not asked again.
"""

import hashlib
import importlib
import json
import math
import pkgutil
import time
from collections.abc import Iterable

import torch
from pydantic import ValidationError

from bench.audit import checks
from bench.audit.checks.subject import AuditCheck, Counted, Subject
from bench.audit.checks.transfer import sources_of
from bench.data.images import duplicates
from bench.evaluation.evaluated import Evaluated, chunk_images
from bench.events import Report, silent
from bench.protocols.common.base import protocol_of
from bench.record import Audit, Check, EvalResult, Record
from bench.spec import AuditLevel, RunSpec
from bench.storage.files import sha256
from bench.storage.store import MANIFEST, RunFolder, load_manifest

LEVELS: tuple[AuditLevel, ...] = ("off", "core", "full")
ATTACKS = ("pgd", "autoattack")  # the ranked set


def audit(it: Evaluated[RunFolder]) -> str:
    """Audit every ranked number of a run; each protocol is saved when it is done. Returns what is missing, or "".

    The encoder is frozen, in eval mode, with the weights that were evaluated. ``spec.budget_seconds`` holds for the
    evaluation and its audit together: a check that has begun is finished, and no other begins. Transfer (A14) is not
    missing: where there are other runs it is NOT_RUN until they have ended (bench.audit.transfer).
    """
    spec, folder = it.spec, it.cells
    if spec.audit == "off":
        return ""
    record = folder.record()
    audits = {audit.protocol: audit for audit in record.audits}
    missing = []
    for protocol in (protocol for protocol in spec.protocols if protocol_of(spec, protocol).ranked):
        if ranked_pair(record.results, protocol, spec.main_eps) is None:
            continue
        proof = evidence(
            record, protocol, sha256(it.encoder.state_dict()), probe_hash(folder, protocol), it.test.sha256
        )
        earlier = audits.get(protocol)
        if earlier is None or (earlier.level, earlier.evidence) != (spec.audit, proof):
            earlier = Audit(protocol=protocol, level=spec.audit, eps=spec.main_eps, checks=[], evidence=proof)
        if not earlier.checks or not_run(earlier):
            subject = build_subject(it, record, protocol)
            subject.duplicates = duplicates(it.train.seen_as(it.test), it.test)
            subject.sources = None if sources_of(folder.spec, runs_of(folder)) else {}
            spent = seconds(record, [*(other for other in audits.values() if other.protocol != protocol), earlier])
            left = math.inf if spec.budget_seconds is None else spec.budget_seconds - spent
            audits[protocol] = earlier = examine(subject, earlier, left, it.report)
            folder.save_audits(list(audits.values()))
            it.report({"event": "audit", "protocol": protocol, "verdict": earlier.verdict, "level": earlier.level})
        missing += [f"{protocol} {', '.join(not_run(earlier))}"] * bool(not_run(earlier))
    return f"checks of the audit that did not run: {'; '.join(missing)}" if missing else ""


def not_run(audit: Audit) -> list[str]:
    """The checks that are still to be asked here; transfer is not."""
    return [check.id for check in audit.checks if check.verdict == "NOT_RUN" and check.id != "A14"]


def runs_of(folder: RunFolder) -> list[RunSpec]:
    """All runs of the folder that this one is in; none where it has no manifest."""
    return load_manifest(folder.out, links=False).runs if (folder.out / MANIFEST).is_file() else []


def examine(subject: Subject, earlier: Audit, left: float, report: Report = silent) -> Audit:
    """The audit of a subject: the checks of the level that ``earlier`` has no word of, within ``left`` seconds."""
    known = {check.id: check for check in earlier.checks if check.verdict != "NOT_RUN"}
    subject.broken |= {id: places for id, places in earlier.broken.items() if id in known}
    judged = []
    for id, (level, check) in all_checks(subject.of_crops).items():
        if id in known:
            judged.append(known[id])
        elif LEVELS.index(level) > LEVELS.index(earlier.level):
            judged.append(Check(id=id, verdict="not in this level"))
        elif left <= 0:
            judged.append(Check(id=id, verdict="NOT_RUN", note="no time was left"))
        else:
            report({"event": "attack", "protocol": subject.protocol, "attack": "audit", "eps": subject.eps,
                    "message": f"check {id}"})  # fmt: skip
            judged.append(run_check(id, check, subject))
            left -= judged[-1].seconds
    return earlier.model_copy(
        update={
            "checks": judged,
            "broken": {id: places for id, places in subject.broken.items() if places},
            "ranked_correct": int(subject.standing[: subject.audited].sum()),
            "audited": subject.audited,
        }
    )


def run_check(id: str, check: AuditCheck, subject: Subject) -> Check:
    """What a check says, with its time and passes; NOT_RUN with the message where it raises, FAIL where its value is
    not finite."""
    began, passes = time.monotonic(), subject.model.passes
    try:
        answer = check(subject)
    except Exception as error:
        if isinstance(error, ValidationError) and error.errors()[0]["type"] == "finite_number":
            return Check(id=id, verdict="FAIL", note="what it measures is NaN or infinite")  # no bound lets that pass
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        answer = Check(id=id, verdict="NOT_RUN", note=message)
    cost = {"seconds": time.monotonic() - began, "passes": subject.model.passes - passes}
    return answer.model_copy(update={"id": id} | cost)


def all_checks(of_crops: bool) -> dict[str, tuple[AuditLevel, AuditCheck]]:
    """id -> (lowest level, check) of all files in bench/audit/checks, S before A before M; M only where the
    classifier reads the mean features over crops."""
    by_id: dict[str, tuple[AuditLevel, AuditCheck]] = {}
    for module in pkgutil.iter_modules(checks.__path__):
        by_id |= getattr(importlib.import_module(f"bench.audit.checks.{module.name}"), "CHECKS", {})
    if not of_crops:
        by_id = {id: check for id, check in by_id.items() if not id.startswith("M")}
    return dict(sorted(by_id.items(), key=lambda item: ("SAM".index(item[0][0]), int(item[0][1:]))))


# ---------------------------------------------------------------- what is audited


def build_subject(it: Evaluated[RunFolder], record: Record, protocol: str) -> Subject:
    """One protocol's classifier, all test images, and what was published of it. Raises LookupError without a probe."""
    spec, test, device, folder = it.spec, it.test, it.device, it.cells
    classifier = it.stored_classifier(protocol)
    pair = ranked_pair(record.results, protocol, spec.main_eps)
    clean = next((r for r in record.results if (r.protocol, r.attack) == (protocol, "none")), None)
    if classifier is None or pair is None or clean is None:
        raise LookupError(f"{folder.path} has no probe or no ranked number for {protocol}")
    both = [min(outcomes) == "1" for outcomes in zip(*(result.outcomes for result in pair), strict=False)]
    standing = torch.zeros(len(test), dtype=torch.bool)
    standing[: len(both)] = torch.tensor(both, dtype=torch.bool)
    probe = next(probe for probe in record.probes if probe.protocol == protocol)
    kept = {attack: folder.adversarial(protocol, attack) for attack in ATTACKS}
    return Subject(
        model=Counted(classifier).eval(),
        images=test.all_pictures(device),
        labels=test.labels.to(device),
        eps=spec.main_eps,
        protocol=protocol,
        classes=test.classes,
        seed=it.seed,
        chunk=chunk_images(spec, protocol),
        spec=spec,
        correct=torch.tensor([outcome == "1" for outcome in clean.outcomes], dtype=torch.bool),
        standing=standing,
        audited=len(both),
        results={
            (r.attack, spec.main_eps if math.isclose(r.eps, spec.main_eps) else r.eps): r
            for r in record.results
            if r.protocol == protocol and r.norm == "linf"
        },
        adversarial={attack: images.to(device) for attack, images in kept.items() if images is not None},
        robust=any(both),
        probe=probe,
        band=probe.band,
        stored={
            "encoder": record.train.encoder_sha256 if record.train else "",
            "probe": probe.sha256,
            "train": record.data.train_sha256 if record.data else "",
            "test": record.data.test_sha256 if record.data else "",
        },
        loaded={
            "encoder": sha256(it.encoder.state_dict()),
            "probe": sha256(protocol_of(spec, protocol).stored(classifier)),
            "test": test.sha256,
        },
    )


def ranked_pair(results: Iterable[EvalResult], protocol: str, eps: float) -> tuple[EvalResult, EvalResult] | None:
    """PGD and AutoAttack on the image at the main eps, both complete; None where there is no ranked number."""
    by_attack = {
        r.attack: r
        for r in results
        if (r.protocol, r.norm, r.threat_space) == (protocol, "linf", "image")
        and r.complete
        and math.isclose(r.eps, eps)
    }
    return (by_attack["pgd"], by_attack["autoattack"]) if by_attack.keys() >= set(ATTACKS) else None


def evidence(record: Record, protocol: str, encoder: str, probe: str, test: str) -> str:
    """Hash of all that the audit of a protocol judges: weights, probe, test images and results.

    Times aside, and the code, to which bench.identity.again holds the whole folder.
    """
    results = sorted(
        (
            r.model_dump(mode="json", exclude={"seconds", "failed", "code"})
            for r in record.results
            if r.protocol == protocol
        ),
        key=lambda result: (result["attack"], result["eps"]),
    )
    text = json.dumps([encoder, probe, test, results], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def probe_hash(folder: RunFolder, protocol: str) -> str:
    """Of the probe's tensors as they are on disk; "" where there is none."""
    probe = folder.probe(protocol)
    return sha256(probe[1]) if probe else ""


def seconds(record: Record, audits: Iterable[Audit]) -> float:
    """Time that the evaluation and these audits have taken."""
    taken = sum(probe.seconds for probe in record.probes) + sum(result.seconds for result in record.results)
    taken += record.shift.seconds if record.shift else 0.0
    return taken + sum(check.seconds for audit in audits for check in audit.checks)
