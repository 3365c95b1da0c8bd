"""The pages are true: their Python runs, their plug-ins do what they say, their commands are those of the program."""

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
import torchvision
import yaml
from evaluation_fixtures import QUICK
from evaluation_fixtures import run as evaluate_tiny
from report_fixtures import manifest, records, write

from attacks.common.base import cross_entropy
from bench import registry
from bench.cli import cli
from bench.commands.options import gather
from bench.data.images import load_data
from bench.encoders.common.build import build_encoder
from bench.evaluation.external_model import call_factory, check_module, load_module
from bench.options.options import Options
from bench.options.resolve import resolve
from bench.ranges import around, between
from bench.shown import Shown
from bench.spec import Budget, DataSpec, RunSpec, ThreatModel
from bench.tracking.tracking import parse_trackers
from bench.training.train import train
from bench.tuning.space import ground, read_spaces
from methods import simclr
from methods.common.base import ranges
from methods.common.base import resolve as resolve_settings
from tests.plugins import PLUGINS
from tests.tracking.test_hooks import tell

ROOT = Path(__file__).parent.parent
MEASURED = ("measurements.md", "performance.md")  # figures of other days and machines
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name not in MEASURED)]
METHODS_IN_DEPTH = ("momentum", "dual_norm", "staged", "own_optimizer")
QUESTIONS = (
    "quick-start",
    "add-a-method",
    "methods-in-depth",
    "add-an-attack",
    "add-a-protocol",
    "add-an-encoder",
    "add-a-dataset",
    "evaluate-your-encoder",
)
QUESTIONS += ("methods", "heads", "threats", "tuning", "the-paper", "read-the-report", "numbers", "clock", "audit")
QUESTIONS += ("statistics", "example", "findings", "options", "data", "faults", "several-gpus", "cluster", "ci", "code")
QUESTIONS += ("tree",)
FENCES = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CPU = torch.device("cpu")
BUDGET = Budget.parse("1up")


def blocks(page, *kinds):
    return [text for kind, text in FENCES.findall(page.read_text(encoding="utf-8")) if kind in kinds]


def is_plugin(text):
    """A file opens with its docstring; what does not is a notebook's cell."""
    return text.startswith('"""')


CELLS = [(page.name, text) for page in PAGES for text in blocks(page, "python") if not is_plugin(text)]
COMMANDS = [
    (page.name, line.partition("  #")[0].strip())
    for page in PAGES
    for text in blocks(page, "", "sh", "console")
    for line in text.replace("\\\n", " ").splitlines()
    if line.removeprefix("$ ").startswith("bench ")
]


@pytest.fixture
def plugin(tmp_path):
    """``plugin("page", "name.py")``: the plug-in that a page prints, as a file."""
    before = set(sys.modules)

    def write(page, name):
        (text,) = [text for text in blocks(ROOT / "docs" / f"{page}.md", "python") if is_plugin(text)]
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    yield write
    for name in set(sys.modules) - before:
        if name.startswith(("bench_plugin_", "mymodel")):
            del sys.modules[name]


def test_every_page_is_there_and_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"(docs/{name}.md)" in readme for name in QUESTIONS)
    assert {f"{name}.md" for name in QUESTIONS} <= {page.name for page in PAGES}
    assert len(CELLS) >= 7
    assert len(COMMANDS) >= 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).is_file(), target


def test_every_page_has_its_place_on_the_site():
    """Links and names of code are checked where the site is built, by ``make docs``."""
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    beside = ["index.md", "contributing.md", "security.md", "changelog.md"]  # made of files beside docs/: docs/hooks.py
    assert sorted(re.findall(r"[\w/-]+\.md", str(navigation))) == sorted(pages + beside)


