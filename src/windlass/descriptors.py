"""Descriptors: how many files and sockets this process may have open.

Theory of operation: the usual soft limit of 1,024 is for programs that use select(2), which knows no larger numbers; the hard limit is
what the system really allows.  So a process raises the first towards the second, but one that is not ours alone only when it is about
to need that: a program with few workers stays as it was.
"""

from __future__ import annotations

from typing import Final

#: As many are enough.
WANTED: Final = 16384


def limit() -> int:
    """How many descriptors this process may have now."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED if soft == resource.RLIM_INFINITY else soft


def allow_many() -> int:
    """Raise the soft limit to `WANTED`, or as far as the hard one lets it; how many there may be now."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return limit()
