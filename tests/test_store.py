"""The store: a file is one complete version or another, what was saved comes back, and what is damaged is named."""

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from evaluation_fixtures import tiny_encoder

from bench import store
from bench.spec import (
    Audit,
    Budget,
    Check,
    DataInfo,
    DataSpec,
    Environment,
    EvalResult,
    Manifest,
    ProbeResult,
    Record,
    RunSpec,
    Setting,
    TrainResult,
    UsageError,
)
from bench.store import RunFolder, load_manifest, load_records, load_tensors, read, save, save_tensors, write_bytes

SPEC = RunSpec(method="emp_ssl", data=DataSpec(name="synthetic"), budget=Budget.parse("4up"), seed=3)
DATA = DataInfo(
    label="synthetic",
    train=32,
    test=16,
    classes=10,
    image_shape=(3, 16, 16),
    train_sha256="a" * 64,
    test_sha256="b" * 64,
    subset=True,
)
MACHINE = Environment(
    python="3.11",
    torch="2.8.0",
    versions={},
    platform="Linux",
    cpu="some",
    cores=2,
    threads=1,
    device="cpu",
    device_name="some",
    precision="fp32",
)
TRAINED = TrainResult(
    status="finished",
    updates=4,
    epochs=2.0,
    train_seconds=1.5,
    compile_seconds=0.5,
    progress=1.0,
    images_per_second=42.0,
    forward_per_image=8.0,
    backward_input_per_image=8.0,
    backward_weight_per_image=8.0,
    flops_per_image=1e6,
    peak_memory_bytes=10**9,
    median_update_seconds=0.3,
    first_loss=2.0,
    last_loss=1.0,
    last_lr=0.0,
    losses=[(0.25, 2.0), (1.0, 1.0)],
)
RECORD = Record(
    spec=SPEC,
    adversary="free",
    data=DATA,
    settings=[Setting(name="crop_scale", value=[0.3, 1.0], source="synthetic")],
    environment=MACHINE,
    status="finished",
)


def probe(protocol="linear"):
    return ProbeResult(
        protocol=protocol,
        feature_width=24,
        penalty=0.01,
        gradient_norm=1e-7,
        scale=0.1 + 0.2,
        held_out=[(0.01, 5, 6)],
        train_correct=30,
        train_total=32,
        seconds=0.5,
    )


def result(protocol="linear", attack="pgd", eps=0.1, outcomes="0110"):
    return EvalResult(
        protocol=protocol, attack=attack, threat_space="image", eps=eps, outcomes=outcomes, seconds=1.0, config={"a": 1}
    )


def manifest(*specs):
    return Manifest(
        bench_version="0",
        command=["bench"],
        created="2025-01-01T00:00:00+00:00",
        budget=SPEC.budget,
        runs=list(specs),
        seeds=[3],
        data=DATA,
        main_eps=0.1,
        environment=MACHINE,
    )


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- one complete version or another


def test_write_replaces_the_whole_file_and_makes_its_folder(tmp_path):
    file = tmp_path / "a" / "b" / "file.bin"
    write_bytes(file, b"long content")
    write_bytes(file, b"short")
    assert file.read_bytes() == b"short"
    assert files(file.parent) == ["file.bin"]
    assert file.stat().st_mode & 0o777 == 0o644
    store.write_text(file, "Grüße 8/255\n")
    assert file.read_bytes() == "Grüße 8/255\n".encode()


@pytest.mark.parametrize("call", ["replace", "fsync", "chmod"])
def test_a_failing_call_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    file = tmp_path / "file.bin"
    write_bytes(file, b"old")

    def fail(*args):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="broken"):
        write_bytes(file, b"new")
    monkeypatch.undo()
    assert file.read_bytes() == b"old"
    assert files(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interrupt_in_the_write_leaves_the_old_file(tmp_path, monkeypatch, error):
    file = tmp_path / "file.bin"
    write_bytes(file, b"old")
    opened = os.fdopen

    def full(handle, mode):
        stream = opened(handle, mode)

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *args):
                stream.close()

            def write(self, data):
                stream.write(data[:1])
                raise error

        return Full()

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(type(error)):
        write_bytes(file, b"new")
    monkeypatch.undo()
    assert file.read_bytes() == b"old"
    assert files(tmp_path) == ["file.bin"]


