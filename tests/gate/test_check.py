"""``bench check`` and ``bench baseline update`` as a user meets them, on stored runs: nothing is trained here."""

import functools
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from report_fixtures import manifest, records, write
from store_fixtures import probe

from bench.gate.baseline import keep_weights
from bench.gate.check import FIXED, PORTABLE, REPEAT, Visible, ask_suite, repeated, smallest_visible
from bench.identity.source import AUDIT, TRAINING, attack_part, codes, sources
from bench.record import EvalResult, Record
from bench.storage.files import load_tensors, save
from bench.storage.store import RunFolder
from reports.regression import Baseline, FixedRun, Reading, default_baseline
from tests.commands.test_cli import bench
from tests.gate.test_regression import METHODS, asked, baseline

Change = Callable[[Record], Record]
Stored = Callable[..., tuple[str, str]]


def broken(record: Record) -> Record:
    """A fifth of what stood under attack no longer does, in runs of cf_amc_ssl."""

    def worse(result: EvalResult) -> EvalResult:
        kept = result.correct - result.correct // 5
        outcomes = "1" * kept + "0" * (result.total - kept)
        return result.model_copy(update={"outcomes": outcomes}) if result.attack == "pgd" else result

    found = [worse(result) for result in record.results]
    return record.model_copy(update={"results": found}) if record.spec.row == "cf_amc_ssl" else record


def whole(record: Record) -> Record:
    return record


def made_here(record: Record) -> Record:
    """As by the code that is here: a repeat of other code is made again."""
    hashes = codes(sources([record.spec])[record.spec.row])
    results = [r.model_copy(update={"code": hashes[attack_part(r.attack)]}) for r in record.results]
    audits = [audit.model_copy(update={"code": hashes[AUDIT]}) for audit in record.audits]
    assert record.train is not None
    train = record.train.model_copy(update={"code": hashes[TRAINING]})
    return record.model_copy(update={"train": train, "results": results, "audits": audits})


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The portable kernels are those of this test alone."""
    for name in PORTABLE:
        monkeypatch.setenv(name, "")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Change, Change, int], Path]:
    """Finished runs with the repeat of cf_amc_ssl, each made once and copied: a run is many synced files."""

    @functools.cache
    def made(change: Change, again: Change, seeds: int) -> Path:
        folder, wanted = tmp_path_factory.mktemp("stored") / "run", asked(seeds)
        write(folder, wanted, list(map(change, records(wanted))))
        fresh = repeated(wanted, baseline(), {"cf_amc_ssl"})
        write(folder / REPEAT, fresh, list(map(made_here, map(again, records(fresh)))))
        return folder

    return made


@pytest.fixture
def stored_run(folders: Callable[[Change, Change, int], Path], tmp_path: Path) -> Stored:
    """(a finished run, a baseline of 15 seeds) in a folder of the test's own."""

    def copied(change: Change = whole, again: Change = whole, seeds: int = 3) -> tuple[str, str]:
        (tmp_path / "baseline.json").write_text(baseline().text())
        shutil.copytree(folders(change, again, seeds), tmp_path / "run")
        return str(tmp_path / "run"), str(tmp_path / "baseline.json")

    return copied


