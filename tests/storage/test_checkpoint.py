"""Checkpoints: a state comes back as it was, from the newest generation that is whole."""

import json
import math
import os

import pytest
import torch
from evaluation_fixtures import tiny_encoder
from store_fixtures import files, one_line, spoil

from bench.storage import disk
from bench.storage.checkpoint import (
    Generation,
    generations,
    load_checkpoint,
    load_generation,
    remove_checkpoints,
    save_checkpoint,
)
from bench.storage.disk import Disk, DiskError
from bench.storage.files import Damaged, read, save

STATE = {
    "method": tiny_encoder().state_dict(),
    "optimizer": {"state": {0: {"momentum": torch.randn(3)}}, "param_groups": [{"lr": 0.3, "params": [0]}]},
    "delta": None,
    "updates": 2,
    "seconds": 0.1 + 0.2,
    "stopped": True,
    "losses": [[0.5, 2.0]],
    "name": "Grüße",
    "empty": [{}, []],
}


def same(a, b):
    """Equal values of equal types, tensors bit by bit with their strides."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def names(folder):
    return [path.name for path in generations(folder)]


def test_a_state_comes_back_as_it_was(tmp_path):
    path = save_checkpoint(tmp_path / "checkpoints", STATE)
    assert files(path) == ["MANIFEST.json", "state.json", "tensors.safetensors"]
    state, damaged = load_checkpoint(tmp_path / "checkpoints")
    state["method"] = type(STATE["method"])(state["method"])
    assert same(dict(state), {**STATE, "method": state["method"]})
    assert all(torch.equal(state["method"][name], each) for name, each in STATE["method"].items())
    assert damaged == []


def test_tensors_lie_in_memory_as_they_did_and_numbers_are_exact(tmp_path):
    state = {
        "transposed": torch.arange(6.0).view(2, 3).t(),
        "last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "generator": torch.Generator().manual_seed(3).get_state(),
        "numbers": [0.1, 1e-300, 2**60, -0.0, float("1.7976931348623157e308"), float("inf"), float("-inf")],
    }
    save_checkpoint(tmp_path, state | {"loss": float("nan")})
    back = load_checkpoint(tmp_path)[0]
    assert math.isnan(back.pop("loss"))
    assert same(back, state)


def test_one_tensor_under_two_names_and_names_with_dots(tmp_path):
    weight = torch.arange(3.0)
    state = {"a": {"b.c": weight}, "a.b": {"c": weight + 1}, "list": [weight, (weight,)]}
    save_checkpoint(tmp_path, state)
    back = load_checkpoint(tmp_path)[0]
    assert torch.equal(back["a"]["b.c"], weight)
    assert torch.equal(back["a.b"]["c"], weight + 1)
    assert torch.equal(back["list"][1][0], weight)


def test_the_newest_two_generations_are_kept(tmp_path):
    assert load_checkpoint(tmp_path) == (None, [])
    for updates in range(4):
        save_checkpoint(tmp_path, {"updates": updates})
    assert names(tmp_path) == ["000003", "000004"]
    assert load_checkpoint(tmp_path) == ({"updates": 3}, [])
    assert read(Generation, tmp_path / "000004" / "MANIFEST.json").parent == "000003"
    remove_checkpoints(tmp_path)
    assert not tmp_path.exists()
    remove_checkpoints(tmp_path)


@pytest.mark.parametrize("method", ["remove", "sync_folder", "remove_folder"])
def test_a_generation_that_cannot_be_removed_is_named(tmp_path, monkeypatch, method):
    path = save_checkpoint(tmp_path, {"updates": 1})

    class Stuck(Disk):
        pass

    def refuse(self, path):
        raise OSError(13, "stuck")

    setattr(Stuck, method, refuse)
    monkeypatch.setattr(disk, "DISK", Stuck())
    with pytest.raises(DiskError, match=f"^cannot remove {path}: stuck; "):
        remove_checkpoints(tmp_path)


@pytest.mark.parametrize("name", ["MANIFEST.json", "state.json", "tensors.safetensors"])
@pytest.mark.parametrize("harm", [spoil, lambda file: file.write_bytes(file.read_bytes()[:9]), os.unlink])
def test_the_generation_before_a_damaged_one_is_used_and_kept(tmp_path, name, harm):
    for updates in (1, 2):
        save_checkpoint(tmp_path, {"updates": updates, "weight": torch.ones(updates)})
    file = tmp_path / "000002" / name
    harm(file)
    state, damaged = load_checkpoint(tmp_path)
    assert state["updates"] == 1
    if file.exists() or name != "MANIFEST.json":  # one without its manifest was never finished
        assert [each.path for each in damaged] == [file]
        with pytest.raises(Damaged) as error:
            load_generation(tmp_path / "000002")
        assert one_line(error, file)
    else:
        assert damaged == []
    save_checkpoint(tmp_path, {"updates": 3})
    assert names(tmp_path) == ["000001", "000003"]  # the newest two that are whole


def test_a_generation_with_other_files_is_damaged(tmp_path):
    path = save_checkpoint(tmp_path, {"updates": 1})
    manifest = read(Generation, path / "MANIFEST.json")
    save(path / "MANIFEST.json", manifest.model_copy(update={"files": {}}))
    with pytest.raises(Damaged, match=r"expected tensors\.safetensors and state\.json"):
        load_generation(path)


def test_what_a_disk_writes_wrong_is_seen_at_once_and_nothing_is_removed(tmp_path, monkeypatch):
    class Lying(Disk):
        def write(self, handle, data):
            return super().write(handle, bytes(data).replace(b'"updates"', b'"updotes"'))

    for updates in (1, 2):
        save_checkpoint(tmp_path, {"updates": updates})
    monkeypatch.setattr(disk, "DISK", Lying())
    with pytest.raises(Damaged, match=r"000003/state\.json is damaged"):
        save_checkpoint(tmp_path, {"updates": 3})
    assert names(tmp_path) == ["000001", "000002", "000003"]
    assert load_checkpoint(tmp_path)[0] == {"updates": 2}


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-checkpoint",)


@pytest.mark.parametrize("value", [Evil(), {1, 2}, b"bytes", 1j])
def test_a_state_that_would_need_a_pickle_is_refused(tmp_path, value):
    with pytest.raises(TypeError, match=rf"expected a state of dictionaries, .* got {type(value)} state\.a\.0"):
        save_checkpoint(tmp_path, {"a": [value]})
    assert generations(tmp_path) == []


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path):
    path = save_checkpoint(tmp_path, STATE)
    for name in ("MANIFEST.json", "state.json"):
        json.loads((path / name).read_bytes())
    header = (path / "tensors.safetensors").read_bytes()
    json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
