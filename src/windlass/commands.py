"""Commands in slots: what runs one there, and what is told of its end.

Theory of operation
-------------------
A command is a call of `run_command` in a library of Windlass's own, one for each number of GPUs (`library_of`), so that placement, options,
attempts, files, time limits and cancelling are those of calls.  The call has a directory of its own (`windlass.worker.room`), in which the
command starts.

*Whatever it started ends with it.*  The command stays in the process group of its slot, which is killed with the slot.  And while a slot
runs commands it is the parent of all below it whose own parent has ended, so that when the command is over, nothing below the slot stays.

*What it writes* goes where the slot's own output goes, which the worker holds too: so it is there even when the slot was killed, for being
too slow, say.  Less than `OUTPUT_MOST` bytes of each stream come back whole; of more, beginning and end.

A command that ends with another exit code than 0, or without having made its outputs, raises `CommandFailed` (so that ``retry_on`` knows
it), unless it is run with ``check=False``: then whatever became of it is a result.  One that the kernel has killed as the pilot's memory
ran out is out of memory, as any call is that has more than its share when that happens: the counts of its cgroup tell (`kills_here`).
"""

from __future__ import annotations

import os
import signal as signals
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from windlass.errors import CommandFailed
from windlass.threads import thread_variables

if TYPE_CHECKING:
    import tarfile

    from windlass.worker.memory import Cgroup

