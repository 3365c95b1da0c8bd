"""Files that tell when they are damaged: what was saved comes back, and what was not is named in one line."""

import hashlib
import json

import pytest
import torch
from store_fixtures import one_line, probe, result, spoil

from bench.record import EvalResult
from bench.spec import UsageError
from bench.storage import files as module
from bench.storage.disk import DiskError
from bench.storage.files import Damaged, load_tensors, read, read_bytes, save, save_tensors, sealed, sha256, unsealed

# ---------------------------------------------------------------- records


def test_a_record_is_json_with_its_checksum_as_the_last_key(tmp_path):
    file = tmp_path / "result.json"
    save(file, result())
    text = file.read_text()
    body = result().model_dump_json(indent=1)
    loaded = json.loads(text)
    assert list(loaded)[-1] == "sha256"
    assert loaded.pop("sha256") == hashlib.sha256(body.encode()).hexdigest()
    assert loaded == json.loads(body)
    assert text.endswith('"\n}\n')
    assert read(EvalResult, file) == result()


def test_the_seal_is_of_every_byte():
    data = sealed('{\n "a": 1\n}')
    assert unsealed(data) == b'{\n "a": 1\n}'
    for place in range(len(data)):
        for bit in range(8):
            other = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
            with pytest.raises(ValueError, match="checksum"):
                unsealed(other)
        with pytest.raises(ValueError, match="checksum"):
            unsealed(data[:place])
    with pytest.raises(ValueError, match="checksum"):
        unsealed(data + b"\n")


def edit(file, old, new):
    """As somebody who knows about the seal would."""
    text = unsealed(file.read_bytes()).decode()
    assert text.count(old) == 1
    file.write_bytes(sealed(text.replace(old, new)))


DAMAGES = {
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:40]), "it does not end with its checksum"),
    "empty": (lambda file: file.write_bytes(b""), "it does not end with its checksum"),
    "not text": (lambda file: file.write_bytes(b"\xff\xfe\x00"), "it does not end with its checksum"),
    "spoilt": (spoil, "its checksum does not fit"),
    "edited by hand": (
        lambda file: file.write_text(file.read_text().replace('"0110"', '"1110"')),
        "its checksum does not fit",
    ),
    "of another kind": (lambda file: save(file, probe()), r"as a EvalResult, \w+: "),
    "with a value that cannot be": (
        lambda file: edit(file, '"0110"', '"0120"'),
        "as a EvalResult, outcomes: String should match",
    ),
    "with a key from another version": (
        lambda file: edit(file, '"seconds"', '"minutes"'),
        "as a EvalResult, seconds: Field required",
    ),
    "too deep": (lambda file: edit(file, '"a": 1', '"a": ' + "[" * 5000 + "]" * 5000), "as a EvalResult, "),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_named_in_one_line(tmp_path, damage):
    file = tmp_path / "result.json"
    save(file, result())
    harm, message = DAMAGES[damage]
    harm(file)
    with pytest.raises(Damaged, match=rf"^{file} is damaged or of another version: {message}") as error:
        read(EvalResult, file)
    assert one_line(error, file)
    assert error.value.path == file


def test_a_record_that_is_missing_or_no_file_is_named_in_one_line(tmp_path):
    with pytest.raises(UsageError, match=rf"^expected {tmp_path}/result.json: no such file$"):
        read(EvalResult, tmp_path / "result.json")
    with pytest.raises(DiskError, match=rf"^cannot read {tmp_path}: Is a directory; "):
        read(EvalResult, tmp_path)


def test_a_record_that_would_fill_the_memory_is_not_read(tmp_path, monkeypatch):
    file = tmp_path / "result.json"
    save(file, result())
    size = file.stat().st_size
    monkeypatch.setattr(module, "LARGEST_JSON", size)
    assert read(EvalResult, file) == result()
    monkeypatch.setattr(module, "LARGEST_JSON", size - 1)
    with pytest.raises(Damaged, match=f"^{file} is damaged .*: expected at most {size - 1} bytes"):
        read(EvalResult, file)
    assert read_bytes(file) == file.read_bytes()


# ---------------------------------------------------------------- tensors


def test_tensors_come_back(tmp_path):
    file = tmp_path / "weights.safetensors"
    base = torch.arange(12.0)
    tensors = {
        "shared": base[:6],
        "strided": base[::2],
        "scalar": torch.tensor(3),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "none": torch.empty(0, 3),
    }
    save_tensors(file, tensors)
    back = load_tensors(file, sha256(tensors))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("data", [None, b"", b"\x00" * 8, b"not tensors at all", b"\xff" * 100])
def test_damaged_tensors_are_named_in_one_line(tmp_path, data):
    file = tmp_path / "weights.safetensors"
    save_tensors(file, {"a": torch.arange(3.0)})
    file.write_bytes(file.read_bytes()[:-1] if data is None else data)
    with pytest.raises(Damaged) as error:
        load_tensors(file)
    assert one_line(error, file)


def test_every_bit_of_tensors_counts(tmp_path):
    file = tmp_path / "weights.safetensors"
    tensors = {"a": torch.arange(1.0, 3)}
    save_tensors(file, tensors)
    whole, expected = file.read_bytes(), sha256(tensors)
    for place in range(len(whole)):
        for bit in range(8):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            with pytest.raises(Damaged) as error:
                load_tensors(file, expected)
            assert one_line(error, file)


def test_the_hash_of_tensors_is_of_names_types_shapes_and_values():
    tensors = {"a": torch.arange(6.0), "b": torch.tensor(3)}
    same = {"b": torch.tensor(3), "a": torch.arange(12.0)[::2] / 2}
    assert sha256(tensors) == sha256(same)
    others = [
        {"a": torch.arange(6.0), "c": torch.tensor(3)},
        {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)},
        {"a": torch.arange(6.0), "b": torch.tensor(3, dtype=torch.int32)},
        {"a": torch.arange(6.0).nextafter(torch.tensor(9.0)), "b": torch.tensor(3)},
    ]
    assert len({sha256(each) for each in [tensors, *others]}) == 5
