"""bench verify: an untouched run comes out again, and every planted difference is named."""

import shutil

import pytest
import torch
from audit_fixtures import finished, rerun

from bench.audit.verify import beyond_tolerance, verify
from bench.cli import main
from bench.record import Manifest
from bench.spec import UsageError
from bench.storage import store
from bench.storage.files import load_tensors, save, save_tensors
from bench.storage.store import MANIFEST, RunFolder, images_file


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """A finished run with its audit, in a folder with a manifest."""
    out = tmp_path_factory.mktemp("verify") / "run"
    folder, spec = finished(out, protocols=("linear", "published_eval"))
    assert rerun(folder, spec) == ""
    record = folder.record()
    manifest = Manifest(
        bench_version="0",
        command=["bench"],
        created="2026-01-01T00:00:00+00:00",
        budget=folder.spec.budget,
        runs=[folder.spec],
        seeds=[0],
        data=record.data,
        main_eps=0.02,
        environment=record.environment,
    )
    save(out / MANIFEST, manifest)
    return out, folder.spec


@pytest.fixture
def run(untouched, tmp_path):
    """A copy that may be spoilt: (its folder, the run in it)."""
    out, spec = untouched
    shutil.copytree(out, tmp_path / "copy")
    return tmp_path / "copy", RunFolder(tmp_path / "copy", spec)


def code(*arguments):
    with pytest.raises(SystemExit) as leaving:
        main(list(arguments))
    return leaving.value.code


def test_an_untouched_run_has_no_difference(untouched, capsys):
    out, _ = untouched
    assert verify(out) == (4, [])  # clean under two protocols, PGD and AutoAttack
    assert code("verify", str(out)) == 0
    assert f"0 differences in 4 recomputed numbers of {out}" in capsys.readouterr().out


@pytest.mark.parametrize(("attack", "eps"), [("none", 0.0), ("pgd", 0.02), ("autoattack", 0.02)])
def test_a_flipped_outcome_is_found(run, attack, eps, capsys):
    out, folder = run
    result = folder.result("linear", attack, eps)
    place = 3
    flipped = "01"[result.outcomes[place] == "0"]
    outcomes = result.outcomes[:place] + flipped + result.outcomes[place + 1 :]
    folder.save_result(result.model_copy(update={"outcomes": outcomes}))
    _, differences = verify(out)
    assert any(f"{attack} at eps" in each and f"image {place} was published" in each for each in differences)
    assert any("others than those that were audited" in each for each in differences)
    assert code("verify", str(out)) == 1
    assert f"{len(differences)} differences" in capsys.readouterr().out


def test_a_number_that_cannot_be_recomputed_is_guarded_by_the_audit(run):
    out, folder = run
    result = folder.result("linear", "pgd", 0.01)
    folder.save_result(result.model_copy(update={"outcomes": "0" * result.total, "images_sha256": ""}))
    assert verify(out)[1] == ["emp_ssl-s0: linear: weights, images or results are others than those that were audited"]


def test_a_changed_weight_and_a_changed_probe_are_found(run):
    out, folder = run
    file = folder.path / "encoder.safetensors"
    weights = load_tensors(file)
    changed = {name: tensor.clone() for name, tensor in weights.items()}
    name = next(name for name, tensor in weights.items() if tensor.dim() == 4)
    changed[name].view(-1)[0] = changed[name].view(-1)[0].nextafter(torch.tensor(9.0))
    save_tensors(file, changed)
    checked, (difference,) = verify(out)
    assert checked == 0
    assert difference.startswith(f"emp_ssl-s0: {file} is damaged")
    save_tensors(file, weights)
    probe = folder.path / "probes" / "linear.safetensors"
    tensors = load_tensors(probe)
    tensors["bias"] += torch.linspace(-1e-6, 1e-6, len(tensors["bias"]))
    save_tensors(probe, tensors)
    checked, (difference,) = verify(out)
    assert checked == 1  # clean under the paper's protocol, which has a probe of its own
    assert difference.startswith(f"emp_ssl-s0: linear: {probe} is damaged")