#: Its libraries' names begin with this.
LIBRARY: Final = "windlass.commands"
#: Bytes of a stream that come back whole. The worker gives back the middle of longer ones (`windlass.worker.capture.TRIM_BYTES`).
OUTPUT_MOST: Final = 8 << 20
#: Of longer ones, so many at either end; and of each in the text of an error.
ENDS_BYTES: Final = 32 << 10
TAIL_BYTES: Final = 2 << 10
#: A shell gives this much more than the signal's number when what it ran last was killed.
_SHELL_SIGNAL: Final = 128
_NOT_FOUND: Final = 127
_NOT_EXECUTABLE: Final = 126
_PR_SET_CHILD_SUBREAPER: Final = 36
#: How long what was killed may take to end, in seconds: it may hang in the kernel, or be another user's.
_LEFT_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What became of a command."""

    #: What it ended with; of one that was killed by a signal, the signal's number below zero.
    exit_code: int
    #: What it wrote: whole below 8 MiB each, else the first and last 32 KiB. With ``merge_output`` all of it is in ``stdout``.
    stdout: str = ""
    stderr: str = ""
    #: Outputs that it was to make and that are not there as files or folders.
    missing: tuple[str, ...] = ()
    #: How long it ran, and processor time it took.
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    #: The most bytes of memory that one process of it had, and at least what its slot has had: Linux counts a program from its parent on.
    #: So of a small command it says that it needed no more than this, which is some 15 MB, and up to 100 MB once one has written 8 MiB.
    peak_memory: int = 0
    #: Where it ran.
    host: str = ""
    #: Outputs that were folders and have become tar archives, as was asked for.
    packed: tuple[str, ...] = field(default=(), repr=False)
    #: Outputs that are files which may be executed.
    executable: tuple[str, ...] = field(default=(), repr=False)

    @property
    def successful(self) -> bool:
        """It ended with exit code 0 and has made its outputs."""
        return not self.exit_code and not self.missing

    @property
    def signal(self) -> int:
        """The signal that killed it, as far as is known; 0: none."""
        return signal_of(self.exit_code)

    def check(self, command: str = "the command") -> None:
        """Raise `CommandFailed` if it was not successful."""
        if not self.successful:
            raise failure_of(self, command)


class KilledForMemory(Exception):
    """A command that the kernel has ended as the pilot's memory ran out. In a slot only: its call ends as out of memory.

    ``otherwise``: what it is if the worker knows that it was another process (`windlass.worker.watch`).
    """

    def __init__(self, text: str, peak_memory: int, otherwise: CommandFailed) -> None:
        super().__init__(text)
        self.peak_memory, self.otherwise = peak_memory, otherwise


def failure_of(result: CommandResult, command: str, kills: int = 0) -> CommandFailed | KilledForMemory:
    """What to raise where it was not successful. ``kills``: processes of its pilot that the kernel has ended for memory while it ran."""
    killed = kills > 0 and result.signal == signals.SIGKILL
    how = f"{command} {how_ended(result.exit_code, result.missing)}"
    beside = "; while it ran the kernel ended something in this pilot because its memory ran out" if kills > 0 else ""
    tail = (result.stderr or result.stdout)[-TAIL_BYTES:].strip()
    end = f"; the end of what it wrote:\n{tail}" if tail else ""
    failed = CommandFailed(
        f"{how}{beside}{end}",
        exit_code=result.exit_code,
        signal=result.signal,
        stdout=_short(result.stdout),
        stderr=_short(result.stderr),
        missing=result.missing,
    )
    if not killed:
        return failed
    why = ": the kernel ended it because the pilot's memory ran out; give it more: memory=..., or memory='auto'"
    return KilledForMemory(f"{how}{why}{end}", result.peak_memory, failed)


def library_of(gpus: int) -> str:
    """The name of the library of commands that are given so many GPUs."""
    return f"{LIBRARY}-{gpus}gpu" if gpus else LIBRARY


def gpus_of(library: str) -> int:
    """For how many GPUs a library of this name is; -1: it is not one of commands."""
    number = library.removeprefix(f"{LIBRARY}-").removesuffix("gpu")
    if library == LIBRARY:
        return 0
    return int(number) if number.isdecimal() and library_of(int(number)) == library else -1


def signal_of(exit_code: int) -> int:
    """The signal that ended a command, or what its shell ran last; 0: none."""
    number = -exit_code if exit_code < 0 else exit_code - _SHELL_SIGNAL
    return number if 0 < number < signals.NSIG else 0


def how_ended(exit_code: int, missing: Sequence[str] = ()) -> str:
    """An end in words."""
    number = signal_of(exit_code)
    if exit_code < 0:
        how = f"was killed by signal {number} ({_signal_name(number)})"
    elif number:
        how = f"ended with exit code {exit_code}, as shells say when what they ran was killed by signal {number} ({_signal_name(number)})"
    elif exit_code == _NOT_FOUND:
        how = "ended with exit code 127, as shells say when there is no such program: give it as an input, or say where it is (env PATH)"
    elif exit_code == _NOT_EXECUTABLE:
        how = "ended with exit code 126, as shells say when a file cannot be executed"
    elif exit_code or not missing:
        how = f"ended with exit code {exit_code}"
    else:
        how = "ended well"
    if missing:
        files = " and ".join(map(repr, missing))
        how += f", but its output {files} is not there" if not exit_code else f", and its output {files} is not there"
    return how


def run_command(
    command: str | Sequence[str],
    outputs: Sequence[str] = (),
    env: Mapping[str, str | None] | None = None,
    *,
    check: bool = True,
    merge_output: bool = False,
    threads: int = 0,
    makes: str = "",
    pack: Sequence[str] = (),
) -> CommandResult | str:
    """In a slot, in the call's own directory: run a command, by the shell if it is a text.

    ``outputs``: paths that are to be there when it has ended. ``env``: variables that it gets beside those of the pilot (None: does not
    get). ``threads``: how many numerical libraries are told to start. ``makes``: it is one of a mini task, whose result is this path.
    ``pack``: those of the outputs that become tar archives if they are folders.

    Raises `CommandFailed` as said above, or `KilledForMemory`.
    """
    import time

    inputs = _linked_here() if pack else ()
    kills = kills_here()
    started = time.monotonic()
    status, cpu_seconds, peak_memory = _run(command, _environment(env or {}, threads), merge_output)
    seconds = time.monotonic() - started
    wanted = (makes,) if makes else outputs
    missing = tuple(path for path in wanted if not _is_made(path))
    code, host = os.waitstatus_to_exitcode(status), os.uname().nodename
    packed = tuple(path for path in pack if path not in missing and os.path.isdir(path) and _is_here(path))
    for path in packed:
        _pack(path, inputs)
    executable = tuple(path for path in outputs if path not in missing and os.path.isfile(path) and os.access(path, os.X_OK))
    result = CommandResult(code, _written(1), _written(2), missing, seconds, cpu_seconds, peak_memory, host, packed, executable)
    if check and not result.successful:
        raise failure_of(result, f"the command {shown(command)}", kills_here() - kills)
    return makes or result


def shown(command: str | Sequence[str]) -> str:
    """A command in the text of an error."""
    import shlex

    text = command if isinstance(command, str) else shlex.join(command)
    return repr(text if len(text) <= 200 else f"{text[:150]} ... {text[-40:]}")


def _run(command: str | Sequence[str], env: dict[str, str], merge_output: bool) -> tuple[int, float, int]:
    """Its status of wait(2), seconds of processor time, and peak memory."""
    import subprocess

    from windlass.worker.slotproc import kill_below

    _be_parent_of_orphans()
    words = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
    try:
        # What is left of a group that it makes of its own, or a session, is still below us.
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, env=env, stderr=1 if merge_output else None)  # noqa: S603,RUF100
    except OSError as error:
        what = repr(words[0][:200])
        code = _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
        raise CommandFailed(f"the program {what} cannot be started on the worker: {error.strerror or error}", exit_code=code) from None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    own = os.getpid()
    kill_below(own)
    until = time.monotonic() + _LEFT_SECONDS
    with suppress(ChildProcessError):
        while True:
            if os.waitpid(-1, os.WNOHANG)[0]:
                kill_below(own)  # children of what has just ended are ours now
            elif time.monotonic() < until:
                time.sleep(0.001)
            else:
                break
    return status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def _is_made(path: str) -> bool:
    """A file or folder is there. A link to one becomes a copy: what it leads to may be elsewhere, or an input, which is the cache's.

    What a linked folder leads out of the call's own directory is not touched: `windlass.worker.room` refuses it. Nor is a link to a folder
    that has this directory in it something that a command makes: a copy would hold itself.
    """
    if not (os.path.isfile(path) or os.path.isdir(path)):
        return False
    if os.path.islink(path) and _is_here(path):
        import shutil

        copy = _beside(path)
        if os.path.isdir(path):
            if f"{os.getcwd()}/".startswith(os.path.join(os.path.realpath(path), "")):
                os.unlink(path)
                return False
            shutil.copytree(path, copy, symlinks=True)
        else:
            shutil.copyfile(path, copy)
            # It may lead to a program; and to an input, which is for reading only.
            os.chmod(copy, os.stat(copy).st_mode & 0o777 | os.stat(path).st_mode & 0o111)
        os.unlink(path)
        os.rename(copy, path)
    return True


def _is_here(path: str) -> bool:
    """The folder that it is in is the call's own directory, or in that."""
    return f"{os.path.realpath(os.path.dirname(path))}/".startswith(os.path.join(os.getcwd(), ""))


