"""The future of a call: what `submit` returns.

Theory of operation
-------------------
`CallFuture` is a `concurrent.futures.Future` for programs that hold a million of them. A stock future makes a condition, a lock and
two lists at birth (1,600 bytes); this one makes them when somebody first waits, watches or adds a callback, and most futures are
never waited for before they end.

Three threads meet here. The *loop thread* of the manager calls `finish`, which stores the record of how the call ended and returns
within a microsecond. *Asking threads* call `result`, `exception` or ``await``; the first to ask settles the future: it unpickles
the record through the owner's `Resolver.resolve`, once, in its own time. What cannot be unpickled is tried again by the next `result`.
Callbacks run on the *callback thread* (`set_callback_runner`), never on the loop thread.

Locks. ``_GUARD`` is one lock for all futures. It is a leaf: whoever holds it only loads and stores attributes, so nothing can be
waited for under it. A future's own lock is made on demand, under the guard, and from then on guards its changes; while there is
none, nobody watches, and the guard alone makes the change. `concurrent.futures.wait` and `as_completed` take many futures' locks in
the order of their ids; that is free of deadlock only because each future has a lock of its own, so these must not be shared.

The states are those of `concurrent.futures`: PENDING, RUNNING, CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED. A future without an
owner is a plain `Future` in every respect. One with an owner can be cancelled while it runs, and goes to CANCELLED_AND_NOTIFIED at
once. An ended future stays as it is: a late record is dropped.

A call is *collected* when its program has taken notice of its end: by `result`, `exception`, ``await``, a done-callback, or the
manager's ``wait``. The owner hears of the first only.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import msgspec

from windlass.errors import NotPicklable, UsageError
from windlass.manager.call import Target
from windlass.manager.callbacks import CallbackThread, check_callback, hand_over, set_callback_runner
from windlass.manager.facts import CANCELLED, CANCELLED_AND_NOTIFIED, ENDED, FINISHED, PENDING, RUNNING, CallFacts
from windlass.manager.keeping import bring_result, comes_from_afar
from windlass.manager.reading import READERS
from windlass.manager.timings import Timings
from windlass.manager.watchers import Sleeper, TaskWaiting, Watcher, told_by
from windlass.messages import CANCELLED as OUTCOME_CANCELLED
from windlass.messages import RETURNED, CallDone, CallId, ObjectRef

__all__ = ["CallFuture", "CallbackThread", "Canceller", "Owner", "Resolver", "Timings", "Watcher", "set_callback_runner"]

T = TypeVar("T")

_NO_CALL: Final = CallId(0)

_LOGGER: Final = logging.getLogger("concurrent.futures")
_GUARD: Final = threading.RLock()
#: Threads that wait while another one unpickles; shared by all futures because it is hardly ever used.
_SETTLED: Final = threading.Condition(_GUARD)
#: How many they are; under the guard.
_settle_waiters: int = 0


#: A fork while another thread holds it would leave it held for ever in the child.
os.register_at_fork(before=_GUARD.acquire, after_in_parent=_GUARD.release, after_in_child=_GUARD.release)


class Resolver(Protocol):
    """Turns the record of a call's end into its value."""

    def resolve(self, future: CallFuture[Any], done: CallDone) -> Any:
        """The value, or raise the call's exception. In the asking thread; may be slow; once per future, and again where it could not."""
        ...


class Canceller(Protocol):
    """Tells the manager that a call is not wanted any more."""

    def cancel(self, future: CallFuture[Any]) -> None:
        """``future`` has just become cancelled. In the cancelling thread; must not block."""
        ...


class Owner(Resolver, Canceller, Protocol):
    """What stands behind the futures of one manager."""

    @property
    def runs(self) -> Callable[[CallId], bool]:
        """Whether a call runs, as far as that is known. In any thread; must be quick."""
        ...

    def on_collected(self, future: CallFuture[Any]) -> None:
        """The program has taken notice of the call's end. Once per future, in any thread; must be quick."""
        ...

    def later(self, work: Callable[[], object]) -> None:
        """Have this done soon on another thread. Takes no lock: for finalisers."""
        ...


