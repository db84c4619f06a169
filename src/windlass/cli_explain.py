"""``windlass explain``: what an error or a symptom means, and what to do, from the manual that travels in the package.

Theory of operation: words are looked up by `windlass.manual`; here they are read (``-``: from stdin, as a traceback is easier to paste than
to quote), and what was found is shown: laid out in a terminal, as Markdown where somebody else reads it, or as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from windlass.errors import UsageError
from windlass.manual import Manual, Topic, manual

if TYPE_CHECKING:
    from rich.console import Console

#: Columns of text in a wide terminal: longer lines are hard to read.
WIDTH: Final = 100
#: Of those that a paste names so many are shown whole.
SHOWN: Final = 2


def explain(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    """Show what the manual says of the words."""
    book = manual()
    if not book.topics:
        raise UsageError("this copy of Windlass was made for nodes and has no pages; ask the one that your program runs with")
    if not chosen.what:
        _list(book, as_json=chosen.json)
        return 0
    asked = " ".join(chosen.what)
    topics = [book.named(asked)] if asked != "-" else []
    found = [topic for topic in topics if topic is not None] or list(book.found(_pasted() if asked == "-" else asked))
    if not found:
        if asked == "-":
            raise UsageError("nothing that was read is known here: no error of Windlass, and no symptom; windlass explain lists all")
        book.require(asked)
    if chosen.json:
        print(json.dumps({"topics": [_as_json(book, topic) for topic in found]}))
    else:
        _show(book, found)
    return 0


def _pasted() -> str:
    if sys.stdin.isatty():
        print("paste the text, then Ctrl-D on a line of its own", file=sys.stderr)
    return sys.stdin.buffer.read().decode(errors="replace")


def _as_json(book: Manual, topic: Topic) -> dict[str, object]:
    return {
        "name": topic.name,
        "kind": topic.kind,
        "title": topic.title,
        "page": f"docs/{topic.page}.md",
        "text": topic.text,
        "see_also": list(book.see_also(topic)),
    }


def _console() -> Console:
    from windlass.tables import is_terminal, plain_console

    console = plain_console()
    if is_terminal(console):
        console.width = min(console.width, WIDTH)
    return console


def _show(book: Manual, topics: Sequence[Topic]) -> None:
    from windlass.tables import is_terminal

    console = _console()
    for topic in topics[:SHOWN]:
        see = [f"windlass explain {name}" for name in book.see_also(topic)]
        if is_terminal(console):
            from rich.markdown import Markdown
            from rich.text import Text
            from rich.theme import Theme

            console.print(Text(topic.title, "bold"))
            console.print()
            with console.use_theme(Theme({"markdown.code": "cyan"})):  # rich's own is on black, whatever the terminal's ground
                console.print(Markdown(topic.text, hyperlinks=False))
            console.print()
            for line in see:
                console.print(Text(f"see also: {line}", "dim"))
        else:
            print(topic.title, topic.text, *(["\n".join(f"see also: {line}" for line in see)] if see else []), sep="\n\n")
        print()
    for topic in topics[SHOWN:]:
        print(f"also: windlass explain {topic.name}")


def _list(book: Manual, *, as_json: bool) -> None:
    topics = [topic for topic in book.topics if topic.kind != "section"]
    if as_json:
        print(json.dumps({"topics": [{"name": one.name, "kind": one.kind, "line": one.line} for one in topics]}))
        return
    from rich.table import Table
    from rich.text import Text

    from windlass.tables import is_terminal

    console = _console()
    headings = {"symptom": "symptoms", "error": "errors", "page": "pages"}
    room = max(len(topic.name) for topic in topics)
    for kind, heading in headings.items():
        if not is_terminal(console):
            print(f"{heading}:", *(f"  {one.name:{room}}  {one.line}" for one in topics if one.kind == kind), sep="\n")
            continue
        table = Table.grid(padding=(0, 2), pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for one in topics:
            if one.kind == kind:
                table.add_row(Text(f"  {one.name}", "bold"), Text(one.line.replace("`", "")))
        console.print(Text(heading, "dim"))
        console.print(table)


def names() -> list[str]:
    """What can be asked for, for completion."""
    return [topic.name for topic in manual().topics if topic.kind != "section"]


def add_parsers(nouns: Any) -> None:
    """Add the parser."""
    one = nouns.add_parser(
        "explain",
        help="what an error or a symptom means, and what to do",
        description="Say what an error or a symptom means, and what to do: the pages of the documentation, here.\n\n"
        "  windlass explain                                 all errors, symptoms and pages, a line each\n"
        "  windlass explain WorkersLost                     an error by its class\n"
        "  windlass explain no module named windlass        what it says, or what you see\n"
        "  windlass explain pools                           a page\n"
        "  windlass explain - < job.log                     whatever a traceback or a log has in it",
        epilog="exit status: 0 explained, 2 nothing of the kind is known",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.add_argument("what", nargs="*", metavar="WHAT", help="a class, words of a text, a page; - reads a text from stdin")
    one.add_argument("--json", action="store_true", help="one object: topics, each with name, kind, title, page, text, see_also")
    one.set_defaults(command=explain)
