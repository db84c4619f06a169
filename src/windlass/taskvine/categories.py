"""TaskVine's categories: tasks of one kind, which share resources and limits.

Theory of operation
-------------------
A category gives its tasks what they do not set themselves: in mode ``fixed`` its maximum, else its first guess or minimum, and more memory
for those that run out of it.  The categories' own defaults are those of `Manager.set_resources_max`.  With ``set_category_max_concurrent``
a category has only so many tasks under way at a time; the others are held back here, in the order of submission.  A task that needs what a
held one will make, in whatever category, is *blocked* until all such have been let go.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final, cast

from windlass.errors import UnknownName, UsageError
from windlass.manager.call import MEGABYTE, read_count, read_number
from windlass.taskvine.tasks import Task

RESOURCES: Final = ("cores", "memory", "gpus", "disk")
#: What TaskVine has beside these in such dictionaries, and what has no counterpart here.
_UNUSED: Final = ("wall_time", "bandwidth", "bytes_read", "bytes_written", "cpu_time", "max_concurrent_processes", "total_processes")
FIXED: Final = "fixed"
MODES: Final = (
    *(FIXED, "max", "min waste", "max throughput", "greedy bucketing", "exhaustive bucketing"),
    *("whole machine", "whole_machine", "min_waste", "max_throughput", "greedy_bucketing", "exhaustive_bucketing"),
)


class Category:
    """One kind of tasks."""

    def __init__(self) -> None:
        self.most: dict[str, float] = {}
        self.least: dict[str, float] = {}
        self.guess: dict[str, float] = {}
        self.mode = FIXED
        #: Tasks at a time; 0: any number.
        self.max_concurrent = 0
        #: By number, in the order of submission.
        self.held: OrderedDict[int, Task] = OrderedDict()
        #: Numbers of tasks that need what held ones make, and of those.
        self.blocked: dict[int, set[int]] = {}
        self.under_way = 0
        #: Tasks by how they ended.
        self.done = self.failed = 0

    @property
    def waiting(self) -> int:
        """How many tasks are held back."""
        return len(self.held) + len(self.blocked)

    def drop(self, number: int) -> bool:
        """Hold it back no more; False if it was not."""
        return self.held.pop(number, None) is not None or self.blocked.pop(number, None) is not None

    def options(self, default: Category) -> dict[str, Any]:
        """Options of a call for what its task does not set."""
        fixed = self.mode == FIXED
        found: dict[str, Any] = {}
        for name in RESOURCES:
            if name == "disk":
                continue
            most, least = self.most.get(name, default.most.get(name, 0)), self.least.get(name, default.least.get(name, 0))
            first = most if fixed else self.guess.get(name, 0)
            value = max(first, least)
            if value:
                found[name] = int(value * MEGABYTE) if name == "memory" else int(value) if name == "gpus" else value
        if not fixed:
            found["grow_memory"] = True
        return found


class Categories:
    """All of a manager's."""

    def __init__(self) -> None:
        self.default = Category()
        self._named: dict[str, Category] = {}

    def __getitem__(self, name: str) -> Category:
        if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"category {name!r}: a category is a text")
        return self._named.setdefault(name, Category())

    def items(self) -> list[tuple[str, Category]]:
        """Those that somebody has named."""
        return list(self._named.items())


def read_resources(what: str, given: object) -> dict[str, float]:
    """Cores, memory and disk in MB, gpus. Raises `UsageError`, `UnknownName`."""
    if not isinstance(given, Mapping):
        raise UsageError(f"{what}: write a dictionary, as in {{'cores': 2, 'memory': 1000}}")
    found: dict[str, float] = {}
    for name, value in cast("Mapping[str, object]", given).items():
        if name in _UNUSED:
            continue
        if name not in RESOURCES:
            raise UnknownName("resource of a category", str(name), RESOURCES)
        found[name] = read_count(name, value) if name == "gpus" else read_number(name, value)
    return found


def read_mode(mode: object) -> str:
    """Raises `UnknownName`."""
    if mode not in MODES:
        raise UnknownName("mode of a category", str(mode), MODES)
    return str(mode)