class CallFuture(CallFacts, Future[T]):
    """The future of one call: a `concurrent.futures.Future` that can also be awaited and knows what became of the call."""

    __slots__ = (
        "_callbacks",
        "_collected",
        "_exception",
        "_lock",
        "_record",
        "_resolving",
        "_result",
        "_settled",
        "_state",
        "_watchers",
        "call_id",
        "key",
        "origin",
        "owner",
        "submitted_at",
        "tag",
        "target",
    )

    # The base class's own __init__ makes what we make lazily, and is not called.
    def __init__(
        self,
        owner: Owner | None = None,
        call_id: CallId = _NO_CALL,
        tag: str | None = None,
        submitted_at: float = 0.0,
        target: Target | None = None,
    ) -> None:
        """A pending future. ``submitted_at`` is in seconds since the epoch; without an owner it is a plain future."""
        self._state = PENDING
        self._result: T | None = None
        self._exception: BaseException | None = None
        self._lock: Any = None
        self._watchers: list[Watcher] | None = None
        self._callbacks: list[Callable[[CallFuture[T]], object]] | None = None
        self._record: CallDone | None = None
        #: False between `finish` and the first asking: ``_result`` and ``_exception`` are yet to come from ``_record``.
        self._settled = True
        #: Ident of the thread that is settling it; 0: none.
        self._resolving = 0
        self._collected = False
        self.owner = owner
        self.call_id = call_id
        self.tag = tag
        self.submitted_at = submitted_at
        self.target = target
        #: What it is remembered by (`windlass.manager.memory`).
        self.key: bytes | None = None
        #: Why it was not run (`windlass.manager.feeding`): the future whose call failed first, or an error.
        self.origin: CallFuture[Any] | BaseException | None = None

    # ------------------------------------------------------------ what concurrent.futures reaches into

    def _own_lock(self) -> Any:
        """The future's own lock, made now if need be."""
        lock = self._lock
        if lock is None:
            fresh = threading.RLock()
            with _GUARD:
                lock = self._lock
                if lock is None:
                    lock = self._lock = fresh
        return lock

    def _own_watchers(self) -> list[Watcher]:
        """Who watches; to be used while holding the lock."""
        watchers = self._watchers
        if watchers is None:
            watchers = self._watchers = []
        return watchers

    if not TYPE_CHECKING:
        # For checkers these stay the base class's attributes, or `as_completed` would not be seen to accept us. In the base class
        # ``_condition`` is a Condition, of which `concurrent.futures` uses no more than the lock.
        _condition = property(_own_lock)
        _waiters = property(_own_watchers)

        def _get_snapshot(self) -> tuple[bool, bool, Any, BaseException | None]:
            """Done, cancelled, result, exception: what `asyncio.wrap_future` asks from Python 3.14 on; the base class knows no records."""
            if self._state not in ENDED:
                return False, False, None, None
            if self.cancelled():
                self.collect()
                return True, True, None, None
            error = self.exception()
            return True, False, None if error is not None else self._result, error

    # ------------------------------------------------------------ ending

    def finish(self, done: CallDone) -> bool:
        """The call has ended so: keep the record, wake who waits, hand callbacks over. False, and nothing changes, if it had ended before.

        For the manager's thread: unpickles nothing and runs no code of the user's. The record becomes the future's
        own: its payload is dropped once it has been unpickled.
        """
        outcome = done.end.outcome
        state = FINISHED if outcome != OUTCOME_CANCELLED else CANCELLED_AND_NOTIFIED
        if self._lock is None:
            with _GUARD:
                if self._lock is None:  # nobody has ever watched: no one to tell
                    if self._state in ENDED:
                        return False
                    self._record = done
                    self._settled = False
                    self._state = state
                    return True
        with self._lock:
            if self._state in ENDED:
                return False
            self._record = done
            self._settled = False
            self._state = state
            callbacks = self._tell(failed=outcome != RETURNED)
        if callbacks is not None:
            hand_over(lambda: self._call_back(callbacks))
        return True

    def forget_watchers(self) -> None:
        """In a forked process: who watched was a thread of the parent's, and so was perhaps who held the lock."""
        self._lock = self._watchers = self._callbacks = None

    def _tell(self, failed: bool) -> list[Callable[[CallFuture[T]], object]] | None:
        """Tell watchers of the state just reached; holding the lock. The callbacks, for the caller to run after releasing it."""
        watchers = self._watchers
        if watchers:
            if self._state != FINISHED:
                for watcher in watchers:
                    watcher.add_cancelled(self)
            elif failed:
                for watcher in watchers:
                    watcher.add_exception(self)
            else:
                for watcher in watchers:
                    watcher.add_result(self)
            self._drop_told(watchers)
        callbacks, self._callbacks = self._callbacks, None
        return callbacks

    def _drop_told(self, watchers: list[Watcher]) -> None:
        # Ours are woken once; others, of concurrent.futures, take themselves off the list later.
        watchers[:] = [watcher for watcher in watchers if type(watcher) is not Sleeper and type(watcher) is not TaskWaiting]

    def _call_back(self, callbacks: list[Callable[[CallFuture[T]], object]]) -> None:
        self.collect()
        for callback in callbacks:
            try:
                callback(self)
            except Exception:  # user's code; the stock future logs it so
                _LOGGER.exception("exception calling callback for %r", self)

    def cancel(self) -> bool:
        """Cancel the call, also one that runs (its slot is replaced). True if it is now cancelled; False if it had ended otherwise."""
        owner = self.owner
        with self._own_lock():
            if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED):
                return True
            if self._state == FINISHED or (owner is None and self._state == RUNNING):
                return False
            if owner is not None:
                self._state = CANCELLED_AND_NOTIFIED
                callbacks = self._tell(failed=False)
            else:
                self._state = CANCELLED
                watchers = self._watchers
                if watchers:
                    for watcher in watchers:
                        if type(watcher) is Sleeper or type(watcher) is TaskWaiting:
                            watcher.add_cancelled(self)
                    self._drop_told(watchers)
                callbacks, self._callbacks = self._callbacks, None
        try:
            if owner is not None:
                owner.cancel(self)
        finally:  # it is cancelled, and nothing else would call them
            if callbacks is not None:
                self._call_back(callbacks)  # we are in a thread of the program's: here, as a stock future does
        return True

    def set_running_or_notify_cancel(self) -> bool:
        """As in `concurrent.futures`."""
        with self._own_lock():
            if self._state == CANCELLED:
                self._state = CANCELLED_AND_NOTIFIED
                self._tell(failed=False)
                return False
            if self._state == CANCELLED_AND_NOTIFIED and self.owner is not None:
                return False
            if self._state == PENDING:
                self._state = RUNNING
                return True
            _LOGGER.critical("Future %s in unexpected state: %s", id(self), self._state)
            raise RuntimeError("Future in unexpected state")

    def set_result(self, result: T) -> None:
        """As in `concurrent.futures`: for executors and tests; callbacks run here."""
        self._set(result, None)

    def set_exception(self, exception: BaseException | None) -> None:
        """As in `concurrent.futures`: for executors and tests; callbacks run here."""
        self._set(None, exception)

    def _set(self, result: T | None, exception: BaseException | None) -> None:
        with self._own_lock():
            if self._state in ENDED:
                raise InvalidStateError(f"{self._state}: {self!r}")
            if self.owner is not None:
                raise UsageError(f"{self!r} is ended by its call, whose result would be lost; cancel() it if it is not wanted")
            self._result = result
            self._exception = exception
            self._state = FINISHED
            callbacks = self._tell(failed=exception is not None)
        if callbacks is not None:
            self._call_back(callbacks)

    # ------------------------------------------------------------ asking

    def cancelled(self) -> bool:
        """True if it was cancelled."""
        return self._state in (CANCELLED, CANCELLED_AND_NOTIFIED)

    def running(self) -> bool:
        """True while it runs, as far as that is known: programs that have attached to a manager are not told."""
        return self._state == RUNNING or (self._state == PENDING and self.owner is not None and self.owner.runs(self.call_id))

    def done(self) -> bool:
        """True if it has ended: result, exception, or cancelled."""
        return self._state in ENDED

    def result(self, timeout: float | None = None) -> T:
        """The call's result; waits up to ``timeout`` seconds (None: for ever).

        Raises the call's own exception (its cause has the remote traceback), a `CallFailed` that says why there is no
        result, `CancelledError`, or `TimeoutError` when it has not ended in time.
        """
        try:
            if self._state not in ENDED:
                self._sleep(timeout)
            if not self._collected:
                self.collect()
            if self._state != FINISHED:
                raise CancelledError
            if (not self._settled or self._exception is not None) and self._to_be_read():
                bring_result(self.owner, self._record, timeout)
                self._settle()
            if self._exception is not None:
                raise self._exception
            return self._result  # type: ignore[return-value]  # pyright: ignore[reportReturnType]  # None may be a T
        finally:
            # Break a reference cycle with the exception in self._exception.
            self = None  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The call's exception, None if it has a result; waits up to ``timeout`` seconds (None: for ever).

        Raises `CancelledError`, or `TimeoutError` when it has not ended in time.
        """
        if self._state not in ENDED:
            self._sleep(timeout)
        # `concurrent.futures.wait(..., FIRST_EXCEPTION)` asks while it holds the locks of all its futures: results stay packed then,
        # and looking is not collecting.
        looking = self._lock is not None and self._lock._is_owned()
        if not self._collected and not looking:
            self.collect()
        if self._state != FINISHED:
            raise CancelledError
        if not self._settled:
            record = self._record
            if looking and record is not None and record.end.outcome == RETURNED:
                return None
            self._settle()
        return self._exception

    @property
    def output(self) -> T:
        """The result of an ended call, as `result` gives it without waiting: a failed call raises here, and has its exception in `error`.

        Raises `InvalidStateError` while the call has not ended.
        """
        if self._state not in ENDED:
            raise InvalidStateError(f"{self!r} has not ended, so it has no output; wait for it with manager.wait(), or use .result()")
        return self.result()

    @property
    def error(self) -> BaseException | None:
        """The exception of a failed or cancelled call; None when it has a result or has not ended."""
        if self._state not in ENDED:
            return None
        if self._state != FINISHED:
            return CancelledError(f"{self!r} was cancelled")
        return self.exception()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end up to ``timeout`` seconds (None: for ever) without collecting; True if it has ended."""
        if self._state not in ENDED:
            try:
                self._sleep(timeout)
            except TimeoutError:
                return False
        return True

    def _sleep(self, timeout: float | None) -> None:
        """Wait for the end; TimeoutError."""
        if timeout is not None and (not isinstance(timeout, int | float) or timeout != timeout):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"timeout={timeout!r}: give seconds, or None to wait for ever")
        sleeper = Sleeper()
        lock = self._own_lock()
        with lock:
            if self._state in ENDED:
                return
            self._own_watchers().append(sleeper)
        woken = False
        try:
            woken = sleeper.sleep(timeout)
        finally:
            if not woken:
                with lock:
                    if sleeper in self._own_watchers():
                        self._own_watchers().remove(sleeper)
        if self._state not in ENDED:
            raise TimeoutError(f"{self!r} has not ended within {timeout:g} s; it goes on, and can be asked again")

    def settle(self, *, last: bool = False) -> None:
        """Unpack the result of an ended call now, without collecting it. ``last``: as its objects are about to be dropped.

        An exception, the call's own or one of unpickling, is kept for who asks.
        """
        if self._state == FINISHED and self._to_be_read():
            self._settle()
            if last and (record := self._record) is not None:
                record.end.payload, record.end.spans = b"", ()

    def _settle(self) -> None:
        """Have ``_result`` or ``_exception`` made from the record: by this thread, or by the one that is at it already."""
        global _settle_waiters
        me, waited = threading.get_ident(), False
        with _GUARD:
            while self._resolving and self._resolving != me and self._to_be_read():
                waited = True
                _settle_waiters += 1
                try:
                    _SETTLED.wait()
                finally:
                    _settle_waiters -= 1
            if not self._to_be_read() or (waited and self._settled):
                return
            # Our own ident here means that a signal handler or finaliser asks while this very thread settles: it may not wait
            # for itself, so it does the work over.
            self._resolving = me
        record, owner = self._record, self.owner
        result: T | None = None
        exception: BaseException | None = None
        settled = False
        try:
            if record is None or owner is None:
                raise InvalidStateError(f"a future without an owner cannot unpack its record: {self!r}")
            try:
                result = owner.resolve(self, record)
            except Exception as error:  # noqa: BLE001 - the call's own exception, whatever it is
                exception = error
            except BaseException as error:
                # Ctrl-C while unpickling is the asking thread's, and one may ask again; a KeyboardInterrupt or SystemExit
                # that the function itself raised is its answer.
                if record.end.outcome == RETURNED:
                    raise
                exception = error
            if exception is not None:
                # These frames are ours, and refer to the future that refers to the exception. (Its class may let nobody set attributes.)
                BaseException.with_traceback(exception, None)
            settled = True
        finally:
            with _GUARD:
                if settled and self._to_be_read():
                    self._result, self._exception = result, exception
                    self._settled = True
                self._resolving = 0
                if _settle_waiters:
                    _SETTLED.notify_all()
            if settled and record is not None and (exception is None or record.end.outcome != RETURNED):
                # The unpickled form is here: do not keep both.
                record.end.payload, record.end.spans = b"", ()
            del exception

    # ------------------------------------------------------------ as an argument of another call

    def unpacked(self) -> tuple[T] | None:
        """The result, if the program has it unpickled."""
        if self._state == FINISHED and self._settled and self._exception is None:
            return (self._result,)  # type: ignore[return-value]  # pyright: ignore[reportReturnType]  # None may be a T
        return None

    def packed(self) -> tuple[bytes, tuple[ObjectRef, ...]] | None:
        """Payload and spans of its result; None if it has none, or somebody has begun to unpickle it, and they may be gone any moment."""
        with _GUARD:
            record = self._record
            if self._state != FINISHED or not self._to_be_read() or self._resolving or record is None or record.end.outcome != RETURNED:
                return None
            return record.end.payload, record.end.spans

    def unread(self) -> CallDone | None:
        """A copy of how its call has ended; None if it has not, or the program has taken notice."""
        with _GUARD:
            record = self._record
            if self._state not in ENDED or self._settled or self._resolving or self._collected or record is None:
                return None
            return msgspec.structs.replace(record, end=msgspec.structs.replace(record.end), tag=self.tag or "")

    def returned(self) -> bool:
        """Its function has returned something, whether or not that can be had here."""
        return self._state == FINISHED and self._record is not None and self._record.end.outcome == RETURNED

    def failure(self) -> BaseException | None:
        """What `exception` would give or raise of an ended call, without collecting it."""
        if self._state != FINISHED:
            return CancelledError(f"{self!r} was cancelled")
        self.settle()
        return self._exception

    def __reduce_ex__(self, protocol: object) -> Any:
        # The pickler of a call's arguments never comes here: see `windlass.manager.feeding.Holes`.
        raise NotPicklable(
            "a call's future cannot be pickled: write submit(f, future), which gives the function what the call returns;"
            " elsewhere, as in a function's closure, use what it has: future.result()"
        )

    def collect(self) -> bool:
        """Note that the program has taken notice of the end. True the first time, when the owner is told."""
        with _GUARD:
            if self._collected:
                return False
            self._collected = True
        if self.owner is not None:
            self.owner.on_collected(self)
        return True

    @property
    def collected(self) -> bool:
        """The program has taken notice of the call's end."""
        return self._collected

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Call ``fn(future)`` when it has ended: on the callback thread, or here and now if it has ended already."""
        check_callback(fn)
        with self._own_lock():
            if self._state not in ENDED:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(fn)
                return
        self._call_back([fn])

    def watch(self, watcher: Watcher) -> None:
        """Tell ``watcher`` of the end, on the thread that ends it, or here and now if it has ended. Does not collect."""
        with self._own_lock():
            if self._state not in ENDED:
                self._own_watchers().append(watcher)
                return
        if self._state != FINISHED:
            watcher.add_cancelled(self)
        elif self.state == "failed":
            watcher.add_exception(self)
        else:
            watcher.add_result(self)

    def unwatch(self, watcher: Watcher) -> None:
        """Undo `watch`, if it has not happened yet."""
        if watchers := self._watchers:
            with self._own_lock():
                if watcher in watchers:
                    watchers.remove(watcher)

    def __await__(self) -> Generator[Any, None, T]:
        """The result, as from `result`. Cancelling the task cancels the call (`asyncio.shield` keeps it)."""
        if self._state not in ENDED:
            try:
                yield from told_by(self)
            except asyncio.CancelledError:
                self.cancel()
                raise
        if self.cancelled():
            self.collect()
            raise asyncio.CancelledError
        if self.comes_late():
            yield from READERS.do(self, self.read).__await__()
        return self.result()

    def comes_late(self) -> bool:
        """`result` of an ended call would have to wait: see `read`."""
        record = self._record
        return self._to_be_read() and record is not None and (record.end.kept or comes_from_afar(self.owner, record))

    def read(self) -> None:
        """Wait for all that `result` would have to wait for."""
        record = self._record
        bring_result(self.owner, record, None)
        if comes_from_afar(self.owner, record):
            self.settle()
