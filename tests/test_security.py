"""What SECURITY.md promises: no pickle is executed, no name leads out of a folder, no text of others comes alive."""

import ast
import csv
import hashlib
import io
import json
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from pydantic import ValidationError
from report_fixtures import audited, manifest, probe, records, result, write
from rich.console import Console

from bench import disk
from bench.checkpoint import MANIFEST as GENERATION
from bench.checkpoint import STATE, TENSORS, Generation, load_checkpoint, load_generation, save_checkpoint
from bench.cli import main
from bench.datasets import cifar10
from bench.disk import DiskError
from bench.files import LARGEST_HEADER, Damaged, load_tensors, read, save
from bench.foreign import Request, load_module
from bench.options import LARGEST_FILE, load_suite, options_of, parse_seeds
from bench.progress import Display
from bench.registry import load as load_plugin
from bench.show import plain, say_log
from bench.spec import (
    Audit,
    DataSpec,
    EvalResult,
    EvalSpec,
    ProbeResult,
    Record,
    RunSpec,
    Setting,
    UsageError,
)
from bench.store import MANIFEST, RunFolder, load_manifest, load_records
from bench.unpack import MOST_BYTES
from reports import inert
from reports.build import build

ROOT = Path(__file__).parent.parent
PACKAGES = ("bench", "methods", "attacks", "reports")


def code(*arguments):
    with pytest.raises(SystemExit) as leaving:
        main(list(map(str, arguments)))
    return leaving.value.code


def one_line(text):
    return len(text) < 500 and text.isprintable()


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


def with_checksum(data):
    """What somebody sends who can compute a hash: these bytes end as a record does."""
    return data + b',\n "sha256": "%s"\n}\n' % hashlib.sha256(data + b"\n}").hexdigest().encode()


def fitting(folder):
    """The manifest of a generation as its files are."""
    files = {name: (folder / name).read_bytes() for name in (TENSORS, STATE)}
    hashes = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    return Generation.model_validate({"files": hashes})


@pytest.fixture
def run(tmp_path):
    """A whole run folder with every file that is read again."""
    asked = manifest(("simclr",))
    (record,) = records(asked, diverged=())
    write(tmp_path / "run", asked, [record])
    folder = RunFolder(tmp_path / "run", record.spec)
    tensors = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    folder.save_probe(probe("linear"), tensors)
    images = torch.zeros(2, 1, 4, 4)
    kept = folder.save_adversarial("linear", "pgd", images)
    folder.save_result(result("linear", "pgd", 0.1, "11", images_sha256=kept))
    folder.save_trained(record.train, tensors)
    save_checkpoint(folder.path / "checkpoints", {"tensor": torch.ones(3), "step": 1})
    save_checkpoint(folder.path / "checkpoints", {"tensor": torch.ones(3), "step": 2})
    return folder


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


def test_no_pickle_is_executed_as_a_model_to_evaluate(hostile, tmp_path):
    for name in ("m.safetensors", "m.pt", "m.pth", "m.bin", "m.npy", "m.pkl"):
        (tmp_path / name).write_bytes(hostile)
        with pytest.raises(UsageError) as refused:
            load_module(str(tmp_path / name), "resnet8", 1, ())
        assert one_line(str(refused.value))


def test_the_command_line_says_it_in_one_line(run, capsys, canary):
    (run.path / "encoder.safetensors").write_bytes(torch_zip(f"touch {canary}"))
    assert code("verify", run.out) == 1
    said = capsys.readouterr()
    assert said.err == ""
    assert "encoder.safetensors is damaged" in said.out.splitlines()[0]
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
CODE = {"bench/registry.py": {"exec_module", "import_module"}, "bench/foreign.py": {"import_module"}}  # by design
PARTS = {"bench/audit.py", "bench/datasets/parquet.py", "attacks/common/package.py"}  # import_module of a known name


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_that_executes_data_is_called(package):
    for file in (ROOT / package).rglob("*.py"):
        name = str(file.relative_to(ROOT))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
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


# ---------------------------------------------------------------- 30 hostile names

NAMES = (
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "\t=1+1",
    "\r=1+1",
    "\x00=1+1",
    "  =HYPERLINK(1)",
    "＝1+1",
    "a\n=1+1",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"></td><svg onload=alert(1)>',
    "#import sys: x",
    '#eval("1+1")',
    "$ integral_0^1 $",
    '#read("/etc/passwd")',
    "*bold* _it_ `raw` @ref <label>",
    "\\write18{touch x}",
    "\\input{/etc/passwd}",
    "\x1b[2J\x1b[1;1H",
    "\x1b]8;;http://127.0.0.1\x1b\\link\x1b]8;;\x1b\\",
    "\x9b31mred",
    "\u202eevil\u202c",
    "zero\u200bwidth\ufeff",
    "[bold red]markup[/]",
    "../../../../tmp/out",
    "..",
    "x" * 5000,
    "a\x08\x08\x7f\x85b\u2028c",
)
assert len(NAMES) == len(set(NAMES)) == 30
SPEC = {"method": "simclr", "data": {"name": "digits"}, "budget": {"amount": 1, "unit": "updates"}}
CELL = {"protocol": "linear", "attack": "pgd", "threat_space": "image", "eps": 0.1, "outcomes": "1", "seconds": 1}
AUDIT = {"protocol": "linear", "level": "core", "eps": 0.1, "checks": []}


