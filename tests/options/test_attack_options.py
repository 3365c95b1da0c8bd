"""Attacks by name and by path, their radii and their settings: what is asked for, and what is refused at the door."""

import dataclasses
import json
from pathlib import Path

import pytest

from bench import registry
from bench.commands.evaluate import gather
from bench.identity.outline import outline
from bench.options.attacks import attack_fields
from bench.options.door import check
from bench.options.options import asked_attacks, load_suite, options_of, parse_settings
from bench.options.resolve import resolve
from bench.spec import EvalSpec, RunSpec, UsageError

PLUGINS = Path(__file__).parents[1] / "plugins"
L2, OWN = str(PLUGINS / "l2.py"), str(PLUGINS / "own_attack.py")
ASKED = {"data": "synthetic", "methods": "simclr", "budget": "1up", "device": "cpu", "protocols": "linear"}


def asked(attacks=f"pgd,{L2},{OWN}", eps="l2:0.5", settings=(), **others):
    return options_of(ASKED | {"attacks": attacks, "eps": eps, "settings": parse_settings(settings)} | others)


def own(folder, text, name="mine.py"):
    file = folder / name
    head = "from dataclasses import dataclass\nfrom typing import ClassVar\nfrom attacks import fgsm, noise, pgd\n"
    file.write_text(f'"""Mine."""\n{head}{text}')
    return str(file)


def test_files_and_names_are_attacks_by_their_names() -> None:
    assert asked_attacks(asked()) == {"pgd": "pgd", "l2": L2, "own_attack": OWN}
    found = EvalSpec.model_validate(attack_fields(asked(settings=("own_attack.steps=7", "own_attack.decay=1/2"))))
    assert found.attacks == ("pgd", "l2", "own_attack")
    assert found.attack_paths == {"l2": L2, "own_attack": OWN}
    assert found.attack_norms == {"l2": "l2"}
    assert found.attack_settings == {"own_attack": {"steps": 7, "decay": 0.5}}
    assert found.eps_l2 == (0.5,)
    assert EvalSpec.model_validate_json(found.model_dump_json()) == found


def test_a_relative_path_is_kept_as_an_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(tmp_path, "Attack = fgsm.Attack\n")
    monkeypatch.chdir(tmp_path)
    assert asked_attacks(asked("mine.py")) == {"mine": str(tmp_path / "mine.py")}


def test_the_runs_of_a_command_carry_files_norms_and_settings() -> None:
    options = asked(settings=("simclr.batch=16", "l2.steps=3", "all.views=2"))
    check(options)
    specs, *_ = resolve(options)
    assert (specs[0].settings, specs[0].eval.attack_settings) == ({"views": "2", "batch": "16"}, {"l2": {"steps": 3}})


def test_a_run_without_any_of_it_is_written_as_before() -> None:
    (spec,), *_ = resolve(asked("pgd", eps="0.1"))
    written = json.loads(spec.model_dump_json())["eval"]
    assert not {"attack_paths", "attack_norms", "attack_settings", "eps_l2"} & written.keys()
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec


