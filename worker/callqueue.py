"""The worker's end of the call queue of one library instance.

Theory of operation
-------------------
The queue is a pair of connected packet sockets. The worker sends calls into one end; all slots receive from the other, and the
kernel gives each packet to exactly one of them, in order. The worker holds that other end too, and takes calls back by
receiving from it like a slot: so whether a call has been claimed is never a matter of opinion.

To take back only the newest calls, all are received and the older ones sent again, in their order. Slots may claim in the
meantime; what they get is always the oldest. Since the queue is first in first out, what is received is always an unbroken run
of the calls that were fed last.

A packet has a largest size.  A longer call, which has thousands of spans, is written to a file.  Its packet has the path, and what the
worker must know of a call that it takes back: so nothing has to be read for that.  Where the disk does not take the file, `feed` stops
before the call, and `trouble` says why.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from windlass.messages import CallRun
from windlass.ownership import open_ours
from windlass.worker.slotlink import MAX_PACKET, QUEUE_BYTES, SPILLED, socket_pair


class CallQueue:
    """A call queue whose long calls are spilled into `folder`."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._encode = msgspec.msgpack.Encoder().encode
        self._decoder = msgspec.msgpack.Decoder(CallRun)
        self._sender, self._claims = socket_pair(socket.SOCK_SEQPACKET, QUEUE_BYTES)
        self._sender.setblocking(False)
        #: Taken out and not yet sent again for want of room; older than anything still to be fed.
        self._again: deque[bytes] = deque()
        self._spilled = 0
        #: Why the call before which the last `feed` stopped could not be written to its file, if it was that.
        self.trouble: OSError | None = None

    @property
    def sender(self) -> int:
        """Descriptor that is writable when the queue has room again (three quarters of it)."""
        return self._sender.fileno()

    @property
    def claims(self) -> int:
        """Descriptor of the end that slots receive from."""
        return self._claims.fileno()

    def feed(self, calls: Sequence[CallRun]) -> int:
        """Put calls into the queue until it is full, or there is `trouble`; returns how many went in."""
        self.trouble = None
        if self._again and not self.flush():
            return 0
        send, encode = self._sender.send, self._encode
        fed, packet = 0, b""
        try:
            for call in calls:
                packet = encode(call)
                if len(packet) > MAX_PACKET:
                    packet = self._spill(call, packet)
                send(packet)
                fed += 1
        except BlockingIOError:
            _discard(packet)
        except OSError as error:
            self.trouble = error
        return fed

    def flush(self) -> bool:
        """Send again what was taken out; False when the queue is too full for all of it."""
        try:
            while self._again:
                self._sender.send(self._again[0])
                self._again.popleft()
        except BlockingIOError:
            return False
        return True

    def take_back(self, count: int | None = None) -> list[CallRun]:
        """Unclaimed calls, newest first, at most `count` of them (None: all)."""
        packets = self._receive_all()
        keep = 0 if count is None else max(0, len(packets) - count)
        self._again = deque(packets[:keep])
        self.flush()
        taken = packets[keep:][::-1]
        for packet in taken:
            _discard(packet)
        return [self._read(packet) for packet in taken]

    def peek(self) -> list[CallRun]:
        """The unclaimed calls, oldest first. They stay in the queue, so they may be claimed by now."""
        packets = self._receive_all()
        self._again = deque(packets)
        self.flush()
        return [self._read(packet) for packet in packets]

    def close(self) -> None:
        """Slots that wait for a call leave."""
        self._sender.close()
        self._claims.close()

    def _receive_all(self) -> list[bytes]:
        packets: list[bytes] = []
        try:
            while packet := self._claims.recv(2 * MAX_PACKET, socket.MSG_DONTWAIT):
                packets.append(packet)
        except BlockingIOError:
            pass
        # What could not be sent again earlier was the newest part of what was taken out then.
        packets += self._again
        self._again.clear()
        return packets

    def _spill(self, call: CallRun, packet: bytes) -> bytes:
        self._spilled += 1
        path = os.path.join(self._folder, f"call-{self._spilled}")
        try:
            with open(path, "wb") as file:
                file.write(packet)
        except OSError:
            with suppress(OSError):
                os.unlink(path)
            raise
        known = CallRun(call.call, call.attempt, call.instance, call.function, b"", weight=call.weight)
        return bytes((SPILLED,)) + os.fsencode(path) + b"\0" + self._encode(known)

    def _read(self, packet: bytes) -> CallRun:
        """The call of a packet; of one that was spilled what its packet says of it."""
        return self._decoder.decode(spilled(packet)[1] if packet[0] == SPILLED else packet)


def _discard(packet: bytes) -> None:
    """It goes to no slot: if its call was spilled, remove the file."""
    if packet[0] == SPILLED:
        with suppress(OSError):  # a cleaner of old files was here
            os.unlink(spilled(packet)[0])


def spilled(packet: bytes | memoryview) -> tuple[str, bytes]:
    """Where a spilled call is, and what its packet says of it."""
    path, _, known = bytes(packet[1:]).partition(b"\0")
    return os.fsdecode(path), known


def read_spilled(packet: bytes | memoryview) -> bytes:
    """The call that stands in the file which a packet names; the file is removed."""
    path, _ = spilled(packet)
    with os.fdopen(open_ours(path), "rb") as file:
        call = file.read()
    os.unlink(path)
    return call
