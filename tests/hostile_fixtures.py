"""What the tests of hostile input share: a whole run folder, and what somebody sends who can compute a hash."""

import hashlib

import torch
from report_fixtures import manifest, probe, records, result, write

from bench.storage.checkpoint import STATE, TENSORS, Generation, save_checkpoint
from bench.storage.store import RunFolder

SPEC = {"method": "simclr", "data": {"name": "digits"}, "budget": {"amount": 1, "unit": "updates"}}


def one_line(text):
    return len(text) < 800 and text.isprintable()


def with_checksum(data):
    """What somebody sends who can compute a hash: these bytes end as a record does."""
    return data + b',\n "sha256": "%s"\n}\n' % hashlib.sha256(data + b"\n}").hexdigest().encode()


def fitting(folder):
    """The manifest of a generation as its files are."""
    files = {name: (folder / name).read_bytes() for name in (TENSORS, STATE)}
    hashes = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    return Generation.model_validate({"files": hashes})


def whole_run(out):
    """The folder of a run with every file that is read again."""
    asked = manifest(("simclr",))
    (record,) = records(asked, diverged=())
    write(out, asked, [record])
    folder = RunFolder(out, record.spec)
    tensors = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    folder.save_probe(probe("linear"), tensors)
    images = torch.zeros(2, 1, 4, 4)
    kept = folder.save_adversarial("linear", "pgd", images)
    folder.save_result(result("linear", "pgd", 0.1, "11", images_sha256=kept))
    folder.save_trained(record.train, tensors)
    save_checkpoint(folder.path / "checkpoints", {"tensor": torch.ones(3), "step": 1})
    save_checkpoint(folder.path / "checkpoints", {"tensor": torch.ones(3), "step": 2})
    return folder
