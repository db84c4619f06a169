"""TaskVine's factory: workers for a manager, from a batch system, by its attributes.

Theory of operation
-------------------
Attributes are set before it starts, and limits also while it runs.  At `start` they become a `windlass.Factory`.  TaskVine's MB are
1,048,576 bytes.  Names of TaskVine's are meant, passed over with the reason, or refused with what to write; others are refused with the
near ones.

While its manager holds tasks for workers (`windlass.taskvine.gathering`), it has at least as many as it is asked for, within its limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

import windlass
from windlass.errors import UnknownName, UsageError
from windlass.manager.call import MEGABYTE
from windlass.taskvine.manager import Manager
from windlass.taskvine.outcomes import no_effect

#: TaskVine's words for batch systems.
_BACKENDS: Final = {"condor": "htcondor", "htcondor": "htcondor", "slurm": "slurm", "local": "local", "fake": "fake"}
#: Attributes, and what they are of `windlass.Factory`.
_MEANT: Final = {
    "min_workers": "min_pilots",
    "max_workers": "max_pilots",
    "cores": "cores",
    "memory": "memory",
    "gpus": "gpus",
    "timeout": "idle_timeout",
    "environment": "environment",
    "python_env": "environment",
    "poncho_env": "environment",
    "condor_requirements": "requirements",
    "env": "env",
    "scratch_dir": "folder",
    "factory_name": "name",
    "wall_time": "walltime",
    "walltime": "walltime",
    "setup": "setup",
    "container": "container",
    "account": "account",
    "partition": "partition",
}
_UNMEANT: Final = {
    "disk": "disk is no resource of pilots",
    "workers_per_cycle": "many pilots are one submission",
    "factory_period": "the factory hears at once what the manager could use",
    "tasks_per_worker": "a worker has as many slots as cores",
    "capacity": "pilots are reckoned from measured durations",
    "autosize": "pilots use what they are given",
    "factory_timeout": "a factory ends with its manager",
    "debug": "logging is Python's: the logger windlass.factory",
    "debug_file": "logging is Python's: the logger windlass.factory",
    "debug_workers": "logs of pilots are kept: `windlass pilots logs`",
    "log_file": "logging is Python's: the logger windlass.factory",
    "manager_name": "a factory is given its manager",
    "ssl": "everything goes over TLS 1.3",
    "password": "both sides always show certificates",
    "worker_binary": "workers are Python modules",
    "factory_binary": "the factory is a thread of the program",
    "extra_options": "further options are those of windlass.Factory",
    "amazon_config": "there is no backend for it",
    "catalog": "there is no catalog: a factory is given its manager",
    "debug_file_size": "logging is Python's: the logger windlass.factory",
    "config_file": "limits may be changed while it runs: factory.max_workers = 20",
    "run_factory_as_manager": "the factory is a thread of the program",
    "foremen_name": "one manager serves thousands of workers",
}
#: What a program would go wrong without, and what to write.
_REFUSED: Final = {
    "batch_options": "options of the batch system have their own names: factory.account, factory.partition, factory.condor_requirements;"
    " windlass.Factory has all of them",
    "python_package": "write factory.environment = 'packed.tar.gz' (windlass explain environments)",
    "wrapper": "write factory.setup, shell lines that run before the worker, or factory.container",
    "wrapper_input": "write factory.setup, shell lines that run before the worker, or factory.container",
    "runos": "write factory.container, an image in which workers run (windlass explain containers)",
    **dict.fromkeys(("k8s_image", "k8s_worker_image"), "there is no backend for Kubernetes; factory.container is for images"),
    **dict.fromkeys(("mesos_master", "mesos_path", "mesos_preload"), "there is no backend for Mesos: write 'local', 'slurm' or 'condor'"),
}
#: What may be changed while it runs.
_LIMITS: Final = ("min_pilots", "max_pilots")


class Factory:
    """Workers for a manager while it runs (`start` and `stop`, or ``with``).

    ``batch_type``: ``"local"``, ``"slurm"``, ``"condor"``, or a pool of a ``windlass.toml``. ``manager``: a `Manager` of this program, or
    the name of one elsewhere, as ``manager_name``.
    """

    #: What was set, by the names of `windlass.Factory`.
    _options: dict[str, Any]

    def __init__(
        self,
        batch_type: str = "local",
        manager: Manager | str | None = None,
        manager_host_port: str | None = None,
        manager_name: str | None = None,
        **more: Any,
    ) -> None:
        own = vars(self)
        own["_options"], own["_running"], own["_asked"] = {"min_pilots": 0, "max_pilots": 10, "cores": 1}, None, 0
        own["_least_told"] = 0
        if manager_host_port is not None:
            raise UsageError("Factory(manager_host_port=): give manager=, or manager_name=; workers find it by its name's state folder")
        if isinstance(manager, str) and manager_name is None:
            manager, manager_name = None, manager
        elif isinstance(manager, str):
            raise UsageError(f"Factory(manager={manager!r}, manager_name={manager_name!r}): give one of them")
        if (manager is None) == (manager_name is None):
            raise UsageError("Factory(): write Factory('slurm', manager=manager), or manager_name='NAME' of one elsewhere")
        own["_manager"] = manager.manager if manager is not None else manager_name
        own["_gathering"] = manager.gathering if manager is not None else None
        own["batch_type"] = batch_type
        if not isinstance(batch_type, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"Factory({batch_type!r}): write 'local', 'slurm' or 'condor'")
        for name, value in more.items():
            if value is not None:
                setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _UNMEANT:
            no_effect(f"Factory.{name}", _UNMEANT[name])
            return
        if name in _REFUSED:
            raise UsageError(f"Factory.{name} is not here: {_REFUSED[name]}")
        meaning = _MEANT.get(name)
        if meaning is None:
            raise UnknownName("attribute of a factory", name, (*_MEANT, *_UNMEANT))
        if name == "memory":
            value = value if isinstance(value, str) else int(value * MEGABYTE)
        if self._running is not None:
            if meaning not in _LIMITS:
                raise UsageError(f"Factory.{name} cannot be changed while it runs: stop() it first")
            limits = {**{limit: self._options[limit] for limit in _LIMITS}, meaning: value}
            least = self._least(limits)
            self._running.set_limits(min_pilots=least, max_pilots=limits["max_pilots"])
            vars(self)["_least_told"] = least
        self._options[meaning] = value

    def __getattr__(self, name: str) -> Any:
        if name in _MEANT and _MEANT[name] in vars(self)["_options"]:
            value = vars(self)["_options"][_MEANT[name]]
            return value // MEGABYTE if name == "memory" and isinstance(value, int) else value
        if name in _MEANT:
            return None
        raise AttributeError(f"a factory has no attribute {name!r}")

    def start(self) -> Self:
        """Begin."""
        if self._running is None:
            if self._gathering is not None:
                self._gathering.join(self)
            try:
                self._start()
            except BaseException:
                self._leave()
                raise
        return self

    def _start(self) -> None:
        word: str = self.batch_type
        least = self._least(self._options)
        options = {**self._options, "min_pilots": least}
        running = windlass.Factory(self._manager, _BACKENDS.get(word, word), **options).start()
        vars(self).update(_running=running, _least_told=least)

    def _leave(self) -> None:
        if self._gathering is not None:
            self._gathering.leave(self)

    def ask_for(self, workers: int) -> int:
        """Have so many at least, as far as ``max_workers`` allows; how many it has at least then. For its manager."""
        vars(self)["_asked"] = workers
        running, least = self._running, self._least(self._options)
        if running is not None and least != self._least_told:
            running.set_limits(min_pilots=least)
            vars(self)["_least_told"] = least
        return least if isinstance(least, int) else 0

    def _least(self, options: Mapping[str, Any]) -> Any:
        """``min_workers``, or what it was asked for. Of limits that cannot be what was written: who checks them says so."""
        least, most = options["min_pilots"], options["max_pilots"]
        if not isinstance(least, int) or not isinstance(most, int):
            return least
        return max(least, min(self._asked, most))

    def stop(self) -> None:
        """End all workers."""
        running, vars(self)["_running"] = self._running, None
        if running is not None:
            self._leave()
            running.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()