def test_the_ranges_that_a_page_shows(plugin, tmp_path):
    module = registry.load("method", plugin("tuning", "ranged.py"))
    assert ranges(module.Config) == ranges(simclr.Config) | {"temperature": around(5), "gray": between(0.0, 0.5)}
    (tmp_path / "space.toml").write_text(*blocks(ROOT / "docs" / "tuning.md", "toml"))
    spaces, overrides = read_spaces(tmp_path / "space.toml"), registry.load("dataset", "digits").Dataset().OVERRIDES
    specs = [RunSpec(method=name, data=DataSpec(name="digits"), budget=BUDGET) for name in ("simclr", "cf_amc_ssl")]
    searched = [" ".join(ground(spec, overrides, spaces).space) for spec in specs]
    assert searched == ["lr temperature attack_pair", "lr invariance coding_eps"]


def test_the_methods_in_depth_are_the_files_that_are_tested():
    shown = [text for text in blocks(ROOT / "docs" / "methods-in-depth.md", "python") if is_plugin(text)]
    assert shown == [PLUGINS[name].read_text(encoding="utf-8") for name in METHODS_IN_DEPTH]


# ---------------------------------------------------------------- cells of notebooks


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder that holds runs/digits, runs/mine and runs/heads."""
    here = tmp_path_factory.mktemp("docs")
    asked = manifest(("simclr_adv", "cf_amc_ssl"))
    for name in ("digits", "mine", "heads"):
        write(here / "runs" / name, asked, records(asked, diverged=()))
    torch.save({"state_dict": {"model.weight": torch.ones(2, 3).mT}}, here / "model.pth")
    return here


@pytest.mark.parametrize(("page", "cell"), CELLS, ids=[f"{page}-{n}" for n, (page, _) in enumerate(CELLS)])
def test_a_cell_runs_and_its_last_line_shows_something(runs, monkeypatch, capsys, page, cell):
    monkeypatch.chdir(runs)
    *before, last = cell.rstrip().splitlines()
    named = {}
    if last.startswith((" ", "assert")):
        exec(cell, named)
        assert capsys.readouterr().out or last.startswith("assert")
    else:
        exec("\n".join(before), named)
        assert len(eval(last, named)) > 0


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page}: {line}" for page, line in COMMANDS])
def test_a_command_is_one_of_the_command_line(capsys, page, line):
    """Its options parse; those of a run are checked as far as no data and no file of the reader's is needed."""
    name, *words = shlex.split(line.removeprefix("$ "))[1:]
    command, arguments = cli.commands[name], list(words)
    while isinstance(command, click.Group):  # bench baseline update
        command = command.commands[arguments.pop(0)]
    given = command.make_context(name, arguments).params
    if name in ("run", "plan"):
        shared = {key: value for key, value in given.items() if key in {*Options.model_fields, "suite"}}
        options = gather(shared)
        assert isinstance(options, Options)
        if options.data == "digits" and "mine" not in line:
            specs, *_ = resolve(options)
            assert specs
    if name == "list":
        assert cli.main([name, *words], standalone_mode=False) == 0
        assert len(capsys.readouterr().out.splitlines()) >= 3


def test_a_command_that_is_none_is_found():
    with pytest.raises(click.UsageError):
        cli.commands["run"].make_context("run", ["--methodz", "all"])


# ---------------------------------------------------------------- plug-ins, used for real


def test_the_method_trains(plugin, digits):
    module = registry.load("method", plugin("add-a-method", "mine.py"))
    dataset = registry.load("dataset", "digits").Dataset()
    config, _ = resolve_settings(module.Config, "digits", dataset.OVERRIDES, {"batch": 8, "feature_width": 16})
    torch.manual_seed(0)
    method = module.Method(config).attach(build_encoder("resnet8", 1, 16))
    before = [parameter.clone() for parameter in method.encoder.parameters()]
    result = train(method, digits.first(24), Budget.parse("3up"), 0, CPU)
    assert (result.status, result.updates) == ("finished", 3)
    assert config.adversary == "pgd"
    assert result.backward_input_per_image > 0  # the adversary climbed
    assert any(not a.equal(b) for a, b in zip(before, method.encoder.parameters(), strict=True))


