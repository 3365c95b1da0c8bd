"""Methods as a user would write them (tests/plugins), through the command line: trained, killed, verified, reported."""

import csv
from pathlib import Path

import pypdf
import pytest
import torch
from report_fixtures import tables_only
from tiny_fixtures import build_tiny
from torch.utils.flop_counter import FlopCounterMode

from bench.device.meters import Meter
from bench.random import Draws
from bench.runs import measuring
from bench.spec import Budget, RunSpec, UsageError
from bench.storage.store import RunFolder, load_manifest
from bench.training.state import begun
from bench.training.step import set_rates, tell, update
from bench.training.train import Keeper, train
from methods.common.optim import warmed
from tests.commands.test_cli import bench
from tests.plugins import PLUGINS

CPU = torch.device("cpu")
METHODS = Path(__file__).parents[2] / "methods"
SETTINGS = {"batch": 20, "steps": 2, "feature_width": 16, "hidden_width": 16, "embedding_width": 8}
PASSES = {  # by hand, for two views and two steps of PGD: forward, backward to the input, backward to the weights
    "momentum": (1 + 1, 1, 1),  # the teacher goes forward only
    "dual_norm": (2 * 2 + 2 + 2, 2 * 2 + 2 + 2, 2 + 2),  # the attack, the clean pair, the moved pair
    "own_optimizer": (2, 2, 2),
    "staged": ((2 + 2 + 2 * 2 + 2 + 2) / 2, (2 + 2 * 2 + 2) / 2, 2),  # half of the updates clean; the teacher twice
}
DYING = '''

import os
import signal
from pathlib import Path

LIVES = Path(__file__).with_suffix(".lives")  # one line for each process that was killed


class Method(Method):
    """The same, but its process is killed after so many updates, those of warm-ups included."""

    made = 0

    def after_update(self):
        super().after_update()
        self.made += 1
        lives = LIVES.read_text().splitlines() if LIVES.exists() else []
        if len(lives) < len(DEATHS) and self.made == DEATHS[len(lives)]:
            LIVES.write_text("\\n".join([*lives, "killed"]))
            os.kill(os.getpid(), signal.SIGKILL)
'''


def command(file: Path, out: Path, *more: str, budget: str = "12up") -> int:
    """Exit code of a tiny run of a method's file."""
    small = [word for name, value in SETTINGS.items() for word in ("--set", f"all.{name}={value}")]
    data = ["--data", "digits", "--train-images", "60", "--test-images", "20", "--threads", "1", "--device", "cpu"]
    scoring = ["--attacks", "pgd", "--protocols", "linear", "--audit", "off", "--eps", "0.1"]
    return bench("run", "--methods", str(file), "--budget", budget, *data, *scoring, *small, "--out", str(out), *more)


def folder_of(out: Path) -> RunFolder:
    (spec,) = load_manifest(out).runs
    assert isinstance(spec, RunSpec)
    return RunFolder(out, spec)


def tiny(file: Path, **settings):
    """The method of a file on a small encoder."""
    return build_tiny(str(file), steps=2, **settings)


