"""The program's side of a manager: futures, libraries by name, and what is pickled on the way.

Theory of operation
-------------------
`Client` runs in the program's threads and speaks to the manager's core only by messages put into an inbox: `CallSpec` records for calls
(so many that they go without an envelope) and whole messages for the rest.  The inbox is that of a manager in the same process, or of the
line to one elsewhere (`windlass.manager.line`).  Ends come back through `deliver`, on the thread that drains the inbox,
which only finishes futures: unpickling is done by whoever asks for the result (`resolve`).

Objects.  A large argument is put into the store under its content name and pinned until its call has ended.  The result's objects are
dropped from the store as soon as they are mapped into this process, or when nobody is left who could ask.

What ``wait`` may hand out is kept in ``_finished``, in the order of ending, until somebody has collected it.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from windlass.errors import (
    CallFailed,
    CallTimeout,
    CallTooLong,
    Closed,
    InternalError,
    LibraryFailed,
    NotPicklable,
    NotPossible,
    OutOfMemory,
    SlotDied,
    StoreFull,
    WorkersLost,
)
from windlass.manager.calls import CLOSED, LIBRARY_FAILED, LOST, NOT_POSSIBLE, TOO_LONG
from windlass.manager.future import CallFuture
from windlass.manager.inbox import Inbox
from windlass.messages import (
    BAD_CALL,
    CANCELLED,
    DIED,
    OUT_OF_MEMORY,
    RAISED,
    RETURNED,
    TIMED_OUT,
    CallDone,
    CallEnd,
    CallId,
    CallOptions,
    CallSpec,
    CancelSubmitted,
    EndDetail,
    FunctionId,
    LibraryId,
    Message,
    ObjectRef,
)
from windlass.pickling import pack_call, unpack_exception, unpack_result

#: Seconds between looks for room in a full store, beside those at each call that ends.
ROOM_SECONDS: Final = 0.5
#: What goes into the manager's inbox: a call, or who says it and a message.
Item = CallSpec | tuple[str, Message]


class ClientStore(Protocol):
    """What a client needs of the manager's objects: a `SpoolingStore`, or the way to one of another process."""

    def put(self, data: Any, *, pin: bool = False) -> ObjectRef: ...
    def could_hold(self, size: int) -> bool: ...
    def unpin(self, name: str) -> None: ...
    def open(self, name: str) -> memoryview: ...
    def discard(self, name: str) -> None: ...


