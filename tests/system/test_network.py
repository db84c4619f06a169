"""Cut connections between manager and worker: nothing is lost, nothing is done twice. A proxy stands between them and plays the network."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from windlass import Factory, FunctionCall, Manager

MB = 1 << 20


class Network:
    """Carries bytes between those who connect to `port` and the manager, until told otherwise."""

    def __init__(self, to_port: int) -> None:
        self._to = ("127.0.0.1", to_port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        #: Pairs of connected sockets.
        self._other: dict[socket.socket, socket.socket] = {}
        self._mode = "up"
        self._budget: int | None = None
        self._wake, self._bell = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for one in (self._listening, self._wake):
            self._selector.register(one, selectors.EVENT_READ)
        self._over = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @contextlib.contextmanager
    def resetting(self) -> Generator[None]:
        """Every connection is reset, and every new one at once."""
        self._set("reset")
        try:
            yield
        finally:
            self._set("up")

    @contextlib.contextmanager
    def swallowing(self) -> Generator[None]:
        """No byte comes through any more, and neither side is told; what stood then is reset when the network is back."""
        self._set("swallow")
        try:
            yield
        finally:
            self._set("reset")
            self._set("up")

    def reset_after(self, count: int) -> None:
        """Reset all connections once, in the middle of the transfer of these bytes."""
        with self._lock:
            self._budget = count

    @property
    def was_reset(self) -> bool:
        """The reset of `reset_after` has happened."""
        return self._budget is None

    def close(self) -> None:
        self._over = True
        self._bell.send(b"x")
        self._thread.join()
        self._drop_all()
        for one in (self._listening, self._wake, self._bell):
            one.close()
        self._selector.close()

    def _set(self, mode: str) -> None:
        with self._lock:
            self._mode = mode
            if mode == "reset":
                self._drop_all()
        self._bell.send(b"x")

    def _drop_all(self) -> None:
        for one in list(self._other):
            with contextlib.suppress(KeyError):
                self._selector.unregister(one)
            one.close()
        self._other.clear()

    def _run(self) -> None:
        while not self._over:
            for key, _ in self._selector.select():
                one = key.fileobj
                assert isinstance(one, socket.socket)
                with self._lock:
                    if one is self._wake:
                        self._wake.recv(100)
                    elif one is self._listening:
                        self._accept()
                    elif one in self._other:
                        self._carry(one)

    def _accept(self) -> None:
        near, _ = self._listening.accept()
        if self._mode == "reset":
            near.close()
            return
        far = socket.create_connection(self._to)
        for one, other in ((near, far), (far, near)):
            self._other[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _carry(self, one: socket.socket) -> None:
        other = self._other[one]
        try:
            data = one.recv(1 << 16)
            if data and self._mode == "up":
                other.sendall(data)
        except OSError:
            data = b""
        if self._budget is not None:
            self._budget -= len(data)
            if self._budget < 0:
                self._budget = None
                self._drop_all()
                return
        if not data:
            for each in (one, other):
                self._other.pop(each, None)
                self._selector.unregister(each)
                each.close()


class Behind:
    """A manager as pilots behind the network see it."""

    def __init__(self, manager: Manager, network: Network, folder: Path) -> None:
        self.open_port = manager.open_port
        connection = json.loads(manager.pilot_file.read_bytes())
        connection["addresses"] = [["127.0.0.1", network.port]]
        self.pilot_file = folder / "pilot.json"
        self.pilot_file.touch(mode=0o600)
        self.pilot_file.write_text(json.dumps(connection))


def note(path: str, word: str, seconds: float) -> str:
    """Append a line, whole whoever else writes, and take some time."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{word}\n".encode())
    os.close(descriptor)
    time.sleep(seconds)
    return word


def hold(gate: str) -> int:
    """Note that it runs, and run until the gate opens."""
    note(f"{gate}.runs", str(os.getpid()), 0.0)
    while not os.path.exists(gate):
        time.sleep(0.002)
    return os.getpid()


def reverse(block: bytes) -> bytes:
    return block[::-1]


