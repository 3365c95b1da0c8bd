"""Anybody's model is scored to the image, stored as a run, verified again, and evaluated by the command."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from audit_fixtures import short_autoattack
from evaluation_fixtures import CPU, Shelf
from foreign_fixtures import EVAL, importable, refused, saved, score, untrained
from PIL import Image
from report_fixtures import tables_only
from torch import nn

from bench.audit.verify import other_code, verify
from bench.cli import main
from bench.data.images import load_data
from bench.datasets.digits import Dataset as Digits
from bench.datasets.folder import Dataset as Folder
from bench.encoders.common.build import build_encoder
from bench.evaluation.evaluate import evaluate
from bench.evaluation.evaluated import Evaluated
from bench.evaluation.external_model import call_factory
from bench.options.external_request import Request
from bench.runs.conduct import finished
from bench.runs.external import evaluate_foreign, run_spec
from bench.spec import DataSpec, UsageError
from bench.storage.files import load_tensors, save_tensors
from bench.storage.store import RunFolder, load_records
from reports import plots
from reports.build import build

SIDE = 8


@pytest.fixture
def models(tmp_path):
    with importable(tmp_path):
        yield


@pytest.fixture
def weights():
    return untrained()


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory):
    """A folder of grey 8x8 images in two classes that no model has seen."""
    root = tmp_path_factory.mktemp("two")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 20, SIDE, SIDE), dtype=np.uint8)
    for split, of_split in zip(("train", "test"), pixels, strict=True):
        for label, of_class in zip(("a", "b"), of_split, strict=True):
            (root / split / label).mkdir(parents=True)
            for number, image in enumerate(of_class):
                Image.fromarray(image).save(root / split / label / f"{number:02}.png")
    return DataSpec(name="folder", path=str(root))


# ---------------------------------------------------------------- scored


def exactly_robust(weight, images, labels, eps):
    """Outcomes of a linear two-class model at its worst point of the ball and the box, by arithmetic."""
    x, direction = images.double().flatten(1) / 255, (weight[1] - weight[0]).double()
    gain = direction * (1 - 2 * labels[:, None])  # what raises the wrong logit's lead, for each image
    lead = (x * gain).sum(1)
    lead += torch.maximum(gain * x.clamp(max=eps).neg(), gain * (1 - x).clamp(max=eps)).sum(1)
    return "".join("1" if each < 0 else "0" for each in lead.tolist())


def test_a_linear_classifier_gets_its_exact_robustness_image_by_image(models, two_classes, tmp_path):
    request = Request(
        source="their_models:Two", kind="classifier", data=two_classes, eval=EVAL, threads=1, out=str(tmp_path / "out")
    )
    record, events = score(request)
    _, test = load_data(Folder(), two_classes)
    weight = call_factory("their_models:Two").weight.detach()
    found = {result.eps: result.outcomes for result in record.results}
    assert found == {eps: exactly_robust(weight, test.images[:], test.labels, eps) for eps in (0.0, 0.05, 0.1)}
    assert 0 < found[0.05].count("1") < found[0.0].count("1")
    assert (record.status, record.supervised, record.train) == ("finished", True, None)
    assert record.shift is None  # a classifier is its own head
    assert "trained elsewhere" in record.message
    assert record.probes[0].note == "the classifier's own logits: no probe was fitted"
    assert events[0] == {"event": "opened", "out": request.out}
    before = {file: file.stat().st_mtime_ns for file in Path(request.out).rglob("results/*.json")}
    score(request)
    assert {file: file.stat().st_mtime_ns for file in Path(request.out).rglob("results/*.json")} == before


def test_a_repaired_factory_is_never_shown_the_old_number(models, two_classes, tmp_path):
    request = Request(
        source="their_models:Two", kind="classifier", data=two_classes, eval=EVAL, threads=1, out=str(tmp_path / "out")
    )
    before, _ = score(request)
    file = tmp_path / "their_models.py"
    file.write_text(file.read_text().replace("self.weight.T", "self.weight.T.round()"))
    sys.modules.pop("their_models")
    with pytest.raises(
        UsageError, match=r"by other code: their_models\.py changed since, which touches the model of Two;"
    ):
        evaluate_foreign(request, print)
    sys.modules.pop("their_models")
    record, _ = score(request.model_copy(update={"again": True}))
    assert {r.outcomes for r in record.results} != {r.outcomes for r in before.results}
    assert len(list(tmp_path.glob("out/runs/*/aside/1/results/*.json"))) == len(record.results) == 3
    assert verify(tmp_path / "out")[1] == []
    assert other_code(tmp_path / "out") == ""
    file.write_text(file.read_text() + "changed = True\n")
    assert "their_models.py changed since, which touches the model of Two" in other_code(tmp_path / "out")


def test_reports_read_the_folder_and_rank_no_classifier(models, two_classes, tmp_path):
    eval_spec = EVAL.model_copy(update={"attacks": ("pgd", "autoattack"), "audit": "core"})
    request = Request(
        source="their_models:Two", kind="classifier", name="=their two", data=two_classes, eval=eval_spec,
        threads=1, out=str(tmp_path / "out"),
    )  # fmt: skip
    with short_autoattack():
        record, _ = score(request)
    assert record.spec.method == "their-two"
    with tables_only():
        assert build(Path(request.out)) == []
    (line,) = pd.read_csv(tmp_path / "out" / "leaderboard.csv").to_dict("records")
    assert pd.isna(line["rank_lo"])
    assert pd.isna(line["train_seconds"])
    exact = next(result.outcomes for result in record.results if result.attack == "autoattack")
    assert line["worst"] == exact.count("1") / len(exact)
    (audit,) = record.audits
    verdicts = {check.id: check.verdict for check in audit.checks}
    assert verdicts["S5"] == "PASS"
    assert audit.protocol == "linear"
    assert "NOT_RUN" not in verdicts.values()


SPOILING = """
from dataclasses import dataclass
from attacks.common.base import BaseAttack

