"""The pages of the report, read back with pypdf."""

import io

import pytest
from pypdf import PdfReader
from report_fixtures import CIFAR, METHODS, audited, manifest, records, result

from bench.spec import format_eps
from reports import pdf
from reports.leaderboard import leaderboard, ranked_lines
from reports.pairs import pairs
from reports.rows import rows

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="80" height="20"><path d="M0 0L80 20" stroke="red"/></svg>'


def rendered(asked, found, figures=None):
    table = rows(asked, found)
    board = leaderboard(table, found, asked.main_eps)
    return pdf.render(asked, found, table, board, compared(asked, found, board), figures or {})


def compared(asked, found, board):
    return pairs(found, asked.main_eps, ranked_lines(board))


def compared_in(table, found):
    """The leaderboard and claims of ``table``."""
    board = leaderboard(table, found, 0.1)
    return board, pairs(found, 0.1, ranked_lines(board))


def pages(report):
    """Text of each page, without the invisible spaces at which a long name may break."""
    return [page.extract_text().replace("\u200b", "") for page in PdfReader(io.BytesIO(report)).pages]


@pytest.fixture(scope="module")
def cifar():
    asked = manifest(data=CIFAR, eps=(4 / 255, 8 / 255), seeds=2)
    return rendered(asked, records(asked), {"clean_vs_robust": SVG})


@pytest.fixture(scope="module")
def read(cifar):
    return pages(cifar)


def test_the_first_page_says_what_was_run_and_what_follows_from_it(read):
    text = " ".join(read[0].split())
    for said in (
        pdf.TITLE,
        "cifar10[2000/1000] (a subset)",
        "not comparable",
        "What was run. 9 methods (simclr, simclr_adv, ",
        "What came out. SLF (linear probe): the highest ranked robust accuracy is ",
        "What can be claimed. Told apart are ",
        "The images are a subset of the data set",
        "The audit. Of ",
        "SLF (linear probe) on cifar10[2000/1000] (a subset), eps 8/255, n = 64, budget 1m, quick evaluation",
    ):
        assert said in text


def test_the_order_of_the_sections(read):
    text = " ".join("\n".join(read).split())
    titles = ("Robust against clean accuracy.", "Abstract What", "Leaderboard", "What can be claimed What the",
              "Every attack", "Beside the paper",
              "Cost Passes", "Runs that did not finish", "How to read the numbers The clock", "Settings Value and",
              "How to run it again")  # fmt: skip
    places = [text.index(title) for title in titles]
    assert places == sorted(places)


def test_the_end_can_be_copied_to_run_it_again(read):
    text = " ".join("\n".join(read[-2:]).split())
    for said in (
        "# bench 0.1.0, Python 3.11.9, torch 2.8.0, numpy 2.2.0,",
        "# commit 0123456789abcdef0123456789abcdef01234567",
        "# cifar10[2000/1000]: training data",
        "a" * 64,
        "bench run --methods",
        "simclr,simclr_adv,simclr_patch_adv,",
        "2026-03-04T05:06:07+00:00",
        "AMD EPYC 9654",
    ):
        assert said in text


def test_metadata_is_the_manifests(cifar):
    found = PdfReader(io.BytesIO(cifar)).metadata
    assert (found.title, found.author) == (pdf.TITLE, "bench 0.1.0")
    assert found.creation_date.date().isoformat() == "2026-03-04"


def test_every_font_is_embedded(cifar):
    fonts = {}
    for page in PdfReader(io.BytesIO(cifar)).pages:
        for font in page["/Resources"]["/Font"].values():
            inner = font.get_object()["/DescendantFonts"][0].get_object()
            fonts[inner["/BaseFont"]] = inner["/FontDescriptor"].keys() & {"/FontFile", "/FontFile2", "/FontFile3"}
    assert len(fonts) >= 2
    assert all(fonts.values())


def test_figures_are_vectors(cifar):
    assert not any(page.images for page in PdfReader(io.BytesIO(cifar)).pages)


