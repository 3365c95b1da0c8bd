"""What is searched of a method: its own ranges, those of a file, and nothing that the command fixes."""

import pytest

from bench import registry
from bench.spec import Budget, DataSpec, RunSpec, UsageError
from bench.tuning.space import check_targets, ground, read_spaces
from methods.common.base import ranges

DATASETS = ("digits", "cifar10", "imagenet", "synthetic")


def spec(method="simclr", data="digits", **settings):
    return RunSpec(method=method, data=DataSpec(name=data), budget=Budget.parse("1up"), settings=settings)


def overrides(data="digits"):
    return registry.load("dataset", data).Dataset().OVERRIDES


def searched(asked, spaces=None):
    return ground(asked, overrides(asked.data.name), spaces or {}).space


@pytest.fixture
def file(tmp_path):
    """Ranges of a file with this text."""

    def written(text):
        (tmp_path / "space.toml").write_text(text)
        return read_spaces(tmp_path / "space.toml")

    return written


@pytest.mark.parametrize("data", DATASETS)
@pytest.mark.parametrize("method", registry.names("method"))
def test_every_method_has_a_range_about_what_is_published(method, data):
    """On every data set, with what that overrides; both ends are values that the method takes."""
    found = ground(spec(method, data), overrides(data), {})
    assert {"lr", "weight_decay"} <= found.space.keys()
    for name, value in found.published.items():
        assert value in found.space[name]
        assert not found.space[name].on_border(value)


def test_a_method_inherits_the_ranges_of_its_base():
    emp_ssl, cf_amc_ssl = (ranges(registry.load("method", name).Config) for name in ("emp_ssl", "cf_amc_ssl"))
    assert cf_amc_ssl == emp_ssl
    acl, dynacl = (ranges(registry.load("method", name).Config) for name in ("acl", "dynacl"))
    assert dynacl.keys() - acl.keys() == {"rate", "last_weight"}
    assert str(searched(spec("acl"))["lr"]) == "0.5 to 50 in the logarithm"  # about its own default


def test_what_the_command_sets_is_not_searched():
    assert searched(spec()).keys() - searched(spec(lr=0.5)).keys() == {"lr"}


def test_ranges_of_a_file_come_on_top(file):
    said = file("""
        [all]
        lr = { low = 0.1, high = 1.0 }
        [simclr]
        weight_decay = false
        batch = { low = 50, high = 200, log = true }
        attack_pair = ["x1", "x2"]
    """)
    found = searched(spec(), said)
    assert str(found["lr"]) == "0.1 to 1"
    assert str(found["batch"]) == "50 to 200 in the logarithm"
    assert str(found["attack_pair"]) == "x1 or x2"
    assert "weight_decay" not in found
    assert "weight_decay" in searched(spec("emp_ssl"), said)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[simclr]\nlrr = { factor = 3 }", "--space: unknown setting 'lrr'; did you mean 'lr'"),
        ("[simclr]\nlr = { low = 1, high = 2 }", r"that holds the published value 0.3, which is trial 0, got 1 to 2"),
        (
            "[simclr]\nwarm_up = { low = 0, high = 1 }",
            "the range of warm_up of simclr, 0 to 1, has a bad end: .* in .0",
        ),
        ("[simclr]\nattack_pair = { factor = 3 }", "expected choices for attack_pair of simclr, whose value is 'x1'"),
        ("[simclr]\nlr = { low = 1 }", "expected { low = 0.03, .* got {'low': 1}"),
        ("[simclr]\nlr = 3", "expected { low = 0.03"),
        ("[simclr]\nlr = { factor = 1.00001 }", "lr of simclr: expected a factor that moves 0.3 in four digits"),
        ("[simclr]\nsteps = { low = 4.5, high = 5.5 }", "steps of simclr: expected a range with several whole numbers"),
        ("lr = 3", r"expected a table \[lr\] of ranges, got 3"),
        ("[", "is not TOML"),
    ],
)
def test_ranges_that_cannot_be(file, text, message):
    with pytest.raises(UsageError, match=message):
        searched(spec(), file(text))


def test_ranges_of_what_is_not_tuned(file):
    with pytest.raises(UsageError, match="--space: unknown row or method 'byol'"):
        check_targets(file("[byol]\nlr = { factor = 3 }"), [spec()])


def test_nothing_left_to_search(file):
    fixed = ground(spec(), overrides(), {}).published
    with pytest.raises(UsageError, match="expected settings of simclr to search, got none"):
        searched(spec(**fixed))


def test_a_range_of_another_kind(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom methods import simclr\nfrom methods.common.base import setting\n"
        "@dataclass(frozen=True)\nclass Config(simclr.Config):\n"
        "    temperature: float = setting(0.2, 'own', tune=(0.01, 1.0))\nMethod = simclr.Method\n"
    )
    config = registry.load("method", str(tmp_path / "mine.py")).Config
    with pytest.raises(UsageError, match=r"expected tune of temperature as around\(10\), .* got \(0.01, 1.0\)"):
        ranges(config)
