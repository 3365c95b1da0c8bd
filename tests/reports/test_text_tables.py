"""leaderboard.tex and leaderboard.md, read back by a parser of Markdown, by the structure of LaTeX, and by pdflatex."""

import re
import shutil
import subprocess

import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt
from report_fixtures import CIFAR, audited, manifest, records, tables_only, write

from bench.cli import cli
from bench.spec import Budget
from reports.leaderboard import leaderboard
from reports.main_table import TITLES, main_tables
from reports.reproduction import shell_lines
from reports.rows import rows
from reports.text_tables import latex, markdown, plain_latex, plain_markdown

HOSTILE = (
    "\\input{/etc/passwd}",
    "a & b \\\\ c",
    "100% #1 $x^2$ ~ _",
    "[optional] -- `tick` ``",
    '<script>alert("x")</script>',
    "| a | b \\| c",
    "**bold** ~~gone~~ @octocat",
    "[link](http://host.example) ![i](//x) www.host.example",
    "\n% \\end{document}\n# title\n",
    "^^M\\write18{id}",
)
BACK = {  # what pdflatex shows for each command that plain_latex writes
    r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textasciigrave{}": "`",
    r"\textless{}": "<", r"\textgreater{}": ">", r"\textbar{}": "|", r"\symbol{34}": '"', r"\textendash{}": "–",
    "{[}": "[", "{]}": "]", "-{}": "-", r"\{": "{", r"\}": "}", r"\$": "$", r"\&": "&", r"\#": "#", r"\_": "_",
    r"\%": "%",
}  # fmt: skip


def board_of(asked, found):
    return leaderboard(rows(asked, found), found, asked.main_eps)


@pytest.fixture(scope="module")
def mixed():
    """The first method fails its audit on the linear probe, the second is the best; two seeds."""
    asked = manifest(("simclr_adv", "cf_amc_ssl"), seeds=2)
    found = records(asked, diverged=())
    failed = audited("linear", found[0].results, 0.1, "FAIL")
    found[0] = found[0].model_copy(update={"audits": [failed, found[0].audits[1]]})
    return asked, found, board_of(asked, found)


@pytest.fixture(scope="module")
def hostile():
    asked = manifest(HOSTILE).model_copy(update={"command": ["bench", "run", "`id`", "%", "@octocat", "```"]})
    return asked, board_of(asked, records(asked, diverged=()))


def tables_of(text):
    """Cells of the tables of a Markdown text, as a reader sees them."""
    found, inside = [], False
    for token in MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            inside = True
        elif token.type == "inline" and inside:
            found[-1][-1].append(token)
            inside = False
    return found


def seen(token):
    return "".join(child.content for child in token.children if child.type == "text")


def kinds(token):
    return {child.type for child in token.children if child.content != "<!-- -->"}


def tabulars(text):
    """Rows of cells of the tabulars of a LaTeX text, still escaped."""
    bodies = re.findall(r"\\toprule\n(.*?)\\bottomrule", text, re.DOTALL)
    lines = [body.replace("\\midrule\n", "").splitlines() for body in bodies]
    assert all(line.endswith(r" \\") for each in lines for line in each)
    return [[re.split(r"(?<!\\) ?& ", line.removesuffix(r" \\")) for line in each] for each in lines]


def shown(cell):
    """A cell of LaTeX as it is read."""
    inner = re.sub(r"^\{\\scriptsize (.*)\}$", r"\1", cell)
    inner = re.sub(r"^\\(?:textbf|sout)\{(.*)\}$", r"\1", inner)
    return re.sub("|".join(map(re.escape, BACK)), lambda match: BACK[match[0]], inner)


def test_the_numbers_of_both_are_those_of_the_leaderboard(mixed):
    asked, _, board = mixed
    drawn = main_tables(asked, board)
    expected = [[[c if isinstance(c, str) else next(iter(c.values())) for c in row] for row in each["rows"]]
                for each in drawn]  # fmt: skip
    heads = TITLES.split(" | ")
    assert [[list(map(shown, row)) for row in each] for each in tabulars(latex(asked, board))] == [
        [heads, *each] for each in expected
    ]
    assert [[list(map(seen, row)) for row in each] for each in tables_of(markdown(asked, board))] == [
        [heads, *each] for each in expected
    ]
    best = board[(board["protocol"] == "linear") & board["best"]].iloc[0]
    assert expected[0][0][heads.index("Worst %")] == f"{100 * best['worst']:.1f}"


def test_the_best_is_bold_a_failed_audit_is_struck_and_intervals_are_small(mixed):
    asked, _, board = mixed
    (_, best, failed), _ = tabulars(latex(asked, board))
    place = TITLES.split(" | ").index("Worst %")
    assert best[1] == r"\textbf{cf\_amc\_ssl}"
    assert best[place].startswith(r"\textbf{")
    assert best[place + 1].startswith(r"{\scriptsize ")
    assert failed[0] == ""
    assert failed[place].startswith(r"\sout{")
    (_, best, failed), _ = tables_of(markdown(asked, board))
    assert "strong_open" in kinds(best[1])
    assert "strong_open" in kinds(best[place])
    assert "s_open" in kinds(failed[place])


def test_the_caption_says_what_the_numbers_stand_on():
    asked = manifest(("cf_amc_ssl",), data=CIFAR, eps=(8 / 255,))
    board = board_of(asked, records(asked))
    said = "cifar10[2000/1000] (a subset), eps 8/255, n = 64, budget 1m, quick evaluation, not comparable."
    assert plain_latex(f"SLF (linear probe) on {said}") in latex(asked, board)
    assert plain_markdown(f"SLF (linear probe) on {said}") in markdown(asked, board)
    for package in ("booktabs", "graphicx", "ulem"):
        assert f"]{{{package}}}" in latex(asked, board) or f"usepackage{{{package}}}" in latex(asked, board)


def test_a_table_for_each_budget_and_protocol():
    asked = manifest(("simclr-1m", "simclr-5m"))
    found = [
        r.model_copy(update={"spec": r.spec.model_copy(update={"budget": Budget.parse(r.spec.method[-2:])})})
        for r in records(asked, diverged=())
    ]
    board = board_of(asked, found)
    captions = [re.search("budget [^,]*", each["caption"])[0] for each in main_tables(asked, board)]
    assert captions == ["budget 1m", "budget 5m"] * 2
    assert len(tabulars(latex(asked, board))) == len(tables_of(markdown(asked, board))) == 4


def test_hostile_names_are_text_in_markdown(hostile):
    asked, board = hostile
    text = markdown(asked, board)
    for table in tables_of(text):
        assert {seen(row[1]) for row in table[1:]} == {" ".join(name.split("\n")).strip() for name in HOSTILE}
        for row in table:
            assert len(row) == len(TITLES.split(" | "))
            assert set().union(*map(kinds, row)) <= {"text", "strong_open", "strong_close", "html_inline"}
    assert not re.search(r"(?<!`)@(?!<!-- -->)", text.split("```")[0])
    blocks = [token for token in MarkdownIt("commonmark").parse(text) if token.type in ("fence", "html_block")]
    assert [token.type for token in blocks] == ["fence"]
    assert "@octocat" in blocks[0].content


def test_hostile_names_are_text_in_latex(hostile):
    asked, board = hostile
    text = latex(asked, board)
    for table in tabulars(text):
        assert {len(row) for row in table} == {len(TITLES.split(" | "))}
        assert {shown(row[1]).strip() for row in table[1:]} == {" ".join(n.split("\n")).strip() for n in HOSTILE}
    known = {
        "textbf",
        "sout",
        "scriptsize",
        "begin",
        "end",
        "centering",
        "small",
        "setlength",
        "tabcolsep",
        "caption",
        "label",
        "resizebox",
        "ifdim",
        "width",
        "linewidth",
        "else",
        "fi",
        "toprule",
        "midrule",
        "bottomrule",
    }
    known |= {found[1] for command in BACK if (found := re.match(r"\\([a-z]+)", command))}
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert set(re.findall(r"\\([a-zA-Z]+)", body)) <= known  # fmt: skip


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
def test_pdflatex_makes_a_page_of_hostile_names(hostile, tmp_path):
    asked, board = hostile
    packages = r"\usepackage{booktabs}\usepackage{graphicx}\usepackage[normalem]{ulem}"
    document = rf"\documentclass{{article}}{packages}\begin{{document}}{latex(asked, board)}\end{{document}}"
    (tmp_path / "a.tex").write_text(document.replace(r"\begin{document}", "\\begin{document}\n"), encoding="utf-8")
    command = ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "a.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True)
    log = done.stdout.decode(errors="replace")
    assert done.returncode == 0, log[-2000:]
    assert "Overfull" not in log


def test_report_writes_them_when_asked_and_then_keeps_them_fresh(tmp_path):
    asked = manifest(("simclr_adv",))
    write(tmp_path, asked, records(asked))
    run = CliRunner().invoke
    with tables_only():
        assert run(cli, ["report", str(tmp_path)], standalone_mode=False).exit_code == 0
        assert not list(tmp_path.glob("leaderboard.[tm]*"))
        assert run(cli, ["report", str(tmp_path), "--tex", "--md"], standalone_mode=False).exit_code == 0
        first = {file.name: file.read_bytes() for file in tmp_path.glob("leaderboard.[tm]*")}
        assert set(first) == {"leaderboard.tex", "leaderboard.md"}
        for file in first:
            (tmp_path / file).write_text("old", encoding="utf-8")
        assert run(cli, ["report", str(tmp_path)], standalone_mode=False).exit_code == 0
    assert {file: (tmp_path / file).read_bytes() for file in first} == first


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "run", "--methods", "a,b"],
        ["bench", "run", *(f"--option-{i}=value" for i in range(20))],
        ["bench", "--methods", ",".join(f"method_{i}" for i in range(40)), "--seeds", "5"],
        ["bench", "x" * 300, "it's", "$(id) `id` \\", "", "# no comment", "~", "a\\"],
    ],
)
def test_the_command_over_several_lines_is_the_command(words):
    lines = shell_lines(["printf", "%s\\0", *words])
    assert max(map(len, lines)) <= 92
    said = subprocess.run(["sh", "-c", "\n".join(lines)], capture_output=True, check=True).stdout
    assert said.decode().split("\0")[:-1] == words
