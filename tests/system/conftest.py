"""Fixtures of the system tests: real managers, real local pilots, and proof after each test that no process stays behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import windlass


@pytest.fixture(autouse=True)
def leaves_nothing_running(nothing_left_running: None) -> None:
    """Every system test is followed by a look at the processes."""


@pytest.fixture
def manager(leaves_nothing_running: None) -> Iterator[windlass.Manager]:
    """A manager without pilots."""
    with windlass.Manager() as manager:
        yield manager


@pytest.fixture
def start_factory(manager: windlass.Manager) -> Iterator[Callable[..., windlass.Factory]]:
    """Starts a factory for the manager, local unless told otherwise, and ends it after the test."""
    with ExitStack() as factories:

        def start(backend: str = "local", **options: Any) -> windlass.Factory:
            if backend == "local":
                options = {"cores": 2, "max_pilots": 1, **options}
            return factories.enter_context(windlass.Factory(manager, backend, **options))

        yield start


@pytest.fixture
def served(manager: windlass.Manager, start_factory: Callable[..., windlass.Factory]) -> windlass.Manager:
    """A manager with one local pilot of two cores to come."""
    start_factory()
    return manager


Until = Callable[[str, Callable[[], object]], None]


@pytest.fixture
def until() -> Until:
    """``until(what, condition)`` asks again until it is so."""

    def wait(what: str, condition: Callable[[], object]) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, f"never: {what}"
            time.sleep(0.02)

    return wait


@pytest.fixture
def kill_workers(until: Until) -> Callable[[windlass.Manager], None]:
    """As a node that is switched off; when their factory knows that they served, for a pilot that never did counts as a failure."""

    def kill(manager: windlass.Manager) -> None:
        until("their pilots are known to serve", lambda: any(pilot["phase"] == "serving" for pilot in manager.status()["pilots"]))
        for worker in manager.status()["workers"]:
            if worker["connected"]:
                os.kill(worker["pid"], signal.SIGKILL)

    return kill


class Gate:
    """A door for calls: closed until `open`; who came to it is known. It travels with a call."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder

    def open(self) -> None:
        """Let through who waits, and who comes later."""
        (self.folder / "open").touch()

    def pass_through(self, name: str = "") -> None:
        """In a call: say that it is here, and wait until the gate is open."""
        self.arrive(name)
        while not (self.folder / "open").exists():
            time.sleep(0.002)

    def arrive(self, name: str = "") -> None:
        """In a call: say that it is here."""
        (self.folder / f"here-{name or os.getpid()}").touch()

    def arrived(self) -> set[str]:
        """The names of calls that came here."""
        return {path.name.removeprefix("here-") for path in self.folder.glob("here-*")}

    def wait_for(self, count: int) -> None:
        """Wait until so many different calls are here; in a call too, so that calls can meet."""
        end = time.monotonic() + 30
        while len(self.arrived()) < count:
            if time.monotonic() > end:
                raise TimeoutError(f"only {sorted(self.arrived())} came to the gate, not {count}")
            time.sleep(0.002)

    def meet(self, count: int) -> None:
        """In a call: go on when so many processes are here at the same time."""
        self.arrive()
        self.wait_for(count)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate that is open at the end, so that no call waits for ever."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


@pytest.fixture(scope="module")
def shared_manager(nothing_left_running_after_module: None) -> Iterator[windlass.Manager]:
    """One manager with one local pilot of two cores for a module, which must then define `leaves_nothing_running` as its own."""
    with windlass.Manager() as manager, windlass.Factory(manager, "local", cores=2, max_pilots=1):
        yield manager


@pytest.fixture(scope="module")
def pool(shared_manager: windlass.Manager) -> windlass.Executor:
    """An executor on the shared manager."""
    return windlass.Executor(None, manager=shared_manager)


@pytest.fixture
def hears_hangups() -> Iterator[None]:
    """What this test starts does not ignore SIGHUP, as it would where the tests were started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