def test_file_is_synced_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, original=original: (calls.append(name), original(*a))[1])
    write_bytes(tmp_path / "file.bin", b"x")
    assert calls == ["fsync", "replace", "fsync"]


WRITER = """
import hashlib, sys
from pathlib import Path
from bench.store import write_bytes
print("ready", flush=True)
for number in range(10**9):
    content = bytes([number % 251]) * (1000 + 997 * (number % 200))
    write_bytes(Path(sys.argv[1]), hashlib.sha256(content).digest() + content)
"""


def test_kill_9_at_any_moment_leaves_a_complete_version(tmp_path):
    """20 kills at random moments of a process that writes all the time."""
    file, moments, seen = tmp_path / "file.bin", random.Random(0), set()
    root = str(Path(store.__file__).parent.parent)
    for _ in range(20):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(file)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": root},
        )
        with child.stdout:
            assert child.stdout.readline() == b"ready\n"
            time.sleep(moments.uniform(0.005, 0.05))
            os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        data = file.read_bytes() if file.exists() else hashlib.sha256(b"").digest()
        assert hashlib.sha256(data[32:]).digest() == data[:32]
        seen.add(len(data))
    assert len(seen) > 3  # the kills did come at different moments
    write_bytes(file, b"and the next one writes as ever")
    assert file.read_bytes() == b"and the next one writes as ever"


# ---------------------------------------------------------------- records


def test_record_of_a_run_that_has_not_begun():
    assert RunFolder(Path("/nonexistent"), SPEC).record() == Record(spec=SPEC)
    assert Record(spec=SPEC).status == "pending"


def test_every_part_of_a_run_comes_back(tmp_path):
    folder = RunFolder(tmp_path, SPEC)
    encoder = tiny_encoder()
    folder.save_record(RECORD)
    folder.save_trained(TRAINED, encoder.state_dict())
    weights = {"weight": torch.randn(10, 24), "bias": torch.randn(10)}
    folder.save_probe(probe(), weights)
    results = [result(attack="autoattack"), result(eps=0.05), result(), result("multi_patch")]
    for each in reversed(results):
        folder.save_result(each)
    assert folder.path == tmp_path / "runs" / "emp_ssl-s3"
    whole = folder.record()
    hashed = probe().model_copy(update={"sha256": store.sha256(weights)})
    trained = TRAINED.model_copy(update={"encoder_sha256": store.sha256(encoder.state_dict())})
    assert whole == RECORD.model_copy(update={"train": trained, "probes": [hashed], "results": results})
    found = folder.probe("linear")
    assert found[0] == hashed
    assert all(torch.equal(found[1][name], weights[name]) for name in weights)
    assert folder.probe("multi_patch") is None
    assert folder.result("linear", "pgd", 0.05) == results[1]
    assert folder.result("linear", "pgd", 0.02) is None
    folder.save_record(whole)  # with its parts: they stay where they are
    assert Record.model_validate_json((folder.path / "run.json").read_bytes()) == RECORD
    assert folder.record() == whole


def test_record_of_a_run_that_is_in_training(tmp_path):
    folder = RunFolder(tmp_path, SPEC)
    folder.save_record(RECORD.model_copy(update={"status": "preempted", "message": "stopped"}))
    folder.save_checkpoint({"updates": 2})
    record = folder.record()
    assert (record.train, record.probes, record.results, record.status) == (None, [], [], "preempted")
    assert folder.trained() is None


def test_two_results_for_one_cell_are_refused(tmp_path):
    folder = RunFolder(tmp_path, SPEC)
    folder.save_record(RECORD)
    folder.save_result(result(outcomes="0110"))
    save(folder.path / "results" / "copied.json", result(outcomes="0111"))
    with pytest.raises(UsageError, match=r"emp_ssl-s3 is no record: .*expected one result per cell"):
        folder.record()


