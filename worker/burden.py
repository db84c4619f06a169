"""What results of before cost a pilot still, where its batch system holds it to its memory.

Theory of operation
-------------------
A result goes to a manager of the same host by its file's name, and nothing is copied. But the memory of a file in /dev/shm counts to the
end as that of the cgroup whose process wrote it, whoever has the file then: a program that keeps its results would fill with them the jobs
that made them, and each further call there would be ended for want of memory. So a pilot in a cgroup with a limit looks now and then at
what such files have of it (`windlass.worker.memory.files_in_memory`), and while that of earlier results is more than `SHARE`, sends bytes,
which count as the manager's from then on. The result that is to go is there by then, and says nothing of whether such are kept.

Where the manager is held to the same limit, as in one job with its pilot, a copy would gain nothing, and files go by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from windlass.worker import memory

#: Of the limit, as the store's own.
SHARE: Final = 0.25
#: Of the limit: what is given between two looks.
BETWEEN: Final = 1 / 16


class Burden:
    """One pilot's: in these cgroups, with a limit of so many bytes. ``look`` says what files in memory have of it."""

    def __init__(self, groups: Sequence[memory.Cgroup], limit: int, look: Callable[[], int]) -> None:
        self._limited = [group for group in groups if memory.limit_of(group)]
        self._limit, self._look = limit, look
        self._shared = False
        self._given, self._heavy = 0, False

    def use_manager(self, membership: str, mounts: str) -> None:
        """Of which cgroups the manager is, as /proc tells of its process ("": it does not), and of this one's mounts."""
        theirs = memory.parse_cgroups(membership, mounts)
        self._shared = bool(theirs) and all(group in theirs for group in self._limited)

    def is_heavy(self, size: int) -> bool:
        """Whether a result of so many bytes is better copied to a manager of this host than given by its name, which counts it here."""
        if not self._limited or self._shared:
            return False
        self._given += size
        if self._heavy or self._given >= BETWEEN * self._limit:
            self._given, self._heavy = 0, self._look() - size > SHARE * self._limit
        return self._heavy
