"""What functions make by multiprocessing and joblib outlives processes (semaphores, shared memory), and must not stay on the node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

import windlass

Until = Callable[..., None]


def share(note: str = "", seconds: float = 0.0) -> tuple[str, int]:
    """Make some shared memory and leave it; its file, and the worker's process."""
    from multiprocessing.shared_memory import SharedMemory

    made = SharedMemory(create=True, size=4096)
    [tracker] = psutil.Process().children()
    while "-c" not in tracker.cmdline():  # it is just about to be what it is
        time.sleep(0.001)
    path = f"/dev/shm/{made.name.lstrip('/')}"
    if note:
        Path(note).write_text(path)
        time.sleep(seconds)
    worker = next(one for one in psutil.Process().parents() if "windlass.worker" in one.cmdline())
    return path, worker.pid


def roots(count: int) -> tuple[int, int]:
    """By processes of joblib's own; and of which process these are."""
    import joblib

    tools: Any = joblib
    return sum(tools.Parallel(n_jobs=2)(tools.delayed(pow)(number, 2) for number in range(count))), os.getpid()


@contextmanager
def pilot(mode: str) -> Generator[windlass.Manager]:
    with windlass.Manager() as manager, windlass.Factory(manager, "local", cores=1):
        manager.install_library("lib", share, roots, mode=mode)
        yield manager


@pytest.mark.parametrize("mode", ["direct", "fork"])
def test_it_goes_with_the_pilot(mode: str) -> None:
    with pilot(mode) as manager:
        path, _ = manager.submit(windlass.FunctionCall("lib", "share")).result(timeout=60)
        assert mode == "fork" or Path(path).exists()
    assert not Path(path).exists()


def test_it_goes_with_the_call_in_mode_fork(until: Until) -> None:
    with pilot("fork") as manager:
        path, _ = manager.submit(windlass.FunctionCall("lib", "share")).result(timeout=60)
        until("it is gone", lambda: not Path(path).exists())


@pytest.mark.parametrize("mode", ["direct", "fork"])
def test_it_goes_with_a_call_that_is_ended(mode: str, tmp_path: Path, until: Until) -> None:
    note = tmp_path / "note"
    with pilot(mode) as manager:
        call = manager.submit(windlass.FunctionCall("lib", "share", str(note), 600).with_options(retries=0))
        until("it runs", lambda: note.exists() and note.read_text())
        call.cancel()
        until("it is gone", lambda: not Path(note.read_text()).exists())


def test_it_goes_when_the_worker_is_killed(until: Until) -> None:
    with pilot("direct") as manager:
        path, worker = manager.submit(windlass.FunctionCall("lib", "share")).result(timeout=60)
        os.kill(worker, signal.SIGKILL)
        until("it is gone", lambda: not Path(path).exists())


@pytest.mark.parametrize("mode", ["direct", "fork"])
def test_joblib_leaves_nothing(mode: str) -> None:
    with pilot(mode) as manager:
        total, pid = manager.submit(windlass.FunctionCall("lib", "roots", 10)).result(timeout=60)
    assert total == sum(number * number for number in range(10))
    assert [name for name in os.listdir("/dev/shm") if f"loky-{pid}-" in name or f"folder_{pid}_" in name] == []


def plain(number: int) -> int:
    time.sleep(0.1)
    return number


def test_what_trackers_say_is_not_the_next_calls() -> None:
    """They warn of what they take away."""
    with windlass.Manager() as manager, windlass.Factory(manager, "local", cores=1):
        manager.install_library("lib", roots, plain, mode="fork", slots=1)
        calls = [manager.submit(windlass.FunctionCall("lib", name, 3)) for name in ("roots", "plain") * 2]
        assert [call.result(timeout=60) for call in calls[1::2]] == [3, 3]
        assert [call.stderr for call in calls[1::2]] == ["", ""]


def named(note: str) -> None:
    """By a name that has the word."""
    program = [sys.executable, "-c", "import time; time.sleep(600)", "test_resource_tracker.py"]
    with subprocess.Popen(program) as child:
        Path(note).write_text(str(child.pid))


@pytest.mark.parametrize("mode", ["direct", "fork"])
def test_a_process_that_is_called_so_goes_with_its_call(mode: str, tmp_path: Path, until: Until) -> None:
    note = tmp_path / "note"
    with windlass.Manager() as manager, windlass.Factory(manager, "local", cores=1):
        manager.install_library("lib", named, mode=mode)
        call = manager.submit(windlass.FunctionCall("lib", "named", str(note)).with_options(retries=0))
        until("it runs", lambda: note.exists() and note.read_text())
        call.cancel()
        until("it is gone", lambda: not psutil.pid_exists(int(note.read_text())))
