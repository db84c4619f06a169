"""Descriptors: how many files and sockets this process may have open.

Theory of operation: the usual soft limit of 1,024 is for programs that use select(2), which knows no larger numbers; the hard limit is
what the system really allows.  So a process raises the first towards the second, but one that is not ours alone only when it is about
to need that: a program with few workers stays as it was.
"""

from __future__ import annotations

import os
from typing import Final

#: As many are enough.
WANTED: Final = 16384
#: As long as one below this number is free they are not scarce; 0: the limit was not asked yet.
_plenty = 0


def limit() -> int:
    """How many descriptors this process may have now."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED if soft == resource.RLIM_INFINITY else soft


def scarce(descriptor: int) -> bool:
    """Whether half of them are in use, though as many are allowed by now as can be. ``descriptor``: any that is open."""
    global _plenty
    try:
        lowest = os.dup(descriptor)  # of those that are free: others are in use
    except OSError:
        return not raised()
    os.close(lowest)
    if lowest < _plenty:
        return False
    _plenty = limit() // 2
    if lowest >= _plenty:
        _plenty = allow_many() // 2
    return lowest >= _plenty


def raised() -> bool:
    """None was left: whether there may be more now."""
    before = limit()
    return allow_many() > before


def allow_many() -> int:
    """Raise the soft limit to `WANTED`, or as far as the hard one lets it; how many there may be now."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return limit()
