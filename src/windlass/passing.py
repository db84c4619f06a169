"""Errors of the system that pass: later the same may go well."""

from __future__ import annotations

import errno
from typing import Final

from windlass.errors import FULL, StoreFull

#: Errors of a machine that is short of processes, memory, descriptors or disk: later it may be well.
_SHORT: Final = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETXTBSY, *FULL)
#: And of one whose file server is away, is taken over by another one, or has forgotten its clients (Lustre, FUSE).
_AWAY: Final = (
    errno.ESTALE,
    errno.EIO,
    errno.ETIMEDOUT,
    errno.EREMOTEIO,
    errno.ENOTCONN,
    errno.ESHUTDOWN,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
)
PASSING: Final = frozenset(_SHORT + _AWAY)


def may_pass(error: Exception | None) -> bool:
    """Whether what kept an object from being read or kept may be otherwise later: no room, or the machine's trouble."""
    return isinstance(error, StoreFull) or getattr(error, "errno", None) in PASSING
