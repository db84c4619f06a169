"""What a manager says of itself, asked for and shown to a person.

Theory of operation: the status is one JSON object, described in docs/status.md; `StatusPort` gets it over an ordinary client
connection, so it is what any other client would see.  `picture` turns it into tables with the columns that a person looks for, and long
texts (imports, why a library failed, why a pool is paused) into lines below them.  It takes what is there: a key that is missing leaves
out its column, so that the command line of one version can look at managers of others; ``--json`` has everything.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final, cast

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from windlass.errors import Closed, ConnectionRefused, Unreachable
from windlass.mailbox import Mailbox
from windlass.messages import CallList, GetStatus, Leave, Message, Status
from windlass.sums import count_workers, pilots_failed, queue_reasons
from windlass.tables import clean

if TYPE_CHECKING:
    from windlass.identity import ConnectionFile
    from windlass.transport import Port

#: Seconds a manager on this machine or in this network may take to answer.
ANSWER_TIMEOUT: Final = 10.0
#: What to think of, when it does not.
SILENT: Final = "is its program stopped (Ctrl-Z) or very busy?"
#: Characters of why an import failed: a list of many is one line.
_WHY_MOST: Final = 120


class StatusPort:
    """A client connection that asks a manager for its status, as often as wanted. Close it, or use it in a ``with``."""

    def __init__(
        self, connection: ConnectionFile, heard: Callable[[Message], None] | None = None, *, timeout: float = ANSWER_TIMEOUT
    ) -> None:
        """``heard`` is told of all that comes, on the connection's thread, and then `ask` has no answers: for who does other things
        meanwhile. What it hears last is a `Leave`. ``timeout``: seconds that the manager may take to let it in."""
        from windlass.transport import open_port

        self._answers: Mailbox[bytes | str] = Mailbox()
        hear = heard or self._hear
        #: Why the manager is gone.
        self._gone = ""

        def lost(reason: str) -> None:
            self._gone = reason
            hear(Leave(reason))

        self._port: Port = open_port(connection, "client", "status", hear, lost, timeout=timeout)

    def _hear(self, message: Message) -> None:
        if isinstance(message, Status | CallList):
            self._answers.put(message.json)
        elif isinstance(message, Leave):
            self._answers.put(message.reason)

    def ask(self, timeout: float = ANSWER_TIMEOUT, about: Message | None = None) -> bytes:
        """The manager's status as JSON text, or its answer to another question.

        Raises `Unreachable` when no answer came within ``timeout`` seconds, `ConnectionRefused` with the manager's or the network's
        reason when the connection is gone.
        """
        self.send(about or GetStatus())
        answer = self.answer(timeout)
        if answer is None:
            raise Unreachable(f"the manager did not answer within {timeout:g} s; {SILENT}")
        return answer

    def answer(self, timeout: float) -> bytes | None:
        """What it says to what was sent; None: nothing within ``timeout`` seconds. Then that answer is still to come, before any other.

        Raises `ConnectionRefused` as `ask` does.
        """
        try:
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(answer, str):
            raise ConnectionRefused(answer)
        return answer

    def send(self, *messages: Message) -> None:
        """Say something else. Raises `ConnectionRefused` as `ask` does."""
        try:
            self._port.send(*messages)
        except Closed as error:  # it was lost while nobody asked
            raise ConnectionRefused(self._gone or str(error)) from None

    def wait_gone(self, timeout: float) -> bool:
        """Wait until the manager has ended or is out of reach; False: not within ``timeout`` seconds."""
        try:
            while not isinstance(self._answers.get(timeout=timeout), str):
                pass
        except queue.Empty:
            return False
        return True

    def close(self) -> None:
        self._port.close()

    def __enter__(self) -> StatusPort:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


# ---------------------------------------------------------------- words and numbers


def show_bytes(value: object) -> str:
    """``2147483648`` → ``2.1 GB``, in powers of 1000, as sizes are given; anything that is no number as it is."""
    if not isinstance(value, int | float):
        return str(value)
    size, unit = float(value), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


def show_used(value: object) -> str:
    """Memory in use; 0: the worker has not reported yet."""
    return show_bytes(value) if value else "-"


def show_span(value: object) -> str:
    """Seconds as people read them: ``25 us``, ``250 ms``, ``2.5 s``, ``42 s``, ``5 min``, ``1 h 20 min``, ``2 d 3 h``."""
    if not isinstance(value, int | float):
        return str(value)
    if value == 0:
        return "0"
    if value < 0.001:
        return f"{value * 1e6:.0f} us"
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    if value < 10:
        return f"{value:.2g} s"
    if value < 120:
        return f"{value:.0f} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    if value < 2 * 86400:
        return f"{value // 3600:.0f} h {value % 3600 // 60:.0f} min"
    return f"{value // 86400:.0f} d {value % 86400 // 3600:.0f} h"


def show_plain(value: object) -> str:
    """A number with separators, a short list or mapping in words, anything else as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, object]", value).items()
        return ", ".join(f"{show_plain(number)} {name}" for name, number in pairs if number)
    if isinstance(value, list | tuple):
        return ", ".join(show_plain(one) for one in cast("Iterable[object]", value))
    return "" if value is None else str(value)