@dataclass(frozen=True)
class Attack(BaseAttack):
    def perturb(self, model, images, labels, threat, generator):
        for weight in model.parameters():
            weight.data.mul_(-1)
        return images
"""


def test_an_attack_that_changes_the_model_has_no_number_and_the_others_have_theirs(
    models, two_classes, tmp_path, monkeypatch
):
    (tmp_path / "spoils.py").write_text(SPOILING)
    eval_spec = EVAL.model_copy(
        update={"attacks": ("spoils", "pgd"), "attack_paths": {"spoils": "spoils.py"}, "eps": (0.1,)}
    )
    asked = {"source": "their_models:Two", "kind": "classifier", "data": two_classes, "threads": 1}
    request = Request(**asked, eval=eval_spec, out=str(tmp_path / "out"))
    record, events = score(request)
    plain, _ = score(Request(**asked, eval=eval_spec.model_copy(update={"attacks": ("pgd",)}), out=str(tmp_path / "b")))
    assert [(r.attack, r.outcomes) for r in record.results] == [(r.attack, r.outcomes) for r in plain.results]
    (cell,) = record.failed
    assert cell.failed == "the attack spoils under linear changed weights or buffers; they are put back"
    assert (record.status, [event["event"] for event in events].count("failed")) == ("finished", 1)
    assert record.message.startswith(f"without a number: linear spoils 0.1 ({cell.failed})")
    assert not finished(RunFolder(tmp_path / "out", record.spec))
    assert finished(RunFolder(tmp_path / "b", plain.spec))
    monkeypatch.setattr(plots, "wanted", lambda *_: [])
    assert build(tmp_path / "out") == []
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    (row,) = table[table["attack"] == "spoils"].to_dict("records")
    assert (row["failed"], pd.isna(row["accuracy"]), cell.failed in row["note"]) == (True, True, True)
    assert not table[table["attack"] != "spoils"]["failed"].any()
    assert "Runs without a full result, and why." in (tmp_path / "out" / "report.html").read_text()


def test_an_encoder_file_is_scored_as_the_run_that_made_it(weights, tmp_path):
    data = DataSpec(name="digits", train_images=100, test_images=30)
    eval_spec = EVAL.model_copy(update={"protocols": ("linear", "multi_patch"), "crops": 2, "band_images": 4})
    request = Request(
        source=saved(weights, tmp_path), architecture="resnet8", data=data, eval=eval_spec, threads=1,
        out=str(tmp_path / "out"),
    )  # fmt: skip
    record, _ = score(request)
    encoder, shelf = build_encoder("resnet8", 1, 16), Shelf()
    encoder.load_state_dict(weights)
    evaluate(Evaluated(encoder, *load_data(Digits(), data), eval_spec, 0, CPU, shelf))
    found = {(r.protocol, r.attack, r.eps): r.outcomes for r in record.results}
    assert found == {key: result.outcomes for key, result in shelf.results.items()}
    assert len(found) == 6
    assert record.supervised is False
    assert record.spec.method == "theirs"


def test_other_weights_under_the_same_name_are_another_run(weights, tmp_path):
    data = DataSpec(name="digits", train_images=50, test_images=10)
    eval_spec = EVAL.model_copy(update={"eps": (0.1,), "band_images": 4})
    request = Request(
        source=saved(weights, tmp_path), architecture="resnet8", data=data, eval=eval_spec, threads=1,
        out=str(tmp_path / "out"),
    )  # fmt: skip
    score(request)
    weights["feature_layer.0.bias"] += 1
    saved(weights, tmp_path)
    assert "holds a run with other settings" in refused(evaluate_foreign, request, lambda event: None)


def test_nothing_is_written_for_a_model_that_is_refused(models, two_classes, tmp_path):
    request = Request(
        source="their_models:three", kind="classifier", data=two_classes, eval=EVAL, out=str(tmp_path / "out")
    )
    assert "expected 2 logits" in refused(evaluate_foreign, request, lambda event: None)
    assert not (tmp_path / "out").exists()


def test_a_failure_in_the_evaluation_is_on_record(models, two_classes, tmp_path, monkeypatch):
    def breaks(*arguments):
        raise RuntimeError("the attack failed\nat length")

    monkeypatch.setattr("bench.runs.external.evaluate", breaks)
    request = Request(
        source="their_models:Two", kind="classifier", data=two_classes, eval=EVAL, threads=1, out=str(tmp_path / "out")
    )
    with pytest.raises(RuntimeError):
        evaluate_foreign(request, lambda event: None)
    (record,) = load_records(tmp_path / "out")
    assert record.status == "failed"
    assert record.message.startswith("RuntimeError: the attack failed; trained elsewhere")
    assert RunFolder(tmp_path / "out", run_spec(request, record.spec.settings["weights_sha256"])).path.is_dir()


# ---------------------------------------------------------------- verified


@pytest.fixture
def evaluated_file(weights, tmp_path):
    """(folder, run) of an encoder's evaluation, its file gone since."""
    data = DataSpec(name="digits", train_images=50, test_images=10)
    eval_spec = EVAL.model_copy(update={"eps": (0.1,), "band_images": 4})
    source = saved(weights, tmp_path)
    request = Request(
        source=source, architecture="resnet8", normalize=(0.5, 0.25), data=data, eval=eval_spec, threads=1,
        out=str(tmp_path / "out"),
    )  # fmt: skip
    record, _ = score(request)
    Path(source).unlink()
    return tmp_path / "out", RunFolder(tmp_path / "out", record.spec)


