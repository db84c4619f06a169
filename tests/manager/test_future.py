"""The future of a call: what `concurrent.futures` promises, what a call adds, and what it costs."""

# pyright: reportPrivateUsage=false
# What costs memory and what threads wait for cannot be seen from outside.

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import logging
import os
import pickle
import signal
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, InvalidStateError
from types import SimpleNamespace
from typing import Any

import pytest

from windlass.errors import UsageError
from windlass.manager import future as module
from windlass.manager.future import CallbackThread, CallFuture
from windlass.manager.reading import THREADS, Readers
from windlass.manager.watchers import TaskWaiting
from windlass.messages import (
    CANCELLED,
    DIED,
    RAISED,
    RETURNED,
    CallAttempt,
    CallDone,
    CallEnd,
    CallId,
    EndDetail,
    ObjectName,
    ObjectRef,
    WorkerId,
)


class Frozen(Exception):
    """As one of a frozen dataclass."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


class Desk:
    """An owner of futures: unpickles results, raises for the rest, and notes what it is told."""

    def __init__(self) -> None:
        self.resolved: list[CallId] = []
        self.cancelled: list[CallId] = []
        self.collected: list[CallId] = []
        self.running: set[CallId] = set()
        self.resolving: Callable[[], object] = lambda: None

    def resolve(self, future: CallFuture[Any], done: CallDone) -> Any:
        self.resolved.append(future.call_id)
        self.resolving()
        if done.end.outcome == RETURNED:
            return pickle.loads(done.end.payload)
        if done.end.outcome == RAISED:
            raise pickle.loads(done.end.payload)
        raise RuntimeError(f"outcome {done.end.outcome}")

    def cancel(self, future: CallFuture[Any]) -> None:
        self.cancelled.append(future.call_id)

    def runs(self, call: CallId) -> bool:
        return call in self.running

    def on_collected(self, future: CallFuture[Any]) -> None:
        self.collected.append(future.call_id)

    def later(self, work: Callable[[], object]) -> None:
        work()


def returned(value: object = None) -> CallDone:
    return CallDone(CallEnd(CallId(7), 1, RETURNED, pickle.dumps(value)))


def raised(error: BaseException) -> CallDone:
    return CallDone(CallEnd(CallId(7), 1, RAISED, pickle.dumps(error)))


def large() -> CallDone:
    """A result whose bytes are still to come."""
    done = returned("large")
    done.end.spans = (ObjectRef(ObjectName("r-" + "0" * 32), 100_000),)
    return done


def ended(outcome: int) -> CallDone:
    return CallDone(CallEnd(CallId(7), 1, outcome))


pytestmark = pytest.mark.usefixtures("callbacks")


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def future(desk: Desk) -> CallFuture[Any]:
    return CallFuture(desk, CallId(7))


class Background:
    """Threads that a test starts; joined after it, and what they raised is raised."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def __call__(self, work: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised again in the test
                self._errors.append(error)

        thread = threading.Thread(target=run)
        self._threads.append(thread)
        thread.start()
        return thread

    def join(self) -> None:
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        if self._errors:
            raise self._errors[0]


@pytest.fixture
def background() -> Iterator[Background]:
    threads = Background()
    yield threads
    threads.join()


def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread is about to do inside the interpreter, where no event tells of it."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def watched(future: CallFuture[Any]) -> bool:
    return bool(future._watchers)


# ---------------------------------------------------------------- what concurrent.futures promises


