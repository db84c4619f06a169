"""TaskVine's tasks: written before they are submitted, and given back by ``wait`` with what became of them.

Theory of operation
-------------------
A task is a record of what was set.  `submitted` makes a call of it, at a manager, and gives the call's future; each submission makes
another.  When that has ended, the manager fills in the `Outcome` (on a thread of its own, `windlass.taskvine.manager`), and only then
hands it out.

Resources that a task does not set are its category's (`windlass.taskvine.categories`).  TaskVine's MB are 1,048,576 bytes.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

import windlass
from windlass.commands import CommandResult
from windlass.errors import InputFailed, UnknownName, UsageError
from windlass.manager.call import (
    COUNT_MOST,
    DEFAULT_OPTIONS,
    MEGABYTE,
    intern_options,
    merge_options,
    read_count,
    read_number,
    read_seconds,
)
from windlass.manager.command import Command, read_environment
from windlass.manager.future import CallFuture
from windlass.messages import CallOptions
from windlass.taskvine.facts import KEPT, TaskFacts
from windlass.taskvine.files import File, Place
from windlass.taskvine.outcomes import CANCELLED, INPUT_MISSING, OUTPUT_MISSING, SUCCESS, TRANSFER_ERROR, Outcome, no_effect, told

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


class Task(TaskFacts):
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
        #: Folders of execution contexts, the innermost first.
        self._contexts: list[str] = []
        #: Options of a call that were set, by keyword.
        self._options: dict[str, Any] = {}
        self._tag: str | None = None
        self._category = "default"
        self._disk = 0.0
        self._id = 0
        self._future: CallFuture[Any] | None = None
        self._outcome: Outcome | None = None
        self._made: list[tuple[Output, windlass.File]] = []
        #: Where it was to write on this machine, and has not.
        self._unwritten: set[Place] = set()
        #: What is wrong with an input, when that was found only after its submission.
        self._wrong_input: UsageError | None = None
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
        """Tries after the first that was lost with its worker or ran out of memory; below 1, any number of those that are lost."""
        count = 0 if _is_below_one(max_retries) else read_count("retries", max_retries)
        self._set("retries", count)
        self._set("max_losses", count or COUNT_MOST)

    def set_time_max(self, seconds: float) -> None:
        """Seconds that it may run; 0 or less: any number."""
        self._set("timeout", None if _is_no_time(seconds) else seconds)

    def set_time_min(self, seconds: float) -> None:
        """Seconds that it needs at least: it is not given to workers with less time left. 0 or less: nobody knows."""
        self._set("expected_time", None if _is_no_time(seconds) else seconds)

    def set_time_end(self, useconds: float) -> None:
        """When it must have ended, in microseconds since the epoch: it is then cancelled at the latest. 0 or less: no such time."""
        if not _is_no_time(useconds):
            read_seconds("time_end", useconds / 1e6)
        self.time_end = max(0.0, useconds / 1e6)

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

    def add_execution_context(self, f: File) -> None:
        """Run it by way of this folder's ``bin/run_in_env``, which is given the command; without one with its ``bin`` first on PATH. That
        which was added first is the innermost."""
        folder = f".context-{len(self._contexts)}"
        self.add_input(f, folder)
        self._contexts.append(folder)

    add_environment = add_poncho_package = add_starch_package = add_execution_context

    def add_nopen(self, manager: object) -> None:
        raise UsageError("add_nopen() is not here: a container= with no shared folders shows what is missing among the inputs")

    def _set(self, key: str, value: Any) -> None:
        merge_options(DEFAULT_OPTIONS, None, {key: value})  # checked where it is written
        self._options[key] = value

    # ------------------------------------------------------------ for the manager

    #: When it must have ended, in seconds since the epoch; 0: none.
    time_end = 0.0
    #: A task that was to make what it needs, and has ended without.
    lacks: Task | None = None

    def begin(self, number: int) -> dict[int, bool]:
        """It is being submitted: numbers of tasks that make what it needs, and whether they have to end before it can be let go, as that
        is read here. Raises `UsageError` if it is under way."""
        if self._id and self._ended is None:
            raise UsageError(f"{self!r} is under way: wait() for it before it is submitted again, or make another one")
        self._id, self._future, self._outcome, self._made, self.lacks = number, None, None, [], None
        self._unwritten = {output.file.place for output in self._outputs.values() if output.file.comes_back}
        needs = self._makers()
        for output in self._outputs.values():
            output.file.is_written_by(number)
        return needs

    def _makers(self) -> dict[int, bool]:
        found: dict[int, bool] = {}
        for file in self._inputs.values():
            number = file.place.written_by
            found[number] = file.comes_back or found.get(number, False)
        return found

    def misses(self, maker: Task) -> bool:
        """``maker`` has ended without having written here what this one reads."""
        return any(file.place in maker._unwritten for file in self._inputs.values())

    def withdraw(self) -> None:
        """It could not be submitted."""
        self._leave_outputs()
        self._id = 0

    def _leave_outputs(self) -> None:
        for output in self._outputs.values():
            output.file.was_written_by(self._id)

    def submitted(self, manager: windlass.Manager, category: Mapping[str, Any]) -> CallFuture[Any]:
        """The future of a call of it; ``category``: options for what it does not set itself."""
        if self.lacks is not None:
            why = "which was not run" if self.lacks.future is None else "which has ended without making it"
            raise InputFailed(f"it was not run: it needs what {self.lacks!r} makes, {why}", tag=self.lacks.tag)
        options = self._call_options(category)
        self._needs = options.needs
        inputs = self._read_inputs()
        self._made = [(output, output.file.for_writing(path)) for path, output in self._outputs.items()]
        self._future = self._call(manager, options, inputs, {output.path: made for output, made in self._made})
        return self._future

    def _read_inputs(self) -> dict[str, windlass.File]:
        try:
            return {path: file.for_reading() for path, file in self._inputs.items()}
        except UsageError as error:
            self._wrong_input = error
            raise

    @property
    def line(self) -> str:
        """The command, in its execution contexts, with TaskVine's variable for its directory."""
        line = self.command
        for folder in self._contexts:
            line = _CONTEXT.format(folder=folder, line=shlex.quote(line))
        return f"{_PREFIX}{line}"

    def inputs_and_variables(self) -> tuple[dict[str, windlass.File], dict[str, str | None]]:
        """For a mini task."""
        return {path: file.settled().for_reading() for path, file in self._inputs.items()}, dict(self._env)

    def _call_options(self, category: Mapping[str, Any]) -> CallOptions:
        given = {**category, **self._options}
        grows = given.pop("grow_memory", False) and "memory" not in self._options
        options, _ = merge_options(DEFAULT_OPTIONS, None, given)
        return intern_options(msgspec.structs.replace(options, grow_memory=True)) if grows else options

    def _call(
        self, manager: windlass.Manager, options: CallOptions, inputs: dict[str, windlass.File], outputs: dict[str, windlass.File]
    ) -> CallFuture[Any]:
        command = Command(self.line, inputs=inputs, outputs=outputs, env=self._variables(), check=False, merge_output=True)
        command.packed = tuple(output.path for output, _ in self._made if output.file.comes_back)
        command.options, command.tag = options, self._tag
        return manager.submit(command)

    def _variables(self) -> dict[str, str | None]:
        """What TaskVine's workers set, as far as it is known, and what was set."""
        needs = self._needs
        known = {"CORES": needs.cores, "MEMORY": needs.memory // MEGABYTE, "DISK": self._disk, "GPUS": needs.gpus}
        return {**{name: f"{value:.15g}" for name, value in known.items() if value}, **self._env}

    def end(self, future: CallFuture[Any] | None, ready: BaseException | None = None, late: str = "") -> None:
        """It has ended: take what it returned and what it made. On a thread of the manager's; never raises. ``late``: its result, if that
        was cancelled."""
        value, error = None, ready
        if future is not None:
            try:
                value = KEPT if self._options.get("keep") and future.state == "done" else future.result()
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
        if error is not None and error is self._wrong_input:
            outcome = outcome._replace(result=INPUT_MISSING)
        if error is None:
            outcome = self._take_outputs(outcome, details or CommandResult(0), failed=failed)
        self._outcome = outcome
        self._leave_outputs()

    def _take_outputs(self, outcome: Outcome, details: CommandResult, *, failed: bool) -> Outcome:
        for output, made in self._made:
            path = output.path
            if path in details.missing or not output.file.comes_back:
                continue
            if output.failure_only if not failed else output.success_only:
                made.prune()
                continue
            try:
                output.file.take(made, packed=path in details.packed, executable=path in details.executable)
                self._unwritten.discard(output.file.place)
            except (OSError, MemoryError, windlass.WindlassError) as error:
                text = f"{outcome.std_output}{str(error) or repr(error)}\n"
                outcome = outcome._replace(result=TRANSFER_ERROR, error=error, std_output=text)
        self._made = []
        return outcome


#: TaskVine's name of the directory that a command runs in.
_PREFIX: Final = 'export VINE_SANDBOX="$WINDLASS_SANDBOX"; '
#: A command in an execution context.
_CONTEXT: Final = (
    'C="$WINDLASS_SANDBOX/{folder}"; [ ! -x "$C/bin/run_in_env" ] || exec "$C/bin/run_in_env" /bin/sh -c {line}; '
    'unset PYTHONHOME PYTHONPATH; PATH="$C/bin:$PATH" exec /bin/sh -c {line}'
)


def _is_below_one(count: object) -> bool:
    return isinstance(count, int) and not isinstance(count, bool) and count < 1


def _is_no_time(given: object) -> bool:
    """What TaskVine takes for no limit."""
    return isinstance(given, int | float) and not isinstance(given, bool) and given <= 0


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
