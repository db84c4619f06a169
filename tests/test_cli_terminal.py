"""The command line on real pseudo-terminals: the screen of ``status --watch``, and completion in real shells."""

from __future__ import annotations

import argparse
import fcntl
import io
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Self, cast

import pyte
import pytest
from rich.console import Console

import windlass
from windlass import cli_completion
from windlass.cli_watch import Watch

if TYPE_CHECKING:
    from windlass.managers import Known

COMMAND = str(Path(sys.executable).with_name("windlass"))
WATCH = [COMMAND, "status", "--watch", "0.2"]
OTHER_SCREEN, BACK = b"\x1b[?1049h", b"\x1b[?1049l"
HIDDEN, VISIBLE = b"\x1b[?25l", b"\x1b[?25h"
#: Whole commands start here, on machines that do other things too.
SECONDS = 60.0


class Terminal:
    """A program on a pseudo-terminal of its own, and what is on the screen."""

    def __init__(self, words: Sequence[str], columns: int = 80, lines: int = 24, env: Mapping[str, str] | None = None) -> None:
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        ours, theirs = pty.openpty()
        self._fd = ours
        self.resize(columns, lines)
        self.modes = termios.tcgetattr(theirs)
        keep = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
        more = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHONUTF8": "1", **(env or {})}
        code = "import os, sys, fcntl, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *words], stdin=theirs, stdout=theirs, stderr=theirs, env={**keep, **more}, close_fds=True
        )
        self._theirs = theirs

    def resize(self, columns: int, lines: int) -> None:
        """As the window does that the terminal is in."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen.resize(lines, columns)

    def press(self, keys: str | bytes) -> None:
        os.write(self._fd, keys.encode() if isinstance(keys, str) else keys)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)

    def read(self, seconds: float) -> bool:
        """Take in what is written within so many seconds; False: nothing was."""
        ready, _, _ = select.select([self._fd], [], [], seconds)
        if not ready:
            return False
        try:
            data = os.read(self._fd, 1 << 16)
        except OSError:  # nobody has the other side any more
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    def until(self, what: str | Callable[[], object]) -> None:
        """Wait until this stands on the screen, or holds."""
        end = time.monotonic() + SECONDS
        while not (what in self.text if isinstance(what, str) else what()):
            assert time.monotonic() < end, f"never: {what}\n{self.text}\n{self.raw[-500:]!r}"
            self.read(0.05)

    def ended(self) -> int:
        """Wait for the program's end; its exit status."""
        self.until(lambda: self.process.poll() is not None)
        while self.read(0):
            pass
        return int(self.process.returncode)

    @property
    def as_it_was(self) -> bool:
        """The terminal has its modes, its screen and its cursor."""
        last = self.raw.rfind(BACK) > self.raw.rfind(OTHER_SCREEN) and self.raw.rfind(VISIBLE) > self.raw.rfind(HIDDEN)
        return last and termios.tcgetattr(self._theirs)[:4] == self.modes[:4]

    def hang_up(self) -> None:
        """Close the terminal: its window, or the connection that it is at."""
        os.close(self._theirs)
        os.close(self._fd)
        self._fd = self._theirs = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for descriptor in (self._fd, self._theirs):
            if descriptor >= 0:
                os.close(descriptor)


def square(number: int) -> int:
    return number * number


