"""Tables of the command line: columns that fit a terminal, whole rows where nobody has a width, and JSON for programs.

Theory of operation
-------------------
A `Column` says how a key of a row is shown. On a terminal columns are folded to its width; written into a file or a pipe they are as wide
as they need to be, so that ``grep`` and ``less -S`` see whole rows. As JSON it is one object a line, with all its keys.

What is shown may have come from anybody's program (a tag, the message of an exception, a host's word on itself), so what would move the
cursor or change the terminal's state is shown as a question mark. As JSON it is escaped by the format.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]
#: Columns of what is no terminal and says nothing of its width.
_ENDLESS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its heading, and what of a row is shown in it."""

    heading: str
    show: Callable[[Row], str]
    right: bool = False


def text_column(heading: str, key: str | None = None) -> Column:
    """A column of texts as they are."""
    return Column(heading, lambda row: str(row.get(key or heading) or ""))


def number_column(heading: str, key: str | None = None) -> Column:
    """A column of whole numbers."""
    return Column(heading, lambda row: f"{row.get(key or heading) or 0:,}", right=True)


def clean(text: str) -> str:
    """The text without what a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one == "\n" else " " if one == "\t" else "?" for one in text)


def is_terminal(console: Console) -> bool:
    """Whether this console on standard output is on a terminal.

    Rich says so of each pipe as well where FORCE_COLOR or TTY_COMPATIBLE=1 asks for colours: these there are, and no more.
    """
    return console.is_terminal and sys.stdout.isatty()


def plain_console() -> Console:
    """A console on standard output: as wide as its terminal, or as its rows."""
    console = Console(highlight=False)
    if not is_terminal(console) and not os.environ.get("COLUMNS"):
        console.width = _ENDLESS
    return console


def print_table(rows: Iterable[Row], columns: Sequence[Column]) -> None:
    """Print the rows under their headings; columns in which all are empty are left out."""
    shown = [[clean(column.show(row)) for column in columns] for row in rows]
    kept = [place for place in range(len(columns)) if any(line[place] for line in shown)]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for place in kept:
        table.add_column(columns[place].heading, justify="right" if columns[place].right else "left", overflow="fold")
    for line in shown:
        table.add_row(*(Text(line[place]) for place in kept))
    print_picture(table)


def print_picture(what: RenderableType) -> None:
    """Print tables and texts; where there is no terminal without the blanks that fill their lines."""
    console = plain_console()
    if is_terminal(console):
        console.print(what)
        return
    with console.capture() as captured:
        console.print(what)
    sys.stdout.writelines(line.rstrip() + "\n" for line in captured.get().splitlines())


def print_json(rows: Iterable[Row]) -> None:
    """Print each row as one object on a line of its own."""
    for row in rows:
        print(json.dumps(row))
