"""The worker's hold on a zygote: its process, its control socket, what it writes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

import msgspec

from windlass.memory_files import memory_file
from windlass.worker import capture
from windlass.worker.ground import Ground, quoted
from windlass.worker.slothandle import Watch, reaped
from windlass.worker.slotlink import RESULT_BYTES, ForkSlot, FromZygote, socket_pair
from windlass.worker.slotproc import all_gone, kill_tree

_PACKET_BYTES = 256 << 10


class ZygoteHandle:
    """Executes a zygote. `says` hears its messages, `ended` the status of wait(2), after its last message."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, ground: Ground, says: Callable[[FromZygote], None], ended: Callable[[int], None]
    ) -> None:
        self._loop, self._says, self._ended = loop, says, ended
        self._decode = msgspec.msgpack.Decoder(FromZygote).decode
        self._control, theirs = socket_pair(socket.SOCK_SEQPACKET, RESULT_BYTES)
        self._control.setblocking(False)
        self._output = memory_file("zygote", append=True)
        self._open = True
        self._below: set[int] = set()
        try:
            self.process = ground.execute("windlass.worker.zygote", theirs.fileno(), (), self._output, self._output)
        except OSError:
            self._control.close()
            os.close(self._output)
            raise
        finally:
            theirs.close()
        loop.add_reader(self._control.fileno(), self._on_control)
        self._watch = Watch(loop, self.process, self._on_ended)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def fork(self, row: int, gpu_ids: tuple[str, ...], descriptors: tuple[int, int, int]) -> None:
        """Ask for a slot. Raises `OSError` when it does not listen."""
        socket.send_fds(self._control, [msgspec.msgpack.encode(ForkSlot(row, gpu_ids))], list(descriptors))

    def wrote(self) -> bytes:
        """What it has written so far."""
        return capture.take(self._output) if self._open else b""

    def said(self) -> str:
        """What it has written, for the end of an error's text."""
        return quoted(capture.take(self._output)) if self._open else ""

    def kill(self) -> None:
        """End it and all below it; the end is reported."""
        kill_tree(self.pid)

    def dismiss(self) -> None:
        """End it; nothing is reported any more."""
        self._let_go()
        self._below = kill_tree(self.pid)

    async def gone(self) -> None:
        """Wait until it has ended, and what was below it: a slot that it was forking is known to nobody else."""
        await reaped(self.process)
        await all_gone(self._below)
        self._watch.close()

    def _on_control(self) -> None:
        try:
            while self._open:
                packet = self._control.recv(_PACKET_BYTES)
                if not packet:
                    self._loop.remove_reader(self._control.fileno())
                    return  # `_on_ended` follows
                self._says(self._decode(packet))
        except (BlockingIOError, ConnectionError):
            pass

    def _on_ended(self, status: int, _peak_memory: int) -> None:
        if self._open:
            self._on_control()  # its last words
        if self._open:
            self._ended(status)
        self._let_go()

    def _let_go(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
            os.close(self._output)
