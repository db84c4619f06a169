"""Options of calls: what each one does, seen from the program, on real pilots."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import psutil
import pytest

import windlass
from windlass import CallTimeout, Factory, FunctionCall, Manager, OutOfMemory, SlotDied, StoreFull

MB = 1 << 20


class Flaky(ConnectionError):
    """An error that may be gone at the next try."""


def note(path: str, word: str) -> str:
    """Append a line, whole whoever else writes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{word}\n".encode())
    os.close(descriptor)
    return word


def fail_at_first(path: str, times: int, how: str) -> int:
    """Note the attempt; fail so often, then give its number."""
    note(path, str(os.getpid()))
    with open(path) as file:
        attempt = len(file.readlines())
    if attempt <= times:
        if how == "exit":
            os._exit(7)
        raise {"flaky": Flaky, "value": ValueError}[how](f"attempt {attempt}")
    return attempt


def pid() -> int:
    return os.getpid()


def hold(gate: str, word: str = "") -> int:
    """Say that it runs, and run until the gate opens."""
    with open(f"{gate}.{word or os.getpid()}", "w") as file:
        file.write(str(os.getpid()))
    while not os.path.exists(gate):
        time.sleep(0.002)
    return os.getpid()


def most_at_once(folder: str, word: str) -> int:
    """How many calls of this sort, this one included, were seen to run at the same time."""
    mark = Path(folder, f"{word}-{os.getpid()}-{time.monotonic_ns()}")
    mark.touch()
    most = 0
    end = time.monotonic() + 0.05
    while time.monotonic() < end:
        most = max(most, len(list(Path(folder).iterdir())))
        time.sleep(0.002)
    mark.unlink()
    return most


