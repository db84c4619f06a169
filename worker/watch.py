"""Watches the memory of slots, and ends one when it runs short.

Theory of operation
-------------------
`windlass.worker.memory` says how to read and how to choose; this looks every second, and every quarter of a second near the
limit. A look first adds up resident sizes. Only when these, or a cgroup, are near does it read proportional sizes, in a thread,
because that may take long; then one call is ended through its instance, which charges exactly that call. The slot's row is
compared with the call that was measured by `kill_calls` itself, so a slot that has gone on to its next call meanwhile is left
alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from windlass.blocking import in_thread
from windlass.messages import OUT_OF_MEMORY, RAISED, CallEnd, CallId, EndDetail, InstanceId
from windlass.worker import memory

if TYPE_CHECKING:
    from windlass.worker.backlog import Backlog
    from windlass.worker.libraries import Entry, Libraries

log = logging.getLogger("windlass.worker")

#: What is said of an attempt at a command that was killed, and not for memory.
KILLED_BY_SOMEBODY: Final = "the command was killed, and not by the kernel for want of memory"
#: So long after a kill by the kernel a slot that died of it, or a command, is heard of: hundreds of gigabytes take the kernel its time.
UNTOLD_SECONDS: Final = 60.0


class MemoryWatch:
    """The memory of a worker's slots against `limit` (bytes)."""

    def __init__(
        self, libraries: Libraries, backlog: Backlog, limit: int, groups: list[memory.Cgroup], tell_sessions: Callable[[list[int]], None]
    ) -> None:
        self._libraries = libraries
        #: Told which processes lead sessions of their own, for the guardian.
        self._tell_sessions = tell_sessions
        self._backlog = backlog
        self._groups = groups
        self.limit = limit
        #: Bytes in use when last looked at.
        self.used = 0
        #: Called when that has come to half of the limit: the manager ends zygotes that nobody needs now, before calls are ended.
        self.fills: Callable[[], object] = int
        self._is_full = False
        #: The kernel's kills: those of which a slot's death or a command has told; those that explain no further death; and all of them,
        #: since when it is so many.
        self._told = self._kills = self._counted = memory.oom_kills(groups)
        self._counted_at = 0.0
        self._explained: float = 0.0
        self._peaks: dict[tuple[CallId, int], int] = {}

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            begun = time.monotonic()
            try:
                near = await self.look()
            except OSError as error:
                log.warning("memory could not be looked at: %s", error)
                near = False
            # Large processes take long to measure, and are held up by it: at most 5 % of the time, or 20 % near the limit.
            took = time.monotonic() - begun
            await asyncio.sleep(max(memory.CLOSE_SECONDS, 4 * took) if near else max(memory.FAR_SECONDS, 19 * took))

    async def look(self) -> bool:
        """One look; True when the limit is near. Ends a call when it is reached."""
        from windlass.worker.slotproc import descendants

        self.count_kills(time.monotonic())
        entries = self._libraries.entries
        roots = [pid for entry in entries.values() for pid in entry.library.slot_pids().values()]
        others = [os.getpid(), *(pid for entry in entries.values() if (pid := entry.library.zygote_pid))]
        self._tell_sessions([*roots, *others[1:]])
        trees = {pid: [pid, *descendants(pid)] for pid in roots}
        trees.update({pid: [pid] for pid in others})
        self.used = sum(memory.measure(trees, memory.resident).values())
        was_full, self._is_full = self._is_full, 2 * self.used >= self.limit > 0
        if self._is_full and not was_full:
            self.fills()
        fullness = memory.cgroup_excess(self._groups) if self._groups else 0.0
        if self.used < memory.LOOK_SHARE * self.limit and fullness < memory.LOOK_SHARE:
            self._peaks.clear()
            return False
        # Not on the loop's executor, whose threads the process's end would wait for: the kernel may hold up who asks for this.
        sizes = await in_thread(partial(memory.measure, trees, memory.proportional))
        self.used = sum(sizes.values())
        usages = self._usages(sizes)
        worst = memory.choose(usages, self.used, self.limit, fullness=fullness)
        if worst is not None and worst.call is not None:
            self._end(worst, worst.call)
        return self.used >= memory.LOOK_SHARE * self.limit or fullness >= memory.LOOK_SHARE

    def count_kills(self, now: float) -> None:
        """Those of which no slot has died, nor a command ended, were of others, as of what calls start: they explain no later death."""
        kills = memory.oom_kills(self._groups)
        if kills != self._counted:
            self._counted, self._counted_at = kills, now
        elif now - self._counted_at >= UNTOLD_SECONDS:
            self._kills = kills

    def explain(self, end: CallEnd) -> CallEnd:
        """A slot died in this call: if the kernel ended it for want of memory, say so."""
        detail = end.detail
        if detail is None or detail.signal != 9 or not self._groups:
            return end
        kills = memory.oom_kills(self._groups)
        if kills <= self._kills and not (end.ended_at and end.ended_at == self._explained):
            return end
        # Calls that one slot ran at once have died in one instant, and it is one kill.
        if not end.ended_at or end.ended_at != self._explained:
            self._note_told(kills)
        self._explained = end.ended_at
        files = memory.of_files(memory.files_in_memory(self._groups), self.limit)
        text = f"the kernel ended the call because the pilot's memory ran out{files}" + (f"; {detail.text}" if detail.text else "")
        end.outcome = OUT_OF_MEMORY
        end.detail = EndDetail((), text, detail.signal, detail.exit_status, detail.peak_memory)
        self._complete(end)
        return end

    def complete(self, end: CallEnd) -> None:
        """It has run out of memory: by this watch, or a slot says so of a command, and does not know of how much. Then it has told of a
        kill by the kernel, which explains no death besides. Where others have told of all of them somebody else has ended the command, and
        what it raises for that has come along."""
        detail = end.detail
        if detail is None or detail.limit:
            return
        kills = memory.oom_kills(self._groups)
        if end.payload and self._groups and kills <= self._told:
            end.outcome, end.detail = RAISED, EndDetail(detail.types, KILLED_BY_SOMEBODY)
        else:
            end.payload = b""
            self._note_told(kills)
            self._complete(end)

    def _note_told(self, kills: int) -> None:
        self._told, self._kills = min(self._told + 1, kills), min(self._kills + 1, kills)

    def _complete(self, end: CallEnd) -> None:
        detail = end.detail
        if detail is not None:
            share = memory.share_of(self.limit, 0, self._libraries.slots())
            end.detail = EndDetail((), detail.text, detail.signal, detail.exit_status, detail.peak_memory, share, self.limit)

    def _usages(self, sizes: Mapping[int, int]) -> list[memory.Usage]:
        usages: list[memory.Usage] = []
        slots = self._libraries.slots()
        peaks: dict[tuple[CallId, int], int] = {}
        for instance, entry in self._libraries.entries.items():
            for running in entry.library.running():
                used = sizes.get(running.pid, 0)
                key = (running.call, running.attempt)
                peaks[key] = max(used, self._peaks.get(key, 0))
                usages.append(self._usage(instance, entry, running.pid, key, used, slots))
        self._peaks = peaks
        return usages

    def _usage(self, instance: InstanceId, entry: Entry, pid: int, key: tuple[CallId, int], used: int, slots: int) -> memory.Usage:
        share = memory.share_of(self.limit, entry.spec.per_slot.memory, slots, self._backlog.weight(*key))
        return memory.Usage(instance, pid, key[0], key[1], used, share)

    def _end(self, worst: memory.Usage, call: CallId) -> None:
        entry = self._libraries.entries.get(worst.instance)
        if entry is None:
            return
        peak = max(worst.used, self._peaks.get((call, worst.attempt), 0))
        files = memory.files_in_memory(self._groups)
        text = memory.out_of_memory_text(worst, self.limit, shared=entry.spec.concurrency > 1, files=files)
        detail = EndDetail(text=text, signal=9, peak_memory=peak, share=worst.share, limit=self.limit)
        if entry.library.kill_call(call, worst.attempt, OUT_OF_MEMORY, detail):
            log.warning("call %d: %s", call, text)
