"""A proxy that plays the network between pilots and their manager, and breaks when it is told to.

Theory of operation
-------------------
`Proxy` carries bytes between those who connect to it and one port of loopback, on a thread of its own, and needs nothing: it resets,
swallows or slows down.  What is reset is reset by a RST, as when a host has gone; what is swallowed nobody is told of, as when a cable is
pulled or a firewall has forgotten a connection.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Generator
from typing import Final

#: Bytes that are carried at a time: so many, and on a slow network so many.
_BLOCK: Final = 1 << 16
_SLICE: Final = 1 << 14


class Proxy:
    """Carries bytes between those who connect to `port` and another port of loopback, until told otherwise."""

    def __init__(self, to_port: int, host: str = "127.0.0.1") -> None:
        self._to = (host, to_port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._other: dict[socket.socket, socket.socket] = {}
        self._mode = "up"
        #: Connections that were there when it was told to swallow: they stay dead, as after a firewall has forgotten them.
        self._dead: set[socket.socket] = set()
        self._rate = 0.0
        #: Bytes until the next reset; None: there is none to come.
        self._budget: int | None = None
        self._wake, self._bell = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for one in (self._listening, self._wake):
            self._selector.register(one, selectors.EVENT_READ)
        self._over = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="windlass-proxy", daemon=True)
        self._thread.start()

    def reset(self) -> None:
        """Every connection is reset once; new ones come through."""
        with self._lock:
            self._drop_all()

    def reset_after(self, count: int) -> None:
        """Reset all connections once, in the middle of the transfer of these bytes."""
        with self._lock:
            self._budget = count

    @property
    def was_reset(self) -> bool:
        """The reset of `reset_after` has happened."""
        return self._budget is None

    @contextlib.contextmanager
    def refusing(self) -> Generator[None]:
        """Every connection is reset, and every new one at once."""
        self._set("reset")
        try:
            yield
        finally:
            self._set("up")

    def forget(self) -> None:
        """What stands now carries no byte any more, and neither side is told; new connections come through."""
        with self._lock:
            self._dead |= set(self._other)

    @contextlib.contextmanager
    def swallowing(self) -> Generator[None]:
        """No byte comes through, nobody is told, new connections are taken and hear nothing."""
        self._set("swallow")
        try:
            yield
        finally:
            self._set("reset")  # what was swallowed cannot come any more
            self._set("up")

    @contextlib.contextmanager
    def slow(self, bytes_per_second: float) -> Generator[None]:
        """All connections together carry so much."""
        self._rate = bytes_per_second
        try:
            yield
        finally:
            self._rate = 0.0

    def close(self) -> None:
        """Reset what stands, and listen no more. Idempotent."""
        if self._over:
            return
        self._over = True
        self._bell.send(b"x")
        self._thread.join()
        self._drop_all()
        for one in (self._listening, self._wake, self._bell):
            one.close()
        self._selector.close()

    def _set(self, mode: str) -> None:
        with self._lock:
            self._mode = mode
            if mode == "reset":
                self._drop_all()
        self._bell.send(b"x")

    def _drop_all(self) -> None:
        for one in list(self._other):
            self._drop(one)
        self._dead.clear()

    def _drop(self, one: socket.socket) -> None:
        self._other.pop(one, None)
        self._dead.discard(one)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(one)
        with contextlib.suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closing is a RST
        one.close()

    def _run(self) -> None:
        while not self._over:
            for key, _ in self._selector.select():
                one = key.fileobj
                assert isinstance(one, socket.socket)
                with self._lock:
                    if one is self._wake:
                        self._wake.recv(100)
                    elif one is self._listening:
                        self._accept()
                    elif one in self._other:
                        self._carry(one)

    def _accept(self) -> None:
        near, _ = self._listening.accept()
        if self._mode == "reset":
            near.close()
            return
        try:
            far = socket.create_connection(self._to)
        except OSError:
            near.close()
            return
        for one, other in ((near, far), (far, near)):
            self._other[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _carry(self, one: socket.socket) -> None:
        other = self._other[one]
        try:
            data = one.recv(_SLICE if self._rate else _BLOCK)
            if self._rate:
                time.sleep(len(data) / self._rate)
            if data and self._mode == "up" and one not in self._dead:
                other.sendall(data)
        except OSError:
            data = b""
        if self._budget is not None:
            self._budget -= len(data)
            if self._budget < 0:
                self._budget = None
                self._drop_all()
                return
        if not data:
            if one in self._dead:
                self._selector.unregister(one)  # its end is not passed on either
                return
            for each in (one, other):
                self._drop(each)
