"""One library instance, as its worker runs it: zygote, slots, call queue.

Theory of operation
-------------------
::

    NEW ── start ──▶ STARTING ── Prepared ──▶ SERVING ── stop ──▶ GONE
                         └── Unable, crash, timeout ──┴── zygote died, slots cannot start ──▶ FAILED ──▶ GONE

All of this lives on the worker's event loop; the only waits are for processes to end. `feed` puts calls into the queue, from which slots
claim them, and `_outstanding` has every call that was fed and has neither been answered nor taken back.

*A slot ends.* The zygote reports it after reaping it. First everything it sent is read. Then its row is read: a call that has begun, and is still
outstanding, ended with the slot and is charged (`DIED`, or what `kill_call` asked for). A slot that died without a running call
may still have claimed one, in the microsecond before it noted so: `_audit` finds calls that are neither in the queue nor with any living slot, and
gives them back as lost. Then the slot is replaced.

*A running call is ended* (`kill_call`) without hitting the next one by mistake: the slot is stopped, and when it stands, its row says
whether it is still that call. Then it is killed with all its children, else continued. In mode ``fork`` the slot stays, and only what is below it is
killed. Idle slots that are to leave go the same way; busy ones see `LEAVE` in their row after their call.

*The zygote dies.* Nothing is left that could reap the slots: all are killed, begun calls are charged, the others given back, and the
instance has failed. An automatic import during which it died, or which took longer than `import_limit`, is dropped: the next zygote does without.

*Spawn.* Without a zygote (as the library asks, or because a fork would not be safe) each slot is a child of the worker, and says by itself what
a zygote would have said.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Final, Protocol

import msgspec

from windlass.messages import (
    DIED,
    CallEnd,
    CallId,
    CallRun,
    EndDetail,
    HeldCall,
    HoistedImport,
    InstanceId,
    LibraryFailed,
    LibraryReady,
    LibrarySpec,
)
from windlass.worker import capture
from windlass.worker.callqueue import CallQueue
from windlass.worker.slothandle import Key, Kill, SlotHandle, Watch, reaped
from windlass.worker.slotlink import (
    LEFT_TORN,
    LEFT_UNABLE,
    LENGTH,
    NOTE,
    RESULT_BYTES,
    ROW_WORDS,
    Forked,
    ForkSlot,
    FromZygote,
    NotForked,
    Prepared,
    Row,
    Rows,
    Setup,
    SlotExited,
    SlotNote,
    Step,
    Unable,
    bounded,
    memory_file,
    socket_pair,
)
from windlass.worker.slotproc import all_gone, death, ended_how, kill, kill_below, kill_tree, process_state

#: Automatic imports that take longer count as hung (seconds).
IMPORT_LIMIT: Final = 60.0
#: So many slots in a row that end before they have run a call: the library cannot run here.
EARLY_DEATHS: Final = 3
#: What numerical libraries read, before they start threads.
_THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS",
)
_READ_BYTES: Final = 256 << 10


class RunningCall(msgspec.Struct, frozen=True):
    """A call that a slot runs now; ``started_at`` is in seconds since the epoch."""

    call: CallId
    attempt: int
    slot: int
    pid: int
    started_at: float


class InstanceEvents(Protocol):
    """What an instance tells its worker, on the worker's loop; must be quick."""

    def ready(self, message: LibraryReady) -> None:
        """It serves (once)."""

    def failed(self, message: LibraryFailed) -> None:
        """It cannot start, or has died; its calls have been told of, all its processes have ended."""

    def ended(self, ends: list[CallEnd]) -> None:
        """Calls have ended."""

    def lost(self, calls: list[HeldCall]) -> None:
        """Calls have not been run and will not be, through no fault of theirs."""

    def room(self) -> None:
        """The call queue has room again, after a `feed` that could not place all."""


class State(Enum):
    """Where an instance stands; see the top of this module."""

    NEW = auto()
    STARTING = auto()
    SERVING = auto()
    FAILED = auto()
    GONE = auto()


