"""The zygote: a process that has loaded a library once, and is forked for each slot.

Theory of operation
-------------------
The worker executes it (``python -P -m windlass.worker.zygote CONTROL QUEUE ROWS SETUP``: descriptors) in a session of its own, with the
library's environment. It loads the library (`windlass.worker.hoist`), and says `Prepared` or `Unable`. Before that it has moved all that
lives into the permanent generation, so that no slot's garbage collector touches, and thereby copies, the shared memory.

Then it waits for two things, and never polls: packets on the control socket, and SIGCHLD, which the interpreter turns into a byte
on a wake-up socket. `ForkSlot` forks; a child that has ended is reaped, takes its process group along, and is reported.

It runs no user code after the imports and a shared context. When the worker is gone (end of file on the control socket) it kills its
slots and leaves; and the kernel kills a slot when its zygote dies (`PR_SET_PDEATHSIG`).

A batch system sends SIGTERM, SIGINT or SIGUSR1 to all processes of a job at once. What that means is the worker's to decide, so zygote
and slots survive them; processes that user code starts do not inherit this.
"""

from __future__ import annotations

from windlass.worker import lean  # noqa: F401 # pyright: ignore[reportUnusedImport] # isort: skip - before msgspec
from windlass.worker import forks  # isort: skip - soon, to see what threading and logging register

import gc
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from typing import Any, Final

import msgspec

from windlass.worker import capture, hoist, slot
from windlass.worker.slot_api import STATE
from windlass.worker.slotlink import Forked, ForkSlot, NotForked, Prepared, Rows, Setup, SlotExited, Step, Unable, bounded, read_setup
from windlass.worker.slotproc import kill_group, kill_tree


class Zygote:
    """The process's one object: its connections and its living slots."""

    def __init__(self, control: socket.socket, queue: int, rows: int, setup: Setup) -> None:
        self.control, self.queue, self.setup = control, queue, setup
        self.rows = STATE.rows = Rows(rows, setup.rows)  # a shared context may ask how much time is left
        self.slots: dict[int, int] = {}  # process id → row
        self.encoder = msgspec.msgpack.Encoder()
        self.decoder = msgspec.msgpack.Decoder(ForkSlot)

    def say(self, message: Step | Prepared | Unable | Forked | NotForked | SlotExited) -> None:
        """Send one packet to the worker; when it is gone, so are we."""
        try:
            self.control.send(self.encoder.encode(message))
        except OSError:
            self.leave()

    def run(self) -> None:
        """Load, say so, serve until the worker is gone."""
        try:
            library = hoist.load(self.setup, self.say, with_context=self.setup.spec.share_context)
        except hoist.CannotStart as error:
            self.say(Unable(error.kind, bounded(str(error))))
            return
        hazards = hoist.fork_hazards(library)
        capture.flush()
        if hazards:
            notes = (*(f"spawn instead of fork: {hazard}" for hazard in hazards), *library.notes)
            self.say(Prepared(library.imports, library.context_seconds, notes, spawn=True))
            self.control.recv(1)  # the worker ends us
            return
        gc.freeze()
        wake_read, wake_write = socket.socketpair()
        wake_read.setblocking(False)
        wake_write.setblocking(False)
        forks.survive_signals()
        signal.signal(signal.SIGCHLD, _noted)
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        self.say(Prepared(library.imports, library.context_seconds, library.notes))
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(wake_read, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == wake_read.fileno():
                    with suppress(BlockingIOError):
                        wake_read.recv(4096)
                    self.reap()
                else:
                    self.receive(library, (wake_read, wake_write))

    def receive(self, library: hoist.Library, wake: tuple[socket.socket, socket.socket]) -> None:
        """Do one thing the worker asks for."""
        packet, descriptors, _, _ = socket.recv_fds(self.control, 64 << 10, 3)
        if not packet:
            self.leave()
        wish = self.decoder.decode(packet)
        try:
            pid = hoist.fork_quietly()
        except OSError as error:
            self.say(NotForked(wish.row, f"fork failed: {error}"))
        else:
            if pid == 0:
                self.become_slot(wish, descriptors, library, wake)
            self.slots[pid] = wish.row
            self.say(Forked(wish.row, pid))
        for descriptor in descriptors:
            os.close(descriptor)

    def become_slot(
        self, wish: ForkSlot, descriptors: list[int], library: hoist.Library, wake: tuple[socket.socket, socket.socket]
    ) -> None:
        """In the child: let go of what is the zygote's, and serve calls."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in (*wake, self.control):
                end.close()
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            link = slot.Link(descriptors[0], self.queue, self.rows, wish.row, descriptors[1], descriptors[2], self.setup.spec.concurrency)
            slot.settle(link, self.setup, wish.gpu_ids)
            status = slot.run(link, self.setup, library)
        except BaseException:  # noqa: BLE001 - the worker quotes what stands on standard error
            hoist.tell_traceback()
        finally:
            os._exit(status)

    def reap(self) -> None:
        """Report every slot that has ended."""
        for pid, row in list(self.slots.items()):
            try:
                ended, status, usage = os.wait4(pid, os.WNOHANG)
            except ChildProcessError:  # user code in an import has set SIGCHLD aside, or waits for any child
                del self.slots[pid]
                self.say(SlotExited(row, pid, 0))
                continue
            if ended:
                kill_group(pid)
                del self.slots[pid]
                self.say(SlotExited(row, pid, status, usage.ru_maxrss * 1024))

    def leave(self) -> None:
        """The worker is gone."""
        for pid in self.slots:
            kill_tree(pid)
        os._exit(0)


def _noted(_signal: int, _frame: Any) -> None:
    """A handler must exist for the wake-up descriptor to be written."""


ARGUMENTS: Final = 4


def main(arguments: list[str]) -> int:
    """Run as a program: the arguments are four descriptors."""
    if len(arguments) != ARGUMENTS:
        print("windlass.worker.zygote is started by a worker, not by hand; see `windlass worker --help`", file=sys.stderr)
        return 2
    control, queue, rows, setup = (int(word) for word in arguments)
    for descriptor in (control, queue, rows, setup):
        os.set_inheritable(descriptor, False)
    slot.begin_process("windlass-zygote")
    del sys.argv[1:]  # modules that look there must not find our descriptors
    Zygote(socket.socket(fileno=control), queue, rows, read_setup(setup)).run()
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Threads that an import started, and handlers that it registered, must not keep a process that has failed.
    os._exit(status)
