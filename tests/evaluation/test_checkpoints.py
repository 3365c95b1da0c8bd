"""Files of torch, as people have them: found in every form, never loaded in part, never executed."""

import argparse
import re

import pytest
import torch
from foreign_fixtures import refused, untrained

from bench import registry
from bench.encoders.common.build import build_encoder
from bench.evaluation import torch_file, torch_reader
from bench.evaluation.external_model import Loading, canary, load_told
from bench.evaluation.matching import fit
from bench.options import external_request
from bench.options.external_request import check_source
from methods.common.norms import branched, plain

CPU = torch.device("cpu")
PLAIN = Loading()


@pytest.fixture(scope="module")
def weights():
    return untrained()


def named(weights, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def moved(weights):
    """Other weights of the same shapes."""
    return {name: tensor + 1 for name, tensor in weights.items()}


def loaded(content, folder, channels=1, loading=PLAIN, **options):
    """Read in this process, since to start another and to load torch there takes seconds."""
    torch.save(content, folder / "model.pth", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_file, "ask", torch_reader.answer)
        return load_told(str(folder / "model.pth"), "resnet8", channels, (), loading)


def loaded_in_its_own(content, folder, **options):
    """As a command does it."""
    torch.save(content, folder / "model.pth", **options)
    return load_told(str(folder / "model.pth"), "resnet8", 1, ())


FORMS = {
    "a state dict": lambda w: w,
    "of Lightning": lambda w: {"state_dict": named(w, "model.encoder."), "pytorch-lightning_version": "2.1"},
    "of a trainer": lambda w: {"model": w, "optimizer": {"state": {0: {"momentum": torch.ones(2)}}}, "epoch": 3},
    "of DataParallel": lambda w: {"state_dict": named(w, "module.")},
    "compiled": lambda w: {"net": named(w, "_orig_mod.")},
    "with a head": lambda w: named(w, "encoder.") | {"fc.weight": torch.ones(3, 4), "fc.bias": torch.ones(3)},
    "of MoCo": lambda w: {"state_dict": named(w, "module.encoder_q.") | named(moved(w), "module.encoder_k.")},
    "of BYOL": lambda w: {"online": {"encoder": w}, "target": {"encoder": moved(w)}},
    "twice": lambda w: {"state_dict": w, "ema_is_equal": w},
    "without counters": lambda w: {n: t for n, t in w.items() if not n.endswith("num_batches_tracked")},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_weights_are_found_in_every_form(form, weights, tmp_path):
    module, kept, said = loaded(FORMS[form](weights), tmp_path)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items())
    assert kept.keys() == weights.keys()
    assert said[0].startswith("weights: 61 of 61, 100 % of resnet8, from ")
    assert any("left over: fc.weight, fc.bias" in line for line in said) == (form == "with a head")


@pytest.mark.ci
def test_another_process_reads_them_to_the_last_bit_also_in_the_format_of_before_torch_1_6(weights, tmp_path):
    content = {"model": weights | {"half": torch.ones(3).half()}, "optimizer": {"state": {0: torch.ones(2)}}}
    module, _, said = loaded_in_its_own(content, tmp_path, _use_new_zipfile_serialization=False)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items())
    assert said[1] == "left over: half"


def test_a_backbone_alone_gives_its_own_features(weights, tmp_path):
    backbone = {name.removeprefix("backbone."): t for name, t in weights.items() if name.startswith("backbone.")}
    module, kept, said = loaded({"model": named(backbone, "backbone.")}, tmp_path)
    assert module(torch.rand(2, 1, 16, 16)).shape == (2, 64)
    assert kept.keys() == backbone.keys()
    assert said[-1] == "no feature layer: the features are those of the backbone, 64 wide"


def test_parts_that_others_spell_otherwise_are_renamed_and_told():
    with torch.random.fork_rng():
        wanted = build_encoder("resnet18", 3, 8).backbone.state_dict()
    theirs = {name.replace("downsample", "shortcut"): tensor for name, tensor in wanted.items()}
    assert theirs.keys() != wanted.keys()
    result = fit({"": theirs}, wanted, None, None)
    assert result.weights.keys() == wanted.keys()
    assert result.renamed == ("shortcut -> downsample",)


class TestTwoPlaces:
    def test_are_refused_until_one_is_named(self, weights, tmp_path):
        both = named(weights, "first.") | named(moved(weights), "second.")
        said = refused(loaded, both, tmp_path)
        assert "in 2 places: the file itself, under first.; the file itself, under second.; say which, --prefix" in said
        module, _, _ = loaded(both, tmp_path, 1, Loading(prefix="second"))
        assert torch.equal(module.state_dict()["backbone.0.weight"], weights["backbone.0.weight"] + 1)

    def test_a_prefix_that_is_none_is_refused_with_those_that_are(self, weights, tmp_path):
        said = refused(loaded, named(weights, "first."), tmp_path, 1, Loading(prefix="third"))
        assert re.search(r"no weight of the encoder is under 'third'; there are some under .*first\.", said)


