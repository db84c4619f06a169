"""What a worker keeps of one slot, and how it learns that a child process has ended.

Parts of `windlass.worker.instance`, which alone uses them.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from windlass.memory_files import memory_file
from windlass.messages import BAD_CALL, CallEnd, CallId, EndDetail, HeldCall
from windlass.worker.slotlink import RESULT_BYTES, Noted, Prepared, Step, Unable, socket_pair
from windlass.worker.slotproc import kill_group

if TYPE_CHECKING:
    from windlass.worker.zygotehandle import ZygoteHandle

#: (call, attempt)
Key = tuple[int, int]
#: Where the kernel has no pidfd (before 5.3), children are asked after so often (seconds).
_POLL_SECONDS: Final = 0.25


class Kill(msgspec.Struct):
    """A wish to end a running call."""

    key: Key
    outcome: int
    detail: EndDetail | None


class RunningCall(msgspec.Struct, frozen=True):
    """A call that a slot runs now, and ``since`` when, by the monotonic clock."""

    call: CallId
    attempt: int
    slot: int
    pid: int
    since: float
    #: It has registered for its pilot's end (`windlass.on_warning`).
    watches: bool = False


class SlotHandle:
    """One slot, from the wish for it until its process is reaped."""

    def __init__(self, row: int, gpu_ids: tuple[str, ...], places: int = 1) -> None:
        #: Its number, and its rows: one for each call that it runs at once.
        self.row, self.rows, self.gpu_ids = row, range(row * places, (row + 1) * places), gpu_ids
        self.pid = 0
        self.results, self.other_end = socket_pair(socket.SOCK_STREAM, RESULT_BYTES)
        self.results.setblocking(False)
        self.out = self.err = -1
        try:
            self.out = memory_file("stdout", append=True)
            self.err = memory_file("stderr", append=True)
        except OSError:
            self.close()
            raise
        self.trimmed = [0, 0]
        self.rest = b""  # the beginning of a frame
        self.ready = False
        self.proven = False  # a call of it has ended
        self.leaving = False
        self.stopping = False
        self.doomed = False  # killed by us
        self.kill: Kill | None = None
        #: It was killed for a call that did not end when it was cancelled: the others are not to blame.
        self.stubborn = False
        self.unable: Unable | None = None
        self.step: Step | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.watch: Watch | None = None
        self.timer: asyncio.TimerHandle | None = None

    def warn(self) -> None:
        """Wake whoever waits in it for the pilot's end, or for wishes; what is to be known stands in the rows."""
        with suppress(OSError):  # it is gone
            self.results.send(b"!")

    def close(self) -> None:
        self.results.close()
        self.other_end.close()
        for descriptor in (self.out, self.err):
            if descriptor >= 0:
                os.close(descriptor)


class Owner(Protocol):
    """What slots tell their instance."""

    @property
    def zygote(self) -> ZygoteHandle | None:
        """Who forks; None: slots are executed."""
        ...

    @property
    def active(self) -> bool:
        """False when the instance has begun to end: slots are not replaced, and nothing is a failure any more."""
        ...

    def ended(self, ends: list[CallEnd]) -> None: ...
    def lost(self, calls: list[HeldCall], reason: str = "instance") -> None: ...
    def step(self, step: Step, slot: SlotHandle) -> None:
        """A slot that loads the library by itself does this now."""

    def prepared(self, note: Prepared, slot: SlotHandle) -> None:
        """A slot serves."""

    def noted(self, note: Noted) -> None:
        """A call has shown what its user should know."""

    def fail(self, kind: str, text: str) -> None:
        """The library cannot run here."""

    def trouble(self, text: str) -> None:
        """It runs here, but not in all its slots."""


def unreadable_end(frame: memoryview, error: Exception) -> CallEnd | None:
    """The end of a call whose answer has wrong types in it, as happens when a function has replaced what the slot uses; None: no answer."""
    try:
        call, attempt = msgspec.msgpack.decode(frame, type=list[Any])[:2]
    except (msgspec.MsgspecError, ValueError):
        return None
    if type(call) is not int or type(attempt) is not int:
        return None
    now = time.time()
    text = f"the function has changed something that its slot needs, so that its answer cannot be read: {error}"
    return CallEnd(CallId(call), attempt, BAD_CALL, started_at=now, ready_at=now, ended_at=now, detail=EndDetail(text=text))


def during(step: Step | None) -> str:
    """What was being done, for the end of an error's text."""
    if step is None:
        return "; its interpreter had not said anything yet"
    return {"import": f"; it was in the import of {step.what!r}", "functions": "; it was loading the library's functions"}.get(
        step.kind, "; it was in the context function"
    )


class Timers:
    """Calls that are due later, as long as their owner has not ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handles: set[asyncio.TimerHandle] = set()

    def later(self, seconds: float, what: Callable[[], object]) -> asyncio.TimerHandle:
        """Call `what` in so many seconds."""

        def due() -> None:
            self._handles.discard(handle)
            what()

        handle = self._loop.call_later(seconds, due)
        self._handles.add(handle)
        return handle

    def cancel(self, handle: asyncio.TimerHandle | None) -> None:
        """Do not; None and what has been called already are fine."""
        if handle is not None:
            handle.cancel()
            self._handles.discard(handle)

    def cancel_all(self) -> None:
        """The owner has ended."""
        for handle in self._handles:
            handle.cancel()
        self._handles.clear()


class Watch:
    """Calls `on_ended` with the status of wait(2) and the peak memory in bytes when a child has ended, and reaps it.

    The child leads a process group; what is left of that is killed when the child has been reaped.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, process: subprocess.Popen[bytes], on_ended: Callable[[int, int], None]) -> None:
        self._loop, self._process, self._on_ended = loop, process, on_ended
        self._timer: asyncio.TimerHandle | None = None
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except (OSError, AttributeError):
            self._pidfd = -1
            self._timer = loop.call_later(_POLL_SECONDS, self._look)
        else:
            loop.add_reader(self._pidfd, self._look)

    def _look(self) -> None:
        ended = reap(self._process)
        if ended is not None:
            self.close()
            self._on_ended(*ended)
        elif self._pidfd < 0:
            self._timer = self._loop.call_later(_POLL_SECONDS, self._look)

    def close(self) -> None:
        """Watch no more; may be called twice."""
        if self._timer is not None:
            self._timer.cancel()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def reap(process: subprocess.Popen[bytes]) -> tuple[int, int] | None:
    """Status and peak memory of a child that has ended; None while it lives."""
    if process.returncode is not None:
        return 0, 0
    try:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    except ChildProcessError:  # somebody else has reaped it
        process.returncode = 0
        return 0, 0
    if not ended:
        return None
    kill_group(process.pid)
    process.returncode = os.waitstatus_to_exitcode(status)
    return status, usage.ru_maxrss * 1024


async def reaped(process: subprocess.Popen[bytes], limit: float = 10.0) -> bool:
    """Wait until a child has ended, and reap it; False when it had not after `limit` seconds."""
    loop = asyncio.get_running_loop()
    until, pause = loop.time() + limit, 0.001
    while reap(process) is None:
        if loop.time() > until:
            return False
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    return True
