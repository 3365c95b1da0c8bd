"""What the display says of an audit, on a terminal and off it."""

import io

import pytest
from rich.console import Console

from bench.runs.progress import Display
from bench.spec import Budget, DataSpec, RunSpec

RUN = RunSpec(method="simclr", seed=3, data=DataSpec(name="digits"), budget=Budget.parse("1up"))


@pytest.mark.parametrize(("verdict", "level"), [("FLAG", "core"), ("NOT_RUN", "full"), ("PASS", "core")])
@pytest.mark.parametrize("terminal", [True, False])
def test_an_audit_is_a_line_for_each_protocol(verdict, level, terminal):
    text = io.StringIO()
    display = Display(Console(file=text, force_terminal=terminal, width=120, highlight=False, no_color=True))
    for protocol in ("linear", "multi_patch"):
        display.event(RUN, {"event": "audit", "protocol": protocol, "verdict": verdict, "level": level})
    lines = [f"simclr-s3: {protocol} audit {verdict} ({level})" for protocol in ("linear", "multi_patch")]
    assert [text.getvalue().count(line) for line in lines] == [1, 1]
    if not terminal:
        assert text.getvalue().splitlines() == lines