class TestPlainFuture:
    """Without an owner it is a plain future, state by state."""

    def test_it_begins_pending(self) -> None:
        future: CallFuture[int] = CallFuture()
        assert isinstance(future, Future)
        assert (future.done(), future.running(), future.cancelled()) == (False, False, False)

    def test_a_result_is_given_to_who_asks(self) -> None:
        future: CallFuture[int] = CallFuture()
        future.set_result(42)
        assert future.done()
        assert future.result() == 42
        assert future.exception() is None

    def test_an_exception_is_raised_to_who_asks_for_the_result(self) -> None:
        future: CallFuture[int] = CallFuture()
        error = OSError("x")
        future.set_exception(error)
        assert future.exception() is error
        with pytest.raises(OSError, match="x") as caught:
            future.result()
        assert caught.value is error

    def test_a_pending_one_can_be_cancelled_and_a_running_or_finished_one_cannot(self) -> None:
        pending: CallFuture[int] = CallFuture()
        running: CallFuture[int] = CallFuture()
        finished: CallFuture[int] = CallFuture()
        assert running.set_running_or_notify_cancel()
        finished.set_result(1)
        assert pending.cancel()
        assert pending.cancel()
        assert not running.cancel()
        assert not finished.cancel()
        assert (pending.cancelled(), running.running(), finished.done()) == (True, True, True)
        assert not pending.set_running_or_notify_cancel()

    def test_a_cancelled_one_raises_cancelled_error(self) -> None:
        future: CallFuture[int] = CallFuture()
        future.cancel()
        for ask in (future.result, future.exception):
            with pytest.raises(CancelledError):
                ask(timeout=0)

    @pytest.mark.parametrize("timeout", [0, -3, 0.001])
    def test_asking_too_early_is_a_timeout_that_leaves_nothing_behind(self, timeout: float) -> None:
        future: CallFuture[int] = CallFuture()
        for ask in (future.result, future.exception):
            with pytest.raises(TimeoutError):
                ask(timeout=timeout)
        assert not watched(future)

    def test_a_second_end_is_refused(self) -> None:
        future: CallFuture[int] = CallFuture()
        future.set_result(1)
        with pytest.raises(InvalidStateError, match=r"^FINISHED: <CallFuture at 0x[0-9a-f]+ state=finished returned int>$"):
            future.set_result(2)
        with pytest.raises(InvalidStateError, match="FINISHED"):
            future.set_exception(ValueError())
        assert future.result() == 1

    def test_running_is_set_once(self, caplog: pytest.LogCaptureFixture) -> None:
        future: CallFuture[int] = CallFuture()
        future.set_running_or_notify_cancel()
        with caplog.at_level(logging.CRITICAL), pytest.raises(RuntimeError, match="Future in unexpected state"):
            future.set_running_or_notify_cancel()

    @pytest.mark.parametrize("end", ["result", "exception", "cancel"])
    def test_callbacks_run_in_order_with_the_future(self, end: str) -> None:
        future: CallFuture[int] = CallFuture()
        seen: list[tuple[int, object]] = []
        future.add_done_callback(lambda it: seen.append((1, it)))
        future.add_done_callback(lambda it: seen.append((2, it)))
        match end:
            case "result":
                future.set_result(1)
            case "exception":
                future.set_exception(ValueError())
            case _:
                future.cancel()
        assert seen == [(1, future), (2, future)]

    def test_a_callback_added_late_runs_at_once(self) -> None:
        future: CallFuture[int] = CallFuture()
        future.set_result(1)
        seen: list[object] = []
        future.add_done_callback(seen.append)
        assert seen == [future]

    def test_a_callback_that_raises_is_logged_and_the_next_one_runs(self, caplog: pytest.LogCaptureFixture) -> None:
        future: CallFuture[int] = CallFuture()
        seen: list[object] = []

        def bad(_: object) -> None:
            raise ZeroDivisionError

        future.add_done_callback(bad)
        future.add_done_callback(seen.append)
        with caplog.at_level(logging.ERROR, "concurrent.futures"):
            future.set_result(1)
        assert seen == [future]
        assert "exception calling callback" in caplog.text

    @pytest.mark.parametrize("ask", ["result", "exception"])
    def test_a_waiting_thread_is_woken_by_the_result(self, ask: str, background: Background) -> None:
        future: CallFuture[int] = CallFuture()
        got: list[object] = []
        background(lambda: got.append(getattr(future, ask)(timeout=20)))
        until(lambda: watched(future))
        future.set_result(5)
        background.join()
        assert got == [5 if ask == "result" else None]

    def test_a_waiting_thread_is_woken_by_cancel(self, background: Background) -> None:
        future: CallFuture[int] = CallFuture()
        got: list[BaseException] = []

        def ask() -> None:
            with pytest.raises(CancelledError) as caught:
                future.result(timeout=20)
            got.append(caught.value)

        background(ask)
        until(lambda: watched(future))
        future.cancel()
        background.join()
        assert len(got) == 1

    def test_an_exception_does_not_keep_the_future_alive(self) -> None:
        future: CallFuture[int] = CallFuture()
        future.set_exception(ValueError("x"))
        gone = weakref.ref(future)
        gc.disable()
        try:
            with pytest.raises(ValueError, match="x"):
                future.result()
            del future
            assert gone() is None
        finally:
            gc.enable()