def test_the_leaderboard_in_percent(read):
    asked = manifest(data=CIFAR, eps=(4 / 255, 8 / 255), seeds=2)
    found = records(asked)
    best = leaderboard(rows(asked, found), found, asked.main_eps).iloc[0]
    text = "\n".join(read[:2])
    line = next(line for line in text.splitlines() if "cf_amc_ssl" in line and line.startswith("1"))
    for share in (best["clean"], best["pgd"], best["worst"]):
        assert f"{100 * share:.1f}" in line
    assert f"{100 * best['worst_lo']:.1f}–{100 * best['worst_hi']:.1f} 64" in line


def test_beside_the_paper(read):
    text = " ".join(" ".join(read).split())
    assert "arXiv:2501.03507" in text
    assert "75.88 55.97 33.34" in text
    assert "65.44 41.85 17.19" in text


def test_cifar100_has_its_own_numbers_and_others_have_none():
    found = manifest(("cf_amc_ssl",), data=CIFAR.model_copy(update={"label": "cifar100"}), eps=(8 / 255,))
    assert "50.74 31.73 17.19" in " ".join(pages(rendered(found, records(found))))
    digits = manifest(("cf_amc_ssl",))
    text = " ".join(pages(rendered(digits, records(digits))))
    assert "arXiv" not in text
    assert "Beside the paper" in text


def test_a_long_table_breaks_and_repeats_its_header():
    asked = manifest(METHODS[:3], seeds=10)
    found = records(asked)
    table = rows(asked, found)
    heads = [page for page in pages(rendered(asked, found)) if "Clean (n = 360)" in page and "95 % at 0.1" in page]
    assert len(heads) >= 3
    lines = "\n".join(heads).splitlines()
    ours = table["attack"].isin(["pgd", "autoattack", "worst"])
    attacked = table[ours].groupby(["method", "seed", "protocol", "attack"])
    assert sum("pgd" in line or "autoattack" in line or "worst" in line for line in lines) >= attacked.ngroups


def test_every_attack_has_a_line_with_the_accuracies_over_eps():
    asked = manifest(("simclr_adv",), seeds=2)
    found = records(asked, diverged=())
    table = rows(asked, found)
    (section,) = [each for each in pdf.content(asked, found, table, *compared_in(table, found), {})["sections"]
                  if each["title"] == "Every attack"]  # fmt: skip
    linear = section["tables"][0]
    titles = [column["title"] for column in linear["columns"]]
    assert titles == ["Method", "Seed", "Clean (n = 360)", "Attack", "0.025", "0.05", "0.075", "0.1", "0.15", "0.2",
                      "95 % at 0.1", "n"]  # fmt: skip
    assert [line[:2] + line[3:4] for line in linear["rows"]] == [
        ["simclr_adv", seed, attack] for seed in "01" for attack in ("pgd", "autoattack", "worst")
    ]
    scored = table[(table["protocol"] == "linear") & (table["seed"] == 1)]
    for line in linear["rows"][3:]:
        cells = scored[scored["attack"] == line[3]]
        shown = {eps: text for eps, text in zip(titles[4:10], line[4:10], strict=True) if text}
        assert shown == {format_eps(cell["eps"]): f"{100 * cell['accuracy']:.1f}" for cell in cells.to_dict("records")}
        main = cells[cells["eps"] == 0.1].iloc[0]
        assert line[10:] == [f"{100 * main['lo']:.1f}–{100 * main['hi']:.1f}", str(main["total"])]
    clean = scored.loc[scored["attack"] == "none", "accuracy"].item()
    assert [line[2] for line in linear["rows"][3:]] == [f"{100 * clean:.1f}", "", ""]


def test_more_eps_than_fit_are_a_table_of_their_own():
    eps = tuple(i / 100 for i in range(1, 11))
    asked = manifest(("simclr_adv",), eps=eps)
    found = records(asked, diverged=())
    table = rows(asked, found)
    (section,) = [each for each in pdf.content(asked, found, table, *compared_in(table, found), {})["sections"]
                  if each["title"] == "Every attack"]  # fmt: skip
    linear = [each for each in section["tables"] if each["caption"].startswith("SLF")]
    shown = [[column["title"] for column in each["columns"]][4:-2] for each in linear]
    assert [len(each) for each in shown] == [8, 6]
    tried = sorted({*eps, 0.025, 0.075, 0.15, 0.2})
    assert [float(each) for part in shown for each in part] == [pytest.approx(each) for each in tried]


