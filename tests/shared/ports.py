"""Ports at which nobody listens."""

from __future__ import annotations

import socket
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def silent(port: int = 0) -> Generator[int]:
    """A port that refuses connections: ``port``, where somebody has listened, or any. Held, as a server of another test might get it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", port))
        yield holder.getsockname()[1]
