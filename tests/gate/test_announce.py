"""JUnit, annotations, summary and JSON of a gate: counted, escaped by the rules of each reader, hostile names inert."""

import json
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
import yaml
from markdown_it import MarkdownIt

from bench.cli import cli
from reports.announce import RULES, annotations, as_json, headline, junit, sarif, summary, write_summary
from reports.findings import Comparison

ROOT = Path(__file__).parents[2]
HOSTILE = "a|b,c:d%0A\r\n::set-env name=X::<script>`[x](y)`\x1b[2J\ud800"
LOSS = Comparison(
    "G1",
    "cf_amc_ssl",
    "cf_amc_ssl, linear, pgd at eps 0.1",
    "robust accuracy",
    "61.2 %",
    "57.9 %",
    "worse",
    "McNemar",
    2e-4,
)
GAIN = Comparison("G2", "emp_ssl", "emp_ssl", "passes per image", "6", "5", "better", "equal")
SAME = Comparison("G1", "emp_ssl", "emp_ssl, linear", "clean accuracy", "93.1 %", "93.1 %", "same", "McNemar", 1.0)
COMPARED = [SAME, GAIN, LOSS]
ODD = Comparison("G2", HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, "worse", HOSTILE, 0.5)


def test_junit_has_a_case_for_each_metric_and_fails_those_that_lost() -> None:
    root = ElementTree.fromstring(junit(COMPARED))
    assert root.attrib == {"name": "bench check", "tests": "3", "failures": "1", "errors": "0", "skipped": "0"}
    suites = {suite.attrib["name"]: suite for suite in root}
    assert {name: (s.attrib["tests"], s.attrib["failures"]) for name, s in suites.items()} == {
        "bench check G1": ("2", "1"),
        "bench check G2": ("1", "0"),
    }
    same, lost = suites["bench check G1"].findall("testcase")
    assert len(same) == 0
    assert lost.attrib["name"] == "cf_amc_ssl, linear, pgd at eps 0.1, robust accuracy"
    assert [(f.attrib, f.text) for f in lost] == [({"type": "G1", "message": "61.2 % -> 57.9 %"}, str(LOSS))]
    assert [p.attrib for p in suites["bench check G2"].iter("property")] == [
        {"name": "gain: emp_ssl, passes per image", "value": "6 -> 5"}
    ]


def test_sarif_has_a_result_for_what_has_moved_losses_first() -> None:
    """The members that code scanning asks for: https://docs.github.com/code-security (SARIF support)."""
    document = json.loads(sarif([*COMPARED, ODD], "a b/ci.json"))
    assert document["version"] == "2.1.0"
    (run,) = document["runs"]
    assert {rule["id"] for rule in run["tool"]["driver"]["rules"]} == set(RULES)
    told = [(result["ruleId"], result["level"]) for result in run["results"]]
    assert told == [("G1", "error"), ("G2", "error"), ("G2", "note")]
    assert run["results"][0]["message"]["text"] == str(LOSS)
    for result in run["results"]:
        (place,) = result["locations"]
        assert place["physicalLocation"] == {"artifactLocation": {"uri": "a%20b/ci.json"}, "region": {"startLine": 1}}
        assert not re.search(r"[\x00-\x1f\ud800-\udfff]", result["message"]["text"])
    later = json.loads(sarif([replace(LOSS, after="57.0 %"), GAIN], "ci.json"))["runs"][0]["results"]
    first = [run["results"][place]["partialFingerprints"] for place in (0, 2)]
    assert [result["partialFingerprints"] for result in later] == first  # the same alert, not a new one
    assert json.loads(sarif([SAME], "ci.json"))["runs"][0]["results"] == []


def test_junit_keeps_to_the_elements_that_the_schema_knows_in_its_order() -> None:
    """The Ant schema, which the three readers share: properties before cases, nothing but a failure in a case."""
    known = {"testsuites": {"testsuite"}, "testsuite": {"properties", "testcase"}, "properties": {"property"}}
    known |= {"testcase": {"failure"}, "property": set(), "failure": set()}
    for element in ElementTree.fromstring(junit([*COMPARED, ODD])).iter():
        assert {child.tag for child in element} <= known[element.tag]
    order = [child.tag for child in ElementTree.fromstring(junit(COMPARED)).find("testsuite[@name='bench check G2']")]
    assert order == ["properties", "testcase"]


def test_no_name_breaks_the_xml() -> None:
    case = next(ElementTree.fromstring(junit([ODD]).encode()).iter("testcase"))
    assert "<script>`[x](y)` [2J " in case.attrib["name"]
    assert case.attrib["classname"] == "bench.gate.check.G2"


def parsed(line: str) -> tuple[str, str, str]:
    """(command, title, message) as GitHub's runner reads a workflow command."""
    command, title, message = re.fullmatch(r"::(\w+) title=([^:,]*)::(.*)", line).groups()
    return command, unquote(title, errors="surrogatepass"), unquote(message, errors="surrogatepass")