def _beside(path: str) -> str:
    """A path in the same folder that the command has not made."""
    return f"{path}.{os.urandom(8).hex()}"


def _linked_here() -> tuple[str, ...]:
    """What links in the call's own directory lead to: of one that nothing has run in, its inputs."""
    found: list[str] = []
    for below, folders, files in os.walk("."):
        paths = (os.path.join(below, name) for name in folders + files)
        found += [os.path.realpath(path) for path in paths if os.path.islink(path)]
    return tuple(found)


def _pack(path: str, inputs: Sequence[str] = ()) -> None:
    """Have a tar archive in a folder's place, which is unpacked on another machine.

    Links to inputs (commands move them into folders), and to what else is in the call's own directory, would lead nowhere there: what
    they lead to goes instead. Other links stay what they are.
    """
    import shutil
    import tarfile

    archived = _beside(path)
    with tarfile.open(archived, "w") as archive:
        folder = os.path.realpath(path)
        _add_to(archive, folder, ".", folder, (), (os.getcwd(), *inputs))
    shutil.rmtree(path)
    os.rename(archived, path)


def _add_to(archive: tarfile.TarFile, path: str, name: str, tree: str, around: tuple[str, ...], ours: Sequence[str]) -> None:
    """``tree``: the folder that is added as it is, in which ``path`` is; ``around``: all folders, real paths, which are being added."""
    followed = _followed(path, tree, around, ours) if os.path.islink(path) else ""
    if followed:
        path = tree = followed
    info = archive.gettarinfo(path, name)
    if info is None:  # pyright: ignore[reportUnnecessaryComparison]  # a socket
        return
    if followed:
        info.mode |= 0o200  # copies of inputs are for reading
    if info.isreg():
        with open(path, "rb") as file:
            archive.addfile(info, file)
        return
    archive.addfile(info)
    if info.isdir():
        for child in sorted(os.listdir(path)):
            _add_to(archive, f"{path}/{child}", f"{name}/{child}", tree, (*around, path), ours)


