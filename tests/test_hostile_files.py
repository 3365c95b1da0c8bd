"""Files that somebody sends: links, pipes, bad TOML, JSON and safetensors are refused in one line (SECURITY.md)."""

import json
import os
import struct
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from hostile_fixtures import SPEC, fitting, one_line, whole_run, with_checksum
from report_fixtures import manifest

from bench.options.options import load_suite, parse_seeds
from bench.record import Record
from bench.spec import UsageError
from bench.storage import disk
from bench.storage.checkpoint import MANIFEST as GENERATION
from bench.storage.checkpoint import STATE, TENSORS, Plain, load_generation
from bench.storage.disk import DiskError
from bench.storage.files import LARGEST_HEADER, Damaged, load_tensors, read, save, save_tensors
from bench.storage.store import MANIFEST, load_manifest, load_records
from bench.text import LARGEST, plain
from reports.build import build

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(tmp_path):
    return whole_run(tmp_path / "run")


# ---------------------------------------------------------------- links and pipes


def test_a_link_in_a_run_folder_is_refused_and_the_folder_itself_may_be_one(run, tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "x").write_text("secret", encoding="utf-8")
    (tmp_path / "door").symlink_to(run.out)
    assert load_manifest(tmp_path / "door") == load_manifest(run.out)
    for place in ("figures", "runs/other", "runs/simclr-s0/log.txt", "results.csv", "runs/simclr-s0/probes/x"):
        (run.out / place).symlink_to(tmp_path / "secret")
        for command in ("report", "check", "verify"):
            with pytest.raises(UsageError, match="expected no links in the folder of a run, got"):
                {"report": build, "check": load_records, "verify": load_manifest}[command](run.out)
        (run.out / place).unlink()
    assert [path.name for path in (tmp_path / "secret").iterdir()] == ["x"]
    assert load_manifest(run.out).runs


