"""Futures as arguments, the program's side: calls wait here until their inputs exist, and then go to the manager.

Theory of operation
-------------------
`Holes` is what the pickler of a call's arguments asks about futures: one of the same program becomes a hole, all others are refused
where they were given.  A future whose result the program has unpickled stands for that object, as it is then: its bytes are not kept.
Local modules that a producer had are installed for its consumers too, as its result may name them: a future knows their snapshots.

`Feeder` has the book (`windlass.manager.inputs`) and a lock for it.  It is told of ends by the client, on the thread that delivers
them, and hands a call that has its inputs to the manager there and then: payloads are joined as they are (`windlass.joined`), objects
go on by name.  What is too long for a message, or is in the journal only, becomes an object first, on a thread that starts with the
first of these.  Nothing else waits in a thread.

*A producer may end while it is given.*  Who gives it registers the call first and then looks whether the producer has ended; who
ends it notes the end first and then looks who is registered.  So one of the two sees the other, and if both do, the book takes the first.

*Objects* are held for a consumer before anybody who asks for the result could have let them go: for all ends that have some, from
before their futures are told until the consumers were looked at.

A call that ends for want of an input ends like any other: what waits for it ends next, in the client's loop, not by recursion.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from windlass import joined
from windlass.errors import Closed, InputFailed, NotPicklable, UsageError
from windlass.manager.call import IMPLICIT, Target
from windlass.manager.callbacks import CallbackThread
from windlass.manager.calls import CLOSED, INPUT_FAILED
from windlass.manager.causes import clipped
from windlass.manager.future import CallFuture
from windlass.manager.inputs import Holds, Inputs, InputsCount, Waiting
from windlass.manager.keeping import KeptResults, require_fit
from windlass.messages import (
    CANCELLED,
    OUT_OF_BAND_BYTES,
    CallDone,
    CallEnd,
    CallId,
    CallSpec,
    DefineFunctions,
    EndDetail,
    FunctionDef,
    InstallLibrary,
    LibraryId,
    Message,
    ObjectName,
    ObjectRef,
    Part,
    RemoveLibrary,
)
from windlass.pickling import wrap_large
from windlass.snapshots import module_of

#: A function is defined again for a call that comes when so many others have been; a manager remembers more for each program.
_DEFINED_MOST: Final = 500
#: Futures that people may take for ours: module and name, and what they are called.
_OTHER_FUTURES: Final = {
    ("concurrent.futures._base", "Future"): "a concurrent.futures.Future",
    ("_asyncio", "Future"): "an asyncio.Future",
    ("asyncio.futures", "Future"): "an asyncio.Future",
}


class FedClient(Protocol):
    """What a feeder needs of the client."""

    def find(self, call: CallId, /) -> CallFuture[Any] | None: ...
    def hand_over(self, item: CallSpec | tuple[str, Message], /) -> None: ...
    def recalled(self, name: str, /) -> str: ...
    def put_joined(self, call: CallId, data: bytes | memoryview, content: str = "", /) -> ObjectRef: ...
    def read(self, name: ObjectName, /) -> memoryview: ...
    def drop(self, names: Sequence[ObjectName], /) -> None: ...
    @property
    def kept(self) -> KeptResults: ...
    def deliver(self, ends: Sequence[CallDone], /) -> None: ...


class Holes:
    """The futures among one call's arguments, in the order in which their pickler meets them."""

    kind: type = CallFuture

    def __init__(self, owner: object, library: tuple[ObjectRef, ...]) -> None:
        """``owner``: the client that the call is submitted to; ``library``: code that its library has."""
        self.found: list[CallFuture[Any]] = []
        #: Snapshots beside the library's that the result may name.
        self.code: tuple[ObjectRef, ...] = ()
        self._owner = owner
        self._library = library
        self._indices: dict[CallId, int] = {}

    def clear(self) -> None:
        """The pickler begins anew."""
        self.found.clear()
        self._indices.clear()

    def reduce(self, future: CallFuture[Any]) -> tuple[Any, tuple[Any]]:
        """What pickle writes for a future. Raises `NotPicklable`."""
        refusal = self.refusal(future)
        if refusal:
            raise NotPicklable(refusal)
        unpacked = future.unpacked()
        if unpacked is not None:
            return joined.same, (wrap_large(unpacked[0]),)
        index = self._indices.get(future.call_id)
        if index is None:
            index = self._indices[future.call_id] = len(self.found)
            self.found.append(future)
        return joined.given, (index,)

    def with_code(self, code: tuple[ObjectRef, ...]) -> tuple[ObjectRef, ...]:
        """All code to install before the arguments are read: these snapshots, and those that the inputs may name. Of a module one text."""
        wanted = {module_of(ref): ref for ref in code}
        of_library = {module_of(ref) for ref in self._library} if self.found else set[str]()
        for future in self.found:
            if future.target is not None and future.target.code != self._library:
                for ref in future.target.code:
                    if (module := module_of(ref)) not in of_library:
                        wanted.setdefault(module, ref)
        self.code = tuple(ref for ref in wanted.values() if ref not in self._library)
        return tuple(wanted.values())

    def refusal(self, value: object) -> str:
        """Why this cannot be an argument, if it is a future that cannot; "" for all else."""
        kinds = type(value).__mro__
        owner = value.owner if isinstance(value, CallFuture) else None
        if owner is not None:
            if owner is self._owner:
                return ""
            return "is the future of a call of another manager: submit both calls to one, or give what it has: future.result()"
        # Not before something could not be pickled, so it is known for what it is by its name, without importing anything.
        for kind in kinds:
            name = _OTHER_FUTURES.get((kind.__module__, kind.__qualname__))
            if name is not None:
                return f"is {name} that is no call of this manager: wait for it, and give what it has: future.result()"
        return ""


