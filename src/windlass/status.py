"""What a manager says of itself, asked for and shown to a person.

Theory of operation: the status is one JSON object, described in docs/status.md; `StatusPort` gets it over an ordinary client
connection, so it is what any other client would see.  `picture` turns it into tables.  It takes what is there: a key that is missing
leaves out its column or table, and one that it does not know is shown under its own name, so that the command line of one version can
look at managers of others.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final, cast

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from windlass.errors import ConnectionRefused, Unreachable
from windlass.messages import GetStatus, Message, Status

if TYPE_CHECKING:
    from windlass.identity import ConnectionFile
    from windlass.transport import Port

#: Seconds a manager on this machine or in this network may take to answer.
ANSWER_TIMEOUT: Final = 10.0


class StatusPort:
    """A client connection that asks a manager for its status, as often as wanted. Close it, or use it in a ``with``."""

    def __init__(self, connection: ConnectionFile) -> None:
        from windlass.transport import open_port

        self._answers: queue.SimpleQueue[bytes | str] = queue.SimpleQueue()
        self._port: Port = open_port(connection, "client", "status", self._hear, lambda reason: self._answers.put(str(reason)))

    def _hear(self, message: Message) -> None:
        if isinstance(message, Status):
            self._answers.put(message.json)

    def ask(self, timeout: float = ANSWER_TIMEOUT) -> bytes:
        """The manager's status as JSON text.

        Raises `Unreachable` when no answer came within ``timeout`` seconds, `ConnectionRefused` with the manager's or the network's
        reason when the connection is gone.
        """
        self._port.send(GetStatus())
        try:
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise Unreachable(f"the manager did not answer within {timeout:g} s; is its program stopped (Ctrl-Z) or very busy?") from None
        if isinstance(answer, str):
            raise ConnectionRefused(answer)
        return answer

    def close(self) -> None:
        self._port.close()

    def __enter__(self) -> StatusPort:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


# ---------------------------------------------------------------- words and numbers


def show_bytes(value: object) -> str:
    """``2147483648`` → ``2.0 GB``, in powers of 1024; anything that is no number as it is."""
    if not isinstance(value, int | float):
        return str(value)
    size, unit = float(value), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


def show_span(value: object) -> str:
    """Seconds as people read them: ``0.25 s``, ``42 s``, ``5 min``, ``1 h 20 min``, ``2 d 3 h``."""
    if not isinstance(value, int | float):
        return str(value)
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
    """``numpy 0.12 s, scipy.stats 1.3 s``, from records or from a mapping of seconds by module."""
    parts: list[str] = []
    if isinstance(value, Mapping):
        parts = [f"{module} {show_span(seconds)}" for module, seconds in cast("Mapping[str, object]", value).items()]
    elif isinstance(value, list):
        for one in cast("list[object]", value):
            if isinstance(one, Mapping):
                record = cast("Mapping[str, object]", one)
                text = str(record.get("module", "?"))
                parts.append(text + (f" {show_span(record['seconds'])}" if "seconds" in record else ""))
            else:
                parts.append(str(one))
    else:
        return show_plain(value)
    return ", ".join(parts)


#: How keys are shown that are not plain: by their last word, or whole.
_SHOWN: Final[Mapping[str, Callable[[object], str]]] = {
    "bytes": show_bytes,
    "memory": show_bytes,
    "memory_used": show_bytes,
    "memory_limit": show_bytes,
    "seconds": show_span,
    "uptime": show_span,
    "walltime": show_left,
    "seconds_left": show_left,
    "imports": show_imports,
}

#: First columns of each table, in this order; other keys follow as they come.
_FIRST: Final = ("name", "id", "pool", "backend", "host", "state", "waiting", "running", "queued", "done", "failed")


def show(key: str, value: object) -> str:
    """A value as its key asks for."""
    form = _SHOWN.get(key) or _SHOWN.get(key.rpartition("_")[2], show_plain)
    return form(value)


# ---------------------------------------------------------------- the picture


def _table(title: str, rows: list[Mapping[str, object]]) -> Table:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    keys.sort(key=lambda key: _FIRST.index(key) if key in _FIRST else len(_FIRST))
    keys = [key for key in keys if any(row.get(key) not in (None, "", [], {}) for row in rows)]
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for key in keys:
        numbers = all(isinstance(row.get(key, 0), int | float) for row in rows)
        table.add_column(key.replace("_", " "), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(show(key, row[key]) if key in row else "") for key in keys))
    return table


def _line(pairs: Mapping[str, object]) -> str:
    return "   ".join(f"{key.replace('_', ' ')} {show(key, value)}" for key, value in pairs.items() if value not in (None, "", [], {}))


def picture(status: Mapping[str, object], *, most_workers: int = 40) -> RenderableType:
    """The status as tables, for a terminal or a plain stream; of more workers than ``most_workers`` the first ones."""
    parts: list[RenderableType] = []
    manager = status.get("manager")
    if isinstance(manager, Mapping):
        about = dict(cast("Mapping[str, object]", manager))
        name = about.pop("name", None) or about.get("id") or "?"
        parts += [Text(f"manager {name}", style="bold"), Text("  " + _line(about))]
    calls = status.get("calls")
    if isinstance(calls, Mapping):
        counts = dict(cast("Mapping[str, object]", calls))
        rate = counts.pop("rate", None)
        words = "   ".join(f"{show(key, value)} {key.replace('_', ' ')}" for key, value in counts.items())
        parts.append(Text("  calls: " + words + (f"   {show_plain(rate)} per s" if isinstance(rate, int | float) else "")))
    for key in ("libraries", "workers", "pools"):
        value = status.get(key)
        if not isinstance(value, list):
            continue
        rows = [cast("Mapping[str, object]", row) for row in cast("list[object]", value) if isinstance(row, Mapping)]
        if not rows:
            parts.append(Text(f"no {key}", style="dim"))
            continue
        if key == "workers" and len(rows) > most_workers:
            parts.append(_table(f"workers (the first {most_workers} of {len(rows)})", rows[:most_workers]))
        else:
            parts.append(_table(key, rows))
    return Group(*parts) if parts else Text("the manager says nothing about itself")
