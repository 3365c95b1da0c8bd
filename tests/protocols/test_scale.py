"""A probe on more features than fit into the memory: in a file, in pieces, with steps from a sample."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evaluation_fixtures import CPU, Shelf, blobs, evaluated, tiny_encoder
from test_heads import asked

from bench import registry
from bench.evaluation.heads import fitted_classifier
from bench.protocols.common import features as kept
from bench.protocols.common import logistic
from bench.protocols.common.features import Rows, finite, pieces, room
from bench.protocols.common.probe import fit_probe
from bench.usage import UsageError

FEATURES, LABELS = blobs(600, 40, spread=1.5)


def test_features_of_a_file_give_the_same_probe_to_the_bit_and_leave_no_file(monkeypatch, tmp_path):
    monkeypatch.setattr(kept.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(kept, "ON_DEVICE", 0)
    mapped = room(*FEATURES.shape, CPU)
    mapped[:] = FEATURES
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) in Path("/proc/self/maps").read_text(encoding="utf-8")
    first, second = fit_probe(FEATURES, LABELS, 10), fit_probe(mapped, LABELS, 10)
    assert torch.equal(first.layer.weight, second.layer.weight)
    assert torch.equal(first.layer.bias, second.layer.bias)


def test_a_disk_without_room_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setattr(kept, "ON_DEVICE", 0)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(kept.os, "posix_fallocate", full)
    with pytest.raises(
        UsageError, match=r"19\.5 GiB in .* of 1280000 training images, got: No space left on device; TMP"
    ):
        room(1_280_000, 4096, CPU)


@pytest.mark.parametrize("protocol", registry.names("protocol"))
def test_every_head_is_the_same_on_features_of_a_file(monkeypatch, protocol):
    def fitted():
        shelf = Shelf()
        fitted_classifier(evaluated(shelf, asked(protocol), tiny_encoder()), protocol, {})
        probe, tensors = shelf.probes[protocol]
        return probe.model_copy(update={"seconds": 0.0}), {name: tensor.tolist() for name, tensor in tensors.items()}

    before = fitted()
    monkeypatch.setattr(kept, "ON_DEVICE", 0)
    assert fitted() == before


@pytest.mark.parametrize("numbers", [40, 1000])
def test_pieces_cover_every_row_once_and_change_nothing_but_rounding(monkeypatch, numbers):
    whole = fit_probe(FEATURES, LABELS, 10)
    monkeypatch.setattr(kept, "PIECE", numbers)
    assert torch.cat([FEATURES[part] for part in pieces(FEATURES)]).equal(FEATURES)
    assert max(part.stop - part.start for part in pieces(FEATURES)) == max(1, numbers // 40)
    fit = fit_probe(FEATURES, LABELS, 10)
    assert (fit.penalty, fit.held_out) == (whole.penalty, whole.held_out)
    torch.testing.assert_close(fit.layer.weight, whole.layer.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("images", [300, 150, 20])  # in 40 dimensions: the curvature of the last two says too little
def test_steps_from_a_sample_end_at_the_same_optimum(monkeypatch, images):
    whole = fit_probe(FEATURES, LABELS, 10)
    monkeypatch.setattr(logistic, "SAMPLE", images)
    fit = fit_probe(FEATURES, LABELS, 10)
    assert fit.gradient_norm <= 1e-6
    assert (fit.penalty, fit.held_out) == (whole.penalty, whole.held_out)
    torch.testing.assert_close(fit.layer(FEATURES).softmax(1), whole.layer(FEATURES).softmax(1), rtol=0, atol=1e-4)


def test_rows_are_standardized_over_those_that_were_chosen(monkeypatch):
    monkeypatch.setattr(kept, "PIECE", 40 * 7)
    chosen = torch.arange(600) % 3 != 0
    spoilt = FEATURES.clone()
    spoilt[0, 0], spoilt[4, 1] = torch.nan, torch.inf
    chosen &= finite(spoilt)
    rows = Rows.standardized(spoilt, LABELS, chosen, 10)
    x, labels = (torch.cat(part) for part in zip(*rows, strict=True))
    expected = FEATURES[chosen].double()
    expected = expected - expected.mean(0)
    torch.testing.assert_close(x, expected / expected.square().mean().sqrt(), rtol=0, atol=1e-12)
    assert labels.equal(LABELS[chosen])
    assert len(rows) == len(x) == 399
    assert rows.sample(100).shape == (100, 40)
    assert rows.of(torch.arange(600) < 10).sample(100).equal(x[: int(chosen[:10].sum())].float())


# A file of 192 MiB, and at most 160 MiB more memory than the process has before: a copy of the features does not fit.
SMALL = """
import resource, sys, torch
from bench.protocols.common import features, logistic, probe
features.ON_DEVICE, logistic.SAMPLE = 0, 2**12
count, width = 2**19, 96
mapped = features.room(count, width, torch.device("cpu"))
draws = torch.Generator().manual_seed(0)
labels = torch.randint(0, 3, (count,), generator=draws)
centres = torch.randn(3, width, generator=draws) / 8
for part in features.pieces(mapped):
    mapped[part] = centres[labels[part]] + torch.randn(mapped[part].shape, generator=draws)
torch.linalg.eigh(torch.eye(64))
data = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (data + 160 * 2**20,) * 2)
if sys.argv[1:] == ["whole"]:
    mapped.clone()
probe.PENALTIES = (1e-2, 1e-1)
print(probe.fit_probe(mapped, labels, 3).gradient_norm)
"""


@pytest.mark.ci
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_the_memory_does_not_grow_with_the_images():
    def run(*arguments):
        command = [sys.executable, "-c", SMALL, *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    assert "DefaultCPUAllocator" in run("whole").stderr  # the limit is one that the features themselves would break
    fitted = run()
    assert fitted.returncode == 0, fitted.stderr
    assert float(fitted.stdout) <= 1e-6
