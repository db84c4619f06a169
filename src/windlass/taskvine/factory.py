"""TaskVine's factory: workers for a manager, from a batch system, by its attributes.

Theory of operation
-------------------
Attributes are set before it starts, and limits also while it runs.  At `start` they become a `windlass.Factory`.  TaskVine's MB are
1,048,576 bytes.  Names that it does not have are refused with the near ones.
"""

from __future__ import annotations

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
}


class Factory:
    """Workers for a manager while it runs (`start` and `stop`, or ``with``).

    ``batch_type``: ``"local"``, ``"slurm"``, ``"condor"``, or a pool of a ``windlass.toml``. ``manager``: a `Manager` of this program.
    """

    #: What was set, by the names of `windlass.Factory`.
    _options: dict[str, Any]

    def __init__(
        self,
        batch_type: str = "local",
        manager: Manager | None = None,
        manager_host_port: str | None = None,
        manager_name: str | None = None,
        **more: Any,
    ) -> None:
        own = vars(self)
        own["_options"], own["_running"] = {"min_pilots": 0, "max_pilots": 10, "cores": 1}, None
        if manager_host_port is not None:
            raise UsageError("Factory(manager_host_port=): give manager=, or manager_name=; workers find it by its name's state folder")
        if (manager is None) == (manager_name is None):
            raise UsageError("Factory(): write Factory('slurm', manager=manager), or manager_name='NAME' of one elsewhere")
        own["_manager"] = manager.manager if manager is not None else manager_name
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
        meaning = _MEANT.get(name)
        if meaning is None:
            raise UnknownName("attribute of a factory", name, (*_MEANT, *_UNMEANT))
        if name == "memory":
            value = value if isinstance(value, str) else int(value * MEGABYTE)
        if self._running is not None:
            if meaning not in ("min_pilots", "max_pilots"):
                raise UsageError(f"Factory.{name} cannot be changed while it runs: stop() it first")
            self._running.set_limits(**{meaning: value})
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
            word: str = self.batch_type
            backend = _BACKENDS.get(word, word)
            vars(self)["_running"] = windlass.Factory(self._manager, backend, **self._options).start()
        return self

    def stop(self) -> None:
        """End all workers."""
        running, vars(self)["_running"] = self._running, None
        if running is not None:
            running.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()