class Feeder:
    """Calls of one client that wait for inputs."""

    def __init__(self, client: FedClient, clock: Callable[[], float]) -> None:
        self.inputs = Inputs()
        #: How many of them ended without having been handed over.
        self._failed = self._cancelled = 0
        self._client = client
        self._clock = clock
        self._holds = Holds()
        #: Functions of waiting calls that the manager may forget, and how many had been defined by then; and that number.
        self._functions: dict[CallId, tuple[FunctionDef, int]] = {}
        self._defined = 0
        #: Library versions that the manager was told to remove.
        self._removed: set[LibraryId] = set()
        #: Names that calls hold as inputs, until they end.
        self.held: dict[CallId, list[ObjectName]] = {}
        self._lock = threading.RLock()
        self._thread = CallbackThread("windlass-inputs")
        self._closed = False

    @property
    def count(self) -> InputsCount:
        """How many there are, for the status."""
        return InputsCount(len(self.inputs.waiting), self._failed, self._cancelled)

    def may_say(self, message: Message) -> bool:
        """Something is about to be said to the manager. False: not while calls that need the library wait; then it is said from here."""
        match message:
            case DefineFunctions(functions):
                self._defined += len(functions)
            case RemoveLibrary(library):
                with self._lock:
                    if self.inputs.remove_later(library):
                        return False
                    self._removed.add(library)
            case InstallLibrary(spec):
                with self._lock:
                    self._removed.discard(spec.id)
                    self.inputs.remove_later(spec.id, undo=True)
            case _:
                pass
        return True

    # ------------------------------------------------------------ who gives futures

    def wait_for(self, spec: CallSpec, target: Target, producers: Sequence[CallFuture[Any]]) -> bool:
        """Hand the call over when these have ended; it may be ended or on its way already on return.

        False, and nothing has changed, when the result of one has been unpickled meanwhile: the arguments must be pickled again.
        """
        call = spec.call
        with self._lock:
            self.inputs.add(spec, [producer.call_id for producer in producers])
            if target.definition is not None:
                self._functions[call] = target.definition, self._defined
            if spec.library in self._removed and target.spec is not None:  # by another thread, while the arguments were pickled
                self._removed.discard(spec.library)
                self._client.hand_over(("client", InstallLibrary(target.spec)))
                self.inputs.remove_later(spec.library)
        for producer in producers:
            if not producer.done():
                continue
            packed = self._take(producer)
            if packed is None and producer.state == "done":
                self._forget(call)
                return False
            if packed is None:
                self._client.deliver(self._fail([call], producer))
                return True
            with self._lock:
                taken = self.inputs.give_one(producer.call_id, call, packed)
                if taken:
                    self._keep(call, packed)
            if packed.spans:
                self.unhold(packed.spans)
            if taken:
                producer.collect()
        with self._lock:
            ready = None if self._closed else self.inputs.ready(call)
        if ready is not None:
            self._send(ready)
        return True

    def _take(self, producer: CallFuture[Any]) -> Part | None:
        """The part of an ended producer, its objects held; None if it has none, or the program has it unpickled."""
        packed = producer.packed()
        if packed is None:
            producer.settle()
            return None
        part = Part(*packed)
        if not part.spans:
            return part
        self.hold(part.spans)
        if producer.packed() is None:  # somebody has begun to read it, and may have let the objects go
            self.unhold(part.spans)
            producer.settle()
            return None
        return part

    def _forget(self, call: CallId) -> None:
        with self._lock:
            if self.inputs.drop(call) is not None:
                self._functions.pop(call, None)
                self._remove_libraries()
            self.let_go_held(self.take_held(call))

    # ------------------------------------------------------------ ends, on the thread that delivers

    def hold(self, spans: Sequence[ObjectRef]) -> None:
        """Keep the objects of a result, whoever lets them go, until `unhold`."""
        with self._lock:
            self._holds.hold(ref.name for ref in spans)

    def unhold(self, spans: Sequence[ObjectRef]) -> None:
        """Those that need them have them."""
        with self._lock:
            self._client.drop(self._holds.release(ref.name for ref in spans))

    def ended(self, future: CallFuture[Any], end: CallEnd, part: Part | None) -> list[CallDone]:
        """A call has ended, with this result or without; how others end because of that. ``part``: taken before anybody could read it."""
        call = future.call_id
        if call not in self.inputs.consumers:
            return []
        if part is None:
            with self._lock:
                consumers = list(self.inputs.consumers.get(call, ()))
            return self._fail(consumers, future, end)
        with self._lock:
            given, ready = self.inputs.give(call, part)
            for waiting in given:
                self._keep(waiting.call, part)
        if given:
            future.collect()
        for waiting in ready:
            self._send(waiting)
        return []

    def cancel(self, call: CallId) -> bool:
        """It was cancelled. True: it had not been handed over, so its end is the caller's to deliver."""
        with self._lock:
            return self._drop(call, CANCELLED) is not None

    def release(self, call: CallId) -> None:
        """A call has ended: it needs its inputs no more."""
        if call in self.held or call in self.inputs.waiting:
            self._forget(call)

    def take_held(self, call: CallId) -> list[ObjectName]:
        """What a call holds as inputs, which is the caller's to let go now (`let_go_held`)."""
        with self._lock:
            return self.held.pop(call, [])

    def let_go_held(self, names: Sequence[ObjectName]) -> None:
        """Those that `take_held` gave."""
        with self._lock:
            self._client.drop(self._holds.release(names))

    def let_go(self, spans: Sequence[ObjectRef]) -> list[ObjectName]:
        """The future of these is read or dropped: those that can go. Takes no lock: finalisers ask."""
        return self._holds.let_go(ref.name for ref in spans)

    def close(self) -> None:
        """Nothing waits any more: what did is the caller's to end."""
        with self._lock:
            self._closed = True
            self.inputs.clear()
            self._functions.clear()
        self._thread.close(0)

    def leave_to_program(self) -> None:
        """In a forked process: threads and objects are the program's."""
        self._lock, self._thread, self._closed = threading.RLock(), CallbackThread(), True
        self.inputs, self._holds, self.held = Inputs(), Holds(), {}

    # ------------------------------------------------------------ inside

    def _fail(self, calls: Sequence[CallId], producer: CallFuture[Any], end: CallEnd | None = None) -> list[CallDone]:
        """These cannot be run, as this producer has ended without a result."""
        closed = end is not None and end.outcome == CLOSED
        done: list[CallDone] = []
        for call in calls:
            with self._lock:
                if self._drop(call, INPUT_FAILED) is None:
                    continue
            future = self._client.find(call)
            if future is None:
                continue
            if closed and end is not None:
                done.append(CallDone(CallEnd(call, 0, CLOSED, detail=end.detail), returned_at=self._clock()))
                continue
            origin = producer.origin if isinstance(producer.origin, CallFuture) else producer
            future.origin = origin
            which = "its input" if origin is producer else "what its input depends on"
            text = f"{title(future)} was not run, because {which} failed: {title(origin)}"
            done.append(self._not_run(call, text))
        return done

    def _not_run(self, call: CallId, text: str) -> CallDone:
        return CallDone(CallEnd(call, 0, INPUT_FAILED, detail=EndDetail(text=text)), returned_at=self._clock())

    def _send(self, waiting: Waiting) -> None:
        """It has its inputs: to the manager with it."""
        parts = waiting.whole()
        stored = not any(self._client.recalled(ref.name) for part in parts for ref in part.spans)
        if stored and 0 <= joined.join_most(parts) < OUT_OF_BAND_BYTES:
            self._hand_over(waiting, joined.join(parts, self._client.read))
        else:
            self._thread(lambda: self._send_large(waiting))

    def _send_large(self, waiting: Waiting) -> None:
        try:
            payload, spans = joined.join(waiting.whole(), self._client.read)
            if len(payload) >= OUT_OF_BAND_BYTES:
                spans = (self._client.put_joined(waiting.call, payload), *spans)
                payload = b""
            put, read = self._client.put_joined, self._client.read
            spans = tuple(
                put(waiting.call, read(ref.name), content) if (content := self._client.recalled(ref.name)) else ref for ref in spans
            )
        except Closed:
            return  # the client ends what has not ended
        except Exception as error:  # noqa: BLE001 - as a rule there is no room: the call's end says so
            self._refuse(waiting, error, "its inputs could not be kept for it")
            return
        self._hand_over(waiting, Part(payload, spans))

    def _refuse(self, waiting: Waiting, error: Exception, why: str) -> None:
        """On the thread of this: it has its inputs, and cannot be handed over."""
        with self._lock:
            if self._drop(waiting.call, INPUT_FAILED) is None:
                return
        future = self._client.find(waiting.call)
        if future is not None:
            future.origin = error
            self._client.deliver([self._not_run(waiting.call, f"{title(future)} was not run, because {why}")])

    def _hand_over(self, waiting: Waiting, part: Part) -> None:
        spec = waiting.spec
        kept = self._client.kept.inputs_among(part.spans)
        inputs = (*spec.inputs, *kept)
        try:
            require_fit(*part, inputs, spec.sandbox, len(kept))  # each alone was looked at where it came from
        except UsageError as error:
            refusal = error
            self._thread(lambda: self._refuse(waiting, refusal, "no message can tell of all that it was given"))
            return
        with self._lock:  # or it might be cancelled between our look and the inbox
            if self.inputs.take(spec.call) is None:
                return
            definition, defined = self._functions.pop(spec.call, (None, 0))
            try:
                if definition is not None and self._defined - defined >= _DEFINED_MOST:
                    self._client.hand_over(("client", DefineFunctions((definition,))))
                spec.payload, spec.spans = part
                spec.inputs = inputs
                self._client.hand_over(spec)
            except Closed:
                pass  # the client is about to hear of it, and ends what has not ended
            self._remove_libraries()

    def _drop(self, call: CallId, outcome: int) -> Waiting | None:
        """With the lock: it is not going to run."""
        waiting = self.inputs.drop(call)
        if waiting is not None:
            self._functions.pop(call, None)
            self._remove_libraries()
            if outcome == CANCELLED:
                self._cancelled += 1
            else:
                self._failed += 1
        return waiting

    def _remove_libraries(self) -> None:
        while self.inputs.remove:
            library = self.inputs.remove.pop()
            self._removed.add(library)
            try:
                self._client.hand_over(("client", RemoveLibrary(library)))
            except Closed:
                pass  # and with the manager all its libraries

    def _keep(self, call: CallId, part: Part) -> None:
        """With the lock: the call needs these until it has ended."""
        if part.spans:
            names = [ref.name for ref in part.spans]
            self._holds.hold(names)
            self.held.setdefault(call, []).extend(names)


