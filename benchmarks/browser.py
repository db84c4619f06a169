"""A real headless Chromium, driven by its DevTools protocol over a pipe.

Theory of operation: ``--remote-debugging-pipe`` gives JSON messages that end with a zero byte, from descriptor 4 and to descriptor 3, so
nothing listens on a port.  One page is open, or several in tabs, of which one is in front and is what is asked; what all of them ask of the
network, and what they complain of, is kept in `Browser.requests` and `Browser.complaints`.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil

#: Puts the pipe's ends to descriptors 3 and 4, and becomes the browser.
_PLACE: Final = """
import fcntl, os, sys
commands, answers = (fcntl.fcntl(int(end), fcntl.F_DUPFD_CLOEXEC, 10) for end in sys.argv[1:3])
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
#: Seconds for anything; a machine under load is slow to start a browser.
PATIENCE: Final = 60.0


def chromium() -> str:
    """The browser's path; "" where there is none."""
    return next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), "")


class Browser:
    """A browser with one page. Use it in a ``with``."""

    def __init__(self, width: int = 1280, height: int = 900, *, dark: bool = False, phone: bool = False) -> None:
        self._folder = tempfile.mkdtemp(prefix="chromium-")
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        words = [
            *(sys.executable, "-c", _PLACE, str(commands), str(answers), chromium()),
            *(
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
            ),
            *("--disable-component-update", "--disable-sync", "--remote-debugging-pipe", f"--user-data-dir={self._folder}", "about:blank"),
        ]
        self._process = subprocess.Popen(
            words,
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # It leaves folders in all of these.
            env={**os.environ, **dict.fromkeys(("TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), self._folder)},
        )
        os.close(commands)
        os.close(answers)
        self._number = 0
        self._rest = b""
        self._answers: dict[int, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.complaints: list[str] = []
        #: The tab that is asked, whichever is in front.
        self.asked = self.tab()
        self.look(width, height, dark=dark, phone=phone)

    def look(self, width: int, height: int, *, dark: bool, phone: bool = False) -> None:
        """The screen, and what the reader's system prefers."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone)
        self._ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def tab(self) -> str:
        """Another tab, in front of the others; what it is called in `show` and `asked`."""
        target = self._say("Target.createTarget", url="about:blank")["targetId"]
        self.asked = str(self._say("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._ask(f"{domain}.enable")
        return self.asked

    def show(self, tab: str) -> None:
        """Have this one in front."""
        self.asked = tab
        self._ask("Page.bringToFront")

    def open(self, address: str) -> None:
        """Go there, and wait until the page is read."""
        self._ask("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """What JavaScript says of this."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until this is so."""
        end = time.monotonic() + PATIENCE
        while not self.value(expression):
            assert time.monotonic() < end, f"never: {expression}\n{self.value('document.body.innerText')}\n{self.complaints}"
            self._listen(0.05)

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """The page as PNG."""
        found = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    # ------------------------------------------------------------ the wire

    def _ask(self, method: str, **told: Any) -> dict[str, Any]:
        return self._say(method, self.asked, **told)

    def _say(self, method: str, session: str = "", /, **told: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": told}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + PATIENCE
        while number not in self._answers:
            assert time.monotonic() < end, f"the browser does not answer {method}"
            self._listen(1.0)
        answer = self._answers.pop(number)
        assert "error" not in answer, (method, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def _listen(self, seconds: float) -> None:
        if not select.select([self._read], [], [], seconds)[0]:
            return
        piece = os.read(self._read, 1 << 20)
        assert piece, "the browser has ended"
        *whole, self._rest = (self._rest + piece).split(b"\0")
        for each in whole:
            message: dict[str, Any] = json.loads(each)
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self._note(message["method"], message["params"])

    def _note(self, method: str, told: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Log.entryAdded":
            self.complaints.append(f"{told['entry']['text']} ({told['entry'].get('url', '')})")
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.complaints.append(json.dumps(told["args"]))

    def close(self) -> None:
        """End it, and the processes that it has started, which write into its folder for a moment longer than it lives."""
        with suppress(psutil.NoSuchProcess):
            family = [(browser := psutil.Process(self._process.pid)), *browser.children(recursive=True)]
            self._process.terminate()
            _, stubborn = psutil.wait_procs(family, timeout=10)
            for process in stubborn:
                process.kill()
            psutil.wait_procs(stubborn, timeout=10)
        self._process.wait()
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
