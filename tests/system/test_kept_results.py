"""Results that stay on workers (``keep="worker"``): where their bytes go, where calls that need them run, and what becomes of lost ones."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pytest

import windlass
from windlass import FileUnavailable, FunctionCall, InputFailed, Manager, UsageError

Start = Callable[..., windlass.Factory]
Until = Callable[[str, Callable[[], object]], None]
Kill = Callable[[Manager], None]
MB = 1 << 20


def make(number: int, size: int = MB, note: str = "") -> Any:
    """An array; notes that it was made."""
    if note:
        with open(note, "a") as file:
            file.write(f"{number}\n")
    return numpy.full(size, number % 251, dtype="uint8")


def total(*arrays: Any) -> tuple[int, int]:
    """A sum, and which worker's slot this is."""
    return sum(int(array.sum()) for array in arrays), os.getppid()


def double(array: Any, note: str = "") -> Any:
    if note:
        with open(note, "a") as file:
            file.write("double\n")
    return array * 2


def held(gate: str, *arrays: Any) -> int:
    Path(f"{gate}.begun").touch()
    while not os.path.exists(gate):
        time.sleep(0.01)
    return len(arrays)


def call(manager: Manager, function: str, *args: Any, keep: bool = False, **options: Any) -> Any:
    """Submit a call of the library; with ``keep`` its result stays on its worker."""
    return manager.submit(FunctionCall("lib", function, *args).with_options(keep="worker" if keep else None, **options))


@pytest.fixture
def kept(manager: Manager) -> Manager:
    """A manager with the library, and no pilots."""
    manager.install_library("lib", make, total, double, held)
    return manager


def through_manager(manager: Manager) -> int:
    """Bytes of large results that are in the manager's store. (It also has code, when the tests are on the program's path.)"""
    store = manager._store  # pyright: ignore[reportPrivateUsage]
    names = list(store._entries)  # pyright: ignore[reportPrivateUsage]
    return sum(store.size(name) for name in names if name.startswith("r-"))


def test_a_kept_result_is_used_where_it_is_and_comes_only_when_asked_for(kept: Manager, start_factory: Start, until: Until) -> None:
    """Not a byte of it is at the manager before."""
    start_factory(cores=2)
    future = call(kept, "make", 3, keep=True)
    assert call(kept, "total", future).result(60)[0] == 3 * MB
    assert through_manager(kept) == 0
    assert kept.status()["transfers"]["bytes_from_manager"] == 0
    assert future.result(60).sum() == 3 * MB
    until("its copy at the manager is gone", lambda: through_manager(kept) == 0)


def test_small_results_come_as_always(kept: Manager, start_factory: Start) -> None:
    """There is nothing to save."""
    start_factory(cores=1)
    future = call(kept, "make", 3, 10, keep=True)
    assert list(future.result(60)) == [3] * 10
    assert call(kept, "total", future, future).result(60)[0] == 60


def test_a_pipeline_runs_where_its_intermediate_results_are(kept: Manager, start_factory: Start) -> None:
    """Each second stage in the worker of its first; what crosses from worker to worker does so without the manager."""
    start_factory(cores=1, max_pilots=2)
    firsts = [call(kept, "make", number, keep=True) for number in range(1, 21)]
    seconds = [call(kept, "double", first, keep=True) for first in firsts]
    sums = [call(kept, "total", second) for second in seconds]
    assert [future.result(60)[0] for future in sums] == [2 * number * MB for number in range(1, 21)]
    both = call(kept, "total", *seconds).result(60)  # needs those of the other worker too
    assert both[0] == sum(2 * number * MB for number in range(1, 21))
    assert through_manager(kept) == 0
    assert kept.status()["transfers"]["bytes_from_manager"] == 0


def test_a_dropped_result_leaves_its_worker(kept: Manager, start_factory: Start, until: Until) -> None:
    """As any result leaves the manager; calls that were given it have it as long as they need it."""
    start_factory(cores=1)
    consumer = call(kept, "total", call(kept, "make", 5, keep=True))
    assert consumer.result(60)[0] == 5 * MB
    until("it is gone", lambda: kept.status()["files"] == [])


