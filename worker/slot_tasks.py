"""A slot that runs many calls of async functions at once.

Theory of operation
-------------------
The slot's loop is an event loop. While it has free places it watches the call queue, and claims one call each time that the queue can be
read. One that has many more calls than another slot holds back for a moment before each, so that they share what there is: the quickest
would take it all. Each call has a *place*, which is a row in the memory
that worker and slot share, and runs as a task in a context of its own, by which `here` knows whose code asks.

*Plain functions* of such a library, and calls with a directory of their own, must not share their process with others: they run *alone*.
One that is claimed waits in its place, not begun, until those under way have ended, and nothing is claimed meanwhile. A plain function then
runs outside of the loop, as in any slot.

To load a function is to run its user's code, which may hang or end the process. So a call has begun, and is timed and charged, when it is
claimed; one that must then wait for its turn counts as not begun until that comes.

*Wishes.* The worker writes a wish into the rows and sends a byte, which wakes the loop: to cancel the call in a place, or to leave. A call
that was cancelled and ends by an exception, whichever, has ended as asked; one that returns nevertheless has returned.

*Output.* `sys.stdout` and `sys.stderr` are `Streams`, which give what is written in a call's context to that call. What goes past them
(C code, child processes, handlers of logging made before) cannot be told apart: the call that ends next has it.

Tasks that a call leaves behind go on, as in any asyncio program: what calls share may need them. *Tasks of calls* no other call sees
(`Steps`): many programs cancel, or wait for, all other tasks at their end.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from time import monotonic
from time import time as now
from typing import TYPE_CHECKING, Any

import msgspec

from windlass import pickling
from windlass.coroutines import is_async
from windlass.messages import BAD_CALL, CANCELLED, DIED, RAISED, RETURNED, CallEnd, CallRun, EndDetail, FileRef, ObjectRef
from windlass.worker import hoist
from windlass.worker.callqueue import read_spilled, spilled
from windlass.worker.forks import end_forked
from windlass.worker.own_loop import own_loop
from windlass.worker.slot import Link, Slot, users_part_only
from windlass.worker.slot_api import STATE, CallState, Watch
from windlass.worker.slotlink import (
    ALONE,
    ATTEMPT,
    BEGUN,
    CALL,
    CANCEL,
    CLAIMING,
    FINISHED,
    LEAVE,
    LEFT,
    LEFT_ASKED,
    LEFT_FULL,
    LOAD,
    MAX_PACKET,
    ROW_WORDS,
    SINCE,
    SPILLED,
    Setup,
    bounded,
)
from windlass.worker.streams import Kept, Streams

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

#: So many calls more than another slot are many, and so many seconds a moment.
MANY_MORE = 4
MOMENT = 0.001

# Documented, for those who make tasks of their own. Bound here, as a function may replace what the module has.
_list_task, _unlist_task = asyncio._register_task, asyncio._unregister_task
_current_task: Callable[[], Any] = asyncio.current_task
_current: ContextVar[CallState | None] = ContextVar("windlass_call", default=None)


class Place:
    """A call that a slot has; what `windlass.worker.slot_api.here` gives within it."""

    def __init__(self, run: CallRun, row: int, count: int) -> None:
        self.run: CallRun | None = run
        self.call = run
        self.row, self.base, self.count = row, row * ROW_WORDS, count
        self.started_at = self.since = 0.0  # by the clock of people, and by the monotonic one
        self.watch: Watch | None = None
        self.out, self.err = Kept(), Kept()
        self.task: asyncio.Task[None] | None = None
        self.cancelled = False
        self.answered = False

    def clock(self) -> float:
        """The time, as what has passed since it began: the clock may have been set."""
        return self.started_at + (monotonic() - self.since) if self.since else now()


class Steps(Coroutine[Any, Any, None]):
    """What a call's task runs: it is one of `asyncio.all_tasks` in its own steps, and in no others.

    There it must be, since who takes all tasks removes the current one.
    """

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self.work = work

    def begin(self, loop: asyncio.AbstractEventLoop, context: Context) -> asyncio.Task[None]:
        """A task, not by `create_task`: a factory that somebody has set on the loop may know no contexts."""
        task = asyncio.Task(self, loop=loop, context=context)
        _unlist_task(task)
        return task

    def send(self, value: Any, /) -> Any:
        task = _current_task()
        _list_task(task)
        try:
            return self.work.send(value)
        finally:
            _unlist_task(task)

    def throw(self, *error: Any) -> Any:
        task = _current_task()
        _list_task(task)
        try:
            return self.work.throw(*error)
        finally:
            _unlist_task(task)

    def close(self) -> None:
        self.work.close()

    def __await__(self) -> Any:
        return self.work.__await__()

    def __getattr__(self, name: str) -> Any:
        """For those who look at the task's stack, or at what it is called."""
        return getattr(self.work, name)


