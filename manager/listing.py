"""Which calls there are, for people to read: the newest of each state. Pure.

Theory of operation
-------------------
A manager may have millions of calls, so nobody looks at all of them. The answer takes so many of each state as are asked for: those that
wait from the new ends of the queues, those that were sent from the workers, those that failed from the last `FAILURES_KEPT` of these. Each
call, queue and worker that is looked at costs one *look*; after `LOOKS_MOST` of them the answer is what has been found, and says ``cut``.
So it costs some milliseconds, however many calls there are.

The manager does not hear when a slot takes a call. A worker gets its calls in order, so of those that it holds the oldest, as many as the
instance can run at once, count as running, as they do where a worker is lost.

Of calls that have ended well nothing is kept, and those that wait for the results of others are in their programs: neither is listed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, Final

import msgspec

from windlass.manager.books import Books
from windlass.manager.calls import Call
from windlass.manager.failures import TEXT_MOST, FailedCall
from windlass.manager.libraries import LibraryState
from windlass.manager.workers import Phase, Worker
from windlass.messages import CallId, LibraryId, ListCalls

WAITING: Final = "waiting"
SENT: Final = "sent"
RUNNING: Final = "running"
FAILED: Final = "failed"
#: In the order in which they are listed.
STATES: Final = (RUNNING, SENT, WAITING, FAILED)
#: Of one state, in one answer.
NEWEST_MOST: Final = 1000
#: Calls, queues and workers that are looked at for one state.
LOOKS_MOST: Final = 5000
#: A message has at most 1 MiB.
BYTES_MOST: Final = 900 << 10

#: Whose a call is, and its own number of it (`windlass.manager.programs.Programs.name_of`).
NameOf = Callable[[CallId], tuple[str, CallId]]
Row = dict[str, Any]


class Looks:
    """How many looks are left."""

    def __init__(self) -> None:
        self.left = LOOKS_MOST

    def take(self) -> bool:
        """One more; False when there are none left."""
        self.left -= 1
        return self.left >= 0

    @property
    def over(self) -> bool:
        """Something was not looked at."""
        return self.left < 0


def runs(books: Books, call_id: CallId) -> bool:
    """Whether a call counts as running (see above). From any thread, as each look at the books is a single step."""
    call = books.calls.get(call_id)
    worker = books.workers.get(call.worker) if call is not None else None
    return worker is not None and any(running and other is call for other, running in _of(worker))


def _of(worker: Worker) -> Iterator[tuple[Call, bool]]:
    """A worker's calls in order, and whether they count as running."""
    places: dict[LibraryId, int] = {}
    for instance in list(worker.instances.values()):
        if instance.phase is Phase.READY:
            places[instance.library] = places.get(instance.library, 0) + instance.running_most
    for call in list(worker.calls.values()):
        library = call.spec.library
        left = places.get(library, 0)
        places[library] = left - call.weight
        yield call, left > 0


def list_calls(books: Books, wanted: ListCalls, now: float, name_of: NameOf) -> bytes:
    """The answer to ``wanted``, as JSON (docs/status.md). States and libraries that there are not have no calls."""
    most = max(0, min(wanted.most, NEWEST_MOST))
    meant = set(wanted.states or STATES)
    states = [state for state in books.libraries.values() if wanted.library in ("", state.spec.name)]
    parts: list[Iterable[Row]] = []
    cut = False
    if meant & {RUNNING, SENT}:
        looks = Looks()
        held = list(_held(books, wanted, states, looks))
        for kind in (RUNNING, SENT):
            if kind in meant:
                # Those that have run longest: whoever looks wants to know what does not end.
                found = heapq.nsmallest(most, (one for one in held if one[0] == kind), key=lambda one: one[2].sent_at)
                parts.append(_row(books, call, kind, worker, now) for kind, worker, call in found)
        cut = cut or looks.over
    if WAITING in meant and not wanted.host:
        looks = Looks()
        newest = heapq.nlargest(most, _waiting(books, wanted, states, most, looks), key=lambda call: (call.queued_at, call.spec.call))
        parts.append(_row(books, call, WAITING, None, now) for call in newest)
        cut = cut or looks.over
    if FAILED in meant:
        parts.append(_failed(books, wanted, most))
    rows: list[msgspec.Raw] = []
    size = 0
    for row in chain.from_iterable(parts):
        program, call_id = name_of(row.pop("id"))
        encoded = msgspec.json.encode({"call": call_id, "program": program[:TEXT_MOST], **row})
        size += len(encoded) + 1
        if size > BYTES_MOST:
            cut = True
            break
        rows.append(msgspec.Raw(encoded))
    return msgspec.json.encode({"calls": rows, "counts": _counts(books, wanted, states), "cut": cut, "at": now})


