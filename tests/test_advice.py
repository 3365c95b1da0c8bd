"""What a message advises works: each advice is done, and what was refused is taken."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
from registry_fixtures import METHOD, with_loss
from training_fixtures import flat

from bench import registry
from bench.device import device
from bench.engines import local
from bench.options.options import Options, chosen_rows, parse_settings
from bench.spec import Budget, DataSpec, RunSpec, UsageError, parse_eps
from bench.tracking import tracking
from methods.common.base import resolve

ROOT = Path(__file__).parent.parent


def refusal(call, *arguments):
    """The message with which a call is refused."""
    with pytest.raises(UsageError) as refused:
        call(*arguments)
    return str(refused.value)


@pytest.fixture
def load(tmp_path):
    """Loads a method file of this text; what it leaves in sys.modules goes away."""
    before = set(sys.modules)

    def write(text):
        (tmp_path / "mine.py").write_text(text)
        return registry.load("method", str(tmp_path / "mine.py"))

    yield write
    for name in set(sys.modules) - before:
        if name.startswith(registry.FILE):
            del sys.modules[name]


def test_a_field_is_written_as_it_is_advised(load):
    for line in ("lr = 0.5", "own = 3", "names = ('a',)"):
        broken = METHOD.replace("lr: float = 0.25", line)
        advice = re.search(r"write (.+) = (.+), or (.+: ClassVar)", refusal(load, broken)).groups()
        module = load(broken.replace(line, f"{advice[0]} = {advice[1]}"))
        settings = {each.name: each.value for each in resolve(module.Config, "digits", {}, {})[1]}
        assert settings[line.partition(" ")[0]] == eval(line.partition("= ")[2])
    load("from typing import ClassVar\n" + METHOD.replace("lr: float = 0.25", "own: ClassVar = 3"))


def test_the_decorator_is_written_as_it_is_advised(load):
    broken = METHOD.replace("@dataclass(frozen=True)\n", "")
    decorator, above = re.search(r"write (@.+) above (class \w+)", refusal(load, broken)).groups()
    assert load(broken.replace(above, f"{decorator}\n{above}")).Config().lr == 0.25


def test_a_loss_returns_its_mean_as_it_is_advised(load, digits):
    kind = load(with_loss("return super().loss(views).expand(3)")).Method
    method = flat(kind=kind)
    views = digits.pictures(slice(4), "cpu").expand(2, 4, 1, 16, 16)
    assert method.loss(views).mean().ndim == 0


@pytest.mark.parametrize(("jobs", "ranks"), [(5, 1), (3, 1), (3, 2), (2, 3), (9, 4)])
def test_threads_and_jobs_as_they_are_advised(monkeypatch, jobs, ranks):
    monkeypatch.setattr(local, "cores", lambda: 4)
    spec = RunSpec(method="m", data=DataSpec(name="digits"), budget=Budget.parse("9s"), gpus_per_run=ranks)
    advice = re.search(r"use (?:--jobs (\d+) )?--threads (\d+)", refusal(local.check_cores, [spec], jobs))
    fewer = int(advice[1] or jobs)
    assert local.check_cores([spec.model_copy(update={"threads": int(advice[2])})], fewer) == fewer


def test_every_extra_that_is_advised_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    code = "".join(file.read_text() for file in (ROOT / "bench").rglob("*.py"))
    advised = set(re.findall(r"robust-ssl-bench\[(\w+)\]", code)) | set(registry.names("tracker"))
    assert advised <= set(extras)
    assert len(advised) >= 7


def test_a_tracker_of_ones_own_that_needs_a_package_names_that(tmp_path):
    text = "from bench.tracking.hooks import Hook\nPACKAGE = 'not_there'\n"
    text += "class Tracker(Hook):\n    def ended(self, *a): ..."
    (tmp_path / "mine.py").write_text(text)
    told = refusal(tracking.parse_trackers, f"{tmp_path}/mine.py")
    assert told.endswith("needs not_there: pip install not_there")


@pytest.mark.parametrize(
    ("call", "given", "pattern", "works"),
    [
        (parse_eps, "8", r"did you mean (\S+)\?", parse_eps),
        (device.resolve, "cuda:99", r"try --device (\w+)", device.resolve),
        (Budget.parse, "2 hours", r"(90s), 30m", Budget.parse),
        (lambda name: chosen_rows(Options(methods=name)), "simclrr", r"did you mean '(\w+)'\?",
         lambda name: chosen_rows(Options(methods=name))),
        (lambda pair: parse_settings((pair,)), "lr=1", r"--set (\S+=\w+) or", lambda pair: parse_settings((pair,))),
    ],
)  # fmt: skip
def test_what_is_advised_instead_is_taken(call, given, pattern, works):
    advice = re.search(pattern, refusal(call, given))
    assert works(advice[1])