class TestWithConcurrentFutures:
    """`wait`, `as_completed` and `wrap_future` take it for one of theirs."""

    def futures(self, desk: Desk, count: int) -> list[CallFuture[Any]]:
        return [CallFuture(desk, CallId(number)) for number in range(count)]

    def test_wait_returns_when_all_have_ended(self, desk: Desk, background: Background) -> None:
        futures = self.futures(desk, 5)
        done: list[Any] = []
        background(lambda: done.append(concurrent.futures.wait(futures, timeout=20)))
        until(lambda: all(map(watched, futures)))
        for number, future in enumerate(futures):
            assert not done
            assert future.finish(returned(number))
        background.join()
        assert done[0].done == set(futures)
        assert not done[0].not_done
        assert desk.resolved == []  # waiting unpickles nothing

    def test_wait_for_the_first(self, desk: Desk) -> None:
        futures = self.futures(desk, 3)
        futures[1].finish(returned())
        done, not_done = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED)
        assert (done, not_done) == ({futures[1]}, {futures[0], futures[2]})

    def test_wait_for_the_first_exception_that_was_there_before(self, desk: Desk) -> None:
        futures = self.futures(desk, 3)
        futures[0].finish(returned())
        futures[1].finish(raised(OSError()))
        done, not_done = concurrent.futures.wait(futures, timeout=20, return_when=concurrent.futures.FIRST_EXCEPTION)
        assert (done, not_done) == ({futures[0], futures[1]}, {futures[2]})
        assert desk.collected == []  # a look is not a collection

    def test_wait_for_the_first_exception_to_come(self, desk: Desk, background: Background) -> None:
        futures = self.futures(desk, 3)
        done: list[Any] = []
        background(lambda: done.append(concurrent.futures.wait(futures, timeout=20, return_when=concurrent.futures.FIRST_EXCEPTION)))
        until(lambda: all(map(watched, futures)))
        futures[0].finish(returned())
        futures[2].finish(ended(DIED))
        background.join()
        assert done[0].done == {futures[0], futures[2]}

    def test_wait_times_out(self, desk: Desk) -> None:
        futures = self.futures(desk, 2)
        futures[0].finish(returned())
        done, not_done = concurrent.futures.wait(futures, timeout=0.001)
        assert (done, not_done) == ({futures[0]}, {futures[1]})
        assert not watched(futures[1])

    def test_a_cancelled_call_has_ended_for_wait(self, desk: Desk, background: Background) -> None:
        futures = self.futures(desk, 2)
        futures[0].cancel()
        done: list[Any] = []
        background(lambda: done.append(concurrent.futures.wait(futures, timeout=20)))
        until(lambda: watched(futures[1]))
        futures[1].cancel()
        background.join()
        assert done[0].done == set(futures)

    def test_as_completed_yields_in_order_of_ends_and_keeps_nothing(self, desk: Desk) -> None:
        futures = self.futures(desk, 4)
        names = {id(future): number for number, future in enumerate(futures)}
        futures[3].finish(returned())
        order: list[int] = []
        gone: list[Any] = []
        for future in concurrent.futures.as_completed(futures, timeout=20):
            assert isinstance(future, CallFuture)
            order.append(names[id(future)])
            futures.remove(future)
            gone.append(weakref.ref(future))
            del future
            assert gone[-1]() is None
            if futures:
                futures[0].finish(returned())
        assert order == [3, 0, 1, 2]

    def test_as_completed_times_out(self, desk: Desk) -> None:
        futures = self.futures(desk, 3)
        futures[0].finish(returned())
        with pytest.raises(TimeoutError, match=r"^2 \(of 3\) futures unfinished$"):
            list(concurrent.futures.as_completed(futures, timeout=0))

    def test_it_mixes_with_stock_futures_from_several_threads(self, desk: Desk, background: Background) -> None:
        """Each has a lock of its own, so locking in the order of ids cannot deadlock."""
        mixed: list[Future[Any]] = []
        for number in range(10):
            mixed += [CallFuture(desk, CallId(number)), Future()]
        for _ in range(3):
            background(lambda: [concurrent.futures.wait(mixed, timeout=0) for _ in range(50)])
        background.join()
        for future in mixed:
            if isinstance(future, CallFuture):
                future.finish(returned())
            else:
                future.set_result(None)
        assert concurrent.futures.wait(mixed, timeout=20).done == set(mixed)

    def test_asyncio_wait_which_would_never_wake_is_refused(self, future: CallFuture[Any]) -> None:
        async def work() -> None:
            await asyncio.wait([future])  # type: ignore[type-var]

        with pytest.raises(UsageError, match=r"write asyncio.wait\(\[asyncio.wrap_future\(future\)\]\)"):
            asyncio.run(work())

    def test_wrap_future_gives_the_result(self, future: CallFuture[Any], background: Background) -> None:
        async def main() -> Any:
            wrapped = asyncio.wrap_future(future)
            background(lambda: future.finish(returned("x")))
            return await asyncio.wait_for(wrapped, 20)

        assert asyncio.run(main()) == "x"

    @pytest.mark.parametrize("end", ["returned", "raised", "cancelled"])
    def test_what_asyncio_asks_from_python_3_14_on_unpacks_the_record(self, desk: Desk, future: CallFuture[Any], end: str) -> None:
        """There `wrap_future` takes done, cancelled, result and exception at once, by a method that would miss what is packed."""
        unknown: Any = future  # to the checkers, which take Python 3.11
        snapshot: Callable[[], tuple[bool, bool, Any, BaseException | None]] = unknown._get_snapshot
        assert snapshot() == (False, False, None, None)
        match end:
            case "returned":
                future.finish(returned("x"))
                assert snapshot() == (True, False, "x", None)
            case "raised":
                future.finish(raised(OSError("x")))
                done, cancelled, result, exception = snapshot()
                assert (done, cancelled, result, str(exception)) == (True, False, None, "x")
            case _:
                future.cancel()
                assert snapshot() == (True, True, None, None)
        assert desk.collected == [7]

    def test_cancelling_what_wraps_it_cancels_the_call(self, desk: Desk, future: CallFuture[Any]) -> None:
        async def main() -> None:
            wrapped = asyncio.wrap_future(future)
            wrapped.cancel()
            with pytest.raises(asyncio.CancelledError):
                await wrapped

        asyncio.run(main())
        assert future.cancelled()
        assert desk.cancelled == [7]


# ---------------------------------------------------------------- the life of a call


