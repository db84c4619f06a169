"""Results of a `map` over inputs that may be endless.

Theory of operation
-------------------
`MapResults` keeps a *window* of calls ahead of the consumer, and takes from its inputs only to fill the window, so that inputs may
be endless and memory stays flat. The window holds what the manager could use now (`Manager.hungry`) and `AHEAD_SECONDS` of work at
the pace at which results have been taken, within `WINDOW_LEAST` and `WINDOW_MOST`; ``buffersize=`` fixes it. It is looked at again
whenever half of it is used up and, while the consumer waits, a few times a second, because pilots come and go. What has ended is not
what the manager could use, so where the consumer is the slow one all would be computed long before it is taken, and be held meanwhile:
no more is submitted for the slots' sake while as much has ended as they are to have. That lasts a slow consumer for longer than the next
take to run. (Where the next result in order is still to come the others that have ended say nothing of the consumer.)

Several threads, or several tasks, may take from one: each result goes to one of them. A task must not wait in `__next__`, where its loop
would wait too: it looks again after each ``await``, as another may have taken what was there.

The first error ends it. What has not ended is cancelled when it ends early: by an error, by `MapResults.close`, or when it is
dropped half-way. One that nobody has looked at is left alone, since programs map for the effect too.
"""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Final, Generic, TypeVar, cast

from windlass.coroutines import is_async
from windlass.errors import UsageError
from windlass.mailbox import Mailbox
from windlass.manager.callbacks import hand_over
from windlass.manager.future import CallFuture
from windlass.manager.progress import TICK, Progress
from windlass.manager.reading import READERS
from windlass.manager.watchers import Watched, Watcher, told_by

R = TypeVar("R")

#: Calls that `map` keeps ahead at least: enough to start on before the first pilot is there.
WINDOW_LEAST: Final = 32
#: And at most, finished ones that wait for their turn included.
WINDOW_MOST: Final = 16_384
#: Seconds of work, at the measured pace, to keep ahead.
AHEAD_SECONDS: Final = 0.5
#: Seconds for which inputs are taken while the next result is there already: they may be slow to come, and endless.
FILL_SECONDS: Final = 0.01
#: Seconds for which ``async for`` gives what is there before the loop's other tasks have their turn.
TURN_SECONDS: Final = 0.01


def in_chunks(fn: Callable[..., R]) -> Callable[[Iterable[tuple[Any, ...]]], list[R]]:
    """A function of many inputs; a closure, so that it is found and sent with ``fn``'s imports, once."""

    def run_chunk(chunk: Iterable[tuple[Any, ...]]) -> list[R]:
        return [fn(*args) for args in chunk]

    if is_async(fn):
        run_chunk = cast("Any", _in_chunks_at_once(cast("Any", fn)))
    run_chunk.__name__ = run_chunk.__qualname__ = getattr(fn, "__name__", "function")
    return run_chunk


def _in_chunks_at_once(fn: Callable[..., Coroutine[Any, Any, R]]) -> Callable[..., Coroutine[Any, Any, list[R]]]:
    """The same of an async function: the calls of a chunk run at once."""

    async def run_chunk(chunk: Iterable[tuple[Any, ...]]) -> list[R]:
        import asyncio

        tasks = [asyncio.ensure_future(fn(*args)) for args in chunk]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    return run_chunk


class _Ended:
    """Collects futures as they end."""

    def __init__(self) -> None:
        self.queue: Mailbox[CallFuture[Any]] = Mailbox()
        #: Are told of the next one.
        self._watchers: list[Watcher] = []

    def add_result(self, future: CallFuture[Any]) -> None:
        self.queue.put(future)
        for watcher in [*self._watchers]:  # their threads add and remove
            watcher.add_result(future)

    add_exception = add_cancelled = add_result

    def watch(self, watcher: Watcher) -> None:
        self._watchers.append(watcher)
        if not self.queue.empty():
            watcher.add_result(None)

    def unwatch(self, watcher: Watcher) -> None:
        self._watchers.remove(watcher)


class _Told:
    """For ``await``."""

    def __init__(self, source: Watched) -> None:
        self._source = source

    def __await__(self) -> Generator[Any, None, None]:
        return told_by(self._source)


