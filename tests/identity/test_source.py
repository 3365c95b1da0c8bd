"""The hash of the code: of the packages' modules and of the user's own files, by content and name."""

import shutil

import pytest
from cluster_fixtures import cells

from bench.identity import source
from bench.spec import EvalSpec, UsageError


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A small copy of the packages, read anew at every call."""
    for package in source.PACKAGES:
        (tmp_path / package / "common").mkdir(parents=True)
        shutil.copy(source.ROOT / package / "__init__.py", tmp_path / package)
        (tmp_path / package / "common" / "base.py").write_text("a = 1\n")
    monkeypatch.setattr(source, "ROOT", tmp_path)
    monkeypatch.setattr(source, "packages", source.packages.__wrapped__)
    return tmp_path


def test_it_changes_with_every_module_and_with_nothing_else(copied):
    (spec,) = cells(1)
    before = source.source_hash(spec)
    assert len(before) == 64
    (copied / "methods" / "notes.txt").write_text("not code")
    assert source.source_hash(spec) == before
    seen = {before}
    for package in source.PACKAGES:
        (copied / package / "common" / "base.py").write_text("a = 2\n")
        seen.add(source.source_hash(spec))
    (copied / "bench" / "common" / "base.py").rename(copied / "bench" / "common" / "other.py")
    seen.add(source.source_hash(spec))
    assert len(seen) == 5


def test_a_file_of_the_users_counts_and_has_to_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (spec,) = cells(1)
    mine = spec.model_copy(update={"method_path": "mine.py"})
    with pytest.raises(UsageError, match=r"cannot read mine\.py: No such file or directory; copy it"):
        source.source_hash(mine)
    hashes = {source.source_hash(spec)}
    for text in ("one", "two"):
        (tmp_path / "mine.py").write_text(text)
        hashes.add(source.source_hash(mine))
    assert len(hashes) == 3
    attacking = spec.eval.model_copy(update={"attacks": ("pgd", "mine"), "attack_paths": {"mine": "mine.py"}})
    attacked = spec.model_copy(update={"eval": attacking})
    assert source.source_hash(attacked) == source.source_hash(mine)  # the same content under the same name
    assert "mine.py" in source.sources([attacked])[attacked.row]["attack mine"]


def test_the_files_beside_a_users_count_too(tmp_path):
    (tmp_path / "mine.py").write_text("def late():\n    import helper\n")
    (tmp_path / "helper.py").write_text("scale = 1\n")
    spec = cells(1)[0].model_copy(update={"method_path": str(tmp_path / "mine.py")})
    before = source.source_hash(spec)
    (tmp_path / "helper.py").write_text("scale = 2\n")
    assert source.source_hash(spec) != before


class TestParts:
    def test_each_has_its_files_and_no_torch_is_needed(self):
        (spec,) = cells(1)
        asked = spec.model_copy(update={"eval": EvalSpec(attacks=("pgd", "fgsm"), over_time="off", audit="off")})
        found = source.sources([asked])[asked.row]
        assert list(found) == [
            "training",
            "head linear",
            "head multi_patch",
            "attack none",
            "attack pgd",
            "attack fgsm",
            "feature shift",
        ]
        assert "methods/emp_ssl.py" in found["training"]
        assert "bench/datasets/synthetic.py" in found["training"]
        assert {part for part, files in found.items() if "attacks/fgsm.py" in files} == {"attack fgsm"}
        assert source.run_code(found) == source.code(source.codes(found))
        assert source.changed({"bench/a.py": "1", "b.py": "1"}, {"bench/a.py": "2", "c.py": "1"}) == [
            *("b.py", "c.py"),
            "bench/a.py",
        ]

    def test_of_a_model_that_was_trained_elsewhere(self, tmp_path, monkeypatch):
        (tmp_path / "net.py").write_text("import layers\n")
        (tmp_path / "layers.py").write_text("")
        monkeypatch.chdir(tmp_path)
        settings = {"source": "net:factory", "weights_sha256": ""}
        spec = cells(1)[0].model_copy(update={"settings": settings})
        assert {"net.py", "layers.py", "bench/evaluation/external_model.py"} < set(
            source.sources([spec])[spec.row]["model"]
        )
        weights = spec.model_copy(update={"encoder": "resnet18"})
        assert "net.py" not in source.sources([weights])[spec.row]["model"]

    def test_of_an_entry_point_with_the_version_of_its_package(self, tmp_path, monkeypatch):
        site = tmp_path / "site-packages"
        information = site / "theirs-1.5.dist-info"
        (site / "theirs").mkdir(parents=True)
        (site / "theirs" / "method.py").write_text("from theirs import loss\n")
        (site / "theirs" / "loss.py").write_text("")
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.5\n")
        (information / "entry_points.txt").write_text("[bench.methods]\nours_not = theirs.method\n")
        monkeypatch.syspath_prepend(str(site))
        spec = cells(1)[0].model_copy(update={"method": "ours_not"})
        training = source.sources([spec])[spec.row]["training"]
        assert {"theirs/method.py", "theirs/loss.py"} < set(training)
        assert training["theirs (package)"] == "1.5"

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({}, {"bench/encoders/resnet8.py"}),  # that of the dataset
            ({"encoder": "resnet18"}, {"bench/encoders/resnet18.py"}),
            ({"encoder": "torchvision:resnet18"}, set()),
            ({"encoder": "mine", "encoder_path": "mine.py"}, {"mine.py", "layers.py"}),
        ],
    )
    def test_the_training_and_all_that_follows_belong_to_the_encoder(self, changes, expected, tmp_path, monkeypatch):
        (tmp_path / "mine.py").write_text("import layers\n")
        (tmp_path / "layers.py").write_text("")
        monkeypatch.chdir(tmp_path)
        spec = cells(1)[0].model_copy(update=changes)
        theirs = {"settings": {"source": "weights.safetensors", "weights_sha256": ""}, "encoder": "x"}
        foreign = spec.model_copy(update=theirs | changes)
        for part, run in (("training", spec), ("model", foreign))[: 1 + bool(changes)]:
            files = set(source.sources([run])[run.row][part])
            ours = {name for name in files if name.startswith("bench/encoders/") and "/common/" not in name}
            assert ours | {name for name in files if not source.own(name)} == expected
            assert {"bench/encoders/common/base.py", "bench/encoders/common/libraries.py"} < files

    def test_where_the_source_of_a_dataset_does_not_say_which_encoder_every_one_of_ours_counts(self, monkeypatch):
        monkeypatch.setattr(source, "outline", lambda file, name: None)
        (spec,) = cells(1)
        files = source.sources([spec])[spec.row]["training"]
        assert {"bench/encoders/resnet8.py", "bench/encoders/resnet18.py"} < set(files)

    def test_an_encoder_that_is_not_there_is_named(self, tmp_path):
        spec = cells(1)[0].model_copy(update={"encoder_path": str(tmp_path / "mine.py")})
        with pytest.raises(source.Unfit, match=r"cannot read .*mine\.py: No such file or directory; copy it"):
            source.sources([spec])
