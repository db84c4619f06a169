"""What a call wrote to its standard output and error, bounded.

Theory of operation
-------------------
File descriptors 1 and 2 of a slot are files in memory, opened for appending, so they also catch what C code and child processes
write. They belong to the slot: after each call it asks their length, which is nought for most calls, and if it is not, takes
what is there and makes them empty again. The worker holds the same files, so the last words of a slot that died are not lost.

At most `HEAD` bytes from the beginning and `TAIL` bytes from the end are kept, with a line between them that says how many are
missing. A call that writes without end would fill the memory of the node; therefore the worker calls `trim` now and then, which
gives back the memory of the middle and leaves the length as it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

HEAD: Final = 32 << 10
TAIL: Final = 32 << 10
#: A file in memory is trimmed when it has grown by this many bytes.
TRIM_BYTES: Final = 8 << 20
_PUNCH_HOLE: Final = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from linux/falloc.h


def take(descriptor: int) -> bytes:
    """What was written since the last `take`, bounded; the file is empty afterwards."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if not size:
        return b""
    if size <= HEAD + TAIL:
        text = _read(descriptor, size, 0)
    else:
        note = f"\n... {size - HEAD - TAIL} bytes left out ...\n".encode()
        text = _read(descriptor, HEAD, 0) + note + _read(descriptor, TAIL, size - TAIL)
    os.ftruncate(descriptor, 0)
    return text


def take_both(out: int, err: int, most: int = 4 << 10) -> bytes:
    """What this process has written since the last `take`, at most so many bytes of each stream."""
    flush()
    return take(out)[:most] + take(err)[:most]


#: Flushes what C code has written; set where that is known (`windlass.worker.slot.begin_process`).
flush_c: Callable[[], Any] | None = None


def flush() -> None:
    """Have all that was written in the files."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):
            stream.flush()
    if flush_c is not None:
        flush_c()


def trim(descriptor: int, trimmed: int = 0) -> int:
    """Give back the memory between head and tail of a file that has grown long.

    `trimmed` is what the last call of this function returned for this file; the result is to be kept for the next one. Until `TRIM_BYTES`
    more are there, it costs one system call.
    """
    size = os.fstat(descriptor).st_size
    if size < trimmed:  # the slot has emptied it since
        trimmed = 0
    if size - trimmed < TRIM_BYTES:
        return trimmed
    # Whole pages: partial ones at the edges are zeroed by the kernel, and the tail moves on before they are read.
    start, end = HEAD, (size - 2 * TAIL) & ~4095
    _fallocate()(descriptor, _PUNCH_HOLE, start, end - start)
    return size


def _read(descriptor: int, count: int, offset: int) -> bytes:
    return os.pread(descriptor, count, offset)


def _fallocate() -> Any:
    import ctypes  # only a worker with a runaway call needs it

    libc = ctypes.CDLL(None, use_errno=True)
    function = getattr(libc, "fallocate64", None) or libc.fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function
