"""Attacks of a user's own, one file each in tests/plugins, through the command line: PGD in l2, one with settings."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pandas as pd
import pytest
import torch
from pypdf import PdfReader
from test_attacks import THREAT, correct, generator, scene

from bench import registry
from bench.cli import main
from bench.record import EvalResult
from bench.spec import ThreatModel
from bench.storage.store import RunFolder, load_manifest

pytestmark = pytest.mark.ci  # whole processes, killed in the middle

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "tests" / "plugins"
FILES = [str(PLUGINS / "l2.py"), str(PLUGINS / "own_attack.py")]
SMALL = ["--data", "digits", "--train-images", "64", "--test-images", "24", "--encoder", "resnet8", "--threads", "1"]
SMALL += ["--device", "cpu", "--methods", "simclr", "--set", "simclr.batch=16", "--budget", "2up", "--eval", "quick"]
SMALL += ["--protocols", "linear", "--audit", "core", "--attack-images", "autoattack=8,band=4,curve=8"]
SET = ["--set", "own_attack.steps=7"]
RUN = ["run", *SMALL, "--attacks", ",".join(["pgd", "autoattack", *FILES]), "--eps", "0.1,l2:0.5,l2:1.5"]
MARK = "BENCH_TEST_PROCESS"


def bench(*arguments):
    """Exit code of a command in this process."""
    with pytest.raises(SystemExit) as leaving:
        main([*map(str, arguments)])
    return leaving.value.code


def kill_once_there(file, *arguments):
    """Kill -9 of a command and of all that it has started, as soon as the file is there."""
    mark = uuid.uuid4().hex
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", MARK: mark}
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not file.exists():
        assert process.poll() is None
        time.sleep(0.01)
    while pids := [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if marked(pid, mark)]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()


def marked(pid, mark):
    """Whether a process that lives was started under the mark."""
    with contextlib.suppress(OSError):
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of four attacks on one encoder, killed when its first l2 cell was there; the same command finished it."""
    out = tmp_path_factory.mktemp("plugins") / "out"
    first = out / "runs" / "simclr-s0" / "results" / "linear-l2-l2_0.500000.json"
    kill_once_there(first, *RUN, *SET, "--out", out)
    assert not (out / "results.csv").exists()
    assert not (first.parent / "linear-autoattack-0.100000.json").exists()
    stamp = first.stat().st_mtime_ns
    assert bench(*RUN, *SET, "--out", out) == 0
    assert first.stat().st_mtime_ns == stamp  # what was there was not made again
    return out


def results(out) -> dict[tuple[str, float], EvalResult]:
    (spec,) = load_manifest(out).runs
    return {(each.attack, each.eps): each for each in RunFolder(out, spec).record().results}


# ---------------------------------------------------------------- one run, killed and resumed


def test_cells_of_both_norms_lie_side_by_side(folder):
    names = {file.name for file in (folder / "runs" / "simclr-s0" / "results").iterdir()}
    assert {"linear-l2-l2_0.500000.json", "linear-l2-l2_1.500000.json", "linear-own_attack-0.100000.json"} < names
    assert "linear-pgd-0.100000.json" in names
    found = results(folder)
    assert [found["l2", eps].norm for eps in (0.5, 1.5)] == ["l2", "l2"]
    assert {each.norm for (attack, _), each in found.items() if attack != "l2"} == {"linf"}
    assert found["l2", 1.5].correct <= found["l2", 0.5].correct <= found["none", 0.0].correct
    assert found["l2", 1.5].config["norm"] == "l2"
    assert "norm" not in found["pgd", 0.1].config


def test_the_settings_are_in_the_record_and_in_its_hash(folder):
    config = results(folder)["own_attack", 0.1].config
    assert (config["attack"], config["steps"], config["decay"]) == ("own_attack", 7, 1.0)
    (spec,) = load_manifest(folder).runs
    assert spec.eval.attack_settings == {"own_attack": {"steps": 7}}
    assert spec.eval.attack_paths == dict(zip(("l2", "own_attack"), FILES, strict=True))
    assert "own_attack.py" in RunFolder(folder, spec).record().sources["attack own_attack"]


def test_the_l2_cells_are_shown_and_never_ranked(folder):
    rows = pd.read_csv(folder / "results.csv")
    assert dict(rows[rows["attack"] == "l2"].groupby("norm").size()) == {"l2": 2}
    assert set(rows[rows["attack"].isin(["worst", "pgd", "autoattack", "own_attack"])]["norm"]) == {"linf"}
    found = results(folder)
    both = zip(found["pgd", 0.1].outcomes, found["autoattack", 0.1].outcomes, strict=False)
    worst = rows[(rows["attack"] == "worst") & (rows["eps"] == 0.1)].iloc[0]
    assert worst["correct"] == sum(one == other == "1" for one, other in both)
    assert pd.read_csv(folder / "leaderboard.csv")["worst"].tolist() == [worst["accuracy"]]
    page = (folder / "report.html").read_text()
    assert "In l2: never ranked, and in no worst case." in page
    assert "l2 at eps l2 1.5" in page  # an axis of the chart
    assert "own_attack.steps=7" in page
    pages = [page.extract_text().replace("\u200b", "") for page in PdfReader(folder / "report.pdf").pages]
    text = " ".join(" ".join(pages).split())
    for said in ("never ranked, and in no worst case.", "l2 0.5 l2 1.5", "own_attack.steps=7"):
        assert said in text


def test_the_numbers_are_verified_and_a_record_of_other_settings_is_told(folder, tmp_path, capsys):
    assert bench("verify", folder) == 0
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (spec,) = load_manifest(copy).runs
    run = RunFolder(copy, spec)
    result = run.result("linear", "own_attack", 0.1)
    run.save_result(result.model_copy(update={"config": result.config | {"steps": 10}}))
    capsys.readouterr()
    assert bench("verify", copy) == 1
    assert "own_attack at eps 0.1: made with steps 10, asked for with 7" in "".join(capsys.readouterr())


def test_other_settings_are_another_run(folder, capsys):
    before = {file: file.read_bytes() for file in (folder / "runs").rglob("*.json")}
    for changed, said in (
        ([*SET[:1], "own_attack.steps=8"], "eval.attack_settings.own_attack.steps: 7 there, 8 now"),
        ([], "eval.attack_settings.own_attack.steps: 7 there, none now"),
        ([*SET, "--eps", "0.1,l2:0.5"], "eval.eps_l2: 0.5,1.5 there, 0.5 now"),
    ):
        assert bench(*RUN, *changed, "--out", folder) == 2
        assert said in capsys.readouterr().err
    assert {file: file.read_bytes() for file in (folder / "runs").rglob("*.json")} == before


# ---------------------------------------------------------------- what holds for every attack


@pytest.mark.parametrize("file", FILES)
def test_they_obey_their_threat_leave_no_trace_and_repeat(file):
    attack = registry.load("attack", file).Attack()
    threat = ThreatModel(norm=attack.norm, eps=0.2 if attack.norm == "l2" else THREAT.eps)
    model, images, labels = scene("pgd")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moved = attack.perturb(model, images.clone(), labels, threat, generator())
    away = (moved - images).flatten(1)
    distance = away.norm(dim=1) if attack.norm == "l2" else away.abs().amax(dim=1)
    assert (distance <= threat.eps + 1e-6).all()
    assert (distance[:-1] > 0).all()
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert torch.equal(moved[-1], images[-1])  # wrong from the start: not attacked
    assert not (correct(model, moved, labels) & ~correct(model, images, labels)).any()
    assert torch.equal(attack.perturb(model, images.clone(), labels, threat, generator()), moved)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