def test_attacks_in_l2_have_a_table_of_their_own():
    asked = manifest(("simclr_adv",))
    (found,) = records(asked, diverged=())
    in_l2 = [result("linear", "mine", eps, bits, norm="l2") for eps, bits in ((0.1, "10"), (1.5, "00"))]
    found = [found.model_copy(update={"results": [*found.results, *in_l2]})]
    table = rows(asked, found)
    (section,) = [each for each in pdf.content(asked, found, table, *compared_in(table, found), {})["sections"]
                  if each["title"] == "Every attack"]  # fmt: skip
    first, second = section["tables"][:2]
    assert [column["title"] for column in second["columns"]] == [
        *("Method", "Seed", "Clean (n = 360)", "Attack", "l2 0.1", "l2 1.5", "95 % at l2 1.5", "n")
    ]
    ((_, _, clean, *line),) = second["rows"]
    assert (clean, line) == (first["rows"][0][2], ["mine", "50.0", "0.0", "0.0–65.8", "2"])
    assert second["caption"].endswith("In l2: never ranked, and in no worst case.")
    assert "mine" not in [row[3] for row in first["rows"]]


def test_settings_that_all_methods_share_stand_once():
    asked = manifest(("simclr_adv", "cf_amc_ssl"))
    found = records(asked, diverged=())
    table = rows(asked, found)
    (section,) = [each for each in pdf.content(asked, found, table, *compared_in(table, found), {})["appendix"]
                  if each["title"] == "Settings"]  # fmt: skip
    shown = {each["caption"]: [line[0] for line in each["rows"]] for each in section["tables"]}
    assert shown == {
        "All 2 methods": ["crop_scale", "learning_rate", "train_eps"],
        "simclr_adv": ["adversary", "views"],
        "cf_amc_ssl": ["adversary", "views"],
    }


def test_runs_that_did_not_finish_are_named(read):
    text = " ".join(" ".join(read).split())
    assert "simclr_patch_adv 0 diverged the loss was not finite after 41 updates" in text
    assert "simclr_patch_adv (1 of 2 diverged)" in text
    assert "simclr_patch_adv 1m 3.2" not in text


def test_several_nodes_are_counted_and_one_is_not():
    asked = manifest(("simclr",), seeds=3)
    found = records(asked)

    def told(*nodes):
        made = zip(found, nodes, strict=True)
        placed = [r.model_copy(update={"environment": r.environment.model_copy(update={"node": n})}) for r, n in made]
        return dict(pdf._facts(asked, placed, rows(asked, placed))).get("Nodes")

    assert told("a", "b", "a") == "2; results.csv has that of each run"
    assert told("a", "a", "a") is told("", "", "a") is None


def test_hostile_names_are_text():
    names = ("#panic()", "<script>", "=cmd|' /C calc'!A0", "*bold* $x$ @ref", '"; #eval("1")', "x" * 120)
    asked = manifest(names).model_copy(update={"command": ["bench", "run", "#panic()", "\\", "//", "--root=/a/b"]})
    text = "".join("".join(pages(rendered(asked, records(asked, diverged=("<script>-s0",))))).split())
    for name in names:
        assert "".join(name.split()) in text


def test_nothing_but_a_manifest_gives_a_report():
    asked = manifest(("simclr",)).model_copy(update={"dataset_source": "embedded"})
    text = " ".join(pages(rendered(asked, records(asked, diverged=("simclr-s0",)))))
    assert "diverged" in text
    assert "Beside the paper" not in text


