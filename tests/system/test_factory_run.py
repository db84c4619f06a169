"""`windlass factory run`, as the shells and terminals that it is started from end it. Real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.system.conftest import Gate, Until

import windlass

Started = subprocess.Popen[bytes]


def passes(gate: Gate, name: str) -> str:
    gate.pass_through(name)
    return name


@contextmanager
def factory_run(manager: windlass.Manager, stderr: int, before: Callable[[], object] | None = None) -> Generator[Started]:
    """It serves the manager with a local pilot."""
    manager.install_library("lib", passes)
    words = [sys.executable, "-m", "windlass", "factory", "run", "local", "--port", str(manager.port), "--cores", "1"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=stderr, preexec_fn=before) as running:
        try:
            yield running
        finally:
            if running.poll() is None:
                running.kill()


def ignore_hangup() -> None:
    """As nohup does for the program that it becomes."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def is_draining(manager: windlass.Manager) -> bool:
    return any(worker["draining"] for worker in manager.status()["workers"])


def test_it_ends_in_order_where_nobody_reads_what_it_says(manager: windlass.Manager, gate: Gate, until: Until) -> None:
    """As when its terminal is closed, or `tee` was interrupted beside it: what runs has the pool's grace, and the exit status is 0."""
    read, write = os.pipe()
    with factory_run(manager, write) as running:
        os.close(write)
        future = manager.submit(windlass.FunctionCall("lib", "passes", gate, "call"))
        until("it runs", gate.arrived)
        os.close(read)
        running.send_signal(signal.SIGTERM)
        until("its pilot is told to end", lambda: is_draining(manager))
        gate.open()
        assert future.result(30) == "call"
        assert running.wait(30) == 0


@pytest.mark.usefixtures("hears_hangups")
def test_when_its_terminal_is_closed_what_runs_ends_first(manager: windlass.Manager, gate: Gate, until: Until, tmp_path: Path) -> None:
    """Nothing is left in a queue, and no call is cut: a line that breaks is no haste, however many signals it brings."""
    with (tmp_path / "log").open("w") as log, factory_run(manager, log.fileno()) as running:
        future = manager.submit(windlass.FunctionCall("lib", "passes", gate, "call"))
        until("it runs", gate.arrived)
        for _ in range(3):
            running.send_signal(signal.SIGHUP)
            until("it is heard", lambda: not int(signals_of(running.pid, "ShdPnd"), 16))
        until("its pilot is told to end", lambda: is_draining(manager))
        assert running.poll() is None
        gate.open()
        assert future.result(30) == "call"
        assert running.wait(30) == 0
    assert (tmp_path / "log").read_text().count("its terminal was closed: removing queued pilots") == 1


def signals_of(pid: int, kind: str) -> str:
    """Of a process, in hexadecimal (proc(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(kind))


def test_started_with_nohup_it_goes_on_without_its_terminal(manager: windlass.Manager, gate: Gate, until: Until) -> None:
    gate.open()
    with factory_run(manager, subprocess.DEVNULL, ignore_hangup) as running:
        assert manager.submit(windlass.FunctionCall("lib", "passes", gate, "before")).result(60) == "before"
        running.send_signal(signal.SIGHUP)
        assert manager.submit(windlass.FunctionCall("lib", "passes", gate, "after")).result(60) == "after"
        assert not is_draining(manager)
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0


@pytest.mark.usefixtures("hears_hangups")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_who_is_ended_while_it_waits_for_its_manager_says_so_and_has_done_nothing_wrong(number: int, tmp_path: Path) -> None:
    """A service that is stopped before its manager was there is no failure."""
    words = [sys.executable, "-m", "windlass", "factory", "run", "nobody", "local", "--state-dir", str(tmp_path)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as waits:
        assert waits.stderr is not None
        assert "waiting" in waits.stderr.readline()
        waits.send_signal(number)
        _, told = waits.communicate(timeout=30)
        assert waits.returncode == 0
        assert told == "windlass factory: interrupted while it waited for its manager; nothing had begun\n"


def test_of_two_with_one_name_the_second_says_so_and_one_that_was_killed_is_followed_at_once(
    manager: windlass.Manager, gate: Gate, until: Until
) -> None:
    """They would take each other's pilots for their own, and each in turn cancel what the other one has."""
    words = [sys.executable, "-m", "windlass", "factory", "run", "local", "--port", str(manager.port), "--cores", "1", "--name", "night"]
    manager.install_library("lib", passes)
    gate.open()
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as first:
        until("the first is here", lambda: bool(manager.status()["pools"]))
        second = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
        assert second.returncode == 1
        text = f"a factory 'night' is here already, process {first.pid} of the manager's host: end that one, or take another name"
        assert text in second.stderr
        first.kill()
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as third:
        assert manager.submit(windlass.FunctionCall("lib", "passes", gate, "call")).result(30) == "call"
        third.send_signal(signal.SIGTERM)
        assert third.wait(30) == 0
