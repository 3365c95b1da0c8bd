"""ImageNet's folders, lists of classes, views and evaluated centres of their sizes, and a plan from end to end."""

import json

import pytest
import torch
from click.testing import CliRunner
from data_fixtures import numbers, write_images

from bench.cli import cli
from bench.data.images import load_data
from bench.datasets import imagenet
from bench.options.options import load_suite, options_of
from bench.options.resolve import resolve as resolve_options
from bench.options.scoring import passes_at_once
from bench.spec import DataSpec, UsageError
from methods import simclr
from methods.common.base import resolve

WNIDS = ("n00000001", "n00000002", "n00000003")


@pytest.fixture
def root(tmp_path):
    return write_images(tmp_path / "net", 12, 6, WNIDS, ("train", "val"), ".JPEG")


def load(root, **options):
    return load_data(imagenet.Dataset(), DataSpec(name="imagenet", path=str(root), root=str(root.parent), **options))


def listed(root, text):
    file = root.parent / "two.txt"
    file.write_text(text)
    return str(file)


def test_all_classes(root):
    train, test = load(root, image_size=16)
    assert (train.label, train.classes, train.image_shape) == ("imagenet-16px", 3, (3, 16, 16))
    assert test.image_shape == (3, 14, 14)  # 7/8 of it
    assert sorted(numbers(test.images[:])) == list(range(6))
    assert train.labels.bincount().tolist() == [4, 4, 4]
    assert train.seen_as(test).image_shape == (3, 14, 14)


def test_stored_at_256_and_seen_at_224(root):
    train, test = load(root)
    assert (train.label, train.image_shape, test.image_shape) == ("imagenet-256px", (3, 256, 256), (3, 224, 224))
    config, settings = resolve(simclr.Config, "imagenet", imagenet.Dataset.OVERRIDES, {})
    method = simclr.Method(config)
    draws = type("Half", (), {"uniform": lambda self, n: torch.full((2, 2, n), 0.5)})()
    assert method.augment(train.batch(slice(2), "cpu"), draws).shape == (2, 2, 3, 224, 224)
    assert {s.name: s.source for s in settings}["view_share"] == "imagenet"


def test_a_list_of_classes_in_the_order_of_their_names(root):
    text = "# a part\nn00000003 a word\n\nn00000001  # two\n"
    train, test = load(root, image_size=16, classes=listed(root, text))
    assert (train.label, train.classes, len(train), len(test)) == ("imagenet-two-16px", 2, 8, 4)
    assert sorted(numbers(train.images[:])) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert [number >= 8 for number in numbers(train.images[:])] == train.labels.bool().tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "n00000001\nn9\nn8\n",
            r"expected the 3 classes of \S+two.txt as folders in \S+train, found no n8, n9; correct",
        ),
        ("n00000001\n", r"expected at least 2 classes in \S+two.txt, got 1; write a wnid on each line"),
        ("n00000001\nn00000002\nn00000001\n", r"expected each class once in \S+, got n00000001 twice; remove one"),
    ],
)
def test_lists_that_do_not_fit(root, text, message):
    with pytest.raises(UsageError, match=message):
        load(root, classes=listed(root, text))


def test_no_list(root):
    for name, reason in (("missing.txt", "No such file or directory"), (".", "Is a directory")):
        with pytest.raises(UsageError, match=f"cannot read the class list .*: {reason}"):
            load(root, classes=str(root / name))


def test_a_list_with_a_byte_order_mark(root):
    (root / "marked.txt").write_bytes("n00000001\r\nn00000003\r\n".encode("utf-16"))
    assert load(root, image_size=16, classes=str(root / "marked.txt"))[0].label == "imagenet-marked-16px"


def test_a_class_without_folder_in_val(root):
    for file in (root / "val" / WNIDS[1]).iterdir():
        file.unlink()
    (root / "val" / WNIDS[1]).rmdir()
    with pytest.raises(UsageError, match=r"the same classes in train and val of \S+, found in one only: n00000002"):
        load(root, image_size=16)


@pytest.mark.parametrize(
    ("kind", "side", "passes"),
    [("cpu", None, 512), ("cpu", 32, 512), ("cpu", 64, 128), ("cpu", 256, 16), ("cuda", None, 2048), ("cuda", 256, 32)],
)
def test_fewer_large_images_are_evaluated_at_once(kind, side, passes):
    assert passes_at_once(torch.device(kind), side) == passes


def test_it_is_listed_and_planned(root, monkeypatch):
    monkeypatch.setenv("BENCH_DATA_ROOT", str(root.parent / "kept"))
    write_images(root, 12, 6, WNIDS, ("train", "val"), ".JPEG", first=99)
    found = CliRunner().invoke(cli, ["list", "datasets", "--json"], standalone_mode=False)
    assert "imagenet" in {each["name"] for each in json.loads(found.output)}
    command = (
        f"plan --data imagenet:{root} --image-size 32 --methods simclr --budget 1up --device cpu --threads 1 --json"
    )
    settings = "--set all.batch=4 --set all.feature_width=8 --set all.hidden_width=8 --encoder resnet8 --curve off"
    found = CliRunner().invoke(
        cli, [*command.split(), *settings.split(), "--protocols", "linear"], standalone_mode=False
    )
    assert found.exception is None, found.output


def test_the_suite_asks_for_the_folder():
    suite = load_suite("imagenet100")
    assert options_of(suite).encoder == "torchvision:resnet18"
    with pytest.raises(UsageError, match="expected a folder after the name, got 'imagenet'; write imagenet:DIR"):
        resolve_options(options_of(suite | {"device": "cpu"}))