def test_a_number_without_a_passed_audit_is_struck_through_and_its_checks_are_listed():
    asked = manifest(("simclr_adv", "cf_amc_ssl"))
    first, second = records(asked, diverged=())
    failed = audited("linear", first.results, 0.1, "FAIL")
    found = [first.model_copy(update={"audits": [failed, first.audits[1]]}), second]
    table = rows(asked, found)
    board = leaderboard(table, found, 0.1)
    data = pdf.content(asked, found, table, board, compared(asked, found, board), {})
    best, failing = data["leaderboards"][0]["rows"]
    place = [column["title"] for column in data["leaderboards"][0]["columns"]].index("Worst %")
    worst = first.results and f"{100 * failed.worst_audited / failed.audited:.1f}"
    assert [failing[0], failing[1], failing[place]] == ["", "simclr_adv", {"struck": worst}]
    assert [best[0], best[1], set(best[place])] == [{"bold": "1"}, {"bold": "cf_amc_ssl"}, {"bold"}]
    (audit,) = [section for section in data["appendix"] if section["title"] == "Audit"]
    (line,) = audit["tables"][0]["rows"]
    assert line == ["simclr_adv", "0", "linear", "S2", "FAIL", "5", "at least 2 eps", "1", ""]
    text = " ".join(" ".join(pages(rendered(asked, found))).split())
    assert "Checks that are not PASS" in text
    assert worst in text


def test_ranges_and_what_can_be_claimed_are_read():
    """The two that no test tells apart share ranks 1 and 2, in bold; simclr is worse than both."""
    asked = manifest(("cf_amc_ssl", "emp_ssl_adv", "simclr"))
    found = records(asked)
    table = rows(asked, found)
    board = leaderboard(table, found, 0.1)
    linear = pdf.content(asked, found, table, board, compared(asked, found, board), {})["leaderboards"][0]
    assert [line[:2] for line in linear["rows"]] == [
        [{"bold": "1-2"}, {"bold": "cf_amc_ssl"}],
        [{"bold": "1-2"}, {"bold": "emp_ssl_adv"}],
        ["3", "simclr"],
    ]
    assert linear["note"].startswith("This table ranks encoders, not methods: it has one seed")
    text = " ".join(" ".join(pages(rendered(asked, found))).split())
    assert "What can be claimed" in text
    assert linear["note"] in text
    for sentence in (
        "The encoder of cf_amc_ssl (seed 0) is better than the encoder of simclr (seed 0) under the worst case of PGD "
        "and AutoAttack at eps 0.1 (linear): ",
        "Encoders, seed by seed: the mean difference",
    ):
        assert sentence in text


def test_nothing_is_claimed_where_nothing_is_ranked():
    asked = manifest(("simclr",))
    text = " ".join(pages(rendered(asked, records(asked, diverged=("simclr-s0",)))))
    assert "What can be claimed" not in text


def test_it_is_tagged_with_tables_headings_and_figures(cifar):
    root = PdfReader(io.BytesIO(cifar)).trailer["/Root"]
    assert root["/MarkInfo"]["/Marked"]
    kinds, left = set(), [root["/StructTreeRoot"]]
    while left:
        node = left.pop().get_object()
        if isinstance(node, dict):
            kinds.add(node.get("/S"))
            below = node.get("/K", [])
            left += below if isinstance(below, list) else [below] if not isinstance(below, int) else []
    assert kinds >= {"/Table", "/TH", "/TD", "/THead", "/Figure", "/H1", "/Caption"}


def test_no_line_leaves_the_page():
    """Very long names, messages, commands and notes, with and without blanks: all text stands within the margins."""
    names = ("x" * 150, "a_" * 70, "very long name " * 9)
    asked = manifest(names, seeds=2).model_copy(update={"command": ["bench", "run", "--set", "y" * 300, "z, " * 90]})
    found = records(asked, diverged=(f"{names[0]}-s0",))
    found = [r.model_copy(update={"message": "m" * 400}) if r.status != "finished" else r for r in found]
    out = []

    def seen(text, _, matrix, __, size):
        if text.strip():
            out.append((matrix[4], text))

    for page in PdfReader(io.BytesIO(rendered(asked, found, {"clean_vs_robust": SVG}))).pages:
        page.extract_text(visitor_text=seen)
    assert len(out) > 200
    assert [each for each in out if not 0 <= each[0] <= 595] == []
