"""TaskVine's manager for Dask: ``vine.DaskVine``, whose ``get`` is a scheduler of Dask's graphs.

Theory of operation
-------------------
`windlass.dask.get` runs the graph, on the `windlass.Manager` behind this one.  Here are TaskVine's options of ``get`` (which are
``compute``'s, too): what they mean for its calls, which of them mean nothing, and which would change what a program gets, so that they
are refused with what to write instead.

There, each task is tried five times, whatever has failed.  Here too, if its process or its worker has died; what a task raises is raised at
once, unless ``retries=`` was written.

Dask is imported with this module, and so this module only when somebody asks for `DaskVine`.
"""

from __future__ import annotations

from typing import Any, Final

import windlass.dask
from windlass.errors import UnknownName, UsageError
from windlass.fitting import executor_for
from windlass.manager.call import MEGABYTE, read_count
from windlass.taskvine.categories import FIXED, read_mode, read_resources
from windlass.taskvine.manager import Manager
from windlass.taskvine.outcomes import no_effect

#: How often a task is tried, unless that is said.
TRIES: Final = 5
#: What is meant, in ways of asking that TaskVine has itself given up too.
_MODULES: Final = ("lib_modules", "hoisting_modules", "import_modules")
_MEANT: Final = ("resources", "resources_mode", "retries", "task_mode", *_MODULES)
_TASK_MODES: Final = ("tasks", "function-calls")
#: Options that ask for what is always so here.
_ALWAYS: Final = (
    *("lib_extra_functions", "scheduling_mode", "task_priority_mode", "submit_per_cycle", "max_pending", "prune_depth", "merge_size"),
    *("wrapper_proc", "progress_disable", "progress_label"),
)
#: And those that change nothing: the value that asks for nothing, and why.
_UNMEANT: Final[dict[str, tuple[Any, str]]] = {
    "worker_transfers": (True, "results stay on workers, and those that are lost with one are made again"),
    "lazy_transfers": (True, "results stay on workers, and those that are lost with one are made again"),
    "checkpoint_fn": (None, "results stay on workers, and those that are lost with one are made again"),
    "reconstruct": (False, "chains of tasks are one call by themselves"),
    "verbose": (False, "`windlass calls` shows where each call ran"),
    "lib_resources": (None, "a worker has a slot per core; say resources= for what each task needs"),
}
_REFUSED: Final = {
    "environment": "give the factory environment='packed.tar.gz' (windlass explain environments)",
    "env_per_task": "give the factory environment='packed.tar.gz' (windlass explain environments)",
    "env_vars": "give the factory env={'NAME': 'value'}",
    "extra_files": "let the function read a file that nodes see, or give it the bytes as an argument",
    "lib_command": "setup= lines of the factory run before its pilots",
    "wrapper": "Dask's own diagnostics (Profiler, ResourceProfiler, callbacks) work with this scheduler",
}


class DaskVine(Manager):
    """A `Manager` that runs Dask's graphs: ``dask.compute(x, scheduler=m.get)``, or ``dask.config.set(scheduler=m.get)``."""

    def get(self, dsk: Any, keys: Any, **options: Any) -> Any:
        """The values of ``keys`` of a graph. ``resources`` (``{"cores": 2, "memory": 1000}``) and ``resources_mode``: of each task;
        ``retries``: how often a task is tried, also when it raises; ``lib_modules``: hoisted beside those that are found.

        Raises what a task raises, `windlass.UsageError` for what is not here, `windlass.UnknownName` for what neither has.
        """
        call, modules = self._read(options)
        executor = executor_for(self.manager, "DaskVine().get").with_options(**call)
        return windlass.dask.get(dsk, keys, executor=executor, imports=modules)

    __call__ = get

    def _read(self, options: dict[str, Any]) -> tuple[Any, Any]:
        """Options of calls, and modules to be hoisted."""
        known = (*_MEANT, *_ALWAYS, *_UNMEANT, *_REFUSED)
        for name, value in options.items():
            if name in _REFUSED and value:
                raise UsageError(f"{name}= of DaskVine is not here: {_REFUSED[name]}")
            if name in _UNMEANT and value != _UNMEANT[name][0]:
                no_effect(f"{name}={value!r}", _UNMEANT[name][1])
            if name not in known:
                raise UnknownName("option of DaskVine.get", name, known)
        if options.get("task_mode", _TASK_MODES[0]) not in _TASK_MODES:
            raise UnknownName("task_mode of DaskVine.get", str(options["task_mode"]), _TASK_MODES)
        needs = read_resources("resources", options.get("resources") or {})
        call: dict[str, Any] = {name: needs[name] for name in ("cores", "gpus") if needs.get(name)}
        if needs.get("memory"):
            call["memory"] = int(needs["memory"] * MEGABYTE)
        mode = options.get("resources_mode")
        if mode is not None and read_mode(mode) != FIXED:
            call["memory"] = "auto"
        tries = options.get("retries")
        call["retries"] = max(0, read_count("retries", TRIES if tries is None else tries) - 1)
        if tries is not None and tries > 1:
            call["retry_on"] = Exception
        modules = next((options[name] for name in _MODULES if options.get(name)), ())
        return call, modules
