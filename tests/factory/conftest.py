"""What the tests of the factory share: pools, a port that records, stand-ins for workers."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import pytest

from windlass.factory.backend import JobId, PilotRequest
from windlass.factory.pool import PoolConfig
from windlass.messages import Demand, Message, PilotEnded, PilotId, PilotSeen, PoolName, PoolReport, ReleasePilots, Resources, Shape

POOL = PoolConfig(
    name=PoolName("p"),
    backend="fake",
    resources=Resources(4.0),
    max_pilots=10,
    max_queued=32,
    idle_timeout=60.0,
    start_cost=60.0,
    hold=60.0,
)


class MakePool(Protocol):
    def __call__(self, **changes: object) -> PoolConfig: ...


@pytest.fixture
def make_pool() -> MakePool:
    """Makes a pool of 4-core pilots, at most 10, with changes."""

    def make(**changes: object) -> PoolConfig:
        return replace(POOL, **changes)  # type: ignore[arg-type]

    return make


class MakeDemand(Protocol):
    def __call__(
        self, waiting: int = 0, running: int = 0, seconds: float = 0.0, longest: float = 0.0, *, pilots: tuple[PilotSeen, ...] = ()
    ) -> Demand: ...


@pytest.fixture
def demand() -> MakeDemand:
    """Makes a demand of one shape of one-core calls."""

    def make(
        waiting: int = 0, running: int = 0, seconds: float = 0.0, longest: float = 0.0, *, pilots: tuple[PilotSeen, ...] = ()
    ) -> Demand:
        shapes = (Shape(Resources(), waiting, running, seconds, longest),) if waiting + running else ()
        return Demand(shapes, pilots)

    return make


class MakeSeen(Protocol):
    def __call__(self, job: str, *, connected: bool = True, running: int = 0, idle: float = 0.0, draining: bool = False) -> PilotSeen: ...


@pytest.fixture
def seen() -> MakeSeen:
    """Makes a pilot as the manager sees it."""

    def make(job: str, *, connected: bool = True, running: int = 0, idle: float = 0.0, draining: bool = False) -> PilotSeen:
        return PilotSeen(PoolName("p"), PilotId(job), connected, running, idle, draining, Resources(4.0))

    return make


@dataclass
class FakeManager:
    """A manager that is only its port: records what the factory says, and says what a test wants."""

    pilot_file: Path
    said: list[Message] = field(default_factory=list[Message])
    closed: bool = False
    on_message: Callable[[Message], None] | None = None
    on_refused: Callable[[str], None] | None = None
    #: Drains what it is asked to release: this is called with the pilots.
    on_release: Callable[[tuple[PilotId, ...]], None] | None = None
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def open_port(
        self,
        role: str,
        name: str,
        on_message: Callable[[Message], None],
        on_cut: Callable[[str], None] | None = None,
        on_refused: Callable[[str], None] | None = None,
    ) -> FakeManager:
        assert role == "factory"
        assert name
        self.on_message, self.on_refused = on_message, on_refused
        on_message(Demand(()))  # as the manager says at once what it could use: nothing
        return self

    def send(self, *messages: Message) -> None:
        with self._changed:
            self.said += messages
            self._changed.notify_all()
        for message in messages:
            if isinstance(message, ReleasePilots) and self.on_release is not None:
                self.on_release(message.pilots)

    def close(self, timeout: float = 0.0) -> None:
        self.closed = True

    def tell(self, message: Message) -> None:
        assert self.on_message is not None
        self.on_message(message)

    @property
    def reports(self) -> list[PoolReport]:
        return [message for message in self.said if isinstance(message, PoolReport)]

    @property
    def counts(self) -> dict[str, int]:
        """Pilots by state, as last reported."""
        return {state: number for _, state, number in self.reports[-1].counts} if self.reports else {}

    @property
    def ended(self) -> list[PilotEnded]:
        return [one for report in self.reports for one in report.ended]

    def wait_until(self, condition: Callable[[], bool], timeout: float = 20.0) -> None:
        """Wait for a report after which the condition holds."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout), f"never came true; said: {self.said}"


@pytest.fixture
def manager(tmp_path: Path) -> FakeManager:
    folder = tmp_path / "manager"
    folder.mkdir()
    return FakeManager(folder / "pilot.json")


class StandIn(Protocol):
    def __call__(self, body: str) -> str: ...


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    """Makes a program that takes the place of the pilots' Python: shell lines that get the worker's arguments."""

    def make(body: str) -> str:
        path = tmp_path / f"worker-{len(list(tmp_path.iterdir()))}"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o700)
        return str(path)

    return make


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def gone() -> Callable[[int], None]:
    """Waits until a process is gone."""

    def wait(pid: int) -> None:
        limit = time.monotonic() + 20
        while alive(pid):
            assert time.monotonic() < limit, f"process {pid} is still there"
            time.sleep(0.005)

    return wait


@pytest.fixture
def written() -> Callable[[Path], str]:
    """Waits until a file has a whole line, and reads it."""

    def wait(path: Path) -> str:
        limit = time.monotonic() + 20
        while not (path.exists() and path.read_text().endswith("\n")):
            assert time.monotonic() < limit, f"{path} was not written"
            time.sleep(0.005)
        return path.read_text()

    return wait


def children_of(task: Path) -> list[str]:
    try:
        return (task / "children").read_text().split()
    except FileNotFoundError:
        return []  # the thread has ended meanwhile


@pytest.fixture(autouse=True)
def no_process_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test started has ended when it ends; stand-ins have no guardian that would need time."""
    monkeypatch.setattr("windlass.factory.processes.STRAGGLE", 0.1)
    # What the whole test run shares (a Slurm cluster) was there before.
    before = {pid for task in Path("/proc/self/task").iterdir() for pid in children_of(task)}
    yield
    children: list[str] = []
    limit = time.monotonic() + 5
    while time.monotonic() < limit:
        children = [pid for task in Path("/proc/self/task").iterdir() for pid in children_of(task) if pid not in before]
        if not any(alive(int(pid)) for pid in children):
            return
        time.sleep(0.01)
    raise AssertionError(f"processes {children} of {os.getpid()} stayed behind")


class MakeRequest(Protocol):
    def __call__(self, body: str, **changes: object) -> PilotRequest: ...


@pytest.fixture
def make_request() -> MakeRequest:
    """Makes a request whose pilots run a Python program instead of a worker."""

    def make(body: str, **changes: object) -> PilotRequest:
        request = PilotRequest(
            ticket="t-1", pool=PoolName("p"), command=(sys.executable, "-S", "-E", "-c", body), resources=Resources(1.0), grace=5.0
        )
        return replace(request, **changes)  # type: ignore[arg-type]

    return make


@pytest.fixture
def job() -> Callable[[str], JobId]:
    return JobId