@pytest.mark.timeout(200)
def test_the_disk_reads_regular_files_only(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    assert disk.DISK.read(tmp_path / "file") == b"abc"
    for name in ("link", "pipe", ".."):
        with pytest.raises(OSError, match=r"Too many levels of symbolic links|not a regular file|Is a directory"):
            disk.DISK.read(tmp_path / name)
    with pytest.raises(DiskError):
        read(Record, tmp_path / "pipe")


# ---------------------------------------------------------------- TOML, JSON, safetensors


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 1", "unknown key 'colour'"),
        ("budget = 1", "budget"),
        ("methods = ['a']", "methods"),
        ("[[rows]]\nmethod = 'simclr'\ncolour = 1", r"rows\.0\.colour"),
        ("[[rows]]\nmethod = 1", r"rows\.0\.method"),
        ("settings = 1", "settings"),
        ("[settings]\nall = 1", r"settings\.all"),
        ("a = " + "[" * 10_000, "is not TOML"),
        ("threads = " + "9" * 5000, "is not TOML"),
        ("budget = '1s'\nbudget = '2s'", "is not TOML"),
        ("seeds = \x1b[2J", "is not TOML"),
        ("#" * (LARGEST + 1), "expected a suite of at most"),
    ],
)
def test_a_suite_is_checked_by_schema(tmp_path, text, said):
    (tmp_path / "s.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=said) as refused:
        load_suite(str(tmp_path / "s.toml"))
    assert len(plain(str(refused.value))) < 700


def test_a_suite_that_is_not_text(tmp_path):
    (tmp_path / "s.toml").write_bytes(b"\xff\xfe\0")
    with pytest.raises(UsageError, match=r"cannot read the suite \S+s.toml: byte \d is no UTF-16"):
        load_suite(str(tmp_path / "s.toml"))


def test_seeds_that_fill_the_memory():
    for text in ("99999999999", "0,10000000000"):
        with pytest.raises(UsageError, match="expected at most 10000 seeds"):
            parse_seeds(text)


def test_every_suite_of_ours_is_small():
    for file in (ROOT / "bench" / "suites").glob("*.toml"):
        assert tomllib.loads(file.read_text(encoding="utf-8"))
        assert file.stat().st_size < LARGEST / 10


@pytest.mark.parametrize(
    "change",
    [
        {"colour": 1},
        {"budget": {"amount": 1, "unit": "updates", "colour": 1}},
        {"seeds": "no list"},
        {"main_eps": float("nan")},
        {"command": ["\ud800"]},
        {"seeds": [10**5000]},
        {"runs": [SPEC | {"settings": None}]},
    ],
)
def test_a_record_is_checked_by_schema(tmp_path, change):
    values = manifest(("simclr",)).model_dump(mode="json") | change
    (tmp_path / MANIFEST).write_bytes(with_checksum(dump(values)[:-2]))
    with pytest.raises(Damaged) as refused:
        load_manifest(tmp_path)
    assert one_line(str(refused.value))


def dump(values):
    """JSON as ``save`` lays it out; a number of any length."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(values, indent=1).encode()
    finally:
        sys.set_int_max_str_digits(before)


@pytest.mark.parametrize("depth", [300, 100_000])
def test_a_record_as_deep_as_a_well(tmp_path, depth):
    body = b'{"spec": {"settings": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"
    (tmp_path / "run.json").write_bytes(with_checksum(body))
    with pytest.raises(Damaged) as refused:
        read(Record, tmp_path / "run.json")
    assert one_line(str(refused.value))


def test_a_record_of_gigabytes_is_not_taken_into_memory(tmp_path):
    with (tmp_path / "run.json").open("wb") as file:
        file.truncate(64 * 2**20 + 1)  # sparse: takes no disk
    with pytest.raises(Damaged, match="expected at most 67108864 bytes, got more"):
        read(Record, tmp_path / "run.json")


def safetensors(header, data=bytes(8), size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(dtype="F32", shape=(2,), start=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


BAD_TENSORS = {
    "empty": b"",
    "a header that is not there": safetensors(b"{}", size=LARGEST_HEADER),
    "a header of exabytes": safetensors(b"{}", size=2**63),
    "a bloated header": safetensors({f"t{i}": entry(shape=(0,), end=0) for i in range(20_000)}, b""),
    "no JSON": safetensors(b"hello"),
    "a list": safetensors(b"[]"),
    "a well": safetensors(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "no UTF-8": safetensors(b'{"\xff":1}'),
    "a negative size": safetensors({"a": entry(shape=(-2,))}),
    "a negative offset": safetensors({"a": entry(start=-8, end=0)}),
    "overlapping": safetensors({"a": entry(), "b": entry()}),
    "a hole": safetensors({"a": entry(start=8, end=16)}, bytes(16)),
    "a tail": safetensors({"a": entry()}, bytes(16)),
    "too short": safetensors({"a": entry()}, bytes(4)),
    "a size that overflows": safetensors({"a": entry(shape=(2**62, 2**62))}),
    "an unknown type": safetensors({"a": entry(dtype="PICKLE")}),
    "a type that torch has not": safetensors({"a": entry(dtype="F4", shape=(16,))}),
}


@pytest.mark.parametrize("data", BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_a_bad_safetensors_file_is_refused_in_one_line(tmp_path, data):
    (tmp_path / "t.safetensors").write_bytes(data)
    with pytest.raises(Damaged) as refused:
        load_tensors(tmp_path / "t.safetensors")
    assert str(tmp_path / "t.safetensors") in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "state",
    [
        {"items": [["a", {"tensor": "none", "stride": [1]}]]},
        {"items": [["a", {"tensor": "state.t", "stride": [2**61]}]]},
        {"items": [["a", {"tensor": "state.t", "stride": [-1]}]]},
        {"items": [["a", {"tensor": "state.t", "stride": "x"}]]},
        {"items": [[["a"], 1]]},
        {"items": 1},
        {"other": 1},
    ],
)
def test_a_state_that_is_none_is_damaged(run, state):
    folder = run.path / "checkpoints" / "000002"
    save_state(folder, state)
    with pytest.raises(Damaged, match=r"state\.json is damaged"):
        load_generation(folder)


def save_state(folder, state):
    save_tensors(folder / TENSORS, {"state.t": torch.ones(3)})
    save(folder / STATE, Plain(state=state))
    save(folder / GENERATION, fitting(folder))
