"""What is set at TaskVine's manager: categories, hosts, parameters."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from typing import Any

from windlass.errors import UnknownName, UsageError
from windlass.manager.call import read_count
from windlass.taskvine import tuning
from windlass.taskvine.categories import Categories, read_mode, read_resources
from windlass.taskvine.gathering import Gathering
from windlass.taskvine.outcomes import no_effect
from windlass.taskvine.standing import Standing


class Settings(Standing, ABC):
    """A part of `windlass.taskvine.Manager`."""

    _categories: Categories
    _tuned: dict[str, float]
    _lock: threading.Condition
    _next: int
    gathering: Gathering

    @abstractmethod
    def _let_held_go_on(self) -> None:
        """Something has changed that held tasks may have waited for."""

    # ------------------------------------------------------------ categories

    def set_resources_max(self, rmd: dict[str, Any]) -> None:
        """What tasks get that set nothing, in categories that set nothing: cores, memory and disk (MB), gpus."""
        self._categories.default.most = read_resources("set_resources_max", rmd)

    def set_resources_min(self, rmd: dict[str, Any]) -> None:
        """And at least."""
        self._categories.default.least = read_resources("set_resources_min", rmd)

    def set_category_resources_max(self, category: str, rmd: dict[str, Any]) -> None:
        """What tasks of a category get that set nothing."""
        self._categories[category].most = read_resources("set_category_resources_max", rmd)

    def set_category_resources_min(self, category: str, rmd: dict[str, Any]) -> None:
        """And at least."""
        self._categories[category].least = read_resources("set_category_resources_min", rmd)

    def set_category_first_allocation_guess(self, category: str, rmd: dict[str, Any]) -> None:
        """What they get at first, in modes other than ``fixed``."""
        self._categories[category].guess = read_resources("set_category_first_allocation_guess", rmd)

    def set_category_mode(self, category: str, mode: str) -> None:
        """``fixed``, or any other of TaskVine's: tasks that run out of memory are tried again with more."""
        self._categories[category].mode = read_mode(mode)

    def set_category_autolabel_resource(self, category: str, resource: str, autolabel: bool) -> None:
        """Whether memory grows; other resources do not."""
        if resource == "memory":
            self._categories[category].mode = "max" if autolabel else "fixed"
        elif resource not in ("cores", "disk", "gpus"):
            raise UnknownName("resource", resource, ("cores", "memory", "disk", "gpus"))
        elif autolabel:
            no_effect(f"autolabel of {resource}", "only memory grows")

    def set_category_max_concurrent(self, category: str, max_concurrent: int) -> None:
        """Tasks of a category that are under way at a time; 0 or less: any number."""
        if isinstance(max_concurrent, bool) or not isinstance(max_concurrent, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"max_concurrent={max_concurrent!r} is no whole number")
        self._categories[category].max_concurrent = max(0, max_concurrent)
        self._let_held_go_on()

    def category_options(self, category: str) -> dict[str, Any]:
        """Options of a call of this category, for what its task does not set."""
        return self._categories[category].options(self._categories.default)

    # ------------------------------------------------------------ workers

    def block_host(self, host: str) -> None:
        """Run nothing more on this host; its workers leave when what they run has ended, and factories avoid it."""
        self.manager.block_host(host)

    def block_host_with_timeout(self, host: str, timeout: float) -> None:
        """For so many seconds; under 1: until it is unblocked."""
        self.manager.block_host(host, timeout if timeout >= 1 else None)

    def unblock_host(self, host: str | None = None) -> None:
        """Use this host again, or all."""
        self.manager.unblock_host(host)

    def set_draining_by_hostname(self, hostname: str, drain_mode: bool = True) -> None:
        """As `block_host`, or `unblock_host`."""
        self.manager.block_host(hostname) if drain_mode else self.manager.unblock_host(hostname)

    blacklist, blacklist_with_timeout, blacklist_clear = block_host, block_host_with_timeout, unblock_host

    def tune(self, name: str, value: float) -> int:
        """Set a parameter; 0. Those without a meaning here warn, with the reason; unknown names raise `windlass.UnknownName`."""
        known, number, reason = tuning.read(name, value)
        if reason:
            no_effect(f"tune({known!r}, {value!r})", reason)
        else:
            self._tuned[known] = number
            if known == "wait-for-workers":
                self.gathering.want(max(0, math.ceil(number)))
                with self._lock:
                    self._lock.notify_all()  # who waits is to look from now on
            self._let_held_go_on()
        return 0

    def take_number(self) -> int:
        """The number of one more task."""
        with self._lock:
            self._next += 1
            return self._next - 1

    def set_min_task_id(self, minid: int) -> int:
        """Numbers of tasks begin here, if that is not below what they have reached; the next one."""
        with self._lock:
            self._next = max(self._next, read_count("minid", minid))
            return self._next