def use(megabytes: int, gate: str = "", path: str = "") -> int:
    """Use so much memory until the gate opens."""
    if path:
        note(path, str(os.getpid()))
    block = b"\1" * (megabytes * MB)
    while gate and not os.path.exists(gate):
        time.sleep(0.002)
    return len(block) // MB


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until the condition holds; what it gave."""
    end = time.monotonic() + 30
    while not (value := condition()):
        assert time.monotonic() < end, f"waited 30 s until {what}"
        time.sleep(0.002)
    return value


@pytest.fixture(scope="module")
def leaves_nothing_running(nothing_left_running_after_module: None) -> None:
    """The tests of this module share a manager and a pilot."""


@pytest.fixture(scope="module")
def lib(shared_manager: Manager) -> Manager:
    """The manager with library ``lib``: two slots on its pilot; and ``one``: a single slot."""
    functions = (note, fail_at_first, pid, hold, most_at_once)
    shared_manager.install_library("lib", *functions)
    shared_manager.install_library("one", *functions, slots=1)
    return shared_manager


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[str]:
    """A file that lets `hold` go when it is there."""
    path = tmp_path / "gate"
    yield str(path)
    path.touch()


def holders(gate: str) -> list[int]:
    """Process ids of the calls that hold at the gate."""
    folder = Path(gate).parent
    return [int(text) for path in folder.glob("gate.*") if (text := path.read_text())]


def test_a_call_over_its_timeout_ends_with_call_timeout_and_its_slot_is_replaced(lib: Manager, gate: str) -> None:
    """The process that ran it is gone, the next call runs in another one, a call beside it goes on."""
    beside = lib.submit(FunctionCall("lib", "hold", gate, "beside"))
    late = lib.submit(FunctionCall("lib", "hold", gate + "-never", "late").with_options(timeout=2))
    with pytest.raises(CallTimeout) as caught:
        late.result(30)
    assert "2 s" in str(caught.value)
    assert isinstance(caught.value, TimeoutError)
    killed = int(Path(gate + "-never.late").read_text())
    until(lambda: not psutil.pid_exists(killed), "the slot of the late call has ended")
    assert lib.submit(FunctionCall("lib", "pid")).result(30) != killed
    assert not beside.done()
    Path(gate).touch()
    assert beside.result(30) != killed


def test_a_timeout_counts_from_the_start_of_a_call_and_not_from_its_submission(lib: Manager, gate: str) -> None:
    """A call that waits in the queue for longer than its timeout still runs."""
    holding = lib.submit(FunctionCall("one", "hold", gate))
    until(lambda: holders(gate), "the slot is taken")
    queued = lib.submit(FunctionCall("one", "pid").with_options(timeout=1))
    assert not queued.wait(1.2)
    Path(gate).touch()
    assert queued.result(30) == holding.result(30)


def test_a_slot_that_dies_uses_up_retries_and_the_error_tells_the_story(lib: Manager, tmp_path: Path) -> None:
    """Two deaths and two retries: the third attempt counts. Without retries left: `SlotDied` with the exit status of the last."""
    path = str(tmp_path / "tries")
    assert lib.submit(FunctionCall("lib", "fail_at_first", path, 2, "exit").with_options(retries=2)).result(30) == 3
    path = str(tmp_path / "more")
    with pytest.raises(SlotDied) as caught:
        lib.submit(FunctionCall("lib", "fail_at_first", path, 9, "exit").with_options(retries=1)).result(30)
    assert caught.value.exit_status == 7
    assert len(Path(path).read_text().splitlines()) == 2
    assert [text.split(" on ")[0] for text in caught.value.__notes__[1:]] == ["attempt 1", "attempt 2"]


def test_an_exception_is_retried_only_when_retry_on_names_it_or_a_base_of_it(lib: Manager, tmp_path: Path) -> None:
    """By class or by name; every other exception is delivered at once, whatever `retries` says."""
    for number, retry_on in enumerate([Flaky, ConnectionError, "OSError", (ValueError, OSError)]):
        path = str(tmp_path / f"flaky{number}")
        call = FunctionCall("lib", "fail_at_first", path, 1, "flaky").with_options(retries=1, retry_on=retry_on)  # type: ignore[arg-type]
        assert lib.submit(call).result(30) == 2
    path = str(tmp_path / "value")
    with pytest.raises(ValueError, match="attempt 1"):
        lib.submit(FunctionCall("lib", "fail_at_first", path, 1, "value").with_options(retries=3, retry_on=OSError)).result(30)
    path = str(tmp_path / "plain")
    with pytest.raises(Flaky, match="attempt 1"):
        lib.submit(FunctionCall("lib", "fail_at_first", path, 1, "flaky").with_options(retries=3)).result(30)


def test_calls_of_higher_priority_run_first_and_equal_ones_in_order(lib: Manager, gate: str, tmp_path: Path) -> None:
    """With one slot that is held until all are queued, the order of running is the order of priorities."""
    path = str(tmp_path / "order")
    holding = lib.submit(FunctionCall("one", "hold", gate))
    until(lambda: holders(gate), "the slot is taken")
    priorities = [0, 5, -1, 5, 10, 0]
    futures = [
        lib.submit(FunctionCall("one", "note", path, f"{priority}.{number}").with_options(priority=priority))
        for number, priority in enumerate(priorities)
    ]
    Path(gate).touch()
    for future in (holding, *futures):
        future.result(30)
    assert Path(path).read_text().split() == ["10.4", "5.1", "5.3", "0.0", "0.5", "-1.2"]


def test_a_tag_stays_with_its_future_and_cancels_by_it(lib: Manager, gate: str) -> None:
    """`cancel_by_tag` reaches waiting and running calls with the tag and no others."""
    running = lib.submit(FunctionCall("one", "hold", gate).with_options(tag="mine"))
    until(lambda: holders(gate), "the slot is taken")
    tagged = [lib.submit(FunctionCall("one", "pid").with_options(tag="mine")) for _ in range(3)]
    other = lib.submit(FunctionCall("one", "pid").with_options(tag="other"))
    assert (running.tag, other.tag) == ("mine", "other")
    assert lib.cancel_by_tag("mine") == 4
    assert running.cancelled()
    assert all(future.cancelled() for future in tagged)
    assert other.result(30)


def test_a_wide_call_runs_alone_and_narrow_ones_share(lib: Manager, tmp_path: Path) -> None:
    """A call of two cores takes both slots of a pilot of two; calls of one run two at a time; none is starved."""
    folder = tmp_path / "at-once"
    folder.mkdir()
    narrow = FunctionCall("lib", "most_at_once", str(folder), "narrow")
    wide = FunctionCall("lib", "most_at_once", str(folder), "wide").with_options(cores=2)
    futures = [(call, lib.submit(call)) for call in (narrow, wide, narrow, narrow, wide, wide, narrow, narrow)]
    assert {future.result(30) for call, future in futures if call is wide} == {1}
    assert max(future.result(30) for call, future in futures if call is narrow) <= 2


def test_cancelling_a_running_call_replaces_its_slot_and_others_go_on(lib: Manager, gate: str) -> None:
    """The process is gone soon, its neighbour keeps its own, the next call gets a fresh slot."""
    doomed = lib.submit(FunctionCall("lib", "hold", gate, "doomed"))
    beside = lib.submit(FunctionCall("lib", "hold", gate, "beside"))
    until(lambda: len(holders(gate)) == 2, "both run")
    killed = int(Path(f"{gate}.doomed").read_text())
    assert doomed.cancel()
    assert doomed.cancelled()
    with pytest.raises(CancelledError):
        doomed.result(0)
    until(lambda: not psutil.pid_exists(killed), "the slot of the cancelled call has ended")
    assert lib.submit(FunctionCall("lib", "pid")).result(30) != killed
    assert not beside.done()
    Path(gate).touch()
    assert beside.result(30) == int(Path(f"{gate}.beside").read_text())
    assert not beside.cancel(), "an ended call cannot be cancelled"


def test_ten_thousand_waiting_calls_are_cancelled_and_none_of_them_runs(lib: Manager, gate: str, tmp_path: Path) -> None:
    """Those at the worker already are taken back there; the call that ran before them is not touched."""
    path = tmp_path / "ran"
    before = lib.stats
    holding = lib.submit(FunctionCall("one", "hold", gate))
    until(lambda: holders(gate), "the slot is taken")
    futures = [lib.submit(FunctionCall("one", "note", str(path), "x")) for _ in range(10_000)]
    assert lib.stats.waiting + lib.stats.running >= 10_001
    assert sum(future.cancel() for future in futures) == 10_000
    assert all(future.cancelled() for future in futures)
    until(lambda: lib.stats.waiting == 0 and lib.stats.running == 1, "the manager has cancelled them")
    Path(gate).touch()
    assert holding.result(30)
    assert lib.submit(FunctionCall("one", "pid")).result(30) == holding.result()
    assert not path.exists()
    after = lib.stats
    assert (after.cancelled - before.cancelled, after.done - before.done) == (10_000, 2)
    until(lib.empty, "nothing is left to collect")


def test_wait_gives_each_ended_call_once_and_none_in_time(lib: Manager, gate: str) -> None:
    """Fractions of seconds and 0 are fine; `empty` turns true when all are collected, however that happened."""
    assert lib.empty()
    assert lib.wait(0.01) is None
    held = lib.submit(FunctionCall("lib", "hold", gate))
    assert not lib.empty()
    assert lib.wait(0) is None
    started = time.monotonic()
    assert lib.wait(0.05) is None
    assert time.monotonic() - started >= 0.05
    quick = lib.submit(FunctionCall("lib", "pid"))
    assert lib.wait(30) is quick
    Path(gate).touch()
    assert lib.wait() is held
    assert lib.wait() is None
    assert lib.empty()
    collected = lib.submit(FunctionCall("lib", "pid"))
    assert collected.result(30)
    assert lib.empty()
    assert lib.wait(0) is None


def test_wait_in_one_thread_ends_when_another_collects_the_last_call(lib: Manager, gate: str) -> None:
    """A waiter for whom nothing can come any more is let go."""
    held = lib.submit(FunctionCall("lib", "hold", gate))
    got: list[object] = []
    waiter = threading.Thread(target=lambda: got.append(lib.wait(30)))
    waiter.start()
    assert held.cancel()
    waiter.join(30)
    assert not waiter.is_alive()
    assert got in ([held], [None])


def test_hungry_stats_and_status_count_the_same_calls(lib: Manager, gate: str) -> None:
    """`hungry` falls by what is queued and reaches 0; `stats` and `status` tell waiting from running."""
    assert lib.submit(FunctionCall("one", "pid")).result(30)
    full = lib.hungry()
    assert full >= 10
    held = lib.submit(FunctionCall("one", "hold", gate))
    until(lambda: holders(gate), "the slot is taken")
    queued = [lib.submit(FunctionCall("one", "pid")) for _ in range(full + 5)]
    assert lib.hungry() == 0
    stats = until(lambda: (now := lib.stats).waiting + now.running == full + 6 and now, "all have arrived")
    assert stats.running >= 1
    assert stats.workers == 1
    assert stats.slots >= 1
    status = lib.status()
    assert status["calls"]["waiting"] + status["calls"]["running"] == full + 6
    library = next(each for each in status["libraries"] if each["name"] == "one")
    assert (library["waiting"] + library["running"], library["slots"]) == (full + 6, 1)
    assert status["workers"][0]["cores"] == 2
    Path(gate).touch()
    for future in (held, *queued):
        assert future.result(30)
    assert lib.stats.waiting == lib.stats.running == 0


@pytest.fixture(scope="module")
def tight(leaves_nothing_running: None) -> Iterator[Manager]:
    """A manager whose pilot of two cores may use 400 MB."""
    with Manager() as manager, Factory(manager, "local", cores=2, memory=400 * MB):
        manager.install_library("lib", use)
        yield manager


def test_a_call_over_its_share_is_ended_when_memory_is_short_and_its_neighbour_survives(tight: Manager, gate: str) -> None:
    """`OutOfMemory` has the peak, the share (half of the pilot's) and the limit; the neighbour ends well in its own slot."""
    neighbour = tight.submit(FunctionCall("lib", "use", 60, gate))
    greedy = tight.submit(FunctionCall("lib", "use", 330, gate))
    with pytest.raises(OutOfMemory) as caught:
        greedy.result(30)
    error = caught.value
    assert (error.share, error.limit) == (200 * MB, 400 * MB)
    assert error.peak > error.share  # it may be caught before it has all that it wants
    assert "when the pilot's limit of 400 MiB was reached, and was the furthest over its share of 200 MiB" in str(error)
    assert not neighbour.done()
    Path(gate).touch()
    assert neighbour.result(30) == 60
    assert tight.stats.workers == 1


def test_a_call_with_memory_auto_runs_again_with_a_larger_share(tight: Manager, gate: str, tmp_path: Path) -> None:
    """Ended at its first try beside a neighbour; its second has the whole pilot and ends well. No retry was asked for."""
    path = tmp_path / "tries"
    neighbour = tight.submit(FunctionCall("lib", "use", 130, gate))
    before = tight.status()["calls"]["retried"]
    auto = tight.submit(FunctionCall("lib", "use", 250, gate, str(path)).with_options(memory="auto"))
    until(lambda: tight.status()["calls"]["retried"] == before + 1, "the first try was ended")
    Path(gate).touch()
    assert neighbour.result(30) == 130
    assert auto.result(30) == 250
    assert len(path.read_text().split()) == 2


def test_a_call_with_memory_auto_that_had_the_whole_pilot_ends_with_out_of_memory(tight: Manager, tmp_path: Path) -> None:
    """There is nothing larger to try: no endless loop."""
    gate = str(tmp_path / "never")
    with pytest.raises(OutOfMemory) as caught:
        tight.submit(FunctionCall("lib", "use", 380, gate).with_options(memory="auto")).result(60)
    assert caught.value.share == caught.value.limit == 400 * MB


def take(block: bytes, gate: str) -> int:
    """Hold a large argument until the gate opens."""
    hold(gate, uuid.uuid4().hex)
    return len(block)


@pytest.fixture
def small_store(leaves_nothing_running: None) -> Iterator[Manager]:
    """A manager that may hold 4 MB of arguments in memory and 4 MB on disk."""
    with Manager() as manager:
        store = manager._store  # pyright: ignore[reportPrivateUsage]
        store.limit = store.spool_limit = 4 * MB
        store.most = 0
        manager.install_library("lib", take)
        yield manager


def test_submit_waits_while_the_store_is_full_and_goes_on_as_calls_end(small_store: Manager, gate: str) -> None:
    """Eight calls of 1 MB fit, four in memory and four on disk; the ninth submit waits until one has ended. All get their argument."""
    store = small_store._store  # pyright: ignore[reportPrivateUsage]
    futures: list[Any] = []

    def submit_all() -> None:
        for number in range(12):
            futures.append(small_store.submit(FunctionCall("lib", "take", bytes([number]) * (MB - 4096), gate)))

    with Factory(small_store, "local", cores=2):
        submitting = threading.Thread(target=submit_all)
        submitting.start()
        until(lambda: len(futures) == 8 and store.used > 3 * MB, "the store is full")
        submitting.join(0.3)
        assert (submitting.is_alive(), len(futures)) == (True, 8), "submit neither waits nor fails"
        assert len(store.names()) == 8
        Path(gate).touch()
        submitting.join(30)
        assert [future.result(30) for future in futures] == [MB - 4096] * 12
    store.check()


def test_submit_of_what_never_fits_fails_at_once_and_loses_nothing(small_store: Manager, gate: str) -> None:
    """An argument larger than the store, also while others are in it: `StoreFull`, and the next call is as good as any."""
    small = small_store.submit(FunctionCall("lib", "take", b"x" * MB, gate))
    with pytest.raises(StoreFull, match="does not fit"):
        small_store.submit(FunctionCall("lib", "take", b"x" * (5 * MB), gate))
    Path(gate).touch()
    with Factory(small_store, "local", cores=1):
        assert small.result(30) == MB


def test_a_waiting_submit_ends_with_closed_when_the_manager_closes(small_store: Manager, gate: str) -> None:
    """Nobody waits for room that cannot come."""
    for number in range(8):
        small_store.submit(FunctionCall("lib", "take", bytes([number]) * (MB - 4096), gate))
    errors: list[BaseException] = []

    def submit_one() -> None:
        try:
            small_store.submit(FunctionCall("lib", "take", b"y" * (MB - 4096), gate))
        except windlass.WindlassError as error:
            errors.append(error)

    submitting = threading.Thread(target=submit_one)
    submitting.start()
    submitting.join(0.2)
    assert submitting.is_alive()
    small_store.close()
    submitting.join(30)
    assert [type(error) for error in errors] == [windlass.Closed]
