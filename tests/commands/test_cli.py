"""The command line as a user meets it: exit codes, one clear line for each mistake, nothing overwritten."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from instant import is_instant
from report_fixtures import tables_only

from bench import __version__
from bench.cli import main
from bench.commit import checkout
from bench.runs import conduct as run
from bench.runs import measuring
from bench.runs.progress import Display
from bench.spec import RunSpec
from bench.storage.disk import DiskError
from bench.storage.lock import owned

ROOT = Path(__file__).parents[2]
SMALL = ["--data", "synthetic", "--train-images", "64", "--test-images", "32", "--threads", "1", "--device", "cpu"]
FAST = [
    *SMALL,
    "--encoder",
    "resnet8",
    "--attacks",
    "pgd",
    "--protocols",
    "linear",
    "--eval",
    "quick",
    "--set",
    "all.batch=16",
]


def bench(*arguments: str) -> int:
    """Exit code of a command in this process."""
    with pytest.raises(SystemExit) as leaving:
        main(list(arguments))
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


def table(file: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, as text."""
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))


class TestBadInput:
    """Exit code 2, one line on standard error that says what was expected, no folder made."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--methods", "simclrr", "--budget", "1up"], "unknown method 'simclrr'; did you mean 'simclr'"),
            (["--methods", "", "--budget", "1up"], "expected at least one method"),
            (["--methods", "simclr,simclr", "--budget", "1up"], "each method once"),
            (["--methods", "no/such/file.py", "--budget", "1up"], "no such file"),
            (["--attacks", "pgdd", "--budget", "1up"], "unknown attack 'pgdd'; did you mean 'pgd'"),
            (["--data", "digitz", "--budget", "1up"], "unknown dataset 'digitz'; did you mean 'digits'"),
            (["--data", "parquet", "--budget", "1up"], "expected a folder after the name"),
            (["--data", "parquet:/no/such/folder", "--budget", "1up"], "/no/such/folder"),
            (["--data", "digits:/tmp", "--budget", "1up"], "takes no folder"),
            (["--eps", "8", "--budget", "1up"], "expected eps in [0, 1], got 8; did you mean 8/255?"),
            (["--eps", "0", "--budget", "1up"], "expected eps above 0"),
            (["--eps", "4/255,x", "--budget", "1up"], "expected eps such as 8/255"),
            (["--budget", "0s"], "expected a budget above 0"),
            (["--budget", "10x"], "expected a budget such as 90s"),
            (["--budget", "10s,20up"], "expected budgets of one kind"),
            (["--budget", "10s,10s"], "expected each budget once"),
            (["--budget", "1.5up"], "whole number of updates"),
            (["--budget", "10s", "--budget", "20s"], "expected one budget, got 10s and 20s"),
            (["--budget", "10s", "--total-budget", "20s"], "expected one budget"),
            ([], "expected one budget"),
            (["--budget", "1up", "--seeds", "x"], "expected seeds such as 3"),
            (["--budget", "1up", "--seeds", "0"], "at least one seed"),
            (["--budget", "1up", "--seeds", "1,1"], "none twice"),
            (["--budget", "1up", "--protocols", "linaer"], "unknown protocol 'linaer'; did you mean 'linear'"),
            (["--budget", "1up", "--eval", "quik"], "'quick'"),
            (["--budget", "1up", "--device", "cuda:99"], "the device cuda:99 is not available"),
            (["--budget", "1up", "--device", "tpu"], "expected a device such as auto"),
            (["--budget", "1up", "--encoder", "resnet81"], "unknown encoder 'resnet81'"),
            (["--budget", "1up", "--set", "simclr.temperatur=1"], "did you mean 'temperature'"),
            (["--budget", "1up", "--set", "simclr.temperature=hot"], "expected temperature as float, got 'hot'"),
            (["--budget", "1up", "--set", "simclr.batch=1"], "expected batch of at least 2"),
            (["--budget", "1up", "--set", "simclr"], "expected --set method.key=value"),
            (["--budget", "1up", "--set", "simclrr.batch=8"], "unknown method, attack or protocol 'simclrr'"),
            (["--budget", "1up", "--set", "simclr.batch=1000000"], "expected a batch of at most 1500"),
            (["--budget", "1up", "--train-images", "0"], "train_images"),
            (["--budget", "1up", "--train-images", "9999"], "expected at most 1500 train images"),
            (["--suite", "no_such_suite"], "unknown suite"),
            (["--budgett", "1up"], "No such option"),
        ],
    )
    def test_one_line_and_exit_code_2(
        self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        data = [] if "--data" in arguments else ["--data", "digits"]
        methods = [] if "--methods" in arguments else ["--methods", "simclr"]
        assert bench("run", *data, *methods, "--out", str(out), *arguments) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("bench: ")
        assert message in lines[0]
        assert not out.exists()

    def test_a_folder_of_other_files_is_left_alone(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        assert bench("run", "--methods", "simclr", *FAST, "--budget", "1up", "--out", str(tmp_path)) == 2
        assert "expected a new or empty folder" in capsys.readouterr().err
        assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]

    def test_a_report_needs_a_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert bench("report", str(tmp_path)) == 2
        assert "expected the folder of a run" in capsys.readouterr().err

    def test_a_gate_without_a_baseline_is_a_usage_error(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert bench("check", "--baseline", str(tmp_path / "none.json")) == 2
        assert "nothing to compare with" in capsys.readouterr().err

    def test_an_unknown_list(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert bench("list", "method") == 2
        assert "did you mean 'methods'" in capsys.readouterr().err

    def test_a_suite_with_an_unknown_key(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "mine.toml"
        file.write_text('budgett = "1up"\n')
        assert bench("run", "--suite", str(file)) == 2
        assert "unknown key 'budgett'; did you mean 'budget'" in capsys.readouterr().err


class TestInstant:
    @pytest.mark.parametrize("arguments", [["--help"], ["list", "methods"], ["run", "--help"]])
    def test_help_and_lists_take_under_half_a_second_of_processor_time(self, arguments: list[str]) -> None:
        assert is_instant(*arguments)

    def test_the_version_has_the_commit_of_a_checkout(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert bench("--version") == 0
        commit, changed = checkout(ROOT / "bench")
        said = f" (commit {commit[:7]}{', with changes' * bool(changed)})" if commit else ""
        assert capsys.readouterr().out == f"bench {__version__}{said}\n"
        assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    def test_help_and_lists_load_no_torch(self) -> None:
        asked = (["--help"], ["list", "methods"], ["list", "attacks"], ["list", "suites"], ["run", "--help"])
        code = (
            "import sys\nfrom bench.cli import main\n"
            f"for arguments in {asked!r}:\n    try: main(arguments)\n    except SystemExit: pass\n"
            "sys.exit('torch' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT).returncode == 0

    @pytest.mark.parametrize(("kind", "known"), [("methods", 9), ("attacks", 6), ("datasets", 6), ("suites", 2)])
    def test_lists(self, kind: str, known: int, capsys: pytest.CaptureFixture[str]) -> None:
        assert bench("list", kind, "--json") == 0
        items = json.loads(capsys.readouterr().out)
        assert len(items) >= known
        assert all(item["name"] and item["description"] for item in items)


class TestRun:
    """Real runs on the synthetic data, each in its own process as always."""

    def test_a_run_leaves_its_tables_and_the_same_command_repeats_nothing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["run", "--methods", "simclr_free", *FAST, "--budget", "3up", "--out", str(tmp_path / "o")]
        assert bench(*arguments) == 0
        captured = capsys.readouterr()
        assert "plan: 1 run" in captured.err
        assert str(tmp_path / "o" / "report.pdf") in captured.out
        rows = table(tmp_path / "o" / "results.csv")
        assert {(row["method"], row["adversary"]) for row in rows} == {("simclr_free", "free")}
        assert {row["attack"] for row in rows} == {"none", "pgd", "pgd_only"}
        assert {row["dataset"] for row in rows} == {"synthetic (subset 64/32)"}
        clean = next(row for row in rows if row["attack"] == "none")
        assert (clean["total"], clean["updates"], clean["status"]) == ("32", "3", "finished")
        assert float(clean["accuracy"]) == int(clean["correct"]) / 32
        stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "o" / "runs").rglob("*.json")}
        with tables_only():
            assert bench(*arguments) == 0
        assert "simclr_free-s0: finished before, not repeated" in capsys.readouterr().err
        assert {file: file.stat().st_mtime_ns for file in (tmp_path / "o" / "runs").rglob("*.json")} == stamps
        assert bench(*arguments, "--seeds", "2") == 2  # another run's settings
        assert "holds a run with other settings" in capsys.readouterr().err
        before = (tmp_path / "o" / "results.csv").read_bytes()
        (tmp_path / "o" / "results.csv").unlink()
        with tables_only():
            assert bench("report", str(tmp_path / "o")) == 0
        assert (tmp_path / "o" / "results.csv").read_bytes() == before

    @pytest.mark.ci
    def test_a_method_of_ones_own_and_one_that_diverges(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A diverged run is a row with that status, the others go on, exit code 3."""
        file = tmp_path / "exploding.py"
        file.write_text(
            '"""Mine: the loss is not a number from the start."""\n'
            "from methods import simclr\n"
            "Config = simclr.Config\n"
            "class Method(simclr.Method):\n"
            "    def loss(self, views):\n"
            "        return super().loss(views) * float('nan')\n"
        )
        arguments = ["run", "--methods", f"{file},emp_ssl", *FAST, "--budget", "2up", "--out", str(tmp_path / "o")]
        monkeypatch.setattr(measuring, "measure_plan", lambda *given: [])
        with tables_only():
            assert bench(*arguments) == 3
        assert "not finished: exploding-s0" in capsys.readouterr().err
        rows = table(tmp_path / "o" / "leaderboard.csv")
        assert {row["method"]: row["status"] for row in rows} == {"exploding": "diverged", "emp_ssl": "finished"}


