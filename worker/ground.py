"""What all processes of one library instance stand on: folders, call queue, rows, the setup, and how an interpreter is executed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec

from windlass import __version__, descriptors, loops
from windlass.memory_files import memory_file
from windlass.messages import HoistedImport, InstanceId, LibrarySpec
from windlass.ownership import make_ours
from windlass.threads import thread_variables
from windlass.worker.callqueue import CallQueue
from windlass.worker.environment import enter
from windlass.worker.guardian import remove_tree
from windlass.worker.slotlink import Rows, Setup, bounded

#: The worker's cache of files, in its scratch folder.
CACHE: Final = "cache"


class Ground:
    """Made when an instance starts, closed when none of its processes lives. Raises `OSError` when the node has no room."""

    def __init__(
        self,
        spec: LibrarySpec,
        instance: InstanceId,
        scratch: Path,
        folder: Path,
        store_folder: Path,
        functions_folder: Path,
        rows: int,
        shortcut: str,
    ) -> None:
        descriptors.allow_many()  # a slot costs the worker three
        self.spec, self.folder = spec, folder
        self.work = folder / "work"
        code = scratch / "code"
        temporary = folder / "tmp"
        #: What calls are told of it: short, as they may make sockets there.
        self._temporary = os.path.join(shortcut, temporary.relative_to(scratch)) if shortcut else str(temporary)
        for path in (scratch, code, folder, self.work, temporary):
            make_ours(str(path))
        folders = (str(store_folder), str(functions_folder), str(code), str(self.work))
        self._setup = Setup(spec, instance, *folders, rows, cache_folder=str(scratch / CACHE), version=__version__)
        #: What runs zygotes and spawned slots.
        self.python = sys.executable
        self._setup_file = -1
        self.dropped: list[HoistedImport] = []
        with ExitStack() as made:
            made.callback(self.remove_folder)
            self.rows_file = memory_file("rows", Rows.size(rows))
            made.callback(os.close, self.rows_file)
            self.rows = Rows(self.rows_file, rows)
            made.callback(self.rows.close)
            self.rows.set_end(float("inf"), False)
            self.queue = CallQueue(str(folder))
            made.callback(self.queue.close)
            self.write_setup()
            made.pop_all()

    def drop(self, module: str, why: str) -> None:
        """Processes that start from now on do without this automatic import."""
        if all(item.module != module for item in self.dropped):
            self.dropped.append(HoistedImport(module, 0.0, f"{why}; it is left to the calls"))
        self.write_setup()

    def write_setup(self) -> None:
        """Give processes that start from now on what is known now."""
        if self._setup_file >= 0:
            os.close(self._setup_file)
        self._setup_file = memory_file("setup")
        with os.fdopen(os.dup(self._setup_file), "wb") as file:
            file.write(msgspec.msgpack.encode(msgspec.structs.replace(self._setup, dropped=tuple(self.dropped))))

    def execute(self, module: str, link: int, extra: Sequence[str], out: int, err: int) -> subprocess.Popen[bytes]:
        """An interpreter in a session of its own that runs `module`; its arguments are ``link QUEUE ROWS SETUP`` and `extra`."""
        passed = (link, self.queue.claims, self.rows_file, self._setup_file)
        # -P: what calls leave in their working directory must not shadow modules.
        with loops.scheduled_as_usual():
            return subprocess.Popen(
                [self.python, "-P", "-m", module, *(str(number) for number in passed), *extra],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                pass_fds=passed,
                env=self._environment(),
                cwd=self.work,
                start_new_session=True,
            )

    def remove_torn(self, slot: int) -> None:
        """A slot with this process id died in a call: remove what it had begun to write of its result."""
        from windlass.worker.keeping import remove_torn

        remove_torn(self._setup, slot)

    def close(self) -> None:
        """Let go of all but the folder."""
        self.queue.close()
        self.rows.close()
        os.close(self.rows_file)
        os.close(self._setup_file)

    def remove_folder(self) -> None:
        """Remove what calls have left behind, as far as that is possible; may take long."""
        remove_tree(str(self.folder))

    def _environment(self) -> dict[str, str]:
        threads = str(self.spec.threads or max(1, int(self.spec.per_slot.cores)))
        inherited = dict(os.environ)
        if self.python != sys.executable:
            enter(inherited, self.python)
        return {
            **inherited,
            **thread_variables(threads, inherited),
            "TMPDIR": self._temporary,
            **dict(self.spec.env),
        }


def quoted(output: bytes) -> str:
    """What a process wrote, for the end of an error's text."""
    text = output.decode(errors="replace").strip()
    return f"; it wrote:\n{bounded(text, 8 << 10)}" if text else ""
