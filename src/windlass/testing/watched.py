"""A manager as far as a test sees it: its status, and the last one when it is gone.

Theory of operation: the manager is asked over a port of one's own, as any client would, and given little time, as its program may be
closing it.  It is not kept alive: one that its program drops ends.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from windlass.errors import WindlassError
from windlass.mailbox import Mailbox
from windlass.messages import GetStatus, Message, Status

#: Seconds that a manager may take to answer.
ANSWER_SECONDS: Final = 2.0


def begun(worker: Mapping[str, Any]) -> int:
    """Calls that a worker has begun, by its row. The row's ``running`` has those too that wait for their library to start."""
    slots = sum(one["slots"] for one in worker["libraries"] if one["phase"] == "ready")
    return int(min(worker["running"], slots))


class Watched:
    """``manager``: one of this process, or the name or file of one elsewhere."""

    def __init__(self, manager: object, pilot_file: Path) -> None:
        elsewhere = isinstance(manager, str | os.PathLike)
        self._manager: weakref.ref[Any] | None = None if elsewhere else weakref.ref(cast("Any", manager))
        self._pilot_file = pilot_file
        self.name = pilot_file.parent.name if elsewhere else str(getattr(cast("Any", manager), "name", "?"))
        self.last: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._answers: Mailbox[bytes] = Mailbox()
        self._port: Any = None

    def _hear(self, message: Message) -> None:
        if isinstance(message, Status):
            self._answers.put(message.json)

    def send(self, message: Message) -> None:
        """Say something to it. Raises WindlassError when it is gone."""
        if self._port is None:
            if self._manager is None:
                from windlass import identity, transport

                connection = identity.read_connection_file(self._pilot_file.with_name("client.json"))
                self._port = transport.open_port(connection, "client", "testing", self._hear, lambda reason: None)
            elif (manager := self._manager()) is not None:
                self._port = manager.open_port("client", "testing", self._hear)
        if self._port is not None and not self.closed:
            self._port.send(message)

    @property
    def closed(self) -> bool:
        """Its program has closed it."""
        if self._manager is None:
            return False
        manager = self._manager()
        return manager is None or bool(getattr(manager, "closed", False))

    def look(self) -> dict[str, Any]:
        """Its status (docs/status.md); of one that does not answer, the last there was."""
        with self._lock:
            if not self.closed:
                with contextlib.suppress(WindlassError, RuntimeError, queue.Empty):
                    while not self._answers.empty():  # of a question that was given up
                        self._answers.get_nowait()
                    self.send(GetStatus())
                    self.last = msgspec.json.decode(self._answers.get(timeout=ANSWER_SECONDS))
            return self.last

    def workers(self) -> list[dict[str, Any]]:
        """Rows of its workers."""
        return list(self.look().get("workers", ()))

    def close(self) -> bool:
        """Close the manager, if the program has not; whether it was open. One elsewhere is left alone."""
        manager = self._manager() if self._manager is not None else None
        if manager is None or self.closed:
            if self._manager is None and self._port is not None:
                self._port.close()
            return False
        manager.close()
        return True
