"""Regressions planted for real: the code is changed, the gate runs, and says so.

The stored weights are the project's own, on their 1,000 images. What must be trained again takes minutes: --slow.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from evaluation_fixtures import CPU, Shelf
from evaluation_fixtures import run as evaluate
from torch import Tensor, nn

import attacks.pgd
import bench.evaluation.evaluate
import bench.evaluation.evaluated
import bench.gate.stored_weights
import bench.protocols.common.logistic
import methods.emp_ssl
from bench import registry
from bench.data.images import load_data
from bench.evaluation.evaluated import Evaluated
from bench.gate.stored_weights import fixed_images, score
from bench.record import Record, TrainResult
from bench.spec import EvalSpec, RunSpec
from bench.storage.files import read
from bench.training.train import train
from reports import gate
from reports.findings import Comparison, losses, moved
from reports.regression import BASELINES, Baseline, FixedRun, Series, default_baseline, series_of


@pytest.fixture(scope="module")
def baseline() -> Baseline:
    return Baseline.read(default_baseline("ci"))


def look_twice(baseline: Baseline, method: str) -> list[Comparison]:
    """G1 of one method as ``bench check`` does it: once, and once more with a fresh attack seed where it alarms."""
    known = baseline.model_copy(update={"fixed": [each for each in baseline.fixed if each.spec.row == method]})

    def look(seed: int) -> list[Comparison]:
        asked = [each.model_copy(update={"seed": each.seed + seed}) for each in known.fixed]
        return gate.same_weights([score(each, BASELINES, lambda event: None) for each in asked], known)

    first = look(0)
    return moved(gate.confirmed(first, look(1)) if gate.alarms(first) else first)


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained for the sake of its speed."""
    monkeypatch.setattr(bench.gate.stored_weights, "loops_an_update", lambda method, images: None)