def show_left(value: object) -> str:
    """Seconds to the end of a pilot; 0 is for ever."""
    return show_span(value) if value else "unlimited"


def show_imports(value: object) -> str:
    """``numpy 120 ms, scipy.stats 1.3 s``; one that failed says so, and why."""
    if not isinstance(value, Mapping):
        return show_plain(value)
    parts: list[str] = []
    for module, spent in cast("Mapping[str, object]", value).items():
        record = cast("Mapping[str, object]", spent) if isinstance(spent, Mapping) else {"seconds": spent}
        why = str(record.get("error") or "").partition("\n")[0]
        why = why if len(why) <= _WHY_MOST else f"{why[:_WHY_MOST]}…"
        parts.append(f"{module} failed ({why})" if why else f"{module} {show_span(record.get('seconds'))}")
    return ", ".join(parts)


def show_hosted(value: object) -> str:
    """A worker's libraries: ``digits (2 slots), other (starting)``."""
    if not isinstance(value, list):
        return show_plain(value)
    parts: list[str] = []
    for one in cast("list[object]", value):
        record = cast("Mapping[str, object]", one) if isinstance(one, Mapping) else {"name": one}
        phase = str(record.get("phase", "ready"))
        slots = record.get("slots")
        detail = phase if phase not in ("ready", "serving") else f"{slots} slot{'s' * (slots != 1)}" if slots is not None else ""
        parts.append(f"{record.get('name', '?')}" + (f" ({detail})" if detail else ""))
    return ", ".join(parts)


#: How keys are shown that are not plain.
_SHOWN: Final[Mapping[str, Callable[[object], str]]] = {
    "hoisted_seconds": show_span,
    "idle_seconds": show_span,
    "imports": show_imports,
    "libraries": show_hosted,
    "longest_seconds": show_span,
    "mean_seconds": show_span,
    "memory": show_bytes,
    "memory_limit": show_bytes,
    "memory_used": show_used,
    "saved_seconds": show_span,
    "seconds_left": show_left,
    "uptime": show_span,
    "walltime": show_left,
}

#: The columns of each table, in this order; `_REMARKS` are long texts, shown in lines below it.
_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "libraries": ("name", "waiting", "running", "done", "instances", "slots", "mean_seconds", "hoisted_seconds", "saved_seconds"),
    "workers": (
        "id",
        "host",
        "pool",
        "cores",
        "gpus",
        "running",
        "held",
        "memory_used",
        "memory_limit",
        "seconds_left",
        "libraries",
    ),
    "pools": ("name", "backend", "pilots", "cores", "memory", "gpus", "walltime", "commands"),
}
_REMARKS: Final[Mapping[str, tuple[str, ...]]] = {
    "libraries": ("imports", "notes", "failed"),
    "workers": ("draining",),
    "pools": ("paused", "failure"),
}
#: Columns whose zeros say something.
_COUNTS: Final = {"waiting", "running", "done", "failed", "cancelled", "instances", "slots", "held"}


def show(key: str, value: object) -> str:
    """A value as its key asks for. Nothing that a terminal would obey: it may be the words of anybody's program."""
    return clean(_SHOWN.get(key, show_plain)(value))


