"""The exact gate: equal counts pass, any difference is a sentence, and nothing measured never passes."""

from pathlib import Path

import pytest
from report_fixtures import manifest, records

from bench.spec import UsageError
from reports.regression import Baseline, Cell, compare, default_baseline
from reports.rows import rows


def baseline(**changes: object) -> Baseline:
    """One method, clean and attacked."""
    cells = [
        Cell(method="emp_ssl", seed=0, protocol="linear", attack="none", eps=0.0, correct=290, total=297),
        Cell(method="emp_ssl", seed=0, protocol="linear", attack="pgd", eps=0.1, correct=30, total=297),
    ]
    fields = {"dataset": "digits", "budget": "60up", "torch": "2.15.0", "machine": "Linux x86_64"}
    return Baseline.model_validate({**fields, "status": {"emp_ssl-s0": "finished"}, "cells": cells, **changes})


def changed(correct: int) -> list[Cell]:
    """The cells with another count under attack."""
    first, second = baseline().cells
    return [first, second.model_copy(update={"correct": correct})]


class TestCompare:
    def test_equal_counts_are_no_finding(self) -> None:
        assert compare(baseline(), baseline()) == []

    @pytest.mark.parametrize("correct", [29, 31, 0])
    def test_one_image_is_a_finding_in_both_directions(self, correct: int) -> None:
        assert compare(baseline(cells=changed(correct)), baseline()) == [
            f"emp_ssl seed 0, linear, pgd at eps 0.1: 30 of 297 correct -> {correct} of 297 (rule: equal counts)"
        ]

    def test_a_missing_cell_a_new_cell_and_a_status(self) -> None:
        new = Cell(method="emp_ssl", seed=0, protocol="multi_patch", attack="none", eps=0.0, correct=1, total=2)
        found = baseline(cells=[baseline().cells[0], new], status={"emp_ssl-s0": "diverged"})
        assert compare(found, baseline()) == [
            "emp_ssl-s0: status finished -> diverged",
            "emp_ssl seed 0, linear, pgd at eps 0.1: 30 of 297 correct -> not measured",
            "emp_ssl seed 0, multi_patch, clean: not in the baseline",
        ]

    @pytest.mark.parametrize(
        ("key", "value"), [("torch", "2.14.0"), ("machine", "Linux aarch64"), ("dataset", "cifar10"), ("budget", "1up")]
    )
    def test_what_cannot_be_equal_is_nothing_to_compare(self, key: str, value: str) -> None:
        with pytest.raises(UsageError, match=f"nothing to compare: the baseline is for {key}"):
            compare(baseline(**{key: value}), baseline())


class TestFiles:
    def test_text_and_back(self, tmp_path: Path) -> None:
        (tmp_path / "b.json").write_text(baseline().text())
        assert Baseline.read(tmp_path / "b.json") == baseline()
        assert len([line for line in baseline().text().splitlines() if '"correct"' in line]) == 2  # a cell a line

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"cells": []}'])
    def test_damaged_or_empty(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(UsageError, match="is not a baseline"):
            Baseline.read(tmp_path / "b.json")

    def test_no_cells_never_pass(self, tmp_path: Path) -> None:
        (tmp_path / "b.json").write_text(baseline(cells=[]).text())
        with pytest.raises(UsageError, match="nothing to compare with"):
            Baseline.read(tmp_path / "b.json")

    def test_the_counts_of_a_run_without_derived_rows(self) -> None:
        asked = manifest()
        found = Baseline.of(asked, rows(asked, records(asked)))
        assert {cell.attack for cell in found.cells} <= {"none", "pgd", "autoattack"}
        assert len({cell.name for cell in found.cells}) == len(found.cells) > 9

    def test_the_baseline_of_the_project_reads(self) -> None:
        stored = Baseline.read(default_baseline("ci"))
        assert set(stored.status) == {"emp_ssl-s0", "cf_amc_ssl-s0"}
        assert stored.budget == "60up"
