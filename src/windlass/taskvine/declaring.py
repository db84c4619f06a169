"""The files of TaskVine's manager: its ``declare_*``, and what can be done with what they give."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import windlass
from windlass.errors import UsageError
from windlass.manager.command import Command
from windlass.taskvine.files import BUFFER, LOCAL, TEMP, File, Places
from windlass.taskvine.outcomes import no_effect
from windlass.taskvine.standing import Standing
from windlass.taskvine.tasks import Task

if TYPE_CHECKING:
    from windlass.messages import Level

#: Poncho's packages put their paths right by themselves when they are used first.
_UNPACK_PONCHO: Final = (
    "mkdir output && tar -xf package.tar.gz -C output && { [ ! -x output/bin/run_in_env ] || output/bin/run_in_env true; }"
)
_LEVELS: dict[object, Level] = {
    False: "call",
    True: "workflow",
    "task": "call",
    "workflow": "workflow",
    "worker": "worker",
    "forever": "forever",
    "always": "forever",
    "never": "call",
}


class Declares(Standing):
    """A manager's files. ``cache``: how long copies stay on workers: False or "task", True or "workflow", "worker", "forever"."""

    _places: Places

    def declare_file(
        self, path: str | os.PathLike[str], cache: Any = False, peer_transfer: bool = True, unlink_when_done: bool = False
    ) -> File:
        """A file or folder of this machine, which tasks read, or which becomes what a task writes: who reads that runs when it is here.

        It is read anew when it has changed; a folder with more than 1,000 files that is declared for longer than a task only if a task has
        written there."""
        self._passed(peer_transfer)
        text: str = os.path.expanduser(os.fspath(path))
        if "$OS" in text or "$ARCH" in text:
            raise UsageError(f"declare_file({text!r}): $OS and $ARCH are not here, as workers run Linux: name the file")
        return File(self.manager, LOCAL, text, _level(cache), unlink_when_done=unlink_when_done, place=self._places.at(text))

    def declare_buffer(self, buffer: bytes | str | None = None, cache: Any = False, peer_transfer: bool = True) -> File:
        """Bytes or text that tasks read; without them, what a task writes, for `File.contents`."""
        self._passed(peer_transfer)
        if buffer is not None and not isinstance(buffer, bytes | bytearray | str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"declare_buffer takes bytes or text, not {type(buffer).__name__}")
        data = buffer.encode() if isinstance(buffer, str) else bytes(buffer) if buffer is not None else None
        return File(self.manager, BUFFER, "buffer", _level(cache), data=data)

    def declare_url(self, url: str, cache: Any = False, peer_transfer: bool = True) -> File:
        """What is at an http, https or file address."""
        self._passed(peer_transfer)
        level = _level(cache)
        return self._at_once("url", url, level, lambda: self.manager.declare_url(url, level=level))

    def declare_temp(self) -> File:
        """What a task writes and others read, and what stays on workers."""
        return File(self.manager, TEMP, "temp", "workflow")

    def declare_untar(self, tarball: File, cache: Any = False, peer_transfer: bool = True) -> File:
        """The folder that an archive (tar or zip) is unpacked to, once on each worker."""
        self._passed(peer_transfer)
        level = _level(cache)
        if not isinstance(tarball, File):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"declare_untar({tarball!r}): write declare_untar(manager.declare_file('archive.tar.gz'))")
        return self._at_once("untar", tarball.source(), level, lambda: self.manager.declare_archive(tarball.settled().for_reading(), level))

    def declare_minitask(self, minitask: Task, source: str, cache: Any = False, peer_transfer: bool = True) -> File:
        """What a command makes under the path ``source``, when a task needs it, on a worker."""
        self._passed(peer_transfer)
        level = _level(cache)
        if type(minitask) is not Task or not isinstance(source, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"declare_minitask({minitask!r}, {source!r}): write declare_minitask(Task('command'), 'path that it makes')")
        return self._at_once("minitask", minitask.command, level, lambda: self._made_by(minitask, source, level))

    declare_mini_task = declare_minitask

    def _made_by(self, task: Task, source: str, level: Level) -> windlass.File:
        inputs, env = task.inputs_and_variables()
        command = Command(task.line, inputs=inputs, outputs=[source], env=env)
        return self.manager.declare_minitask(command, os.path.basename(source), level)

    def _at_once(self, kind: str, source: str, level: Level, declare: Callable[[], windlass.File]) -> File:
        declared = declare()  # what is wrong is told where it is written
        return File(self.manager, kind, source, level, lambda: declared)

    def declare_poncho(self, package: File | str | os.PathLike[str], cache: Any = False, peer_transfer: bool = True) -> File:
        """The folder of an archive with a whole environment (``windlass environment pack``, Poncho, conda-pack), unpacked once on each
        worker, for `Task.add_poncho_package`."""
        return self._made_of("package.tar.gz", _UNPACK_PONCHO, package, cache, peer_transfer)

    def declare_starch(self, package: File | str | os.PathLike[str], cache: Any = False, peer_transfer: bool = True) -> File:
        """The folder that a program of Starch unpacks itself to, once on each worker, for `Task.add_starch_package`."""
        return self._made_of("package.sfx", "SFX_DIR=output SFX_EXTRACT_ONLY=1 ./package.sfx", package, cache, peer_transfer)

    def _made_of(self, name: str, command: str, package: File | str | os.PathLike[str], cache: Any, peer_transfer: bool) -> File:
        make = Task(command)
        make.add_input(package if isinstance(package, File) else self.declare_file(package, cache=True), name)
        return self.declare_minitask(make, "output", cache, peer_transfer)

    def declare_xrootd(self, source: str, *_: Any, **__: Any) -> File:
        raise UsageError(
            f"declare_xrootd({source!r}) is not here: fetch it in a mini task: declare_minitask(Task('xrdcp ... data'), 'data')"
        )

    def declare_chirp(self, server: str, *_: Any, **__: Any) -> File:
        raise UsageError(
            f"declare_chirp({server!r}, ...) is not here: fetch it in a mini task: declare_minitask(Task('chirp_get ...'), 'data')"
        )

    def fetch_file(self, file: File) -> str:
        """The content of a file, which is on workers or here, as text, as TaskVine gives it. `File.contents` has the bytes.

        What is not UTF-8 is in the text as Python has it in names of files: ``text.encode("utf-8", "surrogateescape")`` is the bytes."""
        found: bytes = file.contents()
        return found.decode("utf-8", "surrogateescape")

    def prune_file(self, file: File) -> None:
        """Remove its copies on workers."""
        file.prune()

    def undeclare_file(self, file: File) -> None:
        """Nobody needs it any more: its copies go, and with ``unlink_when_done`` it goes itself."""
        file.undeclare()

    remove_file = undeclare_file

    def undeclare_function(self, fn: object) -> None:
        """Nothing is to be done: functions go when nobody needs them."""

    def get_file_replica_count(self, file: File) -> int:
        """How many workers have it."""
        native = file.for_reading()
        return sum(one["replicas"] for one in self.manager.status()["files"] if one["name"] == native.name)

    def _passed(self, peer_transfer: bool) -> None:
        if not peer_transfer:
            no_effect("peer_transfer=False", "workers may read from each other, and compare what they got with its name")


def _level(cache: Any) -> Level:
    try:
        return _LEVELS[cache]
    except (KeyError, TypeError):
        raise UsageError(f"cache={cache!r}: write False or 'task', True or 'workflow', 'worker', or 'forever'") from None
