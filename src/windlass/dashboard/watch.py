"""The dashboard's way to its manager: asks for views at a pace that costs the manager little.

Theory of operation: a `Watch` is a client connection (`windlass.transport.Port`) whose answers are handed to the loop that made it.
Between two questions lie at least `PACE` seconds, and so many that composing the answers takes the manager at most `SHARE` of its time;
while no page is open only every `QUIET` seconds it is asked, so that there is something to be kept should the manager be killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec

from windlass.identity import ConnectionFile
from windlass.messages import GetView, Leave, Message, View
from windlass.transport import Port, open_port

#: Seconds between two views while a page is open, and while none is.
PACE: Final = 1.0
QUIET: Final = 15.0
#: Of the manager's time.
SHARE: Final = 0.005
#: Every so manieth view has pilots and files, too.
FULL_EVERY: Final = 4


class Watch:
    """Views of one manager. To be made on the loop; ``over(reason, orderly)`` is called there, once, when the manager is gone."""

    def __init__(self, connection: ConnectionFile, over: Callable[[str, bool], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = over
        self._pieces: list[bytes] = []
        self._answer: asyncio.Future[dict[str, Any]] | None = None
        self._gone = False
        self._asked = 0
        self._port: Port | None = None
        self._connection = connection

    async def open(self) -> None:
        """Raises `ConnectionRefused`."""
        self._port = await asyncio.to_thread(
            open_port, self._connection, "client", "dashboard", self._hear, lambda reason: self._post(self._end, reason, False)
        )

    def _hear(self, message: Message) -> None:
        """On the port's thread."""
        if isinstance(message, View):
            self._post(self._take, message.json, message.more)
        elif isinstance(message, Leave):
            self._post(self._end, message.reason, True)

    def _post(self, work: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(work, *arguments)
        except RuntimeError:
            pass  # the loop has ended, and nobody listens

    def _take(self, piece: bytes, more: bool) -> None:
        self._pieces.append(piece)
        if not more:
            pieces, self._pieces = self._pieces, []
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(joined(pieces))

    def _end(self, reason: str, orderly: bool) -> None:
        if self._gone:
            return
        self._gone = True
        if self._answer is not None and not self._answer.done():
            self._answer.cancel()
        self._over(reason, orderly)

    async def ask(self, since: float, version: int) -> dict[str, Any] | None:
        """The next view; None: the manager is gone."""
        if self._gone or self._port is None:
            return None
        self._answer = self._loop.create_future()
        self._port.send(GetView(since, version, bool(since and self._asked % FULL_EVERY)))
        self._asked += 1
        try:
            return await self._answer
        except asyncio.CancelledError:
            if self._gone:
                return None
            raise

    def close(self) -> None:
        """Leave the manager."""
        self._gone = True
        if self._port is not None:
            self._port.close()


def pause(took: float, watched: bool) -> float:
    """Seconds until the manager is to be asked again, which took so many to answer."""
    return max(PACE, took / SHARE) if watched else max(QUIET, took / SHARE)


def joined(pieces: list[bytes]) -> dict[str, Any]:
    """What the pieces of a view say together."""
    whole: dict[str, Any] = {}
    for piece in pieces:
        for key, value in cast("dict[str, Any]", msgspec.json.decode(piece)).items():
            if isinstance(value, list) and key in whole:
                whole[key] += value
            else:
                whole[key] = value
    return whole
