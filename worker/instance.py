"""One library instance, as its worker runs it: its life, and what the worker asks of it.

Theory of operation
-------------------
::

    NEW ── start ──▶ STARTING ── Prepared ──▶ SERVING ── stop ──▶ (STOPPING) ──▶ GONE
                         └── Unable, crash, timeout ──┴── zygote died, slots cannot start ──▶ FAILED

All of this lives on the worker's event loop; the only waits are for processes to end. `feed` puts calls into the call queue, from which
slots claim them (`windlass.worker.callqueue`); slots are the business of `windlass.worker.slotset`. This module starts the zygote,
judges its end and each slot's failure to start, and takes everything down.

*The zygote dies.* While it starts, an automatic import during which it died, or which took longer than `import_limit`, is dropped: the next
zygote does without. Later, nothing is left that could reap the slots: all are killed, begun calls are charged, the others given back,
and the instance has failed.

*Spawn.* Without a zygote (as the library asks, or because a fork would not be safe) each slot is a child of the worker, and says by itself
what a zygote would have said.

*The end* is always the same: kill all, wait until nothing lives, read the last answers, account for every call, and only then say so.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path
from typing import Final, Protocol

import msgspec

from windlass.blocking import in_thread
from windlass.messages import (
    SLOTS_MOST,
    CallEnd,
    CallId,
    CallRun,
    EndDetail,
    HeldCall,
    InstanceId,
    LibraryFailed,
    LibraryReady,
    LibrarySpec,
)
from windlass.worker import capture
from windlass.worker.gpus import Gpus
from windlass.worker.ground import Ground
from windlass.worker.slothandle import RunningCall, SlotHandle, Timers, during
from windlass.worker.slotlink import Forked, FromZygote, Noted, NotForked, Prepared, SlotExited, Step, Unable, bounded
from windlass.worker.slotproc import ended_how, kill_tree
from windlass.worker.slotset import SlotSet
from windlass.worker.zygotehandle import ZygoteHandle

log = logging.getLogger("windlass.worker")

#: Automatic imports that take longer count as hung: so many seconds at least, and a share of the library's time to start, so that who gives
#: it more, as many nodes read from a slow file system, has no import done by each slot again.
IMPORT_LEAST: Final = 60.0
IMPORT_SHARE: Final = 0.2
#: Functions of which something is noted, at most.
NOTES_MOST: Final = 8


def import_limit_of(start_timeout: float) -> float:
    """Seconds that an automatic import may take in a library that has so many to start."""
    return max(IMPORT_LEAST, IMPORT_SHARE * start_timeout)


class InstanceEvents(Protocol):
    """What an instance tells its worker, on the worker's loop; must be quick."""

    def ready(self, message: LibraryReady) -> None:
        """It serves (once)."""

    def noted(self, message: LibraryReady) -> None:
        """It has served before; these are all notes that there are by now."""

    def failed(self, message: LibraryFailed) -> None:
        """It cannot start, or has died; its calls have been told of, all its processes have ended."""

    def ended(self, ends: list[CallEnd]) -> None:
        """Calls have ended."""

    def lost(self, calls: list[HeldCall], reason: str = "instance") -> None:
        """Calls have not been run to their end and will not be, through no fault of theirs; ``reason`` as in `CallsReturned`."""

    def room(self) -> None:
        """The call queue has room again, after a `feed` that could not place all."""

    def trouble(self, text: str) -> None:
        """This node does not take what must be written to run calls (those concerned have not been fed), or not all slots."""


class State(Enum):
    """Where an instance stands; see the top of this module."""

    NEW = auto()
    STARTING = auto()
    SERVING = auto()
    STOPPING = auto()
    FAILED = auto()
    GONE = auto()


_folders: Final = itertools.count(1)