class LibraryInstance:
    """A library running on this worker. Make it, `start` it on a running loop, `stop` it.

    `scratch` is the worker's folder on the node: the instance's own folder is made in it, and removed at the end. `slot_limit` bounds
    the slots that it can ever have at one time, `import_limit` the seconds of an automatic import.
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
        slot_limit: int = 1024,
        import_limit: float = IMPORT_LIMIT,
    ) -> None:
        self.spec, self.instance, self.events = spec, instance, events
        self.state = State.NEW
        self.folder = scratch / f"instance-{instance}"
        self._scratch, self._store_folder, self._functions_folder = scratch, store_folder, functions_folder
        self._slot_limit, self._import_limit = slot_limit, import_limit
        self._target = 0
        self._gpu_ids: tuple[str, ...] = ()
        self._slots: dict[int, SlotHandle] = {}  # by row
        self._outstanding: set[Key] = set()
        self._kills: dict[Key, Kill] = {}  # mode "fork": killed below a slot that lives on
        self._dropped: list[HoistedImport] = []
        self._step: Step | None = None
        self._early_deaths = 0
        self._spawn = spec.start == "spawn"
        self._failure: LibraryFailed | None = None
        self._ending: asyncio.Task[None] | None = None
        self._starved = False
        self._drained = asyncio.Event()
        self._timers: set[asyncio.TimerHandle] = set()
        self._start_timer: asyncio.TimerHandle | None = None
        self._control: socket.socket | None = None
        self._zygote: subprocess.Popen[bytes] | None = None
        self._old_zygotes: list[subprocess.Popen[bytes]] = []
        self._zygote_output = self._setup_file = -1
        self._watch: Watch | None = None
        self._buffer = bytearray(_READ_BYTES)
        self._decode = msgspec.msgpack.Decoder(CallEnd).decode
        self._decode_note = msgspec.msgpack.Decoder(SlotNote).decode
        self._decode_zygote = msgspec.msgpack.Decoder(FromZygote).decode

    # ------------------------------------------------ what the worker asks

    def start(self, slots: int, gpu_ids: Sequence[str] = ()) -> None:
        """Begin to start, with so many slots. `InstanceEvents.ready` or `failed` follows. Raises `OSError` when the node has no room."""
        assert self.state is State.NEW
        self._loop = asyncio.get_running_loop()
        work, tmp, code = self.folder / "work", self.folder / "tmp", self._scratch / "code"
        for folder in (work, tmp, code):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._queue = CallQueue(str(self.folder))
        self._rows_file = memory_file("rows", self._slot_limit * ROW_WORDS * 8)
        self._rows = Rows(self._rows_file, self._slot_limit)
        self.state = State.STARTING
        self._target, self._gpu_ids = min(slots, self._slot_limit), tuple(gpu_ids)
        if self._spawn:
            self._setup_file = self._write_setup()
            if self._target:
                self._fill()
            else:
                self._serve(LibraryReady(self.instance, 0))
        else:
            self._start_zygote()

    def set_slots(self, slots: int, gpu_ids: Sequence[str] = ()) -> None:
        """Have so many slots, with these GPUs. Surplus slots leave when they are idle."""
        self._target, self._gpu_ids = min(slots, self._slot_limit), tuple(gpu_ids)
        if self.state is State.SERVING or (self.state is State.STARTING and self._spawn):
            self._fill()

    def feed(self, calls: Sequence[CallRun]) -> int:
        """Put calls into the call queue; returns how many went in, the caller keeps the rest and hears `InstanceEvents.room`."""
        if self.state not in (State.STARTING, State.SERVING):
            return 0
        fed = self._queue.feed(calls)
        for index in range(fed):
            call = calls[index]
            self._outstanding.add((call.call, call.attempt))
        if fed < len(calls):
            self._await_room()
        return fed

    def take_back(self, count: int | None = None) -> list[CallRun]:
        """Take calls that no slot has claimed out of the queue again, newest first; None: all."""
        if self.state not in (State.STARTING, State.SERVING):
            return []
        calls = self._queue.take_back(count)
        for call in calls:
            self._outstanding.discard((call.call, call.attempt))
        self._check_drained()
        return calls

    def running(self) -> list[RunningCall]:
        """The calls that slots run now."""
        found: list[RunningCall] = []
        for slot in self._slots.values():
            row = self._rows.read(slot.row)
            if row.busy:
                found.append(RunningCall(CallId(row.call), row.attempt, slot.row, slot.pid, row.started_at))
        return found

    def kill_call(self, call: CallId, attempt: int, outcome: int, detail: EndDetail | None = None) -> bool:
        """End a running call, which then ends with this outcome, unless it ends by itself in this moment.

        False when no slot runs it: it is still in the queue (`take_back` finds it), has ended, or is being claimed right now.
        """
        key = (call, attempt)
        for slot in self._slots.values():
            row = self._rows.read(slot.row)
            if row.busy and (row.call, row.attempt) == key and key in self._outstanding:
                if slot.kill is None and key not in self._kills:
                    slot.kill = Kill(key, outcome, detail)
                    self._stop_slot(slot)
                return True
        return False

    @property
    def slots(self) -> int:
        """How many slots live and are to stay."""
        return sum(slot.ready and not slot.leaving for slot in self._slots.values())

    @property
    def queued(self) -> int:
        """How many calls were fed and have not ended: in the queue or running."""
        return len(self._outstanding)

    def slot_pids(self) -> dict[int, int]:
        """Process ids by slot; a call's children are below them."""
        return {slot.row: slot.pid for slot in self._slots.values() if slot.pid}

    @property
    def zygote_pid(self) -> int:
        """The zygote's process id; 0 without one."""
        return self._zygote.pid if self._zygote is not None else 0

    def trim_captures(self) -> None:
        """Give back memory that calls have filled with output; to be called every few seconds."""
        for slot in self._slots.values():
            for which, descriptor in enumerate((slot.out, slot.err)):
                slot.trimmed[which] = capture.trim(descriptor, slot.trimmed[which])

    async def stop(self, grace: float = 0.0) -> None:
        """End everything; running calls have `grace` seconds. What has not ended then, or not started, is given back as lost."""
        if self.state is State.NEW:
            self.state = State.GONE
        if self.state in (State.STARTING, State.SERVING):
            unstarted = self.take_back(None)
            if unstarted:
                self.events.lost([HeldCall(call.call, call.attempt) for call in reversed(unstarted)])
            self._target = 0
            if grace > 0 and self._outstanding:
                self._drained.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._drained.wait(), grace)
        if self.state in (State.STARTING, State.SERVING):
            self.state = State.GONE
            self._ending = self._loop.create_task(self._end_all(charge=False))
        if self._ending is not None:
            await asyncio.shield(self._ending)

    # ------------------------------------------------ starting

    def _write_setup(self) -> int:
        setup = Setup(
            self.spec,
            self.instance,
            str(self._store_folder),
            str(self._functions_folder),
            str(self._scratch / "code"),
            str(self.folder / "work"),
            self._slot_limit,
            tuple(self._dropped),
        )
        descriptor = memory_file("setup")
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(msgspec.msgpack.encode(setup))
        return descriptor

    def _environment(self) -> dict[str, str]:
        threads = str(self.spec.threads or max(1, int(self.spec.per_slot.cores)))
        return {
            **os.environ,
            **dict.fromkeys(_THREAD_VARIABLES, threads),
            "TMPDIR": str(self.folder / "tmp"),
            **dict(self.spec.env),
        }

    def _execute(self, module: str, descriptors: Sequence[int], extra: Sequence[str], out: int, err: int) -> subprocess.Popen[bytes]:
        # -P: the calls' working directory must not shadow modules.
        command = [sys.executable, "-P", "-m", module, *(str(number) for number in descriptors), *extra]
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            pass_fds=descriptors,
            env=self._environment(),
            cwd=self.folder / "work",
            start_new_session=True,
        )

    def _start_zygote(self) -> None:
        ours, theirs = socket_pair(socket.SOCK_SEQPACKET, RESULT_BYTES)
        ours.setblocking(False)
        self._setup_file = self._write_setup()
        self._zygote_output = memory_file("zygote", append=True)
        self._step = None
        try:
            descriptors = (theirs.fileno(), self._queue.claims, self._rows_file, self._setup_file)
            self._zygote = self._execute("windlass.worker.zygote", descriptors, (), self._zygote_output, self._zygote_output)
        finally:
            theirs.close()
        self._control = ours
        self._loop.add_reader(ours.fileno(), self._on_control)
        self._watch = Watch(self._loop, self._zygote, self._on_zygote_ended)
        self._start_timer = self._later(self.spec.start_timeout, self._on_start_timeout)

    def _serve(self, ready: LibraryReady) -> None:
        self._cancel(self._start_timer)
        self.state = State.SERVING
        self.events.ready(ready)
        if self.state is State.SERVING:
            self._fill()

    def _on_step(self, step: Step, slot: SlotHandle | None) -> None:
        self._step = step
        if slot is not None:
            slot.step = step
        if step.kind == "import" and not step.explicit:
            self._later(self._import_limit, lambda: self._on_import_limit(step, slot))

    def _on_import_limit(self, step: Step, slot: SlotHandle | None) -> None:
        """An automatic import hangs: whoever does it is killed, and its end drops the import."""
        if slot is not None:
            if slot.step is step:
                self._drop(step, f"took longer than {self._import_limit:g} s and was ended")
                slot.leaving = True
                kill_tree(slot.pid)
        elif self._step is step and self._zygote is not None:
            self._drop(step, f"took longer than {self._import_limit:g} s and was ended")
            kill_tree(self._zygote.pid)

    def _drop(self, step: Step, why: str) -> None:
        if all(item.module != step.what for item in self._dropped):
            self._dropped.append(HoistedImport(step.what, 0.0, f"{why}; it is left to the calls"))

    def _on_start_timeout(self) -> None:
        self._fail("timeout", f"library {self.spec.name!r} was not ready within {self.spec.start_timeout:g} s{self._while()}")

    def _while(self) -> str:
        step = self._step
        if step is None:
            return "; its interpreter did not start"
        what = {"import": f"in the import of {step.what!r}", "functions": "while its functions were loaded"}.get(
            step.kind, "in its context function"
        )
        return f"; it was {what}"

    # ------------------------------------------------ zygote

    def _on_control(self) -> None:
        control = self._control
        try:
            while control is not None and control is self._control:
                packet = control.recv(_READ_BYTES)
                if not packet:
                    self._loop.remove_reader(control.fileno())
                    return  # `_on_zygote_ended` follows
                self._on_zygote_says(self._decode_zygote(packet))
        except (BlockingIOError, ConnectionError):
            pass

    def _on_zygote_says(self, message: FromZygote) -> None:
        if isinstance(message, SlotExited):
            slot = self._slots.get(message.row)
            if slot is not None and slot.pid == message.pid:
                self._on_slot_ended(slot, message.status, message.peak_memory)
        elif isinstance(message, Forked):
            self._slots[message.row].pid = message.pid
            self._on_slot_started(self._slots[message.row])
        elif isinstance(message, NotForked):
            self._on_not_started(self._slots[message.row], message.text)
        elif isinstance(message, Step):
            self._on_step(message, None)
        elif isinstance(message, Unable):
            self._fail(message.kind, message.text)
        else:
            self._step = None
            assert self._zygote is not None
            ready = LibraryReady(self.instance, self._zygote.pid, message.imports, message.context_seconds, message.notes)
            if message.spawn:
                self._spawn = True
                self._forget_zygote(kill_it=True)
            self._serve(ready)

    def _on_zygote_ended(self, status: int, _peak_memory: int) -> None:
        if self.state in (State.FAILED, State.GONE):
            return
        self._on_control()  # its last words
        if self.state in (State.FAILED, State.GONE):
            return
        said = self._zygote_said()
        if self.state is State.STARTING:
            step = self._step
            self._forget_zygote(kill_it=False)
            if step is not None and step.kind == "import" and not step.explicit:
                self._drop(step, f"ended the interpreter ({ended_how(status)})")
                self._start_zygote()
                return
            self._fail(
                "crash",
                f"the interpreter of library {self.spec.name!r} ended ({ended_how(status)}) before it was ready{self._while()}{said}",
            )
        else:
            self._fail(
                "crash", f"the zygote of library {self.spec.name!r} died ({ended_how(status)}), and its slots with it{said}", charge=True
            )

    def _zygote_said(self) -> str:
        if self._zygote_output < 0:
            return ""
        return _quoted(capture.take(self._zygote_output))

    def _forget_zygote(self, *, kill_it: bool) -> None:
        if self._zygote is None:
            return
        if kill_it:
            kill_tree(self._zygote.pid)
            self._old_zygotes.append(self._zygote)
        if self._watch is not None:
            self._watch.close()
        if self._control is not None:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
        os.close(self._zygote_output)
        if not self._spawn:
            os.close(self._setup_file)
            self._setup_file = -1
        self._zygote = self._control = self._watch = None
        self._zygote_output = -1
        self._cancel(self._start_timer)

    # ------------------------------------------------ slots come

    def _fill(self) -> None:
        """Bring the number of slots to the target."""
        wanted_gpus = set(self._gpu_ids)
        for slot in self._slots.values():
            if not slot.leaving and not wanted_gpus.issuperset(slot.gpu_ids):
                self._let_leave(slot)
        staying = [slot for slot in self._slots.values() if not slot.leaving]
        if len(staying) > self._target:
            # Those that have not begun first, then idle ones, then the newest: they have cached the least.
            staying.sort(key=lambda slot: (slot.ready, self._rows.read(slot.row).busy, -slot.row))
            for slot in staying[: len(staying) - self._target]:
                self._let_leave(slot)
        missing = self._target - len(staying)
        for slot in list(self._slots.values()):
            if missing > 0 and slot.leaving and not slot.stopping and slot.unable is None and wanted_gpus.issuperset(slot.gpu_ids):
                slot.leaving = False
                self._rows.ask_to_leave(slot.row, False)
                missing -= 1
        while missing > 0 and self._add_slot():
            missing -= 1

    def _add_slot(self) -> bool:
        row = next((row for row in range(self._slot_limit) if row not in self._slots), -1)
        gpus = self._free_gpus()
        if row < 0 or gpus is None or (not self._spawn and self._control is None):
            return False
        try:
            slot = SlotHandle(row, gpus)
        except OSError as error:
            self._later(1.0, self._refill)
            self._count_early_death(f"no more descriptors for slots: {error}")
            return False
        self._slots[row] = slot
        self._loop.add_reader(slot.results.fileno(), self._on_results, slot)
        slot.timer = self._later(self.spec.start_timeout, lambda: self._on_slot_timeout(slot))
        if self._spawn:
            descriptors = (slot.other_end.fileno(), self._queue.claims, self._rows_file, self._setup_file)
            try:
                slot.process = self._execute("windlass.worker.slot", descriptors, (str(row), ",".join(gpus)), slot.out, slot.err)
            except OSError as error:
                self._on_not_started(slot, str(error))
                return False
            slot.pid = slot.process.pid
            slot.watch = Watch(self._loop, slot.process, lambda status, peak: self._on_slot_ended(slot, status, peak))
            self._on_slot_started(slot)
        else:
            assert self._control is not None
            wish = msgspec.msgpack.encode(ForkSlot(row, gpus))
            try:
                socket.send_fds(self._control, [wish], [slot.other_end.fileno(), slot.out, slot.err])
            except OSError as error:  # full: the zygote is slow; or gone: then its end is on the way
                self._on_not_started(slot, str(error))
                return False
            slot.other_end.close()
        return True

    def _free_gpus(self) -> tuple[str, ...] | None:
        """GPUs for one more slot; None: not enough are free yet."""
        count = self.spec.per_slot.gpus
        used = {gpu for slot in self._slots.values() for gpu in slot.gpu_ids}
        free = [gpu for gpu in self._gpu_ids if gpu not in used]
        return tuple(free[:count]) if len(free) >= count else None

    def _on_slot_started(self, slot: SlotHandle) -> None:
        slot.other_end.close()
        if slot.leaving:
            self._stop_slot(slot)

    def _on_not_started(self, slot: SlotHandle, text: str) -> None:
        self._remove_slot(slot)
        self._later(1.0, self._refill)
        if not any(slot.ready for slot in self._slots.values()):
            self._count_early_death(f"no process for a slot: {text}")

    def _refill(self) -> None:
        if self.state is State.SERVING or (self.state is State.STARTING and self._spawn):
            self._fill()

    def _on_slot_timeout(self, slot: SlotHandle) -> None:
        if not slot.ready and self._slots.get(slot.row) is slot and not slot.leaving:
            self._step = slot.step
            self._fail("timeout", f"a slot of library {self.spec.name!r} was not ready within {self.spec.start_timeout:g} s{self._while()}")

    def _on_slot_says(self, slot: SlotHandle, note: SlotNote) -> None:
        if isinstance(note, Step):
            self._on_step(note, slot)
        elif isinstance(note, Unable):
            slot.unable = note
        else:
            slot.ready, slot.step = True, None
            self._cancel(slot.timer)
            if self.state is State.STARTING:
                self._serve(LibraryReady(self.instance, slot.pid, note.imports, note.context_seconds, note.notes))

    # ------------------------------------------------ results

    def _on_results(self, slot: SlotHandle) -> None:
        """Read whatever is there, once: a slot that sends without pause must not starve the others."""
        try:
            size = slot.results.recv_into(self._buffer)
        except (BlockingIOError, ConnectionError):
            return
        if not size:
            self._loop.remove_reader(slot.results.fileno())
            return  # its end is reported by whoever reaps it
        self._take_results(slot, size)

    def _take_results(self, slot: SlotHandle, size: int) -> None:
        if slot.rest:
            data: memoryview = memoryview(slot.rest + self._buffer[:size])
        else:
            data = memoryview(self._buffer)[:size]
        end, position = len(data), 0
        ends: list[CallEnd] = []
        decode, outstanding = self._decode, self._outstanding
        while end - position >= 4:
            (length,) = LENGTH.unpack_from(data, position)
            stop = position + 4 + (length & ~NOTE)
            if stop > end:
                break
            frame = data[position + 4 : stop]
            position = stop
            if length & NOTE:
                self._on_slot_says(slot, self._decode_note(frame))
                continue
            call = decode(frame)
            key = (call.call, call.attempt)
            if key not in outstanding:
                continue
            outstanding.discard(key)
            if self._kills and call.outcome == DIED:
                call = self._as_asked(call)
            ends.append(call)
        slot.rest = bytes(data[position:])
        if ends:
            self._early_deaths = 0
            self.events.ended(ends)
            self._check_drained()

    def _as_asked(self, end: CallEnd) -> CallEnd:
        """The end of a call that was killed below a slot, with the outcome that was asked for."""
        wish = self._kills.pop((end.call, end.attempt), None)
        if wish is None:
            return end
        end.outcome, end.detail = wish.outcome, wish.detail
        return end

    def _drain_results(self, slot: SlotHandle) -> None:
        """Read all that a slot has sent."""
        with suppress(BlockingIOError, ConnectionError):
            while size := slot.results.recv_into(self._buffer):
                self._take_results(slot, size)

    def _await_room(self) -> None:
        if not self._starved:
            self._starved = True
            self._loop.add_writer(self._queue.sender, self._on_room)

    def _on_room(self) -> None:
        if not self._queue.flush():
            return
        self._starved = False
        self._loop.remove_writer(self._queue.sender)
        self.events.room()

    def _check_drained(self) -> None:
        if not self._outstanding:
            self._drained.set()

    # ------------------------------------------------ slots go

    def _let_leave(self, slot: SlotHandle) -> None:
        slot.leaving = True
        self._rows.ask_to_leave(slot.row, True)
        if slot.pid and not self._rows.read(slot.row).busy:
            self._stop_slot(slot)

    def _stop_slot(self, slot: SlotHandle) -> None:
        """Bring a slot to a halt, to decide then what becomes of it."""
        if slot.stopping or not slot.pid:
            return
        slot.stopping = True
        kill(slot.pid, SIGSTOP)
        self._look_whether_stopped(slot, 0)

    def _look_whether_stopped(self, slot: SlotHandle, looks: int) -> None:
        if self._slots.get(slot.row) is not slot or self.state in (State.FAILED, State.GONE):
            return
        # After two seconds it is deep in the kernel, and will not run a line of Python before it stops.
        if process_state(slot.pid) not in ("T", "t", "Z", "X", "") and looks < 200:
            self._later(0.0005 if looks < 20 else 0.01, lambda: self._look_whether_stopped(slot, looks + 1))
            return
        self._on_stopped(slot)

    def _on_stopped(self, slot: SlotHandle) -> None:
        slot.stopping = False
        row = self._rows.read(slot.row)
        wish, slot.kill = slot.kill, None
        if wish is not None and row.busy and (row.call, row.attempt) == wish.key and wish.key in self._outstanding:
            if self.spec.mode != "fork":
                slot.kill = wish  # `_charge` looks at it
                kill_tree(slot.pid)
                return
            self._kills[wish.key] = wish
            if not kill_below(slot.pid):  # it has not forked the call's process yet, or has just reaped it
                del self._kills[wish.key]
                self._later(0.002, lambda: self.kill_call(CallId(wish.key[0]), wish.key[1], wish.outcome, wish.detail) and None)
        elif slot.leaving and not row.busy:
            kill_tree(slot.pid)
            return
        kill(slot.pid, SIGCONT)

    def _on_slot_ended(self, slot: SlotHandle, status: int, peak_memory: int) -> None:
        """The slot's process has been reaped."""
        if self.state in (State.FAILED, State.GONE):
            return
        self._drain_results(slot)
        if self._slots.get(slot.row) is not slot:
            return
        row = self._rows.read(slot.row)
        charged = self._charge(slot, row, status, peak_memory)
        unable, step = slot.unable, slot.step
        early = not row.begun and not slot.leaving
        said = _quoted(capture.take(slot.err)) if early else ""
        self._remove_slot(slot)
        if charged is not None:
            self.events.ended([charged])
            self._check_drained()
        elif not row.left or row.left == LEFT_TORN:
            self._audit()
        if self.state in (State.FAILED, State.GONE):
            return
        if unable is not None and row.left == LEFT_UNABLE:
            self._fail(unable.kind, unable.text)
            return
        if step is not None and step.kind == "import" and not step.explicit and self._spawn:
            self._drop(step, f"ended the interpreter ({ended_how(status)})")
            os.close(self._setup_file)
            self._setup_file = self._write_setup()
        elif early:
            self._count_early_death(f"{ended_how(status)}{said}")
        self._refill()

    def _charge(self, slot: SlotHandle, row: Row, status: int, peak_memory: int) -> CallEnd | None:
        """The end of the call that a slot died in, if there is one."""
        key = (row.call, row.attempt)
        if not row.busy or key not in self._outstanding:
            return None
        self._outstanding.discard(key)
        self._early_deaths = 0
        wish = slot.kill if slot.kill is not None and slot.kill.key == key else self._kills.pop(key, None)
        now = time.time()
        if wish is not None:
            outcome, detail = wish.outcome, wish.detail
        else:
            outcome, detail = DIED, death(slot.pid, status, peak_memory, now - row.started_at)
        stdout, stderr = capture.take(slot.out), capture.take(slot.err)
        return CallEnd(CallId(row.call), row.attempt, outcome, b"", (), stdout, stderr, row.started_at, row.started_at, now, detail)

    def _remove_slot(self, slot: SlotHandle) -> None:
        """Let go of all that belongs to a slot without a process."""
        self._cancel(slot.timer)
        if slot.watch is not None:
            slot.watch.close()
        self._loop.remove_reader(slot.results.fileno())
        slot.close()
        self._rows.clear(slot.row)
        del self._slots[slot.row]

    def _count_early_death(self, why: str) -> None:
        self._early_deaths += 1
        if self._early_deaths >= EARLY_DEATHS:
            self._fail(
                "crash",
                f"{self._early_deaths} slots of library {self.spec.name!r} in a row ended before they had run a call; the last: {why}",
            )

    def _audit(self) -> None:
        """Give back calls that a dead slot had claimed and not yet noted.

        They are neither in the queue nor with a slot. A living slot without a noted call may be in the same microsecond; it is not when it sleeps,
        for then it waits for a call. The order of looks matters: queue, slots, results.
        """
        if not self._outstanding or self.state in (State.FAILED, State.GONE):
            return
        suspects = self._outstanding.difference((call.call, call.attempt) for call in self._queue.peek())
        if not suspects:
            return
        sure = True
        for slot in list(self._slots.values()):
            if not slot.pid or not slot.ready:
                self._drain_results(slot)
                if not slot.ready:
                    continue  # it had not claimed anything when the queue was read
            before = self._rows.read(slot.row)
            asleep = process_state(slot.pid) == "S"
            row = self._rows.read(slot.row)
            if row.busy:
                suspects.discard((row.call, row.attempt))
            elif not asleep or before.begun != row.begun:
                sure = False
        for slot in list(self._slots.values()):
            self._drain_results(slot)
        suspects &= self._outstanding
        if suspects and sure:
            self._outstanding -= suspects
            self.events.lost([HeldCall(CallId(call), attempt) for call, attempt in sorted(suspects)])
            self._check_drained()
        elif suspects:
            self._later(0.005, self._audit)

    # ------------------------------------------------ the end

    def _fail(self, kind: str, text: str, *, charge: bool = False) -> None:
        """End everything, then tell the worker."""
        if self.state in (State.FAILED, State.GONE):
            return
        failure = LibraryFailed(self.instance, kind, text, at_start=self.state is State.STARTING)
        self.state = State.FAILED
        self._ending = self._loop.create_task(self._end_all(charge=charge, failure=failure))

    async def _end_all(self, *, charge: bool, failure: LibraryFailed | None = None) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        slots = list(self._slots.values())
        for slot in slots:
            if slot.watch is not None:
                slot.watch.close()
            if slot.pid:
                kill_tree(slot.pid)
        # Slots that it is forking at this moment are found as its children.
        self._forget_zygote(kill_it=True)
        for zygote in self._old_zygotes:
            await reaped(zygote)
        for slot in slots:
            if slot.process is not None:
                await reaped(slot.process)
        await all_gone(slot.pid for slot in slots if slot.pid and slot.process is None)
        self._give_up(slots, charge)
        self._queue.close()
        self._rows.close()
        os.close(self._rows_file)
        if self._setup_file >= 0:
            os.close(self._setup_file)
        await asyncio.to_thread(_remove_folder, self.folder)
        if failure is not None:
            self.events.failed(failure)

    def _give_up(self, slots: list[SlotHandle], charge: bool) -> None:
        """Read the last answers; calls without one are charged if they have begun and it was theirs, else given back."""
        for slot in slots:
            self._drain_results(slot)
            row = self._rows.read(slot.row)
            if charge:
                charged = self._charge(slot, row, SIGKILL, 0)
                if charged is not None:
                    self.events.ended([charged])
            self._remove_slot(slot)
        if self._starved:
            self._loop.remove_writer(self._queue.sender)
        if self._outstanding:
            lost = [HeldCall(CallId(call), attempt) for call, attempt in sorted(self._outstanding)]
            self._outstanding.clear()
            self.events.lost(lost)
        self._check_drained()

    # ------------------------------------------------ timers

    def _later(self, seconds: float, what: Callable[[], object]) -> asyncio.TimerHandle:
        """Call `what` in so many seconds, unless this instance has ended by then."""

        def due() -> None:
            self._timers.discard(handle)
            what()

        handle = self._loop.call_later(seconds, due)
        self._timers.add(handle)
        return handle

    def _cancel(self, handle: asyncio.TimerHandle | None) -> None:
        if handle is not None:
            handle.cancel()
            self._timers.discard(handle)


def _quoted(output: bytes) -> str:
    text = output.decode(errors="replace").strip()
    return f"; it wrote:\n{bounded(text, 8 << 10)}" if text else ""


def _remove_folder(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