@pytest.fixture
def manager(nothing_left_running: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[windlass.Manager]:
    """The only manager of its user."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "state"))
    with windlass.Manager(name="lab") as manager:
        manager.install_library("numbers", square)
        yield manager


# ---------------------------------------------------------------- the screen


def test_the_screen_is_kept_up_to_date_and_q_ends_it(manager: windlass.Manager) -> None:
    """On the terminal's other screen; afterwards the terminal is as it was."""
    with Terminal(WATCH) as terminal:
        terminal.until("numbers")
        assert "windlass  lab" in terminal.text
        assert "0 waiting" in terminal.text
        futures = [manager.submit(windlass.FunctionCall("numbers", "square", number)) for number in range(3)]
        terminal.until("3 waiting")
        manager.cancel_all()
        terminal.until("3 cancelled")
        assert terminal.raw.count(b"\x1b[2J") == 1, "it is cleared once, and then only lines that have changed are written"
        terminal.press("q")
        assert terminal.ended() == 0
        assert terminal.as_it_was
        assert all(future.cancelled() for future in futures)


def test_ctrl_c_ends_it_as_interrupted(manager: windlass.Manager) -> None:
    """Exit status 130, no traceback."""
    with Terminal(WATCH) as terminal:
        terminal.until("numbers")
        terminal.press("\x03")
        assert terminal.ended() == 130
        assert terminal.as_it_was
        assert b"Traceback" not in terminal.raw


def test_what_ends_a_process_ends_the_screen_first(manager: windlass.Manager) -> None:
    """``kill``, or the end of the connection that the terminal is at."""
    with Terminal(WATCH) as terminal:
        terminal.until("numbers")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.ended() == 128 + signal.SIGTERM
        assert terminal.as_it_was


def test_a_window_that_is_closed_ends_it(manager: windlass.Manager) -> None:
    """Nothing is left that asks the manager for ever."""
    with Terminal(WATCH) as terminal:
        terminal.until("numbers")
        terminal.hang_up()
        assert terminal.process.wait(timeout=SECONDS) in (0, 1, 128 + signal.SIGHUP)


def test_another_size_is_another_layout(manager: windlass.Manager) -> None:
    """At once: two columns from 130 on, one below."""
    with Terminal(WATCH) as terminal:
        terminal.until("numbers")
        first = terminal.text
        terminal.resize(160, 40)
        terminal.until(lambda: "q ends" in terminal.screen.display[39])
        assert any("library" in line and "no pools" in line for line in terminal.screen.display)
        terminal.resize(80, 24)
        terminal.until(lambda: "q ends" in terminal.screen.display[23])
        for lines in (2, 1):
            terminal.resize(80, lines)
            terminal.until(lambda: "q ends" in terminal.screen.display[-1])
        assert "numbers" in first
        terminal.press("q")
        assert terminal.ended() == 0


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(manager: windlass.Manager) -> None:
    """With its modes and without the other screen, as for any program that is stopped."""
    with Terminal(WATCH) as terminal:
        terminal.until("numbers")
        terminal.process.send_signal(signal.SIGTSTP)
        terminal.until(lambda: Path(f"/proc/{terminal.process.pid}/stat").read_text().rpartition(") ")[2].startswith("T"))
        while terminal.read(0):
            pass
        assert terminal.as_it_was
        terminal.process.send_signal(signal.SIGCONT)
        terminal.until(lambda: terminal.raw.count(OTHER_SCREEN) == 2 and "numbers" in terminal.text)
        terminal.press("q")
        assert terminal.ended() == 0
        assert terminal.as_it_was


def test_p_freezes_what_is_shown_and_goes_on(manager: windlass.Manager) -> None:
    with Terminal(WATCH) as terminal:
        terminal.until("numbers")
        terminal.press("p")
        terminal.until("frozen at")
        future = manager.submit(windlass.FunctionCall("numbers", "square", 1))
        terminal.press("p")
        terminal.until("1 waiting")
        terminal.press("q")
        assert terminal.ended() == 0
        assert not future.done()


@pytest.mark.parametrize(
    ("reads", "offset"),
    [
        ([b"\x1b[B\x1b[B\x1b[B"], 3),  # a wheel
        ([b"\x1b[6~", b"\x1b[A" * 4 + b"\x1bOB"], 7),
        ([b"jj", b"k"], 1),
        ([b"\x1b", b"[", b"B\x1b[", b"6", b"~"], 11),
        ([b"\x1b", b"j"], 1),  # the escape key
        ([b"\x1b[1;5C\x1bOPj"], 1),  # others
        ([b"\x1b[A"], 0),
        ([b"pj"], 1),
    ],
)
def test_keys_that_come_together_or_in_pieces_are_taken_one_by_one(reads: list[bytes], offset: int) -> None:
    """A turn of the wheel is three arrows in one read, where there is no scrolling back; slow lines join keys, and cut them."""
    console = Console(file=io.StringIO(), force_terminal=True)
    console.set_alt_screen(True)
    watch = Watch(cast("Known", SimpleNamespace(name="lab", connection=None)), 1.0, console)
    assert not any(watch._typed(typed) for typed in reads)  # pyright: ignore[reportPrivateUsage]
    assert watch._view.offset == offset  # pyright: ignore[reportPrivateUsage]
    assert bool(watch._view.frozen) == (b"p" in reads[0])  # pyright: ignore[reportPrivateUsage]
    assert watch._typed(b"\x1b[Bq")  # pyright: ignore[reportPrivateUsage]


PROGRAM = "import sys, windlass\nwith windlass.Manager(name='elsewhere'):\n    print('here', flush=True)\n    sys.stdin.read()\n"


@pytest.fixture
def elsewhere(nothing_left_running: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """A program with a manager, which ends when its input does."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "state"))
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "here\n"
        yield program
        if program.poll() is None:
            program.send_signal(signal.SIGCONT)
            program.communicate(timeout=SECONDS)


def test_a_manager_that_does_not_answer_is_told_of_and_keys_go_on_to_work(elsewhere: subprocess.Popen[str]) -> None:
    """A program that was stopped with Ctrl-Z; when it goes on, so does the screen."""
    with Terminal(WATCH) as terminal:
        terminal.until("elsewhere")
        elsewhere.send_signal(signal.SIGSTOP)
        terminal.until("no answer for")
        elsewhere.send_signal(signal.SIGCONT)
        terminal.until(lambda: "no answer for" not in terminal.text)
        elsewhere.send_signal(signal.SIGSTOP)
        terminal.until("no answer for")
        terminal.press("q")
        terminal.until(lambda: BACK in terminal.raw)  # its connection may take some time to close
        elsewhere.send_signal(signal.SIGCONT)
        assert terminal.ended() == 0


def test_when_the_manager_ends_so_does_the_screen(elsewhere: subprocess.Popen[str]) -> None:
    """With a word on it, where everything else was before."""
    with Terminal(WATCH) as terminal:
        terminal.until("elsewhere")
        elsewhere.communicate(timeout=SECONDS)
        assert terminal.ended() == 0
        assert terminal.as_it_was
        assert "the manager has gone: " in terminal.raw.rpartition(BACK)[2].decode()


@pytest.mark.parametrize("how", ["pipe", "dumb"])
def test_where_there_is_no_screen_each_look_is_a_line(how: str, manager: windlass.Manager) -> None:
    """In a pipe, a file, or a terminal that can do nothing (TERM=dumb)."""
    if how == "dumb":
        with Terminal(WATCH, env={"TERM": "dumb"}) as terminal:
            terminal.until(lambda: terminal.text.count("0 waiting, 0 running, 0 done, 0 failed") >= 2)
            assert b"\x1b" not in terminal.raw
            terminal.press("\x03")
            assert terminal.ended() == 130
        return
    ran = subprocess.Popen([*WATCH, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with ran:
        assert ran.stdout is not None
        assert [json.loads(ran.stdout.readline())["calls"]["waiting"] for _ in range(2)] == [0, 0]
        ran.send_signal(signal.SIGINT)
        ran.communicate(timeout=SECONDS)
    coloured = {**os.environ, "FORCE_COLOR": "1"}  # which makes no terminal of it
    with subprocess.Popen(WATCH, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=coloured) as running:
        assert running.stdout is not None
        lines = [running.stdout.readline() for _ in range(2)]
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=SECONDS)
    assert running.returncode == 130
    assert all("0 waiting, 0 running, 0 done, 0 failed" in line and "0 workers, 0 slots" in line for line in lines)


def test_lines_go_on_when_a_manager_answers_again(elsewhere: subprocess.Popen[str]) -> None:
    """What is written beside a run of days has no hole to its end because the program was busy for some seconds; the silence is told."""
    code = (
        "import sys, windlass.cli_watch as watch; watch.ANSWER_TIMEOUT = 0.3\nfrom windlass.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, "status", "--watch", "0.1", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline()
        elsewhere.send_signal(signal.SIGSTOP)
        said = running.stderr.readline()
        assert said == "windlass: no answer for 0.3 s, and it is waited for; is its program stopped (Ctrl-Z) or very busy?\n"
        went_on = time.time()
        elsewhere.send_signal(signal.SIGCONT)
        while (line := running.stdout.readline()) and json.loads(line)["manager"]["at"] < went_on + 0.5:
            pass
        assert line
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=SECONDS)
    assert running.returncode == 130
    assert not said


def test_no_color_is_respected(manager: windlass.Manager) -> None:
    """https://no-color.org: bold and reverse stay, colours go."""
    with Terminal([COMMAND, "status", "--watch", "0.2"], env={"NO_COLOR": "1"}) as terminal:
        terminal.until("numbers")
        terminal.press("q")
        assert terminal.ended() == 0
        colours = {cell.fg for line in terminal.screen.buffer.values() for cell in line.values()}
        assert colours <= {"default"}
    with Terminal(WATCH) as terminal:
        terminal.until("no pools")
        assert {cell.fg for line in terminal.screen.buffer.values() for cell in line.values()} - {"default"}


# ---------------------------------------------------------------- completion


def shell_words(shell: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """How a shell is started without anybody's start-up files but ours, and with what environment."""
    path = f"{Path(COMMAND).parent}:{os.environ['PATH']}"
    env = {"HOME": str(folder), "PATH": path, "PS1": "READY>", "ZDOTDIR": str(folder), "XDG_CONFIG_HOME": str(folder)}
    if shell == "bash":
        start = folder / "bashrc"
        start.write_text('PS1="READY>"\neval "$(windlass completion bash)"\n')
        return ["bash", "--noprofile", "--rcfile", str(start), "-i"], env
    if shell == "zsh":
        (folder / ".zshrc").write_text('PS1="READY>"\nautoload -U compinit\ncompinit -u\neval "$(windlass completion zsh)"\n')
        return ["zsh", "-i"], env
    (folder / "fish").mkdir()
    # Where this is missing, fish reads all manual pages in the background, and goes on when the shell has ended.
    (folder / ".local" / "share" / "fish" / "generated_completions").mkdir(parents=True)
    config = "function fish_prompt; echo -n 'READY>'; end\nset -g fish_greeting\nwindlass completion fish | source\n"
    (folder / "fish" / "config.fish").write_text(config)
    return ["fish", "-i"], env


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_the_names_of_what_runs(shell: str, manager: windlass.Manager, tmp_path: Path) -> None:
    """Typed at the shell's own prompt: commands, options, and names of managers, libraries and pilots as they are now."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here; apt-get install {shell}")
    with windlass.Factory(manager, "local", cores=1, max_pilots=1, min_pilots=1):
        words, env = shell_words(shell, tmp_path)
        with Terminal(words, columns=100, env=env) as terminal:
            terminal.until("READY>")
            for typed, completed in (
                ("windlass envir", "windlass environment"),
                ("windlass status l", "windlass status lab"),
                ("windlass calls --library nu", "windlass calls --library numbers"),
                ("windlass workers --sta", "windlass workers --state"),
                ("windlass workers --state dr", "windlass workers --state draining"),
                ("windlass factory run lo", "windlass factory run local"),
                ("windlass factory run local --max-pi", "windlass factory run local --max-pilots"),
            ):
                terminal.press(typed + "\t")
                terminal.until(completed)
                terminal.press("\x15")  # Ctrl-U: an empty line again
            end = time.monotonic() + SECONDS
            while not manager.status()["pilots"]:
                assert time.monotonic() < end
                time.sleep(0.05)
            [pilot] = [row["pilot"] for row in manager.status()["pilots"]]
            terminal.press("\x15windlass logs loc\t")
            terminal.until(f"windlass logs {pilot}")
            terminal.press("\x15exit\r")
            terminal.ended()


def test_a_tab_waits_for_a_manager_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it takes to find one: each that was ever here is tried, at all of its addresses, and one that is stopped takes its time."""
    over = threading.Event()

    def tried(*words: object, **more: object) -> None:
        assert over.wait(SECONDS), "it waits for this"
        raise windlass.UsageError("nobody listens any more")

    monkeypatch.setattr("windlass.managers.choose_manager", tried)
    monkeypatch.setattr(cli_completion, "ASK_SECONDS", 0.05)
    try:
        with pytest.raises(TimeoutError):
            cli_completion._ask(argparse.Namespace())  # pyright: ignore[reportPrivateUsage]
    finally:
        over.set()


def test_completion_says_what_it_needs() -> None:
    """Without its package it is a wrong command line with what to install; a TAB without it offers nothing."""
    code = "import sys; sys.modules['argcomplete'] = None; sys.modules['argcomplete.shell_integration'] = None\n"
    code += "from windlass.cli import main; sys.exit(main(['completion', 'bash']))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "windlass: shell completion needs the package argcomplete: pip install 'argcomplete>=3.3'\n"
