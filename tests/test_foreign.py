"""Anybody's model: refused in one line where it is unusable, and scored to the image where it is not."""

import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from evaluation_fixtures import CPU, Shelf, generator, random_images
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from bench.cli import main
from bench.data import load_data
from bench.datasets.digits import Dataset as Digits
from bench.datasets.folder import Dataset as Folder
from bench.encoder import build_encoder, fold_batch_norm
from bench.evaluate import evaluate
from bench.files import load_tensors, save_tensors
from bench.foreign import (
    Foreign,
    Request,
    call_factory,
    check_input_range,
    check_module,
    check_source,
    load_module,
    mean_and_std,
    parse_normalize,
)
from bench.foreign_run import evaluate_foreign, run_spec
from bench.spec import DataSpec, EvalSpec, UsageError
from bench.store import RunFolder, load_records
from bench.verify import verify
from reports.build import build

EVAL = EvalSpec(attacks=("pgd",), eps=(0.05, 0.1), main_eps=0.1, protocols=("linear",), curve=(), audit="off")
SIDE = 8
MODELS = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(2, 64, generator=generator) / 8)

    def forward(self, images):
        return images.flatten(1) @ self.weight.T

def three():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

def words():
    return {"model": "none"}

def fails():
    raise ValueError("no weights here\\nand more")

constant = 3
"""


def refused(call, *arguments):
    """What the user reads: one line."""
    with pytest.raises(UsageError) as found:
        call(*arguments)
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """The module ``their_models``, importable from the working folder only."""
    (tmp_path / "their_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("their_models", None)


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


def score(request):
    """(the only run of the folder, the events) of an evaluation in this process."""
    events = []
    evaluate_foreign(request, events.append)
    (record,) = load_records(Path(request.out))
    return record, events


# ---------------------------------------------------------------- a file of weights


@pytest.fixture
def weights():
    """Those of an untrained ResNet-8 for digits, 16 features wide."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_encoder("resnet8", 1, 16).state_dict()


def saved(weights, tmp_path):
    save_file(weights, tmp_path / "theirs.safetensors")
    return str(tmp_path / "theirs.safetensors")


def test_a_file_is_loaded_into_the_architecture_to_the_last_bit(weights, tmp_path):
    module = load_module(saved(weights, tmp_path), "resnet8", 1, ())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items())
    assert module(torch.rand(2, 1, 16, 16)).shape == (2, 16)
    assert not module.training
    assert not any(weight.requires_grad for weight in module.parameters())


def test_loading_draws_nothing_from_the_global_generator(weights, tmp_path):
    state = torch.get_rng_state()
    load_module(saved(weights, tmp_path), "resnet8", 1, ())
    assert torch.equal(torch.get_rng_state(), state)


def test_whatever_does_not_fit_is_listed(weights, tmp_path):
    del weights["backbone.0.weight"]
    weights["projector.weight"] = torch.zeros(2)
    weights["feature_layer.0.bias"] = torch.zeros(5)
    message = refused(load_module, saved(weights, tmp_path), "resnet8", 1, ())
    assert "does not fit resnet8 with 1 channels" in message
    assert "missing: backbone.0.weight" in message
    assert "unexpected: projector.weight" in message
    assert "shapes: feature_layer.0.bias (5,) for (16,)" in message


@pytest.mark.parametrize(
    ("architecture", "channels", "found"),
    [
        ("resnet8", 3, "shapes: backbone.0.weight (16, 1, 3, 3) for (16, 3, 3, 3)"),
        ("resnet18", 1, " more"),  # most names differ: the first ones and a count
        ("resnet80", 1, "unknown encoder 'resnet80'; did you mean 'resnet8"),
    ],
)
def test_weights_of_another_architecture_are_refused(weights, tmp_path, architecture, channels, found):
    message = refused(load_module, saved(weights, tmp_path), architecture, channels, ())
    assert found in message
    assert len(message) < 1000


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"not a header")
    assert "bad.safetensors" in refused(load_module, str(tmp_path / "bad.safetensors"), "resnet8", 1, ())


