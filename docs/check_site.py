"""Check a built site for links that lead nowhere, and for anything that a page would fetch from elsewhere."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself. A link to another site is followed only by a reader who clicks on it.
_FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}
_FETCHING_LINKS = ("stylesheet", "preload", "prefetch", "preconnect", "dns-prefetch", "icon", "modulepreload")


class _Page(HTMLParser):
    """Links and sources of a page.

    Attributes:
        anchors: ids of the page.
        links: what it links to.
        fetched: what a browser loads with it.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take note of an element's id and of what it refers to."""
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.anchors.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and set(values.get("rel", "").split()) & set(_FETCHING_LINKS):
            self.fetched.append(values.get("href", ""))
        elif values.get(_FETCHED.get(tag, ""), ""):
            self.fetched.append(values[_FETCHED[tag]])


def problems(site: Path) -> list[str]:
    """A line for each link that leads nowhere and each foreign script, font, style or picture."""
    # The page for addresses that are not there is served at any depth, so its links begin at the host's root.
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in _pages(site) if path.name != "404.html"}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name}: fetches {url}" for url in page.fetched if _is_foreign(url)]
        targets = [url for url in (*page.links, *page.fetched) if not _is_foreign(url)]
        found += [f"{name}: {url} leads nowhere" for url in targets if not _leads(url, path, pages)]
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        if "@import" in text or "url(http" in text or "url(//" in text:
            found.append(f"{style.relative_to(site)}: fetches from elsewhere")
    return found


def _pages(site: Path) -> list[Path]:
    # The reports among the measured files are no pages of the site; they have a test of their own.
    return sorted(path for path in site.rglob("*.html") if path.parent.name != "measured")


def _is_foreign(url: str) -> bool:
    parts = urlsplit(url)
    return bool(parts.scheme or parts.netloc) and parts.scheme != "data"


def _leads(url: str, source: Path, pages: dict[Path, _Page]) -> bool:
    parts = urlsplit(url)
    if parts.scheme == "data":
        return True
    target = (source.parent / unquote(parts.path)).resolve() if parts.path else source
    if target.is_dir():
        target /= "index.html"
    if not target.exists():
        return False
    # "#" and "#__skip" and the like belong to the theme; the first means the top of the page.
    return not parts.fragment or target not in pages or unquote(parts.fragment) in pages[target].anchors
