"""The door: what is refused without torch, and that it agrees with what the loaded plug-ins say."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from instant import is_instant

from bench import registry
from bench.data.images import EncodedDataset
from bench.encoders.common.libraries import LIBRARIES
from bench.identity.outline import outline
from bench.known import LIBRARIES as NAMES_OF_LIBRARIES

ROOT = Path(__file__).parents[2]
RUN = ["run", "--data", "digits", "--methods", "simclr", "--budget", "1up"]
REFUSED = [  # later options win over those of RUN
    (["list", "method"], "did you mean 'methods'"),
    ([*RUN, "--methods", "simclrr"], "unknown method 'simclrr'; did you mean 'simclr'"),
    ([*RUN, "--methods", "no/such.py"], "no such file"),
    ([*RUN, "--attacks", "pgdd"], "unknown attack 'pgdd'; did you mean 'pgd'"),
    ([*RUN, "--attack-images", "pgd"], "expected --attack-images such as pgd=100"),
    ([*RUN, "--attack-images", "autoattack.nearest=3"], "unknown protocol 'nearest'"),
    ([*RUN, "--data", "digitz"], "unknown dataset 'digitz'; did you mean 'digits'"),
    ([*RUN, "--data", "parquet"], "expected a folder after the name"),
    ([*RUN, "--data", "parquet:/no/such/folder"], "/no/such/folder: no such folder"),
    ([*RUN, "--data", "digits:/tmp"], "takes no folder"),
    ([*RUN, "--image-size", "4"], "image_size: input should be greater than or equal to 8, got 4"),
    ([*RUN, "--image-size", "64"], "expected 'digits' without --image-size"),
    ([*RUN, "--data", f"folder:{ROOT}", "--classes", "some.txt"], "expected 'folder' without --classes"),
    ([*RUN, "--data", f"imagenet:{ROOT}", "--classes", "/no/such.txt"], "got --classes /no/such.txt: no such file"),
    ([*RUN, "--data-root", __file__], "expected a folder for the data"),
    ([*RUN, "--eps", "8"], "expected eps in [0, 1], got 8; did you mean 8/255?"),
    ([*RUN, "--eps", "0"], "expected eps above 0"),
    (["run", "--budget", "10x"], "expected a budget such as 90s"),
    (["run", "--budget", "10s,20up"], "expected budgets of one kind"),
    (["run", "--budget", "10s", "--total-budget", "20s"], "expected one budget"),
    ([*RUN, "--seeds", "x"], "expected seeds such as 3"),
    ([*RUN, "--protocols", "linaer"], "unknown protocol 'linaer'; did you mean 'linear'"),
    ([*RUN, "--eval", "quik"], "'quick'"),
    ([*RUN, "--device", "tpu"], "expected a device such as auto"),
    ([*RUN, "--encoder", "resnet81"], "unknown encoder 'resnet81'"),
    ([*RUN, "--encoder", "keras:vgg"], "unknown library of encoders 'keras'"),
    ([*RUN, "--set", "simclr.temperatur=1"], "unknown setting 'temperatur'; did you mean 'temperature'"),
    ([*RUN, "--set", "simclrr.batch=8"], "unknown method, attack or protocol 'simclrr'"),
    ([*RUN, "--set", "pgd.steps=50"], "the settings of pgd are the same for everybody, since it ranks"),
    ([*RUN, "--attacks", "noise", "--set", "noise.drws=50"], "unknown setting 'drws'; did you mean 'draws'"),
    ([*RUN, "--attacks", str(ROOT / "tests/plugins/l2.py")], "expected radii in l2 for the attack l2, got none"),
    ([*RUN, "--eps", "l2:0.5"], "expected an attack in l2 for the radii in l2, got pgd, autoattack"),
    ([*RUN, "--eps", "l3:0.5"], "unknown norm 'l3'"),
    ([*RUN, "--set", "simclr"], "expected --set method.key=value"),
    ([*RUN, "--suite", "quik"], "unknown suite 'quik'; did you mean 'quick'"),
    ([*RUN, "--suite", "/no/such.toml"], "no such suite file"),
    ([*RUN, "--track", "wandbb"], "unknown tracker 'wandbb'; did you mean 'wandb'"),
    ([*RUN, "--deadline", "10up"], "expected --deadline in time"),
    ([*RUN, "--checkpoint-every", "x"], "expected a budget such as 90s"),
    ([*RUN, "--jobs", "2", "--engine", "ray"], "expected --jobs with --engine local"),
    (["plan", *RUN[1:], "--methods", "x"], "unknown method 'x'"),
    (["report", "/no/such"], "expected the folder of a run"),
    (["report", "/no/such", "/no/other"], "expected the folder of a run"),
    (["compare", "/no/a", "/no/b"], "expected the folder of a run, got /no/a"),
    (["verify", "/no/such"], "expected the folder of a run"),
    (["check", "/no/such"], "expected the folder of a run"),
    (["check", "--baseline", "/no/such.json"], "nothing to compare with"),
    (["evaluate", "/no/such.safetensors"], "no such file"),
    (["evaluate", "pack.module:make", "--architecture", "resnet18"], "expected --architecture with a file only"),
    (["evaluate", "pack.module:make", "--normalize", "123.675,58.395"], "with mean and std in [0, 1]"),
    (["evaluate", "pack.module:make", "--data", "digitz"], "unknown dataset 'digitz'"),
    (["evaluate", "pack.module:make", "--attacks", "pgdd"], "unknown attack 'pgdd'"),
    (["evaluate", __file__], "no file that torch has saved"),
    (["baseline", "update", "--reason", " "], "expected a reason"),
    ([*RUN, "--encoder", "no/such.py"], "expected an encoder file, got no/such.py: no such file"),
    ([*RUN, "--encoder", "resnet1"], "did you mean 'resnet18'? known: resnet18, resnet8, torchvision:NAME, timm:NAME"),
    (["evaluate", "pack.module:make", "--branch", "clean"], "expected --prefix and --branch with a file of torch only"),
    (["evaluate", "w.safetensors", "--architecture", "no/such.py"], "no such file"),
]
EVERY_REFUSAL = """
import contextlib, io, json, sys
from bench.cli import main
answers = []
for arguments in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try: main(arguments)
        except SystemExit as leaving: answers.append([leaving.code, said.getvalue()])
