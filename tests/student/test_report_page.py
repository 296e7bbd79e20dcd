"""The report in a browser. Skipped where there is none: apt-get install chromium, pip install playwright."""

import json
import shutil
from itertools import pairwise

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)

QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
COLUMN = "table:has(caption:text('GLUE')) thead th:has-text('SST-2')"
VALUES = "table => [...table.tBodies[0].rows].slice(1).map(row => row.cells[1].dataset.value ?? null)"


@pytest.fixture(scope="module")
def report(sd, student_folder, tmp_path_factory):
    """The page of a student with figures of every kind."""
    folder = shutil.copytree(student_folder, tmp_path_factory.mktemp("report") / "student")
    rows = {"scratch": 0.095, "distilled": 0.87, "frozen": 0.8, "teacher": 0.92}
    glue = {
        row: {
            "SST-2": [
                {"fraction": fraction, "scores": {"dev": {"accuracy": score * scale}}, "examples": int(1000 * fraction)}
                for fraction, scale in ((0.1, 0.8), (1.0, 1.0))
            ]
        }
        for row, score in rows.items()
    }
    glue["frozen"] |= {task: [{"scores": {"dev": {"accuracy": 0.5}}}] for task in ("QNLI", "RTE", "WNLI")}
    del glue["frozen"]["SST-2"]
    (folder / "glue.json").write_text(json.dumps({"rows": glue}))
    parts = [{"least": 1, "most": 8, "rows": 9, "cosine": 0.8}, {"least": 9, "most": None, "rows": 9, "cosine": 0.9}]
    scores = {"cosine": 0.85, "mean_vector_cosine": 0.2, "by_length": parts, "by_frequency": parts}
    near = [{"text": "The red cat ran under the old tree.", "cosine": 0.9, "shared": True}] * 3
    student = {
        "held_out": scores,
        "sts_spearman": 0.8,
        "examples": [{"query": "A cat.", "teacher": near, "student": near}],
    }
    models = {"student": student, "teacher": {"sts_spearman": 0.9}}
    figures = {"student": "student", "teacher": "teacher", "models": models, "skipped": {}}
    (folder / "eval.json").write_text(json.dumps(figures))
    contenders = {
        name: {"model": name, "threads": {"1": {"by_batch": {"1": 90.0, "128": rate}}}, "sts_spearman": quality}
        for name, rate, quality in (("student", 900.0, 0.8), ("teacher", 100.0, 0.9))
    }
    (folder / "speed.json").write_text(json.dumps({"threads": [1], "contenders": contenders}))
    out = folder.parent / "report.html"
    assert sd("report", folder, "--out", out, "--note", "RTE=of another source") == 0
    return out


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, report):
    """Opens the page, with what it asked for and complained of."""
    contexts = []

    def open_page(width=1440, scheme="light", **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.asked, page.complaints = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(report.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


def test_the_page_shows_all_sections_and_fetches_nothing(opened, report):
    page = opened()
    page.wait_for_load_state("networkidle")
    headings = page.locator("main h2").all_inner_texts()
    assert [heading.split()[0] for heading in headings[1:]] == [
        *("What", "Training", "Quality", "GLUE", "Speed", "Nearest", "How", "Not")
    ]
    assert page.locator("table").count() >= 4
    assert page.locator("figure svg").count() >= 8
    assert page.locator(".absent").count() == 1
    assert [url for url in page.asked if not url.startswith("data:")] == [report.as_uri()]
    assert page.complaints == []


def test_headings_are_in_order_and_pictures_have_a_text(opened):
    page = opened()
    levels = page.eval_on_selector_all("h1,h2,h3,h4", "all => all.map(one => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    assert page.locator("[role=img]:not([aria-label])").count() == 0


def test_a_click_on_a_head_sorts_by_number_and_another_turns_it_round(opened):
    page = opened()
    table, button = page.locator("table:has(caption:text('GLUE'))"), page.locator(f"{COLUMN} >> button")
    button.click()
    falling = table.evaluate(VALUES)
    # As text 9.5 would come first; the empty cell is last both times.
    assert [value and round(float(value), 1) for value in falling] == [92.0, 87.0, 9.5, None]
    assert page.locator(COLUMN).get_attribute("aria-sort") == "descending"
    button.press("Enter")
    rising = table.evaluate(VALUES)
    assert [value and round(float(value), 1) for value in rising] == [9.5, 87.0, 92.0, None]
    assert page.locator(COLUMN).get_attribute("aria-sort") == "ascending"
    assert table.locator("tbody").nth(1).locator("tr").first.inner_text().lower() == "published"


def test_a_phone_scrolls_tables_and_not_the_page(opened):
    page = opened(width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.eval_on_selector_all(".scroll", "all => all.some(one => one.scrollWidth > one.clientWidth)")


def test_the_page_turns_dark_with_the_system(opened):
    backgrounds = {
        scheme: opened(scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    }
    assert backgrounds == {"light": "rgb(251, 251, 249)", "dark": "rgb(18, 21, 24)"}


def test_the_page_is_whole_without_scripts(opened):
    page = opened(java_script_enabled=False)
    assert page.locator("table").count() >= 4
    assert page.locator("thead button").count() == 0
