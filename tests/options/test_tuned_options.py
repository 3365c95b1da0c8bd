"""`--tuned DIR`: a row with the best settings beside each published one, and searches that do not fit the run."""

import pytest
from tuning_fixtures import search, trial, tuning

from bench.commands.options import gather
from bench.options.options import chosen_rows, load_suite, options_of, parse_seeds
from bench.options.resolve import resolve
from bench.options.tuned import with_tuned
from bench.spec import UsageError
from bench.storage.files import save

BEST = {"lr": 1.0, "temperature": 0.1}


@pytest.fixture
def folder(tmp_path):
    """A search in which simclr has found better settings, and emp_ssl has not."""
    searches = {
        "simclr": search(trial(30), trial(50, **BEST)),
        "emp_ssl": search(trial(30), trial(20, lr=1.0), method="emp_ssl"),
    }
    save(tmp_path / "tuning.json", tuning(searches))
    return tmp_path


def rows(folder, **given):
    options = options_of({"methods": "simclr,emp_ssl", "data": "digits", "budget": "3up", "tuned": str(folder)} | given)
    return with_tuned(options, chosen_rows(options), parse_seeds(options.seeds))


def test_the_best_settings_stand_beside_the_published_ones(folder):
    assert [(row.label, row.settings, row.tuned) for row in rows(folder)] == [
        ("simclr", {}, False),
        ("simclr-tuned", BEST, True),
        ("emp_ssl", {}, False),
    ]


def test_without_a_search_nothing_is_added():
    options = options_of({"methods": "simclr", "data": "digits", "budget": "3up"})
    assert with_tuned(options, chosen_rows(options), [0]) == chosen_rows(options)


def test_the_runs_say_that_they_are_tuned(folder):
    given = {"methods": "simclr", "data": "digits", "budget": "3up", "seeds": "2", "tuned": str(folder)}
    specs, *_ = resolve(options_of(given))
    assert {spec.name: (spec.tuned, spec.settings) for spec in specs} == {
        "simclr-s0": (False, {}),
        "simclr-tuned-s0": (True, BEST),
        "simclr-s1": (False, {}),
        "simclr-tuned-s1": (True, BEST),
    }
    with pytest.raises(UsageError, match=r"expected --encoder resnet8, which .* was tuned with, got resnet18"):
        resolve(options_of(given | {"encoder": "resnet18"}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methods": "simclr,byol"}, "unknown tuned row 'byol'"),
        ({"data": "synthetic"}, "expected --data digits, on which .* was tuned, got synthetic"),
        ({"seeds": "0,1000"}, "expected seeds other than 1000"),
        ({"budget": "3up,6up"}, "expected one budget with --tuned, got 3up,6up"),
        ({"settings": {"simclr": {"lr": 0.5}}}, "others: lr: as published there, 0.5 now"),
        ({"settings": {"simclr-tuned": {"lr": 0.5}}}, "--set simclr-tuned: its settings are what the search has found"),
        ({"methods": "simclr=simclr_adv"}, "expected simclr as simclr, which was tuned under this name, got simclr_a"),
        ({"tuned": "/no/such/folder"}, "expected the folder of a search, made by bench tune, .* it has no tuning.json"),
    ],
)
def test_searches_that_do_not_fit(folder, given, message):
    with pytest.raises(UsageError, match=message):
        rows(folder, **given)


def test_a_search_that_is_not_done(folder):
    save(folder / "tuning.json", tuning({"simclr": search(trial(1), trial(2))}, trials=16))
    with pytest.raises(UsageError, match=r"expected a search that is done, got 2 of 16 trials in .*; its command"):
        rows(folder, methods="simclr")


def test_a_damaged_search(folder):
    file = folder / "tuning.json"
    file.write_bytes(file.read_bytes().replace(b'"robust": 50', b'"robust": 51'))
    with pytest.raises(UsageError, match=r"tuning.json is damaged"):
        rows(folder)


def test_what_was_fixed_may_be_written_otherwise(folder):
    fixed = search(trial(30), trial(50, **BEST), fixed={"batch": "20"})
    save(folder / "tuning.json", tuning({"simclr": fixed}))
    both = rows(folder, methods="simclr", settings={"simclr": {"batch": 20.0}})
    assert [row.label for row in both] == ["simclr", "simclr-tuned"]


def test_a_name_that_leaves_no_room_for_the_ending(folder):
    name = "a" * 66
    save(folder / "tuning.json", tuning({name: search(trial(30), trial(50, **BEST))}))
    with pytest.raises(UsageError, match=f"expected a row whose name leaves room for -tuned, got {name}; rename it"):
        rows(folder, methods=f"{name}=simclr")


def test_a_suite_cannot_ask_for_held_out_images(tmp_path):
    (tmp_path / "suite.toml").write_text('budget = "1up"\nheld_out = true\n')
    with pytest.raises(UsageError, match="unknown key 'held_out'"):
        load_suite(str(tmp_path / "suite.toml"))


def test_the_methods_and_the_data_are_those_of_the_search_unless_the_command_says_more(folder):
    options = gather({"tuned": str(folder), "budget": ("3up",)})
    assert (options.methods, options.data) == ("simclr,emp_ssl", "digits")
    assert gather({"tuned": str(folder), "methods": "simclr", "budget": ("3up",)}).methods == "simclr"
    found = tuning(
        {"mine": search(trial(30), trial(50, **BEST)), "own": search(trial(30), trial(20), method="/a/own.py")}
    )
    save(folder / "tuning.json", found.model_copy(update={"data": "folder", "path": "/b"}))
    options = gather({"tuned": str(folder), "budget": ("3up",)})
    assert (options.methods, options.data) == ("mine=simclr,/a/own.py", "folder:/b")
