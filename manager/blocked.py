"""Hosts that a program wants no more of: a core.

Theory of operation
-------------------
A host is blocked until a time, or for ever.  Workers on it are drained when it is blocked, and when they join later: what runs there ends
there, and nothing more is sent.  Factories are told to avoid it (`windlass.messages.Demand.avoid`), as far as their batch systems can.
"""

from __future__ import annotations

from math import inf

from windlass.addresses import is_named


class BlockedHosts:
    """Which hosts are blocked, and until when."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def block(self, host: str, seconds: float, now: float) -> None:
        """For so many seconds; 0: for ever."""
        self._until[host] = now + seconds if seconds else inf

    def unblock(self, host: str) -> bool:
        """This one again; "": all. False: none was blocked."""
        gone = list(self._until) if not host else [name for name in self._until if name == host]
        for name in gone:
            del self._until[name]
        return bool(gone)

    def expire(self, now: float) -> bool:
        """Forget those whose time is over. False: there was none."""
        gone = [name for name, until in self._until.items() if until <= now] if self._until else []
        for name in gone:
            del self._until[name]
        return bool(gone)

    def has(self, host: str) -> bool:
        """It is blocked."""
        return bool(self._until) and any(is_named(host, name) for name in self._until)

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(sorted(self._until))
