"""What an open page does when its dashboard ends, is started anew, or is behind a proxy that cannot reach it, and when it is hidden: in
a real browser."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import pytest

import windlass

if TYPE_CHECKING:
    from browser import Browser

pytestmark = pytest.mark.usefixtures("nothing_left_running")
BANNER = "document.getElementById('banner').innerText"


@contextmanager
def dashboard(manager: windlass.Manager, port: int = 0) -> Generator[str]:
    """One in a terminal, until Ctrl-C; its link."""
    words = [sys.executable, "-m", "windlass", "dashboard", manager.name, "--json", "--listen", str(port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.send_signal(signal.SIGINT)


class Front(socketserver.ThreadingTCPServer):
    """A proxy of the kind that sites have before their machines: what it cannot reach it answers for, with 502."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.behind = ("127.0.0.1", port)
        self.down = False


class Passing(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        front = cast("Front", self.server)
        if front.down:
            self.request.recv(65536)
            self.request.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        with socket.create_connection(front.behind) as behind:
            other = {behind: self.request, self.request: behind}
            while not front.down:
                for one in select.select(list(other), [], [], 0.05)[0]:
                    piece = one.recv(65536)
                    if not piece:
                        return
                    other[one].sendall(piece)


def open_page(open_browser: Callable[..., Browser], link: str) -> Browser:
    browser = open_browser()
    browser.open(link)
    browser.until("window.windlass.updates > 0")
    browser.value("page.pause = 0.1")
    return browser


def test_a_page_whose_dashboard_was_started_anew_says_where_to_go(open_browser: Callable[..., Browser]) -> None:
    """The new one has another path and another token, also where it has the port. That the manager has ended nobody has said."""
    with windlass.Manager(name=f"anew{os.getpid()}") as manager:
        with dashboard(manager) as link:
            browser = open_page(open_browser, link)
        browser.until(f"{BANNER}.startsWith('The dashboard is not reached')")
        with dashboard(manager, urlsplit(link).port or 0):
            browser.until(f"{BANNER}.includes('Open the address that this prints: windlass dashboard {manager.name}')")


def test_a_page_goes_on_when_a_proxy_reaches_its_dashboard_again(open_browser: Callable[..., Browser]) -> None:
    """A browser gives a stream up for good that was answered with 502."""
    with windlass.Manager(name=f"proxy{os.getpid()}") as manager, dashboard(manager) as link:
        parts = urlsplit(link)
        with Front(parts.port or 0) as front:
            threading.Thread(target=front.serve_forever, daemon=True).start()
            browser = open_page(open_browser, link.replace(parts.netloc, f"127.0.0.1:{front.server_address[1]}"))
            front.down = True
            browser.until("!page.live && performance.getEntriesByName(new URL('page.css', location).href).length > 3")
            assert browser.value(BANNER).startswith("The dashboard is not reached")
            front.down = False
            browser.until(f"page.live && !{BANNER}")
            front.down = True
            front.shutdown()


def test_eight_tabs_are_served_and_each_goes_on_when_it_is_shown(open_browser: Callable[..., Browser]) -> None:
    """A browser has six connections to one host; the seventh page would not even be loaded. A page that is shown again has what is there
    now alone. The last one goes on in the background, as nobody else listens, and sees the end."""
    with windlass.Manager(name=f"tabs{os.getpid()}") as manager, dashboard(manager) as link:
        browser = open_page(open_browser, link)
        browser.value("page.tables.files.set('long gone', {})")
        first = last = browser.asked
        for _ in range(7):
            last = browser.tab()
            browser.open(link)
            browser.until("window.windlass.updates > 0")
        browser.asked = first
        told = browser.value("window.windlass.updates")
        assert browser.value("stream === null")
        browser.show(first)
        browser.until(f"window.windlass.updates > {told + 1} && page.live && !page.tables.files.size")
        browser.show(last)
        browser.until("window.windlass.updates > 2")
        browser.tab()
        manager.close()
        browser.asked = last
        browser.until("page.ended")
        assert browser.value("document.hidden")
