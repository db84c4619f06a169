"""The pages, as an ASGI application (Starlette): who asks for what, and the stream of what changes.

Theory of operation
-------------------
Five answers below the guard's path: the page, its script and style, ``events`` (server-sent events: first the whole state, then patches),
and ``report.html`` and ``trace.json``, a run as it stands.  A patch is encoded once for all pages.  A page that takes them more slowly
than they come is told the whole state when it has room again: its queue never holds more than `QUEUE_MOST`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from windlass.dashboard.feed import Feed
from windlass.dashboard.guard import COOKIE, HEADERS, Guard
from windlass.dashboard.perfetto import perfetto_json
from windlass.dashboard.report import SCRIPTS, report_html

QUEUE_MOST: Final = 4
#: Seconds of silence after which a stream says that it lives.
BEAT_SECONDS: Final = 15.0
_TYPES: Final = {**dict.fromkeys(SCRIPTS, "text/javascript"), "page.css": "text/css"}
_NO_ENTRY: Final = (
    "This is the dashboard of a Windlass manager, and this address lacks its token (or the dashboard was started anew).\n"
    "Open the whole address, as this prints it:\n\n    windlass dashboard\n"
)


class Pages:
    """The application for one feed. ``woken`` is set when a page opens."""

    def __init__(self, feed: Feed, guard: Guard) -> None:
        self.feed, self.guard = feed, guard
        self.woken = asyncio.Event()
        self._queues: set[asyncio.Queue[bytes]] = set()
        self._ended = ""
        routes = [
            Route(guard.path, self._page),
            Route(f"{guard.path}events", self._events),
            Route(f"{guard.path}report.html", self._report),
            Route(f"{guard.path}trace.json", self._perfetto),
            *(Route(guard.path + name, self._asset) for name in _TYPES),
        ]
        self.app: ASGIApp = _Guarded(Starlette(routes=routes), guard)

    # ------------------------------------------------------------ what the manager's side tells

    @property
    def watched(self) -> bool:
        """A page is open."""
        return bool(self._queues)

    def tell(self, patch: dict[str, Any]) -> None:
        """All pages are to know this."""
        if not self._queues:
            return
        event = _event("patch", patch)
        for queue in self._queues:
            if queue.qsize() >= QUEUE_MOST:
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(_event("patch", self.feed.state()))
            else:
                queue.put_nowait(event)

    def end(self, reason: str) -> None:
        """The manager has ended."""
        self._ended = reason
        for queue in self._queues:
            queue.put_nowait(_event("ended", {"reason": reason}))

    def close(self) -> None:
        """No stream goes on."""
        for queue in self._queues:
            queue.put_nowait(b"")

    # ------------------------------------------------------------ answers

    async def _page(self, request: Request) -> Response:
        token = request.query_params.get("token")
        if token is not None and not self.guard.knows_token(token):
            return PlainTextResponse(_NO_ENTRY, 403)
        if token is None and not self._knows(request):
            return PlainTextResponse(_NO_ENTRY, 403)
        headers = {"set-cookie": self.guard.cookie()} if token is not None else {}
        return Response(asset("page.html"), headers=headers, media_type="text/html")

    async def _asset(self, request: Request) -> Response:
        name = request.url.path.rpartition("/")[2]
        return self._answer(request, lambda: Response(asset(name), media_type=_TYPES[name]))

    async def _report(self, request: Request) -> Response:
        def answer() -> Response:
            whole = self.feed.whole()
            if not whole:
                return PlainTextResponse("the manager has not answered yet", 503)
            return _download(report_html(whole), "text/html", f"{whole['record']['run']}.html")

        return self._answer(request, answer)

    async def _perfetto(self, request: Request) -> Response:
        def answer() -> Response:
            whole = self.feed.whole()
            if not whole:
                return PlainTextResponse("the manager has not answered yet", 503)
            return _download(perfetto_json(whole), "application/json", f"{whole['record']['run']}.trace.json")

        return self._answer(request, answer)

    async def _events(self, request: Request) -> Response:
        return self._answer(request, lambda: StreamingResponse(self._stream(), media_type="text/event-stream"))

    def _knows(self, request: Request) -> bool:
        return self.guard.knows_cookie(request.cookies.get(COOKIE, ""))

    def _answer(self, request: Request, answer: Callable[[], Response]) -> Response:
        return answer() if self._knows(request) else PlainTextResponse(_NO_ENTRY, 403)

    async def _stream(self) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._queues.add(queue)
        self.woken.set()
        try:
            yield b"retry: 2000\n\n"
            state = self.feed.state()
            if state:
                yield _event("patch", state)
            if self._ended:
                yield _event("ended", {"reason": self._ended})
            while True:
                try:
                    event = await asyncio.wait_for(queue.get(), BEAT_SECONDS)
                except TimeoutError:
                    event = b": beat\n\n"
                if not event:
                    return
                yield event
        finally:
            self._queues.discard(queue)


class _Guarded:
    """Names of hosts are looked at before anything else; every answer has the guard's headers."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], guard: Guard) -> None:
        self._app, self._guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        host = next((value.decode("latin-1") for name, value in headers if name == b"host"), "")
        extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        if not self._guard.knows_host(host):
            refused = PlainTextResponse("this page is not served under that name\n", 421)
            await refused(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)


def asset(name: str) -> bytes:
    """A file of the page."""
    return resources.files("windlass.dashboard").joinpath(name).read_bytes()


def _event(kind: str, value: dict[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(value) + b"\n\n"


def _download(data: bytes, kind: str, name: str) -> Response:
    return Response(data, media_type=kind, headers={"content-disposition": f'attachment; filename="{name}"'})
