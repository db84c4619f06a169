"""The program's side of a manager: futures, libraries by name, and what is pickled on the way.

Theory of operation
-------------------
`Client` runs in the program's threads and speaks to the manager's core only by messages put into an inbox: `CallSpec` records for calls
(so many that they go without an envelope) and whole messages for the rest.  The inbox is that of a manager in the same process, or of the
line to one elsewhere (`windlass.manager.line`).  Ends come back through `deliver`, on the thread that drains the inbox,
which only finishes futures: unpickling is done by whoever asks for the result (`resolve`).

Objects.  Those of arguments are kept until their calls have ended (`windlass.manager.arguments`).  A result's objects are dropped from the
store as soon as they are mapped into this process, or when nobody is left who could ask.

What ``wait`` may hand out is kept in ``_finished``, in the order of ending, until somebody has collected it.
"""

from __future__ import annotations

import itertools
import os
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from windlass.errors import Closed, UsageError
from windlass.files import File, collecting, without_files
from windlass.manager.arguments import Arguments, Bell
from windlass.manager.call import DEFAULT_OPTIONS, FunctionCall, Target
from windlass.manager.calls import CLOSED, INPUT_FAILED
from windlass.manager.feeding import Feeder, Holes, input_failed
from windlass.manager.future import CallFuture
from windlass.manager.inbox import Inbox, Tidy
from windlass.manager.keeping import KeptResults, Needed, inputs_that_fit, sandbox_of
from windlass.manager.memory import MEMOIZED, ClientStore, Memory
from windlass.manager.outcomes import failure
from windlass.manager.spans import CallSpans
from windlass.manager.status import add_inputs
from windlass.messages import (
    CANCELLED,
    RAISED,
    RESULT,
    RETURNED,
    CallDone,
    CallEnd,
    CallId,
    CallOptions,
    CallSpec,
    CancelSubmitted,
    EndDetail,
    FileName,
    Message,
    ObjectName,
    ObjectRef,
    OrphansEnded,
    OrphansHeld,
    Part,
    WorkerId,
)
from windlass.pickling import pack_call, pack_scalars, unpack_exception, unpack_result

#: What goes into the manager's inbox: a call, or who says it and a message.
Item = CallSpec | tuple[str, Message]