def test_a_file_is_verified_from_the_copy_in_its_folder(evaluated_file):
    out, run = evaluated_file
    assert run.shift().images == 10
    assert run.shift().mean > 0
    assert verify(out) == (1, [])  # the clean number; without AutoAttack there is no ranked pair
    stored = run.path / "encoder.safetensors"
    tensors = load_tensors(stored)
    tensors["feature_layer.0.weight"] *= -1
    save_tensors(stored, tensors)
    _, differences = verify(out)
    assert any("the weights are others than those that were evaluated" in each for each in differences)
    assert any("linear none at eps 0: image" in each for each in differences)
    stored.unlink()
    assert "cannot verify theirs-s0: " in (message := refused(verify, out))
    assert message.endswith("no such file; evaluate the model again")


def test_a_factory_is_called_again_and_may_be_another(models, two_classes, tmp_path):
    eval_spec = EVAL.model_copy(update={"attacks": ("pgd", "autoattack"), "audit": "core"})
    request = Request(
        source="their_models:Two", kind="classifier", data=two_classes, eval=eval_spec, threads=1,
        out=str(tmp_path / "out"),
    )  # fmt: skip
    with short_autoattack():
        score(request)
    assert verify(tmp_path / "out") == (3, [])  # clean, PGD and AutoAttack
    call_factory("their_models:Two")
    their_models = sys.modules["their_models"]
    their_models.Two.forward = lambda self, images: -(images.flatten(1) @ self.weight.T)
    assert any("image 0 was published" in each for each in verify(tmp_path / "out")[1])
    their_models.Two = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    assert any("the weights are others" in each for each in verify(tmp_path / "out")[1])