class TestRefused:
    """Folders that cannot be used, or stop to be: one line, no traceback, and the right exit code."""

    ARGUMENTS = ("run", "--methods", "emp_ssl", *FAST, "--budget", "40up", "--out")

    def only_line(self, capsys: pytest.CaptureFixture[str]) -> str:
        """The one line that starts with ``bench:``, which is the last."""
        *before, last = capsys.readouterr().err.strip().splitlines()
        assert not [line for line in before if line.startswith(("bench:", "Traceback"))]
        return last

    def test_a_folder_in_use(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(run, "owned", partial(owned, patience=0.3))
        with owned(tmp_path):
            assert bench(*self.ARGUMENTS, str(tmp_path)) == 2
        assert f"bench: {tmp_path} is in use by process {os.getpid()} on " in self.only_line(capsys)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]

    @pytest.mark.parametrize("place", ["/proc/1/out", "file/out"])
    def test_a_folder_that_cannot_be_made(self, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "file").write_text("in the way")
        assert bench(*self.ARGUMENTS, str(tmp_path / place)) == 2
        assert re.fullmatch(r"bench: cannot write to \S+: .+; choose another --out", self.only_line(capsys))

    def test_a_report_that_cannot_be_written_names_the_way_to_another_folder(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def build(*given: object) -> list[str]:
            raise DiskError("cannot write r/results.csv: Read-only file system")

        monkeypatch.setattr("reports.build.build", build)
        monkeypatch.setattr("bench.storage.store.check_folder", lambda folder: None)
        assert bench("report", "r") == 1
        assert self.only_line(capsys).endswith("file system; or put the report into another folder with --out DIR")

    @pytest.mark.ci
    def test_a_folder_that_vanishes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"

        def event(self: Display, spec: RunSpec, event: dict[str, Any]) -> None:
            if event["event"] == "train" and out.exists():
                shutil.rmtree(out)

        with monkeypatch.context() as patched:
            patched.setattr(measuring, "measure_plan", lambda *given: [])
            patched.setattr(Display, "event", event)
            assert bench(*self.ARGUMENTS, str(out)) == 1
        said = self.only_line(capsys)
        assert said == f"bench: the folder {out} has vanished; with it back, the same command goes on"
        assert not out.exists()


class TestPlan:
    @pytest.mark.ci
    def test_the_plan_is_of_the_size_of_what_the_run_takes(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """On a budget in updates: the measured update times their number, before the run and after it.

        The pace of a shared machine changes meanwhile, so no more than the size is asked for.
        """
        arguments = ["--methods", "emp_ssl_adv", "--data", "digits", "--threads", "1", "--device", "cpu"]
        arguments += ["--budget", "10up", "--attacks", "pgd", "--protocols", "linear", "--test-images", "32"]
        arguments += ["--eps", "0.1"]

        def planned() -> float:
            capsys.readouterr()
            assert bench("plan", *arguments, "--json") == 0
            (run,) = json.loads(capsys.readouterr().out)["runs"]
            return float(run["train_seconds"])

        before = planned()
        assert bench("run", *arguments, "--out", str(tmp_path / "o")) == 0
        after = planned()
        result = json.loads((tmp_path / "o" / "runs" / "emp_ssl_adv-s0" / "train.json").read_text())
        took = result["train_seconds"] + result["compile_seconds"]
        assert min(before, after) / 4 < took < 4 * max(before, after)


class TestDoctor:
    def test_it_tells_what_there_is(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert bench("doctor", "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["packages"]["torch"].split(".")[0].isdigit()
        assert found["shadowed packages"] == {}
        assert found["data"]["digits"] == "in the package"
