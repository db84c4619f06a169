"""What cannot be is refused where it is given, in words that say what to write instead; and nothing is lost by it.

Theory of operation
-------------------
The wrong uses stand in ``bad_input/*.txt``, one table of the project: each is run here, and docs/errors.md shows all of them.  A case is
a block of lines, as one would see it in a terminal::

    windlass.toml:
        [pools.short]
        cores = 2
    $ windlass factory dry-run short
    2: windlass: windlass.toml [pools.short] does not say which backend; write for example backend = 'slurm'

First files that there are (each name with a colon, its lines indented); then Python code (``>>> ``) or a command line (``$ ``); then what
the user sees: the class and the text of the error, or the exit status and what is on stderr, without argparse's usage.  Lines that begin
with ``#`` are the title of an area and what is said of it.  For what differs from run to run there are the words of `Scene.shown`.

``python tests/system/test_bad_input.py`` writes docs/errors.md anew; a test says so when the page and the cases differ.
"""

from __future__ import annotations

import contextlib
import html
import io
import math
import os
import re
import shlex
import subprocess
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import InvalidStateError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import windlass
from windlass import Closed, Executor, Factory, FunctionCall, Manager, NotPossible, UsageError
from windlass.cli import main
from windlass.factory import config

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "errors.md"
#: The areas, in the order of the page.
AREAS = (
    *("calls", "options", "libraries", "files", "futures", "managers", "executors", "factories"),
    *("batch", "templates", "configuration", "commands", "worker"),
)


@dataclass(frozen=True)
class Case:
    """A wrong use, and what whoever does it sees."""

    area: str
    #: Files that there are: names and contents.
    files: tuple[tuple[str, str], ...]
    #: Python code, or a command line.
    code: str
    is_command: bool
    seen: str


@dataclass
class Area:
    """The cases of a file, with what is said of them."""

    title: str
    text: str = ""
    cases: list[Case] = field(default_factory=list[Case])


def read_area(name: str) -> Area:
    """The cases of ``bad_input/NAME.txt``."""
    head, *blocks = (HERE / "bad_input" / f"{name}.txt").read_text().strip().split("\n\n")
    title, *words = (line.removeprefix("#").strip() for line in head.splitlines())
    return Area(title, "\n".join(words), [read_case(name, block) for block in blocks])


def read_case(area: str, block: str) -> Case:
    """One block of lines."""
    files: list[tuple[str, str]] = []
    code: list[str] = []
    lines = block.splitlines()
    while not lines[0].startswith((">>> ", "$ ")):
        name = lines.pop(0).removesuffix(":")
        content = ""
        while lines[0].startswith("    "):
            content += lines.pop(0)[4:] + "\n"
        files.append((name, content))
    is_command = lines[0].startswith("$ ")
    while lines and lines[0].startswith((">>> ", "... ", "$ ")):
        code.append(lines.pop(0).partition(" ")[2])
    return Case(area, tuple(files), "\n".join(code), is_command, "\n".join(lines))


# ---------------------------------------------------------------- the functions that the cases speak of


def double(number: int) -> int:
    return 2 * number


def half(number: int) -> float:
    return number / 2


def counting() -> Iterator[int]:
    yield 1


async def counting_later() -> AsyncIterator[int]:
    """An async generator, which cannot travel."""
    yield 1


async def later() -> int:
    return 1