class TestFinish:
    """The manager's thread ends a call; whoever asks unpickles."""

    def test_it_keeps_the_record_and_unpickles_nothing(self, desk: Desk, future: CallFuture[Any]) -> None:
        assert future.finish(returned([1, 2]))
        assert future.done()
        assert future.state == "done"
        assert (desk.resolved, desk.collected) == ([], [])

    def test_the_result_is_unpickled_once(self, desk: Desk, future: CallFuture[Any]) -> None:
        future.finish(returned([1, 2]))
        assert future.result() is future.result()
        assert desk.resolved == [7]

    def test_the_packed_form_goes_when_the_unpacked_one_is_there(self, future: CallFuture[Any]) -> None:
        record = returned("x" * 1000)
        future.finish(record)
        future.result()
        assert record.end.payload == b""

    def test_a_late_record_is_dropped(self, desk: Desk, future: CallFuture[Any]) -> None:
        assert future.finish(returned(1))
        assert not future.finish(returned(2))
        assert future.result() == 1
        other: CallFuture[Any] = CallFuture(desk)
        other.cancel()
        assert not other.finish(returned(2))
        assert other.cancelled()

    def test_an_exception_comes_as_itself_each_time(self, desk: Desk, future: CallFuture[Any]) -> None:
        future.finish(raised(OSError(5, "broken")))
        for _ in range(2):
            with pytest.raises(OSError, match="broken"):
                future.result()
        assert isinstance(future.exception(), OSError)
        assert desk.resolved == [7]
        assert future.state == "failed"

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
    def test_an_exit_that_the_function_raised_is_its_answer(self, desk: Desk, future: CallFuture[Any], kind: type[BaseException]) -> None:
        future.finish(raised(kind("remote")))
        for _ in range(2):
            with pytest.raises(kind, match="remote"):
                future.result()
        assert desk.resolved == [7]

    def test_ctrl_c_while_unpickling_is_not_the_answer(self, desk: Desk, future: CallFuture[Any]) -> None:
        def interrupt() -> None:
            raise KeyboardInterrupt

        future.finish(returned(1))
        desk.resolving = interrupt
        with pytest.raises(KeyboardInterrupt):
            future.result()
        desk.resolving = lambda: None
        assert future.result() == 1

    def test_a_result_that_cannot_be_unpickled_is_an_exception(self, future: CallFuture[Any]) -> None:
        future.finish(CallDone(CallEnd(CallId(7), 1, RETURNED, b"junk")))
        assert isinstance(future.exception(), pickle.UnpicklingError)
        assert future.state == "failed"

    def test_a_call_that_the_manager_cancelled_is_cancelled(self, future: CallFuture[Any]) -> None:
        future.finish(ended(CANCELLED))
        assert future.cancelled()
        with pytest.raises(CancelledError):
            future.result()

    def test_many_threads_ask_and_one_unpickles(self, desk: Desk, future: CallFuture[Any], background: Background) -> None:
        gate = threading.Event()
        desk.resolving = lambda: gate.wait(20)
        got: list[object] = []
        for _ in range(8):
            background(lambda: got.append(future.result(20)))
        until(lambda: len(future._watchers or ()) == 8)
        future.finish(returned([1]))
        until(lambda: module._settle_waiters == 7)
        gate.set()
        background.join()
        assert len(got) == 8
        assert all(each is got[0] for each in got)
        assert desk.resolved == [7]

    @pytest.mark.usefixtures("as_python_pickles")
    def test_a_frozen_exception_settles_it_for_all_who_ask(self, desk: Desk, future: CallFuture[Any], background: Background) -> None:
        gate = threading.Event()
        desk.resolving = lambda: gate.wait(20)
        got: list[object] = []
        for _ in range(2):
            background(lambda: got.append(future.exception(20)))
        until(lambda: len(future._watchers or ()) == 2)
        future.finish(raised(Frozen()))
        until(lambda: module._settle_waiters == 1)
        gate.set()
        background.join()
        assert [type(each) for each in got] == [Frozen, Frozen]

    def test_it_can_be_unpacked_before_anybody_asks(self, desk: Desk, future: CallFuture[Any]) -> None:
        """A manager that closes drops the objects that results need."""
        future.settle()
        future.finish(returned([1]))
        failed: CallFuture[Any] = CallFuture(desk, CallId(8))
        failed.finish(raised(OSError("x")))
        for _ in range(2):
            future.settle()
            failed.settle()
        assert desk.resolved == [7, 8]
        assert desk.collected == []
        assert future.result() == [1]
        assert isinstance(failed.exception(), OSError)
        assert desk.resolved == [7, 8]

    def test_unpickling_stops_no_other_future_from_ending(self, desk: Desk, background: Background) -> None:
        slow, quick = CallFuture[Any](desk, CallId(1)), CallFuture[Any](desk, CallId(2))
        gate = threading.Event()
        desk.resolving = lambda: gate.wait(20)
        slow.finish(returned())
        background(slow.result)
        until(lambda: desk.resolved)
        assert quick.finish(returned())
        assert concurrent.futures.wait([slow, quick], timeout=20).done == {slow, quick}
        gate.set()

    def test_a_signal_handler_may_ask_while_its_thread_unpickles(self, desk: Desk, future: CallFuture[Any]) -> None:
        """It cannot wait for the thread that it interrupts."""
        got: list[object] = []

        def handler(*_: object) -> None:
            desk.resolving = lambda: None
            got.append(future.result())

        future.finish(returned(3))
        desk.resolving = lambda: signal.raise_signal(signal.SIGUSR1)
        before = signal.signal(signal.SIGUSR1, handler)
        try:
            assert future.result() == 3
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert got == [3]

    def test_threads_that_finish_cancel_and_wait_agree_on_one_end(self, desk: Desk, background: Background) -> None:
        futures = [CallFuture[Any](desk, CallId(number)) for number in range(300)]
        finished: list[bool] = []
        ends: list[object] = []

        def ask() -> None:
            for future in futures:
                try:
                    ends.append(future.result(20))
                except CancelledError:
                    ends.append(None)

        background(ask)
        background(lambda: finished.extend([future.finish(returned(1)) for future in futures]))
        background(lambda: [future.cancel() for future in futures])
        background(lambda: list(concurrent.futures.as_completed(futures, timeout=20)))
        background.join()
        assert [1 if it else None for it in finished] == ends
        assert len(desk.cancelled) == finished.count(False)


