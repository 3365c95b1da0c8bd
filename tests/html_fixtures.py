"""A page in full size: 9 methods, 2 protocols, 3 seeds, losses, whole audits and pictures, made of plain numbers."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image
from report_fixtures import CIFAR, METHODS, manifest, records, write

from bench.record import Check, Manifest, Record
from bench.storage.store import Example, Examples, RunFolder
from reports.checks import CHECKS

VERDICTS = {"A7": "N/A", "A16": "WARN", "A9": "not in this level"}


def asked(methods: tuple[str, ...] = METHODS, seeds: int = 3) -> Manifest:
    return manifest(methods, seeds=seeds, data=CIFAR, eps=(4 / 255, 8 / 255), level="standard")


def found(manifest: Manifest, failing: str = "simclr_free") -> list[Record]:
    """Records of ``manifest``: one run diverged, one method flagged, and one whose audit of linear failed."""
    draws = np.random.default_rng(0)
    everything = []
    for record in records(manifest):
        steps = np.linspace(0, 1, 150)
        start = 5.0 + draws.random()
        curve = start * (0.35 + 0.65 * np.exp(-4 * steps)) + 0.08 * draws.standard_normal(150)
        losses = [(float(share), float(loss)) for share, loss in zip(steps, curve, strict=True)]
        energy = 1000.0 * (5 + len(record.spec.method))
        train = record.train.model_copy(update={"losses": losses, "energy_joules": energy})
        changed = {"train": train, "audits": [audited(record, each, failing) for each in record.audits]}
        everything.append(record.model_copy(update=changed))
    return everything


def audited(record, audit, failing):
    """All checks, of which one warns for EMP-SSL and one fails for ``failing``."""
    checks = []
    for id in CHECKS:
        verdict = VERDICTS.get(id, "PASS")
        if verdict == "WARN" and not record.spec.method.startswith("emp"):
            verdict = "PASS"
        if id == "A13" and record.spec.method == failing and audit.protocol == "linear":
            verdict = "FAIL"
        value = None if verdict in ("N/A", "not in this level") else len(record.spec.method) / 7
        checks.append(Check(id=id, verdict=verdict, value=value, threshold="FAIL > 3, WARN > 1", n=256, note=""))
    return audit.model_copy(update={"checks": checks})


def picture(image):
    """PNG in base64 of an array (H, W, C) in [0, 1]."""
    file = io.BytesIO()
    Image.fromarray((255 * image.clip(0, 1)).astype(np.uint8)).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def examples(protocol, seed, size=32):
    draws = np.random.default_rng(seed)
    pairs = []
    for place in range(6):
        y, x = np.mgrid[0:size, 0:size] / size
        clean = np.stack([np.sin(5 * x + place), np.cos(4 * y - place), x * y], axis=2) / 2 + 0.5
        noise = draws.choice([-1.0, 1.0], size=clean.shape)
        pairs.append(
            Example(
                label=place,
                before=place,
                after=(place + 3 * (draws.random() < 0.7)) % 10,
                attack="pgd",
                image=picture(clean),
                adversarial=picture(clean + 8 / 255 * noise),
                perturbation=picture(0.5 + noise / 2),
            )
        )
    return Examples(protocol=protocol, eps=8 / 255, examples=pairs)


def page_folder(folder: Path, methods: tuple[str, ...] = METHODS, seeds: int = 3) -> Path:
    """The folder of such a run; names that are no file names are allowed for the reports alone."""
    wanted = asked(methods, seeds)
    everything = found(wanted)
    write(folder, wanted, everything)
    for place, record in enumerate(everything):
        for protocol in ("linear", "multi_patch"):
            RunFolder(folder, record.spec).save_examples(examples(protocol, place))
    return folder
