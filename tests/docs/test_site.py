"""The site as `make docs` builds it. Skipped where the extra `docs` is missing."""

import subprocess
import sys

import pytest

from tests.docs.blocks import PAGES, ROOT

pytest.importorskip("zensical", reason="pip install 'sentence-distill[docs]'")
pytest.importorskip("mkdocstrings_handlers.python", reason="pip install 'sentence-distill[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly."""
    folder = tmp_path_factory.mktemp("built") / "site"
    command = [sys.executable, ROOT / "docs/build_site.py", folder]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def problems():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from check_site import problems

        yield problems
    finally:
        sys.path.remove(str(ROOT / "docs"))


def test_every_page_and_every_command_is_there(site):
    for page in PAGES:
        if page.parent.name == "docs":
            assert (site / page.name).with_suffix(".html").exists()
    commands = (site / "commands.html").read_text(encoding="utf-8")
    for anchor in ("sd-embed", "sd-train-student", "sd-eval", "sd-shards-verify"):
        assert f'id="{anchor}"' in commands
    assert "--shard-rows" in commands
    assert 'id="sentence_distill.Student.encode"' in (site / "api.html").read_text(encoding="utf-8")
    assert "recall of the teacher" in (site / "results.html").read_text(encoding="utf-8")


def test_a_page_fetches_nothing_from_elsewhere_and_no_link_is_dead(site, problems):
    assert problems(site) == []


@pytest.mark.parametrize(
    ("added", "problem"),
    [
        ('<script src="https://cdn.example/x.js"></script>', "fetches https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//fonts.example/a.css">', "fetches //fonts.example/a.css"),
        ('<img src="no.png">', "no.png leads nowhere"),
        ('<a href="faq.html#nowhere">x</a>', "faq.html#nowhere leads nowhere"),
    ],
)
def test_what_is_wrong_with_a_page_is_found(site, problems, added, problem):
    page = site / "design.html"
    before = page.read_text(encoding="utf-8")
    page.write_text(before.replace("</body>", f"{added}</body>"), encoding="utf-8")
    found = problems(site)
    page.write_text(before, encoding="utf-8")
    assert found == [f"design.html: {problem}"]
