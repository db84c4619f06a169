"""The process that serves a manager's dashboard, in a terminal (``windlass dashboard``) or as the child of a program.

Theory of operation
-------------------
One loop: a `Watch` asks the manager, the `Feed` makes patches of its answers, the `Pages` tell browsers.  It ends when the manager does,
on a signal, or, as a child, when its parent has closed its standard input.  Its address stands in the manager's state folder (`NOTE`, for
its owner only) as long as it serves, so that ``windlass dashboard`` finds one that is there.

A manager that ends in order writes down its run itself; when it was killed, what was seen last is kept here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import uvicorn

from windlass.dashboard.app import Pages
from windlass.dashboard.feed import Feed
from windlass.dashboard.guard import Guard
from windlass.dashboard.watch import Watch, pause
from windlass.errors import UsageError
from windlass.identity import write_private
from windlass.managers import Known
from windlass.runs import write_run
from windlass.signals import ending_signals

LOOPBACK: Final = "127.0.0.1"
#: In the manager's folder: the address, and a page that leads there. A browser is told to open that one, as everybody sees its arguments.
NOTE: Final = "dashboard.json"
WAY_IN: Final = "dashboard.html"
#: Seconds that pages get to hear of the end.
_FAREWELL: Final = 0.3
#: Seconds for a dashboard of this machine to answer.
_PROBE_SECONDS: Final = 2.0


class _Server(uvicorn.Server):
    """Leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class _Serving:
    """One page of one manager."""

    def __init__(self, known: Known, host: str, sock: socket.socket) -> None:
        self._known, self._socket = known, sock
        local = host == LOOPBACK
        self.guard = Guard(() if local else (host, socket.gethostname(), socket.getfqdn()))
        shown = host if host not in ("0.0.0.0", "::") else socket.gethostname()
        self.link = self.guard.link(shown, cast("int", sock.getsockname()[1]))
        self.feed = Feed()
        self.pages = Pages(self.feed, self.guard)
        self._over = asyncio.Event()
        self._reason, self._orderly = "", False
        #: The manager goes on, so pages are told nothing: another dashboard may be at their address soon.
        self._interrupted = False

    def _interrupt(self, number: signal.Signals) -> None:
        self._interrupted = not self._over.is_set()
        self.end(f"signal {number.name}", True)

    def end(self, reason: str, orderly: bool) -> None:
        """The manager, or who started this, is gone; or a signal came."""
        if not self._over.is_set():
            self._reason, self._orderly = reason, orderly
            self._over.set()

    async def run(self, ready: Callable[[str], object], *, child: bool) -> str:
        """Serve until the end; why it ended. ``ready`` is told the address when there is something to see."""
        watch = Watch(self._known.connection, self.end)
        await watch.open()
        first = await watch.ask(0.0, 0)
        if first is not None:
            self.feed.take(first)
        config = uvicorn.Config(
            self.pages.app, log_config=None, access_log=False, lifespan="off", ws="none", server_header=False, timeout_graceful_shutdown=2
        )
        server = _Server(config)
        loop = asyncio.get_running_loop()
        for number in ending_signals():
            loop.add_signal_handler(number, self._interrupt, number)
        if child:
            loop.add_reader(sys.stdin.fileno(), self._look_at_parent)
        serving = asyncio.create_task(server.serve(sockets=[self._socket]))
        polling = asyncio.create_task(self._poll(watch))
        note = self._known.path.parent / NOTE
        try:
            _note(note, self.link)
            ready(self.link)
            await self._over.wait()
        finally:
            _unnote(note, self.link)
            polling.cancel()
            watch.close()
            if not self._interrupted:
                self.pages.end(self._reason)
                if self.pages.watched:
                    await asyncio.sleep(_FAREWELL)
            self.pages.close()
            server.should_exit = True
            await asyncio.gather(serving, polling, return_exceptions=True)
        if not self._orderly:
            self._keep()
        return self._reason

    async def _poll(self, watch: Watch) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                if self.pages.watched:
                    await asyncio.sleep(pause(self.feed.took, True))
                else:
                    self.pages.woken.clear()
                    await asyncio.wait_for(self.pages.woken.wait(), pause(self.feed.took, False))
            found = await watch.ask(self.feed.since, self.feed.version)
            if found is None:
                return
            self.pages.tell(self.feed.take(found))

    def _look_at_parent(self) -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            self.end("the program that started it has closed it, or has ended", False)

    def _keep(self) -> None:
        """The manager may have had no time to write down how its run ended."""
        whole = self.feed.whole()
        if whole and not self._known.is_running():
            whole["record"] = {**whole["record"], "ended": "the manager was killed, or is out of reach; this is what was seen last"}
            with contextlib.suppress(OSError):
                write_run(self._known.path.parent.parent.parent / "runs", whole["record"]["run"], msgspec.json.encode(whole), replace=False)


def serve(known: Known, ready: Callable[[str], object], *, host: str = LOOPBACK, port: int = 0, child: bool = False) -> str:
    """Serve the dashboard of a manager until one of them ends; why it did. For the main thread, as it takes signals.

    ``ready`` is called with the address, token included. Raises `UsageError` for an address that cannot be had, `ConnectionRefused`.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(
            f"the dashboard cannot listen at {host} port {port}: {error.strerror or error}; choose another with --listen"
        ) from None
    with sock:
        return asyncio.run(_serve(known, host, sock, ready, child))


async def _serve(known: Known, host: str, sock: socket.socket, ready: Callable[[str], object], child: bool) -> str:
    return await _Serving(known, host, sock).run(ready, child=child)


def _note(path: Path, link: str) -> None:
    with contextlib.suppress(OSError):
        write_private(path, msgspec.json.encode({"url": link, "pid": os.getpid(), "host": socket.gethostname()}))
        text = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={link}"><title>Windlass</title>'
        write_private(path.with_name(WAY_IN), text.encode())


def _unnote(path: Path, link: str) -> None:
    if _noted(path).get("url") == link:
        with contextlib.suppress(OSError):
            path.unlink()
            path.with_name(WAY_IN).unlink()


def _noted(path: Path) -> dict[str, Any]:
    try:
        found: Any = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def running_dashboard(known: Known) -> str:
    """The address of a dashboard of this machine that serves this manager already; "" without one.

    State folders are shared by machines, and what listens at that port here, or does so since the dashboard was killed, may be anybody's:
    so the token is sent to nobody unless its process is here and ours.
    """
    note = _noted(known.path.parent / NOTE)
    link, process = str(note.get("url", "")), note.get("pid")
    if not link.startswith("http://") or note.get("host") != socket.gethostname() or not isinstance(process, int) or process <= 0:
        return ""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy that the environment names must not see the token
    try:
        os.kill(process, 0)
        with direct.open(link, timeout=_PROBE_SECONDS) as answer:
            return link if answer.status == 200 else ""
    except (OSError, ValueError, OverflowError):
        return ""
