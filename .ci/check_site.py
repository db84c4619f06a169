"""Looks at the built site, whatever built it:  python .ci/check_site.py build/docs/html

Each link within the site leads to a file and, where it names one, to an anchor in it.  Nothing is fetched from other hosts: no script,
style, font or picture; links that a reader follows may lead anywhere.  Prints what is wrong, and ends with 1 where something is.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: What a browser fetches without being asked, by element and attribute.
FETCHED = {(tag, "src") for tag in ("script", "img", "iframe", "source")} | {("source", "srcset"), ("link", "href"), ("object", "data")}
#: ``link`` elements that are not fetched but followed.
FOLLOWED = {"next", "prev", "canonical", "author", "search", "index", "copyright"}


class Page(HTMLParser):
    """Anchors, links, and what is fetched, of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors.update(given[name] for name in ("id", "name") if given.get(name))
        for name, value in given.items():
            if (tag, name) in FETCHED and not (tag == "link" and given.get("rel", "") in FOLLOWED):
                self.fetched.append(value)
            if name in ("href", "src"):
                self.links.append(value)
            if name == "style":
                self.fetched += re.findall(r"url\(['\"]?([^)'\"]+)", value)


def problems(root: Path) -> list[str]:
    """One line for each thing that is wrong."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(root.rglob("*.html"))}
    found: list[str] = [] if pages else [f"there are no pages in {root}"]
    for path, page in pages.items():
        here = path.relative_to(root)
        found += [f"{here}: fetches {url}" for url in page.fetched if is_elsewhere(url)]
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.exists():
                found.append(f"{here}: {link} leads nowhere")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{here}: {link} names an anchor that is not there")
    for path in root.rglob("*.css"):
        urls = re.findall(r"(?:url\(|@import\s+)['\"]?([^)'\";]+)", path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(root)}: fetches {url}" for url in urls if is_elsewhere(url)]
    for path in root.rglob("*.js"):
        urls = re.findall(r"""["'](https?://[^"']+\.(?:js|mjs|css|woff2?)[^"']*)["']""", path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(root)}: fetches {url}" for url in urls]
    return found


def is_elsewhere(url: str) -> bool:
    """Another host's; ``data:`` is in the page itself."""
    return url.startswith(("http:", "https:", "//"))


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]).resolve())
    print("\n".join(wrong))
    sys.exit(bool(wrong))