class Scene:
    """What the code of the cases finds: a manager ``lab`` with a call that waits, a program that is attached to it, an executor."""

    def __init__(self, manager: Manager, attached: windlass.AttachedManager, state: Path) -> None:
        self.manager, self.state = manager, state
        self.pool = Executor(None, manager=manager)
        self.first = manager.submit(FunctionCall("lib", "double", 21))
        self.names: dict[str, Any] = {
            **{name: getattr(windlass, name) for name in windlass.__all__},
            **{one.__name__: one for one in (double, half, counting, counting_later, later)},
            "math": math,
            "os": os,
            "threading": threading,
            "windlass": windlass,
            "manager": manager,
            "attached": attached,
            "pool": self.pool,
            "future": self.first,
            "call": FunctionCall("lib", "double", 1),
        }
        self.pending = self._counts()

    def _counts(self) -> tuple[int, tuple[str, ...]]:
        return len(self.manager._client.pending()), self.manager.libraries  # pyright: ignore[reportPrivateUsage]

    def unchanged(self) -> bool:
        """Neither calls nor libraries have come or gone."""
        return self._counts() == self.pending

    def run(self, case: Case, folder: Path) -> str:
        """Do what the case does, in ``folder``; what its user sees."""
        for name, content in case.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        return self.shown(self._command(case.code) if case.is_command else self._python(case.code), folder)

    def _python(self, code: str) -> str:
        try:
            exec(compile(code, "<wrong>", "exec"), dict(self.names))
        except Exception as error:  # noqa: BLE001  # any: the case says which
            told = isinstance(error, windlass.WindlassError | InvalidStateError | TimeoutError)
            # Python itself refuses calls with missing arguments, at the line that is wrong.
            if told or traceback.extract_tb(error.__traceback__)[-1].filename == "<wrong>":
                text = str(error) if told else str(error).partition(". Did you mean")[0]  # which later Pythons add
                return f"{type(error).__name__}: {text}"
            return "".join(traceback.format_exception(error))
        return "nothing"

    def _command(self, line: str) -> str:
        words = shlex.split(line)
        with pytest.MonkeyPatch.context() as patch:
            while "=" in words[0]:
                name, _, value = words.pop(0).partition("=")
                patch.setenv(name, value)
            if words[1:2] == ["worker"]:
                # It forks, which this process with its threads had better not.
                ran = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False, timeout=60)
                return f"{ran.returncode}: {ran.stderr.strip()}"
            told, printed = io.StringIO(), io.StringIO()
            with contextlib.redirect_stderr(told), contextlib.redirect_stdout(printed):
                try:
                    status: object = main(words[1:])
                except SystemExit as ended:
                    status = ended.code
            text = re.sub(r"\Ausage: .*?^(?=windlass.*: error: )", "", told.getvalue(), flags=re.DOTALL | re.MULTILINE)
            if not text and printed.getvalue().startswith("usage: "):
                text = "(the help, with its commands)"
            return f"{status}: {text.strip()}"

    def shown(self, text: str, folder: Path) -> str:
        """The text with words for what differs from run to run."""
        text = text.replace(str(folder), "HERE").replace(f"in {sys.prefix};", "in VENV;").replace(str(self.state), "STATE")
        text = re.sub(rf"\b{self.manager.port}\b", "PORT", text)
        text = re.sub(rf"\b{os.getpid()}\b", "PID", text)
        text = re.sub(r"\blab-[0-9a-f]{8}\b", "lab-ID", text)
        return re.sub(r"0x[0-9a-f]{6,}", "0x...", text)


# ---------------------------------------------------------------- the page

PREFACE = """\
# What goes wrong, and what you see

Each wrong use of Windlass that we know of, with the text that you see. A text says what happened, to what, and what to do next. Wrong input
is refused where it is given, never later and somewhere else: nothing hangs, no call is lost by it, and no traceback comes from inside of
Windlass.

Errors of Python code are subclasses of `WindlassError` (`UsageError` is also a `ValueError`, `UnknownName` also a `KeyError`,
`NotPicklable` also a `TypeError`), but for calls that lack an argument, which Python itself refuses. Command lines end with the exit status
that is shown ([command line](command-line.md)); argparse's usage, which comes before some texts, is left out here.

In the texts `HERE` is the current folder, `STATE` that of managers, and `VENV` the program's environment; `PORT`, `PID`, `ID` and `0x...`
differ from run to run. A file in the first column is there before. `call` is `FunctionCall("lib", "double", 1)`, `future` that of a call
that waits.

By symptom, and for what goes wrong without being your mistake, there is [troubleshooting](troubleshooting.md).

(This page is made from the cases that the tests run, `tests/system/bad_input/`: `python tests/system/test_bad_input.py` writes it.)
"""


def page() -> str:
    """docs/errors.md as the cases have it."""
    areas = [read_area(name) for name in AREAS]
    lines = [PREFACE, f"{sum(len(area.cases) for area in areas)} wrong uses:", ""]
    lines += [f"* [{area.title}](#{anchor(area.title)}): {len(area.cases)}" for area in areas]
    for area in areas:
        lines += ["", f"## {area.title}", ""]
        lines += [area.text, ""] if area.text else []
        lines += ["| wrong | what you see |", "|---|---|"]
        lines += [f"| {cell(wrong_of(case))} | {cell(case.seen)} |" for case in area.cases]
    return "\n".join(lines) + "\n"


