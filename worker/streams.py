"""Standard output and error of many calls in one process: each text goes to the call in whose context it was written."""

from __future__ import annotations

import io
from contextvars import ContextVar
from typing import Any

from windlass.worker.capture import HEAD, TAIL
from windlass.worker.slot_api import STATE


class Kept:
    """What one call has written to a stream, bounded as in `windlass.worker.capture`."""

    def __init__(self) -> None:
        self.head, self.tail, self.left_out = bytearray(), bytearray(), 0

    def add(self, data: bytes) -> None:
        """It has written this."""
        room = HEAD - len(self.head)
        if room > 0:
            self.head += data[:room]
            data = data[room:]
        if data:
            self.tail += data
            if len(self.tail) > 2 * TAIL:
                self._cut()

    def take(self) -> bytes:
        """All of it, or its beginning and end."""
        if len(self.tail) > TAIL:
            self._cut()
        note = f"\n... {self.left_out} bytes left out ...\n".encode() if self.left_out else b""
        return bytes(self.head) + note + bytes(self.tail)

    def _cut(self) -> None:
        more = len(self.tail) - TAIL
        self.left_out += more
        del self.tail[:more]


class Streams(io.TextIOBase):
    """A text stream in front of ``real``: what is written in a call goes to its attribute ``which``, a `Kept`; all else to ``real``."""

    def __init__(self, real: Any, which: str, current: ContextVar[Any]) -> None:
        self._real, self._which, self._current = real, which, current
        self.buffer = _Bytes(self)

    def kept(self) -> Kept | None:
        """Of the call that asks; what a process writes that a call has forked would be lost with it."""
        call = None if STATE.forked else self._current.get()
        return None if call is None else getattr(call, self._which)

    def write(self, text: str, /) -> int:
        kept = self.kept()
        if kept is None:
            return int(self._real.write(text))
        kept.add(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def write_bytes(self, data: Any) -> int:
        """What is written to ``buffer``."""
        kept = self.kept()
        data = bytes(data)
        if kept is not None:
            kept.add(data)
            return len(data)
        self._real.flush()
        return int(self._real.buffer.write(data))

    def flush(self) -> None:
        self._real.flush()

    def reconfigure(self, **_options: Any) -> None:
        """As of `io.TextIOWrapper`; there is nothing to set, for texts are a call's as soon as they are written, in UTF-8."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._real.fileno())

    def isatty(self) -> bool:
        return False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self._real.encoding)

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return "backslashreplace"


class _Bytes(io.RawIOBase):
    """The stream below a `Streams`, for programs that write bytes."""

    def __init__(self, above: Streams) -> None:
        self._above = above

    def write(self, data: Any, /) -> int:
        return self._above.write_bytes(data)

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        self._above.flush()

    def fileno(self) -> int:
        return self._above.fileno()