def test_a_result_that_was_lost_with_its_worker_is_made_again(
    kept: Manager, start_factory: Start, tmp_path: Path, kill_workers: Kill
) -> None:
    """For calls that need it, and for the program; what it was made of was lost too, and is made again first."""
    note = str(tmp_path / "note")
    start_factory(cores=1)
    base = call(kept, "make", 7, MB, note, keep=True)
    product = call(kept, "double", base, note, keep=True)
    assert call(kept, "total", product).result(60)[0] == 14 * MB
    kill_workers(kept)
    assert call(kept, "total", product).result(60)[0] == 14 * MB
    assert Path(note).read_text().split() == ["7", "double"] * 2
    kill_workers(kept)
    assert product.result(60).sum() == 14 * MB
    assert Path(note).read_text().split() == ["7", "double"] * 3


def test_what_was_made_of_a_dropped_result_can_be_made_again(
    kept: Manager, start_factory: Start, tmp_path: Path, kill_workers: Kill, until: Until
) -> None:
    """The program has let the first go: only the manager knows how it was made."""
    note = str(tmp_path / "note")
    start_factory(cores=1)
    product = call(kept, "double", call(kept, "make", 7, MB, note, keep=True), keep=True)
    assert call(kept, "total", product).result(60)[0] == 14 * MB
    kill_workers(kept)
    assert call(kept, "total", product).result(60)[0] == 14 * MB
    assert Path(note).read_text().split() == ["7", "7"]
    until("the first is gone again", lambda: len(kept.status()["files"]) == 1)


def test_a_call_that_holds_the_only_slot_gives_way_to_what_makes_its_input_again(
    kept: Manager, start_factory: Start, tmp_path: Path, kill_workers: Kill, until: Until
) -> None:
    """A call that waits on a worker for a lost result goes back, so that one slot is enough."""
    note = str(tmp_path / "note")
    gate = str(tmp_path / "gate")
    first = start_factory(cores=1)
    product = call(kept, "make", 7, MB, note, keep=True)
    assert call(kept, "total", product).result(60)[0] == 7 * MB
    blocked = call(kept, "held", gate)
    until("it runs", lambda: os.path.exists(f"{gate}.begun"))
    waiting = [call(kept, "total", product) for _ in range(4)]
    kill_workers(kept)
    Path(gate).touch()
    assert [future.result(60)[0] for future in waiting] == [7 * MB] * 4
    assert blocked.result(60) == 0
    assert Path(note).read_text().split() == ["7", "7"]
    assert first.status()


def test_a_result_that_is_lost_too_often_ends_what_needs_it(
    kept: Manager, start_factory: Start, tmp_path: Path, kill_workers: Kill, until: Until
) -> None:
    """After three remakes, with a text that says so."""
    note = str(tmp_path / "note")
    start_factory(cores=1)
    product = call(kept, "make", 7, MB, note, keep=True)
    for _ in range(4):
        assert call(kept, "total", product).result(60)[0] == 7 * MB
        kill_workers(kept)
        until("it is seen", lambda: not any(file["replicas"] for file in kept.status()["files"]))
    with pytest.raises(FileUnavailable, match="lost with its workers 4 times"):
        call(kept, "total", product).result(60)
    with pytest.raises(FileUnavailable, match="lost with its workers 4 times"):
        product.result(60)
    assert Path(note).read_text().split() == ["7"] * 4
    assert call(kept, "total", numpy.zeros(10)).result(60)[0] == 0


def test_a_failure_before_the_result_is_told_as_ever(kept: Manager, start_factory: Start) -> None:
    start_factory(cores=1)
    with pytest.raises(InputFailed):
        call(kept, "total", call(kept, "double", None, keep=True)).result(60)


def test_an_attached_program_keeps_results_too(kept: Manager, start_factory: Start, until: Until) -> None:
    """They are its own, and go with it."""
    start_factory(cores=1)
    with windlass.attach(kept.connection_file) as attached:
        attached.install_library("lib", make, total, double, held)
        product = call(attached, "make", 9, keep=True)  # type: ignore[arg-type]
        assert call(attached, "total", product).result(60)[0] == 9 * MB  # type: ignore[arg-type]
        assert through_manager(kept) == 0
        assert product.result(60).sum() == 9 * MB
        other = call(attached, "make", 8, keep=True)  # type: ignore[arg-type]
        assert call(attached, "total", other).result(60)[0] == 8 * MB  # type: ignore[arg-type]
        assert len(kept.status()["files"]) >= 1
    until("what it kept is gone", lambda: kept.status()["files"] == [])


