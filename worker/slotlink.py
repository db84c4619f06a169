"""What a worker, a zygote and the slots of one library instance say to each other.

Theory of operation
-------------------
Four things connect the processes of an instance::

    worker ──── control (seqpacket, both ways) ───── zygote
    worker ──── call queue (seqpacket) ────────────▶ slots     every slot claims from the same end
    worker ◀─── results (stream, one per slot) ───── slot
    worker ◀──▶ rows (shared memory) ◀─────────────▶ slots

*Control* carries one msgpack record per packet; `ForkSlot` brings the new slot's descriptors along.

*The call queue* carries one call per packet: the msgpack of a `CallRun`, whose first byte is that of an array. A call that is
too long for a packet stands in a file, and its packet is `SPILLED`, the file's path, a zero and what the worker must know of it. End of
file means that the worker is gone: leave.

*Results* are frames: four bytes of length, then the msgpack of a `CallEnd`; with `NOTE` set in the length, one of `SlotNote`
instead.

*Rows* say what each slot is doing, in aligned words that one side writes and the other reads, without locks. The slot writes
`CALL` and `ATTEMPT` of the call it has claimed, `SINCE` when it did (by the node's monotonic clock, which nobody sets and which does not
count while the node sleeps), and then `BEGUN` (a count). It sends the result and then writes `FINISHED`, the same count. So a call is
running while the two differ, and when the process dies exactly that call is charged with it, unless its result is found in the
results. `SENDING` is written before the first byte of a result: in mode ``fork`` it tells a child that died without an answer from one that
died in the middle of it. There `CHILD` is the child's process id, from its fork until it is about to be reaped; or the slot's own, where it
runs the call itself. `LEAVE` is the worker's wish, read between calls; `LEFT` is the slot's reason for going by itself. `WATCHES` is the
count again where the running call has registered for its pilot's end.

*A slot that runs many calls at once* (`LibrarySpec.concurrency`) has a row for each of its places, one behind the other; what is said of
the slot itself (`LEAVE`, `LEFT`) stands in the first of them. `SINCE` is 0 while a call waits in its place until it may run alone, and
`ALONE` is the count while it does. `CANCEL` is the worker's wish: the count of the call that is to be cancelled; or, in mode
``fork``, ended, which the slot sees to if it finds it there after its fork. `CLAIMING` is set while the slot may have a call that is in
no row yet. When the worker has changed a wish, it sends a byte over the results, which wakes the slot.
`LOAD` is one more than the calls that a slot has, while it claims; `SLOTS` in the pilot's row is the number of slots so far.

*The pilot's row* stands after those of the slots. The worker writes there when the pilot will end their calls (`ENDS_AT`, on the node's
monotonic clock; it may come nearer at any time) and whether that is near (`WARNED`). Whoever wants to know reads it, so it costs calls
nothing. Who waits for the warning polls the slot's results, into which the worker then sends a byte that nobody ever reads.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
from typing import Final

import msgspec

from windlass.messages import RESULT, HoistedImport, InstanceId, LibrarySpec

#: Words of eight bytes in a row: two cache lines, so that slots do not slow each other.
ROW_WORDS: Final = 16
CALL, ATTEMPT, SINCE, BEGUN, FINISHED, SENDING, LEAVE, LEFT, WATCHES, ALONE, CANCEL, CLAIMING, LOAD, CHILD = range(14)
#: Words of the pilot's row.
ENDS_AT, WARNED, SLOTS = range(3)

#: Values of `LEFT`.
LEFT_ASKED: Final = 1  # `LEAVE` was set
LEFT_FULL: Final = 2  # `LibrarySpec.max_calls` reached
LEFT_TORN: Final = 3  # mode "fork": the child died in the middle of an answer, so the stream of results is of no more use
LEFT_UNABLE: Final = 4  # could not start, and has said why

SPILLED: Final = 0x01
#: A packet has this many bytes at most; sockets refuse packets over their buffer, and 208 KiB is the smallest default of Linux.
MAX_PACKET: Final = 144 << 10
#: Wanted for the call queue; the kernel gives what ``net.core.wmem_max`` allows.
QUEUE_BYTES: Final = 1 << 20
RESULT_BYTES: Final = 1 << 20
LENGTH: Final = struct.Struct("=I")
NOTE: Final = 1 << 31


def kept_folder(cache_folder: str) -> str:
    """Where slots leave parts of results that stay on the worker; beside the cache, so that a rename takes them in."""
    return f"{cache_folder}-kept"


def room_name(call: int, attempt: int) -> str:
    """The directory of a call's own, in the instance's working directory."""
    return f"call-{call}-{attempt}"


def kept_name(prefix: str, number: int) -> str:
    """The name of the part of this number, from 1; the same whenever and wherever the call runs again."""
    return f"{RESULT}{prefix}{number:08x}"


class Setup(msgspec.Struct, frozen=True, array_like=True):
    """All that a zygote, or a spawned slot, needs to begin with; it finds this in a memory file."""

    spec: LibrarySpec
    instance: InstanceId
    store_folder: str
    functions_folder: str
    #: Where code snapshots are unpacked, once per worker.
    code_folder: str
    #: Working directory of the calls.
    work_folder: str
    rows: int
    #: Automatic imports that an earlier zygote of this instance did not survive, and why.
    dropped: tuple[HoistedImport, ...] = ()
    #: Where the files are that arguments name; see `windlass.files.local_file`.
    cache_folder: str = ""
    #: The worker's Windlass: a zygote of an environment with another one would not understand it.
    version: str = ""


class Step(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Zygote or slot → worker: I am about to do this, which may take long or kill me."""

    #: "import", "functions" or "context".
    kind: str
    what: str = ""
    explicit: bool = True