class TestCancel:
    def test_it_ends_a_waiting_call_at_once(self, desk: Desk, future: CallFuture[Any]) -> None:
        assert future.cancel()
        assert future.cancel()
        assert future.cancelled()
        assert desk.cancelled == [7]

    def test_it_runs_when_its_owner_knows_so(self, desk: Desk, future: CallFuture[Any]) -> None:
        assert (future.running(), future.state) == (False, "waiting")
        desk.running.add(future.call_id)
        assert (future.running(), future.state) == (True, "running")
        assert "state=running" in repr(future)
        assert future.cancel(), "a call that runs is cancelled, too"
        assert (future.running(), future.state) == (False, "cancelled")

    def test_it_reaches_a_running_call(self, desk: Desk, future: CallFuture[Any]) -> None:
        assert future.set_running_or_notify_cancel()
        assert future.state == "running"
        assert future.cancel()
        assert future.state == "cancelled"
        assert desk.cancelled == [7]

    def test_it_is_too_late_for_an_ended_call(self, desk: Desk, future: CallFuture[Any]) -> None:
        future.finish(returned())
        assert not future.cancel()
        assert desk.cancelled == []


class TestCallbacks:
    def test_they_run_on_the_callback_thread_and_never_on_the_one_that_ends_the_call(
        self, future: CallFuture[Any], callbacks: CallbackThread
    ) -> None:
        names: list[str] = []
        future.add_done_callback(lambda _: names.append(threading.current_thread().name))
        future.finish(returned())
        callbacks.close(10)
        assert names == ["test-callbacks"]

    def test_one_that_raises_or_exits_stops_no_other(self, desk: Desk, callbacks: CallbackThread, caplog: pytest.LogCaptureFixture) -> None:
        seen: list[object] = []

        def leave(_: object) -> None:
            sys.exit(3)

        first, second = CallFuture[Any](desk), CallFuture[Any](desk)
        first.add_done_callback(leave)
        second.add_done_callback(seen.append)
        with caplog.at_level(logging.ERROR, "concurrent.futures"):
            first.finish(returned())
            second.finish(returned())
            callbacks.close(10)
        assert seen == [second]
        assert "SystemExit" in caplog.text

    def test_the_thread_starts_again_after_close(self, callbacks: CallbackThread) -> None:
        seen: list[int] = []
        callbacks.close()
        callbacks(lambda: seen.append(1))
        callbacks.close(10)
        callbacks(lambda: seen.append(2))
        callbacks.close(10)
        assert seen == [1, 2]

    def test_it_can_be_closed_from_a_callback(self, callbacks: CallbackThread) -> None:
        seen: list[int] = []
        callbacks(callbacks.close)
        callbacks(lambda: seen.append(1))
        until(lambda: seen)
        callbacks.close(10)


class TestCollected:
    """The owner hears once that the program has taken notice."""

    def test_by_result(self, desk: Desk, future: CallFuture[Any]) -> None:
        future.finish(returned())
        future.result()
        future.result()
        future.exception()
        assert desk.collected == [7]

    def test_by_exception(self, desk: Desk, future: CallFuture[Any]) -> None:
        future.finish(raised(OSError()))
        future.exception()
        assert desk.collected == [7]

    def test_by_a_callback(self, desk: Desk, future: CallFuture[Any], callbacks: CallbackThread) -> None:
        future.add_done_callback(lambda _: None)
        assert desk.collected == []
        future.finish(returned())
        callbacks.close(10)
        assert desk.collected == [7]

    def test_by_await(self, desk: Desk, future: CallFuture[Any]) -> None:
        async def main() -> None:
            await future

        future.finish(returned())
        asyncio.run(main())
        assert desk.collected == [7]

    def test_by_the_manager_s_wait(self, desk: Desk, future: CallFuture[Any]) -> None:
        future.finish(returned())
        assert future.collect()
        assert not future.collect()
        future.result()
        assert desk.collected == [7]

    def test_not_by_a_timeout_or_by_waiting(self, desk: Desk, future: CallFuture[Any]) -> None:
        with pytest.raises(TimeoutError):
            future.result(0)
        assert not future.wait(0)
        future.finish(returned())
        assert future.wait()
        concurrent.futures.wait([future])
        assert desk.collected == []
        assert not future.collected

    def test_a_cancelled_call_is_collected_by_asking(self, desk: Desk, future: CallFuture[Any]) -> None:
        future.cancel()
        assert desk.collected == []
        with pytest.raises(CancelledError):
            future.result()
        assert desk.collected == [7]