def test_load_records_follows_the_manifest(tmp_path):
    other = SPEC.model_copy(update={"method": "simclr"})
    save(tmp_path / store.MANIFEST, manifest(other, SPEC))
    RunFolder(tmp_path, SPEC).save_record(RECORD)
    assert load_manifest(tmp_path) == manifest(other, SPEC)
    assert load_records(tmp_path) == [Record(spec=other), RECORD]


# ---------------------------------------------------------------- weights and checkpoints


def test_trained_encoder_loads_strictly_and_ends_the_checkpoint(tmp_path):
    folder, encoder = RunFolder(tmp_path, SPEC), tiny_encoder()
    folder.save_checkpoint({"updates": 2})
    folder.save_trained(TRAINED, encoder.state_dict())
    assert folder.checkpoint() is None
    assert files(folder.path) == ["encoder.safetensors", "train.json"]
    trained, weights = folder.trained()
    assert trained == TRAINED.model_copy(update={"encoder_sha256": store.sha256(encoder.state_dict())})
    other = tiny_encoder(seed=1)
    other.load_state_dict(weights, strict=True)
    images = torch.rand(4, 3, 16, 16)
    assert torch.equal(other(images), encoder(images))
    weights.pop("backbone.0.weight")
    with pytest.raises(RuntimeError, match=r"Missing key.*backbone\.0\.weight"):
        other.load_state_dict(weights)


def test_the_result_of_a_training_is_written_last(tmp_path, monkeypatch):
    order = []
    original = store.write_bytes
    monkeypatch.setattr(store, "write_bytes", lambda path, data: (order.append(path.name), original(path, data))[1])
    folder = RunFolder(tmp_path, SPEC)
    folder.save_trained(TRAINED, tiny_encoder().state_dict())
    folder.save_probe(probe(), {"weight": torch.zeros(1)})
    assert order == ["encoder.safetensors", "train.json", "linear.safetensors", "linear.json"]


@pytest.mark.parametrize("status", ["diverged", "oom", "failed"])
def test_trained_of_a_run_that_diverged_has_no_weights(tmp_path, status):
    folder = RunFolder(tmp_path, SPEC)
    ended = TRAINED.model_copy(update={"status": status, "last_loss": None})
    folder.save_trained(ended, tiny_encoder().state_dict())
    trained, weights = folder.trained()
    assert (trained.model_copy(update={"encoder_sha256": ""}), weights) == (ended, {})


def test_checkpoint_round_trip(tmp_path):
    folder = RunFolder(tmp_path, SPEC)
    assert folder.checkpoint() is None
    state = {
        "method": tiny_encoder().state_dict(),
        "optimizer": {"state": {0: {"momentum": torch.randn(3)}}, "param_groups": [{"lr": 0.3, "params": [0]}]},
        "delta": None,
        "updates": 2,
        "seconds": 1.25,
        "durations": [0.5, 0.75],
        "losses": [[0.5, 2.0]],
    }
    folder.save_checkpoint(state)
    assert torch.load(folder.path / "checkpoint.pt", weights_only=True).keys() == state.keys()
    back = folder.checkpoint()
    torch.testing.assert_close(back["method"], dict(state["method"]), rtol=0, atol=0)
    assert torch.equal(back["optimizer"]["state"][0]["momentum"], state["optimizer"]["state"][0]["momentum"])
    assert {k: back[k] for k in ("delta", "updates", "seconds", "durations", "losses")} == {
        k: state[k] for k in ("delta", "updates", "seconds", "durations", "losses")
    }


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-checkpoint",)


def test_a_checkpoint_that_holds_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path, SPEC)
    folder.save_checkpoint({"updates": Evil()})
    with pytest.raises(UsageError, match=r"cannot read .*checkpoint\.pt"):
        folder.checkpoint()
    assert not (tmp_path / "made-by-a-checkpoint").exists()


# ---------------------------------------------------------------- what cannot be read


def one_line(error, file):
    return str(file) in str(error.value) and "\n" not in str(error.value)


