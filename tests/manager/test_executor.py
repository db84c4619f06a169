"""The executor: what `concurrent.futures` promises, options, and maps that never fill memory."""

# pyright: reportPrivateUsage=false
# What bookkeeping costs cannot be seen from outside.

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import logging
import math
import operator
import os
import pickle
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from windlass import leaving
from windlass.errors import Closed, UnknownName, UsageError
from windlass.functions import define
from windlass.manager import executor as executors
from windlass.manager import mapping
from windlass.manager.call import DEFAULT_OPTIONS
from windlass.manager.executor import Executor
from windlass.manager.future import CallFuture
from windlass.manager.mapping import WINDOW_LEAST, WINDOW_MOST, MapResults, in_chunks
from windlass.messages import CANCELLED, RAISED, RETURNED, CallDone, CallEnd, CallId, CallOptions
from windlass.object_store import ObjectStore


class Threads:
    """Stands in for a Manager: runs calls in threads of this process and ends their futures as a manager does."""

    def __init__(self, workers: int = 2) -> None:
        self.pool = ThreadPoolExecutor(workers)
        self.submitted: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], CallOptions | None, str | None]] = []
        self.cancelled: list[CallId] = []
        self.closed = 0
        self.room = 0

    def submit_function(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CallOptions | None = None,
        tag: str | None = None,
        *,
        memoize: bool = False,
    ) -> CallFuture[Any]:
        self.submitted.append((fn, args, kwargs, options, tag))
        future: CallFuture[Any] = CallFuture(self, CallId(len(self.submitted)), tag)
        self.pool.submit(self._run, weakref.ref(future), fn, args, kwargs)
        return future

    def _run(self, waiting: weakref.ref[CallFuture[Any]], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        future = waiting()
        if future is None or future.done():
            return
        del future
        try:
            outcome, value = RETURNED, fn(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the call's own, for its future
            outcome, value = RAISED, error
        future = waiting()
        if future is not None:
            future.finish(CallDone(CallEnd(future.call_id, 1, outcome, pickle.dumps(value))))

    def hungry(self) -> int:
        return self.room

    def slots(self, options: CallOptions = DEFAULT_OPTIONS) -> int:
        return 2

    def close(self) -> None:
        self.closed += 1
        self.pool.shutdown(wait=True)

    def resolve(self, future: CallFuture[Any], done: CallDone) -> Any:
        value = pickle.loads(done.end.payload)
        if done.end.outcome == RAISED:
            raise value
        return value

    def cancel(self, future: CallFuture[Any]) -> None:
        self.cancelled.append(future.call_id)

    def runs(self, call: CallId) -> bool:
        return False

    def on_collected(self, future: CallFuture[Any]) -> None:
        pass

    def later(self, work: Callable[[], object]) -> None:
        work()


class Held:
    """Stands in for a Manager: calls end when the test says so."""

    def __init__(self) -> None:
        self.futures: list[CallFuture[Any]] = []
        self.values: list[Any] = []
        self.cancelled: list[CallId] = []
        self.closed = 0
        self.room = 0

    def submit_function(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CallOptions | None = None,
        tag: str | None = None,
        *,
        memoize: bool = False,
    ) -> CallFuture[Any]:
        future: CallFuture[Any] = CallFuture(self, CallId(len(self.futures)))
        self.futures.append(future)
        self.values.append(fn(*args, **kwargs))
        return future

    def end(self, number: int) -> None:
        self.futures[number].finish(CallDone(CallEnd(CallId(number), 1, RETURNED)))

    def hungry(self) -> int:
        return self.room

    def slots(self, options: CallOptions = DEFAULT_OPTIONS) -> int:
        return 2

    def close(self) -> None:
        self.closed += 1
        for number, future in enumerate(self.futures):
            future.finish(CallDone(CallEnd(CallId(number), 1, CANCELLED)))

    def resolve(self, future: CallFuture[Any], done: CallDone) -> Any:
        return self.values[future.call_id]

    def cancel(self, future: CallFuture[Any]) -> None:
        self.cancelled.append(future.call_id)
        future.finish(CallDone(CallEnd(future.call_id, 1, CANCELLED)))  # as a manager that has heard it

    def runs(self, call: CallId) -> bool:
        return False

    def on_collected(self, future: CallFuture[Any]) -> None:
        pass

    def later(self, work: Callable[[], object]) -> None:
        work()


class Direct(Executor):
    """An executor whose manager and factory are the test's."""

    def __init__(self, manager: Any, factory: Any = None, **options: Any) -> None:
        self.made: list[Any] = []
        self._test_manager, self._test_factory = manager, factory
        super().__init__(**options)

    def _make_manager(self, options: dict[str, Any]) -> Any:
        self.made.append(options)
        return self._test_manager

    def _make_factory(self, manager: Any, backend: object, options: dict[str, Any]) -> Any:
        self.made.append((backend, options))
        return self._test_factory


class Factory:
    """Stands in for a Factory."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def __enter__(self) -> Factory:
        self.log.append("factory starts")
        return self

    def __exit__(self, *_: object) -> None:
        self.log.append("factory ends")

    def let_go(self) -> None:
        self.log.append("factory is let go")


@pytest.fixture(autouse=True)
def open_pools(monkeypatch: pytest.MonkeyPatch) -> set[executors.Pool]:
    """Pools that a test leaves open are not waited for when the tests end: calls of `Held` have no end."""
    pools: set[executors.Pool] = set()
    monkeypatch.setattr(executors, "_open", pools)
    return pools


@pytest.fixture
def threads() -> Iterator[Threads]:
    manager = Threads()
    yield manager
    manager.pool.shutdown(wait=True)


@pytest.fixture
def pool(threads: Threads) -> Iterator[Executor]:
    executor = Executor(None, manager=threads)
    yield executor
    executor.shutdown()


@pytest.fixture
def held() -> Held:
    return Held()


def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread is about to do, where no event tells of it."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def fail_at(number: int, bad: int) -> int:
    if number == bad:
        raise ZeroDivisionError(number)
    return number


def first_below(limit: int) -> int:
    return next(number for number in (2, 1) if number < limit)


def square(x: int) -> int:
    return x * x


def given(**keywords: object) -> dict[str, object]:
    return keywords


# ---------------------------------------------------------------- submit


class TestSubmit:
    def test_it_is_an_executor_of_concurrent_futures(self, pool: Executor) -> None:
        assert isinstance(pool, concurrent.futures.Executor)
        future = pool.submit(pow, 2, 8)
        assert isinstance(future, concurrent.futures.Future)
        assert future.result(20) == 256

    def test_keywords_are_the_functions(self, pool: Executor) -> None:
        keywords = {"fn": 1, "self": 2, "timeout": 3, "retries": 4, "args": 5}
        assert pool.submit(given, **keywords).result(20) == keywords

    def test_a_function_s_exception_comes_back(self, pool: Executor) -> None:
        with pytest.raises(ZeroDivisionError, match="3"):
            pool.submit(fail_at, 3, 3).result(20)

    def test_asyncio_can_run_in_it(self, pool: Executor) -> None:
        async def main() -> int:
            return await asyncio.get_running_loop().run_in_executor(pool, square, 3)

        assert asyncio.run(main()) == 9

    def test_it_keeps_no_future_alive(self, pool: Executor) -> None:
        future = pool.submit(square, 3)
        future.result(20)
        gone = weakref.ref(future)
        del future
        gc.collect()
        until(lambda: gone() is None)

    def test_after_shutdown_it_is_refused(self, pool: Executor) -> None:
        pool.shutdown()
        with pytest.raises(Closed, match="cannot submit a call after shutdown of its Executor; submit inside the with block"):
            pool.submit(square, 1)
        with pytest.raises(RuntimeError):
            pool.map(square, [1])


class TestOptions:
    def test_a_view_submits_with_options_and_the_pool_does_not(self, pool: Executor, threads: Threads) -> None:
        view = pool.with_options(timeout=5, tag="x").with_options(retries=2)
        view.submit(square, 1).result(20)
        pool.submit(square, 1).result(20)
        assert list(view.map(square, [3])) == [9]
        told = [(options, tag) for _, _, _, options, tag in threads.submitted]
        assert told == [(CallOptions(timeout=5.0, retries=2), "x"), (CallOptions(), None), (CallOptions(timeout=5.0, retries=2), "x")]

    def test_an_unknown_option_is_refused_with_near_names(self, pool: Executor) -> None:
        with pytest.raises(UnknownName, match="there is no option of a call 'timout'; did you mean 'timeout'"):
            pool.with_options(timout=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

    def test_shutdown_of_a_view_leaves_the_pool_open(self, pool: Executor) -> None:
        with pool.with_options(timeout=5) as view:
            assert view.submit(square, 2).result(20) == 4
        assert pool.submit(square, 2).result(20) == 4

    def test_a_block_of_a_view_needs_an_executor_that_somebody_has(self, held: Held) -> None:
        """Its end would wait for nothing, and close nothing: whoever writes this means the executor's."""
        with (
            pytest.raises(UsageError, match=r"a view of an Executor that nobody has.*write 'with windlass.Executor"),
            Executor(None, manager=held).with_options(retries=2),
        ):
            raise AssertionError
        pool = Executor(None, manager=held)
        pool.shutdown()
        with pool.with_options(retries=2):
            del pool


# ---------------------------------------------------------------- opening and shutdown


class TestLife:
    def test_it_opens_a_manager_and_a_factory_and_closes_them_in_turn(self, threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
        log: list[str] = []
        monkeypatch.setattr(threads, "close", lambda: log.append("manager ends"))
        with Direct(threads, Factory(log), backend="slurm", max_pilots=20, walltime="2h", manager_options={"name": "m"}) as pool:
            assert pool.made == [{"name": "m"}, ("slurm", {"max_pilots": 20, "walltime": "2h"})]
            assert log == ["factory starts"]
        assert log == ["factory starts", "factory ends", "manager ends"]

    def test_a_factory_that_cannot_start_leaves_no_manager_open(self, threads: Threads) -> None:
        class Bad:
            def __enter__(self) -> None:
                raise UsageError("no such backend")

            def __exit__(self, *_: object) -> None: ...

        with pytest.raises(UsageError, match="no such backend"):
            Direct(threads, Bad())
        assert threads.closed == 1

    @pytest.mark.parametrize("backend", [None, "fake"])
    def test_one_that_was_dropped_leaves_its_journal_to_the_next(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str | None
    ) -> None:
        """As when a function that makes one is called again, or a notebook's cell is run again. What it returned stays."""
        monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "state"))
        options: dict[str, Any] = {} if backend is None else {"min_pilots": 1, "cores": 1}
        before, kept = set(threading.enumerate()), list[CallFuture[bytes]]()
        for _ in range(2):
            executor = Executor(backend, journal=tmp_path / "run.journal", **options)
            if backend is not None:
                kept.append(executor.submit(bytes, 300_000))
                kept[-1].wait()
            del executor
            gc.collect()
        assert [len(future.result()) for future in kept] == [300_000] * len(kept)
        until(lambda: not {one for one in threading.enumerate() if one.name.startswith(("windlass-factory", "windlass-manager"))} - before)

    @pytest.mark.parametrize("own", [True, False])
    def test_one_that_was_dropped_lets_its_factory_go_when_its_calls_have_ended(
        self, held: Held, open_pools: set[executors.Pool], own: bool
    ) -> None:
        """But not that of a manager that was given, as its pilots serve all that this one has."""
        log: list[str] = []

        class Beside(Executor):
            def _make_factory(self, manager: Any, backend: object, options: dict[str, Any]) -> Any:
                return Factory(log)

        def make() -> Executor:
            return Direct(held, Factory(log)) if own else Beside(manager=held)

        make().submit(square, 2)
        gc.collect()
        assert log == ["factory starts"]
        held.end(0)
        executor = Executor(None, manager=held)  # whoever makes one looks
        told = ["factory is let go"] if own else []
        assert log == ["factory starts", *told]
        del executor
        make()
        gc.collect()
        assert log == ["factory starts", *told] * 2
        assert not open_pools

    def test_one_whose_manager_factory_or_results_somebody_may_have_lets_nothing_go(self, held: Held) -> None:
        log: list[str] = []
        assert Direct(held, Factory(log)).manager is held
        assert Direct(held, Factory(log)).factory is not None
        Direct(held, Factory(log)).with_options(keep="worker")
        pool = Direct(held, Factory(log))
        pool.shutdown()
        del pool
        gc.collect()
        assert log == ["factory starts"] * 4 + ["factory ends"]

    def test_a_manager_of_the_programs_own_stays_open(self, threads: Threads) -> None:
        with Executor(None, manager=threads) as pool:
            assert pool.manager is threads
        assert threads.closed == 0

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"manager": Held(), "manager_options": {"port": 1}}, "manager= is a manager that is there already"),
            ({"backend": None, "manager": Held(), "cores": 2}, "backend=None starts no pilots, so options of a pool would change nothing"),
            ({"backend": None, "manager": Held(), "max_pilots": 2}, "backend=None starts no pilots"),
        ],
    )
    def test_options_that_would_change_nothing_are_refused(self, options: dict[str, Any], text: str) -> None:
        with pytest.raises(UsageError, match=text):
            Executor(**options)

    def test_shutdown_waits_for_all_calls(self, threads: Threads) -> None:
        gate = threading.Event()
        pool = Direct(threads, Factory([]))
        futures = [pool.submit(gate.wait, 20) for _ in range(3)]
        opener = threading.Timer(0.01, gate.set)
        opener.start()
        pool.shutdown()
        assert all(future.done() for future in futures)
        assert threads.closed == 1
        pool.shutdown()
        assert threads.closed == 1
        opener.join()

    def test_shutdown_without_waiting_returns_and_closes_later(self, held: Held) -> None:
        pool = Direct(held, Factory([]))
        future = pool.submit(square, 2)
        pool.shutdown(wait=False)
        assert not future.done()
        assert held.closed == 0
        held.end(0)
        until(lambda: held.closed)
        assert future.result() == 4

    def test_shutdown_can_cancel(self, held: Held) -> None:
        pool = Direct(held, Factory([]))
        futures = [pool.submit(square, 2) for _ in range(3)]
        held.end(0)
        pool.shutdown(cancel_futures=True)
        assert [future.cancelled() for future in futures] == [False, True, True]
        assert held.cancelled == [2, 1]
        assert held.closed == 1

    def test_shutdown_can_cancel_what_another_shutdown_waits_for(self, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
        """All of it: the call, too, for which that one waits."""
        pool = Direct(held, Factory([]))
        futures = [pool.submit(square, 2) for _ in range(3)]
        waits = threading.Event()
        wait = CallFuture[Any].wait

        def noted(self: CallFuture[Any], timeout: float | None = None) -> bool:
            waits.set()
            return wait(self, timeout)

        monkeypatch.setattr(CallFuture, "wait", noted)
        pool.shutdown(wait=False)
        assert waits.wait(30)
        closer = threading.Thread(target=pool.shutdown, kwargs={"cancel_futures": True})
        closer.start()
        closer.join(30)
        cancelled = [future.cancelled() for future in futures]
        for number in range(3):  # or a thread would stay
            held.end(number)
        closer.join()
        assert cancelled == [True, True, True]
        assert held.cancelled == [2, 1, 0]
        assert held.closed == 1

    @pytest.mark.parametrize("busy", ["wait", "done"])
    def test_a_signal_handler_can_shut_down(self, held: Held, monkeypatch: pytest.MonkeyPatch, busy: str) -> None:
        """In the thread that waits for the calls' ends, or forgets those that have ended. Batch systems send a signal before they kill."""
        pool = Direct(held, Factory([]))
        look = getattr(CallFuture, busy)
        signalled = False

        def handles(self: CallFuture[Any], *words: Any) -> bool:
            nonlocal signalled
            if not signalled:
                signalled = True
                pool.shutdown(wait=True, cancel_futures=True)
            return bool(look(self, *words))

        def work() -> None:
            for _ in range(1024):
                pool.submit(square, 2)
            monkeypatch.setattr(CallFuture, busy, handles)
            if busy == "done":
                pool.submit(square, 2)
            pool.shutdown()

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        worker.join(30)
        assert not worker.is_alive()
        assert signalled
        assert all(future.cancelled() for future in held.futures)
        assert held.closed == 1

    def test_ctrl_c_in_the_block_cancels_what_has_not_ended(self, held: Held) -> None:
        pool = Direct(held, Factory([]))
        future = pool.submit(square, 2)
        with pytest.raises(KeyboardInterrupt), pool:
            raise KeyboardInterrupt
        assert future.cancelled()

    @pytest.mark.parametrize("often", [1, 3])
    def test_ctrl_c_again_while_calls_are_cancelled_leaves_none_of_them(
        self, held: Held, monkeypatch: pytest.MonkeyPatch, often: int
    ) -> None:
        """To cancel a hundred thousand takes a while. The manager hears of each: it may be one that stays open."""
        pool = Direct(held, Factory([]))
        futures = [pool.submit(square, 2) for _ in range(5)]
        interrupts, tell = iter(range(often)), held.cancel

        def interrupted(future: CallFuture[Any]) -> None:
            if len(held.cancelled) >= 2:
                for _ in interrupts:
                    raise KeyboardInterrupt
            tell(future)

        monkeypatch.setattr(held, "cancel", interrupted)
        with pytest.raises(KeyboardInterrupt), pool:
            raise KeyboardInterrupt
        assert all(future.cancelled() for future in futures)
        assert held.cancelled == [4, 3, 2, 1, 0]
        assert held.closed == 1

    @pytest.mark.parametrize("ordered", [True, False])
    def test_ctrl_c_again_while_a_map_is_cancelled_leaves_none_of_its_calls(
        self, held: Held, monkeypatch: pytest.MonkeyPatch, ordered: bool
    ) -> None:
        results = Executor(None, manager=held).map(square, range(5), ordered=ordered)
        interrupts, tell = iter(range(1)), held.cancel

        def interrupted(future: CallFuture[Any]) -> None:
            for _ in interrupts:
                raise KeyboardInterrupt
            tell(future)

        monkeypatch.setattr(held, "cancel", interrupted)
        with pytest.raises(KeyboardInterrupt):
            results.close()
        assert all(future.cancelled() for future in held.futures)
        assert sorted(held.cancelled) == [0, 1, 2, 3, 4]
        assert results.ahead == 0

    def test_an_error_in_the_block_waits_for_calls(self, held: Held) -> None:
        pool = Direct(held, Factory([]))
        future = pool.submit(square, 2)
        timer = threading.Timer(0.01, held.end, [0])
        timer.start()
        with pytest.raises(ZeroDivisionError), pool:
            raise ZeroDivisionError
        assert future.result() == 4
        timer.join()

    def test_what_a_left_block_waits_for_is_said(
        self, held: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Python shows the exception when the block is over, which may be hours after it was raised."""
        monkeypatch.setattr("windlass.manager.executor._TELL_AFTER", 0.01)
        pool = Direct(held, Factory([]))
        futures = [pool.submit(square, 2) for _ in range(3)]
        held.end(1)

        class Ends(logging.Handler):
            """Once it is told, the calls end."""

            def emit(self, record: logging.LogRecord) -> None:
                held.end(0)
                held.end(2)

        logger, ends = logging.getLogger("windlass.manager"), Ends()
        logger.addHandler(ends)
        try:
            with pytest.raises(ZeroDivisionError), pool:
                raise ZeroDivisionError
        finally:
            logger.removeHandler(ends)
        assert [future.result() for future in futures] == [4, 4, 4]
        assert [record.getMessage() for record in caplog.records] == [
            "ZeroDivisionError has left the with block of an Executor, which waits for 2 calls that have not ended: Ctrl-C cancels them"
        ]
        assert held.closed == 1

    def test_ctrl_c_while_waiting_cancels_the_rest_and_closes(self, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
        pool = Direct(held, Factory([]))
        futures = [pool.submit(square, 2) for _ in range(3)]

        def interrupted(self: object, timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

        monkeypatch.setattr(CallFuture, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.shutdown()
        assert all(future.cancelled() for future in futures)
        assert held.closed == 1

    def test_the_end_of_the_program_waits_for_an_executor_that_went_out_of_scope(self, held: Held) -> None:
        """A function made it, submitted, and returned. No other work finds it any more: a program that has one besides has one open."""

        def submits() -> None:
            Direct(held, Factory([])).submit(square, 2)

        submits()
        gc.collect()
        assert executors.open_pools() == []
        timer = threading.Timer(0.01, held.end, [0])
        timer.start()
        executors._at_exit()
        assert held.closed == 1
        assert held.futures[0].result() == 4
        timer.join()

    @pytest.mark.parametrize("prompt", [True, False])
    def test_the_end_of_a_session_has_nothing_to_do_with_a_ctrl_c_that_some_cell_had(
        self, held: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, prompt: bool
    ) -> None:
        """Where there is no prompt, the program has ended by it."""
        monkeypatch.setattr("windlass.manager.executor._TELL_AFTER", 0.01)
        monkeypatch.setattr(sys, "last_type", KeyboardInterrupt, raising=False)
        monkeypatch.delattr(sys, "ps1", raising=False)
        if prompt:
            monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
        pool = Direct(held, Factory([]))
        future = pool.submit(square, 2)

        class Ends(logging.Handler):
            """Once it is told what is waited for, it ends."""

            def emit(self, record: logging.LogRecord) -> None:
                held.end(0)

        logger, ends = logging.getLogger("windlass.manager"), Ends()
        logger.addHandler(ends)
        try:
            executors._at_exit()
        finally:
            logger.removeHandler(ends)
        assert future.cancelled() is not prompt
        assert held.closed == 1
        told = "the program ends without the shutdown of an Executor, which waits for 1 call that has not ended: Ctrl-C cancels it"
        assert [record.getMessage() for record in caplog.records] == [told] * prompt

    def test_an_executor_that_somebody_has_only_a_view_of_is_open(self, held: Held) -> None:
        view = Executor(None, manager=held).with_options(retries=2)
        gc.collect()
        assert executors.open_pools() == [view._pool]

    def test_executors_that_were_dropped_beside_a_manager_are_held_while_their_calls_run(
        self, held: Held, open_pools: set[executors.Pool]
    ) -> None:
        """A service may make one for each request."""
        for number in range(100):
            Executor(None, manager=held).submit(square, number)
        assert len(open_pools) == 100
        for number in range(100):
            held.end(number)
        for _ in range(200):
            Executor(None, manager=held)
        assert len(open_pools) < 20

    def test_bookkeeping_of_a_million_calls_stays_small(self, held: Held) -> None:
        """One call that lasts does not make the pool remember all that ended after it."""
        pool = Executor(None, manager=held)
        first = pool.submit(square, 1)
        for number in range(1, 5000):
            pool.submit(square, 1)
            held.end(number)
        assert len(pool._pool._calls) <= 1025
        held.end(0)
        pool.shutdown()
        assert first.done()


# ---------------------------------------------------------------- map


class TestMap:
    def test_it_is_like_map(self, pool: Executor) -> None:
        assert list(pool.map(pow, range(10), range(10))) == list(map(pow, range(10), range(10)))
        assert list(pool.map(pow, range(10), range(7))) == list(map(pow, range(10), range(7)))
        assert list(pool.map(square, [])) == []
        assert list(pool.map(square)) == []

    @pytest.mark.parametrize("chunksize", [1, 3, 40, 100])
    def test_chunks_give_the_same(self, pool: Executor, threads: Threads, chunksize: int) -> None:
        assert list(pool.map(operator.add, range(40), range(1, 41), chunksize=chunksize)) == [2 * x + 1 for x in range(40)]
        assert len(threads.submitted) == math.ceil(40 / chunksize)

    def test_a_chunked_function_travels_by_value_and_runs_elsewhere(self, tmp_path: Path) -> None:
        store = ObjectStore(tmp_path / "store", 1 << 30)
        first, second = (define(in_chunks(math.hypot), store.put) for _ in range(2))
        assert first.definition.id == second.definition.id  # two maps send it once
        assert first.definition.name == "hypot"
        assert pickle.loads(first.definition.blob)([(3, 4), (6, 8)]) == [5.0, 10.0]
        store.close()

    @pytest.mark.parametrize("count", [10, 1000])
    def test_results_come_in_order_whatever_ends_first(self, held: Held, count: int) -> None:
        held.room = count
        results = Executor(None, manager=held).map(square, range(count))
        for number in reversed(range(count)):
            held.end(number)
        assert list(results) == [x * x for x in range(count)]

    def test_unordered_results_come_as_they_end(self, held: Held) -> None:
        results = Executor(None, manager=held).map(square, range(4), ordered=False)
        got: list[int] = []
        for number in (2, 0, 3, 1):
            held.end(number)
            got.append(next(results))
        assert got == [4, 0, 9, 1]
        with pytest.raises(StopIteration):
            next(results)

    def test_unordered_results_of_many_calls_are_all_there(self, pool: Executor) -> None:
        assert sorted(pool.map(square, range(500), ordered=False)) == [x * x for x in range(500)]

    @pytest.mark.parametrize("ordered", [True, False])
    def test_several_threads_may_take_from_one(self, held: Held, ordered: bool) -> None:
        """Each result goes to one of them, as to threads that do something with it."""
        results, got, inside, most = Executor(None, manager=held).map(square, range(3), ordered=ordered), list[int](), 0, 0
        take = results._take

        def taking() -> int:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            try:
                return take()
            finally:
                inside -= 1

        results._take = taking  # type: ignore[method-assign]
        consumers = [threading.Thread(target=lambda: got.extend(results), daemon=True) for _ in range(3)]
        for consumer in consumers:
            consumer.start()
        until(lambda: inside)
        for number in range(3):
            held.end(number)
        for consumer in consumers:
            consumer.join(20)
        assert (sorted(got), most) == ([0, 1, 4], 1)

    def test_who_waits_for_a_result_when_another_thread_closes_hears_that_it_was_cancelled(self, held: Held) -> None:
        results = Executor(None, manager=held).map(square, range(5))
        with ThreadPoolExecutor(1) as consumers:
            waits = consumers.submit(next, results)
            until(lambda: held.futures[0]._watchers)
            results.close()
            with pytest.raises(concurrent.futures.CancelledError):
                waits.result(20)

    def test_an_endless_input_is_read_only_so_far_ahead(self, held: Held) -> None:
        read = itertools.count()
        results = Executor(None, manager=held).map(square, read)
        assert len(held.futures) == WINDOW_LEAST
        for number in range(100):
            if not held.futures[number].done():
                held.end(number)
            assert next(results) == number * number
        assert len(held.futures) <= 100 + WINDOW_MOST
        results.close()
        assert next(read) == len(held.futures)

    @pytest.mark.parametrize("ordered", [True, False])
    def test_buffersize_is_the_most_that_is_ahead(self, held: Held, ordered: bool) -> None:
        results = Executor(None, manager=held).map(square, itertools.count(), buffersize=5, ordered=ordered)
        assert len(held.futures) == 5
        for number in range(20):
            held.end(number)
            assert next(results) == number * number
            assert len(held.futures) <= number + 6
            assert results.ahead <= 5

    def test_the_window_is_as_wide_as_the_manager_is_hungry(self, held: Held) -> None:
        held.room = 500
        results = Executor(None, manager=held).map(square, itertools.count())
        assert len(held.futures) == 500
        held.room = 10**9
        for number in range(300):
            held.end(number)
            next(results)
        assert results.ahead <= WINDOW_MOST

    @pytest.mark.parametrize("ordered", [True, False])
    def test_a_slow_consumer_does_not_have_ever_more_results_computed(
        self, held: Held, ordered: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They would be held until it takes them: 16,384 of 50 kB were 800 MB."""
        monkeypatch.setattr(mapping, "TICK", 0.0)
        monkeypatch.setattr(mapping, "AHEAD_SECONDS", 0.0)
        held.room = 100
        results = Executor(None, manager=held).map(square, itertools.count(), ordered=ordered)
        for _ in range(30):
            for number, future in enumerate(held.futures):
                if not future.done():
                    held.end(number)
            next(results)
        assert len(held.futures) <= 300
        for _ in range(results.ahead):  # now it is quick, and the slots have work again
            next(results)
        assert sum(not future.done() for future in held.futures) >= 100

    @pytest.mark.parametrize("options", [{}, {"ordered": False}, {"buffersize": 1000}], ids=["ordered", "as they come", "buffersize"])
    def test_the_first_result_does_not_wait_for_inputs_that_are_slow_to_come(
        self, held: Held, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of a generator that reads files, say: it is there as soon as it has ended, not when all slots have work."""
        monkeypatch.setattr(mapping, "FILL_SECONDS", 0.0)
        held.room = 1000

        def files() -> Iterator[int]:
            for number in itertools.count():
                yield number
                held.end(number)

        results = Executor(None, manager=held).map(square, files(), **options)
        assert len(held.futures) == 2
        for taken in range(1, 20):
            next(results)
            assert len(held.futures) <= 2 + 2 * taken

    def test_results_behind_one_that_takes_long_leave_no_slot_idle(self, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mapping, "TICK", 0.0)
        held.room = 100
        results = Executor(None, manager=held).map(square, itertools.count())
        held.end(0)
        for number in range(2, 100):
            held.end(number)
        next(results)  # the second is still to come
        results._fill()  # pyright: ignore[reportPrivateUsage]
        assert sum(not future.done() for future in held.futures) >= 100

    def test_while_the_consumer_waits_new_slots_get_calls(self, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pilots come while the first result is awaited; they must not stay idle until it is there."""
        monkeypatch.setattr(mapping, "TICK", 0.01)
        results = Executor(None, manager=held).map(square, itertools.count())
        got: list[int] = []
        consumer = threading.Thread(target=lambda: got.append(next(results)))
        consumer.start()
        held.room = 100
        until(lambda: len(held.futures) >= WINDOW_LEAST + 100)
        held.room = 0
        held.end(0)
        consumer.join(20)
        assert got == [0]

    def test_it_begins_before_anybody_asks_for_a_result(self, held: Held) -> None:
        results = Executor(None, manager=held).map(square, range(10))
        assert len(held.futures) == 10
        for number in range(10):
            held.end(number)
        assert len(list(results)) == 10

    def test_results_that_were_taken_are_not_kept(self, pool: Executor) -> None:
        for thing in pool.map(make_thing, range(10)):
            gone = weakref.ref(thing)
            del thing
            assert gone() is None

    @pytest.mark.parametrize("ordered", [True, False])
    def test_the_first_error_is_raised_and_the_rest_cancelled(self, held: Held, ordered: bool) -> None:
        results = Executor(None, manager=held).map(square, range(5), ordered=ordered)
        held.end(0)
        assert next(results) == 0
        held.futures[1].finish(CallDone(CallEnd(CallId(1), 1, RETURNED)))
        held.values = []  # resolving fails
        with pytest.raises(IndexError):
            next(results)
        assert [future.cancelled() for future in held.futures] == [False, False, True, True, True]
        with pytest.raises(StopIteration):
            next(results)

    def test_an_error_in_the_middle_comes_at_its_place(self, pool: Executor) -> None:
        results = pool.map(fail_at, range(10), itertools.repeat(3))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ZeroDivisionError) as raised:
            next(results)
        assert raised.value.__notes__ == ["in map(): input 3 (the first is 0)"]

    @pytest.mark.parametrize(
        ("ways", "which"),
        [({"ordered": False}, "input 13"), ({"chunksize": 4}, "one of 4 inputs from 12"), ({"buffersize": 2}, "input 13")],
    )
    def test_an_error_says_which_input_it_was(self, pool: Executor, ways: dict[str, Any], which: str) -> None:
        with pytest.raises(ZeroDivisionError) as raised:
            list(pool.map(fail_at, range(20), itertools.repeat(13), **ways))
        assert raised.value.__notes__ == [f"in map(): {which} (the first is 0)"]

    @pytest.mark.parametrize("ways", [{}, {"chunksize": 2}, {"ordered": False}])
    def test_a_call_that_raises_stopiteration_is_no_regular_end(self, pool: Executor, ways: dict[str, Any]) -> None:
        """As a generator's iterator does it: a loop would take it for the end, and its user would miss results without a word."""
        results = pool.map(first_below, [1, 2, 3, 4], **ways)
        with pytest.raises(RuntimeError, match="raised StopIteration") as raised:
            list(results)
        assert isinstance(raised.value.__cause__, StopIteration)
        assert list(results) == []

    def test_an_error_of_the_inputs_cancels_what_was_submitted(self, held: Held) -> None:
        def inputs() -> Iterator[int]:
            yield from range(3)
            raise OSError("no more")

        with pytest.raises(OSError, match="no more"):
            Executor(None, manager=held).map(square, inputs())
        assert held.cancelled == [0, 1, 2]

    @pytest.mark.parametrize("ordered", [True, False])
    def test_closing_it_cancels_the_rest(self, held: Held, ordered: bool) -> None:
        results = Executor(None, manager=held).map(square, range(5), ordered=ordered)
        held.end(0)
        next(results)
        results.close()
        results.close()
        assert sorted(held.cancelled) == [1, 2, 3, 4]
        assert list(results) == []

    def test_dropping_it_half_way_cancels_the_rest(self, held: Held) -> None:
        results = Executor(None, manager=held).map(square, range(5))
        held.end(0)
        next(results)
        del results
        gc.collect()
        until(lambda: held.cancelled == [1, 2, 3, 4])  # on another thread

    def test_dropping_it_unread_lets_the_calls_run(self, held: Held) -> None:
        """As in concurrent.futures: some programs map for the effect."""
        Executor(None, manager=held).map(square, range(5))
        gc.collect()
        assert held.cancelled == []

    def test_dropping_it_unread_with_inputs_left_says_so(self, held: Held) -> None:
        results = Executor(None, manager=held).map(square, itertools.count())
        with pytest.warns(RuntimeWarning, match=r"never taken, so only its first 32 calls were submitted; write list\(pool.map"):
            results.__del__()
        results.close()

    @pytest.mark.parametrize(("chunksize", "buffersize"), [(1, None), (3, 4)])
    def test_dropping_it_unread_with_as_many_inputs_as_it_is_ahead_says_nothing(
        self, held: Held, recwarn: pytest.WarningsRecorder, chunksize: int, buffersize: int | None
    ) -> None:
        """All its calls have been submitted, although nobody has asked the inputs whether there are more."""
        number = 32 if buffersize is None else chunksize * buffersize
        results = Executor(None, manager=held).map(square, range(number), chunksize=chunksize, buffersize=buffersize)
        results.__del__()
        assert [str(warning.message) for warning in recwarn] == []
        results.close()

    @pytest.mark.parametrize("ordered", [True, False])
    def test_a_timeout_counts_from_the_beginning(self, held: Held, ordered: bool) -> None:
        results = Executor(None, manager=held).map(square, range(3), timeout=0.02, ordered=ordered)
        held.end(0)
        assert next(results) == 0
        with pytest.raises(
            TimeoutError, match=r"map\(\) has not given its last result within timeout=0.02 seconds; what was left is cancelled"
        ):
            next(results)
        assert sorted(held.cancelled) == [1, 2]

    def test_a_function_s_own_timeout_error_is_an_error_like_any_other(self, pool: Executor) -> None:
        with pytest.raises(TimeoutError, match="mine"):
            list(pool.map(raise_timeout, range(3), timeout=20))

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"chunksize": 0}, "chunksize=0 makes no calls"),
            ({"chunksize": -1}, "chunksize=-1 is negative"),
            ({"chunksize": 1.5}, "chunksize=1.5 is a float; chunksize is a whole number"),
            ({"buffersize": 0}, "buffersize=0 makes no calls"),
        ],
    )
    def test_sizes_that_cannot_be_are_refused(self, pool: Executor, options: dict[str, Any], text: str) -> None:
        with pytest.raises(ValueError, match=text):
            pool.map(square, range(3), **options)

    def test_a_bar_is_shown_on_request(self, pool: Executor, capsys: pytest.CaptureFixture[str]) -> None:
        assert list(pool.map(square, range(4), progress="squares", chunksize=2)) == [0, 1, 4, 9]
        shown = capsys.readouterr()
        assert "squares" in shown.err
        assert "4/4" in shown.err
        assert shown.out == ""
        list(pool.map(square, range(4)))
        assert capsys.readouterr().err == ""

    def test_it_is_an_iterator(self, pool: Executor) -> None:
        results = pool.map(square, range(3))
        assert isinstance(results, MapResults)
        assert iter(results) is results
        assert list(zip(results, "ab", strict=False)) == [(0, "a"), (1, "b")]
        results.close()