@pytest.mark.parametrize("name", [*NAMES, ".hidden", "a/b", "a b", "", "ünï", "a\n", "x" * 69, "-o", "\ud800"])
def test_a_name_of_a_file_is_letters_digits_dots_and_dashes(name):
    for kind, values in (
        (RunSpec, SPEC | {"method": name}),
        (RunSpec, SPEC | {"label": name}),
        (EvalSpec, {"attacks": [name]}),
        (EvalSpec, {"protocols": [name]}),
        (EvalResult, CELL | {"protocol": name}),
        (EvalResult, CELL | {"attack": name}),
        (EvalResult, CELL | {"images_sha256": name or "a"}),
        (ProbeResult, probe("linear").model_dump() | {"protocol": name}),
        (Audit, AUDIT | {"protocol": name}),
    ):
        with pytest.raises(ValidationError):
            kind.model_validate(values)
    if name:  # of a row of a suite: the method's
        with pytest.raises(UsageError) as refused:
            options_of({"rows": [{"method": "simclr", "name": name}]})
        assert "\n" not in str(refused.value)
    row = Request(source="m.safetensors", name=name, data=DataSpec(name="digits"), eval=EvalSpec()).row
    assert RunSpec.model_validate(SPEC | {"method": row}).name == f"{row}-s0"


def test_good_names_pass():
    for name in ("a", "emp_ssl-1.5", "_x", "0", "x" * 68):
        assert RunSpec.model_validate(SPEC | {"method": name, "label": name, "seed": 10**10 - 1}).row == name
    assert re.fullmatch(
        r"[A-Za-z0-9._-]{1,80}", RunSpec.model_validate(SPEC | {"method": "x" * 68, "seed": 9**10}).name
    )


@pytest.mark.parametrize("name", ["my method", "=a", ".x", "ü", "x" * 69])
def test_a_method_file_has_such_a_name_too(tmp_path, name):
    (tmp_path / f"{name}.py").write_text("raise SystemExit('executed')\n", encoding="utf-8")
    with pytest.raises(UsageError, match="expected a method file whose name has letters, digits"):
        load_plugin("method", str(tmp_path / f"{name}.py"))


@pytest.mark.parametrize("command", ["report", "verify", "check"])
def test_a_manifest_with_a_hostile_name_is_refused_in_one_line(tmp_path, capsys, command):
    asked = manifest(("simclr",))
    for number, name in enumerate(NAMES):
        spec = asked.runs[0].model_copy(update={"method": name})
        save(tmp_path / str(number) / MANIFEST, asked.model_copy(update={"runs": [spec]}))
        assert code(command, tmp_path / str(number)) == (1 if command == "verify" else 2)
        said = capsys.readouterr()
        first, *others = (said.err or said.out).splitlines()
        assert one_line(first)
        assert "as a Manifest, runs.0.method" in first
        assert len(others) == (command == "verify")  # which counts what it found
        assert [path.name for path in (tmp_path / str(number)).iterdir()] == [MANIFEST]


def test_free_text_comes_alive_nowhere(tmp_path, capsys):
    """30 names in every field that stays free text, through the tables, the figures, the PDF and the terminal."""
    asked = manifest(("simclr", "cf_amc_ssl"), seeds=15)
    label = NAMES[0] + NAMES[20] + NAMES[15]
    machine = asked.environment.model_copy(
        update={"versions": dict(zip(NAMES, NAMES, strict=True)), "cpu": NAMES[20], "device_name": NAMES[1]}
    )
    asked = asked.model_copy(
        update={
            "command": list(NAMES),
            "environment": machine,
            "dataset_source": " ".join(NAMES),
            "data": asked.data.model_copy(update={"label": label}),
        }
    )
    found = []
    for name, record in zip(NAMES, records(asked, diverged=()), strict=True):
        checks = [
            audited("linear", record.results, 0.1, "FAIL")
            .checks[0]
            .model_copy(update={"note": name, "threshold": name})
        ]
        changes = {
            "status": "failed",
            "message": name,
            "adversary": name,
            "environment": machine,
            "data": asked.data,
            "settings": [Setting(name=name, value=[name, {name: name}], source=name)],
            "train": record.train.model_copy(update={"note": name}),
            "results": [each.model_copy(update={"note": name, "config_hash": name}) for each in record.results],
            "audits": [each.model_copy(update={"checks": checks}) for each in record.audits],
        }
        found.append(record.model_copy(update=changes))
    write(tmp_path, asked, found)
    before = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert code("report", tmp_path) == 0
    said = capsys.readouterr()
    assert all(line.isprintable() for line in (said.out + said.err).split("\n"))
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} - before
    assert {name.partition("/")[0] for name in made} == {
        "results.csv", "leaderboard.csv", "claims.csv", "report.pdf", "report.html", "figures"
    }  # fmt: skip
    for file in tmp_path.glob("*.csv"):
        table = file.read_text(encoding="utf-8")
        assert all(line.isprintable() for line in table.split("\n"))
        for line in table.splitlines()[1:]:
            for cell in next(csv.reader([line])):
                number = re.fullmatch(r"-?[0-9.]+(e-?[0-9]+)?", cell)
                assert number or not cell.lstrip().startswith(inert.FORMULAS), cell
    pdf = subprocess.run(["pdftotext", "-raw", tmp_path / "report.pdf", "-"], capture_output=True, check=True).stdout
    shown = "".join(c for c in pdf.decode() if c.isprintable() and not c.isspace())
    for name in NAMES:
        seen = inert.printable(name).replace("＝", "")  # the font of the report has no such letter
        assert "".join(seen.split())[:200] in shown, name  # a page ends somewhere in the longest
    for svg in (tmp_path / "figures").glob("*.svg"):
        assert "<script" not in svg.read_text(encoding="utf-8")


