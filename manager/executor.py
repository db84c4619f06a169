"""One object for people who know `concurrent.futures`: a manager, a factory, and a library that fills itself.

Theory of operation
-------------------
`Executor` owns a `Manager` and a `Factory` and passes functions to the manager's implicit library (`Manager.submit_function`).
`submit`, `map` and `shutdown` mean what they mean in `concurrent.futures`; `with_options` gives a view of the same pool whose calls
have options.

`map` is lazy: it keeps a *window* of calls ahead of the consumer, and takes from its inputs only to fill the window, so that inputs
may be endless and memory stays flat. The window holds what the manager could use now (`Manager.hungry`) and `AHEAD_SECONDS` of work
at the pace at which results have been taken, within `WINDOW_LEAST` and `WINDOW_MOST`; ``buffersize=`` fixes it. It is looked at
again whenever half of it is used up and, while the consumer waits, a few times a second, because pilots come and go.

`shutdown` has to wait for calls that it does not keep alive: it holds weak references, swept as their number doubles.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from concurrent import futures
from types import TracebackType
from typing import Any, Final, Generic, ParamSpec, Protocol, TypeVar, Unpack, cast

from windlass.errors import Closed, UsageError
from windlass.manager.call import DEFAULT_OPTIONS, CallKeywords, merge_options
from windlass.manager.future import CallFuture
from windlass.manager.progress import TICK, Progress
from windlass.messages import CallOptions

P = ParamSpec("P")
R = TypeVar("R")

#: Calls that `map` keeps ahead at least: enough to start on before the first pilot is there.
WINDOW_LEAST: Final = 32
#: And at most, finished ones that wait for their turn included.
WINDOW_MOST: Final = 16_384
#: Seconds of work, at the measured pace, to keep ahead.
AHEAD_SECONDS: Final = 0.5


class CallManager(Protocol):
    """What an executor needs of a `Manager`."""

    def submit_function(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CallOptions | None = None,
        tag: str | None = None,
    ) -> CallFuture[Any]: ...
    def hungry(self) -> int: ...
    def close(self) -> None: ...


class Pool:
    """The pool behind an executor and its views: the manager, what else to close, and the calls that have not ended."""

    def __init__(self, manager: CallManager, closing: contextlib.ExitStack) -> None:
        self.manager = manager
        self.closed = False
        self._closing = closing
        self._lock = threading.Lock()
        self._calls: deque[weakref.ref[CallFuture[Any]]] = deque()
        self._sweep_at = 1024

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions, tag: str | None
    ) -> CallFuture[Any]:
        """A call of ``fn``. Raises Closed after `shutdown`, and what the manager raises."""
        if self.closed:
            raise Closed("cannot submit a call after shutdown of its Executor; submit inside the with block, or make another Executor")
        future = self.manager.submit_function(fn, args, kwargs, options, tag)
        self._calls.append(weakref.ref(future))
        if len(self._calls) > self._sweep_at:
            self._sweep()
        return future

    def _sweep(self) -> None:
        """Forget calls that have ended."""
        with self._lock:
            calls = self._calls
            for _ in range(len(calls)):
                reference = calls.popleft()
                future = reference()
                if future is not None and not future.done():
                    calls.append(reference)
            self._sweep_at = max(1024, 2 * len(calls))

    def cancel(self) -> None:
        """Cancel all calls that have not ended."""
        for reference in list(self._calls):
            future = reference()
            if future is not None:
                future.cancel()

    def finish(self) -> None:
        """Wait for all calls, then close. When the wait is interrupted, cancel what is left and close."""
        try:
            while self._calls:
                future = self._calls.popleft()()
                if future is not None:
                    future.wait()
        except BaseException:
            self.cancel()
            raise
        finally:
            self._closing.close()


class Submitter(futures.Executor):
    """Submits calls to a pool, all with the same options."""

    def __init__(self, pool: Pool, options: CallOptions = DEFAULT_OPTIONS, tag: str | None = None) -> None:
        self._pool = pool
        self._options = options
        self._tag = tag

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> CallFuture[R]:
        """Call ``fn(*args, **kwargs)`` on a pilot. Options are given by `with_options`: all keywords are the function's.

        Raises `NotPicklable` for what cannot travel, `Closed` after `shutdown`.
        """
        return self._pool.submit(fn, args, kwargs, self._options, self._tag)

    def with_options(self, **options: Unpack[CallKeywords]) -> View:
        """The same pool, for calls with these options besides those there are; UsageError for what cannot be."""
        return View(self._pool, *merge_options(self._options, self._tag, options))

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        ordered: bool = True,
        progress: bool | str | None = None,
        buffersize: int | None = None,
    ) -> MapResults[R]:
        """The results of ``fn`` for each of the inputs, which are read lazily.

        ``timeout``: seconds from now until the last result, else TimeoutError. ``chunksize``: inputs per call, for functions of microseconds.
        ``ordered=False``: results as they come. ``progress``: True or a title shows a bar, False never; by default one appears in a
        terminal when work is long. ``buffersize``: calls ahead of the consumer; by default as many as keep all slots busy.

        The first error ends it, and cancels what has not ended; so does ``close()`` on the results, and dropping them half-way.
        """
        if isinstance(chunksize, bool) or not isinstance(chunksize, int) or chunksize < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"chunksize={chunksize!r}; it is a whole number of inputs per call: write chunksize=1 or more")
        if buffersize is not None and (isinstance(buffersize, bool) or not isinstance(buffersize, int) or buffersize < 1):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"buffersize={buffersize!r}; it is a whole number of calls ahead: write buffersize=100, or leave it out")
        total = min((len(each) if isinstance(each, Sized) else WINDOW_MOST**9 for each in iterables), default=0)
        title = progress if isinstance(progress, str) else getattr(fn, "__name__", "map")
        bar = Progress(total if total < WINDOW_MOST**9 else None, title, show=True if isinstance(progress, str) else progress)
        inputs: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)
        if chunksize == 1:

            def submit(args: tuple[Any, ...]) -> CallFuture[Any]:
                return self._pool.submit(fn, args, {}, self._options, self._tag)

            return MapResults(submit, inputs, self._pool.manager.hungry, bar, timeout, ordered, buffersize, chunked=False)
        whole = in_chunks(fn)

        def submit_chunk(chunk: tuple[Any, ...]) -> CallFuture[Any]:
            return self._pool.submit(whole, (chunk,), {}, self._options, self._tag)

        chunks = iter(lambda: tuple(itertools.islice(inputs, chunksize)), ())
        return MapResults(submit_chunk, chunks, self._pool.manager.hungry, bar, timeout, ordered, buffersize, chunked=True)


class View(Submitter):
    """An executor's pool with options for its calls. `shutdown` of a view does nothing: the pool is the `Executor`'s."""


class Executor(Submitter):
    """Runs functions on pilots: a `concurrent.futures.Executor`."""

    def __init__(
        self,
        backend: str | None = "local",
        *,
        max_pilots: int | None = None,
        manager: CallManager | None = None,
        manager_options: Mapping[str, Any] | None = None,
        **pool: Any,
    ) -> None:
        """Pilots come from ``backend``: ``"slurm"``, ``"htcondor"``, ``"local"``, ``"fake"``; further keywords are options of `Factory`.

        ``manager``: one that you have, which stays open after `shutdown`; otherwise one is made with ``manager_options``. ``backend=None``
        starts no factory. Raises UsageError for options that the factory does not know.
        """
        with contextlib.ExitStack() as opening:
            if manager is None:
                manager = self._make_manager(dict(manager_options or {}))
                opening.callback(manager.close)
            elif manager_options:
                raise UsageError(
                    "manager= is a manager that is there already, so manager_options= would change nothing; leave one of them out"
                )
            self.factory: Any = None
            if backend is not None:
                if max_pilots is not None:
                    pool["max_pilots"] = max_pilots
                self.factory = opening.enter_context(self._make_factory(manager, backend, pool))
            elif pool or max_pilots is not None:
                raise UsageError(
                    "backend=None starts no pilots, so options of a pool would change nothing; leave them out, or name a backend"
                )
            super().__init__(Pool(manager, opening.pop_all()))
        self.manager = manager

    def _make_manager(self, options: dict[str, Any]) -> CallManager:
        from windlass.manager.manager import Manager

        return cast("CallManager", Manager(**options))

    def _make_factory(self, manager: CallManager, backend: str, options: dict[str, Any]) -> contextlib.AbstractContextManager[Any]:
        from windlass.factory.factory import Factory

        return cast("contextlib.AbstractContextManager[Any]", Factory(cast("Any", manager), backend, **options))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls; when those there are have ended, send the pilots away and close the manager.

        ``wait=False`` returns at once and does that in a thread, for which the program's end waits. ``cancel_futures`` cancels all calls that have not
        ended, running ones too.
        """
        pool = self._pool
        first, pool.closed = not pool.closed, True
        if cancel_futures:
            pool.cancel()
        if wait:
            pool.finish()
        elif first:
            threading.Thread(target=pool.finish, name="windlass-shutdown", daemon=False).start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # As in concurrent.futures, an error in the block waits for calls; but whoever presses Ctrl-C wants to leave now.
        leaving = kind is not None and not issubclass(kind, Exception) and not issubclass(kind, GeneratorExit)
        self.shutdown(wait=True, cancel_futures=leaving)


