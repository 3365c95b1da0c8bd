"""The page in a real browser, with ``--ci``: Debian's chromium, driven by playwright. Skipped where one is missing."""

import re
import shutil

import pytest
from html_fixtures import asked, found, page_folder

from tests.reports.test_html import HOSTILE, rendered

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install '.[test]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = "needs chromium: apt-get install chromium"
pytestmark = [pytest.mark.ci, pytest.mark.skipif(CHROMIUM is None, reason=MISSING)]
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    from bench.storage.store import load_examples, load_manifest, load_records

    folder = page_folder(tmp_path_factory.mktemp("page"))
    page = folder / "report.html"
    page.write_text(rendered(load_manifest(folder), load_records(folder), load_examples(folder)), encoding="utf-8")
    return page


@pytest.fixture
def visit(browser):
    """``visit(file, **context)``: the page, opened from disk; at the end it has complained of nothing, asked nobody."""
    contexts, complaints = [], []

    def opened(file, width=1280, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (complaints.append("dialog"), dialog.dismiss()))
        page.on("request", lambda request: complaints.append(request.url) if foreign(request.url, file) else None)
        page.goto(file.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def foreign(url, file):
    return not url.startswith("data:") and url.partition("?")[0] != file.as_uri()


def column(page, title):
    """The texts of a column of the leaderboard, from top to bottom, of the lines that are shown."""
    titles = [each.strip() for each in page.locator("#board thead th").all_inner_texts()]
    place = titles.index(title) + 1
    return [
        each.split("\n")[0] for each in page.locator(f"#board tbody tr:visible td:nth-child({place})").all_inner_texts()
    ]


def heading(page, title):
    return page.locator("#board th").filter(has_text=re.compile(f"^{re.escape(title)}$"))


def front(page):
    """The methods that the first panel names, from left to right."""
    return page.locator("[data-chart=scatter] svg").first.locator("text.name").all_text_contents()


def paint(page):
    """Milliseconds until the browser has painted something of it."""
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
    return page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")


def test_first_paint_under_a_second_and_charts_drawn(visit, file, tmp_path):
    """Or under five times that of a page of one word, where the machine takes so long for that."""
    page = visit(file)
    page.wait_for_selector("g.point")
    (tmp_path / "word.html").write_text("<!doctype html><title>a word</title>word", encoding="utf-8")
    assert 0 < paint(page) < max(1000, 5 * paint(visit(tmp_path / "word.html")))
    assert page.locator("[data-chart=scatter] g.point").count() == 18
    assert page.locator("[data-chart=eps] g.series").count() == 18
    assert page.locator("[data-chart=loss] g.series").count() == 27


def test_what_was_chosen_stands_in_the_address(visit, file):
    page = visit(file)
    page.locator(".axes select[name=x]").select_option(index=2)
    page.locator(".legend button").nth(3).click()
    page.locator(".filters select").first.select_option(index=1)
    heading(page, "Clean %").locator("button").click()
    state = page.evaluate("location.search")
    again = visit(file)
    assert again.evaluate("location.search") == ""
    again.goto(file.as_uri() + state + "#leaderboard")
    assert column(again, "Method") == column(page, "Method")
    assert column(again, "Clean %") == column(page, "Clean %")
    assert again.locator("g.point").count() == page.locator("g.point").count() < 18
    axis = ".axes select[name=x]"
    shown = [each.locator(axis).input_value() for each in (page, again, visit(file))]
    assert shown[0] == shown[1] != shown[2]
    page.locator('#board th[data-key="n of AA"] button').click()  # one of several columns that are called n
    again.goto(file.as_uri() + page.evaluate("location.search"))
    assert again.locator("#board th:not([aria-sort=none])").get_attribute("data-key") == "n of AA"
    again.goto(file.as_uri() + state + "#leaderboard")
    again.locator(".legend button").nth(3).click()
    assert "hide=" not in again.evaluate("location.search")
    assert again.evaluate("location.hash") == "#leaderboard"


@pytest.mark.parametrize(
    "query", ["x=nothing&hide=nobody&board=up%20Clean&protocol=%22%3E", "board=ascending", "%ff=%0"]
)
def test_an_address_that_the_page_does_not_know_changes_nothing(visit, file, query):
    page, plain = visit(file), visit(file)
    page.goto(f"{file.as_uri()}?{query}")
    assert column(page, "Method") == column(plain, "Method")
    assert page.locator("g.point").count() == plain.locator("g.point").count()


def test_a_click_or_a_key_on_a_heading_sorts(visit, file):
    page = visit(file)
    before = column(page, "Clean %")
    heading(page, "Clean %").locator("button").click()
    numbers = [float(each) for each in column(page, "Clean %")]
    assert numbers == sorted(map(float, before), reverse=True) != [float(each) for each in before]
    assert heading(page, "Clean %").get_attribute("aria-sort") == "descending"
    page.keyboard.press("Enter")  # the heading that was clicked has the focus
    assert [float(each) for each in column(page, "Clean %")] == sorted(numbers)
    assert heading(page, "Clean %").get_attribute("aria-sort") == "ascending"
    heading(page, "Method").locator("button").focus()
    page.keyboard.press("Space")
    assert column(page, "Method") == sorted(column(page, "Method"))
    assert heading(page, "Clean %").get_attribute("aria-sort") == "none"
    heading(page, "Rank").locator("button").click()
    assert column(page, "Rank")[-3:] == ["", "", ""]  # without a rank: last
    heading(page, "Rank").locator("button").click()
    assert column(page, "Rank")[-3:] == ["", "", ""]


def test_filters_by_protocol_and_status(visit, file):
    page = visit(file)
    page.select_option("select[name=protocol]", "Multi-patch probe")
    assert set(column(page, "Protocol")) == {"Multi-patch probe"}
    assert page.locator(".filters output").inner_text() == "9 of 18 lines"
    page.select_option("select[name=status]", "1 of 3 diverged")
    assert column(page, "Method") == ["simclr_patch_adv"]
    page.select_option("select[name=protocol]", "")
    assert len(column(page, "Method")) == 2
    assert page.locator("#beside tbody tr:visible").count() == 2  # the table of the cost has the same lines
    page.select_option("select[name=status]", "")
    assert len(column(page, "Method")) == 18


# What has the focus shows it: an outline, or the thicker edge of a mark in a figure.
VISIBLE = """() => {
  const [focused, marker] = [document.activeElement, document.activeElement.querySelector(":scope > .marker")];
  const edge = marker ? parseFloat(getComputedStyle(marker).strokeWidth) : 0;
  return getComputedStyle(focused).outlineStyle !== "none" || edge === 3;
}"""


def drawn(page):
    """Wait for two frames: before a frame a page hears how far it was scrolled."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_hover_and_focus_tell_method_numbers_and_cost(visit, file):
    page = visit(file)
    point = page.locator("g.point[data-method=cf_amc_ssl]").first
    assert page.locator("#tip").is_hidden()
    point.scroll_into_view_if_needed()
    drawn(page)  # a page that still scrolls takes the note away
    point.locator(".marker").hover()
    assert page.locator("#tip").is_visible()
    said = page.locator("#tip").inner_text()
    for text in (
        "cf_amc_ssl",
        "trained against: free",
        "Clean accuracy: 92.7 % (90.9 to 94.1)",
        "Training time: 59.6",
        "Energy: 15 kJ",
    ):
        assert text in said
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    point.focus()
    assert page.locator("#tip").inner_text() == said
    page.mouse.wheel(0, 40)
    drawn(page)
    assert page.locator("#tip").is_visible()
    assert "cf_amc_ssl, trained against: free" in point.get_attribute("aria-label")
    page.locator("[data-chart=eps] g.series").first.focus()
    assert "eps (255ths) 8" in page.locator("#tip").inner_text()


def test_the_pareto_front_follows_axes_and_legend(visit, file):
    page = visit(file)
    caption = page.locator("#tradeoff figcaption")
    assert front(page) == ["cf_amc_ssl", "simclr"]
    assert "SLF (linear probe): cf_amc_ssl, simclr." in caption.inner_text()
    page.get_by_role("button", name="cf_amc_ssl").click()
    assert page.locator("g[data-method=cf_amc_ssl]").count() == 0
    assert "cf_amc_ssl" not in front(page)
    assert front(page) == ["emp_ssl_adv", "simclr_adv", "simclr"]
    assert page.get_by_role("button", name="cf_amc_ssl").get_attribute("aria-pressed") == "false"
    page.get_by_role("button", name="cf_amc_ssl").press("Enter")
    assert front(page) == ["cf_amc_ssl", "simclr"]
    page.select_option("select[name=x]", "passes")
    drawn = page.locator("[data-chart=scatter] svg").first
    assert "Passes per image and epoch" in drawn.text_content()
    assert front(page) == ["simclr", "simclr_adv", "cf_amc_ssl"]  # fewer passes are better: from left to right
    for axis in page.locator("select[name=y] option").evaluate_all("each => each.map(e => e.value)"):
        page.select_option("select[name=y]", axis)
        assert page.locator("[data-chart=scatter] g.point").count() == 18
        assert "NaN" not in drawn.evaluate("each => each.outerHTML")


def test_a_number_that_is_not_ranked_is_open_and_never_on_the_front(visit, file):
    page = visit(file)
    linear = page.locator("[data-chart=scatter] svg").first
    hollow = linear.locator("g.point.open").evaluate_all("each => each.map(e => e.dataset.method)")
    assert sorted(hollow) == ["simclr_free", "simclr_patch_adv"]
    for name in (
        "cf_amc_ssl",
        "simclr",
        "emp_ssl",
        "emp_ssl_adv",
        "emp_ssl_patch_adv",
        "emp_ssl_patch_free",
        "simclr_adv",
    ):
        page.get_by_role("button", name=name, exact=True).click()
    assert "SLF (linear probe): no shown method is ranked" in page.locator("#tradeoff figcaption").inner_text()


def test_at_1280_pixels_no_column_is_cut_off_and_the_figure_is_on_the_first_screen(visit, file):
    page = visit(file, height=900)
    page.wait_for_selector("g.point")
    wide = "boxes => boxes.filter(box => box.scrollWidth > box.clientWidth).map(box => box.ariaLabel)"
    assert page.locator(".box").evaluate_all(wide) == []
    figure = page.locator("[data-chart=scatter] svg").first.bounding_box()
    assert figure["y"] + figure["height"] < 900


@pytest.mark.parametrize("width", [320, 390, 768])
def test_no_page_scrolls_sideways(visit, file, width):
    page = visit(file, width=width, height=844)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("document.querySelector('.box').scrollWidth") > width - 60  # the table has its own
    inside = "each => each.every(e => e.getBoundingClientRect().right <= innerWidth + 1)"
    assert page.locator(".panels svg").evaluate_all(inside)


def test_dark_mode(visit, file):
    colours = {}
    for scheme in ("light", "dark"):
        page = visit(file, color_scheme=scheme)
        style = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        colours[scheme] = [sum(map(int, re.findall(r"\d+", each)[:3])) / 3 for each in style]
    (light, ink), (dark, chalk) = colours["light"], colours["dark"]
    assert light > 240 > 60 > ink
    assert dark < 40 < 200 < chalk


def test_print_opens_everything(visit, file):
    page = visit(file)
    assert page.locator("details[open]").count() == 0
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.locator("nav").is_hidden()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0


def test_keyboard_reaches_the_controls_and_shows_where_it_is(visit, file):
    page = visit(file)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the leaderboard"
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.tagName"))
        assert page.evaluate(VISIBLE)
    assert {"A", "SELECT", "BUTTON", "g", "DIV"} <= seen


def test_without_scripts_the_tables_are_there(visit, file):
    page = visit(file, java_script_enabled=False)
    assert page.locator("#board tbody tr").count() == 18
    assert page.locator(".filters").is_hidden()
    assert page.locator("noscript").count() == 1


def test_hostile_names_do_nothing(visit, tmp_path):
    wanted = asked(HOSTILE, seeds=1)
    file = tmp_path / "hostile.html"
    file.write_text(rendered(wanted, found(wanted)), encoding="utf-8")
    page = visit(file)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    for place in range(len(HOSTILE)):
        page.locator("[data-chart=scatter] svg").first.locator("g.point").nth(place).focus()
        assert page.locator("#tip > *").count() >= 4
        assert page.locator("#tip > * > *").count() == 0
    page.locator(".legend button").first.click()
    heading(page, "Method").locator("button").click()
    assert page.locator("script").count() == 3
    assert page.locator("img").count() == 0
    assert "<script>alert(1)</script>" in page.locator("#board").inner_text()


def test_no_script_but_ours_runs(browser, file, tmp_path):
    """The policy itself: a page that somebody has tampered with is stopped by it."""
    text = file.read_text(encoding="utf-8")
    evil = tmp_path / "evil.html"
    evil.write_text(text.replace("</main>", "<script>document.title = 'changed'</script></main>"), encoding="utf-8")
    page = browser.new_page()
    refused = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(evil.as_uri())
    assert page.title() != "changed"
    assert any("Content Security Policy" in each for each in refused)
    page.close()