def test_a_factory_that_is_gone_is_one_line_that_says_what_to_do(models, two_classes, tmp_path, capsys):
    request = Request(
        source="their_models:Two", kind="classifier", data=two_classes, eval=EVAL, threads=1, out=str(tmp_path / "out")
    )
    score(request)
    (tmp_path / "their_models.py").unlink()
    sys.modules.pop("their_models")
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    assert bench("verify", str(tmp_path / "out"), "--device", "cpu") == 2
    said = capsys.readouterr().err
    assert "cannot verify Two-s0: cannot import their_models of their_models:Two: ModuleNotFoundError" in said
    assert "run it where this can be imported" in said


# ---------------------------------------------------------------- the command


def bench(*arguments):
    """Exit code of a command in this process, the evaluation in its own."""
    with pytest.raises(SystemExit) as leaving:
        main(list(arguments))
    return leaving.value.code


@pytest.mark.ci
def test_the_command_scores_a_factory_in_a_process_of_its_own(models, two_classes, tmp_path, capsys):
    fixed = ("--kind", "classifier", "--data", f"folder:{two_classes.path}", "--threads", "1", "--device", "cpu")
    fixed += ("--attacks", "pgd", "--eval", "quick", "--eps", "0.1", "--audit", "off", "--out", str(tmp_path / "out"))
    assert bench("evaluate", "their_models:three", *fixed) == 2
    assert "expected 2 logits from their_models:three" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert bench("evaluate", "their_models:Two", *fixed) == 0
    assert "their_models" not in sys.modules  # their code has run in the child only
    (record,) = load_records(tmp_path / "out")
    assert record.status == "finished"
    assert (tmp_path / "out" / "report.pdf").is_file()


@pytest.mark.ci
def test_a_model_that_fails_while_it_is_attacked_is_a_failure_and_says_why(models, two_classes, tmp_path, capsys):
    (tmp_path / "late.py").write_text(
        "from torch import nn\n"
        "class Late(nn.Flatten):\n"
        "    def forward(self, images):\n"
        "        assert len(images) < 10, 'too many'\n"
        "        return super().forward(images)[:, :2]\n"
    )
    fixed = ("--kind", "classifier", "--data", f"folder:{two_classes.path}", "--threads", "1", "--device", "cpu")
    assert bench("evaluate", "late:Late", *fixed, "--eval", "quick", "--out", str(tmp_path / "out")) == 1
    assert "bench: the evaluation of late:Late failed: AssertionError: too many" in capsys.readouterr().err
    (record,) = load_records(tmp_path / "out")
    assert record.status == "failed"