def names(future: CallFuture[Any]) -> tuple[str, str]:
    """Of the library and the function of its call."""
    return future.target.names if future.target is not None else ("", "")


def title(future: CallFuture[Any]) -> str:
    """A call as people know it: number, function, tag."""
    library, function = names(future)
    words = f"call {future.call_id}"
    what = [f"{library}.{function}" if library and library != IMPLICIT else function] if function else []
    if future.tag is not None:
        what.append(f"tag {future.tag!r}")
    return f"{words} ({', '.join(what)})" if what else words


def input_failed(future: CallFuture[Any], text: str) -> InputFailed:
    """The exception of a call that was not run, with its cause. In the thread that asks."""
    origin = future.origin
    cause: BaseException | None
    library = function = ""
    call, tag = 0, None
    if isinstance(origin, CallFuture):
        cause = origin.failure()
        (library, function), call, tag = names(origin), origin.call_id, origin.tag
        words = "was cancelled" if origin.cancelled() else f"raised {type(cause).__name__}: {cause}"
        text = f"{text} {words}"
    else:
        cause = origin
        text = f"{text}: {origin}"
    # The whole is in the cause, which they share; each of thousands of consumers would have a copy of what a program wrote.
    error = InputFailed(clipped(text), call=call, library=library, function=function, tag=tag)
    error.__cause__ = cause
    return error
