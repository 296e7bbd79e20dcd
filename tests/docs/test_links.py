"""Links and figures of README.md and docs/, as they are read in the repository."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT, name_of

LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"`((?:data|pipeline|student|cli|src|tests|docs|benchmarks)/[\w./-]+\.\w+)`")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them; none stands twice."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_links_inside_the_repository_lead_somewhere(page):
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: no {link}"
        assert not anchor or anchor in anchors(target), f"{name_of(page)}: no heading {link}"


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", ROOT / "docs/architecture.md"], ids=name_of)
def test_every_file_that_a_page_about_the_code_names_is_there(page):
    named = FILE.findall(page.read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_menu_of_the_site_names_every_page():
    config = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))
    named = re.findall(r"'([\w-]+\.md)'", str(config["project"]["nav"]))
    assert {page.name for page in PAGES if page.parent.name == "docs"} <= set(named)


def test_figures_of_other_pages_are_those_of_the_results():
    results = set((ROOT / "benchmarks/students.md").read_text(encoding="utf-8").splitlines())
    for name in ("README.md", "docs/results.md", "docs/faq.md", "docs/index.md"):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        rows = [line for line in lines if re.match(r"\| .*\d", line)]
        assert rows
        assert [row for row in rows if row not in results] == [], (
            f"{name}: copy the rows of benchmarks/students.md again"
        )
