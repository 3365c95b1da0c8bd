"""The regression gate as a pure function: what was found against a baseline -> findings, a sentence each."""

import json
from pathlib import Path

import pandas as pd
from pydantic import ValidationError

from bench.spec import Data, Manifest, UsageError, format_eps

BASELINES = Path(__file__).parent / "baselines"
MEASURED = ("none", "fgsm", "noise", "pgd", "autoattack", "pgd_crop")  # derived rows follow from these


class Cell(Data):
    """Correct counts of one cell; two integers."""

    method: str
    seed: int
    protocol: str
    attack: str
    eps: float
    correct: int
    total: int

    @property
    def name(self) -> str:
        """The cell in words."""
        where = f"{self.method} seed {self.seed}, {self.protocol}"
        return f"{where}, {'clean' if self.attack == 'none' else f'{self.attack} at eps {format_eps(self.eps)}'}"


class Baseline(Data):
    """Counts of a run and what they depend on: exact equality is promised only where all of it is equal."""

    dataset: str
    budget: str
    torch: str
    machine: str
    status: dict[str, str]  # run -> status
    cells: list[Cell]

    @classmethod
    def of(cls, manifest: Manifest, rows: pd.DataFrame) -> "Baseline":
        """The counts of a run."""
        measured = rows[rows["attack"].isin(MEASURED)]
        status = {
            f"{method}-s{seed}": str(part["status"].iloc[0])
            for (method, seed), part in rows.groupby(["method", "seed"], sort=False)
        }
        columns = list(Cell.model_fields)
        return cls(
            dataset=manifest.data.label,
            budget=str(manifest.budget),
            torch=manifest.environment.torch.partition("+")[0],
            machine=machine(manifest),
            status=status,
            cells=[Cell.model_validate(row) for row in measured[columns].to_dict("records")],
        )

    @classmethod
    def read(cls, file: Path) -> "Baseline":
        """A stored baseline. Raises UsageError if it is missing, damaged or empty."""
        try:
            baseline = cls.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            raise UsageError(f"nothing to compare with: no baseline {file}") from None
        except ValidationError as error:
            raise UsageError(f"{file} is not a baseline: {error.errors()[0]['msg']}") from None
        if not baseline.cells:
            raise UsageError(f"nothing to compare with: the baseline {file} is empty")
        return baseline

    def text(self) -> str:
        """As JSON, one cell a line, so that a change of numbers reads well in a diff."""
        head = self.model_dump(exclude={"cells"})
        cells = ",\n  ".join(json.dumps(cell.model_dump()) for cell in self.cells)
        return json.dumps(head, indent=1).removesuffix("\n}") + f',\n "cells": [\n  {cells}\n ]\n}}\n'


def machine(manifest: Manifest) -> str:
    """System and processor, as in ``Linux x86_64 AMD EPYC``; exact counts hold for one kind of processor."""
    system, _, rest = manifest.environment.platform.partition("-")
    families = [family for family in ("x86_64", "aarch64", "arm64", "AMD64") if family in rest]
    return f"{system} {families[0] if families else rest} {manifest.environment.cpu}"


def default_baseline(suite: str) -> Path:
    """Where the baseline of a suite that comes with the project lies."""
    return BASELINES / f"{Path(suite).stem}.json"


def compare(found: Baseline, baseline: Baseline) -> list[str]:
    """All differences, both directions; empty when every count is equal.

    Raises UsageError where the two cannot be compared exactly: another dataset, budget, torch or machine.
    """
    for key in ("dataset", "budget", "torch", "machine"):
        now, before = getattr(found, key), getattr(baseline, key)
        if now != before:
            raise UsageError(
                f"nothing to compare: the baseline is for {key} {before}, this is {now}; "
                "bench check --update writes another"
            )
    findings = [
        f"{run}: status {status} -> {found.status.get(run, 'missing')}"
        for run, status in baseline.status.items()
        if found.status.get(run) != status
    ]
    now_cells = {cell.name: cell for cell in found.cells}
    for cell in baseline.cells:
        now_cell = now_cells.pop(cell.name, None)
        if now_cell is None:
            findings.append(f"{cell.name}: {cell.correct} of {cell.total} correct -> not measured")
        elif (now_cell.correct, now_cell.total) != (cell.correct, cell.total):
            findings.append(
                f"{cell.name}: {cell.correct} of {cell.total} correct -> {now_cell.correct} of {now_cell.total} "
                "(rule: equal counts)"
            )
    findings += [f"{name}: not in the baseline" for name in now_cells]
    return findings
