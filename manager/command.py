"""A command of the shell as a call.

Theory of operation
-------------------
`Command` is a `FunctionCall` of a library of Windlass's own (`windlass.commands`), which the manager installs when the first command is
submitted.  So all that holds for calls holds for commands.  What a call says of it (the library, which depends on its GPUs, and the
arguments) is put together when it is submitted (`make_ready`), as options and files may be changed until then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from os.path import basename
from typing import Any, Final, Unpack, cast

from windlass.commands import library_of, run_command, shown
from windlass.errors import UnknownName, UsageError, require_flag
from windlass.files import File
from windlass.manager.call import CallKeywords, FunctionCall, merge_options

_OWN: Final = ("inputs", "outputs", "env", "check", "merge_output")
#: What people know from `subprocess`, and how it is written here.
_OF_SUBPROCESS: Final = {
    "cwd": "a command runs in a directory of its own: name what it finds there with inputs=, and begin with 'cd folder && ...' if need be",
    "shell": "a text is for /bin/sh, as in Command('gzip < in > out'); a list of words is run without a shell",
    "stdin": "write Command('program < in.txt', inputs={'in.txt': file})",
    "input": "write Command('program < in.txt', inputs={'in.txt': manager.declare_buffer(...)})",
    "stdout": "what it writes is in its result's stdout; a file is written by Command('program > out.txt', outputs=['out.txt'])",
    "stderr": "what it writes is in its result's stderr, or with merge_output=True in its stdout",
    "capture_output": "what it writes is always in its result's stdout and stderr",
    "text": "its result's stdout and stderr are texts; what is none is to go into a file of its outputs",
}


class Command(FunctionCall):
    """A command for `Manager.submit`, run in a directory of its own: a text for ``/bin/sh``, or a list of words without a shell.

    ``inputs``: declared files by the paths at which it finds them. ``outputs``: what it makes there: paths, whose files are in `outputs`
    when it is submitted, or files of ``declare_temp()`` by path. ``env``: variables beside those of the pilot (None takes one away).
    ``check=False``: any exit code is a result, and outputs may be missing. ``merge_output``: its stderr goes with its stdout. Further
    options as of calls (``timeout=``, ``cores=``, ``retries=``, ...). Its result is a `windlass.CommandResult`.

    Raises `UsageError` for what cannot be.
    """

    __slots__ = ("check", "command", "env", "made", "merge_output", "packed")

    def __init__(
        self,
        command: str | Sequence[str | os.PathLike[str]],
        /,
        *,
        inputs: Mapping[str, File] | None = None,
        outputs: Mapping[str, File] | Iterable[str] | None = None,
        env: Mapping[str, str | None] | None = None,
        check: bool = True,
        merge_output: bool = False,
        **options: Unpack[CallKeywords],
    ) -> None:
        super().__init__(library_of(0), run_command.__name__)
        self.command = read_command(command)
        require_flag("check", check)
        require_flag("merge_output", merge_output)
        self.check, self.merge_output = check, merge_output
        self.env = read_environment(env)
        #: Paths of outputs for which each submission makes a file.
        self.made: tuple[str, ...] = ()
        #: Paths of outputs that become archives if they are folders.
        self.packed: tuple[str, ...] = ()
        if inputs is not None and not isinstance(inputs, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"inputs={inputs!r}: write inputs={{'path': manager.declare_file(...)}}")
        for path, file in (inputs or {}).items():
            self.add_input(file, path)
        if isinstance(outputs, str):
            raise UsageError(f"outputs={outputs!r}: write outputs=[{outputs!r}]")
        if isinstance(outputs, Mapping):
            for path, file in cast("Mapping[str, File]", outputs).items():
                self.add_output(file, path)
        else:
            made: list[str] = []
            for path in outputs or ():
                made.append(self._inside("outputs=", path))
                self._take(made[-1])
            self.made = tuple(made)
        self.outputs = _Outputs(self.made, self.outputs)
        if options:
            _refuse_unknown(options)
            self.options, self.tag = merge_options(self.options, self.tag, options)

    @property
    def has_room(self) -> bool:
        """It runs in a directory of its own."""
        return True

    @property
    def lenient(self) -> bool:
        """Outputs may be missing."""
        return not self.check

    def set_env_var(self, name: str, value: str | None = None) -> None:
        """Have it find this variable, or (None) not find it."""
        self.env = {**self.env, **read_environment({name: value})}

    def make_ready(self, declare_temp: Callable[[str], File]) -> None:
        """It is about to be submitted: files of this submission, the library and the arguments."""
        for path in self.made:
            self.outputs[path] = declare_temp(basename(path))
        self._fill(tuple(self.outputs))

    def make_ready_to_make(self) -> None:
        """It is to be a mini task's: the path of the one file that it makes is what it returns. Raises `UsageError`."""
        if len(self.made) != 1 or self.outputs or not self.check:
            raise UsageError(f"{self!r} as a mini task makes one file: write Command(..., outputs=['PATH']), with check=True")
        self._fill((), makes=self.made[0])

    def _fill(self, outputs: tuple[str, ...], makes: str = "") -> None:
        needs = self.options.needs
        self.library = library_of(needs.gpus)
        self.args = (self.command, outputs, self.env or None)
        given: dict[str, Any] = {"threads": int(needs.cores), "makes": makes, "merge_output": self.merge_output, "pack": self.packed}
        self.kwargs = {name: value for name, value in given.items() if value}
        if not self.check:
            self.kwargs["check"] = False

    def with_options(self, **options: Unpack[CallKeywords]) -> Command:
        twin = super().with_options(**options)
        assert isinstance(twin, Command)
        twin.check, twin.merge_output, twin.packed = self.check, self.merge_output, self.packed
        twin.command, twin.env, twin.made = self.command, self.env, self.made
        twin.outputs = _Outputs(twin.made, twin.outputs)
        return twin

    def __repr__(self) -> str:
        return f"Command({shown(self.command)})"


