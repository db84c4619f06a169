"""What notebooks show of Windlass's objects, and their bar: HTML. Needs nothing but what a notebook has.

Theory of operation
-------------------
A notebook asks an object that stands at the end of a cell for ``_repr_html_``; `card` makes one. Everything that is put into it is escaped
here, in one place: texts, never HTML, are given. Colours are the notebook's own: text has the colour that surrounds it, lines are a grey
that is seen on white and on black, and so is the red of what is wrong. There is no script and no style sheet, so that it looks the same
in JupyterLab, VS Code, Colab, and in a notebook that was saved.

A bar in a notebook is an output that is replaced (IPython's display ids).
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from windlass.status import show_plain, show_span
from windlass.sums import count_workers

if TYPE_CHECKING:
    from windlass.manager.timings import Timings
    from windlass.messages import CallDone

_BOX: Final = (
    "display:inline-block;max-width:100%;overflow-x:auto;padding:.5em .8em;margin:.2em 0;color:inherit;"
    "border:1px solid rgba(128,128,128,.45);border-radius:6px"
)
_CELL: Final = "text-align:left;vertical-align:top;padding:.1em .9em .1em 0;background:none;color:inherit;border:0"
_QUIET: Final = "opacity:.7"
#: 4.4 to 1 on white, 4.4 to 1 on #181818.
_WRONG: Final = "color:#d64545"
#: Rows of a table that are shown.
ROWS_MOST: Final = 20


class Rows(NamedTuple):
    """A table of a card."""

    headings: Sequence[str]
    rows: Sequence[Sequence[object]]


def card(title: str, state: str, facts: Iterable[tuple[str, object]] = (), tables: Iterable[Rows] = (), wrong: str = "") -> str:
    """An object as HTML: its title, the state it is in, facts by name (empty ones are left out), tables, and what is wrong."""
    parts = [f'<div style="{_BOX}"><div><b>{_escaped(title)}</b> <span style="{_QUIET}">{_escaped(state)}</span></div>']
    told = [(name, value) for name, value in facts if value not in ("", None)]
    if told:
        parts.append(_table([], [(name, value) for name, value in told]))
    parts += [_table(table.headings, table.rows) for table in tables if table.rows]
    if wrong:
        parts.append(f'<pre style="{_WRONG};background:none;margin:.3em 0 0;white-space:pre-wrap">{_escaped(wrong.strip())}</pre>')
    return "".join(parts) + "</div>"


def _escaped(value: object) -> str:
    return html.escape(show_plain(value))


def _table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    parts = ['<table style="border-collapse:collapse;margin:.3em 0 0;background:none;color:inherit">']
    if headings:
        cells = "".join(f'<th style="{_CELL};{_QUIET};font-weight:normal">{_escaped(one)}</th>' for one in headings)
        parts.append(f"<tr>{cells}</tr>")
    for row in rows[:ROWS_MOST]:
        first = f"{_CELL};{_QUIET}" if not headings else _CELL
        cells = "".join(f'<td style="{_CELL if place else first}">{_escaped(one)}</td>' for place, one in enumerate(row))
        parts.append(f'<tr style="background:none">{cells}</tr>')
    if len(rows) > ROWS_MOST:
        parts.append(f'<tr style="background:none"><td style="{_CELL};{_QUIET}">and {len(rows) - ROWS_MOST:,} more</td></tr>')
    return "".join(parts) + "</table>"


def status_card(title: str, state: str, status: Any) -> str:
    """A manager by its status (docs/status.md)."""
    calls = status["calls"]
    libraries = [
        (one["name"], one["waiting"], one["running"], one["done"], one["slots"], show_span(one["saved_seconds"]))
        for one in status["libraries"]
    ]
    pools = [(one["name"], one["backend"], one["pilots"], "paused" if one["paused"] else "") for one in status["pools"]]
    paused = [f"pool {one['name']} is paused: {one['paused']}" for one in status["pools"] if one["paused"]]
    failed = [f"library {one['name']} cannot start: {one['failed']}" for one in status["libraries"] if one["failed"]]
    return card(
        title,
        state,
        [
            ("calls", show_plain({key: calls[key] for key in ("waiting", "running", "done", "failed", "cancelled")}) or "none yet"),
            ("workers", count_workers(status)),
            ("slots", sum(one["slots"] for one in status["libraries"])),
        ],
        [
            Rows(("library", "waiting", "running", "done", "slots", "saved by hoisting"), libraries),
            Rows(("pool", "backend", "pilots", ""), pools),
        ],
        "\n".join(paused + failed),
    )


def call_card(title: str, state: str, tag: str, record: CallDone | None, times: Timings) -> str:
    """A call by its future. Nothing is unpickled for it."""
    from windlass.manager.failures import first_line

    facts: list[tuple[str, object]] = [("tag", tag)]
    if record is not None and times.ended:
        facts += [("waited", show_span(times.waiting)), ("ran", show_span(times.running))]
    attempts = record.attempts if record is not None else ()
    told = Rows(
        ("attempt", "host", "outcome", "after"),
        [(str(one.attempt), one.host, one.outcome, show_span(one.seconds)) for one in attempts],
    )
    return card(title, state, facts, [told], first_line(record.end) if record is not None else "")


# ---------------------------------------------------------------- the bar


class NotebookBar:
    """A bar below the cell that runs."""

    def __init__(self, description: str) -> None:
        self._description = description
        self._handle: Any = None

    def draw(self, done: int, total: int | None, passed: float) -> None:
        """Show that so many are done, after so many seconds."""
        from IPython import display

        shown = {"text/html": self.html(done, total, passed), "text/plain": self.text(done, total, passed)}
        if self._handle is None:
            self._handle = cast("Any", display).display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)

    def stop(self) -> None:
        """Nothing more comes; what is shown stays."""

    def text(self, done: int, total: int | None, passed: float = 0.0) -> str:
        """In words."""
        from windlass.manager.progress import show_times

        count = f"{done:,} of {total:,}" if total is not None else f"{done:,}"
        return f"{self._description}: {count}, {show_times(done, total, passed)}"

    def html(self, done: int, total: int | None, passed: float = 0.0) -> str:
        """As a notebook shows it."""
        full = f'value="{min(done, total)}" max="{total or 1}"' if total is not None else ""
        label, _, rest = self.text(done, total, passed).rpartition(": ")
        return (
            f'<div style="color:inherit"><span>{html.escape(label)}</span> '
            f'<progress {full} style="width:20em;max-width:50%;vertical-align:middle"></progress> <span>{html.escape(rest)}</span></div>'
        )
