"""The page that Prometheus scrapes: a small HTTP server which asks a manager how things stand, each time that it is asked itself.

The manager may be in this process (`Manager(metrics=9464)`) or elsewhere (``windlass metrics NAME``), and then it may end and come again
under its name: meanwhile `windlass_up` is 0. The page is for whoever can reach the port; so it is this machine's loopback unless another
address is asked for. It tells names of pools and libraries and numbers, and takes nothing in.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from windlass.errors import Unreachable, UsageError, WindlassError

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from windlass.status import StatusPort

LOOPBACK: Final = "127.0.0.1"
#: What the manager has told is told again for so many times as long as its answer took, and no longer than so many seconds: anybody
#: may ask, as often as he likes.
TOLD_SHARE: Final = 10.0
TOLD_MOST: Final = 5.0
#: Seconds for the manager's connection, and for its answer: Prometheus waits ten for the page, and is to see that there is no answer.
ANSWER_SECONDS: Final = 3.0
#: Where Prometheus expects what OpenTelemetry's exporters give, too.
PORT: Final = 9464


def read_address(value: object) -> tuple[str, int]:
    """``metrics=9464``, or ``"0.0.0.0:9464"``; UsageError for anything else."""
    host, port = LOOPBACK, value
    if isinstance(value, str):
        host, _, text = value.rpartition(":")
        port = int(text) if text.isdecimal() else None
        host = host.strip("[]")
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535 or not host:
        raise UsageError(
            f"metrics={value!r}: write metrics=9464 (a port of this machine alone, 0: any free one), or metrics='0.0.0.0:9464'"
        )
    return host, port


class Exporter:
    """Serves the metrics of what ``read`` gives, a status object, until `close`. Raises UsageError where it cannot listen."""

    def __init__(self, read: Callable[[], dict[str, Any]], host: str = LOOPBACK, port: int = PORT) -> None:
        client = _prometheus()
        self._collector = Collector(read)
        registry = client.CollectorRegistry(auto_describe=False)
        registry.register(self._collector)
        from windlass.metrics_http import PageServer

        try:
            self._server = PageServer(host, port, client.make_wsgi_app(registry))
        except OSError as error:
            raise UsageError(f"metrics cannot be served at {host}:{port}: {error.strerror or error}; choose another port, or 0") from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="windlass-metrics", daemon=True)
        self._thread.start()
        self.host, self.port = host, int(self._server.server_port)

    @property
    def url(self) -> str:
        """What Prometheus scrapes."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Serve no more; may be called twice."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def leave_to_program(self) -> None:
        """This process is a forked copy of the program, which serves them."""
        self._server.socket.close()


class Collector:
    """What a registry of `prometheus_client` asks at each scrape."""

    def __init__(self, read: Callable[[], dict[str, Any]], clock: Callable[[], float] = time.monotonic) -> None:
        from windlass.metrics import Metrics

        self._clock = clock
        self._read, self._metrics = read, Metrics()
        self._lock = threading.Lock()  # scrapes come in threads of their own
        #: What was told last, and until when it is told again.
        self._families: list[Metric] = []
        self._told_until = 0.0

    def collect(self) -> Iterator[Metric]:
        """All metrics, as of now, or of just now for who asks again and again."""
        with self._lock:
            if self._clock() >= self._told_until:
                self._ask()
            families = self._families
        yield from families

    def _ask(self) -> None:
        from prometheus_client.core import GaugeMetricFamily

        families: list[Metric] = []
        up = 0.0
        begun = self._clock()
        with contextlib.suppress(WindlassError):
            families += self._metrics.families(self._read())
            up = 1.0
        took = self._clock() - begun
        self._families = [
            GaugeMetricFamily("windlass_up", "1: the manager answers", value=up),
            GaugeMetricFamily("windlass_scrape_seconds", "How long the manager took to answer", value=took),
            *families,
        ]
        if up:
            self._told_until = self._clock() + min(TOLD_MOST, took * TOLD_SHARE)


class NamedManager:
    """Reads the status of the manager of a name, whenever one of that name runs. Call it; `close` it."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._port: StatusPort | None = None

    def __call__(self) -> dict[str, Any]:
        """The status object. Raises `WindlassError` when there is no answer."""
        from windlass.managers import Presence, choose_manager
        from windlass.status import StatusPort

        if self._port is None:
            known = choose_manager(self._name)
            found = known.require_running()
            self._name = known.name if self._name is None else self._name  # that one, from now on
            if found is Presence.SILENT:
                raise Unreachable(f"manager {known.describe()} did not answer; is its program stopped (Ctrl-Z) or very busy?")
            self._port = StatusPort(known.connection, timeout=ANSWER_SECONDS)
        try:
            status: dict[str, Any] = msgspec.json.decode(self._port.ask(ANSWER_SECONDS))
        except WindlassError:
            self.close()
            raise
        status["manager"].setdefault("name", self._name)
        return status

    def close(self) -> None:
        """Let go of the connection."""
        port, self._port = self._port, None
        if port is not None:
            port.close()


def page(read: Callable[[], dict[str, Any]]) -> str:
    """The page as text, once. Raises what ``read`` raises."""
    client = _prometheus()
    status = read()
    registry = client.CollectorRegistry(auto_describe=False)
    registry.register(Collector(lambda: status))
    text: str = client.generate_latest(registry).decode()
    return text


def _prometheus() -> ModuleType:
    try:
        import prometheus_client
    except ImportError:
        raise UsageError("metrics need a package that is not installed here: pip install prometheus-client") from None
    return prometheus_client