DAMAGES = {
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:40]), "is not a EvalResult of this version"),
    "empty": (lambda file: file.write_bytes(b""), "is not a EvalResult of this version"),
    "not text": (lambda file: file.write_bytes(b"\xff\xfe\x00"), "is not a EvalResult of this version"),
    "of another kind": (lambda file: save(file, probe()), r"is not a EvalResult of this version: \w+"),
    "without": (lambda file: file.unlink(), "no such file"),
    "a folder": (lambda file: (file.unlink(), file.mkdir()), "cannot read .*: Is a directory"),
    "with a value that cannot be": (
        lambda file: file.write_text(file.read_text().replace('"0110"', '"0120"')),
        "outcomes: String should match",
    ),
    "with a key from another version": (
        lambda file: file.write_text(file.read_text().replace('"seconds"', '"minutes"')),
        "seconds: Field required",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_named_in_one_line(tmp_path, damage):
    file = tmp_path / "result.json"
    save(file, result())
    harm, message = DAMAGES[damage]
    harm(file)
    with pytest.raises(UsageError, match=message) as error:
        read(EvalResult, file)
    assert one_line(error, file)


@pytest.mark.parametrize("data", [None, b"", b"\x00" * 8, b"not tensors at all"])
def test_damaged_weights_and_checkpoints_are_named_in_one_line(tmp_path, data):
    folder = RunFolder(tmp_path, SPEC)
    weights, checkpoint = folder.path / "encoder.safetensors", folder.path / "checkpoint.pt"
    save_tensors(weights, {"a": torch.arange(3.0)})
    assert torch.equal(load_tensors(weights)["a"], torch.arange(3.0))
    folder.save_checkpoint({"a": torch.arange(1000.0)})
    if data is None:
        weights.write_bytes(weights.read_bytes()[:-1])
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    else:
        weights.write_bytes(data)
        checkpoint.write_bytes(data)
    with pytest.raises(UsageError, match="expected the weights in") as error:
        load_tensors(weights)
    assert one_line(error, weights)
    with pytest.raises(UsageError, match=r"cannot read .*remove it to train from the start") as error:
        folder.checkpoint()
    assert one_line(error, checkpoint)


@pytest.mark.parametrize("name", ["empty", "missing", "file"])
def test_a_folder_that_is_none_of_a_run(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    with pytest.raises(UsageError, match=r"expected the folder of a run, got .*: it has no manifest\.json") as error:
        load_manifest(tmp_path / name)
    assert one_line(error, tmp_path / name)


# ---------------------------------------------------------------- what the audit needs


def test_audits_and_adversarial_images_come_back(tmp_path):
    folder = RunFolder(tmp_path, SPEC)
    assert (folder.audits(), folder.adversarial("linear", "pgd")) == ([], None)
    audits = [
        Audit(protocol=name, level="core", eps=0.1, checks=[Check(id="S2", verdict="PASS", value=5.0)])
        for name in ("multi_patch", "linear")
    ]
    folder.save_record(RECORD)
    folder.save_audits(audits)
    assert folder.audits() == folder.record().audits == audits
    images = torch.rand(3, 1, 4, 4)
    assert folder.save_adversarial("linear", "pgd", images) == store.sha256({"images": images})
    assert torch.equal(folder.adversarial("linear", "pgd"), images)
    (folder.path / "audit.json").write_text("{")
    with pytest.raises(UsageError, match=r"audit\.json is no list of audits"):
        folder.audits()


def test_the_hash_of_tensors_is_of_names_types_shapes_and_values():
    tensors = {"a": torch.arange(6.0), "b": torch.tensor(3)}
    same = {"b": torch.tensor(3), "a": torch.arange(12.0)[::2] / 2}
    assert store.sha256(tensors) == store.sha256(same)
    others = [
        {"a": torch.arange(6.0), "c": torch.tensor(3)},
        {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)},
        {"a": torch.arange(6.0), "b": torch.tensor(3, dtype=torch.int32)},
        {"a": torch.arange(6.0).nextafter(torch.tensor(9.0)), "b": torch.tensor(3)},
    ]
    assert len({store.sha256(each) for each in [tensors, *others]}) == 5
