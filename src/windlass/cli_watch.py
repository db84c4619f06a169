"""``windlass status --watch``: a screen that is kept up to date, or a line at each look where there is no terminal.

Theory of operation
-------------------
One loop waits for a key, for a word of the manager, for a new size of the terminal, or until it is time to ask again. The manager is
asked and not waited for: a program that is stopped makes the screen say so, and keys go on to work. Signals and the connection's thread
wake the loop by a byte in a pipe.

The terminal's other screen is used, so what was there before is there afterwards. Only lines that have changed are written, all at once:
there is nothing to flicker, and a look costs a slow line a few hundred bytes. Whatever ends the watch (q, Ctrl-C, a signal, an error)
puts back the terminal's modes; Ctrl-Z does so, too, until the watch is taken up again.

Where standard output is no terminal, or a dumb one, each look is one line of text, and that there is no answer is told once.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, cast

from windlass.errors import ConnectionRefused
from windlass.messages import CallList, GetStatus, Leave, ListCalls, Message, Status
from windlass.status import ANSWER_TIMEOUT, SILENT, StatusPort, show_plain
from windlass.sums import count_workers

if TYPE_CHECKING:
    from rich.console import Console

    from windlass.managers import Known
    from windlass.screen import View

#: Failed calls and long ones that are asked for.
CALLS_SHOWN: Final = 8
#: Seconds without an answer after which the screen says so.
SILENT_SECONDS: Final = 3.0
#: The manager is not asked again before so many times the seconds have passed that its answer took; but after so many seconds.
ASK_SHARE: Final = 10.0
ASK_LEAST: Final = 10.0
#: How many lines keys move, by what they send.
_MOVES: Final = {
    **dict.fromkeys((b"\x1b[A", b"\x1bOA", b"k"), -1),
    **dict.fromkeys((b"\x1b[B", b"\x1bOB", b"j"), 1),
    b"\x1b[5~": -10,
    **dict.fromkeys((b"\x1b[6~", b" "), 10),
}
#: What one key sends, and the beginning of that.
_KEY: Final = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO[@-~]|[^\x1b]", re.DOTALL)
_BEGUN: Final = re.compile(rb"\x1b(\[[0-?]*[ -/]*|O)?\Z")


def watch(known: Known, seconds: float, *, as_json: bool) -> int:
    """Show the manager every so many seconds until somebody ends that; the exit status."""
    from rich.console import Console

    from windlass.tables import is_terminal

    console = Console(highlight=False)
    if as_json or not is_terminal(console) or console.is_dumb_terminal:
        return _lines(known, seconds, as_json=as_json)
    return Watch(known, seconds, console).run()


# ---------------------------------------------------------------- lines


def _lines(known: Known, seconds: float, *, as_json: bool) -> int:
    from windlass.screen import View

    view = View({})
    with StatusPort(known.connection) as port:
        while True:
            try:
                port.send(GetStatus())
                answer = _awaited(port)
            except ConnectionRefused as error:
                if not view.status:
                    raise
                sys.stdout.flush()
                print(f"windlass: the manager has gone: {error}", file=sys.stderr)
                return 0
            if as_json:
                view.status = {"seen": True}
                print(answer.decode(), flush=True)
            else:
                view.take(json.loads(answer))
                print(one_line(view), flush=True)
            time.sleep(seconds)


def _awaited(port: StatusPort) -> bytes:
    """The answer, however long it takes: of a run of days it may be that the program is busy for a minute. Raises `ConnectionRefused`."""
    answer = port.answer(ANSWER_TIMEOUT)
    if answer is None:
        sys.stdout.flush()
        print(f"windlass: no answer for {ANSWER_TIMEOUT:g} s, and it is waited for; {SILENT}", file=sys.stderr, flush=True)
        while answer is None:
            answer = port.answer(ANSWER_TIMEOUT)
    return answer


def one_line(view: View) -> str:
    """A status in one line."""
    status, calls = view.status, view.status["calls"]
    rate = view.rate()
    words = [f"{calls[key]:,} {key}" for key in ("waiting", "running", "done", "failed")]
    words += [f"{show_plain(float(rate))} per s"] if rate is not None else []
    workers, slots = count_workers(status), sum(one["slots"] for one in status["libraries"])
    words += [f"{workers:,} worker{'s' * (workers != 1)}", f"{slots:,} slot{'s' * (slots != 1)}"]
    paused = [str(pool["name"]) for pool in status["pools"] if pool["paused"]]
    words += [f"paused: {', '.join(paused)}"] if paused else []
    return f"{time.strftime('%H:%M:%S', time.localtime(status['manager']['at']))}  {', '.join(words)}"


# ---------------------------------------------------------------- the screen


class Watch:
    """One watch on a terminal."""

    def __init__(self, known: Known, seconds: float, console: Console) -> None:
        from windlass.screen import View

        self._known, self._seconds, self._console = known, seconds, console
        self._heard: deque[Message] = deque()
        self._view = View({}, name=known.name, unicode=(console.encoding or "").lower().startswith("utf"))
        #: What stands on each line of the screen.
        self._shown: list[str] = []
        #: The terminal's own, while it has others.
        self._modes: list[Any] | None = None
        self._gone = ""
        self._wake = -1
        #: The beginning of a key whose rest has not come yet.
        self._begun = b""

    def run(self) -> int:
        """Until q (0), or the manager has gone (0); Ctrl-C is left to the caller."""
        with ExitStack() as stack:
            ours, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            stack.callback(os.close, ours)
            stack.callback(os.close, self._wake)
            port = stack.enter_context(StatusPort(self._known.connection, self._hear))
            stack.enter_context(_signals(self._wake))
            keyboard = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1  # pyright: ignore[reportUnnecessaryComparison]
            with self._screen(keyboard):
                self._loop(port, ours, keyboard)
        if self._gone:
            print(f"the manager has gone: {self._gone}")
        return 0

    def _hear(self, message: Message) -> None:
        """On the connection's thread."""
        self._heard.append(message)
        _poke(self._wake, b"m")

    def _loop(self, port: StatusPort, woken: int, keyboard: int) -> None:
        due = asked = time.monotonic()
        waiting = False
        watched = [woken, keyboard] if keyboard >= 0 else [woken]
        while True:
            now = time.monotonic()
            if not waiting and now >= due:
                with suppress(ConnectionRefused):  # then what was heard, below, says why
                    port.send(GetStatus(), ListCalls(("running", "failed"), most=CALLS_SHOWN))
                waiting, asked, due = True, now, now + self._seconds
            elif waiting and now - asked > SILENT_SECONDS:
                silent = f"no answer for {now - asked:.0f} s; is the manager's program stopped (Ctrl-Z) or very busy?   q ends"
                self._view.trouble = silent
                self._draw()
            # While it is silent the seconds are counted on the screen.
            ready, _, _ = select.select(watched, [], [], 1.0 if waiting else max(0.0, due - now))
            if woken in ready:
                for why in os.read(woken, 4096):
                    if why == ord("z"):
                        self._stop_for_a_while(keyboard)
                    if why in b"zw":
                        self._shown = []  # the terminal may have lost what it showed
                if self._take_heard():
                    waiting = False
                    # A manager of thousands of workers, or one that is busy, is asked less often.
                    answered = time.monotonic()
                    due = max(due, answered + min(ASK_LEAST, ASK_SHARE * (answered - asked)))
                    self._view.trouble = ""
                if self._gone:
                    return
                self._draw()
            if keyboard in ready and self._typed(os.read(keyboard, 64)):
                return

    def _take_heard(self) -> bool:
        """Take in what the manager has said; True if that was its status."""
        answered = False
        while self._heard:
            message = self._heard.popleft()
            if isinstance(message, Leave):
                self._gone = message.reason
            elif isinstance(message, Status):
                answered = True
                if not self._view.frozen:
                    self._view.take(json.loads(message.json))
            elif isinstance(message, CallList) and not self._view.frozen:
                self._view.calls = cast("Mapping[str, Any]", json.loads(message.json))["calls"]
        return answered

    def _typed(self, typed: bytes) -> bool:
        """True: it is to end."""
        keys, self._begun = split_keys(self._begun + typed)
        if not typed or {b"q", b"Q", b"\x03"} & set(keys):
            return True
        for key in keys:
            if key in (b"p", b"P"):
                self._view.frozen = "" if self._view.frozen else time.strftime("%H:%M:%S")
            self._view.offset = max(0, self._view.offset + _MOVES.get(key, 0))
        self._draw()
        return False

    def _draw(self) -> None:
        """Write the lines that have changed."""
        from windlass.screen import draw

        console = self._console
        width, height = console.size
        lines = draw(self._view, width, height)
        marks = [line.markup for line in lines]
        if len(self._shown) != height:
            self._shown = [""] * height
            console.control(_clear())
        options = console.options.update(width=width, height=1, no_wrap=True)
        with console:  # so that all of it is one write
            for place, (line, mark) in enumerate(zip(lines, marks, strict=True)):
                if self._shown[place] != mark:
                    console.update_screen_lines(console.render_lines(line, options, pad=True), 0, place)
        self._shown = marks

    # ------------------------------------------------------------ the terminal

    @contextmanager
    def _screen(self, keyboard: int) -> Generator[None]:
        """The terminal's other screen, without a cursor, and keys one by one."""
        import termios
        import tty

        modes = self._modes = termios.tcgetattr(keyboard) if keyboard >= 0 else None
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)
        try:
            if modes is not None:
                tty.setcbreak(keyboard, termios.TCSANOW)
            self._shown = []
            yield
        finally:
            with suppress(OSError, termios.error):  # it may be gone, as when its window was closed
                if modes is not None:
                    termios.tcsetattr(keyboard, termios.TCSADRAIN, modes)
                self._console.show_cursor(True)
                self._console.set_alt_screen(False)

    def _stop_for_a_while(self, keyboard: int) -> None:
        """Ctrl-Z: give the terminal back, stop, and take it again."""
        import termios
        import tty

        self._console.show_cursor(True)
        self._console.set_alt_screen(False)
        if self._modes is not None:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, self._modes)
        os.kill(os.getpid(), signal.SIGSTOP)
        if keyboard >= 0:
            tty.setcbreak(keyboard, termios.TCSANOW)
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)


def split_keys(typed: bytes) -> tuple[list[bytes], bytes]:
    """The keys in what a terminal has sent, and the beginning of one that is to come: a wheel sends several at once, as does a key that is
    held on a slow line, and a read may end within one."""
    begun = _BEGUN.search(typed)
    whole = typed[: begun.start()] if begun else typed
    return _KEY.findall(whole), typed[len(whole) :]


def _clear() -> Any:
    from rich.control import Control

    return Control.clear()


def _poke(pipe: int, what: bytes) -> None:
    try:
        os.write(pipe, what)
    except OSError:
        pass  # it is full, and the loop will wake anyway; or the watch is over


@contextmanager
def _signals(pipe: int) -> Generator[None]:
    """A new size and Ctrl-Z wake the loop; what ends a process ends the watch first."""

    def wake(what: bytes) -> Callable[[int, FrameType | None], None]:
        return lambda number, frame: _poke(pipe, what)

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    wanted: dict[int, Any] = {signal.SIGWINCH: wake(b"w"), signal.SIGTSTP: wake(b"z"), signal.SIGTERM: end, signal.SIGHUP: end}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
