"""A run's end as one file: the page with its style, its script and what there is to show, for any browser, without a server.

Theory of operation: the page is the dashboard's own; its data stand in the file instead of coming in a stream.  The file's own policy
allows its style and script by their hashes, and no connection at all.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any, Final

import msgspec

from windlass.dashboard.feed import state_of

#: In the order in which the page loads them.
SCRIPTS: Final = ("words.js", "charts.js", "tables.js", "page.js")


def report_html(whole: dict[str, Any]) -> bytes:
    """The file for a view with all that was noted (`Feed.whole`, `windlass.runs`)."""
    files = resources.files("windlass.dashboard")
    page, style, *scripts = (files.joinpath(name).read_text("utf-8") for name in ("page.html", "page.css", *SCRIPTS))
    allowed = " ".join(f"'{_hash(script)}'" for script in scripts)
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src {allowed}; img-src data:; base-uri 'none'; form-action 'none'"
    inline = "\n".join(f"<script>{script}</script>" for script in scripts)
    # What ends a script element, or begins a comment in one, cannot stand in the data.
    data = msgspec.json.encode(state_of(whole)).decode().replace("<", "\\u003c")
    for old, new in (
        ("<!--policy-->", f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        ('<link rel="stylesheet" href="page.css">', f"<style>{style}</style>"),
        *((f'<script src="{name}" defer></script>', "") for name in SCRIPTS),
        ("<!--report-->", f'<script type="application/json" id="report">{data}</script>\n{inline}'),
    ):
        assert page.count(old) == 1, old
        page = page.replace(old, new)
    return page.encode()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