class LibraryInstance:
    """A library running on this worker. Make it, `start` it on a running loop, `stop` it.

    `scratch` is the worker's folder on the node: the instance's own folder is made in it, and removed at the end. `slot_limit` bounds
    the slots that it can ever have at one time, `import_limit` the seconds of an automatic import (None: `import_limit_of` its library's
    time to start). `gpus`: shared with all other instances. `shortcut`: a shorter path of `scratch`, for calls.
    """

    def __init__(
        self,
        spec: LibrarySpec,
        instance: InstanceId,
        *,
        scratch: Path,
        store_folder: Path,
        functions_folder: Path,
        events: InstanceEvents,
        gpus: Gpus,
        slot_limit: int = SLOTS_MOST,
        import_limit: float | None = None,
        shortcut: str = "",
    ) -> None:
        self.spec, self.instance, self.events = spec, instance, events
        self.state = State.NEW
        # A manager that has forgotten this worker may give a new instance the number of one that is still being ended.
        self.folder = scratch / f"i{instance}-{next(_folders)}"
        self._shortcut = shortcut
        self._scratch, self._store_folder, self._functions_folder = scratch, store_folder, functions_folder
        self._slot_limit, self._gpus = slot_limit, gpus
        self._import_limit = import_limit_of(spec.start_timeout) if import_limit is None else import_limit
        self.zygote: ZygoteHandle | None = None
        self._zygotes: list[ZygoteHandle] = []
        self._step: Step | None = None
        self._start_timer: asyncio.TimerHandle | None = None
        self._starved = self._answered = False
        #: Who has written while it started, and was told of.
        self._told: set[str] = set()
        self._end = (float("inf"), False)
        #: The Python of an environment of its own; "": the worker's.
        self.python = ""
        self._ending: asyncio.Task[None] | None = None
        #: What was told when it served, with notes that came since; and of which functions such came.
        self._ready: LibraryReady | None = None
        self._noted: set[str] = set()
        #: A slot has told why no fork of it is safe.
        self._unsafe = False

    # ------------------------------------------------ what the worker asks

    def start(self, slots: int, gpu_ids: Sequence[str] = ()) -> None:
        """Begin to start, with so many slots. `InstanceEvents.ready` or `failed` follows. Raises `OSError` when the node has no room."""
        assert self.state is State.NEW
        self._loop = asyncio.get_running_loop()
        self._timers = Timers(self._loop)
        self._ground = Ground(
            self.spec,
            self.instance,
            self._scratch,
            self.folder,
            self._store_folder,
            self._functions_folder,
            self._slot_limit * self.spec.concurrency,
            self._shortcut,
        )
        if self.python:
            self._ground.python = self.python
        self._queue = self._ground.queue
        self._slots = SlotSet(self._loop, self._ground, self._timers, self, self._slot_limit, self._gpus)
        self._slots.tell_end(*self._end)
        self.state = State.STARTING
        self.set_slots(slots, gpu_ids)
        if self.spec.start != "spawn":
            self._start_zygote()

    def set_slots(self, slots: int, gpu_ids: Sequence[str] = ()) -> None:
        """Have so many slots, with these GPUs if others do not have them yet. Surplus slots leave when they are idle."""
        if self.state in (State.STARTING, State.SERVING):
            self._slots.target, self._slots.gpu_ids = min(slots, self._slot_limit), tuple(gpu_ids)
            if self.state is State.SERVING or self.spec.start == "spawn":
                self._slots.fill()
            if self.state is State.STARTING and self.spec.start == "spawn" and not slots:
                self._serve(LibraryReady(self.instance, 0))  # there is nothing that could say so

    def tell_end(self, ends_at: float, warned: bool) -> None:
        """Let calls know when the pilot will end them (monotonic clock, infinity: never); `warned`: that is near. At any time."""
        self._end = (ends_at, warned)
        if self.active:
            self._slots.tell_end(ends_at, warned)

    def feed(self, calls: Sequence[CallRun]) -> int:
        """Put calls into the call queue; returns how many went in, the caller keeps the rest and hears `InstanceEvents.room`."""
        if self.state not in (State.STARTING, State.SERVING):
            return 0
        fed = self._queue.feed(calls)
        add = self._slots.outstanding.add
        for index in range(fed):
            call = calls[index]
            add((call.call, call.attempt))
        if self._queue.trouble is not None:  # told when the caller has noted what went in
            text = f"a call of library {self.spec.name} could not be written: {self._queue.trouble}; free space in the worker's scratch"
            self.trouble(text)
        elif fed < len(calls):
            self._await_room()
        return fed

    def take_back(self, count: int | None = None) -> list[CallRun]:
        """Take calls that no slot has claimed out of the queue again, newest first; None: all."""
        if self.state not in (State.STARTING, State.SERVING):
            return []
        calls = self._queue.take_back(count)
        self._slots.outstanding.difference_update((call.call, call.attempt) for call in calls)
        self._slots.check_drained()
        return calls

    def running(self) -> list[RunningCall]:
        """The calls that slots run now."""
        return self._slots.running() if self.active else []

    def kill_call(self, call: CallId, attempt: int, outcome: int, detail: EndDetail | None = None) -> bool:
        """End one running call, as `kill_calls` does; whether a slot runs it."""
        return bool(self.kill_calls([(call, attempt)], outcome, detail))

    def kill_calls(self, calls: Iterable[tuple[int, int]], outcome: int, detail: EndDetail | None = None) -> set[tuple[int, int]]:
        """End running calls (call, attempt), which then end with this outcome, unless they end by themselves in this moment.

        Returns those. The others no slot runs: they are in the queue still (`take_back` finds them), have ended, or are just being claimed.
        """
        return self._slots.kill_calls(calls, outcome, detail) if self.active else set()

    @property
    def slots(self) -> int:
        """How many slots serve and are to stay."""
        return sum(slot.ready and slot.pid > 0 and not slot.leaving for slot in self._slots.slots.values()) if self.active else 0

    @property
    def queued(self) -> int:
        """How many calls were fed and have not ended: in the queue or running."""
        return len(self._slots.outstanding) if self.active else 0

    def slot_pids(self) -> dict[int, int]:
        """Process ids by slot; a call's children are below them."""
        return {slot.row: slot.pid for slot in self._slots.slots.values() if slot.pid} if self.active else {}

    @property
    def zygote_pid(self) -> int:
        """The zygote's process id; 0 without one."""
        return self.zygote.pid if self.zygote is not None else 0

    def trim_captures(self) -> None:
        """Give back memory that calls have filled with output; to be called every few seconds."""
        if self.active:
            for slot in self._slots.slots.values():
                for which, descriptor in enumerate((slot.out, slot.err)):
                    slot.trimmed[which] = capture.trim(descriptor, slot.trimmed[which])

    async def stop(self, grace: float = 0.0) -> None:
        """End everything; running calls have `grace` seconds. What has not ended then, or not started, is given back as lost."""
        if self.state is State.NEW:
            self.state = State.GONE
        if self.state in (State.STARTING, State.SERVING):
            unstarted = self.take_back(None)
            self.state = State.STOPPING
            if unstarted:
                self.events.lost([HeldCall(call.call, call.attempt) for call in reversed(unstarted)])
            self._slots.target = 0
            if grace > 0 and self._slots.outstanding:
                self._slots.drained.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._slots.drained.wait(), grace)
        if self.state is State.STOPPING:
            self.state = State.GONE
            self._ending = self._loop.create_task(self._end_all(charge=False))
        if self._ending is not None:
            await asyncio.shield(self._ending)

    # ------------------------------------------------ what slots say (`windlass.worker.slothandle.Owner`)

    @property
    def active(self) -> bool:
        """True from `start` until it ends or fails."""
        return self.state in (State.STARTING, State.SERVING, State.STOPPING)

    def ended(self, ends: list[CallEnd]) -> None:
        """Calls have ended."""
        self._answered = True
        self.events.ended(ends)

    def lost(self, calls: list[HeldCall], reason: str = "instance") -> None:
        """Calls were claimed by a slot that died before it began them, or was killed for another one of its calls."""
        self.events.lost(calls, reason)

    def step(self, step: Step, slot: SlotHandle | None) -> None:
        """A zygote (no slot), or a spawned slot, does this now."""
        if slot is None:
            self._step = step
        if step.kind == "import" and not step.explicit:
            self._timers.later(self._import_limit, lambda: self._on_import_limit(step, slot))

    def prepared(self, note: Prepared, slot: SlotHandle) -> None:
        """A slot serves; the first one says what a zygote would have said."""
        self._tell_what_was_written("a slot", note.wrote)
        if self.state is State.STARTING:
            self._serve(LibraryReady(self.instance, slot.pid, note.imports, note.context_seconds, note.notes))
        if not self._unsafe:  # one slot tells for all: each call has its own then, and no two need have as many threads
            self._unsafe = bool(note.hazards)
            for hazard in note.hazards:
                self._note(f"a new slot for each call instead of a fork: {hazard}")

    def noted(self, note: Noted) -> None:
        """A call has shown what its user should know: told once of each function, and of few."""
        if note.function not in self._noted and len(self._noted) < NOTES_MOST:
            self._noted.add(note.function)
            self._note(note.text)

    def fail(self, kind: str, text: str, *, charge: bool = False) -> None:
        """End everything, then tell the worker."""
        if self.active:
            # Ready, but without one answer: another start would end the same way.
            at_start = self.state is State.STARTING or not (self._answered or charge)
            failure = LibraryFailed(self.instance, kind, text, at_start)
            self.state = State.FAILED
            self._ending = self._loop.create_task(self._end_all(charge=charge, failure=failure))

    def trouble(self, text: str) -> None:
        """It runs here, but not in all its slots, or not all calls can be written."""
        self._loop.call_soon(self.events.trouble, text)  # the drain takes calls back out of the queue

    # ------------------------------------------------ starting

    def _start_zygote(self) -> None:
        self._step = None
        self.zygote = ZygoteHandle(self._loop, self._ground, self._on_zygote_says, self._on_zygote_ended)
        self._zygotes.append(self.zygote)
        self._start_timer = self._timers.later(self.spec.start_timeout, self._on_start_timeout)

    def _serve(self, ready: LibraryReady) -> None:
        self._timers.cancel(self._start_timer)
        self.state, self._ready = State.SERVING, ready
        self.events.ready(ready)
        if self.state is State.SERVING:
            self._slots.fill()

    def _on_import_limit(self, step: Step, slot: SlotHandle | None) -> None:
        """An automatic import hangs: whoever does it is killed, and its end drops the import."""
        if step is not (self._step if slot is None else slot.step):
            return
        if slot is not None and slot not in self._slots.slots.values():
            return  # it has ended, and its process id may be anybody's by now
        self._ground.drop(step.what, f"took longer than {self._import_limit:g} s and was ended")
        if slot is not None:
            kill_tree(slot.pid)
        elif self.zygote is not None:
            self.zygote.kill()

    def _on_start_timeout(self) -> None:
        self.fail("timeout", f"library {self.spec.name!r} was not ready within {self.spec.start_timeout:g} s{during(self._step)}")

    def _on_zygote_says(self, message: FromZygote) -> None:
        if isinstance(message, SlotExited):
            self._slots.exited(message.row, message.pid, message.status, message.peak_memory)
        elif isinstance(message, Forked):
            self._slots.started(message.row, message.pid)
        elif isinstance(message, NotForked):
            self._slots.not_started(message.row, message.text)
        elif isinstance(message, Step):
            self.step(message, None)
        elif isinstance(message, Unable):
            self.fail(message.kind, message.text)
        elif self.state is State.STARTING and self.zygote is not None:
            self._step = None
            self._tell_what_was_written("its zygote", self.zygote.wrote())
            ready = LibraryReady(self.instance, self.zygote.pid, message.imports, message.context_seconds, message.notes)
            if message.spawn:
                self.zygote.dismiss()
                self.zygote = None
            self._serve(ready)

    def _note(self, text: str) -> None:
        if self._ready is not None and text not in self._ready.notes:
            self._ready = msgspec.structs.replace(self._ready, notes=(*self._ready.notes, text))
            self.events.noted(self._ready)

    def _tell_what_was_written(self, who: str, wrote: bytes) -> None:
        """Once each, in the pilot's log: what imports and context print is no call's, and who looks for a mistake there wants it."""
        text = wrote.decode(errors="replace").strip()
        if text and who not in self._told:
            self._told.add(who)
            log.warning("library %r: %s wrote while it started:\n%s", self.spec.name, who, bounded(text, 8 << 10))

    def _on_zygote_ended(self, status: int) -> None:
        if not self.active or self.zygote is None:
            return
        said, name, how, step = self.zygote.said(), self.spec.name, ended_how(status), self._step
        self.zygote = None
        if self.state is not State.STARTING:
            self.fail("crash", f"the zygote of library {name!r} died ({how}), and its slots with it{said}", charge=True)
        elif step is not None and step.kind == "import" and not step.explicit:
            self._timers.cancel(self._start_timer)
            self._ground.drop(step.what, f"ended the interpreter ({how})")
            try:
                self._start_zygote()
            except OSError as error:
                self.fail("crash", f"no interpreter could be started for library {name!r}: {error}")
        else:
            self.fail("crash", f"the interpreter of library {name!r} ended ({how}) before it was ready{during(step)}{said}")

    # ------------------------------------------------ room, the end

    def _await_room(self) -> None:
        if not self._starved:
            self._starved = True
            self._loop.add_writer(self._queue.sender, self._on_room)

    def _on_room(self) -> None:
        if self._queue.flush():
            self._starved = False
            self._loop.remove_writer(self._queue.sender)
            if self.state is not State.STOPPING:
                self.events.room()

    async def _end_all(self, *, charge: bool, failure: LibraryFailed | None = None) -> None:
        self._timers.cancel_all()
        self.zygote = None
        try:
            await self._slots.end_all()
            for zygote in self._zygotes:  # after the slots, which it reaps; one that it is forking right now goes with it
                zygote.dismiss()
                await zygote.gone()
            self._slots.close(charge=charge)
            if self._starved:
                self._loop.remove_writer(self._queue.sender)
            self._ground.close()
            with suppress(OSError):  # no thread is to be had: the folder goes with the worker's
                await in_thread(self._ground.remove_folder)
        finally:
            if failure is not None:  # whatever has gone wrong, its calls wait for this
                self.events.failed(failure)
