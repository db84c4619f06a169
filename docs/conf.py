"""How the pages become a site: ``make docs`` (Sphinx with furo; pages are Markdown that reads as well where the repository is browsed).

Three pages stand at the root of the repository, where people look for them: README, CHANGELOG, CONTRIBUTING.  Here they are taken in
by pages of a line each, with their links as seen from this folder.  Warnings are errors, links and anchors that lead nowhere among
them; ``.ci/check_site.py`` then looks at what was built."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sphinx.ext.napoleon.docstring import GoogleDocstring

import windlass

HERE = Path(__file__).resolve().parent
#: Pages that stand at the root, by their names here.
AT_THE_ROOT = {
    "index": "README.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "reporting": "SECURITY.md",
    "conduct": "CODE_OF_CONDUCT.md",
}
#: Where those are on the site.
PAGE_OF = {file: f"{page}.md" for page, file in AT_THE_ROOT.items()}

#: Folders whose first page lists the others.
LISTS = {"decisions/README": "0*", "evaluation/README": "tables"}

project = "Windlass"
author = "the authors of Windlass"
copyright = author
release = version = windlass.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
highlight_language = "text"
smartquotes = False  # code in tables is HTML, and its quotes are to be copied

myst_heading_anchors = 4  # the anchors that links between pages name
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autoclass_content = "both"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
# A name in single backquotes is what it names, where the reference has it, and code where it does not.
default_role = "py:obj"

html_theme = "furo"
html_title = f"Windlass {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options: dict[str, Any] = {"top_of_page_buttons": []}

#: An option of a command line, in HTML.
_OPTION = re.compile(r"(?<=[\s>])(--[a-z][a-z-]*)")
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")


def from_here(folder: Path, target: str) -> str:
    """``target`` of a link as it stands in a file of ``folder``, with root pages by their names here; of a root page as seen from here."""
    path, hash_, anchor = target.partition("#")
    if not path or "://" in path or path.startswith("mailto:"):
        return target
    real = (folder / path).resolve()
    if real.parent == HERE.parent and real.name in PAGE_OF:
        real = HERE / PAGE_OF[real.name]
    if folder == HERE.parent:
        folder = HERE
    return f"{os.path.relpath(real, folder)}{hash_}{anchor}"


def take_in(app: Any, docname: str, content: list[str]) -> None:
    """Put root pages in their places, and turn links to them."""
    page = HERE / f"{docname}.md"
    folder, text = page.parent, content[0]
    root = AT_THE_ROOT.get(docname)
    if root is not None:
        app.env.note_dependency(str(HERE.parent / root))
        taken = _relinked((HERE.parent / root).read_text(encoding="utf-8"), HERE.parent)
        content[0] = text.replace(f"<!-- {root} -->", taken)
    else:
        content[0] = _relinked(text, folder)
    if docname == "errors":  # its code is HTML, whose words nobody has marked yet
        content[0] = _OPTION.sub(r'<span class="pre">\1</span>', content[0])
    if not content[0].lstrip().startswith(("# ", "```", "<!--")):
        content[0] = f"# {docname.rpartition('/')[2].capitalize()}\n\n{content[0]}"  # what a benchmark has written has no title
    if docname in LISTS:
        content[0] += f"\n```{{toctree}}\n:glob:\n:maxdepth: 1\n\n{LISTS[docname]}\n```\n"


def _relinked(text: str, folder: Path) -> str:
    # Code is left alone: a bracket and a parenthesis in it are no link.
    parts = re.split(r"(^```.*?^```|`[^`\n]+`)", text, flags=re.MULTILINE | re.DOTALL)
    for index in range(0, len(parts), 2):
        parts[index] = _LINK.sub(lambda found: found[1] + from_here(folder, found[2]) + found[3], parts[index])
    return "".join(parts)


def read_sections(app: Any, what: Any, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Read ``Args:`` and ``Raises:``. Of properties and attributes the extension itself would take all before a colon for a type."""
    if what in ("class", "exception", "function", "method"):
        lines[:] = GoogleDocstring(lines, what=what, name=name, obj=value, options=options).lines()


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", take_in)
    app.connect("autodoc-process-docstring", read_sections)