@pytest.mark.ci
@pytest.mark.parametrize("name", PASSES)
def test_is_trained_counted_and_verified(name, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(measuring, "measure_plan", lambda *given: [])
    with tables_only():
        assert command(PLUGINS[name], out) == 0
    train = folder_of(out).record().train
    assert (train.status, train.updates) == ("finished", 12)
    assert (train.forward_per_image, train.backward_input_per_image, train.backward_weight_per_image) == PASSES[name]
    assert train.flops_per_image > 0
    rows = list(csv.DictReader((out / "results.csv").read_text(encoding="utf-8").splitlines()))
    assert {row["method"] for row in rows} == {name}
    assert {row["attack"] for row in rows} >= {"none", "pgd"}
    assert {row["adversary"] for row in rows} == {"pgd" if name in ("dual_norm", "staged") else "none"}
    assert bench("verify", str(out)) == 0


@pytest.mark.ci
@pytest.mark.parametrize(("name", "deaths"), [("dynacl", [4]), ("advcl", [7, 7, 7])])
def test_is_killed_and_ends_in_the_same_weights(name, deaths, tmp_path):
    """One in stages is killed in each of them. The plan makes a warm-up and an update of each stage, and is to live."""
    file, text = tmp_path / f"my_{name}.py", (PLUGINS.get(name) or METHODS / f"{name}.py").read_text(encoding="utf-8")
    file.write_text(f"{text}\n\nDEATHS = {deaths}\n{DYING}", encoding="utf-8")
    shares, budget = [], "12up"
    if name == "advcl":
        budget = "18up"
        for setting in ("teacher_share=1/3", "cluster_share=2/9", "student_batch=20"):
            shares += ["--set", f"all.{setting}"]
    for _ in deaths:
        assert command(file, tmp_path / "killed", "--checkpoint-every", "0.001s", *shares, budget=budget) == 3
    assert command(file, tmp_path / "killed", "--checkpoint-every", "0.001s", *shares, budget=budget) == 0
    killed = folder_of(tmp_path / "killed").record().train
    assert killed.preemptions == len(deaths)
    assert command(file, tmp_path / "whole", *shares, budget=budget) == 0  # all its lives are spent
    whole = folder_of(tmp_path / "whole").record().train
    assert (whole.preemptions, whole.updates) == (0, killed.updates)
    assert whole.encoder_sha256 == killed.encoder_sha256
    without_time = [[{**cost, "seconds": 0, "first_seconds": 0} for cost in run.stages] for run in (whole, killed)]
    assert without_time[0] == without_time[1]


@pytest.mark.parametrize("name", PASSES)
def test_flops_are_those_that_torch_counts(name, digits):
    method, images = tiny(PLUGINS[name]), digits.first(6)
    training = begun(method.train(), len(images), Budget.parse("12up"), torch.device("cpu"))
    for number in range(len(training.stages)):
        if number:
            training.enter()
        with Meter(1) as ours:
            one_update(training, images)
        with FlopCounterMode(display=False) as theirs:
            one_update(training, images)
        assert ours.flops == theirs.get_total_flops() > 0


def one_update(training, images):
    ids, method = torch.arange(6), training.method
    draws = Draws(0, 0, ids, method.config.views)
    tell(training, images, ids)
    for loss in training.adversary.losses(method, method.augment(images.images, draws), draws=draws):
        update(training, loss)


class TestStages:
    @pytest.mark.ci
    def test_share_one_budget_and_say_what_each_has_cost(self, tmp_path):
        """Planned, trained and reported by the whole command."""
        assert command(PLUGINS["staged"], tmp_path / "run", "--set", "all.teacher_share=0.25") == 0
        assert "staged" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
        pages = pypdf.PdfReader(tmp_path / "run" / "report.pdf").pages
        assert "staged" in "".join(page.extract_text() for page in pages)
        train = folder_of(tmp_path / "run").record().train
        costs = [(cost["name"], cost["updates"], tuple(cost["passes"])) for cost in train.stages]
        shown = 20.0  # images of a batch
        assert costs == [
            ("teacher", 3, (2 * shown, 2 * shown, 2 * shown)),
            ("student", 9, (10 * shown, 6 * shown, 2 * shown)),
        ]
        assert sum(cost["seconds"] for cost in train.stages) == pytest.approx(train.train_seconds)
        assert train.last_lr == pytest.approx(
            0.05 * warmed(8 / 9, 0.1)
        )  # of its own, on the way down from its own peak

    def test_take_each_snapshot_once(self, digits):
        taken = []
        keeper = Keeper(
            marks=(25, 50, 75, 100), snapshot=lambda mark, training: taken.append((mark, training.clock.updates))
        )
        train(tiny(PLUGINS["staged"]), digits.first(12), Budget.parse("8up"), 0, CPU, keeper=keeper)
        assert taken == [(25, 2), (50, 4), (75, 6), (100, 8)]

    def test_one_that_no_update_fits_into_is_named(self, digits):
        result = train(tiny(PLUGINS["staged"]), digits.first(12), Budget.parse("1up"), 0, CPU)
        assert (result.status, result.updates) == ("failed", 1)
        assert result.note.startswith("not one update of teacher fits into 1up")

    def test_whose_shares_are_no_whole_are_refused(self, tmp_path, digits):
        file = tmp_path / "half.py"
        text = PLUGINS["staged"].read_text(encoding="utf-8")
        file.write_text(text.replace("Stage(1 - c.teacher_share", "Stage(0.25"), encoding="utf-8")
        with pytest.raises(UsageError, match=r"above 0 and sum to 1, got \[0\.5, 0\.25\]"):
            train(tiny(file), digits.first(12), Budget.parse("8up"), 0, CPU)


def test_the_teacher_follows_the_weights_at_a_rate_that_rises_with_the_progress():
    method = tiny(PLUGINS["momentum"], rate=0.5)
    before = [weight.clone() for weight in method.teacher.parameters()]
    with torch.no_grad():
        for weight in [*method.encoder.parameters(), *method.projector.parameters()]:
            weight.add_(1.0)
    for progress, share in ((0.0, 0.5), (0.5, 0.25), (1.0, 0.0)):  # 1 - tau, by equation of section 3.2
        method.progress = progress
        expected = [
            weight + share * (student - weight)
            for weight, student in zip(
                method.teacher.parameters(),
                [*method.encoder.parameters(), *method.projector.parameters()],
                strict=True,
            )
        ]
        method.after_update()
        for weight, value in zip(method.teacher.parameters(), expected, strict=True):
            torch.testing.assert_close(weight, value)
    assert not any(weight.requires_grad for weight in method.teacher.parameters())
    assert len(before) == len(expected)


def test_each_group_has_its_rate_times_the_schedule(digits):
    method = tiny(PLUGINS["own_optimizer"])
    training = begun(method.train(), 60, Budget.parse("10up"), torch.device("cpu"))
    rates = []
    for updates in (0, 1, 2, 6, 10):
        training.clock.updates = updates
        set_rates(training)
        rates.append([round(group["lr"] / 0.03, 6) for group in training.optimizer.param_groups])
    assert rates == [[0, 0], [0.5, 5], [1, 10], [0.5, 5], [0, 0]]


def test_what_is_kept_has_the_names_of_a_plain_encoder_and_the_statistics_of_the_moved_views(digits):
    method = tiny(PLUGINS["dual_norm"]).train()
    draws = Draws(0, 0, torch.arange(6), 2)
    views = method.augment(digits.first(6).images, draws)
    method.objective(views, 1 - views)
    kept, plain = method.kept(), tiny(PLUGINS["own_optimizer"]).encoder
    assert kept.state_dict().keys() == plain.state_dict().keys()
    norms = method.encoder.backbone[1].norms
    assert torch.equal(kept.backbone[1].running_mean, norms[1].running_mean)
    assert not torch.equal(norms[0].running_mean, norms[1].running_mean)