def in_chunks(fn: Callable[..., R]) -> Callable[[Iterable[tuple[Any, ...]]], list[R]]:
    """A function of many inputs; a closure, so that it is found and sent with ``fn``'s imports, once."""

    def run_chunk(chunk: Iterable[tuple[Any, ...]]) -> list[R]:
        return [fn(*args) for args in chunk]

    run_chunk.__name__ = run_chunk.__qualname__ = getattr(fn, "__name__", "function")
    return run_chunk


class _Ended:
    """Collects futures as they end."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[CallFuture[Any]] = queue.SimpleQueue()

    def add_result(self, future: CallFuture[Any]) -> None:
        self.queue.put(future)

    add_exception = add_cancelled = add_result


class MapResults(Iterator[R], Generic[R]):
    """The results of a `map`, in order or as they come; `close` cancels what has not ended."""

    def __init__(
        self,
        submit: Callable[[tuple[Any, ...]], CallFuture[Any]],
        inputs: Iterator[tuple[Any, ...]],
        hungry: Callable[[], int],
        progress: Progress,
        timeout: float | None,
        ordered: bool,
        buffersize: int | None,
        *,
        chunked: bool,
    ) -> None:
        self._submit = submit
        self._inputs = inputs
        self._hungry = hungry
        self._progress = progress
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._fixed = buffersize
        self._chunked = chunked
        #: Calls ahead: in order, or those that have not been taken.
        self._row: deque[CallFuture[Any]] = deque()
        self._loose: set[CallFuture[Any]] = set()
        self._ended = None if ordered else _Ended()
        self._values: deque[R] = deque()
        self._exhausted = False
        self._started = False
        #: Taken since the window was last filled, and when that was.
        self._taken = 0
        self._filled_at = time.monotonic()
        self._window = 0
        try:
            self._fill()
        except BaseException:
            self.close()
            raise

    @property
    def ahead(self) -> int:
        """Calls that are submitted and not yet taken."""
        return len(self._row) or len(self._loose)

    def _fill(self) -> None:
        """Submit what is missing in the window."""
        if self._exhausted:
            return
        ahead = self.ahead
        if self._fixed is not None:
            window = self._fixed
        else:
            now = time.monotonic()
            if ahead * 2 > self._window and now - self._filled_at < TICK:
                return
            pace = self._taken / max(now - self._filled_at, 1e-3)
            window = max(WINDOW_LEAST, min(WINDOW_MOST, max(ahead + self._hungry(), int(pace * AHEAD_SECONDS))))
            self._taken, self._filled_at, self._window = 0, now, window
        for _ in range(window - ahead):
            try:
                args = next(self._inputs)
            except StopIteration:
                self._exhausted = True
                return
            future = self._submit(args)
            if self._ended is None:
                self._row.append(future)
            else:
                self._loose.add(future)
                future.watch(self._ended)

    def _next_ended(self) -> CallFuture[Any]:
        """The next future whose turn it is, ended. TimeoutError."""
        while True:
            patience = self._patience()
            if self._ended is None:
                if self._row[0].wait(patience):
                    return self._row.popleft()
            else:
                try:
                    future = self._ended.queue.get(timeout=patience)
                except queue.Empty:
                    pass
                else:
                    self._loose.discard(future)
                    return future
            self._progress.tick()
            if self._deadline is not None and time.monotonic() >= self._deadline:
                raise TimeoutError(
                    f"map() has not given its last result within timeout={self._timeout} seconds; what was left is cancelled"
                )
            self._fill()

    def _patience(self) -> float | None:
        """Seconds to wait before looking around: for the bar, for more slots, for the deadline."""
        patience = TICK if self._progress.watching or not (self._exhausted or self._fixed) else None
        if self._deadline is None:
            return patience
        left = max(0.0, self._deadline - time.monotonic())
        return left if patience is None else min(left, patience)

    def __iter__(self) -> MapResults[R]:
        return self

    def __next__(self) -> R:
        self._started = True
        if self._values:
            return self._give(self._values.popleft())
        try:
            while True:
                self._fill()
                if not self.ahead:
                    self.close()
                    raise StopIteration
                # No name for the future: what has been given must not be kept alive from here.
                value = self._next_ended().result()
                self._taken += 1
                if not self._chunked:
                    return self._give(value)
                self._values.extend(value)
                if self._values:
                    del value
                    return self._give(self._values.popleft())
        except StopIteration:
            raise
        except BaseException:
            self.close()
            raise

    def _give(self, value: R) -> R:
        self._progress.advance()
        return value

    def close(self) -> None:
        """Cancel what has not ended and take no more inputs. May be called again."""
        self._exhausted = True
        self._started = True
        row, self._row = self._row, deque()
        loose, self._loose = self._loose, set()
        for future in (*row, *loose):
            future.cancel()
        self._values.clear()
        self._progress.close()

    def __del__(self) -> None:
        if not hasattr(self, "_window"):
            return  # never came to be
        if self._started:
            self.close()
        elif not self._exhausted:
            # As in concurrent.futures, calls of a map that nobody looks at run; but the rest of the inputs was never read.
            warnings.warn(
                f"the results of a map() were never taken, so only its first {self.ahead} calls were submitted; write list(pool.map(...))",
                RuntimeWarning,
                stacklevel=2,
                source=self,
            )
