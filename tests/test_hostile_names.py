"""Names and texts of others: no name leads out of a folder, no text comes alive (SECURITY.md)."""

import csv
import io
import re

import pytest
from hostile_fixtures import SPEC, one_line
from pydantic import ValidationError
from pypdf import PdfReader
from report_fixtures import audited, manifest, probe, records, write
from rich.console import Console

from bench.cli import main
from bench.commands.output import say_log
from bench.options.external_request import Request
from bench.options.options import options_of
from bench.record import Audit, EvalResult, ProbeResult, Setting
from bench.registry import load as load_plugin
from bench.runs.progress import Display
from bench.spec import DataSpec, EvalSpec, RunSpec, UsageError
from bench.storage.files import save
from bench.storage.store import MANIFEST
from bench.text import plain
from reports import inert

NAMES = (
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "\t=1+1",
    "\r=1+1",
    "\x00=1+1",
    "  =HYPERLINK(1)",
    "＝1+1",
    "a\n=1+1",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"></td><svg onload=alert(1)>',
    "#import sys: x",
    '#eval("1+1")',
    "$ integral_0^1 $",
    '#read("/etc/passwd")',
    "*bold* _it_ `raw` @ref <label>",
    "\\write18{touch x}",
    "\\input{/etc/passwd}",
    "\x1b[2J\x1b[1;1H",
    "\x1b]8;;http://127.0.0.1\x1b\\link\x1b]8;;\x1b\\",
    "\x9b31mred",
    "\u202eevil\u202c",
    "zero\u200bwidth\ufeff",
    "[bold red]markup[/]",
    "../../../../tmp/out",
    "..",
    "x" * 5000,
    "a\x08\x08\x7f\x85b\u2028c",
)
assert len(NAMES) == len(set(NAMES)) == 30
CELL = {"protocol": "linear", "attack": "pgd", "threat_space": "image", "eps": 0.1, "outcomes": "1", "seconds": 1}
AUDIT = {"protocol": "linear", "level": "core", "eps": 0.1, "checks": []}


def code(*arguments):
    with pytest.raises(SystemExit) as leaving:
        main(list(map(str, arguments)))
    return leaving.value.code


@pytest.mark.parametrize("name", [*NAMES, ".hidden", "a/b", "a b", "", "ünï", "a\n", "x" * 69, "-o", "\ud800"])
def test_a_name_of_a_file_is_letters_digits_dots_and_dashes(name):
    for kind, values in (
        (RunSpec, SPEC | {"method": name}),
        (RunSpec, SPEC | {"label": name}),
        (EvalSpec, {"attacks": [name]}),
        (EvalSpec, {"protocols": [name]}),
        (EvalResult, CELL | {"protocol": name}),
        (EvalResult, CELL | {"attack": name}),
        (EvalResult, CELL | {"images_sha256": name or "a"}),
        (ProbeResult, probe("linear").model_dump() | {"protocol": name}),
        (Audit, AUDIT | {"protocol": name}),
    ):
        with pytest.raises(ValidationError):
            kind.model_validate(values)
    if name:  # of a row of a suite: the method's
        with pytest.raises(UsageError) as refused:
            options_of({"rows": [{"method": "simclr", "name": name}]})
        assert "\n" not in str(refused.value)
    row = Request(source="m.safetensors", name=name, data=DataSpec(name="digits"), eval=EvalSpec()).row
    assert RunSpec.model_validate(SPEC | {"method": row}).name == f"{row}-s0"


def test_good_names_pass():
    for name in ("a", "emp_ssl-1.5", "_x", "0", "x" * 68):
        assert RunSpec.model_validate(SPEC | {"method": name, "label": name, "seed": 10**10 - 1}).row == name
    assert re.fullmatch(
        r"[A-Za-z0-9._-]{1,80}", RunSpec.model_validate(SPEC | {"method": "x" * 68, "seed": 9**10}).name
    )


@pytest.mark.parametrize("name", ["my method", "=a", ".x", "ü", "x" * 69])
def test_a_method_file_has_such_a_name_too(tmp_path, name):
    (tmp_path / f"{name}.py").write_text("raise SystemExit('executed')\n", encoding="utf-8")
    with pytest.raises(UsageError, match="expected a method file whose name has at most 68 letters, digits"):
        load_plugin("method", str(tmp_path / f"{name}.py"))


@pytest.mark.parametrize("command", ["report", "verify", "check"])
def test_a_manifest_with_a_hostile_name_is_refused_in_one_line(tmp_path, capsys, command):
    asked = manifest(("simclr",))
    for number, name in enumerate(NAMES):
        spec = asked.runs[0].model_copy(update={"method": name})
        save(tmp_path / str(number) / MANIFEST, asked.model_copy(update={"runs": [spec]}))
        assert code(command, tmp_path / str(number)) == (1 if command == "verify" else 2)
        said = capsys.readouterr()
        first, *others = (said.err or said.out).splitlines()
        assert one_line(first)
        assert "as a Manifest, runs.0.method" in first
        assert len(others) == (command == "verify")  # which counts what it found
        assert [path.name for path in (tmp_path / str(number)).iterdir()] == [MANIFEST]