def _is_empty(key: str, value: object) -> bool:
    if isinstance(value, int | float):
        return value is False or (value == 0 and key not in _COUNTS)
    return not value


# ---------------------------------------------------------------- the picture


def _table(kind: str, rows: list[Mapping[str, object]], title: str) -> list[RenderableType]:
    keys = [key for key in _COLUMNS[kind] if any(key in row and not _is_empty(key, row[key]) for row in rows)]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for key in keys:
        numbers = all(isinstance(row.get(key) or 0, int | float) for row in rows)
        heading = key.removesuffix("_seconds").replace("_", " ") if key != "seconds_left" else "time left"
        table.add_column(heading, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if row.get(key) is None else show(key, row[key])) for key in keys))
    remarks = [_remark(key, row) for row in rows for key in _REMARKS[kind] if not _is_empty(key, row.get(key)) and not _is_told(key, row)]
    return [Text(title, style="bold"), table, *remarks]


def _remark(key: str, row: Mapping[str, object]) -> RenderableType:
    """A long text below its table; it may be the last words of a pilot, of several lines."""
    name = show("name", row.get("name") or row.get("id") or "?")
    text = f"{name}: {key}: {show(key, row[key])}"
    advice = f"\nwhen that is mended: windlass factory resume {name}" if key == "paused" else ""
    return Padding(Text((text + advice).replace("\n", "\n  ")), (0, 0, 0, 2), expand=False)


def _is_told(key: str, row: Mapping[str, object]) -> bool:
    """What a pool was paused for is its newest failure, too."""
    return key == "failure" and str(row[key]) in str(row.get("paused", ""))


def _about(manager: Mapping[str, object]) -> str:
    words = [f"manager {manager.get('name') or manager.get('id') or '?'}"]
    addresses = manager.get("addresses")
    if addresses:
        words.append(f"at {show_plain(addresses)}")
    if isinstance(manager.get("uptime"), int | float):
        words.append(f"up {show_span(manager['uptime'])}")
    return ", ".join(words)


#: What to do where there is none of a kind.
_HINTS: Final = {"pools": ": `windlass factory run BACKEND` in another terminal serves the manager with pilots"}


def picture(status: Mapping[str, object], *, most_workers: int = 40) -> RenderableType:
    """The status as tables, for a terminal or a plain stream; of more workers than ``most_workers`` the first ones."""
    parts: list[RenderableType] = []
    manager, calls = status.get("manager"), status.get("calls")
    if isinstance(manager, Mapping):
        parts.append(Text(_about(cast("Mapping[str, object]", manager)), style="bold"))
    if isinstance(calls, Mapping):
        counts = dict(cast("Mapping[str, object]", calls))
        rate = counts.pop("rate", None)
        words = [f"{show(key, value)} {key.replace('_', ' ')}" for key, value in counts.items() if not _is_empty(key, value)]
        words += [f"{show_plain(rate)} per s"] if isinstance(rate, int | float) else []
        parts.append(Text("calls: " + ", ".join(words)))
    for kind in _COLUMNS:
        value = status.get(kind)
        if not isinstance(value, list):
            continue
        rows = [cast("Mapping[str, object]", row) for row in cast("list[object]", value) if isinstance(row, Mapping)]
        title = kind
        if kind == "workers" and (number := count_workers(status)) > len(rows[:most_workers]):
            rows = rows[:most_workers]
            title = f"workers (the first {len(rows)} of {number})"
        parts.append(Text(""))
        parts += _table(kind, rows, title) if rows or title != kind else [Text(f"no {kind}{_HINTS.get(kind, '')}", style="dim")]
        if kind == "pools":
            waits = [(show("name", row.get("name")), text) for row in rows for text in queue_reasons(status, row.get("name"))]
            parts += [Padding(Text(clean(f"{name}: {text}")), (0, 0, 0, 2), expand=False) for name, text in waits]
        if kind == "pools" and (failed := sum(pilots_failed(status).values())):
            several = f"{failed} pilots have" if failed > 1 else "1 pilot has"
            parts.append(Text(f"  {several} failed: windlass pilots --state failed", style="dim"))
    return Group(*parts) if parts else Text("the manager says nothing about itself")