class Client:
    """Turns calls into messages and ends into results."""

    def __init__(self, store: ClientStore, inbox: Inbox[Any], clock: Callable[[], float]) -> None:
        self.store = store
        self._inbox = inbox
        self._clock = clock
        self._ids = itertools.count(1)
        self._futures: dict[CallId, CallFuture[Any]] = {}
        self._finished: OrderedDict[CallId, CallFuture[Any]] = OrderedDict()
        #: Spans of waiting calls, to unpin at their end; few calls have any.
        self._pinned: dict[CallId, tuple[ObjectRef, ...]] = {}
        #: Ended calls whose results are still objects in the store.
        self._unread: weakref.WeakValueDictionary[CallId, CallFuture[Any]] = weakref.WeakValueDictionary()
        self._arrived = threading.Condition()
        self._waiters = 0
        #: Grows whenever the store may have got room.
        self._freed = 0
        #: Not empty: why nothing more is taken.
        self.closed = ""
        #: This process is a forked copy of the program: the store is the program's.
        self._forked = False

    # ------------------------------------------------------------ to the manager

    def say(self, message: Message) -> None:
        """Hand a message of the client's role to the manager."""
        self._inbox.put(("client", message))

    def submit(
        self,
        library: LibraryId,
        function: FunctionId,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CallOptions,
        tag: str | None,
        parameters: Sequence[str] = (),
    ) -> CallFuture[Any]:
        """Pickle the arguments, make a future, hand the call over. ``parameters``: the function's, for the text of an error.

        Waits while the store is full of arguments of calls that have not ended. Raises `NotPicklable`, `Closed`, and `StoreFull`
        where waiting would not help; then nothing was submitted.
        """
        if self.closed:
            raise Closed(self.closed)
        put: list[ObjectRef] = []

        def keep(data: Any) -> ObjectRef:
            ref = self._put(data)
            put.append(ref)
            return ref

        try:
            payload, spans = pack_call(args, kwargs, keep, parameters)
        except BaseException:
            self._unpin(put)
            raise
        call = CallId(next(self._ids))
        future: CallFuture[Any] = CallFuture(self, call, tag, self._clock())
        self._futures[call] = future
        if put:
            self._pinned[call] = tuple(put)
        try:
            self._inbox.put(CallSpec(call, library, function, payload, spans, options))
        except BaseException:  # the manager's loop has just ended
            self._futures.pop(call, None)
            self._unpin(self._pinned.pop(call, ()))
            raise
        if self.closed:
            self._close_one(call)  # the manager ended meanwhile, perhaps without having seen this call
        return future

    def _put(self, data: Any) -> ObjectRef:
        """Keep an argument. While there is no room and calls that have not ended will make some, wait."""
        while True:
            freed = self._freed
            try:
                return self.store.put(data, pin=True)
            except StoreFull:
                if not self._pinned or not self.store.could_hold(memoryview(data).nbytes):
                    raise
            with self._arrived:
                self._waiters += 1
                try:
                    if self._freed == freed and not self.closed:
                        self._arrived.wait(ROOM_SECONDS)
                finally:
                    self._waiters -= 1
            if self.closed:
                raise Closed(self.closed)

    def _unpin(self, refs: Sequence[ObjectRef]) -> None:
        for ref in refs:
            self.store.unpin(ref.name)
        self._freed += 1

    def cancel(self, future: CallFuture[Any]) -> None:
        """The owner's part of `CallFuture.cancel`."""
        self.say(CancelSubmitted((future.call_id,)))

    def cancel_all(self, futures: Sequence[CallFuture[Any]]) -> int:
        """Cancel many at once; how many had not ended."""
        return sum(future.cancel() for future in futures)

    def pending(self) -> list[CallFuture[Any]]:
        """Futures that have not ended."""
        return list(self._futures.values())

    def outstanding(self) -> int:
        """How many calls have not ended."""
        return len(self._futures)

    def close(self, reason: str) -> None:
        """Take nothing more, and end with `Closed` what has not ended: the manager will say nothing more."""
        self.closed = self.closed or reason
        for call in list(self._futures):
            self._close_one(call)
        with self._arrived:
            self._arrived.notify_all()

    def _close_one(self, call: CallId) -> None:
        self.deliver([CallDone(CallEnd(call, 0, CLOSED, detail=EndDetail(text=self.closed)), returned_at=self._clock())])

    def leave_to_program(self, reason: str) -> None:
        """This process is a forked copy of the program: end the futures here, and from now on touch nothing that the program uses."""
        self.closed, self._forked = reason, True
        self._arrived, self._waiters = threading.Condition(), 0
        self._pinned.clear()
        for future in self._futures.values():
            future.forget_watchers()
        self.close(reason)

    def settle(self) -> None:
        """The store is about to go: read the results that are still in it, for whoever asks later."""
        for future in list(self._unread.values()):
            future.settle()

    # ------------------------------------------------------------ from the manager, on its thread

    def deliver(self, ends: Sequence[CallDone]) -> None:
        """Finish the futures of calls that have ended."""
        futures, finished, pinned = self._futures, self._finished, self._pinned
        for done in ends:
            end = done.end
            future = futures.get(end.call)
            if pinned and end.call in pinned:
                self._unpin(pinned.pop(end.call))
            if future is None:
                self._discard(end.spans)
                continue
            if end.spans:
                weakref.finalize(future, self._discard, end.spans).atexit = False
                self._unread[end.call] = future
            # In this order: whoever looks meanwhile sees the call where calls wait or where they have ended, and there only ended ones.
            if future.finish(done):
                finished[end.call] = future
                if future.collected:  # by somebody who was quicker than we are
                    finished.pop(end.call, None)
            else:
                self._discard(end.spans)
            futures.pop(end.call, None)
        if self._waiters:
            with self._arrived:
                self._arrived.notify_all()

    def _discard(self, spans: Sequence[ObjectRef]) -> None:
        if self._forked:
            return
        for span in spans:
            self.store.discard(span.name)
        self._freed += 1
        if self._waiters:
            with self._arrived:
                self._arrived.notify_all()

    # ------------------------------------------------------------ asking

    def wait(self, timeout: float | None) -> CallFuture[Any] | None:
        """The next call that has ended and that nobody has collected; None after ``timeout`` seconds or when there is none to come."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            future = self._next_finished()
            if future is not None:
                return future
            with self._arrived:
                self._waiters += 1
                try:
                    if self._finished:
                        continue
                    if not self._futures:
                        return None
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        return None
                    self._arrived.wait(left)
                finally:
                    self._waiters -= 1

    def _next_finished(self) -> CallFuture[Any] | None:
        while self._finished:
            try:
                _, future = self._finished.popitem(last=False)
            except KeyError:
                return None
            if future.collect():
                return future
        return None

    def empty(self) -> bool:
        """No call is waiting, running, or ended and uncollected."""
        return not self._futures and not self._finished

    def on_collected(self, future: CallFuture[Any]) -> None:
        """The owner's part of `CallFuture.collect`."""
        self._finished.pop(future.call_id, None)
        if self._waiters and not self._futures:
            with self._arrived:
                self._arrived.notify_all()

    def resolve(self, future: CallFuture[Any], done: CallDone) -> Any:
        """The result, or raise what the call ended with. In the thread that asks."""
        end = done.end
        if end.outcome == RETURNED:
            if not end.spans:
                return unpack_result(end.payload, (), self.store.open)
            try:
                return unpack_result(end.payload, end.spans, self.store.open)
            finally:
                self._discard(end.spans)
        if end.outcome == RAISED:
            raise unpack_exception(end.payload)
        raise failure(done, future)


