"""A protocol in one file of a user's own, through the command line: run, killed, resumed, audited, verified, shown."""

import contextlib
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import torch
from audit_fixtures import subject
from evaluation_fixtures import QUICK, Shelf, evaluated, run, tiny_encoder

import bench
from bench.audit.checks.probe import probe_band
from bench.protocols.common.base import load_protocol, protocol_of
from bench.shown import Shown
from bench.spec import EvalSpec, UsageError
from bench.storage.files import unsealed

ROOT = Path(__file__).parents[2]
FILE = ROOT / "tests" / "plugins" / "prototypes.py"
COMMAND = [sys.executable, "tests/short/small.py"]  # AutoAttack of few steps
TINY = ["--data", "digits", "--train-images", "64", "--test-images", "20", "--threads", "1", "--device", "cpu"]
TINY += ["--methods", "simclr", "--budget", "2up", "--set", "all.batch=16", "--eps", "0.005"]
TINY += ["--attack-images", "curve=4,autoattack=4"]
MARK = "BENCH_TEST_PROTOCOL"


def environment(**more):
    return os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"} | more


def finished(*arguments):
    """What a command that went well has printed."""
    done = subprocess.run([*COMMAND, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def killed(condition, *arguments):
    """Start a command, and kill it with all its processes as soon as the condition holds."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=ROOT, env=environment(**{MARK: mark}), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while not condition():
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    alive = [process.pid]
    while alive:
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        alive = []
        for each in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ProcessLookupError):
                if each.name.isdecimal() and f"{MARK}={mark}".encode() in (each / "environ").read_bytes():
                    alive.append(int(each.name))
    process.wait()


def stored(file):
    return json.loads(unsealed(file.read_bytes()))


@pytest.mark.ci
def test_it_is_run_killed_resumed_audited_verified_and_shown(tmp_path):
    out = tmp_path / "out"
    run_it = ["run", *TINY, "--protocols", str(FILE), "--out", str(out)]
    of_run = out / "runs" / "simclr-s0"
    killed((of_run / "probes" / "prototypes.json").is_file, *run_it)
    probe = (of_run / "probes" / "prototypes.json").read_bytes()
    assert not (out / "leaderboard.csv").exists()
    finished(*run_it)
    assert (of_run / "probes" / "prototypes.json").read_bytes() == probe  # fitted once
    (audit,) = stored(of_run / "audit.json")["audits"]
    checks = {check["id"]: check for check in audit["checks"]}
    assert {id for id, check in checks.items() if check["verdict"] == "NOT_RUN"} == set()
    assert not any(id.startswith("M") for id in checks)  # of the mean over crops
    lines = list(csv.DictReader(io.StringIO((out / "leaderboard.csv").read_text())))
    assert {line["protocol"] for line in lines} == {"prototypes"}
    assert all(line["worst"] and line["audit"] in ("PASS", "FLAG", "FAIL") for line in lines)
    rows = bench.load(out).results
    assert {"none", "pgd", "autoattack", "worst"} == set(rows.loc[rows["protocol"] == "prototypes", "attack"])
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Nearest class mean" in page
    assert (out / "report.pdf").stat().st_size > 10_000
    said = finished("verify", str(out))
    assert re.match(r"0 differences in 3 recomputed numbers", said), said
    file = next((of_run / "results").glob("prototypes-none-*.json"))
    result = stored(file)
    assert result["outcomes"].count("1") > 5  # of 20; by chance it were 2


# ---------------------------------------------------------------- in this process

SHOWN = Shown("Nearest class mean", True, path=str(FILE))
OWN = QUICK.model_copy(update={"protocols": ("linear", "prototypes"), "own_protocols": {"prototypes": SHOWN}})


def test_the_stored_classifier_is_the_one_that_was_scored():
    shelf = run(OWN)
    model = evaluated(shelf, OWN).stored_classifier("prototypes")
    clean = shelf.results["prototypes", "none", 0.0].outcomes
    pictures, labels = evaluated(shelf).test.pictures(slice(None), "cpu"), evaluated(shelf).test.labels
    assert "".join(map(str, model(pictures).argmax(1).eq(labels).int().tolist())) == clean
    assert set(shelf.probes["prototypes"][1]) == {"means"}
    assert shelf.probes["prototypes"][0].band == []
    fallen = shelf.results["prototypes", "pgd", 0.02]
    assert fallen.correct < clean.count("1")  # a gradient reaches the pixels
    assert fallen.config.keys() == shelf.results["linear", "pgd", 0.02].config.keys()


def test_the_check_of_the_penalty_says_why_it_does_not_apply():
    probe = run(OWN.model_copy(update={"curve": (), "eps": (0.02,)})).probes["prototypes"][0]
    asked = EvalSpec(audit="full", own_protocols=OWN.own_protocols)
    found = probe_band(subject(eps=0.1, protocol="prototypes", probe=probe, band=probe.band, spec=asked))
    assert (found.verdict, found.note) == ("N/A", "the head has no penalty that could decide")


def test_other_tensors_are_refused():
    protocol = protocol_of(OWN, "prototypes")
    classifier = protocol.build(tiny_encoder(), (16, 16), OWN)
    with pytest.raises(UsageError, match="expected the means of the classes, got bias, weight"):
        protocol.restore(classifier, {"weight": torch.zeros(1), "bias": torch.zeros(1)})
    with pytest.raises(UsageError, match="expected a weight and a bias of a linear probe, got means"):
        protocol_of(OWN, "linear").restore(classifier, {"means": torch.zeros(1)})


def test_a_spec_without_own_protocols_is_written_as_before():
    assert "own_protocols" not in EvalSpec().model_dump()
    assert EvalSpec.model_validate(OWN.model_dump(mode="json")) == OWN


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a-b", "", "a protocol file whose name has no -"),
        ("linear", "", "has the name of a known protocol"),
        ("mine", "class Protocol: pass", "expected Protocol to be a class of BaseProtocol"),
        ("mine", "from bench.protocols.common.base import BaseProtocol as Protocol", "to define fit and restore"),
        ("mine", "", "must define Protocol"),
    ],
)
def test_a_file_that_is_no_protocol_is_refused(name, text, message, tmp_path):
    file = tmp_path / f"{name}.py"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_protocol(str(file))


def test_shelves_have_what_every_other_protocol_has():
    """Whole images are read once, also for a protocol of the user's."""
    shelf = Shelf()
    run(OWN.model_copy(update={"curve": (), "eps": (0.02,)}), shelf)
    assert {name: probe.feature_width for name, (probe, _) in shelf.probes.items()} == {"linear": 24, "prototypes": 24}
