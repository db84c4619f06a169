"""What `windlass status --watch` shows, as lines of just the terminal's size. Pure: no clock, no terminal.

Theory of operation
-------------------
A `View` is what is known: the newest status, the newest answer about calls, and how many calls had ended at each look (of which the rate,
the small chart and the time that is left are made). `draw` makes lines of it. A *section* is a table whose heading is its title; sections
get their least number of lines first, then as many as they want in the order of importance, so that on a low terminal workers are cut and
not the reason why a pool is paused. From `WIDE` columns on there are two columns of sections.

A table keeps its columns within its width by cutting elastic ones short, then by leaving out those that matter least.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from windlass.status import show_bytes, show_hosted, show_left, show_plain, show_span, show_used
from windlass.sums import count_workers, pilots_failed, queue_reasons
from windlass.tables import clean

Row = Mapping[str, Any]

#: Columns of a terminal from which on there are two columns of sections.
WIDE: Final = 130
#: Looks that are remembered, for the chart.
SAMPLES: Final = 600
#: Seconds over which the rate is taken.
RATE_SECONDS: Final = 10.0
_GAP: Final = 2
#: What an elastic column has at least.
_ELASTIC_LEAST: Final = 8
_BARS: Final = " ▁▂▃▄▅▆▇█"
#: What stands for letters that a terminal does not have, each of one column.
_PLAIN: Final = str.maketrans("▁▂▃▄▅▆▇█━─…↑↓", "..:-=+*#=-~kj")


@dataclass
class View:
    """What is known, and how it is looked at."""

    status: Row
    calls: Sequence[Row] = ()
    #: (manager's clock, calls that had ended).
    samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    #: Workers that are passed over at the top.
    offset: int = 0
    #: When it was frozen, as people read it; "": it goes on.
    frozen: str = ""
    #: What is wrong with the manager; "": it answers.
    trouble: str = ""
    #: The terminal has letters beyond ASCII.
    unicode: bool = True
    name: str = ""

    def take(self, status: Row) -> None:
        """A new status has come."""
        self.status = status
        counts = _mapping(status.get("calls"))
        at = _mapping(status.get("manager")).get("at", 0.0)
        self.samples.append((at, sum(int(counts.get(key, 0)) for key in ("done", "failed", "cancelled"))))

    def rate(self) -> float | None:
        """Calls that ended per second of late; None: it cannot be said yet."""
        if len(self.samples) < 2:
            return None
        newest = self.samples[-1]
        for before in reversed(self.samples):
            if newest[0] - before[0] >= RATE_SECONDS:
                break
        else:
            before = self.samples[0]
        return max(0.0, (newest[1] - before[1]) / (newest[0] - before[0])) if newest[0] > before[0] else None


@dataclass(frozen=True, slots=True)
class Col:
    """One column of a section. Those with the largest ``rank`` are left out first; 0: never."""

    heading: str
    show: Callable[[Row], str]
    right: bool = False
    rank: int = 0
    elastic: bool = False


@dataclass
class Section:
    """A table, of which some lines may be shown."""

    lines: list[Text]
    #: Fewer lines than these are none at all; the heading counts.
    least: int = 2
    #: It gets what the others leave.
    optional: bool = False
    #: Rows before the first line after the heading that were passed over.
    hidden: int = 0
    #: What tells of the rest.
    more: str = ""


def draw(view: View, width: int, height: int) -> list[Text]:
    """``height`` lines of at most ``width`` columns; the last one is the foot, also where there is room for no other, and
    the only one that says something before the manager has."""
    width, height = max(width, 20), max(height, 1)
    if not view.status:
        return [Text()] * (height - 1) + [_foot(view)]
    lines = _head(view, width)[: height - 1]
    room = height - len(lines) - 1
    pools, libraries = _pools(view, _part(width, 1)), _libraries(view, _part(width, 0))
    failed, running = _failed(view, width), _running(view, _part(width, 1))
    workers = _workers(view, _part(width, 0), room)
    if width >= WIDE:
        # Errors are long, so they have the whole width, below.
        below = _cut(failed, min(len(failed.lines), room // 3)) if failed.lines else []
        room = max(0, room - len(below) - 1)
        left = _stack([libraries, workers], room)
        right = _stack([pools, running], room)
        edge = _part(width, 0)
        for index in range(room):
            line = left[index] if index < len(left) else Text()
            if index < len(right):
                line = line.copy()
                line.pad_right(max(0, edge + 3 - line.cell_len))
                line.append_text(right[index])
            lines.append(line)
        lines += [Text(), *below][: max(0, height - 1 - len(lines))]
    else:
        lines += _stack([pools, libraries, failed, workers, running], room)
    lines += [Text()] * (height - 1 - len(lines))
    lines.append(_foot(view))
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        if not view.unicode:
            line.plain = line.plain.translate(_PLAIN)
    return lines


def _part(width: int, column: int) -> int:
    """Columns of a section on the left (0) or on the right (1)."""
    if width < WIDE:
        return width
    left = width * 11 // 20
    return left if column == 0 else width - left - 3


def _stack(sections: Sequence[Section], room: int) -> list[Text]:
    """Sections below each other, the first the most important, in so many lines."""
    sections = [one for one in sections if one.lines]
    given = [0] * len(sections)
    left = room
    for index, section in enumerate(sections):
        least = min(section.least, len(section.lines))
        if least <= left and not section.optional:
            given[index] = least
            left -= least
    for index, section in enumerate(sections):
        if given[index] or (section.optional and left >= section.least):
            more = min(len(section.lines) - given[index], left)
            given[index] += more
            left -= more
    shown = [(section, number) for section, number in zip(sections, given, strict=True) if number]
    lines: list[Text] = []
    for index, (section, number) in enumerate(shown):
        if index and left >= len(shown) - index:
            lines.append(Text())
            left -= 1
        lines += _cut(section, number)
    return lines


def _cut(section: Section, number: int) -> list[Text]:
    rest = len(section.lines) - number
    if rest <= 0 and not section.hidden:
        return section.lines
    lines = section.lines[:number]
    if rest > 0 and number > 1:
        before = f"{section.hidden} before, " if section.hidden else ""
        lines[-1] = _styled(f"… {before}{rest + 1} more: {section.more}", "dim")
    return lines


# ---------------------------------------------------------------- head and foot


def _head(view: View, width: int) -> list[Text]:
    manager, counts = _mapping(view.status.get("manager")), _mapping(view.status.get("calls"))
    addresses = _line_of(", ".join(map(str, _rows(manager.get("addresses")))))
    title = f" windlass  {_line_of(view.name or str(manager.get('name') or manager.get('id') or '?'))}"
    at = time.strftime("%H:%M:%S", time.localtime(manager["at"])) if isinstance(manager.get("at"), int | float) else ""
    address = f"  {addresses}" if len(title) + len(addresses) + len(at) + 5 < width else ""
    bar = Text(f"{title}{address}", style="reverse bold")  # up to its end
    bar.pad_right(max(1, width - bar.cell_len - len(at) - 1))
    bar.append(f"{at} ")
    words = _styled("calls  ", "bold")
    for key, style in _COUNTS:
        number = int(counts.get(key, 0) or 0)
        if number or key in ("waiting", "running", "done", "failed"):
            words.append(f"{number:,} {key.replace('_', ' ')}", style=style if number else "dim")
            words.append("  ")
    workers = count_workers(view.status)
    slots = sum(int(one.get("slots", 0)) for one in _rows(view.status.get("libraries")))
    tail = f"{workers:,} worker{'s' * (workers != 1)}, {slots:,} slot{'s' * (slots != 1)}"
    chart = _chart(view, width - len(tail) - 2)
    chart.pad_right(max(0, width - chart.cell_len - len(tail)))
    chart.append(tail)
    return [bar, words, _progress(view, counts, width), chart, Text()]


_COUNTS: Final = (
    ("waiting", ""),
    ("running", "cyan"),
    ("done", "green"),
    ("failed", "red"),
    ("cancelled", "yellow"),
    ("retried", "yellow"),
    ("lost_attempts", "yellow"),
)


def _progress(view: View, counts: Row, width: int) -> Text:
    """A bar of what has ended of what was submitted, with the rate and the time that is left."""
    ended = sum(int(counts.get(key, 0)) for key in ("done", "failed", "cancelled"))
    left = sum(int(counts.get(key, 0)) for key in ("waiting", "running"))
    total, rate = ended + left, view.rate()
    words = f" {ended / total:4.0%}" if total else ""
    words += f"  {show_plain(float(rate))} per s" if rate is not None else ""
    if left and rate:
        words += f"  {show_span(left / rate)} left"
    room = max(10, width - len(words) - 1)
    full = room * ended // total if total else 0
    bar = _styled("━" * full, "green")
    bar.append("─" * (room - full), style="dim")
    bar.append(words)
    return bar


def _chart(view: View, width: int) -> Text:
    """Calls that ended between looks, the newest on the right."""
    pairs = list(zip(view.samples, list(view.samples)[1:], strict=False))[-max(10, width - 12) :]
    rates = [max(0.0, (after[1] - before[1]) / max(1e-3, after[0] - before[0])) for before, after in pairs]
    most = max(rates, default=0.0)
    if not most:
        return Text()
    letters = "".join(_BARS[-(-int(rate / most * 80) // 10)] for rate in rates)
    return Text.assemble((letters, "green"), (f" {show_plain(float(most))}/s", "dim"))


def _foot(view: View) -> Text:
    if view.trouble:
        return _styled(_line_of(view.trouble), "bold red")
    if view.frozen:
        return _styled(f"frozen at {view.frozen}; p goes on, q ends", "bold yellow")
    return _styled("q ends   ↑ ↓ workers   p freezes", "dim")


# ---------------------------------------------------------------- sections


def _table(rows: Sequence[Row], columns: Sequence[Col], width: int, style: Callable[[Row], str] = lambda row: "") -> list[Text]:
    """A heading and a line for each row, within ``width``; columns in which all are empty are left out."""
    cells = [[_line_of(column.show(row)) for column in columns] for row in rows]
    widths = [max((cell_len(line[index]) for line in cells), default=0) for index in range(len(columns))]
    kept = [index for index in range(len(columns)) if widths[index] or not index]
    for index in kept:
        widths[index] = max(widths[index], len(columns[index].heading))

    def over() -> int:
        return sum(widths[index] + _GAP for index in kept) - _GAP - width

    while over() > 0:
        elastic = [index for index in kept if columns[index].elastic and widths[index] > _ELASTIC_LEAST]
        ranked = [index for index in kept if columns[index].rank]
        # Long texts are cut before columns go, but not to shreds.
        if elastic and sum(widths[index] - _ELASTIC_LEAST for index in elastic) >= over():
            widest = max(elastic, key=lambda index: widths[index])
            others = max((widths[index] for index in elastic if index != widest), default=_ELASTIC_LEAST)
            widths[widest] = max(_ELASTIC_LEAST, min(widths[widest] - 1, max(others, widths[widest] - over())))
        elif ranked:
            kept.remove(max(ranked, key=lambda index: columns[index].rank))
        else:
            break
    lines = [_line([column.heading for column in columns], columns, kept, widths, "bold underline")]
    lines += [_line(line, columns, kept, widths, style(row)) for line, row in zip(cells, rows, strict=True)]
    return lines


def _line(cells: Sequence[str], columns: Sequence[Col], kept: Sequence[int], widths: Sequence[int], style: str) -> Text:
    parts: list[str] = []
    for index in kept:
        cell, room = cells[index], widths[index]
        if cell_len(cell) > room:
            cell = set_cell_size(cell, room - 1) + "…"
        pad = " " * (room - cell_len(cell))
        parts.append(pad + cell if columns[index].right else cell + pad)
    return _styled((" " * _GAP).join(parts).rstrip(), style)


def _number(heading: str, key: str, rank: int = 0) -> Col:
    return Col(heading, lambda row: show_plain(row.get(key, 0)), right=True, rank=rank)


def _words(heading: str, key: str, rank: int = 0, *, elastic: bool = False) -> Col:
    return Col(heading, lambda row: str(row.get(key) or ""), rank=rank, elastic=elastic)


def _span(heading: str, key: str, rank: int = 0) -> Col:
    return Col(heading, lambda row: show_span(row[key]) if row.get(key) else "", right=True, rank=rank)


def _pools(view: View, width: int) -> Section:
    rows = _rows(view.status.get("pools"))
    if not rows:
        hint = "no pools: `windlass factory run BACKEND` in another terminal serves the manager with pilots"
        return Section([_styled(line, "yellow") for line in _folded(hint, width, 2)], least=1)
    failed = pilots_failed(view.status)
    columns = (
        _words("pool", "name", elastic=True),
        _words("backend", "backend", 4),
        Col("pilots", lambda row: show_plain(row.get("pilots")), elastic=True),
        _number("cores", "cores", 3),
        Col("gpus", lambda row: show_plain(row["gpus"]) if row.get("gpus") else "", right=True, rank=5),
        Col("walltime", lambda row: show_left(row.get("walltime")), right=True, rank=6),
        Col("failed", lambda row: str(failed.get(str(row.get("name")), "")), right=True, rank=2),
    )
    table = _table(rows, columns, width, lambda row: "red" if row.get("paused") else "")
    lines = table[:1]
    for row, line in zip(rows, table[1:], strict=True):
        lines.append(line)
        paused = str(row.get("paused") or "")
        if paused:
            lines += [_styled("  " + one, "red") for one in _folded(f"paused: {paused}", width - 2, 3)]
            lines.append(Text(f"  when that is mended: windlass factory resume {_line_of(str(row.get('name')))}", style="dim"))
        lines += [_styled("  " + _line_of(text), "dim") for text in queue_reasons(view.status, row.get("name"))]
    return Section(lines, least=min(len(lines), 8), more="windlass pilots")


def _libraries(view: View, width: int) -> Section:
    rows = sorted(_rows(view.status.get("libraries")), key=lambda row: -int(row.get("running", 0)) - int(row.get("waiting", 0)))
    if not rows:
        return Section([_styled("no libraries: nothing has been called yet", "dim")], least=1)
    columns = (
        _words("library", "name", elastic=True),
        _number("waiting", "waiting"),
        _number("running", "running"),
        _number("done", "done"),
        _number("slots", "slots", 3),
        _span("mean", "mean_seconds", 4),
        _span("longest", "longest_seconds", 7),
        _span("hoisted", "hoisted_seconds", 6),
        _span("saved", "saved_seconds", 5),
        Col("remark", lambda row: str(row.get("failed") or " ".join(row.get("notes") or ())), elastic=True, rank=1),
    )
    lines = _table(rows, columns, width, lambda row: "red" if row.get("failed") else "dim" if row.get("removed") else "")
    return Section(lines, least=3, more="windlass libraries")


def _failed(view: View, width: int) -> Section:
    rows = [row for row in view.calls if row.get("state") == "failed"]
    if not rows:
        return Section([])
    now = _mapping(view.status.get("manager")).get("at", 0.0)
    columns = (
        Col("failed", lambda row: f"{row.get('library')}.{row.get('function')}", elastic=True),
        _words("tag", "tag", 3, elastic=True),
        _words("host", "host", 2, elastic=True),
        Col("ago", lambda row: show_span(max(0.0, now - row["ended_at"])) if row.get("ended_at") else "", right=True, rank=1),
        _words("error", "error", elastic=True),
    )
    return Section(_table(rows, columns, width, lambda row: "red"), least=3, more="windlass calls --state failed")


def _running(view: View, width: int) -> Section:
    rows = [row for row in view.calls if row.get("state") == "running"]
    if not rows:
        return Section([])
    columns = (
        Col("longest running", lambda row: f"{row.get('library')}.{row.get('function')}", elastic=True),
        _words("tag", "tag", 2, elastic=True),
        _words("host", "host", 1, elastic=True),
        _span("for", "ran"),
    )
    return Section(_table(rows, columns, width), least=2, optional=True, more="windlass calls --state running")


def _workers(view: View, width: int, room: int) -> Section:
    rows = _rows(view.status.get("workers"))
    if not rows:
        return Section([_styled("no workers are connected", "dim")], least=1)
    view.offset = max(0, min(view.offset, len(rows) - 1))
    # Lines that no terminal has room for need not be made.
    rest = rows[view.offset : view.offset + room]
    columns = (
        _words("worker", "id", elastic=True),
        _words("host", "host", 6, elastic=True),
        _words("pool", "pool", 4, elastic=True),
        Col("calls", lambda row: f"{row.get('running', 0)} of {show_plain(row.get('cores'))}", right=True),
        Col("queue", lambda row: str(int(row.get("held", 0)) - int(row.get("running", 0)) or ""), right=True, rank=5),
        Col("memory", lambda row: f"{show_used(row.get('memory_used'))} of {show_bytes(row.get('memory_limit'))}", right=True, rank=3),
        Col("time left", lambda row: show_left(row["seconds_left"]) if row.get("seconds_left") else "", right=True, rank=2),
        Col("libraries", lambda row: show_hosted(row.get("libraries")), rank=7, elastic=True),
        Col("state", _worker_state, rank=1, elastic=True),
    )
    lines = _table(rest, columns, width, lambda row: "" if row.get("connected", True) and not row.get("draining") else "yellow")
    lines += [Text()] * (len(rows) - view.offset - len(rest))
    return Section(lines, least=3, hidden=view.offset, more="windlass workers")


def _worker_state(row: Row) -> str:
    if not row.get("connected", True):
        return "its connection is cut"
    if row.get("draining"):
        return f"draining: {row['draining']}"
    return "" if row.get("held") else f"idle {show_span(row.get('idle_seconds'))}"


# ---------------------------------------------------------------- small


def _styled(text: str, style: str) -> Text:
    """A text of which what is put after it has no style."""
    return Text.assemble((text, style))


def _line_of(text: str) -> str:
    """A text as one line that a terminal shows and does not obey."""
    return " ".join(clean(text).split())


def _folded(text: str, width: int, most: int) -> list[str]:
    """A text in so many lines at most."""
    import textwrap

    lines: list[str] = []
    for line in clean(text).splitlines():
        lines += textwrap.wrap(line, max(10, width)) or [""]
    if len(lines) > most:
        lines = [*lines[: most - 1], "… " + lines[-1]]  # what is wrong stands at the end of what a program says
    return lines


def _mapping(value: object) -> Row:
    return cast("Row", value) if isinstance(value, Mapping) else {}


def _rows(value: object) -> list[Any]:
    return list(cast("Iterable[Any]", value)) if isinstance(value, list | tuple) else []
