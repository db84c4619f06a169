"""Calls and the end of their pilots, as a program sees it: a real manager, a real factory, real pilots on this machine."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import windlass
from windlass import FunctionCall, Manager

StartFactory = Callable[..., windlass.Factory]


def resumable(folder: Path) -> str:
    """Saves its state when warned, and waits to be ended; a later attempt goes on there."""
    saved = folder / "saved"
    if saved.exists():
        return f"went on with {saved.read_text()}"
    state = "step 7"
    windlass.on_warning(lambda _: saved.write_text(state) and None)
    (folder / "runs").touch()
    time.sleep(600)
    return "never"


def until_warned() -> float:
    told: queue.SimpleQueue[float] = queue.SimpleQueue()
    with windlass.on_warning(told.put):
        return told.get(timeout=50)


def hold(folder: Path) -> int:
    """Says who it is; the second attempt returns at once."""
    runs = folder / "runs"
    if runs.exists():
        return len(runs.read_text().split())
    runs.write_text(f"{os.getpid()} {os.getppid()}")
    time.sleep(600)
    return 0


def until(what: str, condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait until the condition holds; what it gave."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds:g} s until {what}"
        time.sleep(0.005)
    return value


def workers(manager: Manager) -> list[psutil.Process]:
    """Workers that this process has started and that live, the oldest first."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if "windlass.worker" in child.cmdline() and child.parent() == psutil.Process():
                found.append(child)
    return sorted(found, key=lambda one: one.create_time())


@pytest.mark.parametrize("how", [{}, {"mode": "fork"}, {"start": "spawn"}], ids=["direct", "fork", "spawn"])
def test_a_preempted_call_saves_what_it_has_and_goes_on_elsewhere(
    manager: Manager, start_factory: StartFactory, tmp_path: Path, how: Any
) -> None:
    """SIGTERM to its worker and SIGKILL a grace later, as batch systems do: by then it has told what ran. The call has no retries."""
    manager.install_library("lib", resumable, **how)
    start_factory(grace=6)
    call = manager.submit(FunctionCall("lib", "resumable", tmp_path))
    until("it runs", (tmp_path / "runs").exists)
    [worker] = workers(manager)
    end = os.pidfd_open(worker.pid)
    worker.send_signal(signal.SIGTERM)
    if not select.select([end], [], [], 6)[0]:
        signal.pidfd_send_signal(end, signal.SIGKILL)
    os.close(end)
    assert call.result(timeout=60) == "went on with step 7"
    [lost] = call.attempts
    assert lost.outcome == "lost with its worker (its pilot's end, of which it was warned)"


def test_a_pilot_that_is_killed_process_by_process_costs_no_retry(manager: Manager, start_factory: StartFactory, tmp_path: Path) -> None:
    """The slot first and the worker last, as may happen when a batch system kills a job."""
    manager.install_library("lib", hold)
    start_factory()
    call = manager.submit(FunctionCall("lib", "hold", tmp_path))
    runs = tmp_path / "runs"
    text = until("it runs", lambda: runs.exists() and runs.read_text())
    [worker] = workers(manager)
    slot = psutil.Process(int(text.split()[0]))
    slot.kill()
    until("the slot is gone", lambda: not slot.is_running())
    worker.kill()
    assert call.result(timeout=60) == 2
    assert [attempt.outcome.partition(" (")[0] for attempt in call.attempts] == ["lost with its worker"]


def test_a_call_waits_for_a_pilot_with_its_expected_time_left(manager: Manager, start_factory: StartFactory, tmp_path: Path) -> None:
    """The only pilot has too little of it, makes room though it is idle, and the next one, of the same pool, takes the call."""
    manager.install_library("lib", os.getpid, os.getppid)
    start_factory(max_pilots=1, walltime=30)
    first = manager.submit(FunctionCall("lib", "getppid")).result(timeout=60)
    workers: Any = lambda: manager.status()["workers"]  # noqa: E731
    # A pilot with nine tenths of its walltime would count as fresh.
    until("less than that is left", lambda: [worker["seconds_left"] < 26.9 for worker in workers()] == [True])
    second = manager.submit(FunctionCall("lib", "getppid").with_options(expected_time=29.9)).result(timeout=60)
    assert first != second


def test_calls_are_warned_near_the_walltime(manager: Manager, start_factory: StartFactory) -> None:
    """And may return what they have."""
    manager.install_library("lib", until_warned)
    start_factory(walltime=6, grace=2)
    assert 0 < manager.submit(FunctionCall("lib", "until_warned")).result(timeout=60) <= 2
