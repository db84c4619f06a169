"""Functions as TaskVine's tasks: of the program (`PythonTask`), and of a library (`FunctionCall`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import windlass
from windlass.errors import UsageError
from windlass.manager.future import CallFuture
from windlass.messages import CallOptions
from windlass.taskvine.files import File
from windlass.taskvine.outcomes import no_effect
from windlass.taskvine.tasks import Task


class PythonTask(Task):
    """``func(*args, **kwargs)``. Arguments may be PythonTasks and FunctionCalls that were submitted: it runs when they have ended."""

    _is_command = False

    def __init__(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if not callable(func):
            raise UsageError(f"PythonTask({func!r}, ...): the first argument is a function")
        self.command = getattr(func, "__name__", type(func).__name__)
        self._func, self._args, self._kwargs = func, args, kwargs
        self._start({})

    def enable_temp_output(self) -> None:
        """A large result stays on its worker, for tasks that are given this one, until `output` is asked for."""
        self._set("keep", "worker")

    def disable_temp_output(self) -> None:
        """It comes when the task has ended."""
        self._options.pop("keep", None)

    def set_output_cache(self, cache: object = False) -> None:
        """Without effect."""
        no_effect("set_output_cache()", "a result that stays on a worker stays as long as somebody can ask for it")

    def disable_output_serialization(self) -> None:
        raise UsageError("disable_output_serialization() is not here: write a file, and give it to add_output()")

    @property
    def output_file(self) -> File:
        raise UsageError("output_file is not here: give this task itself to another one as an argument: PythonTask(f, task)")

    def add_execution_context(self, f: object) -> None:
        raise UsageError(
            "a function's environment is its worker's: give the pool container='image.sif' or environment='packed.tar.gz'"
            " (windlass explain containers, windlass explain environments), or make a library with poncho_env='packed.tar.gz',"
            " and FunctionCalls of it"
        )

    add_environment = add_poncho_package = add_starch_package = add_execution_context

    def _makers(self) -> dict[int, bool]:
        of_values = {value.id: False for value in (*self._args, *self._kwargs.values()) if isinstance(value, Task)}
        return {**of_values, **super()._makers()}

    def _variables(self) -> dict[str, str | None]:
        return self._env

    def _arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(map(_future_of, self._args)), {name: _future_of(value) for name, value in self._kwargs.items()}

    def _call(
        self, manager: windlass.Manager, options: CallOptions, inputs: dict[str, windlass.File], outputs: dict[str, windlass.File]
    ) -> CallFuture[Any]:
        args, kwargs = self._arguments()
        func = _with_variables(self._func, dict(self._env)) if self._env else self._func
        return manager.submit_function(func, args, kwargs, options, self._tag, inputs=inputs, outputs=outputs)


class FunctionCall(PythonTask):
    """A call of a library's function."""

    def __init__(self, library: str | windlass.Library, fn: str, *args: Any, **kwargs: Any) -> None:
        self._target = windlass.FunctionCall(library, fn)
        self.command = self._target.function
        self._args, self._kwargs = args, kwargs
        self._start({})

    def set_fn_args(self, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> None:
        """Other arguments."""
        self._args, self._kwargs = tuple(args), dict(kwargs or {})

    def set_exec_method(self, remote_task_exec_method: str) -> None:
        """Without effect."""
        no_effect("set_exec_method()", "calls run as their library says: create_library_from_functions(..., exec_mode=...)")

    def set_env_var(self, name: str, value: str | None = None) -> None:
        raise UsageError("variables of a FunctionCall are its library's: create_library(..., env={...})")

    def _call(
        self, manager: windlass.Manager, options: CallOptions, inputs: dict[str, windlass.File], outputs: dict[str, windlass.File]
    ) -> CallFuture[Any]:
        args, kwargs = self._arguments()
        call = windlass.FunctionCall(self._target.library, self._target.function, *args, **kwargs)
        for path, file in inputs.items():
            call.add_input(file, path)
        for path, file in outputs.items():
            call.add_output(file, path)
        call.options, call.tag = options, self._tag
        return manager.submit(call)


def _with_variables(func: Callable[..., Any], env: dict[str, str | None]) -> Callable[..., Any]:
    def run_with_variables(*args: Any, **kwargs: Any) -> Any:
        before = dict(os.environ)
        for name, value in env.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        try:
            return func(*args, **kwargs)
        finally:
            os.environ.clear()
            os.environ.update(before)

    return run_with_variables


def _future_of(value: Any) -> Any:
    if not isinstance(value, Task):
        return value
    if isinstance(value, PythonTask) and value.future is not None:
        return value.future
    raise UsageError(f"{value!r} as an argument: give a PythonTask or FunctionCall that was submitted before, or a file")
