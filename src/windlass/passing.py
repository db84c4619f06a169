"""Errors of the system that pass: later the same may go well."""

from __future__ import annotations

import errno
from typing import Final

from windlass.errors import StoreFull

#: Errors of a machine that is short of processes, memory, descriptors or disk, or whose file server is away: later it may be well.
PASSING: Final = frozenset(
    (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EIO, errno.ETXTBSY)
)


def may_pass(error: Exception | None) -> bool:
    """Whether what kept an object from being read or kept may be otherwise later: no room, or the machine's trouble."""
    return isinstance(error, StoreFull) or getattr(error, "errno", None) in PASSING