class Hostile:
    """Touches a file where it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("ending", ["pt", "pth", "ckpt", "bin", "pkl"])
def test_a_pickle_is_never_read_and_the_line_says_how_to_convert_it(tmp_path, ending):
    file, canary = tmp_path / f"model.{ending}", tmp_path / "canary"
    file.write_bytes(pickle.dumps(Hostile(canary)))
    message = refused(load_module, str(file), "resnet8", 1, ())
    assert "may hold code and is not read" in message
    assert f"save_file(torch.load('model.{ending}', weights_only=True), 'model.safetensors')" in message
    assert not canary.exists()
    pickle.loads(file.read_bytes())  # the canary does sing
    assert canary.exists()


@pytest.mark.parametrize(
    ("source", "architecture", "message"),
    [
        ("no/such.safetensors", "resnet8", "no such file"),
        ("nothing", None, "expected a .safetensors file or package.module:factory, got 'nothing'"),
        ("some.module:factory", "resnet8", "expected --architecture with a file only"),
        (__file__, None, "may hold code"),
    ],
)
def test_what_is_neither_a_file_nor_a_factory_is_refused(source, architecture, message):
    assert message in refused(check_source, source, architecture)


def test_a_file_needs_an_architecture(weights, tmp_path):
    assert "expected --architecture resnet18 or resnet8" in refused(check_source, saved(weights, tmp_path), None)


# ---------------------------------------------------------------- a factory


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no_such_module:make", "cannot import no_such_module of no_such_module:make: ModuleNotFoundError"),
        ("their_models:tree", "unknown factory 'tree'; did you mean 'three'"),
        ("their_models:words", "expected a torch.nn.Module from their_models:words, got dict"),
        ("their_models:constant", "expected their_models:constant to be callable without arguments, got int"),
        ("their_models:fails", "the factory their_models:fails failed: ValueError: no weights here"),
    ],
)
def test_a_factory_that_gives_no_module_is_one_line(models, source, message):
    assert message in refused(call_factory, source)


def test_a_factory_is_found_in_the_working_folder_behind_all_packages(models, tmp_path):
    assert call_factory("their_models:three")[1].out_features == 3
    assert sys.path[-1] == str(tmp_path)


def test_tracing_never_freezes_what_a_module_draws():
    class Noisy(nn.Module):
        def forward(self, images):
            return images.flatten(1) + torch.rand(1)

    module = Foreign(Noisy(), *mean_and_std((), 3))
    folded = fold_batch_norm(module)
    assert folded is module
    images = torch.zeros(1, 3, 2, 2)
    assert not torch.equal(folded(images), folded(images))


# ---------------------------------------------------------------- pixels


def test_normalization_is_the_first_layer():
    images = torch.rand(5, 3, 4, 4, generator=generator())
    both = Foreign(nn.Identity(), *mean_and_std((0.5, 0.25), 3))
    assert torch.allclose(both(images), (images - 0.5) / 0.25)
    each = Foreign(nn.Identity(), *mean_and_std((0.1, 0.2, 0.3, 1.0, 2.0, 4.0), 3))
    expected = torch.stack([images[:, 0] - 0.1, (images[:, 1] - 0.2) / 2, (images[:, 2] - 0.3) / 4], dim=1)
    assert torch.allclose(each(images), expected)
    assert torch.equal(Foreign(nn.Identity(), *mean_and_std((), 3))(images), images)


@pytest.mark.parametrize("numbers", [(0.5,), (0.5, 0.0), (0.5, -1.0), (0.5, float("nan")), (0.1, 0.2, 0.3)])
def test_a_normalization_that_is_none_is_refused(numbers):
    assert "expected --normalize with" in refused(mean_and_std, numbers, 3)


@pytest.mark.parametrize("text", ["half", "0.5;0.5", ""])
def test_normalize_takes_numbers(text):
    assert "such as 0.5,0.25" in refused(parse_normalize, text)


@pytest.mark.parametrize("ends", [(-1.0, 1.0), (0.0, 255.0), (-2.0, 6.0)])
def test_another_input_range_is_refused_with_the_layer_that_gives_it(ends):
    message = refused(check_input_range, f"{ends[0]:g},{ends[1]:g}")
    layer = Foreign(nn.Identity(), *mean_and_std(parse_normalize(message.rpartition(" ")[2]), 1))
    reached = layer(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)).flatten()
    assert torch.allclose(reached, torch.tensor(ends), atol=1e-6 * max(map(abs, ends)))


def test_the_range_from_0_to_1_is_taken():
    check_input_range("0,1")
    check_input_range("0.0, 1.0")
    assert "lower end first" in refused(check_input_range, "1,0")
    assert "expected --input-range 0,1" in refused(check_input_range, "all")


# ---------------------------------------------------------------- at the door


class Returns(nn.Module):
    """Hands the flat images to a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images.flatten(1))


def test_a_usable_module_gives_its_width():
    test = random_images(6)
    assert check_module(Returns(lambda x: x[:, :10]), "classifier", test, CPU, "theirs") == 10
    assert check_module(Returns(lambda x: x[:, :7]), "encoder", test, CPU, "theirs") == 7


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x[:, :7], "expected 10 logits from theirs, one for each class of random, got 7"),
        (lambda x: x[:, :10] / 0, "expected finite numbers from theirs for images in [0, 1], got NaN or infinity"),
        (lambda x: x[:, :10].log(), "expected finite numbers"),  # the black image
        (lambda x: x[0], "expected theirs to return (6, width) for 6 images, got (768,)"),
        (lambda x: [x], "for 6 images, got list"),
        (lambda x: x[:, :10].double(), "expected float32 from theirs, got torch.float64"),
        (lambda x: x[:, :10].detach(), "expected theirs to be differentiable"),
        (lambda x: x @ torch.zeros(3, 3), "theirs fails on images (6, 3, 16, 16), float32 in [0, 1]: RuntimeError"),
    ],
)
def test_an_unusable_module_is_refused(function, message):
    assert message in refused(check_module, Returns(function), "classifier", random_images(6), CPU, "theirs")


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
    assert "trained elsewhere" in record.message
    assert record.probes[0].note == "the classifier's own logits: no probe was fitted"
    assert events[0] == {"event": "opened", "out": request.out}
    before = {file: file.stat().st_mtime_ns for file in Path(request.out).rglob("results/*.json")}
    score(request)
    assert {file: file.stat().st_mtime_ns for file in Path(request.out).rglob("results/*.json")} == before


def test_reports_read_the_folder_and_rank_no_classifier(models, two_classes, tmp_path):
    eval_spec = EVAL.model_copy(update={"attacks": ("pgd", "autoattack"), "audit": "core"})
    request = Request(
        source="their_models:Two", kind="classifier", name="=their two", data=two_classes, eval=eval_spec,
        threads=1, out=str(tmp_path / "out"),
    )  # fmt: skip
    record, _ = score(request)
    assert record.spec.method == "their-two"
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
    evaluate(encoder, *load_data(Digits(), data), eval_spec, 0, CPU, shelf)
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

    monkeypatch.setattr("bench.foreign_run.evaluate", breaks)
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