def _followed(link: str, tree: str, around: tuple[str, ...], ours: Sequence[str]) -> str:
    """What a link leads to, if that is to go in its place; "": the link itself."""
    target = os.readlink(link)
    if not os.path.isabs(target) and _is_in(os.path.normpath(os.path.join(os.path.dirname(link), target)), tree):
        return ""
    real = os.path.realpath(link)
    goes = (os.path.isfile(real) or os.path.isdir(real)) and any(_is_in(real, one) for one in ours)
    # A folder that it is in itself would have no end.
    return real if goes and not any(_is_in(one, real) for one in around) else ""


def _is_in(path: str, folder: str) -> bool:
    return f"{path}/".startswith(os.path.join(folder, ""))


_groups: list[Cgroup] | None = None


def kills_here() -> int:
    """How often the kernel has ended a process of this pilot for memory, where the batch system limits that; else 0."""
    from windlass.worker import memory

    global _groups
    if _groups is None:
        _groups = memory.own_cgroups()
    return memory.oom_kills(_groups)


_is_parent_of_orphans = False


def _be_parent_of_orphans() -> None:
    global _is_parent_of_orphans
    if not _is_parent_of_orphans:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        _is_parent_of_orphans = True


def _environment(more: Mapping[str, str | None], threads: int) -> dict[str, str]:
    env = dict(os.environ)
    if threads:
        env.update(thread_variables(str(threads), env))
    env["WINDLASS_SANDBOX"] = os.getcwd()
    for name, value in more.items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    return env


def _written(descriptor: int) -> str:
    """What stands in the slot's output, which stays there: the slot takes it, bounded, for the call's own record."""
    size = os.fstat(descriptor).st_size
    if size < OUTPUT_MOST:
        return os.pread(descriptor, size, 0).decode("utf-8", "replace")
    head, tail = os.pread(descriptor, ENDS_BYTES, 0), os.pread(descriptor, ENDS_BYTES, size - ENDS_BYTES)
    return _joined(head.decode("utf-8", "replace"), tail.decode("utf-8", "replace"), size - 2 * ENDS_BYTES)


def _short(text: str) -> str:
    most = ENDS_BYTES
    return text if len(text) <= 2 * most else _joined(text[:most], text[-most:], len(text) - 2 * most)


def _joined(head: str, tail: str, left_out: int) -> str:
    return f"{head}\n... {left_out} bytes left out ...\n{tail}"


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return "a real-time signal"