class Thing:
    pass


def make_thing(_: int) -> Thing:
    return Thing()


def raise_timeout(_: int) -> None:
    raise TimeoutError("mine")


# ---------------------------------------------------------------- in an event loop


class TestAsync:
    def test_its_block_leaves_the_loop_free_while_it_waits_for_calls(self, held: Held) -> None:
        """Which may wait for what a task of the loop does."""

        async def main() -> tuple[list[int], int]:
            async with Direct(held, Factory([])) as pool:
                futures = [pool.submit(square, number) for number in range(2)]
                asyncio.get_running_loop().call_soon(held.end, 1)
                asyncio.get_running_loop().call_later(0.01, held.end, 0)
            return [future.result(0) for future in futures], held.closed

        assert asyncio.run(main()) == ([0, 1], 1)

    def test_an_error_in_its_block_waits_for_calls_and_a_cancelled_task_cancels_them(self, held: Held) -> None:
        async def leaves(error: type[BaseException]) -> None:
            async with Direct(held, Factory([])) as pool:
                pool.submit(square, 2)
                raise error

        async def main() -> None:
            asyncio.get_running_loop().call_later(0.01, held.end, 0)
            with pytest.raises(ZeroDivisionError):
                await leaves(ZeroDivisionError)
            with pytest.raises(asyncio.CancelledError):
                await leaves(asyncio.CancelledError)

        asyncio.run(main())
        assert [future.cancelled() for future in held.futures] == [False, True]
        assert held.closed == 2

    def test_a_task_that_is_cancelled_as_it_leaves_cancels_the_calls_and_closes(self, held: Held) -> None:
        """As Ctrl-C in that wait does: of an asyncio program it cancels the main task."""

        async def leaves(pool: Executor) -> None:
            async with pool:
                pool.submit(square, 2)

        async def main() -> None:
            task = asyncio.create_task(leaves(Direct(held, Factory([]))))
            while not held.futures or not any(thread.name == "windlass-leaving" for thread in threading.enumerate()):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert held.futures[0].cancelled()
        assert held.closed == 1

    def leaving_without_its_loop(self, held: Held) -> asyncio.Task[None]:
        """A task that leaves, whose loop does not go on: a Ctrl-C has ended it."""

        async def leaves() -> None:
            async with Direct(held, Factory([])) as pool:
                pool.submit(square, 2)

        async def main() -> asyncio.Task[None]:
            task = asyncio.create_task(leaves())
            while not leaving._running:
                await asyncio.sleep(0)
            return task

        return asyncio.new_event_loop().run_until_complete(main())

    def test_ctrl_c_that_ends_the_loop_and_no_task_cancels_the_calls_of_what_is_being_left(
        self, held: Held, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = self.leaving_without_its_loop(held)
        monkeypatch.setattr(sys, "last_type", KeyboardInterrupt, raising=False)
        [thread] = leaving._running
        assert thread.daemon, "the interpreter would wait for it, without a word, before it asks us"
        leaving._at_exit()
        assert held.futures[0].cancelled()
        assert held.closed == 1
        task.get_loop().run_until_complete(task)
        task.get_loop().close()

    def test_the_end_of_the_program_waits_for_what_is_being_left_and_says_so(
        self, held: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        task = self.leaving_without_its_loop(held)
        monkeypatch.setattr(leaving, "TELL_AFTER", 0.0)
        monkeypatch.setattr(sys, "last_type", None, raising=False)
        warning = leaving.log.warning

        def told(text: str) -> None:
            warning(text)
            held.end(0)

        monkeypatch.setattr(leaving.log, "warning", told)
        leaving._at_exit()
        assert "Ctrl-C cancels what has not ended" in caplog.text
        assert held.futures[0].result(0) == 4
        assert held.closed == 1
        task.get_loop().run_until_complete(task)
        task.get_loop().close()

    def test_it_is_left_where_no_thread_can_be_had(self, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
        """A login node allows few."""

        async def main() -> None:
            async with Direct(held, Factory([])) as pool:
                pool.submit(square, 2)
                held.end(0)
                monkeypatch.setattr(threading.Thread, "start", none_more)

        def none_more(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        asyncio.run(main())
        assert held.closed == 1

    @pytest.mark.parametrize("options", [{}, {"ordered": False}, {"buffersize": 1}, {"chunksize": 7}])
    def test_results_of_map_come_to_tasks(self, pool: Executor, options: dict[str, Any]) -> None:
        async def main() -> list[int]:
            return [result async for result in pool.map(square, range(100), **options)]

        assert sorted(asyncio.run(main())) == [number * number for number in range(100)]

    @pytest.mark.parametrize("ordered", [True, False])
    def test_other_tasks_run_while_one_waits_for_results(self, held: Held, ordered: bool) -> None:
        """Those that are there already are given in turns."""

        async def main() -> list[int]:
            loop, results = asyncio.get_running_loop(), Executor(None, manager=held).map(square, range(3), ordered=ordered)
            given: list[int] = []
            loop.call_later(0.01, held.end, 0)
            async for result in results:
                given.append(result)
                if len(given) < 3:
                    loop.call_soon(held.end, len(given))
            return given

        assert asyncio.run(main()) == [0, 1, 4]

    def test_a_task_that_takes_many_results_lets_others_have_their_turn(self, pool: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mapping, "TURN_SECONDS", 0.0)
        turns: list[int] = []

        async def main() -> None:
            results = pool.map(square, range(20), buffersize=20)
            until(lambda: results._progress.ahead() == 20)  # all are there, so nothing has to be waited for
            number = 0
            async for _ in results:
                asyncio.get_running_loop().call_soon(turns.append, number)
                number += 1

        asyncio.run(main())
        assert len(turns) >= 19

    @pytest.mark.parametrize("ordered", [True, False])
    def test_what_ends_it_in_a_task_cancels_the_rest(self, held: Held, ordered: bool) -> None:
        """An error, the time, the task's own end, and leaving the loop half-way."""

        async def takes(results: MapResults[int]) -> None:
            async for _ in results:
                pass

        async def leaves(results: MapResults[int]) -> None:
            async for _ in results:
                break

        async def main() -> None:
            pool = Executor(None, manager=held)
            with pytest.raises(TimeoutError, match=r"within timeout=0\.01 seconds"):
                await takes(pool.map(square, range(2), timeout=0.01, ordered=ordered))
            task = asyncio.create_task(takes(pool.map(square, range(2), ordered=ordered)))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            half = pool.map(square, range(2), ordered=ordered)
            held.end(4)
            await leaves(half)
            del half
            gc.collect()

        asyncio.run(main())
        until(held.futures[5].cancelled)  # by another thread, as it was dropped
        assert [future.cancelled() for future in held.futures] == [True] * 4 + [False, True]

    @pytest.mark.parametrize("ordered", [True, False])
    def test_several_tasks_may_take_from_one(self, held: Held, monkeypatch: pytest.MonkeyPatch, ordered: bool) -> None:
        """Each result goes to one of them; the loop goes on where another has taken what was there; and all of them end."""
        monkeypatch.setattr(mapping, "TURN_SECONDS", 0.0)  # after each result others have their turn

        async def main() -> list[int]:
            loop, got = asyncio.get_running_loop(), list[int]()
            results = Executor(None, manager=held).map(square, range(3), ordered=ordered)
            take = results._take

            def taking() -> int:
                assert results._values or results._head() or not results.ahead, "it would wait in the loop's thread"
                return take()

            monkeypatch.setattr(results, "_take", taking)

            async def takes() -> None:
                async for result in results:
                    got.append(result)
                    if len(got) < 3:
                        loop.call_later(0.01, held.end, len(got))

            held.end(0)
            async with asyncio.timeout(20):
                await asyncio.gather(*(takes() for _ in range(3)))
            return got

        assert asyncio.run(main()) == [0, 1, 4]

    def test_a_call_that_raises_the_end_of_an_async_iteration_does_not_end_the_results(self, pool: Executor) -> None:
        def ends(number: int) -> int:
            if number == 2:
                raise StopAsyncIteration
            return number

        async def main() -> None:
            async for _ in pool.map(ends, range(6)):
                pass

        with pytest.raises(RuntimeError, match=r"^a call of map\(\) raised StopAsyncIteration; in map\(\): input 2 "):
            asyncio.run(main())

    def test_an_error_of_a_call_comes_to_the_task_with_its_input(self, pool: Executor) -> None:
        async def main() -> None:
            async for _ in pool.map(fail_at, range(9), [3] * 9):
                pass

        with pytest.raises(ZeroDivisionError) as caught:
            asyncio.run(main())
        assert caught.value.__notes__ == ["in map(): input 3 (the first is 0)"]


# ---------------------------------------------------------------- the real thing


@pytest.mark.usefixtures("nothing_left_running")
def test_it_runs_functions_on_a_real_pilot() -> None:
    """A manager, a factory, a worker and its slots: one of each kind of call."""
    here = os.getpid()

    def elsewhere(x: int, *, plus: int) -> tuple[int, bool]:
        print("out", x)
        return x + plus, os.getpid() != here

    def up(x: int) -> int:
        return x + here - here + 1

    async def awaited(pool: Executor) -> list[int]:
        return await asyncio.gather(*[pool.submit(square, number) for number in range(5)])

    async def taken(pool: Executor) -> int:
        return sum([len(result) async for result in pool.map(bytes, [300_000] * 5)])

    with Executor("local", cores=2) as pool:
        future = pool.submit(elsewhere, 3, plus=4)
        assert future.result(60) == (7, True)
        assert future.stdout == "out 3\n"
        with pytest.raises(ZeroDivisionError, match="3"):
            pool.with_options(retries=1, retry_on=OSError).submit(fail_at, 3, 3).result(60)
        assert list(pool.map(square, range(200), chunksize=7)) == [x * x for x in range(200)]
        assert sorted(pool.map(up, range(50), ordered=False)) == list(range(1, 51))
        assert list(itertools.islice(pool.map(square, itertools.count()), 5)) == [0, 1, 4, 9, 16]
        assert asyncio.run(awaited(pool)) == [0, 1, 4, 9, 16]
        assert asyncio.run(taken(pool)) == 5 * 300_000
        last = pool.submit(square, 9)
    assert last.result(0) == 81