class TestBranches:
    """Each set of batch norm is another encoder, so one has to be named."""

    @pytest.fixture
    def two(self):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            encoder = branched(build_encoder("resnet8", 1, 16))
        for part in encoder.modules():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                part.running_mean.normal_()
        return encoder

    def test_are_refused_until_one_is_named(self, two, tmp_path):
        said = refused(loaded, two.state_dict(), tmp_path)
        assert "2 branches of batch norm: norms.0, norms.1; each is another encoder, so say which, --branch" in said
        for number in range(2):
            module, _, lines = loaded(two.state_dict(), tmp_path, 1, Loading(branch=f"norms.{number}"))
            expected = plain(two, number).state_dict()
            assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())
            assert f"branch of batch norm: norms.{number}" in lines

    def test_one_that_is_none_is_refused_with_those_that_are(self, two, tmp_path):
        assert "(norms.0, norms.1), got 'clean'" in refused(
            loaded, two.state_dict(), tmp_path, 1, Loading(branch="clean")
        )


class TestNotWhole:
    def test_one_missing_weight_refuses_the_file_with_the_names_on_both_sides(self, weights, tmp_path):
        content = named(weights, "module.") | {"module.backbone.stem.weight": weights["backbone.0.weight"]}
        del content["module.backbone.0.weight"]
        said = refused(loaded, {"state_dict": content}, tmp_path)
        share = 1 - weights["backbone.0.weight"].numel() / sum(tensor.numel() for tensor in weights.values())
        assert f"only {share:.1%} of the encoder's weights are in the file (state_dict, under module.)" in said
        assert "missing backbone.0.weight; not used: module.backbone.stem.weight" in said

    def test_another_shape_is_named(self, weights, tmp_path):
        assert "backbone.0.weight (16, 1, 3, 3) for (16, 3, 3, 3)" in refused(loaded, weights, tmp_path, 3)

    def test_nothing_that_fits(self, tmp_path):
        said = refused(loaded, {"projector.weight": torch.ones(2, 3)}, tmp_path)
        assert "no weight of the encoder is in the file" in said
        assert "it has projector.weight" in said

    @pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], {}, {"epoch": 3}, {3: torch.ones(3)}])
    def test_what_has_no_named_tensor(self, tmp_path, content):
        assert refused(loaded, content, tmp_path).endswith("; it has no tensors")

    @pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
    def test_codes_for_numbers_are_refused_with_their_type(self, weights, tmp_path, dtype):
        said = refused(loaded, weights | {"backbone.0.weight": weights["backbone.0.weight"].to(dtype)}, tmp_path)
        assert f"types: backbone.0.weight {str(dtype).removeprefix('torch.')} for float32" in said


class TestRefusedAtTheDoor:
    """Before torch is loaded."""

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"<!DOCTYPE html><html>Quota exceeded", "a web page that was saved as a file"),
            (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS and not the file itself"),
            (b"weights = 3", "no file that torch has saved"),
            (b"", "no file that torch has saved"),
        ],
    )
    def test_what_is_no_file_of_torch(self, tmp_path, content, message):
        (tmp_path / "model.pth").write_bytes(content)
        assert message in refused(check_source, str(tmp_path / "model.pth"), "resnet8")

    def test_what_is_too_large(self, tmp_path, monkeypatch):
        torch.save({"w": torch.ones(9)}, tmp_path / "model.pth")
        monkeypatch.setattr(external_request, "LARGEST_FILE", 100)
        assert "expected a file of at most" in refused(check_source, str(tmp_path / "model.pth"), "resnet8")

    def test_what_needs_code_with_the_line_that_takes_its_weights_out(self, weights, tmp_path, monkeypatch):
        content = {"state_dict": named(weights, "module."), "args": argparse.Namespace(lr=0.1)}
        said = refused(loaded, content, tmp_path)
        assert "needs argparse.Namespace, which is code" in said
        monkeypatch.chdir(tmp_path)
        exec(compile(re.search(r'python -c "(.*)"$', said)[1], "advice", "exec"), {})
        monkeypatch.setattr(torch_file, "ask", torch_reader.answer)
        module, _, _ = load_told(str(tmp_path / "model.weights.pth"), "resnet8", 1, ())
        assert torch.equal(module.state_dict()["backbone.0.weight"], weights["backbone.0.weight"])


@pytest.mark.ci
def test_a_file_that_unfolds_to_more_than_it_holds_is_refused(tmp_path):
    said = refused(loaded_in_its_own, {"w": torch.zeros(1).expand(2**32)}, tmp_path)
    assert said.startswith(f"cannot read the weights of {tmp_path / 'model.pth'}: ")
    assert (tmp_path / "model.pth").stat().st_size < 2000


def test_a_file_that_takes_too_long_is_refused(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_file, "SECONDS", 0.01)
    assert "it took longer than 0.01 s" in refused(loaded_in_its_own, weights, tmp_path)


def test_the_canary_tells_features_from_none(digits):
    flat, test = torch.nn.Flatten(), registry.load("dataset", "digits").Dataset().load(None, "test")
    said = canary(flat, digits, test, CPU)
    assert re.fullmatch(r"canary: the nearest training image names the class of 1[89]\d of 200 test images", said)
    constant = torch.nn.Sequential(flat, torch.nn.Linear(256, 4))
    torch.nn.init.zeros_(constant[1].weight)
    assert "chance does as well" in canary(constant, digits, test, CPU)