def test_the_attack_stays_in_the_ball_and_climbs(plugin, digits):
    attack = registry.load("attack", plugin("add-an-attack", "mine.py")).Attack()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10)).requires_grad_(False)
    images, labels = digits.images[:16].float() / 255, digits.labels[:16]
    moved = attack.perturb(model, images, labels, ThreatModel(eps=0.1), torch.Generator().manual_seed(0))
    assert float((moved - images).abs().max()) <= 0.1 + 1e-6
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    assert (cross_entropy(model(moved), labels) > cross_entropy(model(images), labels)).all()
    assert attack.describe(10)["steps"] == 10


def test_the_encoder_is_one_and_its_passes_are_counted(plugin, digits):
    encoder = build_encoder(plugin("add-an-encoder", "mine.py"), 1, 16)
    config = replace(registry.load("method", "simclr").Config(), batch=8, feature_width=16)
    result = train(registry.load("method", "simclr").Method(config).attach(encoder), digits.first(8), BUDGET, 0, CPU)
    passes = result.forward_per_image, result.backward_input_per_image, result.backward_weight_per_image
    assert passes == (2, 2, 2)


def test_the_protocol_is_fitted_stored_and_attacked(plugin):
    path = plugin("add-a-protocol", "mine.py")
    spec = QUICK.model_copy(
        update={"protocols": ("mine",), "own_protocols": {"mine": Shown("Nearest class mean", True, path=path)}}
    )
    shelf = evaluate_tiny(spec)
    assert set(shelf.probes["mine"][1]) == {"means"}
    assert shelf.results["mine", "pgd", 0.02].correct < shelf.results["mine", "none", 0.0].correct


def test_the_dataset_loads_and_a_method_takes_it(plugin):
    dataset = registry.load("dataset", plugin("add-a-dataset", "stripes.py")).Dataset()
    images, test = load_data(dataset, DataSpec(name="stripes", train_images=60))
    assert (len(images), len(test), images.classes, images.image_shape) == (60, 50, 2, (3, 16, 16))
    assert images.labels[:4].sort().values.tolist() == [0, 0, 1, 1]  # balanced
    config, settings = resolve_settings(registry.load("method", "simclr").Config, "stripes", dataset.OVERRIDES, {})
    assert {s.name: s.source for s in settings}["feature_width"] == "stripes"
    config = replace(config, batch=8, feature_width=16)
    method = registry.load("method", "simclr").Method(config).attach(build_encoder(dataset.encoder, 3, 16))
    assert train(method, images, Budget.parse("2up"), 0, CPU).updates == 2


def test_the_factories_of_ones_own_are_usable(plugin, monkeypatch, tmp_path):
    plugin("evaluate-your-encoder", "mymodel.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    test = registry.load("dataset", "digits").Dataset().load(Path(), "test")
    assert isinstance(call_factory("mymodel:encoder"), torch.nn.Module)
    for kind, width in (("encoder", 32), ("classifier", 10)):
        module = load_module(f"mymodel:{kind}", None, 1, (0.3, 0.35))
        assert check_module(module, kind, test, CPU, kind) == width
    torch.save(torchvision.models.resnet18().state_dict(), "resnet18.pth")
    assert call_factory("mymodel:from_torchvision").eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 512)


def test_the_tracker_hears_of_a_run(plugin, capsys):
    (path,) = parse_trackers(plugin("quick-start", "mine.py"))
    tell(registry.load("tracker", path).Tracker())
    assert capsys.readouterr().out.splitlines() == [
        "emp_ssl-s3 begins, or goes on, under the id 0123456789abcdef",
        "50% of the budget, loss 1.5",
        "accuracy/linear/pgd/8-255 0.75",
        "emp_ssl-s3 finished",
    ]
