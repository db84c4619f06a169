"""What a program's calls have returned before: in an earlier life of the program (a journal), or to an equal call (``memoize=True``).

Theory of operation
-------------------
A call is known by its *key*: the content of its function (`windlass.content`) and its arguments: the bytes of the payload where these are
few and the same in every process (with the versions of packages that they name), else a digest of what they mean; large buffers and
declared files by their names, which are content; inputs that are the results of other calls by the keys of those.  So a program that is
started again asks by the same keys as before it was killed, as long as it submits the same calls, whatever their order and however many
had ended.

*A journal remembers calls.*  Equal calls are told apart by number: the second ``submit`` of ``sample()`` has another key than the first, so
a program that draws a thousand samples finds a thousand, not one.  What was found is forgotten in memory: nobody asks for it twice.

*A memoized function* has no numbers: all equal calls have one result.  While the first of them runs, and until what it returned is in the
journal, the others *follow* it: they end as it ends when it returned or raised, and else one of them takes its place.

Large buffers of results that were found stay in the journal, however many there are: they are read there, and looked at for damage, when
somebody asks, and go into the manager's store only when a call is given them.

Only results are remembered: what raised, died or was cancelled is run again.  So is what has no content, what stays on workers, and calls
with a directory of their own; but calls that are given such results are found by the keys of their inputs.

*Orphans* are calls of an earlier life that still run at a worker: who submits one waits for its end. Those that nobody wants any more are
ended: such as were cancelled, such as have ended in this life, as they had been sent elsewhere by then, and, if the program says
so (`end_earlier`), all that it has not submitted.

`key_of` and `recall` are called by who submits, `note` on the thread that delivers ends.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from typing import Any, Final, Protocol

import msgspec

from windlass.errors import Closed, FileUnavailable
from windlass.files import collecting
from windlass.manager.advice import EarlierAdvice
from windlass.manager.calls import CLOSED
from windlass.manager.feeding import Feeder
from windlass.manager.future import CallFuture
from windlass.manager.journal import Entry, Journal
from windlass.messages import (
    CANCELLED,
    RAISED,
    RESULT,
    RETURNED,
    CallDone,
    CallEnd,
    CallId,
    CallSpec,
    EndOrphans,
    Message,
    ObjectName,
    ObjectRef,
    WorkerId,
)

log = logging.getLogger("windlass.manager")

#: Payloads of up to so many bytes are their own digest.
_SHORT_BYTES: Final = 48
_DIGEST_BYTES: Final = 16
#: In pickled bytes: the opcodes of sets, and the modules by which classes and functions go by value, or with their source.
_UNSTEADY: Final = (b"\x8f", b"\x91", b"cloudpickle", b"windlass.byvalue", b"windlass.snapshots")
#: How the contents of targets begin.
JOURNALED: Final = b"j"
MEMOIZED: Final = b"m"
_MEMOIZED: Final = MEMOIZED[0]
#: Where a call of an earlier life is that has ended, while its result is written: it cannot be lost with a worker.
_HERE: Final = WorkerId("")


class ClientStore(Protocol):
    """What a client needs of the manager's objects: a `SpoolingStore`, or the way to one of another process."""

    @property
    def far(self) -> bool:
        """Objects come over a network, so that opening one may take long."""
        ...

    def put(self, data: Any, *, pin: bool = False) -> ObjectRef: ...
    def could_hold(self, size: int) -> bool: ...
    def pin(self, name: str) -> None: ...
    def unpin(self, name: str) -> None: ...
    def open(self, name: str) -> memoryview: ...
    def discard(self, name: str) -> None: ...


class RememberingClient(Protocol):
    """What a memory needs of the client."""

    feeder: Feeder
    closed: str

    def deliver_noted(self, ends: Sequence[CallDone], /) -> None: ...
    def hand_over(self, item: CallSpec, /) -> None: ...
    def read(self, name: ObjectName, /) -> memoryview: ...
    def drop(self, names: Sequence[ObjectName], /) -> None: ...
    def say(self, message: Message, /) -> None: ...
    def withdraw_late(self, call: CallId, /) -> bool: ...


