"""The HTTP server of the page of metrics: whoever can reach its port may ask, and nobody can take much of the program that serves it.

Theory of operation
-------------------
Each connection has a thread, `MOST` of them at one time.  One more takes the place of the one that has been open longest without having
asked, whoever that is; where all have asked it is closed.  Who says nothing for `SILENT_SECONDS`, or has not been served after
`LONGEST_SECONDS` (a byte now and then is not silence), is hung up on, and so is everybody when the server is closed.  So a flood costs
`MOST` threads and descriptors, and who asks at once, as Prometheus does, is served meanwhile.

A socket that is shut down makes its thread's reading or writing end; the thread closes it and gives its place free.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

MOST: Final = 16
SILENT_SECONDS: Final = 10.0
LONGEST_SECONDS: Final = 30.0
#: Seconds that one more waits for the place of one that is hung up on, and that the server rests when it has no descriptors.
_PLACE_SECONDS: Final = 1.0


class _Handler(WSGIRequestHandler):
    """One connection: one request."""

    timeout = SILENT_SECONDS
    server: PageServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # it was silent, or has hung up
            super().handle()

    def parse_request(self) -> bool:
        understood = super().parse_request()
        self.server.has_asked(self.connection)
        return understood

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads that."""


class PageServer(ThreadingMixIn, WSGIServer):
    """Serves an application of WSGI from `serve_forever` on. Raises OSError where it cannot listen."""

    daemon_threads = True
    #: Of a queue of five, the default, a flood leaves no room to who comes next, and he tries again after a second.
    request_queue_size = 128

    def __init__(self, host: str, port: int, application: Callable[..., Any], longest: float = LONGEST_SECONDS) -> None:
        self.address_family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self._longest = longest
        self._places = threading.Semaphore(MOST)
        self._lock = threading.Lock()
        #: Open connections, the oldest first, and since when each is; and those of them that have not asked.
        self._open: dict[socket.socket, float] = {}
        self._silent: dict[socket.socket, None] = {}
        super().__init__((str(address[0]), port), _Handler)
        self.set_app(application)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            time.sleep(_PLACE_SECONDS)  # as a rule there is no descriptor to be had, and it would be asked for again at once
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        if not self._places.acquire(blocking=False):
            with self._lock:
                oldest = next(iter(self._silent), None)
                if oldest is None:
                    return False
                self._hang_up(oldest)
            if not self._places.acquire(timeout=_PLACE_SECONDS):
                return False
        with self._lock:
            self._open[request], self._silent[request] = time.monotonic(), None
        return True

    def process_request(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request(request, client_address)
        except BaseException:  # there is no thread to be had
            self._gone(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._gone(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asks is told nothing, and the program neither."""

    def service_actions(self) -> None:
        """Comes twice a second: hang up on whoever has been here too long."""
        with self._lock:
            for request in [one for one, since in self._open.items() if time.monotonic() - since > self._longest]:
                self._hang_up(request)

    def server_close(self) -> None:
        """Listen no more, and hang up on all: `service_actions` does not come any more."""
        super().server_close()
        with self._lock:
            for request in self._open:
                self._hang_up(request)

    def has_asked(self, request: socket.socket) -> None:
        """It gets its answer now, whoever comes."""
        with self._lock:
            self._silent.pop(request, None)

    def _hang_up(self, request: socket.socket) -> None:
        """With the lock."""
        self._silent.pop(request, None)
        with contextlib.suppress(OSError):  # it has gone by itself
            request.shutdown(socket.SHUT_RDWR)

    def _gone(self, request: socket.socket) -> None:
        with self._lock:
            self._open.pop(request, None)
            self._silent.pop(request, None)
        self._places.release()
