"""Before hours of work: the offer of `bench run` without options, and the question where somebody can answer."""

from pathlib import Path
from typing import Any

import pytest
from report_fixtures import tables_only

from bench.commands import consent
from bench.options.options import Options
from bench.runs import conduct as run
from bench.runs import measuring
from bench.runs.plan import Estimate
from bench.runs.progress import Display
from tests.commands.test_cli import FAST, bench

LONG = Estimate(
    row="simclr", seed=0, train_seconds=9e3, warm_up_seconds=0.0, evaluate_seconds=1e3, peak_memory_bytes=1, cells=1,
    updates=9,
)  # fmt: skip


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What is answered on a terminal, in this order."""
    given: list[bool] = []
    monkeypatch.setattr(consent, "on_terminal", lambda: True)
    monkeypatch.setattr(consent, "agreed", lambda question: given.pop(0))
    return given


def test_the_main_command_is_offered_with_its_cost_and_nothing_is_run_without_a_yes(
    answers: list[bool], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    answers.append(False)
    assert bench("run", "--out", str(tmp_path / "o")) == 0
    said = capsys.readouterr().err
    assert "bench run --methods all --budget 2h" in said
    assert "17 methods for 2h each on cifar10" in said
    assert "bench run --suite quick" in said
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(("cores", "hours"), [(1, "34 h"), (2, "18 h"), (17, "2 h")])
def test_the_training_that_is_offered_is_that_of_all_methods_side_by_side(
    cores: int, hours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.cores.cores", lambda: cores)
    said = " ".join(consent.describe(Options(device="cpu")))
    assert f"The training takes {hours}, {min(17, cores)} at a time" in said


def test_in_a_script_it_is_a_usage_error_and_a_yes_is_no_question(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(consent, "on_terminal", lambda: False)
    assert bench("run") == 2
    assert "expected one budget" in capsys.readouterr().err
    assert consent.offered({"methods": None, "seeds": None, "budget": ()}, yes=True)
    assert not consent.offered({"methods": "all"}, yes=True)
    assert not consent.offered({"methods": None}, yes=False)


@pytest.mark.parametrize(("yes", "answer", "begun"), [(False, False, False), (False, True, True), (True, None, True)])
def test_hours_of_work_are_asked_for_on_a_terminal(
    yes: bool, answer: bool | None, begun: bool, answers: list[bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers += [answer] if answer is not None else []
    made: list[Any] = []
    monkeypatch.setattr(measuring, "measure_plan", lambda *given: [LONG])
    monkeypatch.setattr(run, "run_all", lambda *given: made.append(given) or [])
    more = ["--yes"] if yes else []
    with tables_only():
        assert bench("run", "--methods", "simclr", *FAST, "--budget", "2up", "--out", str(tmp_path / "o"), *more) == 0
    assert (bool(made), answers) == (begun, [])


def test_a_script_is_never_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(consent, "on_terminal", lambda: False)
    monkeypatch.setattr(Display, "ask", lambda *question: pytest.fail("asked"))
    monkeypatch.setattr(measuring, "measure_plan", lambda *given: [LONG])
    monkeypatch.setattr(run, "run_all", lambda *given: [])
    with tables_only():
        assert bench("run", "--methods", "simclr", *FAST, "--budget", "2up", "--out", str(tmp_path / "o")) == 0
