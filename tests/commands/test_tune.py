"""`bench tune` as a user meets it: a search, its real runs, a kill in the middle, and what it refuses."""

import importlib.util
import io
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bench.storage.files import read
from bench.tuned import Tuning
from tests.commands.test_cli import SMALL, bench

SEARCH = [*SMALL, "--encoder", "resnet8", "--set", "all.batch=16", "--budget", "2up"]
SEARCH = [word for word in SEARCH if word not in ("--test-images", "32")]


def found(folder):
    return read(Tuning, folder / "tuning.json")


@pytest.fixture
def no_test_images(tmp_path):
    """A folder of 40 training images in two classes, and no others."""
    rows = []
    for number in range(40):
        file = io.BytesIO()
        Image.new("RGB", (32, 32), (6 * number, 255 - 6 * number, 120 * (number % 2))).save(file, "PNG")
        rows.append({"bytes": file.getvalue(), "path": None})
    (tmp_path / "photos").mkdir()
    pq.write_table(pa.table({"img": rows, "label": [0, 1] * 20}), tmp_path / "photos" / "train.parquet")
    return tmp_path / "photos"


def test_a_search_reads_no_test_images_and_is_made_once(no_test_images, tmp_path, capsys):
    """There are none: the trials are judged on a fifth of the training images."""
    asked = ["tune", "--methods", "simclr", "--data", f"parquet:{no_test_images}", "--encoder", "resnet8"]
    asked += ["--budget", "1up", "--trials", "2", "--set", "simclr.batch=8", "--device", "cpu", "--threads", "1"]
    out = tmp_path / "search"
    assert bench(*asked, "--out", str(out)) == 0
    told = capsys.readouterr()
    assert "simclr: lr 0.03 to 3 in the logarithm, weight_decay" in told.err  # the ranges, before the first trial
    search = found(out).searches["simclr"]
    assert [trial.total for trial in search.trials] == [8, 8]
    assert search.fixed == {"batch": "8"}
    assert "batch" not in search.space
    assert f"bench run --tuned {out}" in told.out
    first = (out / "tuning.json").read_bytes()
    assert bench(*asked, "--out", str(out)) == 0
    assert "simclr-s1000: finished before, not repeated" in capsys.readouterr().err
    assert (out / "tuning.json").read_bytes() == first


@pytest.mark.ci
def test_real_runs_of_what_was_found_stand_beside_the_published_ones(tmp_path, capsys):
    out, run = tmp_path / "search", tmp_path / "run"
    assert bench("tune", "--methods", "simclr,cf_amc_ssl", *SEARCH, "--trials", "4", "--objective", "clean",
                 "--out", str(out)) == 0  # fmt: skip
    search = found(out)
    real = [*SEARCH, "--test-images", "32", "--attacks", "pgd", "--protocols", "linear", "--audit", "off"]
    assert bench("run", "--methods", "simclr,cf_amc_ssl", *real, "--tuned", str(out), "--out", str(run)) == 0
    tuned = [row for row in ("simclr", "cf_amc_ssl") if search.tuned_settings(row)]
    assert {folder.name for folder in (run / "runs").iterdir()} == {
        *("simclr-s0", "cf_amc_ssl-s0"),
        *(f"{row}-tuned-s0" for row in tuned),
    }
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Published against tuned" in page
    assert "4 trials of 2up each, for clean accuracy on held-out training images" in page
    capsys.readouterr()


@pytest.mark.ci
def test_a_search_that_is_killed_goes_on_with_the_same_trials(tmp_path):
    command = [sys.executable, "-m", "bench.cli", "tune", "--methods", "simclr", *SEARCH, "--trials", "3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, "--out", str(whole)], check=True, capture_output=True)
    process = subprocess.Popen([*command, "--out", str(killed)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (killed / "trials" / "01").exists() and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, "--out", str(killed)], check=True, capture_output=True)
    a, b = (found(folder).searches["simclr"].trials for folder in (whole, killed))
    assert [(t.settings, t.clean, t.robust) for t in a] == [(t.settings, t.clean, t.robust) for t in b]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --budget of each trial, such as 5m or 150up, got none"),
        (["--budget", "5m,2h"], "expected --budget of each trial, such as 5m or 150up, got 5m,2h"),
        (["--budget", "5m", "--trials", "0"], "Invalid value for '--trials'"),
        (["--budget", "5m", "--objective", "robustness"], "Invalid value for '--objective'"),
        (["--budget", "5m", "--methods", "simclrr"], "unknown method 'simclrr'"),
        (["--budget", "1up", "--data", "digits", "--methods", "simclr", "--space", "/no/file.toml"], "/no/file.toml"),
        (["--budget", "5m", "--eval", "full"], "No such option"),
    ],
)
def test_bad_input(arguments, message, tmp_path, capsys):
    assert bench("tune", *arguments, "--out", str(tmp_path / "search")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "search").exists()


def test_without_optuna(tmp_path, capsys, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == "optuna" else real(name, *args)
    )
    asked = ["--methods", "simclr", "--budget", "1up", "--data", "digits", "--out", str(tmp_path / "a")]
    assert bench("tune", *asked) == 2
    assert "bench tune needs Optuna: pip install 'robust-ssl-bench[tune]'" in capsys.readouterr().err
