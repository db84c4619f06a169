"""Rules of `windlass.worker.outbox`: what goes into one message."""

from __future__ import annotations

from typing import Any, cast

import pytest

from windlass.messages import RETURNED, CallEnd, CallId, CallsEnded, FileName, FileRef, Message, ObjectName, ObjectRef
from windlass.session import encode_one
from windlass.worker.lifetime import Lifetime
from windlass.worker.outbox import ENDS_BYTES, Outbox


class Link:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def send_now(self, message: Message) -> None:
        self.sent.append(message)


def end(number: int, kind: str) -> CallEnd:
    """One of about 100 kB: a result as it is, in parts, or in files."""
    it = CallEnd(CallId(number), 1, RETURNED)
    if kind == "payload":
        it.payload = bytes(100_000)
    elif kind == "spans":
        it.spans = tuple(ObjectRef(ObjectName(f"r-{part:032x}"), part << 20) for part in range(2200))
    else:
        it.outputs = tuple(FileRef(FileName(f"b3-{part:032x}"), part << 20, f"part-{part}.txt") for part in range(1400))
    return it


@pytest.mark.parametrize("kind", ["payload", "spans", "outputs"])
def test_ends_are_cut_into_messages_by_all_that_makes_them_long(kind: str) -> None:
    """A message of more than a mebibyte ends the session, with all that the worker runs."""
    link = Link()
    outbox = Outbox(Lifetime(0.0), lambda: None, lambda _, __: None, lambda: False)
    outbox.link = cast("Any", link)
    outbox._ends = [end(number, kind) for number in range(12)]  # pyright: ignore[reportPrivateUsage]
    outbox.flush()
    told = [message for message in link.sent if isinstance(message, CallsEnded)]
    assert [one.call for message in told for one in message.ends] == list(range(12))
    sizes = [len(encode_one(message)) for message in told]
    assert max(sizes) <= ENDS_BYTES * 1.1, sizes