def test_numbers_stay_numbers_and_text_does_not_become_one():
    assert [inert.cell(value) for value in (-0.5, 3, None, True)] == [-0.5, 3, None, True]
    assert inert.cell("-0.5") == "'-0.5"
    for name in NAMES:
        assert inert.cell(name).isprintable()
        assert not inert.cell(name).lstrip().startswith(inert.FORMULAS)


@pytest.mark.parametrize("name", [*NAMES, "\ud800 lone surrogate"])
def test_nothing_moves_the_cursor(name, tmp_path, capsys):
    assert plain(name).isprintable()
    assert plain("Größe 8/255 – ε ≤ 0.1") == "Größe 8/255 – ε ≤ 0.1"
    (tmp_path / "log.txt").write_bytes(b"first\n" + name.encode(errors="replace") + b"\xff\x1b[2J\n")
    say_log(tmp_path / "log.txt")
    said = capsys.readouterr().err.split("\n")
    assert said[0] == "first"
    assert all(line.isprintable() for line in said)
    screen = io.StringIO()
    spec = RunSpec.model_validate(SPEC)
    with Display(Console(file=screen, width=200)) as display:
        display.begin([spec], None)
        display.started(spec)
        display.ended(spec, "failed", name)
        cell = {"event": "cell", "protocol": name, "attack": name, "eps": 0.1, "correct": 1, "total": 2, "seconds": 1.0}
        display.event(spec, cell | {"note": name})
    assert all(line.isprintable() for line in screen.getvalue().split("\n"))
    assert len(screen.getvalue().splitlines()) == 3


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


@pytest.mark.timeout(20)
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
        ("#" * (LARGEST_FILE + 1), "expected a suite of at most"),
    ],
)
def test_a_suite_is_checked_by_schema(tmp_path, text, said):
    (tmp_path / "s.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=said) as refused:
        load_suite(str(tmp_path / "s.toml"))
    assert len(plain(str(refused.value))) < 700


def test_a_suite_that_is_not_text(tmp_path):
    (tmp_path / "s.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not TOML"):
        load_suite(str(tmp_path / "s.toml"))


def test_seeds_that_fill_the_memory():
    for text in ("99999999999", "0,10000000000"):
        with pytest.raises(UsageError, match="expected at most 10000 seeds"):
            parse_seeds(text)


def test_every_suite_of_ours_is_small():
    for file in (ROOT / "bench" / "suites").glob("*.toml"):
        assert tomllib.loads(file.read_text(encoding="utf-8"))
        assert file.stat().st_size < LARGEST_FILE / 10


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
    for name, reads in (("run.json", lambda path: read(Record, path)), ("t.safetensors", load_tensors)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(64 * 2**20 + 1 if name == "run.json" else MOST_BYTES + 1)  # sparse: takes no disk
        if name == "run.json":
            with pytest.raises(Damaged, match="expected at most 67108864 bytes, got more"):
                reads(tmp_path / name)


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
    from bench.checkpoint import Plain
    from bench.files import save_tensors

    save_tensors(folder / TENSORS, {"state.t": torch.ones(3)})
    save(folder / STATE, Plain(state=state))
    save(folder / GENERATION, fitting(folder))


# ---------------------------------------------------------------- what is installed


def test_the_lock_file_pins_what_is_tested_with_hashes_and_names_no_index():
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in locked
    assert "index" not in locked
    packages = re.split(r"\n(?=\w)", locked.strip())
    assert len(packages) > 80
    for package in packages:
        assert re.match(r"[\w.-]+==[\w.]+( ; [^\n]+?)? \\\n    --hash=sha256:[0-9a-f]{64}", package), package[:80]
    versions = dict(re.findall(r"^([\w.-]+)==([\w.]+)", locked, re.MULTILINE))
    tested = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for name, version in re.findall(r"^([\w.-]+)==([\w.]+)", tested, re.MULTILINE):
        assert versions[name.replace("_", "-")] == version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for line in project["dependencies"] + extras["parquet"] + extras["test"]:
        assert re.match(r"[\w-]+", line)[0] in versions, line