def test_a_loss_is_an_error_a_gain_a_notice_and_what_did_not_move_is_silent() -> None:
    assert [parsed(line) for line in annotations(COMPARED)] == [
        ("error", "cf_amc_ssl, linear, pgd at eps 0.1, robust accuracy", str(LOSS)),
        ("notice", "emp_ssl, passes per image", str(GAIN)),
    ]
    assert annotations([LOSS])[0].startswith(
        "::error title=cf_amc_ssl%2C linear%2C pgd at eps 0.1%2C robust accuracy::LOSS cf_amc_ssl, linear"
    )


def test_no_name_ends_an_annotation_or_begins_a_command() -> None:
    (line,) = annotations([ODD])
    assert "\n" not in line
    assert "\r" not in line
    assert parsed(line) == ("error", f"{HOSTILE}, {HOSTILE}", str(ODD))


def test_annotations_stop_where_github_does_and_say_so() -> None:
    lines = annotations([LOSS] * 12 + [GAIN] * 10)
    assert len(lines) == 20
    assert lines[9] == "::error title=bench check::3 more are in the job summary"
    assert parsed(lines[19])[2] == str(GAIN)


def cells(text: str) -> list[list[str]]:
    """The rows of all tables, as a Markdown parser shows them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    rows: list[list[str]] = []
    for before, token in zip([tokens[0], *tokens], tokens, strict=False):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and before.type in ("td_open", "th_open"):
            assert {child.type for child in token.children} <= {"text", "text_special"}
            rows[-1].append("".join(child.content for child in token.children))
    return rows


def test_the_summary_shows_losses_first_and_what_did_not_move_below() -> None:
    heads = ["", "gate", "cell", "metric", "before", "after", "rule", "p"]
    assert cells(summary(COMPARED)) == [
        heads,
        ["loss", "G1", LOSS.cell, "robust accuracy", "61.2 %", "57.9 %", "McNemar", "0.0002"],
        ["gain", "G2", "emp_ssl", "passes per image", "6", "5", "equal", ""],
        heads,
        ["same", "G1", "emp_ssl, linear", "clean accuracy", "93.1 %", "93.1 %", "McNemar", "1"],
    ]
    assert summary(COMPARED).startswith("### bench check: 1 loss, 1 gain in 3 compared metrics\n")
    assert "did not move" not in summary([LOSS])
    assert headline([SAME]) == "0 losses, 0 gains in 1 compared metric"


def test_what_differs_without_a_direction_is_no_gain() -> None:
    found = Comparison("G0", "emp_ssl", "emp_ssl", "counts", "6", "5", "differs", "equal counts")
    assert (found.outcome, json.loads(as_json([found]))["gains"]) == ("differs", 0)
    assert annotations([found])[0].startswith("::notice title=emp_ssl%2C counts::differs emp_ssl")
    assert "differs" in summary([found])


def test_no_name_is_markup_in_the_summary() -> None:
    shown = HOSTILE.replace("\r", " ").replace("\n", " ").replace("\x1b", " ").replace("\ud800", " ").rstrip()
    assert cells(summary([ODD]))[1] == ["loss", "G2", *[shown] * 5, "0.5"]


def test_the_summary_follows_what_its_step_has_written(tmp_path: Path) -> None:
    file = tmp_path / "summary.md"
    assert write_summary("one\n", {}) is None
    assert write_summary("one\n", {"GITHUB_STEP_SUMMARY": str(file)}) == file
    write_summary("two\n", {"GITHUB_STEP_SUMMARY": str(file)})
    assert file.read_text(encoding="utf-8") == "one\n\ntwo\n"


def test_json_counts_and_names_everything() -> None:
    found = json.loads(as_json([*COMPARED, ODD]))
    assert (found["losses"], found["gains"]) == (2, 1)
    assert [each["verdict"] for each in found["compared"]] == ["same", "gain", "loss", "loss"]
    assert found["compared"][2] == {
        "gate": "G1", "cell": LOSS.cell, "metric": "robust accuracy", "before": "61.2 %", "after": "57.9 %",
        "rule": "McNemar", "p": 2e-4, "verdict": "loss",
    }  # fmt: skip


WORKFLOW = (ROOT / ".github" / "workflows" / "gate.yml").read_text(encoding="utf-8")
DOCUMENT = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")


def test_the_workflow_pins_its_actions_and_runs_the_gate() -> None:
    (job,) = yaml.safe_load(WORKFLOW)["jobs"].values()
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", each) for each in used)
    assert yaml.safe_load(WORKFLOW)["permissions"] == {"contents": "read"}
    assert [step["run"] for step in job["steps"] if "bench check" in step.get("run", "")]


@pytest.mark.parametrize("text", [WORKFLOW, DOCUMENT], ids=["gate.yml", "ci.md"])
def test_the_commands_exist(text: str) -> None:
    named = set(re.findall(r"(?:^|`|bin/|run: )bench ([a-z]+)", text, re.MULTILINE))
    assert "check" in named
    assert named <= set(cli.commands)
