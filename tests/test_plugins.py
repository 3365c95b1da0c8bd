"""What a plug-in says is used or refused: nothing of it is lost in silence, of any kind, wherever it comes from."""

import importlib.metadata
import sys
from importlib.metadata import EntryPoint

import pytest

from bench import registry
from bench.spec import UsageError

HEAD = """
from __future__ import annotations
from dataclasses import dataclass, field
from typing import ClassVar
from attacks.common.base import BaseAttack
from bench.data.images import BaseDataset, EncodedDataset
from bench.encoders.common.base import BaseEncoder
from bench.tracking.hooks import Hook
from methods.common.base import BaseConfig, BaseMethod

class Method(BaseMethod):
    def build(self, width): ...
    def loss(self, views): ...
"""
ONE = "    x: int = 1\n"
CONFIG = "@dataclass(frozen=True)\nclass Config(BaseConfig):\n"
ATTACK = "@dataclass(frozen=True)\nclass Attack(BaseAttack):\n    def perturb(self, *given): ...\n"
ENCODER = "class Encoder(BaseEncoder):\n    def forward(self, images): ...\n"
DATASET = "class Dataset(BaseDataset):\n    def load(self, root, split): ...\n"
LOST = [
    ("method", CONFIG + "    lr = 0.001\n", r"Config\.lr is no setting, because it has no annotation; write lr: float"),
    ("method", CONFIG + "    mine = (1, 2)\n", r"Config\.mine is no setting.* or mine: ClassVar = \(1, 2\)"),
    ("method", "class Config(BaseConfig):\n    lr: float = 0.001\n", r"Config\.lr .* no dataclass; write @dataclass"),
    ("method", "class Config(BaseConfig):\n    mine: float = 1\n", r"Config\.mine is no setting, because Config is no"),
    ("method", "class Between(BaseConfig):\n    mine: int = 1\n" + CONFIG.replace("BaseC", "Between, BaseC") + ONE,
     r"Between\.mine is no setting"),
    ("method", "class Mixin:\n    lr = 1.0\n" + CONFIG.replace("BaseConfig", "Mixin, BaseConfig") + ONE,
     r"Mixin\.lr is no setting"),
    ("method", CONFIG + "    def lr(self): ...\n", r"Config\.lr hides the setting lr of BaseConfig"),
    ("method", CONFIG + "    lr: ClassVar[float] = 0.1\n", r"Config\.lr hides the setting lr"),
    ("method", CONFIG + "    mine: int = field(default=1, init=False)\n", r"Config\.mine is no setting; write it as a"),
    ("method", CONFIG + "    mine: Nowhere = 1\n", r"Config\(\) cannot be made: NameError: .*Nowhere"),
    ("method", CONFIG + "    batch: int = 1\n", r"Config\(\) cannot be made: UsageError: expected batch of at least 2"),
    ("method", CONFIG + "    def __post_init__(self):\n        object.__setattr__(self, 'mine', 1)\n",
     "Config sets mine, which is no setting"),
    ("method", "@dataclass(frozen=True)\nclass Config:\n    lr: float = 0.1\n",
     r"expected Config to be a class of BaseConfig \(methods\.common\.base\), got one of object"),
    ("method", "Config = 3\n", "to be a class of BaseConfig .*, got 3"),
    ("method", CONFIG + ONE + "class Method:\n    def loss(self, views): ...\n", "Method to be a class of BaseMet"),
    ("method", CONFIG + ONE + "class Method(BaseMethod):\n    def loss(self, views): ...\n",
     "expected Method to define build, found no such method in it"),
    ("method", CONFIG + ONE + "Method.supervised = 3\n", r"expected Method\.supervised as bool, got 3"),
    ("method", CONFIG + ONE + "Method.supervized = True\n", "did you mean supervised?"),
    ("method", CONFIG + ONE + "Method.after_updates = Method.loss\n", "did you mean after_update?"),
    ("attack", ATTACK + "    steps = 10\n", r"Attack\.steps is no setting, because it has no annotation"),
    ("attack", ATTACK.split("\n", 1)[1] + "    steps: int = 10\n", r"Attack\.steps .* because Attack is no dataclass"),
    ("attack", ATTACK + "    space = 'crops'\n", r"expected Attack\.space as .*Literal.*, got 'crops'"),
    ("attack", ATTACK + "    def __post_init__(self):\n        object.__setattr__(self, 'found', 1)\n",
     "Attack sets found, which is no setting"),
    ("attack", "class Attack:\n    def perturb(self, *given): ...\n", "expected Attack to be a class of BaseAttack"),
    ("attack", "@dataclass(frozen=True)\nclass Attack(BaseAttack):\n    steps: int = 1\n", "to define perturb"),
    ("encoder", "class Encoder:\n    width = 3\n", "to be a class of BaseEncoder .*, got one of object"),
    ("encoder", "class Encoder(BaseEncoder):\n    width = 3\n", "expected Encoder to define forward, found no such"),
    ("encoder", ENCODER + "    widths = 3\n", r"Encoder\.widths is read by nothing; did you mean width\?"),
    ("encoder", ENCODER + "    foldable = 3\n", r"expected Encoder\.foldable as bool, got 3"),
    ("dataset", DATASET + "    main_esp = 0.1\n", r"Dataset\.main_esp is read by nothing; did you mean main_eps\?"),
    ("dataset", DATASET + "    eps = 0.1\n", r"expected Dataset\.eps as tuple\[float, \.\.\.\], got 0\.1"),
    ("dataset", DATASET + "    level = 'quik'\n", r"expected Dataset\.level as .*got 'quik'"),
    ("dataset", DATASET + "    OVERRIDES = {'mulit': {'views': 4}}\n", "unknown trait 'mulit'; did you mean 'multi'"),
    ("dataset", "class Dataset:\n    def load(self, root, split): ...\n", "to be a class of BaseDataset"),
    ("dataset", "class Dataset(BaseDataset): ...\n", "expected Dataset to define load"),
    ("dataset", "class Dataset(EncodedDataset): ...\n", "expected Dataset to define listing"),
    ("tracker", "class Tracker:\n    def ended(self, run, record): ...\n",
     r"to be a class of Hook \(bench\.tracking\.hooks\)"),
    ("tracker", "class Tracker(Hook):\n    def on_ended(self, run, record): ...\n",
     "expected Tracker to define started, progress, evaluated or ended, found none of them"),
]  # fmt: skip
KEPT = [
    ("method", CONFIG + "    mine: float = 1\n    least_views = 1\n    _own = 3\n    fixed: ClassVar = 4\n"
     "    act = abs\n    @property\n    def twice(self): ...\n"),
    ("method", "class Config(BaseConfig):\n    '''Nothing of its own.'''\n"),
    ("method", CONFIG + ONE + "Method.losses = Method.loss\nMethod.temperature = 0.1\n"),
    ("attack", ATTACK + "    space = 'crop'\n    steps: int = 3\n"),
    ("encoder", ENCODER + "    width = 3\n    size = (4, 4)\n    foldable = True\n    own = 3\n"),
    ("dataset", DATASET + "    own = 3\n    eps = (0.1,)\n    OVERRIDES: ClassVar = {'multi pgd': {'views': 4}}\n"),
    ("tracker", "class Tracker(Hook):\n    def ended(self, run, record): ...\n"),
]  # fmt: skip


