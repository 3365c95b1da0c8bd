"""The whole path on real images: 80 updates on digits, one thread, one seed; robust training must show.

Clean accuracy says nothing here: an untrained encoder already has .93. Robust accuracy does (PGD at eps 0.1).
"""

import csv
import io
from pathlib import Path

import pytest

from bench.cli import main

VOLATILE = ("second", "memory", "matrix_share")  # columns that no seed can repeat


def run(out: Path, *more: str) -> list[dict[str, str]]:
    """Rows of results.csv of a real run of the command line."""
    fixed = ["--data", "digits", "--threads", "1", "--device", "cpu", "--out", str(out)]
    with pytest.raises(SystemExit) as leaving:
        main(["run", *fixed, *more])
    assert leaving.value.code == 0
    return list(csv.DictReader(io.StringIO((out / "results.csv").read_text(encoding="utf-8"))))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The robust method and the clean one after 80 updates, under PGD; the linear protocol and multi_patch."""
    out = tmp_path_factory.mktemp("quality") / "run"
    asked = ("--methods", "cf_amc_ssl,emp_ssl", "--budget", "80up", "--attacks", "pgd", "--test-images", "100")
    return run(out, *asked, "--protocols", "linear,multi_patch")


def accuracy(rows: list[dict[str, str]], method: str, protocol: str, attack: str, eps: float) -> float:
    """The one accuracy of a cell."""
    (row,) = [
        row
        for row in rows
        if (row["method"], row["protocol"], row["attack"]) == (method, protocol, attack)
        and abs(float(row["eps"]) - eps) < 1e-9
    ]
    return float(row["accuracy"])


@pytest.mark.slow
def test_free_adversarial_training_makes_an_encoder_robust(trained: list[dict[str, str]]) -> None:
    assert accuracy(trained, "cf_amc_ssl", "linear", "pgd", 0.1) > 0.15
    assert accuracy(trained, "cf_amc_ssl", "multi_patch", "pgd", 0.1) > 0.15


@pytest.mark.slow
def test_clean_training_does_not(trained: list[dict[str, str]]) -> None:
    assert accuracy(trained, "emp_ssl", "linear", "pgd", 0.1) < 0.02
    assert accuracy(trained, "emp_ssl", "multi_patch", "pgd", 0.1) < 0.10


@pytest.mark.slow
def test_both_read_digits_well(trained: list[dict[str, str]]) -> None:
    for method in ("cf_amc_ssl", "emp_ssl"):
        assert accuracy(trained, method, "linear", "none", 0.0) > 0.95


@pytest.mark.slow
def test_robust_accuracy_falls_as_eps_grows(trained: list[dict[str, str]]) -> None:
    for method in ("cf_amc_ssl", "emp_ssl"):
        curve = [accuracy(trained, method, "linear", "pgd", eps) for eps in (0.025, 0.05, 0.075, 0.1, 0.15, 0.2)]
        assert curve == sorted(curve, reverse=True)


def twice(folder: Path, *asked: str) -> list[dict[str, str]]:
    """Rows of the first of two runs that end in the same bytes; times, rates and memory aside."""
    fixed = ("--methods", "cf_amc_ssl", "--protocols", "linear")
    first, second = (run(folder / name, *fixed, *asked) for name in ("a", "b"))
    steady = [key for key in first[0] if not any(word in key for word in VOLATILE)]
    assert [[row[key] for key in steady] for row in first] == [[row[key] for key in steady] for row in second]
    outcomes = [(folder / name / "runs/cf_amc_ssl-s0/encoder.safetensors").read_bytes() for name in ("a", "b")]
    assert outcomes[0] == outcomes[1]
    return first


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_autoattack_leaves_no_more_than_pgd(tmp_path: Path) -> None:
    rows = twice(tmp_path, "--budget", "40up", "--test-images", "100")
    (worst,) = [row for row in rows if row["attack"] == "worst"]
    (autoattack,) = [row for row in rows if row["attack"] == "autoattack"]
    assert worst["total"] == autoattack["total"] == "64"
    assert int(worst["correct"]) >= int(autoattack["correct"]) - 1  # PGD breaks at most one image that AutoAttack left
    assert int(autoattack["correct"]) > 0