class TaskSlot(Slot):
    """Runs as many calls at once as its library's ``concurrency``."""

    def __init__(self, link: Link, setup: Setup, library: hoist.Library) -> None:
        super().__init__(link, setup, library)
        first = link.first
        self.free = list(range(first + setup.spec.concurrency - 1, first - 1, -1))
        self.under_way: dict[int, Place] = {}  # by row
        #: A call that may only run alone, and waits or runs.
        self.alone: Place | None = None
        #: A plain function runs, outside of the loop.
        self.outside = False
        self.claims = self.full = self.over = self.holds_back = self.held_back = False
        self.count = 0
        #: Threads that wait for what calls have registered.
        self.enders: ThreadPoolExecutor | None = None
        self.buffer = bytearray(MAX_PACKET)
        self.decode = msgspec.msgpack.Decoder(CallRun).decode

    def serve(self) -> None:
        """Until the worker is gone, wants this slot to leave, or it has run its share of calls."""
        self.sort_output()
        # Watches of calls are not to wait for bytes that this loop reads.
        STATE.tasks, STATE.warnings = _current, -1
        self.loop = own_loop()
        self.context = copy_context()
        self.loop.add_reader(self.link.results.fileno(), self.heard)
        self.look()
        while not self.over:
            with suppress(SystemExit, KeyboardInterrupt):  # of a task that a call has made: the loop goes on
                self.loop.run_forever()
            if self.alone is not None and not self.under_way and not self.over:
                self.run_alone(self.alone)
                self.look()

    # ------------------------------------------------ calls come

    def look(self) -> None:
        """Something has changed: leave, claim or not, run what waits to be alone."""
        if self.outside:
            return  # it may run this very loop, as older programs do, which must not be stopped; `serve` looks when it has returned
        if not self.under_way and self.alone is None:
            left = LEFT_ASKED if self.words[self.base + LEAVE] else LEFT_FULL if self.full else 0
            if left:
                self.words[self.base + LEFT] = left
                self.end()
                return
        elif not self.under_way and self.alone is not None:
            if not self.alone.since:
                self.start(self.alone)
            if is_async(self.loaded(self.alone)):
                self.begin(self.alone)
            else:
                self.loop.stop()  # `serve` runs it
        serves = bool(self.free) and self.alone is None and not self.full and not self.words[self.base + LEAVE]
        self.words[self.base + LOAD] = len(self.under_way) + 1 if serves else 0
        claims = serves and not self.holds_back
        if claims != self.claims:
            self.claims = claims
            queue = self.link.queue.fileno()
            if claims:
                self.loop.add_reader(queue, self.claim)
            else:
                self.loop.remove_reader(queue)

    def claim(self) -> None:
        """Take one call from the queue, and begin it."""
        words = self.words
        if words[self.base + LEAVE]:
            self.look()
            return
        load = len(self.under_way)
        if load > MANY_MORE and not self.held_back and load > self.link.rows.least_load(self.setup.spec.concurrency, load) + MANY_MORE:
            self.holds_back = self.held_back = True
            self.loop.call_later(MOMENT, self.go_on)
            self.look()
            return
        self.held_back = False
        words[self.base + CLAIMING] = 1
        try:
            size = self.link.queue.recv_into(self.buffer, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:  # another slot was quicker
            words[self.base + CLAIMING] = 0
            return
        if not size:
            self.end()
            return
        packet = memoryview(self.buffer)[:size]
        try:
            run = self.decode(read_spilled(packet) if self.buffer[0] == SPILLED else packet)
        except OSError as error:
            self.not_read(packet, error)
            return
        row = self.free.pop()
        base = row * ROW_WORDS
        place = Place(run, row, words[base + BEGUN] + 1)
        words[base + CALL], words[base + ATTEMPT] = run.call, run.attempt
        self.start(place)
        words[base + BEGUN] = place.count
        words[self.base + CLAIMING] = 0
        self.count += 1
        self.full = self.count == self.setup.spec.max_calls
        if run.sandbox is None and is_async(self.loaded(place)):
            self.begin(place)
            words[self.base + LOAD] = load + 2
            if not self.free or self.full:
                self.look()
        else:
            self.alone = place
            if self.under_way:
                self.wait(place)
            self.look()

    def not_read(self, packet: memoryview, error: OSError) -> None:
        """A long call's file cannot be read: as functions leave files open, say. What runs goes on, and another slot comes after it."""
        call, at = self.decode(spilled(packet)[1]), now()
        text = f"its slot (pid {self.pid}) could not read it: {error}"
        self.send(CallEnd(call.call, call.attempt, DIED, started_at=at, ready_at=at, ended_at=at, detail=EndDetail(text=text)))
        self.words[self.base + CLAIMING] = 0
        self.full = True
        self.look()

    def go_on(self) -> None:
        """The moment is over."""
        self.holds_back = False
        self.look()

    def loaded(self, place: Place) -> Any:
        """The function of a call; for one that cannot be loaded anything async, as its task says why."""
        try:
            return self.functions.turn_to(place.call.function)[0]
        except BaseException:  # noqa: BLE001
            return self.work

    def begin(self, place: Place) -> None:
        """Run it as a task."""
        self.under_way[place.row] = place
        context: Context = self.context.copy()
        context.run(_current.set, place)
        place.task = Steps(self.work(place)).begin(self.loop, context)
        place.task.add_done_callback(lambda task: self.ended(place, task))

    def start(self, place: Place) -> None:
        """It has begun, from now on."""
        place.started_at = now()
        place.since = self.link.rows.doubles[place.base + SINCE] = monotonic()

    def wait(self, place: Place) -> None:
        """It has not begun, after all: others run before it."""
        place.started_at = place.since = self.link.rows.doubles[place.base + SINCE] = 0.0

    def run_alone(self, place: Place) -> None:
        """Run a plain function, outside of the loop."""
        self.words[place.base + ALONE] = place.count
        STATE.row = place.row
        self.outside = True
        self.send(self.answer(place.call, place.started_at, place.since))
        self.outside = False
        self.finish(place)

    # ------------------------------------------------ a call

    async def work(self, place: Place) -> None:
        """A call from its arguments to its answer. Whatever happens in it becomes the answer."""
        run = place.call
        payload = b""
        spans: tuple[ObjectRef, ...] = ()
        detail: EndDetail | None = None
        ready_at = place.started_at
        room: Any = None
        outputs: tuple[FileRef, ...] = ()
        try:
            function, wants = self.functions.turn_to(run.function)
            args, kwargs = pickling.unpack_call(run.payload, run.spans, self.open_object)
            if run.sandbox is not None:
                room = self.make_room(run)
        except BaseException as error:  # noqa: BLE001 - everything is answered
            ready_at = place.clock()
            outcome, payload, detail = self.not_begun(run, error)
        else:
            for name, position, value in wants:
                if name not in kwargs and len(args) <= position:
                    kwargs[name] = value
            if run.trace:
                from windlass.traces import attach

                attach(run.trace)  # in the context of this task alone
            ready_at = place.clock()
            try:
                value = await function(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - SystemExit too: one call must not end the slot
                if STATE.forked:
                    end_forked(error)
                users_part_only(error)
                if place.cancelled:
                    outcome = CANCELLED
                else:
                    self.functions.explain(error)
                    payload, detail = pickling.pack_exception(error)
                    outcome = RAISED
            else:
                if STATE.forked:
                    end_forked(None)
                await self.end_watch(place)
                outcome = RETURNED
                try:
                    if room is not None:
                        outputs, value = room.collect(value)
                    payload, spans = pickling.pack_result(value, self.keeper(run) if run.keep else self.put)
                except BaseException as error:  # noqa: BLE001 - pickling runs the user's code
                    # The node's trouble is worth a retry elsewhere.
                    outcome = DIED if type(error).__name__ in ("StoreFull", "NotOurs") else BAD_CALL
                    detail = self.bad_result(run, value, error)
        await self.end_watch(place)
        if room is not None:
            room.leave()
        place.run = None
        stdout, stderr = self.words_of(place)
        kept = bool(spans and run.keep)
        since, at = place.started_at, place.clock()
        self.reply(
            place, CallEnd(run.call, run.attempt, outcome, payload, spans, stdout, stderr, since, ready_at, at, detail, kept, outputs)
        )

    async def end_watch(self, place: Place) -> None:
        """Have nothing more called that the call registered. Not in this thread: what is being called may wait for this loop."""
        watch, place.watch = place.watch, None
        if watch is not None:
            if self.enders is None:
                from concurrent.futures import ThreadPoolExecutor

                # Not the loop's own threads: calls may have them all, for long. As many as may have to wait, made when needed.
                self.enders = ThreadPoolExecutor(self.setup.spec.concurrency, "windlass-on-warning")
            ending = self.loop.run_in_executor(self.enders, watch.end)
            while not ending.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.shield(ending)

    def sort_output(self) -> None:
        """From now on what is written to the standard streams goes to the call that writes it."""
        self.stdout, self.stderr = sys.stdout, sys.stderr = Streams(sys.stdout, "out", _current), Streams(sys.stderr, "err", _current)

    def mend_output(self) -> None:
        super().mend_output()
        self.sort_output()

    def words_of(self, place: Place) -> tuple[bytes, bytes]:
        """What the call has written, and what was written past the streams since a call last ended."""
        out, err = self.written()
        return place.out.take() + out, place.err.take() + err

    def reply(self, place: Place, end: CallEnd) -> None:
        self.send(end)
        place.answered = True

    def ended(self, place: Place, task: asyncio.Task[None]) -> None:
        """Its task is over."""
        if not task.cancelled() and (error := task.exception()) is not None and not place.answered:
            # Not the function's, for these are answered: something of ours.
            text = bounded(f"its slot could not answer for it: {type(error).__name__}: {error}")
            self.reply(place, self.end_of(place, BAD_CALL, EndDetail(text=text)))
        elif not place.answered:  # cancelled before it had begun
            self.reply(place, self.end_of(place, CANCELLED))
        self.finish(place)
        self.look()

    def end_of(self, place: Place, outcome: int, detail: EndDetail | None = None) -> CallEnd:
        at = place.clock()
        since = place.started_at or at
        return CallEnd(place.call.call, place.call.attempt, outcome, started_at=since, ready_at=since, ended_at=at, detail=detail)

    def finish(self, place: Place) -> None:
        """It was answered: its place is free."""
        self.words[place.base + FINISHED] = place.count
        self.under_way.pop(place.row, None)
        if self.alone is place:
            self.alone = None
        self.free.append(place.row)

    # ------------------------------------------------ what the worker wants

    def heard(self) -> None:
        """The worker has sent bytes: look at its wishes."""
        try:
            if not self.link.results.recv(4096, socket.MSG_DONTWAIT):
                self.end()
                return
        except BlockingIOError:
            return
        except OSError:
            self.end()
            return
        for place in list(self.under_way.values()):
            if self.words[place.base + CANCEL] == place.count and not place.cancelled and place.task is not None:
                place.cancelled = True
                place.task.cancel()
        waits = self.alone
        if waits is not None and waits.task is None and not self.outside and self.words[waits.base + CANCEL] == waits.count:
            self.reply(waits, self.end_of(waits, CANCELLED))
            self.finish(waits)
        self.look()

    def end(self) -> None:
        """Leave."""
        self.over = True
        self.loop.stop()
