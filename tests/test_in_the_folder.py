"""Plug-ins of every kind, copied into their folders: listed and used by their names, and no other file is touched."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.spec import RunSpec
from bench.storage.store import RunFolder, load_manifest
from tests.plugins import PLUGINS

ROOT = Path(__file__).parents[1]
PACKAGES = ("bench", "methods", "attacks", "reports")
FILES = {  # kind, as `bench list` says it -> where its files go, and which
    "methods": ("methods", [PLUGINS[name] for name in sorted(PLUGINS)]),
    "attacks": ("attacks", [ROOT / "tests/plugins/l2.py", ROOT / "tests/plugins/own_attack.py"]),
    "encoders": ("bench/encoders", [ROOT / "tests/plugins/small_vit.py"]),
    "protocols": ("bench/protocols", [ROOT / "tests/plugins/prototypes.py"]),
}
RUN = ["run", "--methods", "momentum", "--encoder", "small_vit", "--protocols", "prototypes", "--budget", "2up"]
RUN += ["--attacks", "l2,own_attack", "--eps", "0.1,l2:0.5", "--set", "own_attack.steps=3", "--audit", "off"]
RUN += ["--data", "digits", "--train-images", "64", "--test-images", "20", "--set", "all.batch=16", "--threads", "1"]
RUN += ["--device", "cpu", "--set", "all.feature_width=16"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """(a copy of the packages with the files in it, the hashes of all others before)."""
    root = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    before = hashes(root)
    for place, files in FILES.values():
        for file in files:
            shutil.copy(file, root / place)
    return root, before


def hashes(root):
    files = (file for package in PACKAGES for file in (root / package).rglob("*"))
    kept = (file for file in files if file.is_file() and "__pycache__" not in file.parts)
    return {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in kept}


def said(root, *arguments):
    """(exit code, what it printed, what it complained of) of a command with the packages of ``root``."""
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench", *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("kind", FILES)
def test_they_are_listed_with_what_they_say_of_themselves(tree, kind):
    code, listed, _ = said(tree[0], "list", kind, "--json")
    described = {item["name"]: item["description"] for item in json.loads(listed)}
    assert code == 0
    for file in FILES[kind][1]:
        begins = file.read_text(encoding="utf-8").removeprefix('"""').splitlines()[0][:30]
        assert described[file.stem].startswith(begins)


def test_a_file_elsewhere_under_such_a_name_is_refused(tree, tmp_path):
    given = [str(ROOT / "tests/plugins/small_vit.py") if word == "small_vit" else word for word in RUN]
    code, _, complaint = said(tree[0], *given, "--out", str(tmp_path / "out"))
    assert code == 2
    assert "has the name of a known encoder; give it another name" in complaint


@pytest.mark.ci
def test_one_run_uses_them_all(tree):
    root, before = tree
    code, _, complaint = said(root, *RUN, "--out", "out")
    assert code == 0, complaint
    (spec,) = load_manifest(root / "out").runs
    assert isinstance(spec, RunSpec)
    record = RunFolder(root / "out", spec).record()
    assert (record.status, spec.method_path, spec.encoder, spec.encoder_path) == ("finished", None, "small_vit", None)
    assert {"methods/momentum.py", "bench/encoders/small_vit.py"} <= record.sources["training"].keys()
    results = {(result.protocol, result.attack): result for result in record.results}
    assert results.keys() == {("prototypes", attack) for attack in ("none", "l2", "own_attack")}
    assert results["prototypes", "l2"].norm == "l2"
    assert results["prototypes", "own_attack"].config["steps"] == 3
    assert "own_protocols" not in (root / "out" / "manifest.json").read_text()  # what its source says is enough
    assert "Nearest class mean" in (root / "out" / "report.html").read_text(encoding="utf-8")
    assert {name: known for name, known in hashes(root).items() if name in before} == before
