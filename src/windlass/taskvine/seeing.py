"""What TaskVine's manager tells of how things stand."""

from __future__ import annotations

import threading
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

from windlass.errors import UnknownName
from windlass.taskvine.categories import Categories
from windlass.taskvine.standing import Standing
from windlass.taskvine.tasks import Task


class Seeing(Standing):
    """A part of `windlass.taskvine.Manager`."""

    _categories: Categories
    _lock: threading.Condition
    _next: int
    _open: dict[int, Task]
    _ready: OrderedDict[int, Task]

    @property
    def stats(self) -> SimpleNamespace:
        """Numbers now, by TaskVine's names, as far as they are known here (times in microseconds)."""
        status = self.manager.status()
        calls, workers = status["calls"], [worker for worker in status["workers"] if worker["connected"]]
        with self._lock:
            done, failed = (sum(getattr(one, what) for _, one in self._categories.items()) for what in ("done", "failed"))
            return SimpleNamespace(
                tasks_waiting=calls["waiting"] + sum(one.waiting for _, one in self._categories.items()),
                tasks_running=calls["running"],
                tasks_on_workers=calls["running"],
                tasks_with_results=len(self._ready),
                tasks_submitted=self._next - 1,
                tasks_done=done + failed,
                tasks_failed=failed,
                tasks_cancelled=calls["cancelled"],
                tasks_dispatched=calls["running"] + calls["done"] + calls["failed"],
                workers_connected=len(workers),
                workers_busy=sum(bool(worker.get("running")) for worker in workers),
                total_cores=sum(worker["cores"] for worker in workers),
                total_gpus=sum(worker.get("gpus", 0) for worker in workers),
            )

    def stats_category(self, category: str) -> SimpleNamespace:
        """Numbers of a category."""
        one = self._categories[category]
        with self._lock:
            return SimpleNamespace(
                tasks_waiting=one.waiting,
                tasks_running=one.under_way,
                tasks_done=one.done + one.failed,
                tasks_failed=one.failed,
            )

    def status(self, request: str = "manager") -> list[dict[str, Any]]:
        """``manager``, ``workers``, ``tasks`` or ``categories``: one dictionary each (docs/status.md)."""
        if request == "tasks":
            with self._lock:
                tasks = [*self._open.values(), *self._ready.values()]
            return [
                {"id": task.id, "state": task.state, "category": task.category, "tag": task.tag, "command": task.command} for task in tasks
            ]
        if request == "categories":
            return [{"category": name, **vars(self.stats_category(name)), **one.most} for name, one in self._categories.items()]
        found = self.manager.status()
        if request == "workers":
            return list(found["workers"])
        if request in ("manager", "queue"):
            return [{**found["manager"], **vars(self.stats)}]
        raise UnknownName("status", request, ("manager", "workers", "tasks", "categories"))

    def summarize_workers(self) -> list[dict[str, Any]]:
        """How many workers there are with so many cores and so much memory (MB)."""
        count: dict[tuple[float, int], int] = {}
        for worker in self.status("workers"):
            key = (worker["cores"], int(worker.get("memory", 0)) >> 20)
            count[key] = count.get(key, 0) + 1
        return [{"workers": number, "cores": cores, "memory": memory} for (cores, memory), number in count.items()]
