"""The baseline of the gate: what is read from a run, and a file that is text, complete and never trusted."""

import json
from pathlib import Path

import pytest
from report_fixtures import MACHINE, manifest, records
from store_fixtures import probe

from bench.record import Manifest, Record
from bench.spec import Budget, UsageError
from reports.regression import BASELINES, Baseline, Reading, default_baseline

METHODS = ("emp_ssl", "cf_amc_ssl")


def asked(seeds: int = 3) -> Manifest:
    """A run in updates, so that its counts repeat."""
    budget, wanted = Budget.parse("60up"), manifest(METHODS, seeds)
    runs = [run.model_copy(update={"budget": budget}) for run in wanted.runs]
    return wanted.model_copy(update={"budget": budget, "runs": runs})


def reading(seeds: int = 3) -> Reading:
    wanted = asked(seeds)
    return Reading.of(wanted, records(wanted))


def baseline(seeds: int = 15, **changes: object) -> Baseline:
    return Baseline.model_validate(dict(reading(seeds)) | {"reason": "a test", "updated": "2026-01-01"} | changes)


class TestReading:
    def test_a_value_for_each_seed_of_every_metric(self) -> None:
        wanted = asked()
        found = Reading.of(wanted, records(wanted))
        assert {len(series.values) for series in found.series} == {3}
        clean = next(s for s in found.series if (s.method, s.where) == ("cf_amc_ssl", "linear, clean"))
        counts = [r.correct for each in records(wanted) if each.spec.row == "cf_amc_ssl" for r in each.results[:1]]
        assert clean.values == counts
        assert (clean.metric, clean.total) == ("clean accuracy", 360)
        passes = next(s for s in found.series if s.key == ("cf_amc_ssl", "", "passes per image"))
        assert passes.values == [3 * 16.0 * 3] * 3  # three kinds of passes of 16 views in 3 replays

    def test_a_run_that_is_missing_is_a_gap(self) -> None:
        wanted = asked()
        found = Reading.of(wanted, [each for each in records(wanted) if each.spec.name != "emp_ssl-s1"])
        by_key = {series.key: series for series in found.series}
        assert by_key["emp_ssl", "", "status"].values == ["finished", "missing", "finished"]
        assert by_key["emp_ssl", "linear, clean", "clean accuracy"].values[1] is None

    def test_the_curve_is_told_from_what_was_asked_for(self) -> None:
        metrics = {series.where: series.metric for series in reading().series}
        assert metrics["linear, pgd at eps 0.1"] == "robust accuracy"
        assert metrics["linear, pgd at eps 0.15"] == "accuracy on the curve"

    def test_the_probe_tells_its_held_out_accuracy_and_gradient(self) -> None:
        wanted = asked(1)
        found = [Record.model_validate(dict(each) | {"probes": [probe()]}) for each in records(wanted)]
        series = {each.key: each for each in Reading.of(wanted, found).series}
        assert series["emp_ssl", "linear, held out", "probe accuracy"].values == [5]
        assert series["emp_ssl", "linear", "probe gradient norm"].values == [1e-7]

    def test_counts_over_different_images_are_no_series(self) -> None:
        wanted = asked(2)
        found = records(wanted)
        short = found[0].results[0].model_copy(update={"outcomes": "1"})
        found[0] = found[0].model_copy(update={"results": [short]})
        with pytest.raises(UsageError, match="1 images and 360"):
            Reading.of(wanted, found)

    def test_a_commit_with_changes_says_so(self) -> None:
        machine = MACHINE.model_copy(update={"dirty": True})
        assert Reading.of(asked().model_copy(update={"environment": machine}), []).commit == f"{MACHINE.commit}+"


class TestFile:
    def test_text_and_back_a_series_a_line(self, tmp_path: Path) -> None:
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):  # as an editor may save it
            (tmp_path / "b.json").write_text(baseline().text(), encoding=encoding)
            assert Baseline.read(tmp_path / "b.json") == baseline()
        lines = [line for line in baseline().text().splitlines() if '"metric"' in line]
        assert len(lines) == len(baseline().series)

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"series": []}', "\udcff"])
    def test_damaged(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "b.json").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(UsageError, match=r"is not a baseline|cannot read the baseline .*: byte 0 is no UTF-8"):
            Baseline.read(tmp_path / "b.json")

    def test_a_folder_is_no_baseline(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot read"):
            Baseline.read(tmp_path)

    def test_one_without_counts_never_passes(self, tmp_path: Path) -> None:
        (tmp_path / "b.json").write_text(baseline(series=[]).text())
        with pytest.raises(UsageError, match="nothing to compare with"):
            Baseline.read(tmp_path / "b.json")

    def test_a_series_of_another_length(self, tmp_path: Path) -> None:
        (tmp_path / "b.json").write_text(baseline(seeds=2).text().replace('"seeds": [\n  0,', '"seeds": [\n  7,\n  0,'))
        with pytest.raises(UsageError, match="expected 3 values"):
            Baseline.read(tmp_path / "b.json")

    @pytest.mark.parametrize(("metric", "values"), [("audit", [1]), ("peak memory", ["much"]), ("clean accuracy", [1])])
    def test_values_of_another_kind(self, metric: str, values: list[object], tmp_path: Path) -> None:
        strange = {"method": "emp_ssl", "metric": metric, "values": values}
        series = [*map(dict, baseline(1).series), strange]
        (tmp_path / "b.json").write_text(baseline(1, series=series).text())
        with pytest.raises(UsageError, match="values of another kind"):
            Baseline.read(tmp_path / "b.json")

    @pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "x.pt"])
    def test_weights_lie_beside_the_baseline(self, name: str, tmp_path: Path) -> None:
        text = json.loads(default_baseline("ci").read_text())
        text["fixed"][0]["weights"] = name
        (tmp_path / "b.json").write_text(json.dumps(text))
        with pytest.raises(UsageError, match=r"fixed\.0\.weights"):
            Baseline.read(tmp_path / "b.json")

    def test_code_that_a_baseline_names_is_refused(self, tmp_path: Path) -> None:
        text = json.loads(default_baseline("ci").read_text())
        text["fixed"][0]["spec"]["method_path"] = "/somewhere/method.py"
        (tmp_path / "b.json").write_text(json.dumps(text))
        with pytest.raises(UsageError, match="which is code"):
            Baseline.read(tmp_path / "b.json")


class TestOfTheProject:
    def test_it_says_what_it_is_of_and_has_enough_runs(self) -> None:
        stored = Baseline.read(default_baseline("ci"))
        assert {series.method for series in stored.series} == {"emp_ssl", "cf_amc_ssl"}
        assert len(stored.seeds) >= 12
        assert stored.budget == "60up"
        assert stored.commit
        assert stored.reason
        assert all(None not in series.values for series in stored.series)

    def test_each_method_has_weights_below_a_megabyte_and_a_thousand_outcomes(self) -> None:
        for each in Baseline.read(default_baseline("ci")).fixed:
            assert 0 < (BASELINES / each.weights).stat().st_size < 10**6
            assert len(each.attacked) == len(each.clean) == 1000
            assert 0.1 < each.attacked.count("1") / 1000 < 0.9  # an attack has something to break and to leave
            assert each.speed is not None