class _Outputs(dict[str, File]):
    """Files by path, which says of one that is not there whether it is to come."""

    def __init__(self, made: tuple[str, ...], files: Mapping[str, File]) -> None:
        super().__init__(files)
        self._made = made

    def __missing__(self, path: str) -> File:
        if path in self._made:
            raise UsageError(f"the command's output {path!r} is a file once it is submitted: write manager.submit(command) before that")
        raise UnknownName("output of the command", str(path), {*self, *self._made})


def _refuse_unknown(options: Mapping[str, object]) -> None:
    """Raise `UnknownName` for the first that no command has."""
    for name in (name for name in options if name not in CallKeywords.__annotations__):
        instead = _OF_SUBPROCESS.get(name)
        if instead is not None:
            raise UsageError(f"a command has no option {name!r}: {instead}")
        raise UnknownName("option of a command", name, (*_OWN, *CallKeywords.__annotations__))


def read_command(command: object) -> str | tuple[str, ...]:
    """A text, or words. Raises `UsageError`."""
    if isinstance(command, str) and command.strip() and "\0" not in command:
        return command
    if isinstance(command, Sequence) and not isinstance(command, str | bytes):
        given = cast("Sequence[object]", command)
        words = tuple(_word(given, place, word) for place, word in enumerate(given))
        if words and words[0]:
            return words
    raise UsageError(f"Command({command!r}): write a text for the shell, as in Command('gzip < in > out'), or a list of words")


def _word(command: Sequence[object], place: int, word: object) -> str:
    text: object = os.fspath(cast("os.PathLike[str]", word)) if isinstance(word, os.PathLike) else word
    if not isinstance(text, str):
        instead = f"str({text!r})" if isinstance(text, int | float) else "a text"
        raise UsageError(f"Command({command!r}): word {place} is {text!r}, of type {type(text).__name__}; write {instead}")
    if "\0" in text:
        raise UsageError(f"Command({command!r}): word {place} has a zero byte, which no program can be given; leave it out")
    return text


def read_environment(env: object) -> dict[str, str | None]:
    """Variables of a command. Raises `UsageError`."""
    if env is None:
        return {}
    found: dict[str, str | None] = {}
    for name, value in cast("Mapping[object, object]", env).items() if isinstance(env, Mapping) else [(env, env)]:
        good = isinstance(name, str) and name and "=" not in name and "\0" not in name
        if not good or not (value is None or (isinstance(value, str) and "\0" not in value)) or not isinstance(env, Mapping):
            raise UsageError(f"env={env!r}: write names and texts, as in env={{'LANG': 'C'}}; None takes a variable away")
        found[str(name)] = value if isinstance(value, str) else None
    return found
