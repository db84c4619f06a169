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
#: Exit statuses of a shell, or of the loader, where a command is there and cannot be started (its file server is away, memory is short, its
#: libraries are being replaced), and where it is not; with the errors that stand for them.
NOT_EXECUTED: Final = {126: errno.EIO, 127: errno.ENOENT}
PASSING: Final = frozenset(_SHORT + _AWAY)


def may_pass(error: Exception | None) -> bool:
    """Whether what kept an object from being read or kept may be otherwise later: no room, or the machine's trouble."""
    return isinstance(error, StoreFull) or getattr(error, "errno", None) in PASSING