class Memory:
    """The memory of one client. ``journal`` is its own; ``all_calls``: the program asked for a journal, and not only for memoizing."""

    def __init__(self, journal: Journal, client: RememberingClient, clock: Callable[[], float], *, all_calls: bool) -> None:
        self.journal = journal
        self.all_calls = all_calls
        self._client = client
        self._clock = clock
        self._lock = threading.Lock()
        #: The call of each key in this life, and how many equal ones came after the first.
        self._seen: dict[bytes, CallId] = {}
        self._times: dict[bytes, int] = {}
        #: Memoized calls that run, by key, and who follows them.
        self._leaders: dict[bytes, dict[CallId, CallSpec]] = {}
        self._following: dict[CallId, bytes] = {}
        #: Calls of an earlier life that still run, by key: where; and those of this life that wait for their ends.
        self.orphans: dict[bytes, WorkerId] = {}
        self._parked: dict[bytes, CallSpec] = {}
        #: The program wants none of those that it has not submitted.
        self._end_unasked = False
        self._advice = EarlierAdvice()
        #: Calls that had been sent before it was known that an earlier life's run of them goes on, and have ended as that did: their ends
        #: at the manager are to come. And how many have come, by the status's words for them.
        self._sent_twice: set[CallId] = set()
        self._ended_twice: Counter[str] = Counter()
        #: Buffers of results that were recalled, by the names that they have in this life; they are read where the journal has them.
        self._recalled: dict[str, ObjectName] = {}
        #: Calls that ended with what was remembered, or as equal ones did.
        self.used = 0
        self._passed_over = False

    def key_of(
        self,
        content: bytes,
        spec: CallSpec,
        arguments: tuple[tuple[Any, ...], dict[str, Any]] | None,
        files: Iterable[str],
        inputs: Sequence[CallFuture[Any]],
    ) -> bytes | None:
        """The key of a call that is being submitted, to be asked once; None if it has none.

        ``content``: that of its target. ``arguments``: of which its payload was made; None for scalars. ``files``: the keys of those that
        it is given. ``inputs``: calls whose results it is given.
        """
        keys = [one.key for one in inputs if one.key is not None]
        if len(keys) != len(inputs):
            return None
        payload, spans, versions = spec.payload, spec.spans, ""
        if arguments is not None:
            from windlass.content import content_of, versions_in  # they need cloudpickle

            # A stream that went to the store, perhaps of another machine, is not had from there again.
            if payload and _is_steady(payload):
                versions = versions_in(payload)
            else:
                with collecting():
                    found = content_of(arguments, _stands_for(inputs))
                if found is None:
                    return None
                payload, spans = found, ()
        names = [*(ref.name.encode() for ref in spans), *map(str.encode, files), *keys]
        if versions:
            names.append(versions.encode())
        if not names and len(payload) <= _SHORT_BYTES:
            base = content + payload
        else:
            digest = blake2b(payload, digest_size=_DIGEST_BYTES)
            for name in names:
                digest.update(b"\0%d " % len(name) + name)
            base = content + b"\0" + digest.digest()
        first = content[:1] == MEMOIZED or self._seen.setdefault(base, spec.call) is spec.call
        return base if first else self._again(base, spec.call)

    def key_of_plain(self, content: bytes, spec: CallSpec) -> bytes:
        """The same for a call of scalars, of which there may be a million."""
        payload, call = spec.payload, spec.call
        key = content + payload if len(payload) <= _SHORT_BYTES else content + b"\0" + blake2b(payload, digest_size=_DIGEST_BYTES).digest()
        # The first to ask is remembered with its number, so that only equal calls need a lock.
        if self._seen.setdefault(key, call) is not call and content[:1] != MEMOIZED:
            key = self._again(key, call)
        return key

    def _again(self, base: bytes, call: CallId) -> bytes:
        with self._lock:
            number = self._times[base] = self._times.get(base, 0) + 1
        key = base + b"#%d" % number
        self._seen[key] = call
        return key

    def recall(self, call: CallId, key: bytes) -> CallDone | None:
        """How a call with this key has ended before; None: it is to be run."""
        end = self.journal.recall(key, forget=key[:1] != MEMOIZED)
        if end is None:
            return None
        # Names that no other result has: each is read, and let go, for itself.
        spans = tuple(ObjectRef(ObjectName(RESULT + os.urandom(16).hex()), ref.size) for ref in end.spans)
        self._recalled.update((here.name, there.name) for here, there in zip(spans, end.spans, strict=True))
        self.used += 1
        now = self._clock()
        return CallDone(msgspec.structs.replace(end, call=call, spans=spans), now, 0.0, now)

    def recalled(self, name: str) -> str:
        """What a buffer of a result that was recalled is called in the journal, which is its content's name; "" for all else, which is in
        the manager's store."""
        return self._recalled.get(name, "")

    def open(self, name: str) -> memoryview:
        """Such a buffer. Raises `KeyError` for others, `FileUnavailable` when it is gone, or damaged."""
        place = self._recalled[name]
        try:
            return self.journal.open(place)
        except KeyError:
            text = (
                f"the result was in journal {self.journal.folder}, where its buffer {place} is gone or damaged: the next run makes it again"
            )
            raise FileUnavailable(text) from None

    def outlives(self, future: CallFuture[Any]) -> bool:
        """Its result can be read also when all is closed: it is in a journal that stays."""
        packed = future.packed() if self.all_calls else None
        return packed is not None and bool(packed[1]) and packed[1][0].name in self._recalled

    def let_go(self, names: Iterable[str]) -> None:
        """Nobody needs these buffers of results any more. Takes no lock."""
        if self._recalled:
            for name in names:
                self._recalled.pop(name, None)

    def count_in(self, calls: dict[str, int]) -> None:
        """Put into the numbers of a status the calls that ended as equal ones had before, each once, also such as the manager's core has
        had as well."""
        twice = dict(self._ended_twice)
        calls["remembered"] = self.used
        calls["done"] += self.used
        calls["submitted"] += self.used - sum(twice.values())
        for state, number in twice.items():
            calls[state] -= number

    @property
    def following(self) -> int:
        """Calls that will end as an equal one does."""
        return len(self._following)

    def follow(self, spec: CallSpec, key: bytes) -> bool:
        """A memoized call is about to be handed over. True: it ends as an equal one does that runs, or that has just ended."""
        with self._lock:
            followers = self._leaders.get(key)
            if followers is not None:
                followers[spec.call] = spec
                self._following[spec.call] = key
                return True
            self._leaders[key] = {}
        # Who ends leaves the journal something before it leaves this, so what is not there now will be made by this call.
        if key not in self.journal.places or (done := self.recall(spec.call, key)) is None:
            return False
        self._client.deliver_noted([done])
        self._recall_followers(key)
        return True

    def _take_followers(self, key: bytes) -> list[CallSpec]:
        """Who follows the call with this key, which runs no more: whoever comes now does not."""
        with self._lock:
            followers = list(self._leaders.pop(key, {}).values())
            for spec in followers:
                self._following.pop(spec.call, None)
        return followers

    def _recall_followers(self, key: bytes) -> None:
        """What the first one has returned is in the journal, or cannot be."""
        for spec in self._take_followers(key):
            found = self.recall(spec.call, key)
            if found is not None:
                self._client.deliver_noted([found])
            else:
                self._hand_over(spec)

    # ------------------------------------------------------------ calls of an earlier life that still run

    def wait_for_orphan(self, spec: CallSpec) -> bool:
        """A call is to be run. True: it runs already, for an earlier life of this program, and will end as that does."""
        with self._lock:
            if spec.key not in self.orphans:
                return False
            self._parked[spec.key] = spec
            return True

    def orphans_held(
        self,
        worker: WorkerId,
        keys: Iterable[bytes],
        futures: Mapping[CallId, CallFuture[Any]],
        withdraw: Callable[[Iterable[CallId]], list[CallSpec]],
    ) -> None:
        """A worker runs these. ``withdraw`` takes calls back from the manager that have not been sent."""
        with self._lock:
            wanted = [key for key in keys if key[:1] == JOURNALED and key not in self.journal.places]
            self.orphans.update((key, worker) for key in wanted)
            calls = [call for key in wanted if (call := self._seen.get(key)) is not None and call in futures]
            self._parked.update((spec.key, spec) for spec in withdraw(calls))
            unwanted = [key for key in wanted if not self._is_wanted(key, futures)]
        self._end(unwanted)

    def _is_wanted(self, key: bytes, futures: Mapping[CallId, CallFuture[Any]]) -> bool:
        call = self._seen.get(key)
        return call in futures if call is not None else not self._end_unasked

    def _end(self, keys: list[bytes]) -> None:
        # A client that closes has no futures: what runs is for the next life.
        if keys and not self._client.closed:
            with suppress(Closed):
                self._client.say(EndOrphans(keys))

    def where(self, keys: Iterable[bytes]) -> dict[WorkerId, list[bytes]]:
        """At which workers these run for an earlier life."""
        found: dict[WorkerId, list[bytes]] = {}
        with self._lock:
            for key in keys:
                if worker := self.orphans.get(key):
                    found.setdefault(worker, []).append(key)
        return found

    def end_earlier(self) -> int:
        """End the orphans that this life has not submitted, and those of which workers will tell; how many there are by now."""
        with self._lock:
            self._end_unasked = True
            keys = self._unasked()
        self._end(keys)
        return len(keys)

    def _unasked(self) -> list[bytes]:
        return [key for key, at in self.orphans.items() if at != _HERE and key not in self._seen]

    def advice(self, waiting: Callable[[], bool], now: float) -> str:
        """What to tell a person whose calls wait, as slots run what this life has not submitted; "": nothing."""

        def unasked() -> int:
            with self._lock:
                return len(self._unasked())

        return self._advice.look(bool(self.orphans), waiting, unasked, now)

    def orphans_ended(self, ends: Iterable[CallEnd], futures: Mapping[CallId, CallFuture[Any]]) -> None:
        """Calls of an earlier life have ended. Until that is written, which takes the disk's time, who submits one waits for it still."""
        for end in ends:
            key = end.key
            if key in self.journal.places:  # the life that it ran for had written it, and could not say so any more
                self._client.drop([ref.name for ref in end.spans])
            elif end.outcome != RETURNED or end.kept or end.outputs:
                if (spec := self._not_orphaned(key)) is not None:
                    self._hand_over(spec)
            elif end.spans:
                with self._lock:
                    if key in self.orphans:
                        self.orphans[key] = _HERE
                self._note_large(key, end, after=partial(self._orphan_noted, key, futures))
            else:
                self.journal.append([(key, end)], index=True)
                self._orphan_noted(key, futures)

    def _not_orphaned(self, key: bytes) -> CallSpec | None:
        """It runs for no earlier life any more. The call of this life that has waited for it."""
        with self._lock:
            self.orphans.pop(key, None)
            return self._parked.pop(key, None)

    def _orphan_noted(self, key: bytes, futures: Mapping[CallId, CallFuture[Any]]) -> None:
        spec = self._not_orphaned(key)
        call = spec.call if spec is not None else self._seen.get(key)
        if call is None or call not in futures:
            return  # who submits it later finds it
        done = self.recall(call, key)
        if done is not None:
            if spec is None:
                self._sent_twice.add(call)
            self._client.deliver_noted([done])
            if spec is None and self._client.withdraw_late(call):
                self._end_twice(call, CANCELLED)
        elif spec is not None:
            self._hand_over(spec)

    def _end_twice(self, call: CallId, outcome: int) -> None:
        with self._lock:
            self._sent_twice.discard(call)
            self._ended_twice[{RETURNED: "done", CANCELLED: "cancelled"}.get(outcome, "failed")] += 1

    def orphans_lost(self, worker: WorkerId) -> None:
        """A worker is gone, with what it ran."""
        if not self.orphans:
            return
        with self._lock:
            keys = [key for key, at in self.orphans.items() if at == worker]
            for key in keys:
                del self.orphans[key]
            specs = [spec for key in keys if (spec := self._parked.pop(key, None)) is not None]
        for spec in specs:
            self._hand_over(spec)

    # ------------------------------------------------------------ ends

    def leave(self, call: CallId, key: bytes | None) -> bool:
        """A call, which is known by ``key``, is cancelled. True: it waited for another one's end, so its own is the caller's to deliver."""
        with self._lock:
            leader = self._following.pop(call, None)
            if leader is not None:
                return self._leaders[leader].pop(call, None) is not None
            if key is None or key not in self.orphans:
                return False
            parked = self._parked.pop(key, None) is not None
        self._end([key])
        return parked

    def note(self, ends: Sequence[CallDone], futures: Mapping[CallId, CallFuture[Any]]) -> None:
        """The manager says how these calls have ended: write what they returned, before anybody is told."""
        entries: list[Entry] = []
        for done in ends:
            end = done.end
            if end.call in self._sent_twice:
                self._end_twice(end.call, end.outcome)
                continue
            future = futures.get(end.call)
            if future is None or (key := future.key) is None:
                continue
            returned = end.outcome == RETURNED and not end.kept and not end.outputs
            end.key = b""  # it stands beside
            if key[0] == _MEMOIZED:
                self._note_memoized(key, end, returned)
            elif returned:
                if end.spans:
                    self._note_large(key, end)
                else:
                    entries.append((key, end))
        if entries:
            self.journal.append(entries)

    def _note_large(self, key: bytes, end: CallEnd, after: Callable[[], None] | None = None) -> None:
        spans, memoized = end.spans, key[:1] == MEMOIZED
        self._client.feeder.hold(spans)

        def done() -> None:
            self._client.feeder.unhold(spans)
            if after is not None:
                self._client.drop(self._client.feeder.let_go(spans))
                after()
            if memoized:
                self._recall_followers(key)

        # A copy: the record is the future's, which takes out what was read.
        copy = msgspec.structs.replace(end)
        self.journal.append_large(key, copy, self._client.read, done, index=memoized or after is not None)

    def _note_memoized(self, key: bytes, end: CallEnd, returned: bool) -> None:
        if returned and end.spans:
            self._note_large(key, end)
            return
        if returned:
            self.journal.append([(key, end)], index=True)
        followers = self._take_followers(key)
        if not followers:
            return
        if returned or end.outcome == RAISED:
            self.used += len(followers)
            now = self._clock()
            self._client.deliver_noted([CallDone(msgspec.structs.replace(end, call=spec.call), now, 0.0, now) for spec in followers])
        elif end.outcome != CLOSED:
            # It says nothing of the others: it may have been cancelled, or its worker lost too often. The first of them is run.
            for spec in followers:
                if not self.follow(spec, key):
                    self._hand_over(spec)

    def _hand_over(self, spec: CallSpec) -> None:
        with suppress(Closed):  # then the client ends it
            self._client.hand_over(spec)

    def pass_over(self, call: object) -> None:
        """This one has a directory of its own, so nothing of it is remembered. Who keeps a journal is told so, once."""
        if self.all_calls and not self._passed_over:
            self._passed_over = True
            log.warning(
                "journal %s: %r is not remembered, as it runs in a directory of its own (so do all commands, and calls with add_input or"
                " add_output): these run again in the program's next life; a function that calls subprocess.run is remembered",
                self.journal.folder,
                call,
            )

    def close(self) -> None:
        """Finish writing. What was kept only for memoizing goes."""
        self.journal.close(remove=not self.all_calls)


def _is_steady(data: bytes | memoryview) -> bool:
    """Whether these pickled bytes are the same in every process."""
    found = bytes(data)
    return not any(word in found for word in _UNSTEADY)


def _stands_for(inputs: Sequence[CallFuture[Any]]) -> Callable[[Any], object]:
    """What is hashed in place of a future among the arguments: the key of its call where its result is an input, which the worker reads as
    it was returned; what the program has of it where that goes along, which may have been changed since."""
    keys = {one.call_id: one.key for one in inputs}

    def of_future(future: CallFuture[Any]) -> object:
        return keys.get(future.call_id) or future.unpacked()

    return lambda value: of_future(value) if isinstance(value, CallFuture) else None  # pyright: ignore[reportUnknownArgumentType]