def anchor(title: str) -> str:
    """What a heading is linked by."""
    return re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")


def wrong_of(case: Case) -> str:
    """Files and code."""
    files = [f"{name}:\n{content}".rstrip() for name, content in case.files]
    return "\n".join([*files, case.code])


def cell(text: str) -> str:
    """Code in a table: HTML, as Markdown has no lines in it."""
    lines = (
        html.escape(line, quote=False).replace("|", "&#124;").replace(" ", "&nbsp;", len(line) - len(line.lstrip()))
        for line in text.split("\n")
    )
    return "<br>".join(f"<code>{line}</code>" for line in lines)


# ---------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def leaves_nothing_running(nothing_left_running_after_module: None) -> None:
    """All tests of this module share a manager."""


@pytest.fixture(scope="module")
def scene(leaves_nothing_running: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A manager with a waiting call, no pilot, and bad input to come; at the end the call is run as if nothing had been."""
    state = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        for name in (config.VARIABLE, "WINDLASS_TRUST_STATE_DIR"):
            patch.delenv(name, raising=False)
        patch.setenv("WINDLASS_STATE_DIR", str(state))
        patch.setenv("XDG_CONFIG_HOME", str(state))
        patch.setattr(config, "SITE", state / "nowhere.toml")
        with Manager(name="lab") as manager:
            manager.install_library("lib", double, half)
            with windlass.attach("lab") as attached:
                attached.install_library("lib", double, half)
                made = Scene(manager, attached, state)
                yield made
            with Factory(manager, "local", cores=1):
                assert made.first.result(30) == 42, "what was submitted before the bad input is lost"
            assert manager.stats.done == 1
            assert manager.empty()


CASES = [case for name in AREAS for case in read_area(name).cases]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", CASES, ids=[f"{case.area}: {case.code}"[:80] for case in CASES])
def test_a_wrong_use_is_refused_where_it_is_made(scene: Scene, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With just this text, at once; neither calls nor libraries have come or gone."""
    monkeypatch.chdir(tmp_path)
    assert scene.run(case, tmp_path) == case.seen
    assert scene.unchanged()


def test_there_are_enough_wrong_uses_and_each_is_there_once() -> None:
    """The issue asked for 150."""
    assert len(CASES) >= 150
    assert len({(case.files, case.code) for case in CASES}) == len(CASES)
    assert {path.stem for path in (HERE / "bad_input").iterdir()} == set(AREAS)


def test_no_text_shows_the_inside_of_windlass() -> None:
    """A traceback, an error number, or an error of Python's own without a word of ours, are not for users."""
    for case in CASES:
        assert "Traceback" not in case.seen, case
        assert "[Errno" not in case.seen, case
        assert not re.match(r"(nothing|0:|1:)", case.seen), case


def test_the_page_shows_the_cases_as_they_are() -> None:
    """Who changes a text writes the page anew."""
    assert PAGE.read_text() == page(), "docs/errors.md is not what the cases say: run  python tests/system/test_bad_input.py"


def test_a_port_in_use_is_named_and_the_failed_manager_leaves_nothing(scene: Scene) -> None:
    """The text says which port and what else to do; neither folder nor store of the manager that failed stays."""
    folders = sorted((scene.state / "managers").iterdir())
    port = scene.manager.port
    with pytest.raises(UsageError) as caught:
        Manager(port)
    assert str(caught.value) == (
        f"port {port} on '127.0.0.1' is in use: choose another one, a range like port=({port}, {port + 99}), or port=0 for any"
    )
    assert sorted((scene.state / "managers").iterdir()) == folders


def test_a_range_of_ports_skips_the_one_in_use(scene: Scene) -> None:
    """The first free one of the range is taken."""
    with Manager((scene.manager.port, min(65535, scene.manager.port + 50))) as second:
        assert scene.manager.port < second.port <= scene.manager.port + 50


def test_a_name_in_use_is_refused_and_its_owner_goes_on(scene: Scene) -> None:
    """The text says where that manager's state is."""
    with pytest.raises(UsageError) as caught:
        Manager(name="lab")
    state = scene.manager.connection_file.parent
    assert str(caught.value) == f"manager 'lab' is running already, in this program (state in {state}): close() it, or go on using it"
    assert scene.manager.connection_file.exists()


def test_a_call_that_no_pool_can_ever_run_is_refused_with_the_reason(leaves_nothing_running: None) -> None:
    """What is needed and what each pool gives; at submit when the pools are known, as the future's end when they come later."""
    with Manager() as manager:
        manager.install_library("lib", double)
        early = manager.submit(FunctionCall("lib", "double", 1).with_options(cores=64))
        fits = manager.submit(FunctionCall("lib", "double", 4))
        text = "no pool can ever run this call of library 'lib': it needs 64 cores; pool 'small' gives 1 core, 4 GB of memory per pilot"
        with Factory(manager, "local", cores=1, memory="4GB", pool="small"):
            with pytest.raises(NotPossible) as ended:
                early.result(30)
            assert str(ended.value) == text
            with pytest.raises(NotPossible) as refused_at_once:
                manager.submit(FunctionCall("lib", "double", 1).with_options(cores=64))
            assert str(refused_at_once.value) == text
            with pytest.raises(NotPossible) as no_gpu:
                manager.submit(FunctionCall("lib", "double", 1).with_options(gpus=1))
            assert str(no_gpu.value) == (
                "no pool can ever run this call of library 'lib': it asks for 1 GPUs, and library 'lib' has none:"
                " create the library with gpus=1 or more"
            )
            # More seconds than a thread can wait for are no error.
            assert manager.wait(1e300) is fits
            assert fits.result() == 8


def test_what_pilots_have_decides_in_a_pool_that_states_no_memory(leaves_nothing_running: None) -> None:
    """A library whose slots have memory runs there; what has more than any pilot ends when the first one has come, and is refused then."""
    with Manager() as manager, Factory(manager, "local", cores=1, pool="plain"):
        manager.install_library("lib", double, memory="100MB")
        manager.install_library("vast", double, memory="100TB")
        assert manager.submit(FunctionCall("lib", "double", 4)).result(30) == 8
        said = r"pool 'plain' gives 1 core, \S+ GB of memory per pilot, which is the memory that its pilots have turned out to have"
        for _ in range(2):
            for call in (FunctionCall("vast", "double", 1), FunctionCall("lib", "double", 1).with_options(memory="100TB")):
                with pytest.raises(NotPossible, match=said):
                    manager.submit(call).result(30)


def test_a_closed_manager_refuses_and_says_that_it_is_closed(leaves_nothing_running: None) -> None:
    """Submit, install, remove, status, factories: `Closed`. Waiting ends at once, what is left over can still be asked for."""
    manager = Manager(name="shut")
    manager.install_library("lib", double)
    waiting = manager.submit(FunctionCall("lib", "double", 1))
    executor = Executor(None, manager=manager)
    manager.close()
    refusing: list[Callable[[], object]] = [
        lambda: manager.submit(FunctionCall("lib", "double", 1)),
        lambda: manager.submit(FunctionCall("unknown", "double", 1)),
        lambda: manager.submit_function(double, (1,)),
        lambda: manager.install_library("other", double),
        lambda: manager.remove_library("lib"),
        lambda: manager.status(),
        lambda: manager.stats,
        lambda: executor.submit(double, 1),
        lambda: Factory(manager, "local").start(),
    ]
    for refuses in refusing:
        with pytest.raises(Closed) as caught:
            refuses()
        assert str(caught.value) == "manager 'shut' is closed (the manager was closed); make another one"
    with pytest.raises(Closed, match="the manager was closed"):
        waiting.result(0)
    assert manager.wait() is None
    assert manager.empty()
    assert manager.hungry() == 0
    manager.close()


def test_a_state_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With what to set instead."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "file"))
    with pytest.raises(UsageError) as caught:
        Manager(name="homeless")
    assert str(caught.value) == (
        f"manager 'homeless' cannot keep its state in {tmp_path}/file/managers/homeless: Not a directory;"
        " name a folder that you can write to by --state-dir, state_dir= or WINDLASS_STATE_DIR"
    )


def test_a_relative_state_folder_is_found_by_pilots_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It counts from where the program is; pilots get the whole path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WINDLASS_STATE_DIR", "here")
    with Manager() as manager:
        assert manager.pilot_file.is_absolute()
        assert manager.pilot_file.is_relative_to(tmp_path / "here")


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE}: {len(CASES)} wrong uses")
