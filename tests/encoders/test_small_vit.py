"""An encoder of a user's own, given by its path to the command line: trained, killed, resumed, verified, shown."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pypdf
import pytest

from bench.cli import main
from bench.storage.store import load_records

pytestmark = pytest.mark.ci  # whole processes, killed in the middle

ROOT = Path(__file__).parents[2]
VIT = ROOT / "tests" / "plugins" / "small_vit.py"
SETTINGS = ("batch=16", "feature_width=16", "hidden_width=16", "embedding_width=8")
RUN = ["run", "--methods", "simclr", "--encoder", str(VIT), "--data", "digits", "--device", "cpu", "--threads", "1"]
RUN += ["--train-images", "64", "--test-images", "20", "--attacks", "pgd", "--protocols", "linear,multi_patch"]
RUN += [f"--set=all.{setting}" for setting in SETTINGS] + ["--eps", "0.1"]
RUN += ["--attack-images", "curve=4"]


MADE = "class Encoder(BaseEncoder):\n    width = 4\n    def __init__(self, channels):\n        super().__init__()\n"


def bench(*arguments):
    """Exit code of a command in this process."""
    with pytest.raises(SystemExit) as leaving:
        main(list(arguments))
    return leaving.value.code


def kill_in_training(arguments, run):
    """Start the command, and kill -9 it once its training has made a few checkpoints."""
    command = [sys.executable, "-m", "bench", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True) as child:
        while not (run / "checkpoints" / "000003" / "MANIFEST.json").exists():
            assert child.poll() is None
            time.sleep(0.01)
        os.killpg(child.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The folder of a run that was killed in the training and went on by the same command."""
    out = tmp_path_factory.mktemp("vit") / "out"
    arguments = [*RUN, "--budget", "40up", "--checkpoint-every", "0.01s", "--out", str(out)]
    kill_in_training(arguments, out / "runs" / "simclr-s0")
    assert not (out / "runs" / "simclr-s0" / "train.json").exists()
    assert bench(*arguments) == 0
    return out


def test_it_is_trained_and_goes_on_after_a_kill(resumed):
    (record,) = load_records(resumed)
    assert (record.status, record.train.updates, record.train.preemptions) == ("finished", 40, 1)
    passes = record.train.forward_per_image, record.train.backward_input_per_image
    assert (*passes, record.train.backward_weight_per_image) == (2, 2, 2)
    assert (record.spec.encoder, record.spec.encoder_path) == ("small_vit", str(VIT))
    assert [(s.value, s.source) for s in record.settings if s.name == "encoder"] == [("small_vit", "--encoder")]
    assert {result.total for result in record.results if not result.curve} == {20}
    assert record.sources["training"]["small_vit.py"]


def test_its_numbers_are_recomputed_without_a_difference(resumed, capsys):
    assert bench("verify", str(resumed), "--device", "cpu") == 0
    assert re.search(r"^0 differences in \d+ recomputed numbers", capsys.readouterr().out, re.MULTILINE)


def test_it_is_shown(resumed):
    rows = list(csv.DictReader((resumed / "results.csv").read_text(encoding="utf-8").splitlines()))
    assert {row["encoder"] for row in rows} == {"small_vit"}
    assert {row["forward_per_image"] for row in rows} == {"2.0"}
    assert "small_vit" in "".join(page.extract_text() for page in pypdf.PdfReader(resumed / "report.pdf").pages)
    assert "small_vit" in (resumed / "report.html").read_text(encoding="utf-8")


def test_another_file_under_its_name_is_refused_and_made_again_where_that_is_asked_for(resumed, tmp_path, capsys):
    own = tmp_path / "small_vit.py"
    shutil.copy(VIT, own)
    given = [str(own) if each == str(VIT) else each for each in RUN]
    given += ["--budget", "2up", "--protocols", "linear", "--out", str(tmp_path / "out")]
    assert bench(*given) == 0
    own.write_text(own.read_text(encoding="utf-8") + "\nMORE = 1\n", encoding="utf-8")
    capsys.readouterr()
    assert bench(*given) == 2
    assert "small_vit.py changed since, which touches the training of simclr" in capsys.readouterr().err
    assert bench(*given, "--again") == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must define Encoder; missing: Encoder"),
        ("class Encoder:\n    pass\n", "expected Encoder to be a class of BaseEncoder (bench.encoders.common.base)"),
        ("class Encoder(BaseEncoder):\n    width = 4\n", "expected Encoder to define forward"),
        ("class Encoder(BaseEncoder):\n    widths = 4\n    def forward(self, x): ...\n", "did you mean width?"),
        (
            MADE.replace("    width = 4\n", "") + "    def forward(self, x): ...\n",
            "to say its width, such as width = 64, got None",
        ),
        (
            "class Encoder(BaseEncoder):\n    width = 4\n    def forward(self, x): ...\n",
            "cannot be made as Encoder(1), for images (B, 1, H, W): TypeError",
        ),
        (
            MADE + "    def forward(self, x):\n        return x.flatten(1)\n",
            "it says width 4, and its features are 256 wide",
        ),
        (
            MADE + "    def forward(self, x):\n        return x\n",
            "expected features (2, width)",
        ),
    ],
)
def test_what_is_no_encoder_is_refused_in_one_line(text, message, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(f"from bench.encoders.common.base import BaseEncoder\n{text}", encoding="utf-8")
    given = [str(file) if each == str(VIT) else each for each in RUN]
    assert bench(*given, "--budget", "1up", "--out", str(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_images_of_another_size_than_it_is_made_for_are_refused(tmp_path, capsys):
    given = ["--set=all.view_share=0.5", "--budget", "1up", "--out", str(tmp_path / "out")]
    assert bench(*RUN, *given) == 2
    said = capsys.readouterr().err
    assert f"expected images of a size that {VIT} takes, such as 16 x 16 pixels, got views of simclr of 8 x 8" in said


def test_weights_of_it_are_evaluated_by_its_file(resumed, tmp_path):
    weights = resumed / "runs" / "simclr-s0" / "encoder.safetensors"
    given = ["--data", "digits", "--device", "cpu", "--test-images", "20", "--train-images", "64", "--attacks", "pgd"]
    given += ["--eps", "0.1"]
    out = tmp_path / "out"
    assert bench("evaluate", str(weights), "--architecture", str(VIT), *given, "--out", str(out)) == 0
    (record,) = load_records(out)
    assert (record.spec.encoder, record.spec.encoder_path) == ("small_vit", str(VIT))
    assert "small_vit.py" in record.sources["model"]
    assert bench("verify", str(out), "--device", "cpu") == 0
    assert json.loads((out / "manifest.json").read_text())["runs"][0]["encoder_path"] == str(VIT)