class Client:
    """Turns calls into messages and ends into results."""

    def __init__(self, store: ClientStore, inbox: Inbox[Any], clock: Callable[[], float]) -> None:
        self.store, self._inbox, self.clock = store, inbox, clock
        self._ids = itertools.count(1)
        self._futures: dict[CallId, CallFuture[Any]] = {}
        self._finished: OrderedDict[CallId, CallFuture[Any]] = OrderedDict()
        #: Not empty: why nothing more is taken.
        self.closed = ""
        self._bell = Bell()
        #: Objects and files of arguments, until their calls have ended.
        self._arguments = Arguments(store, self._bell, lambda: self.closed)
        #: Whether a call runs, as far as this program can know; an attached one cannot.
        self.runs: Callable[[CallId], bool] = lambda _call: False
        #: The end of a call with this tag is read, or nobody here wants it.
        self.on_read: Callable[[CallId, str | None], object] = lambda _call, _tag: None
        #: The manager object whose files these calls may be given.
        self.owner = 0
        #: Ended calls whose results are still objects in the store.
        self._unread: weakref.WeakValueDictionary[CallId, CallFuture[Any]] = weakref.WeakValueDictionary()
        #: Calls that wait for the results of others.
        self.feeder = Feeder(self, clock)
        #: Results of earlier calls, if this program has asked for that.
        self.memory: Memory | None = None
        #: In a forked copy of the program: what this was in there.
        self._parents: Memory | None = None
        #: Spans of calls for OpenTelemetry, if this program has asked for that.
        self.traces: CallSpans | None = None
        #: Results that stay on workers.
        self.kept = KeptResults(self._open, self.say, lambda: self.closed)
        self.bring = self.kept.have
        #: Left by finalisers, which may run at any point of any thread, with any lock of this program held: they only leave word.
        self._later: deque[Callable[[], object]] = deque()
        self._tidying = False
        #: This process is a forked copy of the program: the store is the program's.
        self._forked = False

    def _open(self, name: str) -> memoryview:
        """A part of a result, from the journal or the store. Raises `KeyError`."""
        memory = self.memory or self._parents
        return memory.open(name) if memory is not None and memory.recalled(name) else self.store.open(name)

    # ------------------------------------------------------------ to the manager

    def say(self, message: Message) -> None:
        """Hand a message of the client's role to the manager."""
        if self.feeder.may_say(message):
            self._inbox.put(("client", message))

    def later(self, work: Callable[[], object]) -> None:
        """Have this done soon on the thread that drains the inbox. Takes no lock: for finalisers."""
        self._later.append(work)
        if not self._tidying:
            self._tidying = True
            with suppress(Closed):
                self._inbox.put(("client", Tidy()))

    def tidy(self) -> None:
        """Do what finalisers have left."""
        self._tidying = False
        while self._later:
            self._later.popleft()()

    def submit(
        self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions = DEFAULT_OPTIONS, tag: str | None = None
    ) -> CallFuture[Any]:
        """Pickle the arguments, make a future, hand the call over, now or when the futures among the arguments have ended.

        Waits while the store is full of arguments of calls that have not ended. Raises `NotPicklable`, `Closed`, and `StoreFull`
        where waiting would not help; then nothing was submitted.
        """
        if self.closed:
            raise Closed(self.closed)
        payload = pack_scalars(args, kwargs)
        if not payload or options.keep:
            return self._submit(target, args, kwargs, options, tag)
        return self._submit_scalars(target, payload, options, tag)

    def submit_in_room(self, target: Target, call: FunctionCall) -> CallFuture[Any]:
        """The same for a call with a directory of its own."""
        if self.closed:
            raise Closed(self.closed)
        outputs = call.outputs
        for file in outputs.values():
            if not (file.name.startswith(RESULT) and file.unmade):
                raise UsageError(f"add_output({file!r}, ...): an output becomes a file of declare_temp(), one for each call that makes it")
            if file._owner != self.owner:  # pyright: ignore[reportPrivateUsage]
                raise UsageError(f"{file!r} was declared at another manager: declare it at the one that the call is submitted to")
        if self.memory is not None:
            self.memory.pass_over(call)
        future = self._submit(target, call.args, call.kwargs, call.options, call.tag, room=call)
        files = self._arguments.files
        files[future.call_id] = self._arguments.take_files(future.call_id) | {file.key: file for file in outputs.values()}
        if future.done():
            files.pop(future.call_id, None)
        for file in outputs.values():
            file.unmade, file.producer = False, future.call_id
        return future

    def prepare(self, target: Target, call: FunctionCall, inputs: dict[str, File], returned: FileName) -> tuple[CallSpec, Needed]:
        """A call that is not submitted but made by the manager when what it makes is needed; and what must be kept as long as it may be."""
        put: list[ObjectRef] = []
        holes = Holes(self, target.code)

        def keep(data: Any) -> ObjectRef:
            put.append(self._arguments.put(data))
            return put[-1]

        try:
            with collecting() as files:
                payload, spans = pack_call(call.args, call.kwargs, keep, target.parameters, holes)
            if holes.found:
                raise UsageError("a mini task cannot be given futures: give it what they have, or a file of declare_temp()")
            sandbox = sandbox_of(inputs, {}, files, returned)
            refs = inputs_that_fit(files, self.owner, payload, spans, sandbox)
        except BaseException:
            self._arguments.unpin(put)
            raise
        spec = CallSpec(CallId(next(self._ids)), target.library, target.function, payload, spans, call.options, refs, sandbox=sandbox)
        return spec, Needed(tuple(put), files, [])

    def _submit(
        self,
        target: Target,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CallOptions,
        tag: str | None,
        room: FunctionCall | None = None,
    ) -> CallFuture[Any]:
        """The same for arguments that have to be looked at."""
        if not options.keep and room is None:
            rest, places, files = without_files(args)
            payload = pack_scalars(rest, kwargs, places) if files else b""
            if payload and not (self.feeder.inputs.waiting and self._late_producers(files)):
                return self._submit_scalars(target, payload, options, tag, files)
        put: list[ObjectRef] = []
        holes = Holes(self, target.code)

        def keep(data: Any) -> ObjectRef:
            put.append(self._arguments.put(data))
            return put[-1]

        try:
            with collecting() as files:
                payload, spans = pack_call(args, kwargs, keep, target.parameters, holes)
            sandbox = sandbox_of(room.inputs, room.outputs, files, lenient=room.lenient) if room is not None else None
            # Also those that make its files and wait for inputs themselves: the manager does not know of them yet.
            holes.found += [one for one in self._late_producers(files) if one not in holes.found]
            inputs = inputs_that_fit(files, self.owner, payload, spans, sandbox)
        except BaseException:
            self._arguments.unpin(put)
            raise
        call = CallId(next(self._ids))
        future: CallFuture[Any] = CallFuture(self, call, tag, self.clock(), self._with_code(target, holes.code))
        self._futures[call] = future
        if put:
            self._arguments.pins[call] = tuple(put)
        if files:
            self._arguments.files[call] = files
        prefix = os.urandom(12).hex() if options.keep else ""
        spec = CallSpec(call, target.library, target.function, payload, spans, options, inputs, prefix, sandbox, tag or "")
        again = False
        if self.traces is not None:
            spec.trace = self.traces.begin(call, target, tag, future.submitted_at)
        try:
            if target.content and room is None and self._ends_at_once(future, spec, target, (args, kwargs), files, holes.found):
                return future
            if holes.found:
                again = not self.feeder.wait_for(spec, target, holes.found)
            else:
                self._inbox.put(spec)
        except BaseException:  # the manager's loop has just ended
            self._forget(call)
            raise
        if again:
            self._forget(call)
            return self._submit(target, args, kwargs, options, tag, room)
        if self.closed:
            self._close_one(call)
        elif future.cancelled() and self.feeder.cancel(call):  # by somebody who found it before the feeder had it
            self.deliver([CallDone(CallEnd(call, 0, CANCELLED))])
        return future

    def _late_producers(self, files: dict[str, File]) -> list[CallFuture[Any]]:
        """Calls that make these files and have not been handed to the manager, as they wait for the results of others."""
        waiting = self.feeder.inputs.waiting
        if not waiting:
            return []
        late = [CallId(file.producer) for file in files.values() if file.producer in waiting]
        return [future for call in late if (future := self._futures.get(call)) is not None]

    def _submit_scalars(
        self, target: Target, payload: bytes, options: CallOptions, tag: str | None, files: dict[str, File] | None = None
    ) -> CallFuture[Any]:
        """The same for scalars, and files."""
        inputs = inputs_that_fit(files, self.owner, payload) if files else ()
        call = CallId(next(self._ids))
        future: CallFuture[Any] = CallFuture(self, call, tag, self.clock(), target)
        self._futures[call] = future
        if files:
            # Each of a million dicts would be looked at by the garbage collector.
            self._arguments.files[call] = files if len(files) > 1 else next(iter(files.values()))
        spec = CallSpec(call, target.library, target.function, payload, (), options, inputs)
        if tag:
            spec.tag = tag
        if self.traces is not None:
            spec.trace = self.traces.begin(call, target, tag, future.submitted_at)
        try:
            if target.content and self._ends_at_once(future, spec, target, None, files):
                return future
            self._inbox.put(spec)
        except BaseException:  # the manager's loop has just ended
            self._forget(call)
            raise
        if self.closed:
            self._close_one(call)  # the manager ended meanwhile, perhaps without having seen this call
        return future

    def _ends_at_once(
        self,
        future: CallFuture[Any],
        spec: CallSpec,
        target: Target,
        arguments: tuple[tuple[Any, ...], dict[str, Any]] | None,
        files: dict[str, File] | None,
        inputs: Sequence[CallFuture[Any]] = (),
    ) -> bool:
        """True: it has ended as an equal call did before, or will end as one does that runs; it is not to be handed over."""
        memory, keeps = self.memory, bool(spec.options.keep)
        assert memory is not None
        if arguments is None and not files:
            key: bytes | None = memory.key_of_plain(target.content, spec)
        else:
            key = memory.key_of(target.content, spec, arguments, files or (), inputs)
        if key is None:
            return False
        future.key = spec.key = key
        if not keeps and key in memory.journal.places and (done := memory.recall(spec.call, key)) is not None:
            self._arguments.unpin(self._arguments.pins.pop(spec.call, ()))
            self.deliver_noted([done])
            return True
        return not keeps and not inputs and key[:1] == MEMOIZED and memory.follow(spec, key)

    def _with_code(self, target: Target, more: tuple[ObjectRef, ...]) -> Target:
        """The target as a future knows it: with snapshots that came with the arguments, which stay from now on."""
        if not more:
            return target
        self._arguments.keep_code(more)
        return target._replace(code=(*target.code, *more))

    def _forget(self, call: CallId) -> None:
        if self.traces is not None:
            self.traces.forget(call)
        self.feeder.release(call)
        self._futures.pop(call, None)
        self._arguments.release(call)

    def cancel(self, future: CallFuture[Any]) -> None:
        """The owner's part of `CallFuture.cancel`."""
        call = future.call_id
        end = CallEnd(call, 0, CANCELLED)
        if self.memory is not None and self.memory.leave(call, future.key):
            self.deliver_noted([CallDone(end)])  # it says nothing of the call that it followed
            return
        if call in self.feeder.inputs.waiting and self.feeder.cancel(call):
            self.deliver([CallDone(end)])
            return
        with suppress(Closed):  # the program leaves, and says nothing more
            self.say(CancelSubmitted((call,)))
        if call in self.feeder.inputs.consumers:
            self.deliver(self.feeder.ended(future, end, None))

    def cancel_all(self, futures: Sequence[CallFuture[Any]]) -> int:
        """Cancel many at once; how many had not ended."""
        # The last first: whoever waits for another's result was submitted after it, and is to be cancelled, not to fail for want of it.
        return sum(future.cancel() for future in reversed(futures))

    def pending(self) -> list[CallFuture[Any]]:
        """Futures that have not ended."""
        return list(self._futures.values())

    def unread(self) -> list[CallDone]:
        """Ends of calls with a tag, of which the program has taken no notice."""
        return [done for future in list(self._finished.values()) if future.tag and (done := future.unread()) is not None]

    def outstanding(self) -> int:
        """How many calls have not ended."""
        return len(self._futures)

    def close(self, reason: str) -> None:
        """Take nothing more, and end with `Closed` what has not ended: the manager will say nothing more."""
        self.closed = self.closed or reason
        self.feeder.close()
        for call in list(self._futures):
            self._close_one(call)
        self._bell.ring()

    def _close_one(self, call: CallId) -> None:
        self.deliver([CallDone(CallEnd(call, 0, CLOSED, detail=EndDetail(text=self.closed)), returned_at=self.clock())])

    def leave_to_program(self, reason: str) -> None:
        """This process is a forked copy of the program: end the futures here, and from now on touch nothing that the program uses."""
        if self.memory is not None:
            self.memory.journal.leave_to_program()
        self.closed, self._forked, self._parents, self.memory = reason, True, self.memory, None
        self.on_read = lambda _call, _tag: None
        self._bell.renew()
        self._arguments.leave_to_program()
        self.feeder.leave_to_program()
        for future in self._futures.values():
            future.forget_watchers()
        self.close(reason)

    def settle(self) -> None:
        """The store is about to go: read the results that are still in it, for whoever asks later."""
        for future in list(self._unread.values()):
            if self.memory is None or not self.memory.outlives(future):
                future.settle(last=True)

    def count_in(self, found: dict[str, Any]) -> None:
        """Put into a status what the manager's core does not know of."""
        add_inputs(found, self.feeder.count)
        if self.memory is not None:
            self.memory.count_in(found["calls"])

    def close_memory(self) -> None:
        """Finish writing what calls have returned."""
        if self.memory is not None:
            self.memory.close()

    # ------------------------------------------------------------ from the manager, on its thread

    def deliver(self, ends: Sequence[CallDone]) -> None:
        """Finish the futures of calls that have ended, and of those that end because of that; what they returned is remembered first."""
        if self.memory is not None:
            self.memory.note(ends, self._futures)
        self.deliver_noted(ends)

    def deliver_noted(self, ends: Sequence[CallDone]) -> None:
        """As `deliver`, for ends that are noted, or not to be."""
        while ends:
            ends = self._deliver(ends)
        if self._bell.waiters:
            self._bell.ring()

    def _deliver(self, ends: Sequence[CallDone]) -> list[CallDone]:
        futures, finished, feeder = self._futures, self._finished, self.feeder
        pins, files = self._arguments.pins, self._arguments.files
        consumers, waiting, held = feeder.inputs.consumers, feeder.inputs.waiting, feeder.held
        more: list[CallDone] = []
        for done in ends:
            end = done.end
            # Whoever asks for the result takes these away from the record.
            call, payload, spans = end.call, end.payload, end.spans
            future = futures.get(call)
            if end.kept:
                self.kept.note(spans, self._needed_by(call))
            if pins and call in pins:
                self._arguments.unpin(pins.pop(call))
            if files:
                files.pop(call, None)
            if held or waiting:
                feeder.release(call)
            if self.traces is not None:
                self.traces.ended(done)
            if future is None:
                self._discard(spans)
                self.on_read(call, done.tag)
                continue
            if spans:
                feeder.hold(spans)  # until we have looked who needs them
                weakref.finalize(future, self.later, partial(self._discard, spans)).atexit = False
                self._unread[call] = future
            # In this order: whoever looks meanwhile sees the call where calls wait or where they have ended, and there only ended ones.
            ended = future.finish(done)
            if ended:
                finished[call] = future
                if future.collected:  # by somebody who was quicker than we are, or who submitted it
                    finished.pop(call, None)
                    self.on_read(call, done.tag)
            else:
                self._discard(spans)
                self.on_read(call, done.tag)
            if call in consumers:
                more += feeder.ended(future, end, Part(payload, spans) if ended and end.outcome == RETURNED else None)
            if spans:
                feeder.unhold(spans)
            futures.pop(call, None)
        return more

    def _needed_by(self, call: CallId) -> Needed:
        """What making the result of a call again needs of this program. (Kept results that it was given the manager can make again.)"""
        held = self.feeder.take_held(call)
        kept = [name for name in held if self.kept.has(name)]
        self.feeder.let_go_held(kept)
        pins, files = self._arguments.pins.pop(call, ()), self._arguments.take_files(call)
        return Needed(pins, files, [name for name in held if name not in kept])

    def forgotten(self, names: Sequence[FileName]) -> None:
        """The manager will not make these results again: what their making needs may go. On the thread that delivers."""
        for needed in self.kept.forgotten(names):
            self._arguments.unpin(needed.pins)
            self.feeder.let_go_held(needed.held)

    def _discard(self, spans: Sequence[ObjectRef]) -> None:
        if self._forked:
            return
        self.drop(self.feeder.let_go(spans))

    def take_over(self, calls: Sequence[tuple[CallId, float]], tag: str) -> list[CallFuture[Any]]:
        """Calls of a program that has left are this one's from now on: futures of them. On the thread that delivers."""
        futures: list[CallFuture[Any]] = [CallFuture(self, call, tag, queued_at) for call, queued_at in calls]
        self._futures.update((future.call_id, future) for future in futures)
        return futures

    # ------------------------------------------------------------ for the feeder

    def find(self, call: CallId) -> CallFuture[Any] | None:
        """The future of a call that has not ended."""
        return self._futures.get(call)

    def withdraw_late(self, call: CallId) -> bool:
        """It has ended otherwise than at the manager, or (True) among those that wait for inputs, where it is cancelled."""
        if self.feeder.cancel(call):
            return True
        with suppress(Closed):
            self.say(CancelSubmitted((call,)))
        return False

    def orphans(
        self, worker: WorkerId, message: OrphansHeld | OrphansEnded, withdraw: Callable[[Iterable[CallId]], list[CallSpec]]
    ) -> None:
        """A worker tells of calls of this program's earlier life. On the manager's thread."""
        if self.memory is not None and isinstance(message, OrphansHeld):
            self.memory.orphans_held(worker, message.keys, self._futures, withdraw)
        elif self.memory is not None and isinstance(message, OrphansEnded):
            self.memory.orphans_ended(message.ends, self._futures)

    def hand_over(self, item: Item) -> None:
        """A call that has its inputs, or what is to be said before or after it. Raises `Closed`."""
        self._inbox.put(item)

    def is_seen_to(self, spec: CallSpec) -> bool:
        """A call with a key comes out of the inbox, on the manager's thread, where workers tell of earlier lives of this program too: so it
        either is among those that can be withdrawn then, or found here. True: it runs for such a life, or has just ended as it did."""
        future = self._futures.get(spec.call)
        if future is None or self.memory is None:
            return future is None
        return bool(self.memory.orphans) and not future.done() and not spec.options.keep and self.memory.wait_for_orphan(spec)

    def recalled(self, name: str) -> str:
        """The content's name of a part of a result that is in the journal, and need not be in the store; "" for others."""
        return self.memory.recalled(name) if self.memory is not None else ""

    def put_joined(self, call: CallId, data: bytes | memoryview, content: str = "") -> ObjectRef:
        """Keep arguments, whose name is ``content`` if that is known, until their call has ended. Waits and raises as `submit` does."""
        # Hopeless where all others that wait will make no room, as they wait for this.
        ref = self._arguments.put(data, lambda: len(self._futures) <= len(self.feeder.inputs.waiting), content)
        pins = self._arguments.pins
        pins[call] = (*pins.get(call, ()), ref)
        if call not in self._futures:  # it has just been cancelled
            self._arguments.unpin(pins.pop(call, ()))
        return ref

    def read(self, name: ObjectName) -> memoryview:
        """The bytes of a result's object."""
        return self.kept.open(name)

    def drop(self, names: Sequence[ObjectName]) -> None:
        """Nobody needs these objects of results any more."""
        if not names:
            return
        for name in names:
            self.store.discard(name)
        if self.memory is not None:
            self.memory.let_go(names)
        self.kept.drop(names)
        self._arguments.room_made()

    # ------------------------------------------------------------ asking

    def wait(self, timeout: float | None) -> CallFuture[Any] | None:
        """The next call that has ended and that nobody has collected; None after ``timeout`` seconds or when there is none to come."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            future = self._next_finished()
            if future is not None:
                return future
            if self.empty():
                return None
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            self._bell.wait(lambda: self._finished or not self._futures, left)

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
        if future.done():  # else when its end comes
            self.on_read(future.call_id, future.tag)
        if not self._futures and self._bell.waiters:
            self._bell.ring()

    def resolve(self, future: CallFuture[Any], done: CallDone) -> Any:
        """The result, or raise what the call ended with. In the thread that asks."""
        end = done.end
        if end.outcome == RETURNED:
            result = unpack_result(end.payload, end.spans, self.kept.open)
            if end.spans:  # if it could not be read, they are there for who asks again
                self._discard(end.spans)
            return result
        if end.outcome == RAISED:
            raise unpack_exception(end.payload)
        if end.outcome == INPUT_FAILED:
            raise input_failed(future, end.detail.text if end.detail is not None else "")
        raise failure(done)
