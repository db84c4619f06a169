"""TaskVine's tasks: written before they are submitted, and given back by ``wait`` with what became of them.

Theory of operation
-------------------
A task is a record of what was set.  `submitted` makes a call of it, at a manager, and gives the call's future; each submission makes another.
When that has ended, the manager fills in the `Outcome` (on a thread of its own, `windlass.taskvine.manager`), and only then hands it out.

Resources that a task does not set are its category's (`windlass.taskvine.categories`).  TaskVine's MB are 1,048,576 bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import msgspec

import windlass
from windlass.errors import UnknownName, UsageError
from windlass.manager.call import DEFAULT_OPTIONS, MEGABYTE, intern_options, merge_options, read_count, read_number, read_seconds
from windlass.manager.command import Command, read_environment
from windlass.manager.future import CallFuture
from windlass.messages import CallOptions
from windlass.taskvine.files import File
from windlass.taskvine.outcomes import CANCELLED, NOT_RUN, OUTPUT_MISSING, SUCCESS, TRANSFER_ERROR, Outcome, no_effect, told

#: What is set in a dictionary; each has a setter.
_SETTERS: Final = (
    *("tag", "category", "retries", "cores", "memory", "disk", "gpus", "priority", "time_max", "time_min", "time_start", "time_end"),
    *("scheduler", "snapshot_file", "monitor_output", "max_forsaken"),
)
_SPECIAL: Final = ("inputs", "outputs", "env", "features")


class Output(NamedTuple):
    """An output of a task."""

    file: File
    path: str
    failure_only: bool
    success_only: bool


class Task:
    """A command, run by the shell in a directory of its own. ``info``: what the setters set, and ``inputs``, ``outputs``, ``env``, by name.

    Raises `UsageError`, or `UnknownName` with near names, for what cannot be.
    """

    _is_command = True

    def __init__(self, command: str, **info: Any) -> None:
        if isinstance(command, dict):
            raise UsageError("Task({...}): write Task(**{...})")
        self.set_command(command)
        self._start(info)

    def _start(self, info: Mapping[str, Any]) -> None:
        self._inputs: dict[str, File] = {}
        self._outputs: dict[str, Output] = {}
        self._env: dict[str, str | None] = {}
        #: Options of a call that were set, by keyword.
        self._options: dict[str, Any] = {}
        self._tag: str | None = None
        self._category = "default"
        self._disk = 0.0
        self._id = 0
        self._future: CallFuture[Any] | None = None
        self._outcome: Outcome | None = None
        self._made: list[tuple[Output, windlass.File]] = []
        self._needs: Any = None
        for name, value in info.items():
            if name in _SETTERS:
                getattr(self, f"set_{name}")(value)
            elif name == "inputs":
                for file, where in _mapping(name, value).items():
                    self.add_input(file, **(where if isinstance(where, dict) else {"remote_name": where}))
            elif name == "outputs":
                for file, where in _mapping(name, value).items():
                    self.add_output(file, **(where if isinstance(where, dict) else {"remote_name": where}))
            elif name == "env":
                for variable, text in _mapping(name, value).items():
                    self.set_env_var(variable, text)
            elif name == "features":
                for feature in [value] if isinstance(value, str) else value:
                    self.add_feature(feature)
            else:
                raise UnknownName("option of a task", name, (*_SETTERS, *_SPECIAL))

    # ------------------------------------------------------------ what it is

    def set_command(self, command: str) -> None:
        """What the shell runs."""
        if not isinstance(command, str) or not command.strip():  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"Task({command!r}): write the command as a text, as in Task('gzip < in > out')")
        self.command = command

    def add_input(self, file: File, remote_name: str, strict_input: bool = False, mount_symlink: bool = False) -> None:
        """It finds this file under that path in its directory: a link into the worker's cache, for reading."""
        del mount_symlink  # all inputs are links
        if strict_input:
            no_effect("strict_input=True", "a file that is not where a task runs is brought there")
        self._inputs[_path("add_input", remote_name)] = _file("add_input", file)

    def add_output(
        self, file: File, remote_name: str, watch: bool = False, failure_only: bool | None = None, success_only: bool | None = None
    ) -> None:
        """What it leaves there under that path becomes this file, when it has ended; or only if it has failed, or has not."""
        if watch:
            no_effect("watch=True", "outputs come when the task has ended")
        path = _path("add_output", remote_name)
        self._outputs[path] = Output(_file("add_output", file), path, bool(failure_only), bool(success_only))

    def set_env_var(self, name: str, value: str | None = None) -> None:
        """A variable that it gets, or (None) does not get."""
        self._env.update(read_environment({name: value}))

    def set_tag(self, tag: str) -> None:
        """A word of yours."""
        merge_options(DEFAULT_OPTIONS, None, {"tag": tag})
        self._tag = tag

    def set_category(self, name: str) -> None:
        """Tasks of one kind, which share resources (`Manager.set_category_resources_max`)."""
        if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"set_category({name!r}): a category is a text")
        self._category = name

    def set_cores(self, cores: float) -> None:
        """Cores; a fraction is fine."""
        self._set("cores", read_number("cores", cores))

    def set_memory(self, memory: float) -> None:
        """MB."""
        self._set("memory", int(read_number("memory", memory) * MEGABYTE))

    def set_gpus(self, gpus: int) -> None:
        """GPUs, whose ids it finds in CUDA_VISIBLE_DEVICES."""
        self._set("gpus", read_count("gpus", gpus))

    def set_disk(self, disk: float) -> None:
        """MB; kept, and not enforced."""
        self._disk = read_number("disk", disk)

    def set_priority(self, priority: float) -> None:
        """Larger first."""
        self._set("priority", priority)

    def set_retries(self, max_retries: int) -> None:
        """Tries after the first that was lost with its worker or ran out of memory."""
        self._set("retries", max_retries)
        self._set("max_losses", max_retries)

    def set_time_max(self, seconds: float) -> None:
        """Seconds that it may run."""
        self._set("timeout", seconds)

    def set_time_min(self, seconds: float) -> None:
        """Seconds that it needs at least: it is not given to workers with less time left."""
        self._set("expected_time", seconds)

    def set_time_end(self, useconds: float) -> None:
        """When it must have ended, in microseconds since the epoch: it is then cancelled at the latest."""
        read_seconds("time_end", useconds / 1e6)
        self.time_end = useconds / 1e6

    def set_time_start(self, useconds: float) -> None:
        raise UsageError("set_time_start() is not here: submit the task when it may start")

    def add_feature(self, name: str) -> None:
        raise UsageError(f"add_feature({name!r}) is not here: give machines of that kind a pool of their own (constraint=, requirements=)")

    def set_scheduler(self, scheduler: object) -> None:
        """Without effect."""
        no_effect("a task's scheduler", "workers with a task's files and its library warm come first")

    def set_max_forsaken(self, max_forsaken: int) -> None:
        """Without effect."""
        no_effect("max_forsaken", "a task that comes back without having been run costs no try")

    def set_snapshot_file(self, filename: str) -> None:
        """Without effect."""
        no_effect("a snapshot file", "there is no monitor of snapshots")

    def set_monitor_output(self, directory: object) -> None:
        """Without effect."""
        no_effect("a directory for the monitor", "what a task used is in its resources_measured")

    def add_execution_context(self, f: object) -> None:
        raise UsageError(
            "execution contexts are not here: give the pool container='image.sif' or environment='packed.tar.gz'"
            " (docs/containers.md, docs/environments.md), or run_in_env as an input and in the command"
        )

    add_environment = add_poncho_package = add_starch_package = add_execution_context

    def add_nopen(self, manager: object) -> None:
        raise UsageError("add_nopen() is not here: a container= with no shared folders shows what is missing among the inputs")

    def _set(self, key: str, value: Any) -> None:
        merge_options(DEFAULT_OPTIONS, None, {key: value})  # checked where it is written
        self._options[key] = value

    # ------------------------------------------------------------ what became of it

    @property
    def id(self) -> int:
        """Its number, from its submission on."""
        return self._id

    @property
    def tag(self) -> str | None:
        """As set."""
        return self._tag

    @property
    def category(self) -> str:
        """As set."""
        return self._category

    @property
    def state(self) -> str:
        """``initial``, ``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``."""
        if self._future is not None:
            return self._future.state
        return "initial" if not self._id else "done" if self._outcome is not None else "waiting"

    @property
    def future(self) -> CallFuture[Any] | None:
        """The call that it has become; None before."""
        return self._future

    @property
    def result(self) -> str:
        """``success`` if it was run, whatever its exit code; else the reason in TaskVine's words; ``unknown`` before its end."""
        return self._outcome.result if self._outcome is not None else "unknown"

    @property
    def exit_code(self) -> int:
        """Of the command; of one that was killed by a signal the number below zero. Of a function: 0, or 1 if it raised. -1: not run."""
        return self._outcome.exit_code if self._outcome is not None else NOT_RUN

    @property
    def output(self) -> Any:
        """What the command wrote; what the function returned, or its exception."""
        if self._outcome is None:
            return None
        if self._outcome.output is _KEPT and self._future is not None:
            return self._future.result()
        return self._outcome.output

    @property
    def std_output(self) -> str:
        """What it wrote to its standard output and error."""
        return self._outcome.std_output if self._outcome is not None else ""

    @property
    def error(self) -> BaseException | None:
        """Why it was not run to its end, or what its function raised."""
        return self._outcome.error if self._outcome is not None else None

    def completed(self) -> bool:
        """It was run, whatever its exit code."""
        return self.result == SUCCESS

    def successful(self) -> bool:
        """It was run, with exit code 0, and has made its outputs."""
        return self.completed() and self.exit_code == 0

    @property
    def hostname(self) -> str:
        """Where it ran, as far as is known."""
        if self._outcome is not None and self._outcome.details is not None:
            return self._outcome.details.host
        attempts = self._future.attempts if self._future is not None else ()
        return attempts[-1].host if attempts else ""

    @property
    def resources_requested(self) -> SimpleNamespace:
        """Cores, memory and disk (MB), gpus; 0: not said."""
        needs = self._needs if self._needs is not None else merge_options(DEFAULT_OPTIONS, None, self._asked())[0].needs
        return SimpleNamespace(cores=needs.cores, memory=needs.memory // MEGABYTE, disk=self._disk, gpus=needs.gpus)

    @property
    def resources_allocated(self) -> SimpleNamespace:
        """As requested; a slot's share of what was not said."""
        return self.resources_requested

    @property
    def resources_measured(self) -> SimpleNamespace | None:
        """``wall_time`` and ``cpu_time`` in seconds, ``memory`` in MB, ``cores`` (on the average); None if it was not run."""
        details = self._outcome.details if self._outcome is not None else None
        if details is None:
            return None
        cores = details.cpu_seconds / details.seconds if details.seconds else 0.0
        return SimpleNamespace(
            wall_time=details.seconds, cpu_time=details.cpu_seconds, memory=details.peak_memory / MEGABYTE, cores=round(cores, 3)
        )

    @property
    def limits_exceeded(self) -> SimpleNamespace | None:
        """``memory`` in MB: the share that it ran out of; None if it did not."""
        share = getattr(self.error, "share", 0)
        return SimpleNamespace(memory=share / MEGABYTE) if share else None

    def get_metric(self, name: str) -> int:
        """Microseconds: of the epoch for ``time_when_...``, else a duration. Raises `UnknownName`."""
        timings = self._future.timings if self._future is not None else windlass_timings()
        known = {
            "time_when_submitted": timings.submitted,
            "time_when_commit_start": timings.sent,
            "time_when_commit_end": timings.started,
            "time_when_retrieval": timings.returned,
            "time_when_done": timings.returned,
            "time_workers_execute_last": timings.running,
        }
        if name not in known:
            raise UnknownName("metric of a task", name, known)
        return int(known[name] * 1e6)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._id or 'not submitted'} {self._what()} {self.state}>"

    def _what(self) -> str:
        return repr(self.command if len(self.command) <= 60 else f"{self.command[:57]}...")

    # ------------------------------------------------------------ for the manager

    #: When it must have ended, in seconds since the epoch; 0: none.
    time_end = 0.0

    def begin(self, number: int) -> None:
        """It is being submitted. Raises `UsageError` if it is under way."""
        if self._id and self._outcome is None:
            raise UsageError(f"{self!r} is under way: wait() for it before it is submitted again, or make another one")
        self._id, self._future, self._outcome, self._made = number, None, None, []

    def withdraw(self) -> None:
        """It could not be submitted."""
        self._id = 0

    def submitted(self, manager: windlass.Manager, category: Mapping[str, Any]) -> CallFuture[Any]:
        """The future of a call of it; ``category``: options for what it does not set itself."""
        options = self._call_options(category)
        self._needs = options.needs
        inputs = {path: file.for_reading() for path, file in self._inputs.items()}
        self._made = [(output, output.file.for_writing(path)) for path, output in self._outputs.items()]
        self._future = self._call(manager, options, inputs, {output.path: made for output, made in self._made})
        return self._future

    def inputs_and_variables(self) -> tuple[dict[str, windlass.File], dict[str, str | None]]:
        """For a mini task."""
        return {path: file.for_reading() for path, file in self._inputs.items()}, dict(self._env)

    def _asked(self) -> dict[str, Any]:
        return self._options

    def _call_options(self, category: Mapping[str, Any]) -> CallOptions:
        given = {**category, **self._options}
        grows = given.pop("grow_memory", False) and "memory" not in self._options
        options, _ = merge_options(DEFAULT_OPTIONS, None, given)
        return intern_options(msgspec.structs.replace(options, grow_memory=True)) if grows else options

    def _call(
        self, manager: windlass.Manager, options: CallOptions, inputs: dict[str, windlass.File], outputs: dict[str, windlass.File]
    ) -> CallFuture[Any]:
        command = Command(f"{_PREFIX}{self.command}", inputs=inputs, outputs=outputs, env=self._variables(), check=False, merge_output=True)
        command.packed = tuple(output.path for output, _ in self._made if output.file.comes_back)
        command.options, command.tag = options, self._tag
        return manager.submit(command)

    def _variables(self) -> dict[str, str | None]:
        """What TaskVine's workers set, as far as it is known, and what was set."""
        needs = self._needs
        known = {"CORES": f"{needs.cores:g}", "MEMORY": str(needs.memory // MEGABYTE), "DISK": f"{self._disk:g}", "GPUS": str(needs.gpus)}
        return {**{name: text for name, text in known.items() if text != "0"}, **self._env}

    def end(self, future: CallFuture[Any] | None, ready: BaseException | None = None, late: str = "") -> None:
        """It has ended: take what it returned and what it made. On a thread of the manager's; never raises. ``late``: its result, if that
        was cancelled."""
        value, error = None, ready
        if future is not None:
            try:
                value = _KEPT if self._options.get("keep") and future.state == "done" else future.result()
            except BaseException as raised:  # noqa: BLE001 - whatever it is, it is the task's
                error = raised
        outcome = told(value, error, future.stdout if future else "", future.stderr if future else "", command=self._is_command)
        details = outcome.details
        failed = outcome.exit_code != 0 or outcome.result not in (SUCCESS, OUTPUT_MISSING)
        if details is not None and outcome.result == OUTPUT_MISSING:
            wanted = [
                path
                for path in details.missing
                if not (self._outputs[path].failure_only if not failed else self._outputs[path].success_only)
            ]
            outcome = outcome._replace(result=OUTPUT_MISSING if wanted else SUCCESS)
        if outcome.result == CANCELLED and late:
            outcome = outcome._replace(result=late)
        if error is None:
            outcome = self._take_outputs(outcome, details.missing if details else (), details.packed if details else (), failed=failed)
        self._outcome = outcome

    def _take_outputs(self, outcome: Outcome, missing: tuple[str, ...], packed: tuple[str, ...], *, failed: bool) -> Outcome:
        for output, made in self._made:
            if output.path in missing or not output.file.comes_back:
                continue
            if output.failure_only if not failed else output.success_only:
                made.prune()
                continue
            try:
                output.file.take(made, packed=output.path in packed)
            except (OSError, windlass.WindlassError) as error:
                outcome = outcome._replace(result=TRANSFER_ERROR, error=error, std_output=f"{outcome.std_output}{error}\n")
        self._made = []
        return outcome


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


#: The output of a task whose result has stayed on its worker.
_KEPT: Final = object()
#: TaskVine's name of the directory that a command runs in.
_PREFIX: Final = 'export VINE_SANDBOX="$WINDLASS_SANDBOX"; '


def windlass_timings() -> Any:
    """Of a task that has not begun."""
    from windlass.manager.timings import Timings

    return Timings()


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


def _mapping(name: str, value: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{name}={value!r}: write {name}={{...}}, a dictionary")
    return dict(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _file(what: str, file: object) -> File:
    if not isinstance(file, File):
        raise UsageError(f"{what}({file!r}, ...): the first argument is a file: write {what}(manager.declare_file('path'), 'name')")
    return file


def _path(what: str, path: object) -> str:
    if not isinstance(path, str) or not path:
        raise UsageError(f"{what}(..., {path!r}): the second argument is a path in the task's directory, as in 'data/words.txt'")
    normal = os.path.normpath(path)
    if os.path.isabs(normal) or normal in (".", "..") or normal.startswith("../"):
        raise UsageError(f"{what}(..., {path!r}): that is not in the task's own directory: give a relative path")
    return normal