def failure(done: CallDone, future: CallFuture[Any]) -> BaseException:
    """The exception for a call that ended neither by returning nor by its function's exception."""
    end = done.end
    detail = end.detail or EndDetail()
    text = detail.text
    error: BaseException
    match end.outcome:
        case o if o == DIED:
            tail = end.stderr.decode(errors="replace").strip()
            error = SlotDied(
                text + (f"\nthe end of its stderr:\n{tail}" if tail else ""),
                signal=detail.signal,
                exit_status=detail.exit_status,
                peak_memory=detail.peak_memory,
                stderr=tail,
            )
        case o if o == OUT_OF_MEMORY:
            error = OutOfMemory(text, peak=detail.peak_memory, share=detail.share, limit=detail.limit)
        case o if o == TIMED_OUT:
            error = CallTimeout(text)
        case o if o == LOST:
            error = WorkersLost(text)
        case o if o == TOO_LONG:
            error = CallTooLong(text)
        case o if o == LIBRARY_FAILED:
            error = LibraryFailed(text)
        case o if o == NOT_POSSIBLE:
            error = NotPossible(text)
        case o if o == CLOSED:
            error = Closed(text)
        case o if o == BAD_CALL:
            error = NotPicklable(text) if "pickle" in text else CallFailed(text)
        case o if o == CANCELLED:
            error = CallFailed(text or "the call was cancelled at its worker")
        case _:
            error = InternalError(f"call {end.call} ended with outcome {end.outcome}: {text}")
    if done.attempts:
        for one in done.attempts:
            error.add_note(f"attempt {one.attempt} on {one.host} ({one.worker}): {one.outcome} after {one.seconds:.3g} s")
    return error