def slow_make(number: int, size: int) -> Any:
    time.sleep(1.5)
    return numpy.full(size, number, dtype="uint8")


def test_who_asks_for_a_lost_result_waits_no_longer_than_they_said(kept: Manager, start_factory: Start, kill_workers: Kill) -> None:
    """Two threads and an event loop ask while it is made again: none holds up the other, and each gets it in the end."""
    kept.install_library("slow", slow_make)
    start_factory(cores=1)
    future = kept.submit(FunctionCall("slow", "slow_make", 5, MB).with_options(keep="worker"))
    assert call(kept, "total", future).result(60)[0] == 5 * MB
    kill_workers(kept)
    with pytest.raises(TimeoutError, match="has stayed on a worker"):
        future.result(0.05)
    with ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(future.result, 60) for _ in range(3)]

        async def awaited() -> tuple[int, int]:
            ticks, task = 0, asyncio.ensure_future(_awaiting(future))
            while not task.done():
                await asyncio.sleep(0.01)
                ticks += 1
            return int((await task).sum()), ticks

        total_, ticks = asyncio.run(awaited())
        assert total_ == 5 * MB
        assert ticks > 5
        assert [int(one.result(60).sum()) for one in asked] == [5 * MB] * 3


async def _awaiting(future: Any) -> Any:
    return await future


@pytest.mark.parametrize("way", ["value", "result", "file"])
def test_a_result_is_made_again_of_what_it_was_made_of(
    kept: Manager, start_factory: Start, tmp_path: Path, way: str, kill_workers: Kill
) -> None:
    """Though the program has let go of all that: a large value, the result of another call, a file."""
    kept.install_library("more", of_file, double)
    start_factory(cores=1)
    (tmp_path / "data").write_bytes(b"\7" * MB)
    base: Any
    if way == "value":
        base = call(kept, "double", numpy.full(MB, 7, dtype="uint8"), keep=True)
    elif way == "result":
        base = call(kept, "double", call(kept, "make", 7), keep=True)
    else:
        base = kept.submit(FunctionCall("more", "of_file", kept.declare_file(tmp_path / "data")).with_options(keep="worker"))
    product = call(kept, "double", base, keep=True)
    expected = (14 if way == "file" else 28) * MB
    del base
    assert call(kept, "total", product).result(60)[0] == expected
    gc.collect()
    kill_workers(kept)
    assert call(kept, "total", product).result(60)[0] == expected


def of_file(path: Path) -> Any:
    return numpy.frombuffer(path.read_bytes(), dtype="uint8")


def fewer(path: str) -> list[Any]:
    """Two arrays, and one when it is run again."""
    number = 1 if os.path.exists(path) else 2
    Path(path).touch()
    return [numpy.full(MB, each, dtype="uint8") for each in range(number)]


def first_of(arrays: list[Any]) -> int:
    return len(arrays)


def test_a_remake_that_makes_less_ends_what_needs_the_rest(kept: Manager, start_factory: Start, tmp_path: Path, kill_workers: Kill) -> None:
    """Rather than to let it wait for ever."""
    kept.install_library("other", fewer, first_of)
    start_factory(cores=1)
    future = kept.submit(FunctionCall("other", "fewer", str(tmp_path / "run")).with_options(keep="worker"))
    assert kept.submit(FunctionCall("other", "first_of", future)).result(60) == 2
    kill_workers(kept)
    with pytest.raises(FileUnavailable, match="has made something else this time"):
        kept.submit(FunctionCall("other", "first_of", future)).result(60)


def test_what_an_executors_program_drops_leaves_the_workers(manager: Manager, until: Until) -> None:
    """Nobody calls wait() on an executor, so nothing is kept for that."""
    with windlass.Executor("local", manager=manager, cores=1) as pool:
        futures = [pool.with_options(keep="worker").submit(make, number) for number in range(3)]
        assert [pool.submit(total, future).result(60)[0] for future in futures] == [0, MB, 2 * MB]
        del futures
        gc.collect()
        until("they are gone", lambda: manager.status()["files"] == [])


def test_other_words_are_refused(kept: Manager) -> None:
    with pytest.raises(UsageError, match="keep='node': write keep='worker'"):
        FunctionCall("lib", "make", 1).with_options(keep="node")