def _counts(books: Books, wanted: ListCalls, states: Iterable[LibraryState]) -> dict[str, int | None]:
    """How many there are in all; None where that cannot be had without looking at each."""
    if wanted.tag or wanted.host:
        return {"waiting": None, "sent": None, "failed": None}
    states = list(states)
    waiting, sent = sum(state.waiting for state in states), sum(state.running for state in states)
    if wanted.library:
        return {"waiting": waiting, "sent": sent, "failed": None}
    return {"waiting": waiting + sum(map(len, books.parked.values())), "sent": sent, "failed": books.failures.calls}


def _held(books: Books, wanted: ListCalls, states: list[LibraryState], looks: Looks) -> Iterator[tuple[str, Worker, Call]]:
    """Calls that workers hold, with whether they run."""
    only = {state.spec.id for state in states} if wanted.library else None
    if only is None:
        workers: Iterable[Worker] = books.workers.values()
    else:
        ids = dict.fromkeys(instance.worker for state in states for instance in state.instances.values())
        workers = (books.workers[one] for one in ids if one in books.workers)
    for worker in workers:
        if not looks.take():
            return
        if not worker.calls or (wanted.host and wanted.host not in (worker.info.host, worker.id)):
            continue
        for call, running in _of(worker):
            if not looks.take():
                return
            if (only is None or call.spec.library in only) and wanted.tag in ("", call.spec.tag):
                yield RUNNING if running else SENT, worker, call


def _waiting(books: Books, wanted: ListCalls, states: list[LibraryState], most: int, looks: Looks) -> Iterator[Call]:
    """Waiting calls, of each queue the newest."""
    queues = (queue for state in states if state.waiting for queue in state.queues)
    lines = (chain(reversed(queue.calls), reversed(queue.back)) for queue in queues if queue.waiting)
    ids = {state.spec.id for state in states}
    for line in chain(lines, (reversed(calls.values()) for calls in books.parked.values())):
        found = 0
        for call in line:
            if not looks.take():
                return
            if not call.cancelled and wanted.tag in ("", call.spec.tag) and call.spec.library in ids:
                yield call
                found += 1
                if found == most:
                    break


def _row(books: Books, call: Call, state: str, worker: Worker | None, now: float) -> Row:
    spec = call.spec
    return {
        "id": spec.call,
        "library": books.names.library(spec.library),
        "function": books.names.function(spec.function),
        "state": state,
        "tag": spec.tag[:TEXT_MOST],
        "host": worker.info.host if worker is not None else "",
        "worker": worker.id if worker is not None else "",
        "pilot": worker.info.pilot if worker is not None else "",
        "waited": max(0.0, (call.sent_at if worker is not None else now) - call.queued_at),
        "ran": max(0.0, now - call.sent_at) if worker is not None else 0.0,
        # Begun ones: numbers of attempts count those, too, that came back before they started.
        "attempts": len(call.attempts or ()) + (state == RUNNING),
        "outcome": call.attempts[-1].outcome[:TEXT_MOST] if call.attempts else "",
        "error": _awaited(books, call),
        "ended_at": None,
    }


def _awaited(books: Books, call: Call) -> str:
    """What a call waits for whose file cannot be had now."""
    file = books.replicas.files.get(call.parked) if call.away else None
    return f"waits for its file: {file.away}"[:TEXT_MOST] if file is not None else ""


def _failed(books: Books, wanted: ListCalls, most: int) -> Iterator[Row]:
    for one in reversed(books.failures.newest):  # which are few
        if most <= 0:
            return
        if wanted.library in ("", one.library) and wanted.tag in ("", one.tag) and wanted.host in ("", one.host, one.worker):
            most -= 1
            yield _failed_row(one)


def _failed_row(one: FailedCall) -> Row:
    return {
        "id": one.call,
        "library": one.library,
        "function": one.function,
        "state": FAILED,
        "tag": one.tag,
        "host": one.host,
        "worker": one.worker,
        "pilot": "",
        "waited": max(0.0, (one.sent_at or one.ended_at) - one.queued_at),
        "ran": max(0.0, one.ended_at - one.sent_at) if one.sent_at else 0.0,
        "attempts": one.attempts,
        "outcome": one.outcome,
        "error": one.error,
        "ended_at": one.ended_at,
    }
