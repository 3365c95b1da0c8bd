"""No pickle that somebody sends is executed, and nothing that would execute data is called (SECURITY.md)."""

import ast
import hashlib
import io
import os
import pickle
import random
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hostile_fixtures import fitting, one_line, whole_run, with_checksum

from bench.cli import main
from bench.datasets import cifar10
from bench.evaluation import torch_file, torch_reader
from bench.evaluation.external_model import load_module
from bench.spec import UsageError
from bench.storage.checkpoint import MANIFEST as GENERATION
from bench.storage.checkpoint import STATE, TENSORS, load_checkpoint, load_generation
from bench.storage.files import Damaged, save
from bench.storage.store import MANIFEST, load_manifest

ROOT = Path(__file__).parent.parent
PACKAGES = ("bench", "methods", "attacks", "reports")


def code(*arguments):
    with pytest.raises(SystemExit) as leaving:
        main(list(map(str, arguments)))
    return leaving.value.code


# ---------------------------------------------------------------- 12 hostile pickles


class Bomb:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def zip_of(name, data):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, data)
    return file.getvalue()


def torch_zip(command):
    file = io.BytesIO()
    torch.save(Bomb(command), file)
    return file.getvalue()


def torch_tar(command):
    """The format of torch 0.1.10: a tar with a member ``pickle``."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(Bomb(command) if name == "pickle" else 0, 2)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def object_array(command):
    file = io.BytesIO()
    np.save(file, np.array([Bomb(command)], dtype=object), allow_pickle=True)
    return file.getvalue()


def text(command):
    """A string for the stack, in the oldest protocol and in a newer one."""
    return b"S'%s'\n" % command.encode()


def newobj_ex(command):
    """list(map.__new__(map, os.system, [command]))"""
    made = b"cbuiltins\nmap\n(cos\nsystem\n](" + text(command) + b"et}\x92"
    return b"\x80\x04cbuiltins\nlist\n" + made + b"\x85R."


def build_state(command):
    """An object whose own __setstate__ is os.system."""
    instance = b"ctypes\nSimpleNamespace\n)R"
    return b"\x80\x02" + instance + b"}" + text("__setstate__") + b"cos\nsystem\nsb" + text(command) + b"b."


PICKLES = {
    "GLOBAL and REDUCE, protocol 0": lambda command: pickle.dumps(Bomb(command), 0),
    "protocol 1": lambda command: pickle.dumps(Bomb(command), 1),
    "protocol 2 and 3": lambda command: pickle.dumps(Bomb(command), 3),
    "STACK_GLOBAL, protocol 4": lambda command: pickle.dumps(Bomb(command), 4),
    "frames, protocol 5": lambda command: pickle.dumps([bytearray(9), Bomb(command)], 5),
    "INST": lambda command: b"(" + text(command) + b"ios\nsystem\n.",
    "OBJ": lambda command: b"(cos\nsystem\n" + text(command) + b"o.",
    "NEWOBJ_EX": newobj_ex,
    "BUILD with __setstate__": build_state,
    "torch.save": torch_zip,
    "torch's tar": torch_tar,
    "a zip in a zip, an object array": lambda command: zip_of("a.npy", object_array(command)) + torch_zip(command),
}
assert len(PICKLES) == 12


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.fixture(params=PICKLES.values(), ids=PICKLES)
def hostile(request, canary):
    """The bytes of each pickle, which would make the canary."""
    data = request.param(f"touch {canary}")
    yield data
    assert not canary.exists()


@pytest.mark.parametrize("name", PICKLES)
def test_the_pickles_would_sing(name, canary):
    """Where somebody does load them; else the tests below show nothing."""
    data = PICKLES[name](f"touch {canary}")
    if name.startswith("torch.save"):
        torch.load(io.BytesIO(data), weights_only=False)
    elif name == "torch's tar":
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            pickle.loads(archive.extractfile("pickle").read())
    elif name.startswith("a zip"):
        np.load(io.BytesIO(object_array(f"touch {canary}")), allow_pickle=True)
    else:
        pickle.loads(data)
    assert canary.exists()


@pytest.fixture
def run(tmp_path):
    return whole_run(tmp_path / "run")


TENSOR_FILES = {
    "encoder.safetensors": lambda run: run.trained(),
    "probes/linear.safetensors": lambda run: run.probe("linear"),
    "adversarial": lambda run: run.adversarial("linear", "pgd"),
}
RECORD_FILES = {
    "../../manifest.json": lambda run: load_manifest(run.out),
    "run.json": lambda run: run.record(),
    "audit.json": lambda run: run.audits(),
    "train.json": lambda run: run.trained(),
    "probes/linear.json": lambda run: run.probe("linear"),
    "results/linear-pgd-0.100000.json": lambda run: run.result("linear", "pgd", 0.1),
}


def test_no_pickle_in_a_run_folder_is_executed(hostile, run):
    for name, reads in (TENSOR_FILES | RECORD_FILES).items():
        file = run.path / name if name != "adversarial" else next((run.path / name).iterdir())
        before = file.read_bytes()
        for planted in (hostile, with_checksum(hostile)):
            file.write_bytes(planted)
            with pytest.raises(Damaged) as refused:
                reads(run)
            assert one_line(str(refused.value))
        file.write_bytes(before)
        reads(run)
    (run.path / "beat.json").write_bytes(with_checksum(hostile))
    assert run.beat() is None


def test_no_pickle_in_a_checkpoint_is_executed_though_its_manifest_fits(hostile, run):
    folder = run.path / "checkpoints" / "000002"
    for name in (TENSORS, STATE, GENERATION):
        before = {each: (folder / each).read_bytes() for each in (TENSORS, STATE, GENERATION)}
        (folder / name).write_bytes(with_checksum(hostile) if name != TENSORS else hostile)
        if name != GENERATION:
            save(folder / GENERATION, fitting(folder))
        with pytest.raises(Damaged) as refused:
            load_generation(folder)
        assert one_line(str(refused.value))
        state, damaged = load_checkpoint(run.path / "checkpoints")
        assert state["step"] == 1
        assert [str(each) for each in damaged] == [str(refused.value)]
        for each, data in before.items():
            (folder / each).write_bytes(data)


def test_no_pickle_is_executed_as_a_model_to_evaluate(hostile, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_file, "ask", torch_reader.answer)  # here, where its canary would be heard
    for name in ("m.safetensors", "m.pth", "m.npy"):
        (tmp_path / name).write_bytes(hostile)
        with pytest.raises(UsageError) as refused:
            load_module(str(tmp_path / name), "resnet8", 1, ())
        assert one_line(str(refused.value))


def test_the_command_line_says_it_in_one_line(run, capsys, canary):
    (run.path / "encoder.safetensors").write_bytes(torch_zip(f"touch {canary}"))
    assert code("verify", run.out) == 1
    said = capsys.readouterr()
    assert said.err == ""
    assert "encoder.safetensors is damaged" in said.out
    (run.out / MANIFEST).write_bytes(with_checksum(pickle.dumps(Bomb(f"touch {canary}"))))
    assert code("report", run.out) == 2
    assert code("verify", run.out) == 1
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1
    for line in (said.err.splitlines()[0], said.out.splitlines()[0]):
        assert "manifest.json is damaged or of another version" in line
    assert not canary.exists()


FORBIDDEN = re.compile(
    r"torch\.(load|hub\.\w+)|(pickle|cPickle|dill|cloudpickle|marshal|shelve|joblib)\.(?!dumps$)\w+|.*\.read_pickle"
    r"|(np|numpy)\.(load|loadtxt|genfromtxt)|yaml\.\w+|eval|exec|compile|__import__|os\.(system|popen|exec\w+|spawn\w+)"
    r"|.*\.(extractall|extract_archive|unpack_archive|literal_eval)|input"
)
READER = "bench/evaluation/torch_reader.py"  # in a process of its own, and weights_only
CODE = {
    "bench/registry.py": {"exec_module", "import_module"},
    "bench/evaluation/external_model.py": {"import_module"},
}  # by design
PARTS = {
    "bench/audit/audit.py",
    "bench/datasets/parquet.py",
    "attacks/common/package.py",
}  # import_module of a known name


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_that_executes_data_is_called(package):
    for file in (ROOT / package).rglob("*.py"):
        name = str(file.relative_to(ROOT))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if name == READER and called == "torch.load":
                    (only,) = [k.value for k in node.keywords if k.arg == "weights_only"]
                    assert isinstance(only, ast.Constant)
                    assert only.value is True
                    continue
                assert not FORBIDDEN.fullmatch(called), f"{name}:{node.lineno} {called}"
                assert not any(k.arg in ("shell", "allow_pickle") for k in node.keywords), f"{name}:{node.lineno}"
                last = called.rpartition(".")[2]
                if last in ("exec_module", "import_module"):
                    assert last in CODE.get(name, set()) or name in PARTS, f"{name}:{node.lineno} {called}"
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    found = f"{node.module}.{alias.name}"
                    assert not FORBIDDEN.fullmatch(found), f"{name}:{node.lineno} {found}"


def test_the_rule_finds_what_it_forbids():
    for call in ("torch.load", "pickle.loads", "pickle.Unpickler", "np.load", "yaml.load", "eval", "tar.extractall"):
        assert FORBIDDEN.fullmatch(call)
    for call in ("model.eval", "pickle.dumps", "json.loads", "torch.save", "re.compile", "self.load"):
        assert not FORBIDDEN.fullmatch(call)


def test_a_hundred_changed_bytes_of_cifar_are_rejected_before_anything_is_opened(tmp_path, monkeypatch):
    kind, rng = torchvision.datasets.CIFAR10, random.Random(0)
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    names = [name for name, _ in kind.train_list + kind.test_list] + [kind.meta["filename"]]
    sums = {}
    for name in names:
        data = pickle.dumps({"data": rng.randbytes(3000), "labels": [0, 1]})
        (folder / name).write_bytes(data)
        sums[name] = hashlib.md5(data, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(kind, "train_list", [[name, sums[name]] for name in names[:5]])
    monkeypatch.setattr(kind, "test_list", [[names[5], sums[names[5]]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[names[6]]})
    opened = []
    monkeypatch.setattr(kind, "__init__", lambda self, *_, **__: opened.append(self) or pytest.skip.Exception)
    rejected = 0
    for _ in range(100):
        file = folder / rng.choice(names)
        data = bytearray(file.read_bytes())
        place = rng.randrange(len(data))
        data[place] ^= rng.randrange(1, 256)
        before = file.read_bytes()
        file.write_bytes(data)
        with pytest.raises(UsageError, match=rf"{re.escape(file.name)} is damaged: expected md5"):
            cifar10.Dataset().load(tmp_path, rng.choice(("train", "test")))
        rejected += 1
        file.write_bytes(before)
    assert (rejected, opened) == (100, [])
    with pytest.raises(TypeError):  # the double of the class is reached where every sum fits
        cifar10.Dataset().load(tmp_path, "train")
