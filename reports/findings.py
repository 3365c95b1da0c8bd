"""What the regression gate found: one line per metric that moved, in both directions; only losses fail."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

Gate = Literal["G0", "G1", "G2"]


@dataclass(frozen=True)
class Finding:
    """One metric of one cell, before (the baseline) and after (this run), and the rule that tells them apart."""

    gate: Gate
    cell: str  # "cf_amc_ssl, linear, pgd at eps 0.1"
    metric: str  # "robust accuracy", "audit", "passes per image", "peak memory", "speed", ...
    before: str
    after: str
    rule: str
    p: float | None  # of the test; None where the rule is no test
    loss: bool

    def __str__(self) -> str:
        """``LOSS cell, metric: before -> after (gate: rule, p = ...)`` on one line; or ``gain``, in G0 ``differs``."""
        p = "" if self.p is None else f", p = {self.p:.2g}"
        word = "LOSS" if self.loss else "differs" if self.gate == "G0" else "gain"  # G0 knows no direction
        return f"{word} {self.cell}, {self.metric}: {self.before} -> {self.after} ({self.gate}: {self.rule}{p})"

    def as_json(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)


@dataclass(frozen=True)
class Compared:
    """One metric of one cell that the gate looked at, whether it moved or not."""

    gate: Gate
    cell: str
    metric: str
    before: str
    after: str
    rule: str
    p: float | None = None
    finding: Finding | None = None  # where it moved

    @classmethod
    def of(cls, finding: Finding) -> Self:
        """The metric that a finding is about."""
        f = finding
        return cls(f.gate, f.cell, f.metric, f.before, f.after, f.rule, f.p, finding)

    @property
    def verdict(self) -> Literal["loss", "gain", "differs", "same"]:
        """``loss`` fails the gate; a ``gain`` is reported and does not, nor what ``differs`` without a direction."""
        if self.finding is None:
            return "same"
        return "loss" if self.finding.loss else "differs" if self.gate == "G0" else "gain"

    def as_json(self) -> dict[str, Any]:
        """All fields by name, and the verdict in place of the finding, which repeats them."""
        fields = asdict(self)
        del fields["finding"]
        return fields | {"verdict": self.verdict}


def losses(findings: Iterable[Finding]) -> list[Finding]:
    """Those that fail the gate."""
    return [finding for finding in findings if finding.loss]