@pytest.fixture
def written(tmp_path):
    """Writes a plug-in file and gives its path; what it leaves in sys.modules goes away."""
    before = set(sys.modules)

    def write(text, name="mine.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(HEAD + text)
        return str(path)

    yield write
    for name in set(sys.modules) - before:
        if name.startswith(registry.FILE):
            del sys.modules[name]


@pytest.mark.parametrize(("kind", "text", "message"), LOST)
def test_what_would_be_lost_is_refused_by_its_name(written, kind, text, message):
    with pytest.raises(UsageError, match=message) as caught:
        registry.load(kind, written(text))
    assert str(caught.value).startswith(f"the {kind} file ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "text"), KEPT)
def test_what_is_heard_is_taken(written, kind, text):
    assert registry.load(kind, written(text)).__name__.startswith(registry.FILE)


def test_a_file_in_the_folder_and_an_entry_point_are_held_to_the_same(written, tmp_path, monkeypatch):
    text = CONFIG + "    lr = 0.001\n"
    place = tmp_path / "their_methods"
    written(text, "their_methods/theirs.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "folder", lambda kind: place)
    monkeypatch.setitem(registry.PACKAGES, "method", "their_methods")
    with pytest.raises(UsageError, match=r"the method theirs: Config\.lr is no setting"):
        registry.load("method", "theirs")
    point = EntryPoint("far", "their_methods.theirs", "bench.methods")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **given: [point])
    with pytest.raises(UsageError, match=r"the method far of their_methods\.theirs: Config\.lr is no setting"):
        registry.load("method", "far")


def test_two_files_of_one_name_are_two_modules(written):
    first, second = (
        registry.load("method", written(CONFIG + f"    mine: int = {n}\n", f"{n}/mine.py")) for n in (1, 2)
    )
    assert (first.Config().mine, second.Config().mine) == (1, 2)
    assert sys.modules[first.__name__] is first
    assert sys.modules[second.__name__] is second