@pytest.mark.usefixtures("untimed")
class TestStoredWeights:
    @pytest.mark.ci
    def test_attack_steps_halved(self, baseline: Baseline, monkeypatch: pytest.MonkeyPatch) -> None:
        climb = attacks.pgd.maximize

        def half(*arguments: Any, steps: int, **others: Any) -> Tensor:
            return climb(*arguments, steps=steps // 2, **others)

        monkeypatch.setattr(attacks.pgd, "maximize", half)
        (found,) = losses(look_twice(baseline, "cf_amc_ssl"))
        assert found.metric == "robust accuracy"
        assert "the attack is weaker" in found.rule
        assert found.p is not None
        assert found.p < 0.001

    def test_batch_norm_left_in_train_mode(self, baseline: Baseline, monkeypatch: pytest.MonkeyPatch) -> None:
        """The evaluation refuses to predict with it."""
        monkeypatch.setattr(bench.evaluation.evaluated, "fold_batch_norm", lambda encoder: encoder)
        monkeypatch.setattr(nn.Module, "eval", lambda self: self)
        (found,) = losses(look_twice(baseline, "emp_ssl"))
        assert found.after.startswith("failed: TrainMode: expected every module in eval mode, got train mode in ")

    @pytest.mark.slow
    def test_batch_norm_that_only_says_it_is_in_eval_mode(
        self, baseline: Baseline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        normalize = F.batch_norm

        def of_the_batch(x: Tensor, mean: Tensor, var: Tensor, *arguments: Any) -> Tensor:
            return normalize(x, None, None, arguments[0], arguments[1], True)

        monkeypatch.setattr(
            bench.evaluation.evaluated, "fold_batch_norm", lambda encoder: encoder.eval().requires_grad_(False)
        )
        monkeypatch.setattr(F, "batch_norm", of_the_batch)
        assert "robust accuracy" in {found.metric for found in losses(look_twice(baseline, "emp_ssl"))}

    @pytest.mark.slow
    @pytest.mark.parametrize("method", ["emp_ssl", "cf_amc_ssl"])
    def test_unchanged_code_alarms_under_no_attack_seed(self, baseline: Baseline, method: str) -> None:
        known = next(each for each in baseline.fixed if each.spec.row == method)
        for seed in range(1, 6):
            again = score(known.model_copy(update={"seed": seed}), BASELINES, lambda event: None)
            assert gate.alarms(gate.same_weights([again], baseline.model_copy(update={"fixed": [known]}))) == []

    def test_weights_that_are_others_are_refused(self, baseline: Baseline, tmp_path: Path) -> None:
        known = baseline.fixed[0]
        (tmp_path / known.weights).write_bytes((BASELINES / baseline.fixed[1].weights).read_bytes())
        with pytest.raises(ValueError, match="is damaged"):
            score(known, tmp_path, lambda event: None)


@pytest.mark.usefixtures("untimed")
def test_the_scores_of_all_methods_are_one_file(
    baseline: Baseline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.gate.stored_weights, "IMAGES", 20)
    events: list[dict[str, Any]] = []
    asked = [each.model_dump(mode="json") for each in baseline.fixed]
    bench.gate.stored_weights.score_all(asked, BASELINES, tmp_path / "fixed.json", events.append)
    found = read(FixedRun, tmp_path / "fixed.json").fixed
    assert [each.spec.row for each in found] == ["emp_ssl", "cf_amc_ssl"]
    assert [each.clean for each in found] == [each.clean[:20] for each in baseline.fixed]
    told = [event["name"] if event["event"] == "about" else event["attack"] for event in events]
    assert told == ["emp_ssl", "none", "pgd", "cf_amc_ssl", "none", "pgd"]


@pytest.mark.ci
def test_an_update_that_is_slower_takes_more_loops(digits: Any, tiny: Callable[..., Any]) -> None:
    """Five times the loss's work, and the calibration loop as it is."""
    usual, slow = tiny("emp_ssl"), tiny("emp_ssl")
    loss = slow.loss
    slow.loss = lambda views: torch.stack([loss(views) for _ in range(5)]).mean()
    assert bench.gate.stored_weights.loops_an_update(slow, digits) > 1.5 * bench.gate.stored_weights.loops_an_update(
        usual, digits
    )


def test_the_fixed_images_are_the_test_images_and_then_training_images() -> None:
    dataset = registry.load("dataset", "digits").Dataset()
    train_set, test_set = dataset.load(Path(), "train"), dataset.load(Path(), "test")
    images = fixed_images(train_set, test_set)
    assert len(images) == 1000
    assert images.images[:297].equal(test_set.images)
    assert images.labels[297:].equal(train_set.labels[:703])


def probed(shelf: Shelf, seeds: int) -> list[Series]:
    """The series of a method whose probes these are."""
    probes = [probe for probe, _ in shelf.probes.values()]
    spec = RunSpec.model_validate({"method": "emp_ssl", "data": {"name": "synthetic"},
                                   "budget": {"amount": 1, "unit": "updates"}})  # fmt: skip
    return series_of("emp_ssl", [Record(spec=spec, probes=probes, status="finished")] * seeds)


def test_probe_that_is_not_fitted_to_the_end(baseline: Baseline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newton's method stopped at a gradient of a hundredth."""
    spec = EvalSpec(attacks=("none",), protocols=("linear",), band_images=1)
    reading = baseline.model_copy(update={"series": probed(evaluate(spec), 6), "seeds": list(range(6))})
    honest = reading.model_copy(update={"series": probed(evaluate(spec), 3), "seeds": [7, 8, 9]})
    assert gate.alarms(gate.retrained(honest, reading)) == []
    monkeypatch.setattr(bench.protocols.common.logistic, "TOLERANCE", 1e-2)
    found = honest.model_copy(update={"series": probed(evaluate(spec), 3)})
    (alarm,) = gate.alarms(gate.retrained(found, reading))
    assert (alarm.metric, alarm.rule) == ("probe gradient norm", "at most 1e-06")
    assert float(alarm.after) > 1e-4


# ---------------------------------------------------------------- what is trained again


def train_again(baseline: Baseline, method: str, seeds: range, **settings: Any) -> list[Comparison]:
    """G2 of one method on fresh seeds, as the suite trains it, under clean images and PGD; twice where it alarms."""
    spec = next(each.spec for each in baseline.fixed if each.spec.row == method)
    spec = spec.model_copy(update={"settings": spec.settings | settings})

    def look(shift: int, only: list[Comparison] | None) -> list[Comparison]:
        records = [retrained(spec.model_copy(update={"seed": seed + shift})) for seed in seeds]
        series = [s for s in series_of(method, records) if "accuracy" in s.metric]
        known = [s for s in baseline.series if s.key in {each.key for each in series}]
        found = baseline.model_copy(update={"series": series, "seeds": [seed + shift for seed in seeds]})
        return gate.retrained(found, baseline.model_copy(update={"series": known}), only)

    first = look(0, None)
    alarms = gate.alarms(first)
    return moved(gate.confirmed(first, look(len(seeds), alarms)) if alarms else first)


def retrained(spec: RunSpec) -> Record:
    """One run, trained and scored in this process."""
    dataset = registry.load("dataset", spec.data.name).Dataset()
    train_set, test_set = load_data(dataset, spec.data)
    method, _ = bench.gate.stored_weights.build_method(spec, dataset, train_set.image_shape[0], train_set.classes)
    result: TrainResult = train(method, train_set, spec.budget, spec.seed, CPU)
    shelf = Shelf()
    scoring = spec.eval.model_copy(update={"attacks": ("pgd",)})
    it = Evaluated(method.encoder, train_set, test_set, scoring, spec.seed, CPU, shelf)
    bench.evaluation.evaluate.evaluate(it)
    probes = [probe for probe, _ in shelf.probes.values()]
    return Record(spec=spec, train=result, probes=probes, results=list(shelf.results.values()), status="finished")


@pytest.mark.slow
class TestRetrained:
    def test_unchanged_code_is_no_loss(self, baseline: Baseline) -> None:
        assert losses(train_again(baseline, "emp_ssl", range(100, 103))) == []

    def test_augmentation_dropped(self, baseline: Baseline) -> None:
        found = train_again(baseline, "cf_amc_ssl", range(100, 103), crop_scale=[1.0, 1.0], jitter_probability=0.0)
        assert {each.metric for each in losses(found)} >= {"clean accuracy"}

    def test_sign_of_a_term_of_the_loss_flipped(self, baseline: Baseline, monkeypatch: pytest.MonkeyPatch) -> None:
        invariance = methods.emp_ssl.invariance
        monkeypatch.setattr(methods.emp_ssl, "invariance", lambda z: -invariance(z))
        assert losses(train_again(baseline, "emp_ssl", range(100, 103)))
