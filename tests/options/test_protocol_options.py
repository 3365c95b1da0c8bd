"""Protocols by name, by the field's name, by path and with settings: what is asked for, and what is refused."""

from pathlib import Path

import pytest

from bench import registry
from bench.options.door import check
from bench.options.options import load_suite, options_of, parse_settings
from bench.options.protocols import asked_protocols, field_names
from bench.options.scoring import evaluation
from bench.protocols.common.base import protocol_of
from bench.spec import EvalSpec, UsageError
from reports.protocols import titles

OWN = str(Path(__file__).parents[1] / "plugins" / "prototypes.py")


def asked(protocols, settings=(), **others):
    return options_of(
        {"data": "digits", "methods": "simclr", "budget": "1up", "protocols": protocols}
        | {"settings": parse_settings(settings)}
        | others
    )


def spec_of(protocols, *settings, data="digits", **others):
    from bench.device import device as devices

    dataset = registry.load("dataset", data).Dataset()
    return evaluation(asked(protocols, settings, **others), dataset, devices.resolve("cpu"))


def test_the_names_of_the_field():
    assert field_names() == {"slf": "linear", "alf": "adversarial_linear", "aff": "adversarial_full"}
    assert asked_protocols(asked(f"slf,alf,aff,knn,{OWN}")) == {
        **{name: name for name in ("linear", "adversarial_linear", "adversarial_full", "knn")},
        "prototypes": OWN,
    }


def test_a_protocol_under_another_name_has_settings_of_its_own():
    spec = spec_of("alf,long=alf,slf", "long.epochs=9", "long.learning_rates=1,10")
    assert spec.protocols == ("adversarial_linear", "long", "linear")
    ours, long = (protocol_of(spec, name) for name in spec.protocols[:2])
    assert (ours.epochs, ours.learning_rates) == (5, (0.3, 3.0, 30.0))  # quick
    assert (long.epochs, long.learning_rates, long.steps) == (9, (1.0, 10.0), ours.steps)
    assert ours.settings(spec) != long.settings(spec)
    shown = spec.own_protocols["long"]
    assert (shown.base, shown.ranked) == ("adversarial_linear", True)
    assert shown.title == "ALF (adversarial linear head): epochs 9, learning_rates 1,10"
    assert spec.autoattack_images["long"] == 64
    assert EvalSpec.model_validate_json(spec.model_dump_json()) == spec


def test_settings_come_from_the_level_and_the_dataset():
    quick, standard = spec_of("aff,knn"), spec_of("aff,knn", data="cifar10", eval="standard")
    assert quick.protocol_settings == {"adversarial_full": {"epochs": 5, "flip": 0.0}}  # a mirrored 2 is no 2
    assert standard.protocol_settings == {}
    assert "protocol_settings" not in standard.model_dump()


def test_a_full_evaluation_shows_the_backbones_head_beside_it():
    assert spec_of("slf,alf", eval="full").protocols == (
        *("linear", "adversarial_linear", "linear_backbone", "adversarial_linear_backbone"),
    )


@pytest.mark.parametrize("suite", ["paper_heads", "paper_log"])
def test_the_suites_of_heads(suite):
    options = options_of(load_suite(suite))
    check(options)
    spec = evaluation(options, registry.load("dataset", "cifar10").Dataset(), __import__("torch").device("cpu"))
    mixed = [protocol_of(spec, name) for name in spec.protocols if name != "published_eval"]
    blocks = [(head.clean, head.robust, head.clean_again) for head in mixed]
    six = [(20, 0, 0), (2, 0, 0), (2, 2, 0), (2, 2, 2), (20, 20, 0), (0, 20, 0)]
    assert blocks == (six if suite == "paper_heads" else [(200, 0, 0)])
    runs = type("Run", (), {"eval": spec})
    assert len(set(titles([runs]).values())) == len(spec.protocols)


@pytest.mark.parametrize(
    ("protocols", "settings", "message"),
    [
        ("alf,adversarial_linear", (), "expected protocols of different names"),
        ("linear=alf", (), "expected a new name without - for adversarial_linear, got 'linear'"),
        ("my-head=alf", (), "expected a new name without -"),
        ("mine=alff", (), "unknown protocol 'alff'"),
        ("alf", ("adversarial_linear.epochs=3",), "the same for everybody, since it ranks; give it a name of its own"),
        ("mine=alf", ("mine.epoch=3",), "the protocol mine: unknown setting 'epoch'; did you mean 'epochs'"),
        ("knn", ("alf.epochs=3",), "unknown method, attack or protocol 'alf'"),
        ("simclr=alf", ("simclr.epochs=3",), "--set simclr means a method and a protocol"),
    ],
)
def test_what_cannot_be_is_refused_at_the_door(protocols, settings, message):
    with pytest.raises(UsageError, match=message):
        check(asked(protocols, settings))


@pytest.mark.parametrize(
    ("protocols", "settings", "message"),
    [
        ("mine=alf", "mine.epochs=few", "the protocol mine: expected epochs as int, got 'few'"),
        ("mine=knn", "mine.temperature=0", "the protocol mine: expected temperature of knn above 0, got 0"),
        ("released_mixed", "released_mixed.clean=-1", "the protocol released_mixed: expected epochs of at least 0"),
    ],
)
def test_a_value_that_cannot_be_is_refused_before_training(protocols, settings, message):
    with pytest.raises(UsageError, match=message):
        spec_of(protocols, settings)