@pytest.mark.ci  # by default the tests of each part have some of them
def test_free_text_comes_alive_nowhere(tmp_path, capsys):
    """30 names in every field that stays free text, through the tables, the figures, the PDF and the terminal."""
    asked = manifest(("simclr", "cf_amc_ssl"), seeds=15)
    label = NAMES[0] + NAMES[20] + NAMES[15]
    machine = asked.environment.model_copy(
        update={
            "versions": dict(zip(NAMES, NAMES, strict=True)),
            "cpu": NAMES[20],
            "device_name": NAMES[1],
            "node": NAMES[2],
        }
    )
    asked = asked.model_copy(
        update={
            "command": list(NAMES),
            "environment": machine,
            "dataset_source": " ".join(NAMES),
            "data": asked.data.model_copy(update={"label": label}),
        }
    )
    found = []
    for name, record in zip(NAMES, records(asked, diverged=()), strict=True):
        checks = [
            audited("linear", record.results, 0.1, "FAIL")
            .checks[0]
            .model_copy(update={"note": name, "threshold": name})
        ]
        changes = {
            "status": "failed",
            "message": name,
            "adversary": name,
            "environment": machine,
            "data": asked.data,
            "settings": [Setting(name=name, value=[name, {name: name}], source=name)],
            "train": record.train.model_copy(update={"note": name}),
            "results": [each.model_copy(update={"note": name, "config_hash": name}) for each in record.results],
            "audits": [each.model_copy(update={"checks": checks}) for each in record.audits],
        }
        found.append(record.model_copy(update=changes))
    write(tmp_path, asked, found)
    before = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert code("report", tmp_path) == 0
    said = capsys.readouterr()
    assert all(line.isprintable() for line in (said.out + said.err).split("\n"))
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} - before
    assert {name.partition("/")[0] for name in made} == {
        "results.csv", "leaderboard.csv", "claims.csv", "report.pdf", "report.html", "figures"
    }  # fmt: skip
    for file in tmp_path.glob("*.csv"):
        table = file.read_text(encoding="utf-8")
        assert all(line.isprintable() for line in table.split("\n"))
        for line in table.splitlines()[1:]:
            for cell in next(csv.reader([line])):
                number = re.fullmatch(r"-?[0-9.]+(e-?[0-9]+)?", cell)
                assert number or not cell.lstrip().startswith(inert.FORMULAS), cell
    pages = [page.extract_text() for page in PdfReader(tmp_path / "report.pdf").pages]
    shown = "".join(c for page in pages for c in page if c.isprintable() and not c.isspace())
    for name in NAMES:
        seen = inert.printable(name).replace("＝", "")  # the font of the report has no such letter
        assert "".join(seen.split())[:200] in shown, name  # a page ends somewhere in the longest
    for svg in (tmp_path / "figures").glob("*.svg"):
        assert "<script" not in svg.read_text(encoding="utf-8")


def test_numbers_stay_numbers_and_text_does_not_become_one():
    assert [inert.cell(value) for value in (-0.5, 3, None, True)] == [-0.5, 3, None, True]
    assert inert.cell("-0.5") == "'-0.5"
    for name in NAMES:
        assert inert.cell(name).isprintable()
        assert not inert.cell(name).lstrip().startswith(inert.FORMULAS)


@pytest.mark.parametrize("name", [*NAMES, "\ud800 lone surrogate"])
def test_nothing_moves_the_cursor(name, tmp_path, capsys):
    assert plain(name).isprintable()
    assert plain("Größe 8/255 – ε ≤ 0.1") == "Größe 8/255 – ε ≤ 0.1"
    (tmp_path / "log.txt").write_bytes(b"first\n" + name.encode(errors="replace") + b"\xff\x1b[2J\n")
    say_log(tmp_path / "log.txt")
    said = capsys.readouterr().err.split("\n")
    assert said[0] == "first"
    assert all(line.isprintable() for line in said)
    screen = io.StringIO()
    spec = RunSpec.model_validate(SPEC)
    with Display(Console(file=screen, width=200)) as display:
        display.begin([spec], None)
        display.started(spec)
        display.ended(spec, "failed", name)
        cell = {"event": "cell", "protocol": name, "attack": name, "eps": 0.1, "correct": 1, "total": 2, "seconds": 1.0}
        display.event(spec, cell | {"note": name})
    assert all(line.isprintable() for line in screen.getvalue().split("\n"))
    assert len(screen.getvalue().splitlines()) == 3
