"""What the gate found, in the forms that continuous integration shows: JUnit XML, SARIF, annotations, a summary, JSON.

Cells and metrics carry names that anybody may have chosen, so each form escapes by its own rules.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

from bench.storage.store import write_text
from reports.findings import Comparison, Gate, Outcome, moved
from reports.inert import printable

TITLE = "bench check"
SHOWN = 10  # annotations of one level that GitHub shows of a step; it drops the others without a word
RULES: dict[Gate, str] = {
    "G0": "Counts of the same seeds are equal",
    "G1": "The stored encoder withstands today's attacks as it did",
    "G2": "Encoders that are trained again are as good as those of the baseline",
}
LEVELS: dict[Outcome, str] = {"loss": "error", "differs": "warning", "gain": "note"}
HEADS = ("", "gate", "cell", "metric", "before", "after", "rule", "p")


def junit(compared: Sequence[Comparison]) -> str:
    """JUnit XML: a suite for each gate with a test case for each metric of a cell, which fails where it is a loss.

    Gains are properties of their suite, since the schema that Jenkins checks allows none in a test case.
    """
    root = ElementTree.Element("testsuites", _counts(compared) | {"name": TITLE})
    for gate in dict.fromkeys(comparison.gate for comparison in compared):
        within = [comparison for comparison in compared if comparison.gate == gate]
        suite = ElementTree.SubElement(root, "testsuite", _counts(within) | {"name": f"{TITLE} {gate}"})
        gains = [comparison for comparison in within if comparison.outcome == "gain"]
        if gains:
            properties = ElementTree.SubElement(suite, "properties")
            for gain in gains:
                name, value = f"gain: {_name(gain)}", f"{gain.before} -> {gain.after}"
                ElementTree.SubElement(properties, "property", {"name": printable(name), "value": printable(value)})
        for tested in within:
            names = {"classname": f"bench.gate.check.{gate}", "name": printable(_name(tested))}
            case = ElementTree.SubElement(suite, "testcase", names)
            if tested.outcome == "loss":
                failure = {"type": gate, "message": printable(f"{tested.before} -> {tested.after}")}
                ElementTree.SubElement(case, "failure", failure).text = printable(str(tested))
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def sarif(compared: Sequence[Comparison], baseline: str) -> str:
    """SARIF 2.1.0 (OASIS, 2020): a result for each metric that has moved, where it is stored: in the file ``baseline``.

    A loss is an error, a gain a note. A result is the same as that of an earlier check where gate, cell and metric are.
    """
    rules = [{"id": gate, "shortDescription": {"text": text}} for gate, text in RULES.items()]
    place = {"artifactLocation": {"uri": quote(baseline)}, "region": {"startLine": 1}}
    results = [
        {
            "ruleId": change.gate,
            "level": LEVELS[change.outcome],
            "message": {"text": printable(str(change))},
            "locations": [{"physicalLocation": place}],
            "partialFingerprints": {"comparison/v1": hashlib.sha256(json.dumps(change.key).encode()).hexdigest()},
        }
        for change in moved(compared)
    ]
    run = {"tool": {"driver": {"name": TITLE, "rules": rules}}, "results": results}
    schema = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
    return json.dumps({"$schema": schema, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def annotations(compared: Sequence[Comparison]) -> list[str]:
    """Workflow commands of GitHub, a line each: ``::error`` for a loss, ``::notice`` for what else has moved.

    At most as many of each as GitHub shows; the last of them says how many are left for the job summary.
    """
    lines = []
    for outcomes, command in ((("loss",), "error"), (("gain", "differs"), "notice")):
        moved = [comparison for comparison in compared if comparison.outcome in outcomes]
        shown = moved if len(moved) <= SHOWN else moved[: SHOWN - 1]
        for change in shown:
            lines.append(f"::{command} title={_property(_name(change))}::{_data(str(change))}")
        if len(moved) > len(shown):
            lines.append(f"::{command} title={TITLE}::{len(moved) - len(shown)} more are in the job summary")
    return lines


def summary(compared: Sequence[Comparison]) -> str:
    """The job summary in Markdown: what moved as a table, losses first; what did not, folded below."""
    moved = [change for outcome in ("loss", "gain", "differs") for change in compared if change.outcome == outcome]
    same = [comparison for comparison in compared if comparison.outcome == "same"]
    parts = [f"### {TITLE}: {headline(compared)}", *[_markdown(moved)] * bool(moved)]
    if same:
        parts.append(f"<details><summary>{len(same)} that did not move</summary>\n\n{_markdown(same)}\n\n</details>")
    return "\n\n".join(parts) + "\n"


def headline(compared: Sequence[Comparison]) -> str:
    """``1 loss, 2 gains in 24 compared metrics``."""
    lost, gained = (sum(comparison.outcome == outcome for comparison in compared) for outcome in ("loss", "gain"))
    losses, gains = "loss" if lost == 1 else "losses", "gain" if gained == 1 else "gains"
    return f"{lost} {losses}, {gained} {gains} in {len(compared)} compared metric{'s' * (len(compared) != 1)}"


def as_json(compared: Sequence[Comparison]) -> str:
    """One JSON document: how many losses and gains, and everything that was compared, in its order."""
    lost, gained = (sum(comparison.outcome == outcome for comparison in compared) for outcome in ("loss", "gain"))
    document = {"losses": lost, "gains": gained, "compared": [comparison.as_json() for comparison in compared]}
    return json.dumps(document, indent=1)


def write_summary(text: str, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Add ``text`` to the file that $GITHUB_STEP_SUMMARY names, behind what the step has written there already.

    None where the variable is not set. Raises DiskError.
    """
    named = environment.get("GITHUB_STEP_SUMMARY")
    if not named:
        return None
    file = Path(named)
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    write_text(file, before + "\n" * bool(before) + text)
    return file


def _counts(compared: Sequence[Comparison]) -> dict[str, str]:
    failures = sum(comparison.outcome == "loss" for comparison in compared)
    return {"tests": str(len(compared)), "failures": str(failures), "errors": "0", "skipped": "0"}


def _name(compared: Comparison) -> str:
    return f"{compared.cell}, {compared.metric}"


def _data(text: str) -> str:
    """The rules of GitHub's toolkit for the message of a command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """And for the value of a property, where : and , have a meaning too."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _markdown(compared: Sequence[Comparison]) -> str:
    """A table; no text in it is markup."""
    lines = [list(HEADS), ["---"] * len(HEADS)]
    for row in compared:
        p = "" if row.p is None else f"{row.p:.2g}"
        texts = [row.outcome, row.gate, row.cell, row.metric, row.before, row.after, row.rule, p]
        lines.append([re.sub(r"([\\`*_\[\]<>|~&!#])", r"\\\1", printable(text)) for text in texts])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