loaded = [name for name in ("torch", "torchvision", "pandas", "matplotlib") if name in sys.modules]
json.dump([answers, loaded], sys.stdout)
"""


def test_what_is_written_wrong_is_refused_without_torch() -> None:
    asked = json.dumps([arguments for arguments, _ in REFUSED])
    child = [sys.executable, "-c", EVERY_REFUSAL]
    found = subprocess.run(child, input=asked, capture_output=True, text=True, cwd=ROOT, check=True)
    answers, loaded = json.loads(found.stdout)
    for (arguments, message), (code, said) in zip(REFUSED, answers, strict=True):
        assert (code, said.count("\n")) == (2, 1), (arguments, said)
        assert message in said, (arguments, said)
    assert loaded == []


@pytest.mark.ci
@pytest.mark.parametrize("arguments", [REFUSED[1][0], REFUSED[26][0], ["report", "/no/such"]])
def test_a_refusal_takes_under_half_a_second_of_processor_time(arguments: list[str]) -> None:
    assert is_instant(*arguments)


@pytest.mark.parametrize("method", registry.names("method"))
def test_the_outline_of_a_config_has_its_fields(method: str) -> None:
    found = outline(registry.folder("method") / f"{method}.py", "Config")
    assert found is not None
    assert found.fields == [field.name for field in dataclasses.fields(registry.load("method", method).Config)]


@pytest.mark.parametrize("dataset", registry.names("dataset"))
def test_the_outline_of_a_dataset_says_what_it_takes(dataset: str) -> None:
    found = outline(registry.folder("dataset") / f"{dataset}.py", "Dataset")
    loaded = registry.load("dataset", dataset).Dataset
    assert found is not None
    assert found.values["needs_path"] == loaded.needs_path
    assert ("EncodedDataset" in found.bases) == issubclass(loaded, EncodedDataset)
    assert found.values.get("takes_classes", False) == getattr(loaded, "takes_classes", False)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("from elsewhere import Base\nclass Config(Base):\n    a: int = 1\n", None),  # out of reach
        ("class Config(Config):\n    a: int = 1\n", None),  # a circle
        ("Config = dict\n", None),
        ("class Config(\n", None),
        ("class Config:\n    a: int = 1\n    b: ClassVar[int] = 2\n    c = 3\n", ["a"]),
        ("from beside import Base as B\nclass Config(B):\n    a: int = 1\n    z: int = 2\n", ["z", "a"]),
        ("import beside\nclass Config(beside.Base):\n    a: int = 1\n", ["z", "a"]),
    ],
)
def test_an_outline_follows_bases_as_far_as_it_can(text: str, fields: list[str] | None, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("class Base:\n    z: int = 0\n")
    (tmp_path / "mine.py").write_text(text)
    found = outline(tmp_path / "mine.py", "Config")
    assert (found and found.fields) == fields


def test_the_names_of_the_door_are_those_that_are_built() -> None:
    assert list(LIBRARIES) == list(NAMES_OF_LIBRARIES)
