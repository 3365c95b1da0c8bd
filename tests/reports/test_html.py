"""The page without a browser: what it holds, that it asks nobody for anything, and that text in it stays text."""

import base64
import hashlib
import html as markup
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from html_fixtures import asked, examples, found, page_folder
from report_fixtures import manifest, records

from bench.audit.audit import all_checks
from bench.record import Setting
from bench.storage.store import RunFolder, load_examples, load_manifest, load_records
from reports import html, plots
from reports.charts import charts
from reports.checks import CHECKS
from reports.leaderboard import leaderboard, ranked_lines
from reports.pairs import pairs, sentences
from reports.rows import rows

FIGURES = dict.fromkeys(plots.FIGURES, b'<svg xmlns="http://www.w3.org/2000/svg"/>')
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    '"><img src=x onerror=alert(3)>',
    "' onmouseover='alert(4)",
    "<svg/onload=alert(5)>",
    "javascript:alert(6)",
    "{{ 7 * 191 }}{% raw %}",
    "<!--<script>",
    "</style><style>*{display:none}",
    "]]>&lt;b&gt;\u2028\u202e\x00",
)


def rendered(wanted, everything, pictures=None, figures=None):
    table = rows(wanted, everything)
    board = leaderboard(table, everything, wanted.main_eps)
    claimed = pairs(everything, wanted.main_eps, ranked_lines(board))
    return html.render(wanted, everything, table, board, claimed, figures or {}, pictures or {}).decode()


