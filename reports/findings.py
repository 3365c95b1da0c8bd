"""What the regression gate compared: a row for each metric of each cell, whether it moved or not; only losses fail."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Gate = Literal["G0", "G1", "G2"]
Verdict = Literal["same", "worse", "better", "differs", "not confirmed"]  # G0 knows no direction
Outcome = Literal["loss", "gain", "differs", "same"]
OUTCOMES: dict[Verdict, Outcome] = {"worse": "loss", "better": "gain", "differs": "differs"}


@dataclass(frozen=True)
class Comparison:
    """One metric of one cell, before (the baseline) and after (this run), and the rule that tells them apart."""

    gate: Gate
    method: str
    cell: str  # "cf_amc_ssl, linear, pgd at eps 0.1"
    metric: str  # "robust accuracy", "audit", "passes per image", "peak memory", "speed", ...
    before: str
    after: str
    verdict: Verdict
    rule: str
    p: float | None = None  # adjusted for the family of its test; None where the rule is no test

    @property
    def key(self) -> tuple[str, str, str]:
        """What finds the same comparison in the repeat."""
        return self.gate, self.cell, self.metric

    @property
    def outcome(self) -> Outcome:
        """``loss`` fails the gate; a ``gain`` is reported and does not, nor what ``differs`` without a direction."""
        return OUTCOMES.get(self.verdict, "same")

    def __str__(self) -> str:
        """``LOSS cell, metric: before -> after (gate: rule, p = ...)`` on one line; or ``gain`` or ``differs``."""
        p = "" if self.p is None else f", p = {self.p:.2g}"
        word = "LOSS" if self.outcome == "loss" else self.outcome
        return f"{word} {self.cell}, {self.metric}: {self.before} -> {self.after} ({self.gate}: {self.rule}{p})"

    def as_json(self) -> dict[str, Any]:
        """By name, with the outcome as its verdict."""
        fields = asdict(self)
        del fields["method"]  # the cell begins with it
        return fields | {"verdict": self.outcome}


def moved(compared: Iterable[Comparison]) -> list[Comparison]:
    """What is worth a line, losses first, G1 before G2 before G0."""
    changes = [comparison for comparison in compared if comparison.outcome != "same"]
    return sorted(changes, key=lambda change: (change.outcome != "loss", ("G1", "G2", "G0").index(change.gate)))


def losses(compared: Iterable[Comparison]) -> list[Comparison]:
    """Those that fail the gate."""
    return [comparison for comparison in compared if comparison.outcome == "loss"]
