"""Failures of calls, grouped by cause, for people to read. Pure.

Theory of operation
-------------------
A cause is how an attempt ended, in which function, by which exception, and at which line: of 10,000 calls that raise ``ValueError`` at one
line a person wants to see one traceback and the number.  Each cause keeps the words of its first and its newest failure (cut to
`TEXT_MOST`), and the hosts where it came; there are at most `CAUSES_MOST`, and what comes after these is counted as one more.

An attempt that is tried again counts, too (``retried``): what goes well at the second try costs time.  What comes here, and that it is a
failure, is for `windlass.manager.failures` to say.
"""

from __future__ import annotations

from typing import Any, Final

from windlass.manager.calls import outcome_words
from windlass.messages import DIED, OUT_OF_MEMORY, RAISED, CallEnd

#: Causes that are told apart.
CAUSES_MOST: Final = 100
#: Characters of one text; the end of a traceback says most.
TEXT_MOST: Final = 6000
#: Of the name of a type, and of a file.
WORDS_MOST: Final = 300
#: Hosts that are named for one cause.
HOSTS_MOST: Final = 8

_FRAME: Final = '  File "'
#: Where a cause is looked up that is not told apart from others.
_OTHERS: Final = ("others", "", "", "")


class Cause:
    """Failures that are alike."""

    __slots__ = (
        "calls",
        "first_at",
        "first_call",
        "function",
        "hosts",
        "kind",
        "last_at",
        "message",
        "number",
        "place",
        "retried",
        "text",
        "type",
    )

    def __init__(self, number: int, kind: str, function: str, kind_of: str, place: str, now: float) -> None:
        self.number, self.kind, self.function, self.type, self.place = number, kind, function, kind_of, place
        #: Calls that ended so, and attempts that did and were tried again.
        self.calls = self.retried = 0
        self.first_at = self.last_at = now
        self.first_call = 0
        #: The newest one in a line, and the first one's whole text.
        self.message = self.text = ""
        self.hosts: dict[str, int] = {}


class Causes:
    """All causes of one manager's failures, the first one first."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str, str], Cause] = {}

    def note(self, end: CallEnd, function: str, message: str, host: str, now: float, *, retried: bool = False) -> None:
        """An attempt of a call of ``function`` (``library.function``) has failed on ``host`` ("": on none), in one line so."""
        detail = end.detail
        text = detail.text if detail is not None else ""
        kind = outcome_words(end.outcome)
        raised = detail.types[0][-WORDS_MOST:] if detail is not None and detail.types else ""
        place = place_of(text) if end.outcome == RAISED else ""
        key = (kind, function, raised, place)
        cause = self._known.get(key)
        if cause is None:
            if len(self._known) >= CAUSES_MOST:
                key = _OTHERS
                cause = self._known.get(key)
            if cause is None:
                words = key if key is _OTHERS else (kind, function, raised, place)
                cause = self._known[key] = Cause(len(self._known) + 1, *words, now)
                cause.first_call = int(end.call)
                cause.text = clipped(text + _last_words(end))
        if retried:
            cause.retried += 1
        else:
            cause.calls += 1
        cause.last_at = now
        cause.message = message
        if host in cause.hosts or (host and len(cause.hosts) < HOSTS_MOST):
            cause.hosts[host] = cause.hosts.get(host, 0) + 1

    def rows(self) -> list[dict[str, Any]]:
        """As docs/dashboard.md has them, most calls first."""
        found = sorted(self._known.values(), key=lambda one: (-one.calls, -one.retried, one.number))
        return [
            {
                "id": one.number,
                "kind": one.kind,
                "function": one.function,
                "type": one.type,
                "place": one.place,
                "calls": one.calls,
                "retried": one.retried,
                "first_at": one.first_at,
                "last_at": one.last_at,
                "first_call": one.first_call,
                "message": one.message,
                "text": one.text,
                "hosts": one.hosts,
            }
            for one in found
        ]


def place_of(text: str) -> str:
    """``model.py:12`` of a traceback's last frame; "" where it has none."""
    begin = text.rfind(_FRAME)
    if begin < 0:
        return ""
    line = text[begin + len(_FRAME) : text.find("\n", begin) if "\n" in text[begin:] else len(text)]
    path, _, rest = line.partition('", line ')
    return f"{path.rpartition('/')[2][-WORDS_MOST:]}:{rest.partition(',')[0][:20]}"


def clipped(text: str) -> str:
    """Its beginning and, longer, its end."""
    if len(text) <= TEXT_MOST:
        return text
    head = TEXT_MOST // 4
    return f"{text[:head]}\n... {len(text) - TEXT_MOST} characters left out ...\n{text[head - TEXT_MOST :]}"


def _last_words(end: CallEnd) -> str:
    """Of a slot that died: the end of what it wrote."""
    if end.outcome not in (DIED, OUT_OF_MEMORY) or not end.stderr:
        return ""
    return f"\nthe end of its stderr:\n{end.stderr[-2000:].decode('utf-8', 'replace').strip()}"
