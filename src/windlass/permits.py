"""Permits: the manager's signed word that one worker may read one file from another worker.

Theory of operation
-------------------
A permit is a msgpack array (file's name, id of who serves, id of who reads, end in seconds since the epoch) and the signature of the
manager's authority over it.  Who serves has the authority's certificate, as every worker has, and checks the rest against what it knows
itself: its own id, and the reader's id from the certificate that the reader showed.  So a permit is of no use to anybody else, to whom it
may have become known, and nobody is asked about it.

The same key signs certificates.  What is signed here begins with `_PURPOSE`, which no certificate does.

A permit ends, lest a reader keep it for ever.  Nodes' clocks differ, therefore `SLACK` more seconds are granted.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from windlass.errors import WindlassError
from windlass.messages import Record

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

#: Seconds that the clock of who serves may be ahead of the manager's.
SLACK: Final = 600.0
#: A permit of more bytes is none; names of files have 35 characters and ids of workers 64.
MAX_BYTES: Final = 1024

_PURPOSE: Final = b"windlass: may read a file\0"


class NotPermitted(WindlassError):
    """What was shown does not permit this; the text says why."""


class _Permit(Record, frozen=True):
    name: str
    source: str
    reader: str
    #: Seconds since the epoch, by the manager's clock.
    ends_at: float


class _Signed(Record, frozen=True):
    permit: bytes
    signature: bytes


def make_permit(key: ec.EllipticCurvePrivateKey, name: str, source: str, reader: str, ends_at: float) -> bytes:
    """A permit to read file ``name`` from worker ``source``, for worker ``reader``, up to ``ends_at`` (seconds since the epoch)."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    permit = msgspec.msgpack.encode(_Permit(name, source, reader, ends_at))
    return msgspec.msgpack.encode(_Signed(permit, key.sign(_PURPOSE + permit, ec.ECDSA(hashes.SHA256()))))


def check_permit(ca_pem: str, permit: bytes, *, name: str, source: str, reader: str, now: float) -> None:
    """See that ``permit`` lets ``reader`` read ``name`` from ``source`` at ``now`` (seconds since the epoch, by the clock of who asks).

    ``reader`` is what its certificate says, never what it says itself.

    Raises:
        NotPermitted: it does not; the text says in what.
    """
    if not permit:
        raise NotPermitted(f"{reader} showed no permit to read {name} from {source}: ask the manager for one")
    try:
        if len(permit) > MAX_BYTES:
            raise ValueError(f"{len(permit)} bytes")
        signed = msgspec.msgpack.decode(permit, type=_Signed)
        _verify(ca_pem, signed)
        said = msgspec.msgpack.decode(signed.permit, type=_Permit)
    except Exception as error:
        raise NotPermitted(f"what {reader} showed to read {name} is no permit of this manager") from error
    for what, says, is_ in (("file", said.name, name), ("source", said.source, source), ("reader", said.reader, reader)):
        if says != is_:
            raise NotPermitted(f"the permit that {reader} showed is for {what} {says}, not for {is_}")
    if now > said.ends_at + SLACK:
        raise NotPermitted(
            f"the permit of {reader} to read {name} ended {now - said.ends_at:,.0f} s ago by the clock of {source}: ask the manager for a "
            "new one, and see that the nodes' clocks agree"
        )


def _verify(ca_pem: str, signed: _Signed) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    _public_key(ca_pem).verify(signed.signature, _PURPOSE + signed.permit, ec.ECDSA(hashes.SHA256()))


@lru_cache(maxsize=8)
def _public_key(ca_pem: str) -> Any:
    from cryptography import x509

    return x509.load_pem_x509_certificate(ca_pem.encode()).public_key()