class TestCheck:
    def test_unchanged_is_0(self, stored_run: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run, file = stored_run()
        assert bench("check", run, "--baseline", file) == 0
        out = capsys.readouterr().out
        assert "0 losses in" in out
        assert "G0: " in out
        assert "metrics have equal counts for each seed" in out
        assert "G2 sees as often a drop of" in out
        assert re.search(
            r"^ran, all fine; smallest visible drop: [\d.]+ to [\d.]+ points after training again$", out, re.M
        )

    def test_a_loss_that_is_repeated_is_4_with_a_finding_a_line(
        self, stored_run: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run, file = stored_run(broken, broken)
        assert bench("check", run, "--baseline", file) == 4
        found = capsys.readouterr()
        lost = [line for line in found.out.splitlines() if line.startswith("LOSS ")]
        assert any(line.startswith("LOSS cf_amc_ssl, linear, pgd at eps 0.1, robust accuracy: ") for line in lost)
        assert all("cf_amc_ssl" in line and "(G2: t-test below 0.01" in line and ", p = " in line for line in lost)
        assert f"{len(lost)} losses in" in found.out
        assert "all fine" not in found.out
        assert "alarm, to be repeated: cf_amc_ssl" in found.err

    def test_what_a_check_of_a_run_trains_again_uses_the_kernels_of_the_baseline(self, stored_run: Stored) -> None:
        run, file = stored_run(broken, broken)
        assert bench("check", run, "--baseline", file) == 4
        assert {name: os.environ[name] for name in PORTABLE} == PORTABLE

    def test_what_is_found_is_announced_in_every_form(
        self, stored_run: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
        junit, sarif = tmp_path / "gate.xml", tmp_path / "gate.sarif"
        run, file = stored_run(broken, broken)
        assert (
            bench("check", run, "--baseline", file, "--junit", str(junit), "--sarif", str(sarif), "--github", "--json")
            == 4
        )
        out, err = capsys.readouterr()
        told = json.loads(out)
        assert told["losses"] >= 1
        assert {each["cell"] for each in told["compared"] if each["verdict"] == "loss"} == {
            case.get("name").rpartition(", ")[0]
            for case in ElementTree.parse(junit).iter("testcase")
            if case.find("failure") is not None
        }
        assert err.count("::error") == told["losses"]
        (scan,) = json.loads(sarif.read_text(encoding="utf-8"))["runs"]
        assert sum(result["level"] == "error" for result in scan["results"]) == told["losses"]
        assert f"bench check: {told['losses']} losses" in (tmp_path / "summary.md").read_text()

    def test_one_alarm_that_the_repeat_does_not_find_is_0(
        self, stored_run: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run, file = stored_run(broken, whole)
        assert bench("check", run, "--baseline", file) == 0
        out = capsys.readouterr().out
        assert "alarm not confirmed: cf_amc_ssl, linear, pgd at eps 0.1, robust accuracy" in out
        assert "LOSS" not in out
        assert "differs cf_amc_ssl" in out  # G0 says so in any case

    def test_exact_fails_on_one_image(self, stored_run: Stored, capsys: pytest.CaptureFixture[str]) -> None:
        def one_image(record: Record) -> Record:
            if record.spec.name != "emp_ssl-s0":
                return record
            first = record.results[0]
            flipped = first.model_copy(update={"outcomes": "0" + first.outcomes[1:]})
            return record.model_copy(update={"results": [flipped, *record.results[1:]]})

        run, file = stored_run(one_image)
        assert bench("check", run, "--baseline", file) == 0
        assert bench("check", run, "--baseline", file, "--exact") == 4
        assert "LOSS emp_ssl, linear, clean, clean accuracy: " in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"platform": "Linux aarch64, cpu"}, "nothing to compare exactly: platform"),
            ({"dataset": "cifar10"}, "nothing to compare: the baseline is for dataset cifar10"),
        ],
    )
    def test_another_platform_or_question_is_2(
        self,
        stored_run: Stored,
        changes: dict[str, str],
        message: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        run, file = stored_run()
        Path(file).write_text(baseline(**changes).text())
        assert bench("check", run, "--baseline", file, "--exact") == 2
        assert message in capsys.readouterr().err

    def test_one_seed_is_2_where_no_count_must_be_equal(
        self, stored_run: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run, file = stored_run(seeds=1)
        Path(file).write_text(baseline(platform="another").text())
        assert bench("check", run, "--baseline", file) == 2
        assert "nothing to compare: 1 seeds here and 15 in the baseline" in capsys.readouterr().err

    def test_nothing_measured_is_2(
        self, stored_run: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run, file = stored_run(lambda record: record.model_copy(update={"results": []}))
        assert bench("check", run, "--baseline", file) == 2
        assert "nothing to compare: the run has no results" in capsys.readouterr().err

    @pytest.mark.parametrize("text", ["", "{}", "garbage"])
    def test_a_damaged_baseline_is_2(
        self, stored_run: Stored, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run, _ = stored_run()
        (tmp_path / "b.json").write_text(text)
        assert bench("check", run, "--baseline", str(tmp_path / "b.json")) == 2
        assert "is not a baseline" in capsys.readouterr().err

    def test_the_folder_of_the_suite_must_be_new(
        self, stored_run: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """What an earlier version left there would be compared instead of what the code does."""
        run, _ = stored_run()
        assert bench("check", "--out", run) == 2
        assert "expected a new or empty folder" in capsys.readouterr().err

    def test_scores_of_stored_weights_are_compared(
        self, stored_run: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run, file = stored_run()
        known = Baseline.read(default_baseline("ci")).fixed
        Path(file).write_text(baseline(fixed=known).text())
        fallen = [each.model_copy(update={"attacked": "0" * 1000}) for each in known]
        for folder in (Path(run), Path(run) / REPEAT):
            save(folder / FIXED, FixedRun(fixed=fallen))
        assert bench("check", run, "--baseline", file) == 4
        out = capsys.readouterr().out
        assert f"-> 0 of 1000 (G1: McNemar below 0.001; {known[0].attacked.count('1')} fell, 0 rose" in out
        assert "G1 sees in 3 of 4 first runs a drop of 2.9 points on 1000 images" in out


def test_the_smallest_visible_drops_in_words():
    assert smallest_visible([]) == ""
    assert smallest_visible([Visible("G1", None, ""), Visible("G2", None, "")]) == ""
    seen = [Visible("G1", 2.9, ""), Visible("G2", 10.7, ""), Visible("G2", 1.3, ""), Visible("G2", None, "")]
    after = "1.3 to 10.7 points after training again (in 1 of 3 numbers no drop is)"
    assert smallest_visible(seen) == f"2.9 points in stored weights, {after}"


class TestRepeat:
    def test_fresh_seeds_are_in_neither_and_only_the_alarmed_methods_run(self) -> None:
        fresh = repeated(asked(), baseline(), {"cf_amc_ssl"})
        assert [run.name for run in fresh.runs] == ["cf_amc_ssl-s15", "cf_amc_ssl-s16", "cf_amc_ssl-s17"]
        assert fresh.seeds == [15, 16, 17]

    def test_the_suite_is_one_thread_on_portable_kernels(self) -> None:
        asked = ask_suite("ci")
        assert {name: os.environ[name] for name in PORTABLE} == PORTABLE
        assert {(run.threads, run.device, str(run.budget)) for run in asked.runs} == {(1, "cpu", "60up")}
        assert asked.seeds == [0, 1, 2]
        known = Baseline.read(default_baseline("ci"))
        assert Reading.of(asked, []).test_sha256 == known.test_sha256


class TestUpdate:
    def test_it_writes_what_it_compares_equal_to_and_prints_both(
        self, stored_run: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run, file = stored_run(broken)
        assert bench("baseline", "update", run, "--reason", "a better crop", "--baseline", file) == 0
        out = capsys.readouterr().out
        assert "a better crop" in out
        assert "cf_amc_ssl, linear, pgd at eps 0.1" in out
        written = Baseline.read(Path(file))
        assert (written.reason, written.seeds) == ("a better crop", [0, 1, 2])
        assert bench("check", run, "--baseline", file, "--exact") == 0

    def test_tolerances_of_the_earlier_file_stay(self, stored_run: Stored, tmp_path: Path) -> None:
        run, file = stored_run()
        Path(file).write_text(baseline(tolerances={"memory": 0.7}).text())
        assert bench("baseline", "update", run, "--reason", "x", "--baseline", file) == 0
        assert Baseline.read(Path(file)).tolerances.memory == 0.7

    def test_a_reason_is_asked_for(
        self, stored_run: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run, file = stored_run()
        before = Path(file).read_bytes()
        assert bench("baseline", "update", run, "--baseline", file) == 2
        assert bench("baseline", "update", run, "--reason", " ", "--baseline", file) == 2
        assert "expected a reason" in capsys.readouterr().err
        assert Path(file).read_bytes() == before

    def test_a_run_that_did_not_finish_is_no_baseline(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        wanted = manifest(METHODS, 1)
        write(tmp_path / "run", wanted, records(wanted, diverged=("emp_ssl-s0",)))
        assert (
            bench("baseline", "update", str(tmp_path / "run"), "--reason", "x", "--baseline", str(tmp_path / "b")) == 2
        )
        assert "expected finished runs only, got emp_ssl-s0" in capsys.readouterr().err
        assert not (tmp_path / "b").exists()


class TestWeights:
    def test_encoder_and_probe_of_the_first_seed_where_an_attack_decides_most(self, tmp_path: Path) -> None:
        """The eps of the PGD result that is nearest to a third; the file is named and hashed."""
        (record,) = records(manifest(("emp_ssl",), 1))
        folder = RunFolder(tmp_path, record.spec)
        encoder = {"weight": torch.ones(2, 3)}
        assert record.train is not None
        folder.save_trained(record.train, encoder)
        folder.save_probe(probe("linear"), {"weight": torch.zeros(10, 2), "bias": torch.zeros(10)})
        kept = keep_weights(tmp_path, record, tmp_path / "mine.json")
        assert kept is not None
        assert (kept.weights, kept.protocol) == ("mine-emp_ssl.safetensors", "linear")
        assert set(load_tensors(tmp_path / kept.weights, kept.sha256)) == {
            "encoder.weight",
            "probe.weight",
            "probe.bias",
        }
        shares = {r.eps: r.correct / r.total for r in record.results if (r.protocol, r.attack) == ("linear", "pgd")}
        assert abs(shares[kept.eps] - 1 / 3) == min(abs(share - 1 / 3) for share in shares.values())

    def test_what_is_too_large_for_a_repository_is_left_out(self, tmp_path: Path) -> None:
        (record,) = records(manifest(("emp_ssl",), 1))
        folder = RunFolder(tmp_path, record.spec)
        assert record.train is not None
        folder.save_trained(record.train, {"weight": torch.ones(2**18)})
        folder.save_probe(probe("linear"), {"weight": torch.zeros(10, 2), "bias": torch.zeros(10)})
        assert keep_weights(tmp_path, record, tmp_path / "mine.json") is None