@pytest.mark.parametrize("attack", ["pgd", "autoattack"])
def test_a_moved_pixel_is_found_inside_the_ball_and_outside(run, attack):
    out, folder = run
    result, images = folder.result("linear", attack, 0.02), folder.adversarial("linear", attack)
    images[1, 0, 0, 0] = (images[1, 0, 0, 0] + 0.001) % 1
    save_tensors(folder.path / images_file(result), {"images": images})
    assert any(f"{attack} at eps 0.02: " in each and "is damaged" in each for each in verify(out)[1])
    images[1, 0, 0, 0] = (images[1, 0, 0, 0] + 0.5) % 1
    found = folder.save_adversarial("linear", attack, images)
    folder.save_result(result.model_copy(update={"images_sha256": found}))  # by someone who knows the hashes
    assert any("image 1:" in each and "left its threat model" in each for each in verify(out)[1])


def test_images_that_are_missing_or_of_another_size_are_named(run):
    out, folder = run
    found = folder.save_adversarial("linear", "pgd", torch.zeros(4, 3, 8, 8))
    folder.save_result(folder.result("linear", "pgd", 0.02).model_copy(update={"images_sha256": found}))
    autoattack = folder.result("linear", "autoattack", 0.02)
    (folder.path / images_file(autoattack)).unlink()
    differences = verify(out)[1]
    assert any("expected images of shape (3, 16, 16), got (4, 3, 8, 8)" in each for each in differences)
    assert any("autoattack at eps 0.02: " in each and "is missing" in each for each in differences)
    folder.save_result(autoattack.model_copy(update={"images_sha256": ""}))
    assert any("autoattack at eps 0.02: no images are kept" in each for each in verify(out)[1])


@pytest.mark.parametrize(
    "name",
    [
        "../../manifest.json",
        "run.json",
        "train.json",
        "encoder.safetensors",
        "probes/linear.json",
        "results/linear-none-0.000000.json",
        "audit.json",
    ],
)
def test_a_damaged_file_is_a_difference_that_names_it(run, name, capsys):
    out, folder = run
    file = folder.path / name
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    assert code("verify", str(out)) == 1
    found = capsys.readouterr()
    assert f"{file.resolve()} is damaged" in (found.out + found.err).replace("/runs/emp_ssl-s0/../..", "")
    assert "Traceback" not in found.err


def test_the_images_kept_are_those_that_decided(untouched):
    """Standing images of AutoAttack are the clean ones; PGD's are in the ball of the eps that broke them."""
    out, spec = untouched
    folder = RunFolder(out, spec)
    pgd, autoattack = (folder.adversarial("linear", name) for name in ("pgd", "autoattack"))
    assert (pgd.shape, autoattack.shape) == ((16, 3, 16, 16), (6, 3, 16, 16))
    assert (pgd.dtype, autoattack.dtype) == (torch.float32, torch.float32)
    result = folder.result("linear", "autoattack", 0.02)
    assert result.images_sha256 == store.sha256({"images": autoattack})
    assert folder.result("linear", "pgd", 0.02).images_sha256 == store.sha256({"images": pgd})


@pytest.mark.parametrize(
    ("device", "flips", "images", "reported"),
    [("cpu", 1, 100_000, 1), ("cuda", 5, 10_000, 0), ("cuda", 6, 10_000, 6), ("cuda", 1, 1_000, 1), ("cuda", 0, 10, 0)],
)
def test_a_gpu_may_move_a_number_by_a_twentieth_of_a_point_and_a_cpu_by_nothing(device, flips, images, reported):
    assert len(beyond_tolerance(["flipped"] * flips, images, torch.device(device))) == reported


def test_what_is_no_run_is_a_usage_error(tmp_path, capsys):
    with pytest.raises(UsageError, match="expected the folder of a run"):
        verify(tmp_path)
    assert code("verify", str(tmp_path)) == 2
    assert "expected the folder of a run" in capsys.readouterr().err