class MapResults(Iterator[R], AsyncIterator[R], Generic[R]):
    """The results of a `map`, in order or as they come, for ``for`` and ``async for``; `close` cancels what has not ended."""

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
        chunksize: int = 1,
    ) -> None:
        self._submit = submit
        self._inputs = inputs
        self._hungry = hungry
        self._progress = progress
        self._timeout = timeout
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout != timeout):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"timeout={timeout!r}: give seconds until the last result, or None to wait for ever")
        self._deadline = None if timeout is None else time.monotonic() + timeout
        #: Of who takes the next result. Not of `close`, which must not wait for that; and inputs may depend on results.
        self._taking = threading.RLock()
        self._fixed = buffersize
        self._chunksize = chunksize
        #: Calls ahead: in order, or those that have not been taken, with their numbers.
        self._row: deque[CallFuture[Any]] = deque()
        self._loose: dict[CallFuture[Any], int] = {}
        #: Calls submitted so far.
        self._submitted = 0
        self._ended = None if ordered else _Ended()
        self._values: deque[R] = deque()
        self._exhausted = False
        self._started = False
        #: When other tasks of the loop had their turn.
        self._turned_at = 0.0
        #: Taken since the window was last filled, and when that was.
        self._taken = 0
        self._filled_at = time.monotonic()
        self._window = 0
        if ordered and chunksize == 1:
            row = self._row  # not ourselves: a circle would be dropped late, and what is dropped half-way is to be cancelled at once
            progress.ahead = lambda: sum(future.done() for future in row)
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
        ahead, now = self.ahead, time.monotonic()
        if self._fixed is not None:
            window = self._fixed
        else:
            if ahead * 2 > self._window and now - self._filled_at < TICK:
                return
            pace = self._taken / max(now - self._filled_at, 1e-3)
            missing = self._hungry()
            if 2 * self._untaken() > ahead + missing:
                missing = 0
            window = max(WINDOW_LEAST, min(WINDOW_MOST, max(ahead + missing, int(pace * AHEAD_SECONDS))))
            self._taken, self._filled_at, self._window = 0, now, window
        for _ in range(window - ahead):
            try:
                args = next(self._inputs)
            except StopIteration:
                self._exhausted = True
                return
            try:
                future = self._submit(args)
            except Exception as error:
                self._note(error, self._submitted)
                raise
            if self._ended is None:
                self._row.append(future)
            else:
                self._loose[future] = self._submitted
                future.watch(self._ended)
            self._submitted += 1
            if time.monotonic() - now > FILL_SECONDS and self._head() is not None:
                return

    def _untaken(self) -> int:
        """Calls ahead that have ended, while nobody waits for one that has not."""
        return 0 if self._head() is None else sum(future.done() for future in (*self._row, *self._loose))

    def _next_ended(self) -> tuple[CallFuture[Any], int]:
        """The next future whose turn it is, ended, and its number. TimeoutError."""
        row = self._row  # `close` in another thread takes it away, and ends what is in it
        while True:
            patience = self._patience()
            if self._ended is None:
                if row[0].wait(patience):
                    return row.popleft(), self._submitted - len(row) - 1
            else:
                try:
                    future = self._ended.queue.get(timeout=patience)
                except queue.Empty:
                    pass
                else:
                    return future, self._loose.pop(future, 0)
            self._look_around()

    def _look_around(self) -> None:
        """What is to be done while nothing ends. TimeoutError."""
        self._progress.tick()
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise TimeoutError(f"map() has not given its last result within timeout={self._timeout} seconds; what was left is cancelled")
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
        with self._taking:
            return self._take()

    def _take(self) -> R:
        self._started = True
        if self._values:
            return self._give(self._values.popleft())
        try:
            while True:
                self._fill()
                if not self.ahead:
                    self.close()
                    raise StopIteration
                future, number = self._next_ended()
                try:
                    value = future.result()
                except (StopIteration, StopAsyncIteration) as error:  # the function's own: whoever iterates would take it for the end
                    raise RuntimeError(f"a call of map() raised {type(error).__name__}; {self._which(number)}") from error
                except BaseException as error:
                    self._note(error, number)
                    raise
                finally:
                    del future  # what has been given must not be kept alive from here
                self._taken += 1
                if self._chunksize == 1:
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

    def __aiter__(self) -> MapResults[R]:
        return self

    async def __anext__(self) -> R:
        """The same in a task: what `__next__` would wait for, the loop's other tasks do not."""
        import asyncio

        self._started = True
        try:
            if time.monotonic() - self._turned_at > TURN_SECONDS:
                await asyncio.sleep(0)
                self._turned_at = time.monotonic()
            while not self._values:
                self._fill()
                if not self.ahead:
                    break
                head = self._head()
                if head is None:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._patience()):
                            await _Told(self._row[0] if self._ended is None else self._ended)
                    self._turned_at = time.monotonic()
                    self._look_around()
                elif head.comes_late():
                    await READERS.do(head, head.read)
                    if self._head() is head:
                        break
                else:
                    break
            return next(self)
        except StopIteration:
            raise StopAsyncIteration from None
        except BaseException:
            self.close()
            raise

    def _head(self) -> CallFuture[Any] | None:
        """The ended one whose turn it is; None if that has not ended."""
        if self._ended is not None:
            return self._ended.queue.first()
        return self._row[0] if self._row and self._row[0].done() else None

    def _note(self, error: BaseException, number: int) -> None:
        from windlass.raised import add_note

        add_note(error, self._which(number))

    def _which(self, number: int) -> str:
        """Which inputs a call had."""
        which = "input" if self._chunksize == 1 else f"one of {self._chunksize} inputs from"
        return f"in map(): {which} {number * self._chunksize} (the first is 0)"

    def _give(self, value: R) -> R:
        self._progress.advance()
        return value

    def close(self) -> None:
        """Cancel what has not ended and take no more inputs. May be called again."""
        self._exhausted = True
        self._started = True
        self._progress.done += self._progress.ahead()  # what is cancelled below is done as well, and is not to be counted
        self._progress.ahead = int
        try:
            cancel_all(self._take_ahead())
        finally:
            self._values.clear()
            self._progress.close()

    def _take_ahead(self) -> list[CallFuture[Any]]:
        row, self._row = self._row, deque()
        loose, self._loose = self._loose, dict[CallFuture[Any], int]()
        return [*row, *loose]

    def __del__(self) -> None:
        if not hasattr(self, "_window"):
            return  # never came to be
        if self._started:
            # This thread may be anywhere, with any lock of ours held: another one cancels what has not ended.
            ahead = self._take_ahead()
            try:
                self.close()  # first: it counts what is done, and what is cancelled is done as well
            finally:
                if ahead and (owner := ahead[0].owner) is not None:
                    owner.later(partial(hand_over, partial(cancel_all, ahead)))  # who cancels calls back
        elif not self._exhausted and (self._progress.total is None or self._submitted * self._chunksize < self._progress.total):
            # As in concurrent.futures, calls of a map that nobody looks at run; but the rest of the inputs was never read.
            warnings.warn(
                f"the results of a map() were never taken, so only its first {self.ahead} calls were submitted; write list(pool.map(...))",
                RuntimeWarning,
                stacklevel=2,
                source=self,
            )


def cancel_all(futures: Iterable[CallFuture[Any]]) -> None:
    """Nobody will ask for these any more: cancel all of them, though it takes a while. When Ctrl-C comes meanwhile, it is raised then.

    With a second one the manager alone is told of those that are left, as who is called back at their ends may take long.
    """
    left, interrupt, sure, hurry = deque(futures), cast("BaseException | None", None), True, False
    while left:
        try:
            while left:
                future = left[0]
                if hurry:
                    if future.owner is not None:
                        future.owner.cancel(future)
                elif not future.cancel():
                    future.collect()  # it has ended: neither `wait()` nor memory is to have it
                elif not sure and future.owner is not None:
                    future.owner.cancel(future)  # it may have been cancelled here, and nobody told
                sure = True
                left.popleft()
        except (KeyboardInterrupt, SystemExit) as error:
            hurry, interrupt, sure = interrupt is not None, error, False
    if interrupt is not None:
        raise interrupt
