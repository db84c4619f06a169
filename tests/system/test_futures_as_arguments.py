"""Futures as arguments, with real pilots: chains, wide calls, large results, what fails, programs that are attached."""

# pyright: reportUnknownMemberType=false
# pytest's syspath_prepend has no types.

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import windlass
from windlass import Closed, Executor, Factory, FunctionCall, InputFailed, Manager, NotPicklable, UsageError, attach
from windlass.manager.future import CallFuture


@pytest.fixture(scope="module", autouse=True)
def leaves_nothing_running(nothing_left_running_after_module: None) -> None:
    """The tests of this module share a manager and its pilot."""


@dataclasses.dataclass
class Pair:
    left: Any
    right: Any = None


Until = Callable[[str, Callable[[], object]], None]


def add(*numbers: int) -> int:
    return sum(numbers)


def echo(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def fail(text: str) -> None:
    raise ValueError(text)


def zeros(count: int) -> Any:
    return numpy.zeros(count)


def plus(array: Any, number: float) -> Any:
    array += number
    return array


def sums(arrays: list[Any]) -> list[float]:
    return [float(array.sum()) for array in arrays]


def number_of(given: Any) -> Any:
    return given[0][0].n


def old(number: int) -> Any:
    return "old", number


def new(number: int) -> Any:
    return "new", number


def behind(gate: Any, value: Any, name: str = "") -> Any:
    gate.pass_through(name)
    return value


def give_up() -> None:
    os._exit(7)


def once(folder: Path, value: Any) -> Any:
    """Its slot dies at the first try."""
    try:
        folder.mkdir()
    except FileExistsError:
        return value
    os._exit(7)


@pytest.fixture(scope="module")
def manager(shared_manager: Manager) -> Manager:
    """The shared manager with a library."""
    shared_manager.install_library("lib", add, echo, fail, zeros, plus, sums, behind, give_up, once)
    return shared_manager


@pytest.fixture(autouse=True)
def nothing_waits(manager: Manager, until: Until) -> Iterator[None]:
    """After each test every call has ended, nothing waits, and results' objects are gone."""
    yield
    while not manager.empty():
        manager.wait(20)
    gc.collect()
    feeder = manager._client.feeder  # pyright: ignore[reportPrivateUsage]
    feeder.inputs.check()
    assert feeder.count.waiting == 0
    assert not feeder.held
    until("results' objects are gone", lambda: not results_in(manager))


def results_in(manager: Manager) -> list[str]:
    """Objects of results that the manager has."""
    return [name for name in manager._store.names() if name.startswith("r-")]  # pyright: ignore[reportPrivateUsage]


def call(manager: Any, function: str, *args: Any, **kwargs: Any) -> CallFuture[Any]:
    future: CallFuture[Any] = manager.submit(FunctionCall("lib", function, *args, **kwargs))
    return future


# ---------------------------------------------------------------- what functions get


def test_a_future_is_given_as_its_value(manager: Manager) -> None:
    """Anywhere in the arguments: in containers, in instances, by keyword, several times."""
    one, two = call(manager, "add", 1), call(manager, "add", 1, 1)
    three = call(manager, "add", one, two)
    given = call(manager, "echo", [one, (two, {"k": three, two: 0})], Pair(one, [Pair(three)]), one, word=two).result(20)
    assert given == (([1, (2, {"k": 3, 2: 0})], Pair(1, [Pair(3)]), 1), {"word": 2})


def first_of(given: Any, number: int = 0, *, more: Any = None) -> Any:
    return given[0] + number, more


def test_an_executor_takes_futures(pool: Executor) -> None:
    """By `submit`, of functions that go by value too, with options, and among the inputs of `map`."""
    first: Any = pool.submit(lambda: [1])
    second: Any = pool.with_options(retries=1).submit(first_of, first, more=first)
    assert second.result(20) == (1, [1])
    assert list(pool.map(first_of, [first] * 5, range(5))) == [(1 + number, None) for number in range(5)]
    assert list(pool.map(first_of, [second] * 5, chunksize=2)) == [(1, None)] * 5


def test_a_chain_of_three_thousand_calls(manager: Manager) -> None:
    """It is submitted at once, and each gets what the one before has returned."""
    future = call(manager, "add", 0)
    for _ in range(3_000):
        future = call(manager, "add", future, 1)
    assert future.result(100) == 3_000


def test_one_call_of_ten_thousand_futures(manager: Manager) -> None:
    """And ten thousand calls of one."""
    futures = [call(manager, "add", number, 1) for number in range(10_000)]
    total = call(manager, "add", *futures)
    assert total.result(60) == sum(range(1, 10_001))
    more = [call(manager, "add", total, number) for number in range(10_000)]
    assert call(manager, "add", *more).result(60) == 10_000 * sum(range(1, 10_001)) + sum(range(10_000))


def test_large_results_go_on_by_name(manager: Manager) -> None:
    """An array of 80 MB never enters the program, several calls get it, each its own copy to write to, and then it goes."""
    first = call(manager, "zeros", 10_000_000)
    changed = [call(manager, "plus", first, number) for number in range(3)]
    assert call(manager, "sums", [*changed, first]).result(60) == [0.0, 1e7, 2e7, 0.0]
    assert first.unpacked() is None
    assert len(results_in(manager)) == 4, "who holds futures can ask"
    del changed
    assert first.result(10).sum() == 0


def test_many_arrays_to_one_call(manager: Manager) -> None:
    """Each goes by its name."""
    futures = [call(manager, "zeros", 9_000 + number) for number in range(300)]
    found = call(manager, "sums", [call(manager, "plus", future, 1) for future in futures]).result(60)
    assert found == [9_000.0 + number for number in range(300)]


def test_a_result_that_needs_a_local_module(pool: Executor, manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class of a result is found by the next function, though neither that nor its library names the module."""
    (tmp_path / "far_away.py").write_text("class Thing:\n    n = 3\n\ndef make():\n    return Thing()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    far_away: Any = importlib.import_module("far_away")
    same = call(manager, "echo", pool.submit(far_away.make))
    manager.install_library("other", number_of)
    try:
        assert manager.submit(FunctionCall("other", "number_of", same)).result(20) == 3
        brought = call(manager, "echo", far_away.Thing())
        assert manager.submit(FunctionCall("other", "number_of", brought)).result(20) == 3
    finally:
        manager.remove_library("other")


# ---------------------------------------------------------------- what waits


def test_waiting_for_inputs_is_waiting(manager: Manager, gate: Any) -> None:
    """`empty`, `wait`, `stats` and the status count calls whose inputs are not there."""
    first = call(manager, "behind", gate, 1)
    second = call(manager, "add", call(manager, "add", first, 1), 1)
    assert not manager.empty()
    assert manager.wait(0.01) is None
    assert second.state == "waiting"
    assert manager.status()["calls"]["waiting_for_inputs"] == 2
    gate.wait_for(1)
    assert (manager.stats.waiting, manager.stats.running) == (2, 1)
    with pytest.raises(TimeoutError):
        second.result(0.01)
    gate.open()
    assert manager.wait(20) is second
    assert second.result(0) == 3
    assert manager.empty(), "what became an input has been collected by that"
    assert manager.status()["calls"]["waiting_for_inputs"] == 0


def test_a_library_that_is_replaced_stays_for_calls_that_wait(manager: Manager, gate: Any) -> None:
    """They run in the version that they were submitted to."""
    manager.install_library("twice", old)
    first = call(manager, "behind", gate, 1)
    second = manager.submit(FunctionCall("twice", "old", first))
    manager.install_library("twice", new)
    manager.remove_library("twice")
    gate.open()
    assert second.result(20) == ("old", 1)


# ---------------------------------------------------------------- what fails


def test_a_failed_call_ends_those_that_need_its_result(manager: Manager) -> None:
    """At once, named, with its exception as the cause; also a slot that died."""
    first = manager.submit(FunctionCall("lib", "fail", "boom").with_options(tag="t"))
    last = call(manager, "add", call(manager, "add", first), 1)
    with pytest.raises(InputFailed, match=r"call \d+ \(lib.add\) was not run, because what its input depends on failed: call") as caught:
        last.result(20)
    assert str(caught.value).endswith("(lib.fail, tag 't') raised ValueError: boom")
    assert isinstance(caught.value.__cause__, ValueError)
    assert isinstance(caught.value.__cause__.__cause__, windlass.RemoteTraceback)
    assert (caught.value.library, caught.value.function, caught.value.tag) == ("lib", "fail", "t")
    error = call(manager, "add", call(manager, "give_up")).exception(20)
    assert isinstance(error, InputFailed)
    assert isinstance(error.__cause__, windlass.SlotDied)


def test_retries_use_the_inputs_again(manager: Manager, tmp_path: Path) -> None:
    """A call that died in its first attempt has its inputs in the second, an object too, though nobody holds their futures."""
    array = call(manager, "zeros", 50_000)
    again = manager.submit(FunctionCall("lib", "once", tmp_path / "tried", [array]).with_options(retries=1))
    del array
    assert again.result(30)[0].shape == (50_000,)
    assert len(again.attempts) + 1 >= 2


def test_cancelling(manager: Manager, gate: Any) -> None:
    """A waiting call is cancelled without having run; what waits for a cancelled one ends at once."""
    first = call(manager, "behind", gate, 1)
    second = call(manager, "add", first, 1)
    third = call(manager, "add", second, 1)
    assert second.cancel()
    assert isinstance(third.exception(10), InputFailed)
    fourth = call(manager, "add", first, 1)
    assert first.cancel()
    assert "was cancelled" in str(fourth.exception(10))


def test_a_future_in_a_function_is_refused(pool: Executor) -> None:
    """In a closure or a partial it would be pickled with the function; the text says what to write."""
    future = pool.submit(lambda: 1)
    for function in (lambda: future.result(), functools.partial(first_of, future)):
        with pytest.raises(NotPicklable, match=r"write submit\(f, future\)"):
            pool.submit(function)
    assert future.result(20) == 1


def test_the_managers_end_ends_what_waits(gate: Any) -> None:
    """With `Closed`, not for want of an input."""
    with Manager() as manager:
        manager.install_library("lib", add, behind)
        first = call(manager, "behind", gate, 1)
        second = call(manager, "add", call(manager, "add", first), 1)
    with pytest.raises(Closed):
        second.result(0)


# ---------------------------------------------------------------- programs that are attached


def never(folder: str, token: str) -> bool:
    return False


@pytest.fixture(params=["same host", "another host"])
def attached(manager: Manager, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[windlass.AttachedManager]:
    """This program, attached to the manager as another one would be, which sees the manager's objects or does not."""
    if request.param == "another host":
        monkeypatch.setattr("windlass.manager.line.same_host", never)
    with attach(manager.name) as attached:
        attached.install_library("lib", add, echo, fail, zeros, plus, sums, behind)
        yield attached
        assert not attached._client.feeder.held  # pyright: ignore[reportPrivateUsage]


def test_attached_programs_give_futures(attached: windlass.AttachedManager, manager: Manager) -> None:
    """Small results, large ones that stay at the manager, many long ones that are joined, and failures."""
    future = call(attached, "add", 0)
    for _ in range(200):
        future = call(attached, "add", future, 1)
    assert future.result(30) == 200
    array = call(attached, "plus", call(attached, "zeros", 100_000), 1)
    assert call(attached, "sums", [array, array]).result(30) == [1e5, 1e5]
    texts = [call(attached, "echo", "x" * 20_000 + str(number)) for number in range(30)]
    ((given,), _) = call(attached, "echo", texts).result(30)
    assert [text[20_000:] for (text,), _ in given] == [str(number) for number in range(30)]
    assert isinstance(call(attached, "add", call(attached, "fail", "boom")).exception(20), InputFailed)
    with pytest.raises(NotPicklable, match="is the future of a call of another manager"):
        call(manager, "add", future)
    del array
    while not attached.empty():
        attached.wait(1)


def test_detaching_would_lose_calls_that_wait(manager: Manager, gate: Any) -> None:
    """It is this program that hands results on."""
    with attach(manager.name) as attached:
        attached.install_library("lib", add, behind)
        first = call(attached, "behind", gate, 1)
        call(attached, "add", first, 1)
        assert attached.status()["calls"]["waiting_for_inputs"] == 1
        with pytest.raises(UsageError, match="1 calls wait for the results of others, which this program hands on"):
            attached.detach()


DETACHES = """
import sys, windlass, numpy
from windlass import FunctionCall, attach
attached = attach(sys.argv[1])
def write(array, path):
    open(path, "w").write(str(array.sum()))
attached.install_library("far", numpy.ones, write)
array = attached.submit(FunctionCall("far", "ones", 50_000))
array.wait()
attached.submit(FunctionCall("far", "write", array, sys.argv[2]))
attached.detach()
"""


def test_inputs_stay_for_calls_that_go_on_without_their_program(manager: Manager, tmp_path: Path, until: Until) -> None:
    """The object of a result stays at the manager until the detached calls have had it, and goes then."""
    answer = tmp_path / "answer"
    subprocess.run([sys.executable, "-c", DETACHES, manager.name, str(answer)], check=True, timeout=60)
    until("the call has run", lambda: answer.exists() and answer.read_text() == "50000.0")


def test_a_factory_of_its_own() -> None:
    """Two workers: what one has made reaches the other."""
    with Manager() as manager, Factory(manager, "local", cores=1, max_pilots=2):
        manager.install_library("lib", zeros, plus, sums)
        arrays = [call(manager, "zeros", 20_000 + number) for number in range(20)]
        changed = [call(manager, "plus", call(manager, "plus", array, 1), 1) for array in arrays]
        assert call(manager, "sums", changed).result(60) == [2.0 * (20_000 + number) for number in range(20)]
