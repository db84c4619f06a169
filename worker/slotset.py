"""The slots of one library instance: how they come, answer, are ended, and go.

Theory of operation
-------------------
`fill` brings the number of slots to the target; one for which no GPUs are free comes when they are (`windlass.worker.gpus`).
`outstanding` has every call that was fed and has neither been answered nor taken back.

*A slot ends.* The zygote (or, for a spawned slot, this process) reports it after reaping it. First everything it sent is read. Then its
row is read: a call that has begun, and is still outstanding, ended with the slot and is charged (`DIED`, or what `kill_calls` asked
for). A slot that died without a running call may still have claimed one, in the microsecond before it noted so: `_audit` finds calls
that are neither in the queue nor with any living slot, and gives them back as lost. Then the slot is replaced.

*A slot cannot start*, as its context function fails, or it takes too long, or three ended before they had run a call, and no slot ended
its first call meanwhile. The library cannot run here then; unless other slots serve. What these run is not to be lost by it, so those that
are missing are tried again later; and when that goes on, the worker is told: it drains, as calls wait here for slots that do not come.

*A running call is ended* (`kill_calls`) without hitting the next one by mistake: the slot is stopped, and when it stands, its row says
whether it is still that call. Then it is killed with all its children, else continued. In mode ``fork`` it stays where the call's child
is its only one: that is killed with all below it, by the worker, or by the slot as soon as it has forked it; and if not so within
`CANCEL_SECONDS`, the slot after all. What its context has started goes with it: it may be in the middle of the call's request, and answer
the next one with that. Idle slots that are to leave go the same way; busy ones see `LEAVE` in their row after their call.

*A slot that runs many calls at once* is asked to cancel the one, and killed when that has not ended after `CANCEL_SECONDS`; then its
neighbours are given back as cut short. When such a slot dies, all calls that have begun in it are charged, for nobody knows whose fault it
was; memory is the slot's, so for want of it all of them end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Final

import msgspec

from windlass.messages import CANCELLED, DIED, OUT_OF_MEMORY, CallEnd, CallId, EndDetail, HeldCall
from windlass.worker import capture
from windlass.worker.gpus import Gpus
from windlass.worker.ground import Ground, quoted
from windlass.worker.slothandle import Key, Kill, Owner, RunningCall, SlotHandle, Timers, Watch, during, reaped, unreadable_end
from windlass.worker.slotlink import LEFT_ASKED, LEFT_TORN, LEFT_UNABLE, LENGTH, NOTE, Noted, Row, SlotNote, Step, Unable
from windlass.worker.slotproc import all_gone, death, ended_how, has_others, kill, kill_tree, process_state, waits_for_others

log = logging.getLogger("windlass.worker")

#: So many slots in a row that end before they have run a call: the library cannot run here.
EARLY_DEATHS: Final = 3
#: Seconds until a slot that could not start is tried again while others serve: the first time, the second, and from then on.
PAUSES: Final = (1.0, 5.0, 30.0)
#: What calls have started gets so long to go when it was killed: it may hang in the kernel, and the slots' last answers are to be read.
CHILDREN_SECONDS: Final = 2.0
#: Seconds that a task has to end when it was cancelled, and a slot to fork the child of a call that is to be ended.
CANCEL_SECONDS: Final = 5.0
#: Seconds until it is looked again whether a slot has a call that is nowhere; they grow, as each look takes all out of the queue.
AUDIT_SECONDS: Final = 0.005
AUDIT_SECONDS_MOST: Final = 0.25
_READ_BYTES: Final = 256 << 10
#: Seconds in which a zygote tells that it has forked.
FORK_SECONDS: Final = 0.5
#: No answer is as long, in bytes: what is large travels as objects.
_ANSWER_MOST: Final = 64 << 20


class SlotSet:
    """The slots of an instance; `row_count` bounds them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ground: Ground, timers: Timers, owner: Owner, row_count: int, gpus: Gpus) -> None:
        self._loop, self._ground, self._timers, self._owner, self._row_count, self._gpus = loop, ground, timers, owner, row_count, gpus
        self._spec = ground.spec
        self._rows = ground.rows
        self.target = 0
        #: Which of them slots had best have; how many each has is the library's.
        self.gpu_ids: tuple[str, ...] = ()
        self.outstanding: set[Key] = set()
        #: Set whenever no call is outstanding.
        self.drained = asyncio.Event()
        self.slots: dict[int, SlotHandle] = {}  # by row
        self._kills: dict[Key, Kill] = {}  # to end in a slot that lives on: its child (mode "fork"), or cancelled in it
        #: The rows of slots that have ended before they had run a call, since one has run its first.
        self._early_deaths: list[int] = []
        #: How often in a row slots could not start while others served; how many are not tried while it is waited.
        self._failed_starts = self._paused = 0
        self._pause: asyncio.TimerHandle | None = None
        self._warned = False
        self._buffer = bytearray(_READ_BYTES)
        self._decode = msgspec.msgpack.Decoder(CallEnd).decode
        self._decode_note = msgspec.msgpack.Decoder(SlotNote).decode

    def tell_end(self, ends_at: float, warned: bool) -> None:
        """When the pilot will end running calls (monotonic clock, infinity: never), and whether they are to be warned."""
        self._rows.set_end(ends_at, warned)
        if warned and not self._warned:
            self._warned = True
            for slot in self.slots.values():
                slot.warn()

    # ------------------------------------------------ calls

    def running(self) -> list[RunningCall]:
        """The calls that slots run now."""
        found: list[RunningCall] = []
        for slot in self.slots.values():
            for row in self._begun(slot):
                if row.since and (row.call, row.attempt) in self.outstanding:
                    found.append(RunningCall(CallId(row.call), row.attempt, slot.row, slot.pid, row.since, row.watches))
        return found

    def _begun(self, slot: SlotHandle) -> Iterator[Row]:
        """What its rows say where it has a call."""
        for number in slot.rows:
            if self._rows.busy(number):
                row = self._rows.read(number)
                if row.busy:
                    yield row

    def _runs(self, slot: SlotHandle) -> bool:
        """Whether a call of it has not been answered; its row says `_is_busy` for a moment longer, and all may look busy then."""
        return any((row.call, row.attempt) in self.outstanding for row in self._begun(slot))

    def _is_busy(self, slot: SlotHandle) -> bool:
        return any(map(self._rows.busy, slot.rows))

    def kill_calls(self, calls: Iterable[Key], outcome: int, detail: EndDetail | None = None) -> set[Key]:
        """End running calls, which then end with this outcome, unless they end by themselves in this moment; returns which.

        Those that no slot runs are not among them. However many they are, all rows are looked at once.
        """
        wanted = self.outstanding.intersection(calls)
        found: set[Key] = set()
        for slot in self.slots.values() if wanted else ():
            for number in slot.rows:
                if self._rows.running(number) not in wanted:
                    continue
                row = self._rows.read(number)
                key = (row.call, row.attempt)
                if not row.busy or key not in wanted:
                    continue
                found.add(key)
                wish = Kill(key, outcome, detail)
                if self._spec.concurrency > 1 and not row.alone:
                    self._cancel(slot, number, row, wish)
                elif slot.kill is None and key not in self._kills:
                    slot.kill = wish
                    self._stop_slot(slot)
        return found

    def _cancel(self, slot: SlotHandle, number: int, row: Row, wish: Kill) -> None:
        """End one of many calls that run in a slot, or for want of memory all of them."""
        if wish.outcome == OUT_OF_MEMORY:
            if slot.pid and not slot.doomed:
                slot.kill, slot.doomed = wish, True
                kill_tree(slot.pid)
        elif wish.key not in self._kills:
            self._kills[wish.key] = wish
            self._rows.ask_to_cancel(number, row.begun)
            slot.warn()
            self._timers.later(CANCEL_SECONDS, lambda: self._insist(slot, number, row))

    def _insist(self, slot: SlotHandle, number: int, asked: Row) -> None:
        """A call was cancelled: if it has not ended, its slot is killed."""
        row = self._rows.read(number)
        here = self.slots.get(slot.row) is slot and self._owner.active and not slot.doomed
        if here and row.busy and row.begun == asked.begun and (row.call, row.attempt) in self.outstanding:
            if slot.pid:
                slot.doomed = slot.stubborn = True
                kill_tree(slot.pid)
            else:
                self._timers.later(CANCEL_SECONDS, lambda: self._insist(slot, number, asked))

    def check_drained(self) -> None:
        """Calls have left `outstanding`."""
        if not self.outstanding:
            self.drained.set()

    # ------------------------------------------------ slots come

    def fill(self) -> None:
        """Bring the number of slots to the target."""
        if not self._owner.active:
            return
        self._gpus.learn(self.gpu_ids)
        wished = set(self.gpu_ids)
        staying = [slot for slot in self.slots.values() if not slot.leaving]
        if len(staying) > self.target:
            # Those that have not begun first, then idle ones, of them such as have other GPUs than named, then the newest: they have
            # cached the least.
            staying.sort(key=lambda slot: (slot.ready, self._runs(slot), wished.issuperset(slot.gpu_ids), -slot.row))
            for slot in staying[: len(staying) - self.target]:
                self._let_leave(slot)
        missing = self.target - len(staying)
        for slot in list(self.slots.values()):
            if missing > 0 and slot.leaving and not (slot.stopping or slot.doomed or slot.unable):
                slot.leaving = False
                self._rows.ask_to_leave(slot.rows[0], False)
                if self._spec.concurrency > 1:
                    slot.warn()
                missing -= 1
        if self._pause is not None and self._serves():
            missing -= self._paused
        while missing > 0 and self._add_slot():
            missing -= 1

    def _add_slot(self) -> bool:
        row = next((row for row in range(self._row_count) if row not in self.slots), -1)
        gpus = self._gpus.take(self._spec.per_slot.gpus, self.gpu_ids, self._on_gpus_free) if row >= 0 else None
        if gpus is None:
            return False
        try:
            slot = SlotHandle(row, gpus, self._spec.concurrency)
        except OSError as error:
            self._gpus.give_back(gpus)
            self._timers.later(1.0, self.fill)
            if not self._serves():
                self._count_early_death(row, f"no more descriptors for slots: {error}")
            return False
        self.slots[row] = slot
        self._rows.add_slot(row)
        if self._warned:
            slot.warn()
        self._loop.add_reader(slot.results.fileno(), self._on_results, slot)
        slot.timer = self._timers.later(self._spec.start_timeout, lambda: self._on_slot_timeout(slot))
        zygote = self._owner.zygote
        try:
            if zygote is not None:
                zygote.fork(row, gpus, (slot.other_end.fileno(), slot.out, slot.err))
            else:
                extra = (str(row), ",".join(gpus))
                slot.process = self._ground.execute("windlass.worker.slot", slot.other_end.fileno(), extra, slot.out, slot.err)
        except OSError as error:  # no room on the node; or the zygote is slow, or gone: then its end is on the way
            self.not_started(row, str(error))
            return False
        slot.other_end.close()
        if slot.process is not None:
            slot.pid = slot.process.pid
            slot.watch = Watch(self._loop, slot.process, lambda status, peak: self._on_slot_ended(slot, status, peak))
        return True

    def _on_gpus_free(self) -> None:
        """A slot of this or of another instance has left GPUs, and may be just about to be replaced."""
        self._timers.later(0.0, self.fill)

    def started(self, row: int, pid: int) -> None:
        """The zygote has forked this slot."""
        slot = self.slots[row]
        slot.pid = pid
        # Its own first words may have come before the zygote's, and with them a wish to end it or its call.
        if slot.doomed:
            kill_tree(pid)
        elif slot.leaving or slot.kill is not None:
            self._stop_slot(slot)

    def not_started(self, row: int, text: str) -> None:
        """There is no process for this slot; tried again soon."""
        self._remove_slot(self.slots[row])
        self._timers.later(1.0, self.fill)
        if not self._serves():
            self._count_early_death(row, f"no process for a slot: {text}")

    def exited(self, row: int, pid: int, status: int, peak_memory: int) -> None:
        """The zygote has reaped this slot."""
        slot = self.slots.get(row)
        if slot is not None and slot.pid == pid:
            self._on_slot_ended(slot, status, peak_memory)

    def _on_slot_timeout(self, slot: SlotHandle) -> None:
        if not slot.ready and self.slots.get(slot.row) is slot and not slot.leaving:
            limit = f"{self._spec.start_timeout:g} s"
            text = f"a slot of library {self._spec.name!r} was not ready within {limit}{during(slot.step)}"
            if not slot.pid and self._serves():  # its zygote is stopped, and may go on
                slot.timer = self._timers.later(self._spec.start_timeout, lambda: self._on_slot_timeout(slot))
                return
            slot.doomed = True
            kill_tree(slot.pid)
            self._cannot_start("timeout", text)

    def _serves(self) -> bool:
        return any(slot.ready for slot in self.slots.values())

    def _cannot_start(self, kind: str, text: str, slots: int = 1) -> None:
        """So many slots cannot start: the library fails by that, or they are tried again later."""
        if not self._serves():
            self._owner.fail(kind, text)
            return
        serving = sum(slot.ready and not slot.leaving for slot in self.slots.values())
        self._paused = min(self._paused + slots, self.target - serving)  # no more: one that served and has left is replaced
        if self._pause is not None:
            return
        pause = PAUSES[min(self._failed_starts, len(PAUSES) - 1)]
        self._failed_starts += 1
        log.warning("a slot is tried again in %g s, while others serve: %s", pause, text)
        self._pause = self._timers.later(pause, self._pause_over)
        if self._failed_starts == len(PAUSES) + 1:
            self._owner.trouble(f"slots of library {self._spec.name!r} cannot start beside others on {os.uname().nodename}: {text}")

    def _pause_over(self) -> None:
        self._pause, self._paused = None, 0
        self.fill()

    # ------------------------------------------------ what slots say

    def _on_slot_says(self, slot: SlotHandle, note: SlotNote) -> None:
        if isinstance(note, Step):
            slot.step = note
            self._owner.step(note, slot)
        elif isinstance(note, Unable):
            slot.unable = note
        elif isinstance(note, Noted):
            self._owner.noted(note)
        else:
            slot.ready, slot.step, self._failed_starts = True, None, 0
            self._timers.cancel(slot.timer)
            self._owner.prepared(note, slot)

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
        decode, outstanding = self._decode, self.outstanding
        while end - position >= 4:
            (length,) = LENGTH.unpack_from(data, position)
            stop = position + 4 + (length & ~NOTE)
            if stop > end and length & ~NOTE < _ANSWER_MOST:
                break
            frame = data[position + 4 : stop]
            position = stop
            try:
                if length & NOTE:
                    self._on_slot_says(slot, self._decode_note(frame))
                    continue
                call = decode(frame)
            except msgspec.MsgspecError as error:
                unreadable = unreadable_end(frame, error)
                if unreadable is None:  # a function has written into the slot's connection: nothing after it can be believed
                    unreadable = self._torn(slot, error)
                    position = end
                call = unreadable
            key = (call.call, call.attempt)
            if key not in outstanding:
                continue
            outstanding.discard(key)
            if self._kills:
                self._as_asked(call)
            ends.append(call)
        slot.rest = bytes(data[position:])
        if ends:
            self._has_run(slot)
            self._owner.ended(ends)
            self.check_drained()

    def _torn(self, slot: SlotHandle, error: Exception) -> CallEnd:
        """What a slot says makes no sense: kill it; the end of the call that it ran."""
        slot.doomed = True
        kill_tree(slot.pid)
        row, now = next(self._begun(slot), self._rows.read(slot.rows[0])), time.time()
        text = f"the slot that ran it (pid {slot.pid}) was killed: something in it wrote into the connection to its worker ({error})"
        return CallEnd(CallId(row.call), row.attempt, DIED, started_at=now, ready_at=now, ended_at=now, detail=EndDetail(text=text))

    def _as_asked(self, end: CallEnd) -> None:
        """Give a call that was killed below a slot, or cancelled in it, the outcome that was asked for, unless it was quicker."""
        wish = self._kills.pop((end.call, end.attempt), None)
        if wish is not None and end.outcome in (DIED, CANCELLED):
            end.outcome, end.detail = wish.outcome, wish.detail

    def _drain_results(self, slot: SlotHandle) -> None:
        """Read all that a slot has sent."""
        with suppress(BlockingIOError, ConnectionError):
            while size := slot.results.recv_into(self._buffer):
                self._take_results(slot, size)

    # ------------------------------------------------ slots go

    def _let_leave(self, slot: SlotHandle) -> None:
        slot.leaving = True
        self._rows.ask_to_leave(slot.rows[0], True)
        if slot.pid and not self._is_busy(slot):
            self._stop_slot(slot)

    def _stop_slot(self, slot: SlotHandle) -> None:
        """Bring a slot to a halt, to decide then what becomes of it."""
        if slot.stopping or not slot.pid:
            return
        slot.stopping = True
        kill(slot.pid, SIGSTOP)
        self._look_whether_stopped(slot, 0)

    def _look_whether_stopped(self, slot: SlotHandle, looks: int) -> None:
        if self.slots.get(slot.row) is not slot or not self._owner.active:
            return
        # After two seconds it is deep in the kernel, and will not run a line of Python before it stops.
        if process_state(slot.pid) not in ("T", "t", "Z", "X", "") and looks < 200:
            self._timers.later(0.0005 if looks < 20 else 0.01, lambda: self._look_whether_stopped(slot, looks + 1))
            return
        self._on_stopped(slot)

    def _on_stopped(self, slot: SlotHandle) -> None:
        slot.stopping = False
        if slot.doomed:
            return
        wish, slot.kill = slot.kill, None
        row = next((row for row in self._begun(slot) if wish is not None and (row.call, row.attempt) == wish.key), None)
        if wish is not None and wish.key in self.outstanding and row is not None:
            if self._spec.mode != "fork" or has_others(slot.pid, self._rows.child(slot.row, row.begun)):
                slot.kill = wish  # `_charge` looks at it
                slot.doomed = True
                kill_tree(slot.pid)
                return
            self._kills[wish.key] = wish
            self._rows.ask_to_cancel(slot.row, row.begun)  # first: it may not have stopped, and be about to fork
            if child := self._rows.child(slot.row, row.begun):
                kill_tree(child)
            else:
                self._timers.later(CANCEL_SECONDS, lambda: self._insist(slot, slot.row, row))
        elif slot.leaving and not self._is_busy(slot):
            slot.doomed = True
            kill_tree(slot.pid)
            return
        kill(slot.pid, SIGCONT)

    def _on_slot_ended(self, slot: SlotHandle, status: int, peak_memory: int) -> None:
        """The slot's process has been reaped."""
        if not self._owner.active:
            return
        self._drain_results(slot)
        if self.slots.get(slot.row) is not slot:
            return
        row = self._rows.read(slot.rows[0])
        begun = row.begun or any(self._rows.read(number).begun for number in slot.rows)
        charged, cut_short = self._charge(slot, status, peak_memory)
        unable, step = slot.unable, slot.step
        early = not begun and not slot.leaving and not slot.doomed and row.left != LEFT_ASKED
        said = quoted(capture.take(slot.err)) if early else ""
        self._remove_slot(slot)
        if charged:
            self._owner.ended(charged)
        if cut_short:
            self._owner.lost(cut_short, "neighbour")
        if charged or cut_short:
            self.check_drained()
        if (not charged or self._spec.concurrency > 1) and (not row.left or row.left == LEFT_TORN):
            self._audit()
        if not self._owner.active:
            return
        if unable is not None and row.left == LEFT_UNABLE:
            self._cannot_start(unable.kind, unable.text)
        elif step is not None and step.kind == "import" and not step.explicit:
            self._ground.drop(step.what, f"ended the interpreter ({ended_how(status)})")
        elif early:
            self._count_early_death(slot.row, f"{ended_how(status)}{said}")
        self.fill()

    def _charge(self, slot: SlotHandle, status: int, peak_memory: int) -> tuple[list[CallEnd], list[HeldCall]]:
        """The ends of the calls that a slot died in, and those that were only there when it was killed for another."""
        charged: list[CallEnd] = []
        cut_short: list[HeldCall] = []
        now, clock = time.time(), time.monotonic()  # one for all of them: by that they are known to have died together
        stdout = stderr = b""
        for row in self._begun(slot):
            key = (row.call, row.attempt)
            if key not in self.outstanding:
                continue
            wish = self._kills.pop(key, None)
            if slot.kill is not None and (slot.kill.key == key or (slot.kill.outcome == OUT_OF_MEMORY and row.since)):
                wish = slot.kill
            if wish is None and not row.since:
                continue  # it was waiting for its turn: the audit finds it
            self.outstanding.discard(key)
            self._has_run(slot)
            if wish is None and slot.stubborn:
                cut_short.append(HeldCall(CallId(row.call), row.attempt))
                continue
            ran = clock - row.since if row.since else 0.0
            if wish is not None:
                outcome, detail = wish.outcome, wish.detail
            else:
                outcome, detail = DIED, death(slot.pid, status, peak_memory, ran, len(list(self._begun(slot))))
            if not charged:
                stdout, stderr = capture.take(slot.out), capture.take(slot.err)
            charged.append(CallEnd(CallId(row.call), row.attempt, outcome, b"", (), stdout, stderr, now - ran, now - ran, now, detail))
        return charged, cut_short

    def _remove_slot(self, slot: SlotHandle) -> None:
        """Let go of all that belongs to a slot without a process."""
        if slot.pid and self._is_busy(slot):
            self._ground.remove_torn(slot.pid)
        self._timers.cancel(slot.timer)
        if slot.watch is not None:
            slot.watch.close()
        self._loop.remove_reader(slot.results.fileno())
        slot.close()
        for number in slot.rows:
            self._rows.clear(number)
        del self.slots[slot.row]
        self._gpus.give_back(slot.gpu_ids)

    def _has_run(self, slot: SlotHandle) -> None:
        """A call of it has ended. What it runs later says nothing of how those beside it start."""
        if not slot.proven:
            slot.proven = True
            self._early_deaths.clear()

    def _count_early_death(self, row: int, why: str) -> None:
        self._early_deaths.append(row)
        if (deaths := len(self._early_deaths)) >= EARLY_DEATHS:
            text = f"{deaths} slots of library {self._spec.name!r} in a row ended before they had run a call; the last: {why}"
            slots = len(set(self._early_deaths))  # one may have ended, and been replaced, so often
            self._early_deaths.clear()
            self._cannot_start("crash", text, slots)

    def _audit(self, pause: float = AUDIT_SECONDS) -> None:
        """Give back calls that a dead slot had claimed and not yet noted.

        They are neither in the queue nor with a slot. A living slot without a noted call may be in the same microsecond; it is not when
        it sleeps, for then it waits for a call, unless it is for the interpreter's lock. The order of looks matters: queue, slots, results.
        """
        if not self.outstanding or not self._owner.active:
            return
        suspects = self.outstanding.difference((call.call, call.attempt) for call in self._ground.queue.peek())
        if not suspects:
            return
        sure = True
        for slot in list(self.slots.values()):
            if not slot.pid or not slot.ready:
                self._drain_results(slot)
                if not slot.ready:
                    continue  # it had not claimed anything when the queue was read
            if self._spec.concurrency > 1:
                sure = sure and not self._rows.claiming(slot.rows[0])  # before its rows are read
                suspects.difference_update((row.call, row.attempt) for row in self._begun(slot))
                continue
            before = self._rows.read(slot.row)
            asleep = waits_for_others(slot.pid)
            row = self._rows.read(slot.row)
            if row.busy:
                suspects.discard((row.call, row.attempt))
            elif not asleep or before.begun != row.begun:
                sure = False
        for slot in list(self.slots.values()):
            self._drain_results(slot)
        suspects &= self.outstanding
        if suspects and sure:
            self.outstanding -= suspects
            self._owner.lost([HeldCall(CallId(call), attempt) for call, attempt in sorted(suspects)])
            self.check_drained()
        elif suspects:
            self._timers.later(pause, lambda: self._audit(min(2 * pause, AUDIT_SECONDS_MOST)))

    # ------------------------------------------------ the end

    async def end_all(self) -> None:
        """Kill every slot with all below it, and wait until they have ended; `close` follows."""
        # The zygote is about to tell the process ids of those that it is forking, unless it has died.
        until = self._loop.time() + FORK_SECONDS
        while any(not slot.pid for slot in self.slots.values()) and self._loop.time() < until:
            await asyncio.sleep(0.001)
        slots = list(self.slots.values())
        below: set[int] = set()
        for slot in slots:
            if slot.pid:
                below |= kill_tree(slot.pid)
        for slot in slots:
            if slot.process is not None:
                await reaped(slot.process)
        await all_gone(slot.pid for slot in slots if slot.pid and slot.process is None)
        await all_gone(below, CHILDREN_SECONDS)  # trackers, too; one that something escaped keeps waiting goes with the worker

    def close(self, *, charge: bool) -> None:
        """Read the last answers; calls without one are charged if they have begun and `charge` says so, else given back."""
        self._gpus.forget(self._on_gpus_free)
        for slot in list(self.slots.values()):
            self._drain_results(slot)
            charged, cut_short = self._charge(slot, SIGKILL, 0) if charge else ([], [])
            if charged:
                self._owner.ended(charged)
            if cut_short:
                self._owner.lost(cut_short, "neighbour")
            self._remove_slot(slot)
        if self.outstanding:
            lost = [HeldCall(CallId(call), attempt) for call, attempt in sorted(self.outstanding)]
            self.outstanding.clear()
            self._owner.lost(lost)
        self.check_drained()
