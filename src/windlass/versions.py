"""Versions: whose protocol this Windlass speaks, and what it says to others. docs/versions.md has the policy.

Theory of operation
-------------------
`PROTOCOL` is the number of the messages as they are here; it rises whenever a peer that does not know of a change would misunderstand
something.  A manager accepts peers from `OLDEST_PROTOCOL` on, and says to each only what its number has.  Who is older, or newer than the
manager, is refused with the versions of both.

So that this can always be said, three things are the same in every protocol: a frame's length, the first five fields of `Hello`, and
`Refused`.  `about_start` reads no more than that of a `Hello` whose rest means nothing here.
"""

from __future__ import annotations

from typing import Final

import msgspec

from windlass import __version__
from windlass.framing import UNREADABLE, Piece
from windlass.messages import OLDEST_PROTOCOL, PROTOCOL, Hello, Message


class HelloStart(Message, frozen=True, tag="Hello"):
    """What every protocol's `Hello` begins with."""

    role: str
    protocol: int
    version: str
    python: tuple[int, int]
    peer: str


_START: Final = msgspec.msgpack.Decoder(HelloStart)


def spoken(protocol: int) -> bool:
    """Whether peers of this protocol are accepted."""
    return OLDEST_PROTOCOL <= protocol <= PROTOCOL


def disagreement(hello: Hello | HelloStart, here: str) -> str:
    """Why this peer's protocol is not accepted by ``here`` ("this manager"), naming both versions; "" when it is."""
    if spoken(hello.protocol):
        return ""
    ours = f"protocol {PROTOCOL}" if OLDEST_PROTOCOL == PROTOCOL else f"protocols {OLDEST_PROTOCOL} to {PROTOCOL}"
    what = "update the older one" if hello.version != __version__ else "one of the two is not what its version says: install it anew"
    return (
        f"{here} is Windlass {__version__} and speaks {ours}; {hello.role} {hello.peer} is Windlass {hello.version} and speaks protocol "
        f"{hello.protocol}: {what}"
    )


def about_start(body: Piece, here: str) -> str:
    """`disagreement` of what cannot be read as a `Hello` of this protocol, but begins as one of another; "" when it does not."""
    try:
        return disagreement(_START.decode(body), here)
    except UNREADABLE:
        return ""