class Page(HTMLParser):
    """Texts, tags and the contents of scripts, as a browser would see them."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.tags, self.scripts, self.texts, self.within = [], [], [], []
        self.feed(source)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self.within.append(tag)
            self.scripts.append([tag, dict(attributes), ""])

    def handle_endtag(self, tag):
        if self.within and self.within[-1] == tag:
            self.within.pop()

    def handle_data(self, data):
        if self.within:
            self.scripts[-1][2] += data
        else:
            self.texts.append(data)

    def all(self, tag):
        return [attributes for each, attributes in self.tags if each == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return page_folder(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def source(folder):
    return rendered(load_manifest(folder), load_records(folder), load_examples(folder), FIGURES)


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_every_number_of_the_leaderboard_is_in_the_page(folder, page):
    everything = load_records(folder)
    board = leaderboard(rows(asked(), everything), everything, asked().main_eps)
    assert len(board) == 18
    shown = page.text.split("What can be claimed")[0].split("Each n counts the images")[1]
    percent = ["clean", "clean_lo", "clean_hi", "pgd", "autoattack", "worst", "worst_lo", "worst_hi", "worst_audited"]
    for line in board.to_dict("records"):
        for name in percent:
            assert f"{100 * line[name]:.1f}" in shown, (line["method"], name)
        assert f"{100 * line['seed_sd']:.1f}" in shown
        assert f"{line['train_seconds']:.1f}" in shown
        assert f"{line['peak_memory_bytes'] / 1e9:.2f}" in shown
        assert line["method"] in shown
        assert line["status"] == "finished" or line["status"] in shown
    ranks = {
        f"{lo:.0f}–{hi:.0f}" if lo != hi else f"{lo:.0f}" for lo, hi in board[["rank_lo", "rank_hi"]].dropna().values
    }
    assert all(rank in shown for rank in ranks)


def test_each_number_has_a_column_with_its_n(folder):
    everything = load_records(folder)
    table = rows(asked(), everything)
    shown = html.leaderboard(table, leaderboard(table, everything, asked().main_eps), {}, {})
    board, beside = ([column["title"] for column in part["columns"]] for part in shown["tables"])
    for number in ("Clean %", "PGD %", "AA %", "Worst %"):
        assert board[board.index(number) + 1] == "n" or number == "AA %"
    assert board[board.index("AA %") + 1 :][:2] == ["n", "PGD on n %"]
    assert beside[beside.index("Best known %") + 1] == "n"
    assert shown["alike"] == ["cifar10[2000/1000]"]  # said once, above the table
    assert "Data" not in board


def test_lines_of_several_budgets_can_be_filtered_by_budget(folder):
    everything = load_records(folder)
    table = rows(asked(), everything)
    board = leaderboard(table, everything, asked().main_eps)
    assert set(html.leaderboard(table, board, {}, {})["filters"]) == {"protocol", "status"}
    board["budget"] = ["5m", "2h"] * 9
    assert html.leaderboard(table, board, {}, {})["filters"]["budget"] == ["5m", "2h"]


def test_what_the_numbers_stand_on_is_said(folder, page):
    wanted = asked()
    everything = found(wanted)
    table = rows(wanted, everything)
    board = leaderboard(table, everything, wanted.main_eps)
    claimed = pairs(everything, wanted.main_eps, ranked_lines(board))
    (standing,) = set(board["standing"].dropna())
    for text in (standing, *sentences(claimed, wanted.main_eps), "AMD EPYC 9654", "torch 2.8.0", "bench run --methods"):
        assert text in page.text
    for heading in ("Leaderboard", "Trade-off", "Robustness against eps", "Training loss", "Adversarial examples",
                    "Audit", "Settings", "Cost", "Every attack", "The clock", "The adversary"):  # fmt: skip
        assert heading in page.text
    assert "crop_scale" in page.text


def test_a_number_without_a_passed_audit_is_struck_through(source):
    lines = re.search(r'<table class="board" id="board">.*?</table>', source, re.S)[0]
    (line,) = re.findall(r'<tr [^>]*data-protocol="SLF \(linear probe\)".*?</tr>', lines, re.S)[7:8]
    assert "simclr_free" in line
    assert re.search(r"<s>23\.4</s>", line)
    assert line.count("<s>") == 2
    assert source.count('<span class="unseen">not ranked') == 1


def test_every_check_of_the_audit_is_explained(page):
    known = {id for of_crops in (False, True) for id in all_checks(of_crops)}
    assert known <= set(CHECKS)
    for id, (name, meaning) in CHECKS.items():
        assert 3 <= len(name) <= 30
        assert meaning.endswith(".")
        assert id == "A9" or name in page.text
    assert len({meaning for _, meaning in CHECKS.values()}) == len(CHECKS)
    assert page.text.count(CHECKS["A16"][1]) == 18  # a panel for each method and protocol
    assert page.text.count("Not in this level: A9.") == 18


def test_seeds_share_a_panel_and_the_gravest_verdict_counts():
    wanted = asked(("emp_ssl",), seeds=2)
    everything = found(wanted)
    worse = (
        everything[1]
        .audits[0]
        .model_copy(
            update={
                "checks": [
                    c.model_copy(update={"verdict": "FAIL", "value": 9.5}) for c in everything[1].audits[0].checks
                ]
            }
        )
    )
    everything[1] = everything[1].model_copy(update={"audits": [worse, *everything[1].audits[1:]]})
    board = leaderboard(rows(wanted, everything), everything, wanted.main_eps)
    first, second = html.audits(everything, board, {})
    assert (first["verdict"], second["verdict"]) == ("FAIL", "FLAG")
    assert {check["verdict"] for check in first["checks"]} == {"FAIL"}
    assert first["checks"][0]["value"] == "1, 9.5"
    assert first["seeds"] == 2


def test_the_page_is_one_small_file_that_asks_nobody(folder, source, page):
    assert len(source.encode()) < 6e6
    addresses = re.findall(r"[a-z]+://[^\s\"'<>)]+", source)
    assert set(addresses) <= {"http://www.w3.org/2000/svg"}  # the name of a language
    for _, attributes in page.tags:
        assert not attributes.keys() & {"srcset", "action", "formaction", "ping", "background", "poster"}
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert attributes.get("src", "data:").startswith("data:image/") or attributes.get("src") is None
        assert attributes.get("href", "#")[:1] == "#" or attributes["href"] == "data:,"
    assert "@import" not in source
    assert "url(" not in source


def test_only_our_scripts_and_style_may_run(page):
    policy = next(each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    allowed = rules["script-src"].split() + rules["style-src"].split()
    inline = [text for tag, attributes, text in page.scripts if attributes.get("type") != "application/json"]
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in inline]
    assert sorted(hashes) == sorted(allowed)
    assert len(hashes) == 3
    assert "unsafe" not in policy


def test_without_scripts_all_tables_are_there(folder, source):
    still = Page(re.sub(r"<script.*?</script>", "", source, flags=re.S))
    lines = re.search(r'<table class="board" id="board">.*?</table>', source, re.S)[0]
    assert lines.count("<tr data-dataset") == 18
    assert " hidden" not in lines
    assert len(still.all("noscript")) == 1
    pictures = [each["src"] for each in still.all("img") if each["src"].startswith("data:image/svg+xml")]
    assert len(pictures) == 3
    assert still.text.count("cf_amc_ssl") > 30


def test_every_picture_and_figure_has_words(page):
    assert all(each.get("alt") for each in page.all("img"))
    graphics = page.all("svg")
    assert len(graphics) == 18
    assert all(re.match(r"clean \d+\.\d % \(", each["aria-label"]) for each in graphics)
    assert all(each.get("aria-label") for each in page.all("div") if each.get("role") == "region")
    assert all(each.get("aria-sort") == "none" for each in page.all("th") if "data-first" in each)
    assert "lang" in page.all("html")[0]


def test_the_pictures_are_those_of_the_first_seed(folder, page):
    first = examples("linear", 0).examples[0]
    sources = [each["src"] for each in page.all("img")]
    assert sources.count(f"data:image/png;base64,{first.adversarial}") == 2  # under either protocol
    assert len([each for each in sources if each.startswith("data:image/png")]) == 2 * (6 + 9 * 12)
    assert "test image 6" in [each["alt"] for each in page.all("img")]


def test_hostile_text_stays_text():
    wanted = manifest(HOSTILE)
    wanted = wanted.model_copy(update={"dataset_source": HOSTILE[0], "command": list(HOSTILE)})
    everything = [
        record.model_copy(
            update={
                "message": name,
                "adversary": name,
                "status": "failed" if place == 1 else record.status,
                "settings": [Setting(name=name, value=[name], source=name)],
                "audits": [
                    each.model_copy(
                        update={
                            "checks": [
                                c.model_copy(update={"id": name, "note": name, "threshold": name}) for c in each.checks
                            ]
                        }
                    )
                    for each in record.audits
                ],
            }
        )
        for place, (name, record) in enumerate(zip(HOSTILE, records(wanted, diverged=()), strict=True))
    ]
    source = rendered(wanted, everything)
    page = Page(source)
    plain = Page(rendered(manifest(), records(manifest())))
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags} | {"noscript"}
    assert len(page.scripts) == len(plain.scripts)
    assert len(page.all("svg")) == 2 * len(HOSTILE)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "1337" not in source
    data = json.loads(next(text for tag, attributes, text in page.scripts if attributes.get("id") == "data"))
    for name, method in zip(HOSTILE, data["methods"], strict=True):
        shown = html.printable(name)
        assert method["name"] == shown
        assert " ".join(shown.split()) in page.text, name
    assert "<" not in re.search(r'id="data">(.*?)</script>', source, re.S)[1]
    assert "\x00" not in source
    assert "\u202e" not in source


def test_a_damaged_picture_is_named_and_left_out(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    spec = load_manifest(copy).runs[0]
    file = RunFolder(copy, spec).path / "examples" / "linear.json"
    file.write_bytes(file.read_bytes().replace(b'"label": 0', b'"label": 7'))
    damaged = []
    pictures = load_examples(copy, damaged)
    assert [each.path for each in damaged] == [file]
    linear, patches = html.examples(load_records(copy), pictures, {})
    seeds = [{each["name"]: each["seed"] for each in panel["methods"]}[spec.row] for panel in (patches, linear)]
    assert sorted(seeds) == [0, 1]  # the next seed stands in


def test_a_run_without_results_has_no_empty_figures():
    wanted = manifest(("simclr", "emp_ssl"))
    nothing = [record.model_copy(update={"results": [], "audits": []}) for record in records(wanted)]
    page = Page(rendered(wanted, nothing))
    for heading in ("Adversarial examples", "Robustness against eps", "Training loss"):
        assert heading not in page.text
    assert "simclr" in page.text


def test_axes_and_values_of_the_plot():
    wanted = asked(("simclr", "cf_amc_ssl"), seeds=2)
    everything = found(wanted)
    table = rows(wanted, everything)
    board = leaderboard(table, everything, wanted.main_eps)
    drawn = charts(wanted, everything, table, board)
    best = {axis["key"]: axis["best"] for axis in drawn["axes"]}
    assert best == {
        "clean": 1, "worst": 1, "pgd:4/255": 1, "pgd:8/255": 1, "autoattack:8/255": 1,
        "train_seconds": -1, "passes": -1, "peak_memory_bytes": -1, "energy_joules": -1,
    }  # fmt: skip
    point = drawn["panels"][0]["points"][0]
    line = board.iloc[0]
    assert drawn["methods"][point["method"]]["name"] == line["method"] == "cf_amc_ssl"
    assert point["values"]["worst"] == pytest.approx(
        [100 * line[n] for n in ("worst", "worst_lo", "worst_hi")], rel=1e-4
    )
    assert point["values"]["passes"] == [16 * 3 * 3]  # 16 views, 3 replays, forward and twice backward
    assert point["values"]["energy_joules"] == [15.0]
    curve, loss = drawn["lines"]
    assert curve["panels"][0]["series"][0]["points"][0] == pytest.approx(
        [0, *[100 * v for v in clean(table, "simclr")]], rel=1e-4
    )
    assert [len(panel["series"]) for panel in loss["panels"]] == [2, 2]
    assert len(loss["panels"][0]["series"][0]["points"]) == 80


def test_without_autoattack_the_plot_begins_with_pgd():
    wanted = asked(("simclr", "cf_amc_ssl"))
    alone = [
        record.model_copy(update={"results": [r for r in record.results if r.attack in ("none", "pgd")], "audits": []})
        for record in found(wanted)
    ]
    table = rows(wanted, alone)
    drawn = charts(wanted, alone, table, leaderboard(table, alone, wanted.main_eps))
    assert [axis["key"] for axis in drawn["axes"][:3]] == ["clean", "pgd:8/255", "pgd:4/255"]
    assert all(point["values"].keys() >= {"clean", "pgd:8/255"} for point in drawn["panels"][0]["points"])
    assert not any(point["ranked"] for point in drawn["panels"][0]["points"])
    assert "open mark" not in drawn["lines"][0]["text"]


def clean(table, method):
    """Mean, least and most clean accuracy of the linear probe over seeds."""
    accuracy = table[(table["method"] == method) & (table["protocol"] == "linear") & (table["attack"] == "none")][
        "accuracy"
    ]
    return accuracy.mean(), accuracy.min(), accuracy.max()


def test_the_page_escapes_as_the_standard_library_does(source):
    assert markup.escape("9 methods, seeds 0, 1, 2") in source