class Prepared(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Zygote or slot → worker: all is loaded; I serve."""

    imports: tuple[HoistedImport, ...] = ()
    context_seconds: float = 0.0
    notes: tuple[str, ...] = ()
    #: Zygote: a fork of me would not be safe, the notes say why; start interpreters instead.
    spawn: bool = False
    #: Slot: what imports and context wrote, bounded.
    wrote: bytes = b""
    #: Slot in mode ``fork``: why a fork of me would not be safe. It runs one call itself, and then leaves.
    hazards: tuple[str, ...] = ()


class Unable(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Zygote or slot → worker: the library cannot start; as in `LibraryFailed`."""

    kind: str
    text: str


class Forked(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Zygote → worker: the slot in this row has this process id."""

    row: int
    pid: int


class NotForked(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Zygote → worker: the kernel gave no process for the slot in this row."""

    row: int
    text: str


class SlotExited(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Zygote → worker: a slot has ended and is reaped. ``status`` is that of wait(2), ``peak_memory`` in bytes."""

    row: int
    pid: int
    status: int
    peak_memory: int = 0


class ForkSlot(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Worker → zygote: fork a slot for this row. Descriptors that come along: results, standard output, standard error."""

    row: int
    gpu_ids: tuple[str, ...] = ()


FromZygote = Step | Prepared | Unable | Forked | NotForked | SlotExited


class Noted(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Slot → worker: what its user should know of the calls of a function."""

    function: str
    text: str


SlotNote = Step | Prepared | Unable | Noted


class Row(msgspec.Struct, frozen=True):
    """What a row says: the call that the slot runs, or ran last, and since when by the monotonic clock."""

    call: int
    attempt: int
    since: float
    begun: int
    finished: int
    left: int
    watches: bool = False
    #: It runs with nothing else in its slot.
    alone: bool = False

    @property
    def busy(self) -> bool:
        """True while `call` runs."""
        return self.begun != self.finished


class Rows:
    """The shared memory of an instance: one row per slot, and the pilot's."""

    def __init__(self, descriptor: int, count: int) -> None:
        """Map `descriptor`, a file of `size(count)` bytes."""
        self.count = count
        self._pilot = count * ROW_WORDS
        self._map = mmap.mmap(descriptor, self.size(count))
        self._view = memoryview(self._map)
        self.words = self._view.cast("Q")
        self.doubles = self._view.cast("d")

    @staticmethod
    def size(count: int) -> int:
        """Bytes for so many slots."""
        return (count + 1) * ROW_WORDS * 8

    @property
    def ends_at(self) -> float:
        """When the pilot will end running calls, on the monotonic clock; infinity: never."""
        return self.doubles[self._pilot + ENDS_AT]

    @property
    def warned(self) -> bool:
        """Whether that is near."""
        return bool(self.words[self._pilot + WARNED])

    def since(self, row: int) -> float:
        """When the call there began, on the same clock."""
        return self.doubles[row * ROW_WORDS + SINCE]

    def watch(self, row: int) -> None:
        """Slot only: the running call has registered for the end of its pilot."""
        self.words[row * ROW_WORDS + WATCHES] = self.words[row * ROW_WORDS + BEGUN]

    def set_end(self, ends_at: float, warned: bool) -> None:
        """Worker only."""
        self.doubles[self._pilot + ENDS_AT] = ends_at
        self.words[self._pilot + WARNED] = warned

    def read(self, row: int) -> Row:
        """A consistent copy of a row that its slot may be writing at this moment."""
        base = row * ROW_WORDS
        words = self.words
        while True:
            begun = words[base + BEGUN]
            copy = Row(
                words[base + CALL],
                words[base + ATTEMPT],
                self.doubles[base + SINCE],
                begun,
                words[base + FINISHED],
                words[base + LEFT],
                words[base + WATCHES] == begun,
                words[base + ALONE] == begun,
            )
            if words[base + BEGUN] == begun:
                return copy

    def clear(self, row: int) -> None:
        """Make the row ready for another slot."""
        base = row * ROW_WORDS
        self._map[base * 8 : (base + ROW_WORDS) * 8] = bytes(ROW_WORDS * 8)

    def busy(self, row: int) -> bool:
        """Whether a call is there."""
        base = row * ROW_WORDS
        return self.words[base + BEGUN] != self.words[base + FINISHED]

    def running(self, row: int) -> tuple[int, int] | None:
        """Call and attempt that are there, at a glance; `read` knows for sure."""
        words, base = self.words, row * ROW_WORDS
        return (words[base + CALL], words[base + ATTEMPT]) if words[base + BEGUN] != words[base + FINISHED] else None

    def claiming(self, row: int) -> bool:
        """Whether a slot may have a call that is in none of its rows yet; ``row``: its first."""
        return bool(self.words[row * ROW_WORDS + CLAIMING])

    def least_load(self, places: int, most: int) -> int:
        """Calls of the slot that claims and has fewest, if that is less than ``most``."""
        for number in range(self.words[self._pilot + SLOTS]):
            load = self.words[number * places * ROW_WORDS + LOAD]
            if 0 < load <= most:
                most = load - 1
        return most

    def add_slot(self, number: int) -> None:
        """Worker only: there is a slot of this number, or was."""
        self.words[self._pilot + SLOTS] = max(self.words[self._pilot + SLOTS], number + 1)

    def ask_to_cancel(self, row: int, begun: int) -> None:
        """Tell the slot to cancel the call of this count, or to end its child, if it is still there."""
        self.words[row * ROW_WORDS + CANCEL] = begun

    def child(self, row: int, begun: int) -> int:
        """The process that runs the call of this count, in mode ``fork``; 0: there is none yet, or none any more."""
        child = self.words[row * ROW_WORDS + CHILD]
        return child if self.words[row * ROW_WORDS + BEGUN] == begun else 0

    def ask_to_leave(self, row: int, wish: bool) -> None:
        """Tell the slot to leave before its next call, or not to."""
        self.words[row * ROW_WORDS + LEAVE] = wish

    def close(self) -> None:
        """Unmap."""
        self.words.release()
        self.doubles.release()
        self._view.release()
        self._map.close()


def socket_pair(kind: socket.SocketKind, size: int) -> tuple[socket.socket, socket.socket]:
    """Two connected Unix sockets; the first one's sends, and the second one's, have `size` bytes of buffer if the kernel allows."""
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    for end in (one, other):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
    return one, other


def read_setup(descriptor: int) -> Setup:
    """The `Setup` in a memory file, which others may be reading as well."""
    return msgspec.msgpack.decode(os.pread(descriptor, os.fstat(descriptor).st_size, 0), type=Setup)


def bounded(text: str, limit: int = 32 << 10) -> str:
    """`text` with its middle left out when it is too long for a packet, and without what cannot be encoded."""
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