REFUSED = [
    ({"eps": None}, "expected radii in l2 for the attack l2, got none; add some to --eps: l2:0.5"),
    ({"attacks": "pgd"}, "expected an attack in l2 for the radii in l2, got pgd"),
    ({"attacks": f"{L2},{L2}"}, "expected each attack once"),
    ({"attacks": "no/such.py"}, "expected an attack file, got no/such.py: no such file"),
    ({"settings": ("own_attack.stps=7",)}, "the attack own_attack: unknown setting 'stps'; did you mean 'steps'"),
    ({"settings": ("own_attack.chunk=7",)}, "the attack own_attack: unknown setting 'chunk'; known: steps, decay"),
    ({"settings": ("own_attack.space=crop",)}, "the attack own_attack: unknown setting 'space'"),
    ({"settings": ("own.steps=7",)}, "unknown method, attack or protocol 'own'; known: l"),
    ({"settings": ("fgsm.steps=7",)}, "unknown method, attack or protocol 'fgsm'"),
    ({"settings": ("pgd.steps=50",)}, "the settings of pgd are the same for everybody, since it ranks; copy"),
    ({"attacks": "pgd,noise", "eps": None, "settings": ("noise.drws=50",)}, "the attack noise: unknown setting 'drws'"),
]  # fmt: skip
LATER = [
    ({"settings": ("own_attack.steps=many",)}, "the attack own_attack: expected steps as int, got 'many'"),
    ({"settings": ("own_attack.steps=0",)}, "the attack own_attack: expected steps above 0, got 0"),
    ({"settings": ("own_attack.decay=nan",)}, "the attack own_attack: Out of range float values"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED)
def test_what_the_source_of_an_attack_tells_is_refused_at_the_door(changed: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(asked(**changed))


@pytest.mark.parametrize(("changed", "message"), [*REFUSED, *LATER])
def test_all_of_it_is_refused_where_the_runs_are_made(changed: dict, message: str) -> None:
    options = asked(**changed)
    if (changed, message) in LATER:
        check(options)
    with pytest.raises(UsageError, match=message):
        resolve(options)


def test_two_files_of_one_name_and_names_of_the_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    both = [own(folder, "Attack = fgsm.Attack\n") for folder in (tmp_path, tmp_path / "other")]
    with pytest.raises(UsageError, match="expected attacks of different names, got mine twice"):
        check(asked(",".join(both), eps=None))
    with pytest.raises(UsageError, match=r"got .*worst\.py: worst means something in tables"):
        check(asked(own(tmp_path, "Attack = fgsm.Attack\n", "worst.py"), eps=None))


def test_a_name_of_a_method_and_an_attack_is_refused_where_it_is_set(tmp_path: Path) -> None:
    attack = own(tmp_path, "Attack = noise.Attack\n")
    (tmp_path / "methods").mkdir()
    method = tmp_path / "methods" / "mine.py"
    method.write_text('"""Mine."""\nfrom methods import simclr\nConfig, Method = simclr.Config, simclr.Method\n')
    check(asked(attack, eps=None, methods=str(method)))
    with pytest.raises(UsageError, match="--set mine means a method and an attack; give one of the two another name"):
        check(asked(attack, eps=None, methods=str(method), settings=("mine.draws=3",)))


def test_a_norm_that_only_the_loaded_attack_tells_is_checked_then(tmp_path: Path) -> None:
    text = "norm = 'l2'\nclass Between(pgd.Attack): ...\nBetween.norm = norm\nclass Attack(Between): ...\n"
    file = own(tmp_path, text)
    options = asked(file, eps=None)
    check(options)
    with pytest.raises(UsageError, match="expected radii in l2 for the attack mine"):
        attack_fields(options)


def test_a_suite_may_set_attacks_beside_its_rows(tmp_path: Path) -> None:
    suite = tmp_path / "mine.toml"
    suite.write_text(
        f'attacks = "{OWN}"\nbudget = "1up"\n[[rows]]\nmethod = "simclr"\n'
        "[settings.all]\nbatch = 16\n[settings.simclr]\nviews = 2\n[settings.own_attack]\nsteps = 7\n"
    )
    options = options_of(ASKED | load_suite(str(suite)))
    check(options)
    assert options.rows[0].settings == {"batch": 16, "views": 2}
    assert options.settings == {"own_attack": {"steps": 7}}


@pytest.mark.parametrize("attack", registry.names("attack"))
def test_the_outline_of_an_attack_has_its_settings(attack: str) -> None:
    found = outline(registry.folder("attack") / f"{attack}.py", "Attack")
    loaded = registry.load("attack", attack).Attack
    assert found is not None
    assert sorted(found.fields) == sorted(field.name for field in dataclasses.fields(loaded))
    assert found.values.get("norm", "linf") == loaded.norm


def test_an_evaluation_of_anybodys_model_takes_the_same() -> None:
    given = dict.fromkeys(["architecture", "normalize", "name", "image_size", "classes", "data_root", "train_images",
                           "test_images", "eval", "audit", "threads"])  # fmt: skip
    given |= {"kind": "classifier", "data": "synthetic", "device": "cpu"}
    found = gather("bench.cli:main", None, **given, attacks=f"pgd,{L2}", eps="l2:0.5", settings=("l2.steps=3",))
    assert (found.eval.attack_settings, found.eval.eps_l2) == ({"l2": {"steps": 3}}, (0.5,))
    with pytest.raises(UsageError, match="unknown method, attack or protocol 'simclr'"):
        gather("bench.cli:main", None, **given, attacks="pgd", eps=None, settings=("simclr.batch=3",))