def lines(path: str | Path) -> list[str]:
    return Path(path).read_text().split() if os.path.exists(path) else []


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until the condition holds; what it gave."""
    end = time.monotonic() + 30
    while not (value := condition()):
        assert time.monotonic() < end, f"waited 30 s until {what}"
        time.sleep(0.005)
    return value


def connected(manager: Manager) -> list[bool]:
    return [worker["connected"] for worker in manager.status()["workers"]]


@pytest.fixture
def make_network(leaves_nothing_running: None) -> Iterator[Callable[[Manager], Network]]:
    """Puts a network in front of a manager."""
    made: list[Network] = []

    def make(manager: Manager) -> Network:
        made.append(Network(manager.port))
        return made[-1]

    yield make
    for network in made:
        network.close()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[str]:
    """A file that lets `hold` go when it is there."""
    path = tmp_path / "gate"
    yield str(path)
    path.touch()


@pytest.mark.parametrize("kind", ["resetting", "swallowing"])
def test_a_cut_inside_reconnect_grace_loses_and_repeats_nothing(
    kind: str, make_network: Callable[[Manager], Network], tmp_path: Path, gate: str
) -> None:
    """The worker works on through the cut; afterwards both sides go on where they were: each call runs once, each result comes once.

    Once the connection is reset, once it is just silent, as when a cable is pulled. A call that ends during the cut is not run again.
    """
    path = tmp_path / "log"
    with Manager(heartbeat=0.1, silence=0.5, reconnect_grace=60, manager_timeout=60) as manager:
        network = make_network(manager)
        manager.install_library("lib", note, hold)
        with Factory(Behind(manager, network, tmp_path), "local", cores=2):
            futures = [manager.submit(FunctionCall("lib", "note", str(path), str(number), 0.004)) for number in range(400)]
            until(lambda: len(lines(path)) >= 20, "calls run")
            through = manager.submit(FunctionCall("lib", "hold", gate).with_options(priority=1))
            until(lambda: lines(f"{gate}.runs"), "it runs")
            with getattr(network, kind)():
                until(lambda: connected(manager) == [False], "the manager notices")
                late = manager.submit(FunctionCall("lib", "note", str(path), "late", 0.0))
                Path(gate).touch()
                assert not through.wait(0.3), "a result came through a cut"
            until(lambda: connected(manager) == [True], "the worker is back")
            assert [future.result(30) for future in futures] == [str(number) for number in range(400)]
            assert late.result(30) == "late"
            assert [str(through.result(30))] == lines(f"{gate}.runs")
            assert manager.status()["calls"]["lost_attempts"] == 0
    assert sorted(lines(path)) == sorted([*map(str, range(400)), "late"])


def test_after_a_cut_longer_than_reconnect_grace_calls_run_elsewhere_and_late_results_are_dropped(
    make_network: Callable[[Manager], Network], tmp_path: Path, gate: str
) -> None:
    """The second attempt's result counts; the first worker rejoins with nothing, ends what it ran, and serves again."""
    with Manager(heartbeat=0.1, silence=0.4, reconnect_grace=0.3, manager_timeout=60) as manager:
        network = make_network(manager)
        manager.install_library("lib", hold, note)
        with contextlib.ExitStack() as factories:
            factories.enter_context(Factory(Behind(manager, network, tmp_path), "local", cores=1, grace=1))
            call = manager.submit(FunctionCall("lib", "hold", gate))
            until(lambda: lines(f"{gate}.runs"), "it runs")
            first = manager.status()["workers"][0]["id"]
            with network.resetting():
                until(lambda: not manager.status()["workers"], "the session is given up")
                factories.enter_context(Factory(manager, "local", cores=1, grace=1))
                until(lambda: len(lines(f"{gate}.runs")) == 2, "it runs elsewhere")
            until(lambda: len(manager.status()["workers"]) == 2, "the first worker is back")
            Path(gate).touch()
            assert str(call.result(30)) == lines(f"{gate}.runs")[1]
            assert manager.status()["calls"]["done"] == 1
            assert manager.status()["calls"]["lost_attempts"] == 1
            futures = [manager.submit(FunctionCall("lib", "note", str(tmp_path / "log"), str(number), 0.01)) for number in range(60)]
            assert [future.result(30) for future in futures] == [str(number) for number in range(60)]
            workers = {attempt["id"]: attempt for attempt in manager.status()["workers"]}
            assert first in workers
            assert all(worker["connected"] for worker in workers.values())
    assert sorted(lines(tmp_path / "log"), key=int) == [str(number) for number in range(60)]
    assert len(lines(f"{gate}.runs")) == 2


def test_objects_that_are_cut_off_in_the_middle_arrive_whole(make_network: Callable[[Manager], Network], tmp_path: Path) -> None:
    """A large argument and a large result, over the network as to another host; the connections are reset in the middle of each."""
    with Manager(heartbeat=0.2, silence=5, reconnect_grace=60, manager_timeout=60) as manager:
        store = manager._store  # pyright: ignore[reportPrivateUsage]
        (store.folder / ".token").write_text("of another host")
        network = make_network(manager)
        manager.install_library("lib", reverse)
        with Factory(Behind(manager, network, tmp_path), "local", cores=1):
            assert manager.submit(FunctionCall("lib", "reverse", b"warm")).result(30) == b"mraw"
            block = os.urandom(16 * MB)
            for cut_at in (8 * MB, 24 * MB):
                network.reset_after(cut_at)
                assert manager.submit(FunctionCall("lib", "reverse", block)).result(60) == block[::-1]
                assert network.was_reset
                block = block[1:] + b"x"
            assert manager.status()["calls"]["lost_attempts"] == 0
    store.check()
