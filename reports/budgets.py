"""Runs of several budgets (``--budget 2m,5m``): each has a name such as cf_amc_ssl-5m, and is compared within its own.

Rows of a suite that state a budget each are no such runs: they stay in one table.
"""

from collections.abc import Iterable

from bench.record import Record


def base(row: str, budget: str) -> str:
    """``cf_amc_ssl`` of ``cf_amc_ssl-5m``: the same for all budgets."""
    return row.removesuffix(f"-{budget}")


def budget_of(records: Iterable[Record]) -> dict[str, str]:
    """Row -> its budget, the smallest first, where there are several and rows are named by theirs; else nothing."""
    specs = sorted((record.spec for record in records), key=lambda spec: spec.budget.amount)
    rows = {spec.row: str(spec.budget) for spec in specs}
    named = all(base(*item) != item[0] for item in rows.items())
    return rows if named and len(set(rows.values())) > 1 else {}