class TestAwait:
    def test_it_gives_the_result_of_a_call_that_ends_later(self, future: CallFuture[Any], background: Background) -> None:
        async def main() -> Any:
            task = asyncio.ensure_future(future)
            await asyncio.sleep(0)
            background(lambda: future.finish(returned("late")))
            return await asyncio.wait_for(task, 20)

        assert asyncio.run(main()) == "late"

    def test_it_raises_the_exception(self, future: CallFuture[Any]) -> None:
        async def main() -> None:
            with pytest.raises(OSError, match="x"):
                await future

        future.finish(raised(OSError("x")))
        asyncio.run(main())

    @pytest.mark.parametrize("signals", ["eventfd", "none"])
    def test_many_ends_wake_the_loop_once(self, desk: Desk, monkeypatch: pytest.MonkeyPatch, signals: str) -> None:
        """By a signal of its own, or, in a loop that watches no descriptors, by the loop's."""
        futures = [CallFuture[Any](desk, CallId(number)) for number in range(100)]
        woken: list[object] = []

        def counted(wake: Callable[..., object]) -> Callable[..., object]:
            def call(*args: Any, **kwargs: Any) -> object:
                woken.append(args)
                return wake(*args, **kwargs)

            return call

        def watches_nothing(*_: object) -> None:
            raise NotImplementedError

        async def main() -> list[Any]:
            loop = asyncio.get_running_loop()
            if signals == "none":
                monkeypatch.setattr(loop, "add_reader", watches_nothing)
            gathered = asyncio.gather(*futures)
            await asyncio.sleep(0)
            monkeypatch.setattr(loop, "call_soon_threadsafe", counted(loop.call_soon_threadsafe))
            monkeypatch.setattr("os.eventfd_write", counted(os.eventfd_write))
            for number, future in enumerate(futures):
                future.finish(returned(number))
            return await asyncio.wait_for(gathered, 20)

        assert asyncio.run(main()) == list(range(100))
        assert len(woken) == 1

    def test_loops_leave_no_descriptor(self, desk: Desk) -> None:
        async def main(number: int) -> Any:
            future = CallFuture[Any](desk, CallId(number))
            asyncio.get_running_loop().call_soon(future.finish, returned(number))
            return await future

        assert asyncio.run(main(0)) == 0
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        assert [asyncio.run(main(number)) for number in range(20)] == list(range(20))
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before

    def test_a_task_that_ends_the_loop_takes_no_wake_up_with_it(self, desk: Desk) -> None:
        """Ctrl-C in a task ends the run; who else had been told of an end goes on in the next one."""
        futures = [CallFuture[Any](desk, CallId(number)) for number in range(3)]

        async def interrupted() -> None:
            await futures[0]
            raise KeyboardInterrupt

        async def ask(number: int) -> Any:
            return await futures[number]

        loop = asyncio.new_event_loop()
        try:
            first = loop.create_task(interrupted())
            others = [loop.create_task(ask(number)) for number in (1, 2)]
            for number, future in enumerate(futures):
                loop.call_later(0, future.finish, returned(number))
            with pytest.raises(KeyboardInterrupt):
                loop.run_until_complete(first)
            assert loop.run_until_complete(asyncio.gather(*others)) == [1, 2]
            assert isinstance(first.exception(), KeyboardInterrupt)
        finally:
            loop.close()

    def test_who_runs_the_loop_when_woken_sees_those_who_are_woken_with_it(self, desk: Desk) -> None:
        """As `nest_asyncio` lets tasks do: one waits so for another whose call has ended in the same batch."""
        futures = [CallFuture[Any](desk, CallId(number)) for number in range(4)]
        order: list[int] = []
        seen: list[tuple[int, ...]] = []

        async def main() -> None:
            loop: Any = asyncio.get_running_loop()
            over = loop.create_future()

            def woken(number: int) -> None:
                order.append(number)
                turns = 5 if number < 2 else 0
                while turns and len(order) < 4:
                    turns -= 1
                    loop.call_soon(lambda: None)  # so that a turn does not wait
                    loop._run_once()
                if number < 2:
                    seen.append(tuple(order))
                if number == 0:
                    over.set_result(None)

            for number, future in enumerate(futures):
                waiting = TaskWaiting(loop)
                waiting.add_done_callback(lambda _, number=number: woken(number))  # type: ignore[misc]
                future.watch(waiting)
            for number, future in enumerate(futures):
                future.finish(returned(number))
            await asyncio.wait_for(over, 20)

        asyncio.run(main())
        assert seen == [(0, 1, 2, 3)] * 2

    def test_a_task_keeps_its_context_and_says_why_it_was_cancelled(self, future: CallFuture[Any]) -> None:
        where: contextvars.ContextVar[str] = contextvars.ContextVar("where")

        async def ask() -> None:
            where.set("task")
            try:
                await future
            finally:
                assert where.get() == "task"

        async def main() -> None:
            task = asyncio.create_task(ask())
            await asyncio.sleep(0)
            assert task.cancel("enough")
            with pytest.raises(asyncio.CancelledError, match="enough"):
                await task

        asyncio.run(main())
        assert future.cancelled()

    def test_several_tasks_in_several_loops_get_the_same(self, future: CallFuture[Any], background: Background) -> None:
        got: list[object] = []

        async def ask() -> object:
            return await future

        async def main() -> None:
            got.extend(await asyncio.gather(ask(), ask()))

        background(lambda: asyncio.run(main()))
        background(lambda: asyncio.run(main()))
        until(lambda: len(future._watchers or ()) == 4)
        future.finish(returned([1]))
        background.join()
        assert len(got) == 4
        assert all(each is got[0] for each in got)

    def test_cancelling_the_task_cancels_the_call(self, desk: Desk, future: CallFuture[Any]) -> None:
        async def main() -> None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(future, 0.001)

        asyncio.run(main())
        assert future.cancelled()
        assert desk.cancelled == [7]
        assert not watched(future)

    def test_shield_keeps_the_call(self, future: CallFuture[Any]) -> None:
        async def main() -> Any:
            task = asyncio.ensure_future(future)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(task), 0.001)
            future.finish(returned(1))
            return await task

        assert asyncio.run(main()) == 1

    def test_a_large_result_from_afar_does_not_stop_the_loop(self, desk: Desk, future: CallFuture[Any]) -> None:
        """Its manager is on another machine, and may be cut off for a while: other tasks go on."""
        vars(desk)["store"] = SimpleNamespace(far=True)
        come = threading.Event()
        desk.resolving = lambda: come.wait(20)
        future.finish(large())

        async def main() -> str:
            task = asyncio.ensure_future(future)
            while not desk.resolved:
                await asyncio.sleep(0)
            assert not task.done()
            come.set()
            return await asyncio.wait_for(task, 20)

        assert asyncio.run(main()) == "large"
        assert desk.resolved == [7]

    def test_the_loop_ends_while_a_result_does_not_come(self, desk: Desk, future: CallFuture[Any]) -> None:
        """Nor does its program wait for it who does so no more."""
        vars(desk)["store"] = SimpleNamespace(far=True)
        come, over = threading.Event(), threading.Event()

        def waits() -> None:
            come.wait(20)
            over.set()

        desk.resolving = waits
        future.finish(large())

        async def main() -> None:
            task = asyncio.ensure_future(future)
            while not desk.resolved:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert not over.is_set()
        come.set()
        assert over.wait(20)
        assert future.result() == "large"

    def test_results_that_do_not_come_take_few_threads(self, desk: Desk) -> None:
        """However many are awaited, and however often one is: a login node has few threads for a user, and calls that returned would seem
        to have failed."""
        vars(desk)["store"] = SimpleNamespace(far=True)
        come = threading.Event()
        desk.resolving = lambda: come.wait(20)
        futures: list[CallFuture[Any]] = [CallFuture(desk, CallId(number)) for number in range(200)]
        for future in futures:
            future.finish(large())
        before = threading.active_count()

        async def main() -> list[Any]:
            for _ in range(50):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(asyncio.shield(futures[0]), 0.0001)
            while not desk.resolved:
                await asyncio.sleep(0)
            assert threading.active_count() <= before + 1
            gathered = asyncio.gather(*futures)
            while len(desk.resolved) < THREADS:
                await asyncio.sleep(0)
            assert threading.active_count() <= before + THREADS
            come.set()
            return await asyncio.wait_for(gathered, 20)

        assert asyncio.run(main()) == ["large"] * 200
        assert sorted(desk.resolved) == list(range(200))

    def test_a_result_that_nobody_awaits_any_more_is_not_read(self) -> None:
        """When its turn comes; who asks for it later gets it."""
        readers, begun, come, done = Readers(1), threading.Event(), threading.Event(), list[str]()

        def first() -> None:
            begun.set()
            come.wait(20)

        async def main() -> None:
            ahead = asyncio.ensure_future(readers.do("first", first))
            behind = asyncio.ensure_future(readers.do("second", lambda: done.append("second")))
            last = asyncio.ensure_future(readers.do("third", lambda: done.append("third")))
            while not begun.is_set():
                await asyncio.sleep(0)
            behind.cancel()
            with pytest.raises(asyncio.CancelledError):
                await behind
            come.set()
            await asyncio.wait_for(asyncio.gather(ahead, last), 20)
            assert done == ["third"]
            await readers.do("second", lambda: done.append("again"))

        asyncio.run(main())
        assert done == ["third", "again"]

    def test_results_of_which_no_thread_reads_any_are_told_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It can be asked for again."""
        readers, done = Readers(), list[int]()

        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        async def main() -> None:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", refuse)
                with pytest.raises(ConnectionAbortedError, match="can't start new thread"):
                    await readers.do(1, lambda: done.append(1))
            await readers.do(1, lambda: done.append(2))

        asyncio.run(main())
        assert done == [2]

    def test_a_cancelled_call_cancels_who_awaits_it(self, future: CallFuture[Any]) -> None:
        async def main() -> None:
            task = asyncio.ensure_future(future)
            await asyncio.sleep(0)
            future.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())

    def test_a_loop_that_is_closed_disturbs_no_end(self, future: CallFuture[Any]) -> None:
        loop = asyncio.new_event_loop()
        waiting = future.__await__()

        async def begin() -> None:
            next(waiting)

        loop.run_until_complete(begin())
        loop.close()
        assert future.finish(returned())
        waiting.close()


class TestWatch:
    def test_a_watcher_hears_of_the_end_on_the_thread_that_ends_it(self, desk: Desk) -> None:
        heard: list[tuple[str, object]] = []

        class Ear:
            def add_result(self, future: Any) -> None:
                heard.append(("result", future))

            def add_exception(self, future: Any) -> None:
                heard.append(("exception", future))

            def add_cancelled(self, future: Any) -> None:
                heard.append(("cancelled", future))

        a, b, c, d = (CallFuture[Any](desk) for _ in range(4))
        a.watch(Ear())
        b.watch(Ear())
        c.watch(Ear())
        d.watch(ear := Ear())
        d.unwatch(ear)
        a.finish(returned())
        b.finish(ended(DIED))
        c.cancel()
        d.finish(returned())
        for ended_one in (a, b, c):
            ended_one.watch(Ear())
        assert heard == [("result", a), ("exception", b), ("cancelled", c)] * 2
        assert desk.collected == []


# ---------------------------------------------------------------- the call's story


class TestStory:
    def test_it_tells_what_happened(self, desk: Desk) -> None:
        future: CallFuture[Any] = CallFuture(desk, CallId(9), "tag", submitted_at=100.0)
        assert (future.stdout, future.stderr, future.attempts, future.timings.submitted) == ("", "", (), 100.0)
        tries = (CallAttempt(1, WorkerId("w"), "host", "lost"),)
        end = CallEnd(CallId(9), 2, RETURNED, pickle.dumps(1), (), b"out\xff", b"err", 1000.5, 1000.75, 1002.5)
        future.finish(CallDone(end, 100.25, 101.0, 104.0, tries))
        assert (future.stdout, future.std_output, future.stderr) == ("out\ufffd", "out\ufffd", "err")
        assert future.attempts == tries
        times = future.timings
        assert (times.submitted, times.sent, times.started, times.ready, times.ended, times.returned) == (
            100.0,
            101.0,
            1000.5,
            1000.75,
            1002.5,
            104.0,
        )
        assert (times.running, times.setup, times.total, times.waiting) == (2.0, 0.25, 4.0, 2.0)
        assert (future.id, future.call_id, future.tag) == (9, 9, "tag")

    def test_output_is_the_result_of_an_ended_call(self, desk: Desk) -> None:
        future, failed, cancelled = (CallFuture[Any](desk, CallId(number)) for number in (1, 2, 3))
        with pytest.raises(InvalidStateError, match=r"<CallFuture call=1 state=waiting> has not ended, so it has no output; wait for it"):
            _ = future.output
        assert future.error is None
        future.finish(returned(5))
        assert (future.output, future.error, future.successful(), future.completed()) == (5, None, True, True)
        failed.finish(raised(OSError("x")))
        with pytest.raises(OSError, match="x"):
            _ = failed.output
        assert isinstance(failed.error, OSError)
        assert not failed.successful()
        cancelled.cancel()
        assert isinstance(cancelled.error, CancelledError)
        assert not cancelled.successful()

    def test_its_repr_is_short_and_unpickles_nothing(self, desk: Desk) -> None:
        future: CallFuture[Any] = CallFuture(desk, CallId(9), "a")
        assert repr(future) == "<CallFuture call=9 tag='a' state=waiting>"
        end = CallEnd(CallId(9), 5, RETURNED, pickle.dumps([1]), started_at=10.0, ended_at=12.5)
        future.finish(CallDone(end, attempts=(CallAttempt(1, WorkerId("w"), "host", "lost"),)))
        assert repr(future) == "<CallFuture call=9 tag='a' state=done ran 2.5 s in attempt 2>"
        assert desk.resolved == []
        future.result()
        assert repr(future) == "<CallFuture call=9 tag='a' state=done returned list ran 2.5 s in attempt 2>"

    def test_a_failed_call_says_so_before_it_is_unpickled(self, desk: Desk) -> None:
        future: CallFuture[Any] = CallFuture(desk, CallId(9))
        future.finish(CallDone(CallEnd(CallId(9), 3, DIED, detail=EndDetail(signal=9))))
        assert future.state == "failed"
        assert repr(future) == "<CallFuture call=9 state=failed>"

    def test_its_class_can_be_parameterised(self) -> None:
        assert isinstance(CallFuture[int](), CallFuture)


def test_a_waiting_future_takes_less_than_400_bytes(desk: Desk) -> None:
    """The whole of a waiting call may take 1,000; a stock future alone takes 1,600.

    From Python 3.13 on every instance of a class with a ``__dict__``, which the stock future has, comes with room for its attributes,
    used or not: 660 bytes in 3.13, 510 in 3.14 and 3.15.
    """

    class Own(CallFuture[Any]):
        """Room is made for attributes that any instance of a class was given once, which other tests, or Parsl, may have done."""

    limit = 400 if sys.version_info < (3, 13) else 700 if sys.version_info < (3, 14) else 550
    count = 2000
    ids = [CallId(1000 + number) for number in range(count)]
    kept: list[CallFuture[Any]] = [Own(desk) for _ in range(100)]  # the class's own tables are there
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept += [Own(desk, each) for each in ids]
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used / count < limit


def test_ending_a_future_that_nobody_watches_makes_no_lock(desk: Desk) -> None:
    future: CallFuture[Any] = CallFuture(desk)
    future.finish(returned(1))
    assert future.result() == 1
    assert future._lock is None
