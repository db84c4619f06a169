"""Cut connections of workers and programs: nothing is lost, nothing is done twice. A proxy before the manager plays the network."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from windlass import Factory, FunctionCall, Manager, attach
from windlass.testing import Proxy

MB = 1 << 20


class Behind:
    """A manager as pilots, and programs, behind the network see it."""

    def __init__(self, manager: Manager, network: Proxy, folder: Path) -> None:
        self.open_port = manager.open_port
        self.pilot_file, self.connection_file = (_behind(file, network, folder) for file in (manager.pilot_file, manager.connection_file))


def _behind(file: Path, network: Proxy, folder: Path) -> Path:
    connection = json.loads(file.read_bytes())
    connection["addresses"] = [["127.0.0.1", network.port]]
    other = folder / file.name
    other.touch(mode=0o600)
    other.write_text(json.dumps(connection))
    return other


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


def meet(path: str, *given: bytes) -> bytes:
    """Run until two of these run; something large enough to stay on its worker."""
    note(path, str(os.getpid()), 0.0)
    while len(Path(path).read_text().split()) < 2:
        time.sleep(0.002)
    return b"".join(given) or os.urandom(100_000)


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
def make_network(leaves_nothing_running: None) -> Iterator[Callable[[Manager], Proxy]]:
    """Puts a network in front of a manager."""
    made: list[Proxy] = []

    def make(manager: Manager) -> Proxy:
        made.append(Proxy(manager.port))
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


@pytest.mark.parametrize("kind", ["refusing", "swallowing"])
def test_a_cut_inside_reconnect_grace_loses_and_repeats_nothing(
    kind: str, make_network: Callable[[Manager], Proxy], tmp_path: Path, gate: str
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
    make_network: Callable[[Manager], Proxy], tmp_path: Path, gate: str
) -> None:
    """The second attempt's result counts; the first worker rejoins with nothing, ends what it ran, and serves again, peers as well."""
    with Manager(heartbeat=0.2, silence=2, reconnect_grace=2, manager_timeout=60) as manager:
        network = make_network(manager)
        manager.install_library("lib", hold, note, meet, reverse)
        with contextlib.ExitStack() as factories:
            factories.enter_context(Factory(Behind(manager, network, tmp_path), "local", cores=1, grace=1))
            stays = manager.submit(FunctionCall("lib", "reverse", bytes(100_000)).with_options(keep="worker"))
            assert len(stays.result(30)) == 100_000  # from now on it can be reached by peers
            call = manager.submit(FunctionCall("lib", "hold", gate))
            until(lambda: lines(f"{gate}.runs"), "it runs")
            first = manager.status()["workers"][0]["id"]
            with network.refusing():
                until(lambda: not manager.status()["workers"], "the session is given up")
                factories.enter_context(Factory(manager, "local", cores=1, grace=1))
                until(lambda: len(lines(f"{gate}.runs")) == 2, "it runs elsewhere")
            until(lambda: len(manager.status()["workers"]) == 2, "the first worker is back")
            Path(gate).touch()
            assert str(call.result(30)) == lines(f"{gate}.runs")[1]
            assert manager.status()["calls"]["done"] == 2
            assert manager.status()["calls"]["lost_attempts"] == 1
            stay = FunctionCall("lib", "meet", str(tmp_path / "making")).with_options(keep="worker")
            parts = [manager.submit(stay) for _ in range(2)]
            both = [manager.submit(FunctionCall("lib", "meet", str(tmp_path / "using"), *parts)) for _ in range(2)]
            assert [len(future.result(30)) for future in both] == [200_000, 200_000]
            futures = [manager.submit(FunctionCall("lib", "note", str(tmp_path / "log"), str(number), 0.01)) for number in range(60)]
            assert [future.result(30) for future in futures] == [str(number) for number in range(60)]
            workers = {attempt["id"]: attempt for attempt in manager.status()["workers"]}
            assert first in workers
            assert all(worker["connected"] for worker in workers.values())
    assert sorted(lines(tmp_path / "log"), key=int) == [str(number) for number in range(60)]
    assert len(lines(f"{gate}.runs")) == 2


def test_a_worker_that_asked_for_its_certificate_in_vain_asks_again(make_network: Callable[[Manager], Proxy], tmp_path: Path) -> None:
    """Half a second after its hello; the question goes with the session. Without an answer it could tell nobody of what it makes."""
    with Manager(heartbeat=0.2, silence=2, reconnect_grace=2, manager_timeout=60) as manager:
        network = make_network(manager)
        manager.install_library("lib", meet)
        with contextlib.ExitStack() as factories:
            factories.enter_context(Factory(Behind(manager, network, tmp_path), "local", cores=1, min_pilots=1, grace=1))
            until(lambda: manager.status()["workers"], "it is there")
            with network.refusing():
                until(lambda: not manager.status()["workers"], "the session is given up")
            until(lambda: manager.status()["workers"], "the worker is back")
            factories.enter_context(Factory(manager, "local", cores=1, grace=1))
            stay = FunctionCall("lib", "meet", str(tmp_path / "making")).with_options(keep="worker")
            parts = [manager.submit(stay) for _ in range(2)]
            both = [manager.submit(FunctionCall("lib", "meet", str(tmp_path / "using"), *parts)) for _ in range(2)]
            assert [len(future.result(30)) for future in both] == [200_000, 200_000]


def test_objects_that_are_cut_off_in_the_middle_arrive_whole(make_network: Callable[[Manager], Proxy], tmp_path: Path) -> None:
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


def test_a_large_result_that_is_asked_for_during_a_cut_comes_when_it_is_over(
    make_network: Callable[[Manager], Proxy], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A program on another machine, whose connections are refused for a while: its session outlives that, and what is kept for it."""
    with Manager(reconnect_grace=60) as manager, Factory(manager, "local", cores=1):
        store = manager._store  # pyright: ignore[reportPrivateUsage]
        (store.folder / ".token").write_text("of another host")
        network = make_network(manager)
        with attach(Behind(manager, network, tmp_path).connection_file) as program, ThreadPoolExecutor(1) as threads:
            future = program.submit_function(lambda: b"x" * MB)
            until(future.done, "it has ended")
            with caplog.at_level(logging.INFO, "windlass.dataplane"), network.refusing():
                asked = threads.submit(future.result)
                until(lambda: asked.done() or caplog.text.count("once more") > 1, "it was asked for in vain, and again")
            assert asked.result(30) == b"x" * MB
            assert caplog.text.count("cannot be had from manager") == 1
