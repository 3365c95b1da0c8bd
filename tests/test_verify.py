"""bench verify: an untouched run comes out again, and every planted difference is named."""

import shutil

import pytest
import torch
from audit_fixtures import finished, rerun

from bench import store
from bench.cli import main
from bench.spec import Manifest, UsageError
from bench.store import MANIFEST, RunFolder, load_tensors, save, save_tensors
from bench.verify import verify


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
    folder.save_result(result.model_copy(update={"outcomes": "0" * result.total}))
    assert verify(out)[1] == ["emp_ssl-s0: linear: weights, images or results are others than those that were audited"]


def test_a_changed_weight_and_a_changed_probe_are_found(run):
    out, folder = run
    file = folder.path / "encoder.safetensors"
    weights = load_tensors(file)
    name = next(name for name, tensor in weights.items() if tensor.dim() == 4)
    weights[name].view(-1)[0] = weights[name].view(-1)[0].nextafter(torch.tensor(9.0))
    save_tensors(file, weights)
    assert any("the weights are others than those that were trained" in each for each in verify(out)[1])
    probe = folder.path / "probes" / "linear.safetensors"
    tensors = load_tensors(probe)
    tensors["bias"] += torch.linspace(-1e-6, 1e-6, len(tensors["bias"]))
    save_tensors(probe, tensors)
    assert any("the probe is another" in each for each in verify(out)[1])


@pytest.mark.parametrize("attack", ["pgd", "autoattack"])
def test_a_moved_pixel_is_found_inside_the_ball_and_outside(run, attack):
    out, folder = run
    images = folder.adversarial("linear", attack)
    images[1, 0, 0, 0] = (images[1, 0, 0, 0] + 0.001) % 1
    folder.save_adversarial("linear", attack, images)
    assert any(f"{attack} at eps 0.02: the images are others" in each for each in verify(out)[1])
    images[1, 0, 0, 0] = (images[1, 0, 0, 0] + 0.5) % 1
    folder.save_adversarial("linear", attack, images)
    assert any("image 1:" in each and "left its threat model" in each for each in verify(out)[1])


def test_images_that_are_missing_or_of_another_size_are_named(run):
    out, folder = run
    folder.save_adversarial("linear", "pgd", torch.zeros(4, 3, 8, 8))
    (folder.path / "adversarial" / "linear-autoattack.safetensors").unlink()
    differences = verify(out)[1]
    assert any("expected images of shape (3, 16, 16), got (4, 3, 8, 8)" in each for each in differences)
    assert any("autoattack at eps 0.02: no images are kept" in each for each in differences)


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


def test_what_is_no_run_is_a_usage_error(tmp_path, capsys):
    with pytest.raises(UsageError, match="expected the folder of a run"):
        verify(tmp_path)
    assert code("verify", str(tmp_path)) == 2
    assert "expected the folder of a run" in capsys.readouterr().err
