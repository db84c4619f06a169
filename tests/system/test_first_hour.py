"""What goes wrong in the first hour: nobody may have to guess why a program waits, or what became of its calls."""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import windlass

#: Seconds that any program may take before a test gives up.
PATIENCE = 60

#: A script as people write it who know `concurrent.futures`: no ``with``, no ``shutdown``, and nobody asks for the results.
SCRIPT = """
import pathlib, sys, windlass

def note(folder, number, data):
    pathlib.Path(folder, str(number)).write_bytes(data[:3])
    return data

pool = windlass.Executor("local", cores=1, max_pilots=1)
futures = [pool.submit(note, sys.argv[1], number, b"abc" * {size}) for number in range(3)]
{rest}
"""


def run_script(folder: Path, rest: str = "", size: int = 100_000) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(rest=rest, size=size))
    (folder / "notes").mkdir()
    words = [sys.executable, str(script), str(folder / "notes")]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE)


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "notes").iterdir())


def test_a_program_that_ends_without_shutting_its_executor_runs_its_calls_first(tmp_path: Path) -> None:
    """As in `concurrent.futures`, the interpreter's end waits for what was submitted. Executors of threads are shut down then, and what
    large results need goes on."""
    ran = run_script(tmp_path, size=1_000_000)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert written(tmp_path) == ["0", "1", "2"]


def test_a_program_that_has_dropped_its_executor_runs_its_calls_too(tmp_path: Path) -> None:
    """As one that made it in a function: it is gone when that returns."""
    ran = run_script(tmp_path, "del pool, futures")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert written(tmp_path) == ["0", "1", "2"]


def test_a_program_that_ends_by_an_error_runs_its_calls_too(tmp_path: Path) -> None:
    """Also as there."""
    ran = run_script(tmp_path, "raise RuntimeError('mine')")
    assert ran.returncode == 1
    assert ran.stderr.endswith("RuntimeError: mine\n")
    assert written(tmp_path) == ["0", "1", "2"]


def test_a_program_that_is_interrupted_leaves_at_once(tmp_path: Path) -> None:
    """Whoever presses Ctrl-C wants to leave now: calls that would never end do not keep the program."""
    ran = run_script(tmp_path, "import time; pool.submit(time.sleep, 10_000); raise KeyboardInterrupt")
    assert ran.stderr.endswith("KeyboardInterrupt\n")
    assert ran.stderr.count("Traceback") == 1


def test_a_program_that_is_interrupted_while_it_waits_at_its_end_says_so_and_has_not_succeeded(tmp_path: Path) -> None:
    """``python sweep.py && python collect.py`` must not go on without the results."""
    text = (
        "import atexit, collections, time, windlass\n"
        "atexit.register(collections.namedtuple, 'Anything', 'that runs a text')\n"
        "pools = [windlass.Executor('local', cores=1), windlass.Executor(None)]\n"
        "calls = [pool.submit(time.sleep, 10_000) for pool in pools]\n"
        "print('it ends', flush=True)\n"
    )
    (tmp_path / "sweep.py").write_text(text)
    words = [sys.executable, "sweep.py"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            assert program.stderr is not None
            assert program.stdout.readline() == "it ends\n"
            assert "waits for 1 call that has not ended: Ctrl-C cancels it" in program.stderr.readline()
            program.send_signal(signal.SIGINT)
            _, told = program.communicate(timeout=PATIENCE)
        finally:
            program.kill()
    assert told == "Ctrl-C has cancelled 2 calls that had not ended\n"
    assert program.returncode == -signal.SIGINT


def test_a_manager_without_pilots_says_how_to_get_some(
    manager: windlass.Manager,
    start_factory: Callable[..., windlass.Factory],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program that forgot its factory would else wait for ever in silence. It is said once, and what it says to do helps."""
    monkeypatch.setattr("windlass.manager.advice.PATIENCE_SECONDS", 0.05)
    manager.install_library("lib", len)
    with caplog.at_level(logging.WARNING):
        future = manager.submit(windlass.FunctionCall("lib", "len", "abc"))
        end = time.monotonic() + PATIENCE
        while not caplog.records and time.monotonic() < end:
            time.sleep(0.01)
        start_factory()
        assert future.result(PATIENCE) == 3
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith("1 call waits, and there are neither pilots nor a factory")
    assert f"`windlass factory run local --port {manager.port}`" in said


@pytest.mark.parametrize("attached", [False, True])
def test_a_factory_that_was_made_and_not_started_is_told_of(
    manager: windlass.Manager, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, attached: bool
) -> None:
    """The ``with`` was forgotten: the program has one, and its calls would wait for ever."""
    monkeypatch.setattr("windlass.manager.advice.PATIENCE_SECONDS", 0.05)
    with contextlib.ExitStack() as opened:
        mine = opened.enter_context(windlass.attach(manager.connection_file)) if attached else manager
        windlass.Factory(mine, "local", name="dropped")
        factory = windlass.Factory(mine, "local", name="night", cores=1)
        mine.install_library("lib", len)
        with caplog.at_level(logging.WARNING):
            future = mine.submit(windlass.FunctionCall("lib", "len", "abc"))
            end = time.monotonic() + PATIENCE
            while not caplog.records and time.monotonic() < end:
                time.sleep(0.01)
            with factory:
                assert future.result(PATIENCE) == 3
    assert [record.getMessage() for record in caplog.records if "'night' was made and never started" in record.getMessage()]
