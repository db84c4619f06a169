"""A slow shared file system, for measuring: what a node of a cluster sees, on this machine, with everything that it asks counted.

Theory of operation
-------------------
A `SlowNode` is a simulated node.  What runs on it (`words`) sees the named folders under their own paths, but read-only and through a FUSE
mount that takes ``delay`` seconds for each metadata operation; the node has its own mount, so its own kernel cache, and nothing of what
one node has read is there for another.  Its /tmp and /dev/shm are its own too: its local disk.  The rest of the machine sees the
folders as they are: a manager beside it is the program that runs where the file system is.

The mounts live in a mount namespace of a daemon (`slowfs_daemon`), which ends with this process or before; they go with it.  This needs
Linux, /dev/fuse and root; `missing` says what is not there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from slowfs_daemon import Orders

#: Seconds of a metadata operation, and for how long its answer may be remembered, unless said otherwise.
DELAY: Final = 0.005
VALID: Final = 30.0
#: Seconds that the daemon has to end in.
END_SECONDS: Final = 10.0


class NotServed(Exception):
    """The file system could not be mounted, or its daemon has gone; the text says why."""


@dataclass(frozen=True)
class Counts:
    """What a node has asked of its shared file system."""

    #: By kind (``lookup``, ``getattr``, ``open``, ``opendir``, ``readdir``, ``readlink``, ``read``, …): those that somebody waited for.
    operations: Mapping[str, int] = field(default_factory=dict[str, int])
    #: Bytes by file.
    read: Mapping[str, int] = field(default_factory=dict[str, int])
    #: The most operations that were under way at one time, since the mount.
    at_once: int = 0

    @property
    def total(self) -> int:
        """All operations, reads of data among them."""
        return sum(self.operations.values())

    @property
    def metadata(self) -> int:
        """Operations that are no reads of data."""
        return self.total - self.operations.get("read", 0)

    @property
    def bytes(self) -> int:
        return sum(self.read.values())

    def summed(self, named: Mapping[str, str] | None = None) -> Counts:
        """The same without what was read of which file, but for those that ``named`` has a name for."""
        names, read = named or {}, dict[str, int]()
        for path, size in self.read.items():
            name = names.get(os.path.normpath(path), "")
            read[name] = read.get(name, 0) + size
        return Counts(self.operations, read, self.at_once)

    def __sub__(self, earlier: Counts) -> Counts:
        """What was asked since."""
        return Counts(_less(self.operations, earlier.operations), _less(self.read, earlier.read), self.at_once)

    def __add__(self, other: Counts) -> Counts:
        """What two nodes have asked."""
        names = {*self.operations, *other.operations}
        files = {*self.read, *other.read}
        return Counts(
            {name: self.operations.get(name, 0) + other.operations.get(name, 0) for name in sorted(names)},
            {name: self.read.get(name, 0) + other.read.get(name, 0) for name in sorted(files)},
            max(self.at_once, other.at_once),
        )


def _less(now: Mapping[str, int], then: Mapping[str, int]) -> dict[str, int]:
    return {name: count - then.get(name, 0) for name, count in now.items() if count > then.get(name, 0)}


def missing() -> str:
    """What keeps this machine from having slow nodes; "" if nothing does."""
    if sys.platform != "linux":
        return "this is not Linux"
    if os.geteuid() != 0:
        return "only root may mount"
    if shutil.which("nsenter") is None:
        return "there is no nsenter; it is in Debian's util-linux"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    return ""


def separate(folders: Sequence[Path | str]) -> list[str]:
    """The folders without links, and without those that lie in another of them."""
    paths = sorted({Path(folder).resolve() for folder in folders})
    return [str(path) for path in paths if not any(other in path.parents for other in paths)]


class SlowNode:
    """A node that has ``folders`` on a slow shared file system; use it with ``with``.

    ``local``: an empty folder, the node's own disk. ``delay``: seconds of a metadata operation; reads of data take none. ``valid``: seconds
    for which the node's kernel remembers what it was told. Raises `NotServed`.
    """

    def __init__(
        self, folders: Sequence[Path | str], local: Path | None = None, *, name: str = "node", delay: float = DELAY, valid: float = VALID
    ):
        self.name = name
        self._local = local
        self.folders = separate(folders)
        problem = missing()
        if problem:
            raise NotServed(f"no slow file system here: {problem}")
        orders = Orders(self.folders, delay, valid, name, str(local) if local else "")
        # A session of its own: Ctrl-C is for the program, whose end this process then sees.
        self._daemon = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("slowfs_daemon.py")), json.dumps(asdict(orders))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            said = self._hear()
            if said["problem"]:
                raise NotServed(f"cannot mount for {name}: {said['problem']}")
        except BaseException:
            self.close()
            raise
        self._namespaces: str = said["namespaces"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exit: object) -> None:
        self.close()

    def words(self, command: Sequence[str]) -> list[str]:
        """The command's words for running it on this node."""
        return ["nsenter", f"--mount={self._namespaces}/mnt", f"--uts={self._namespaces}/uts", *command]

    def write_shell(self, path: Path) -> Path:
        """Write a program that is this node's ``/bin/sh``: a pool with ``shell=`` it has its pilots here.

        A script is copied to the node's disk before, if it has one, as a batch system brings it there with the job.
        """
        spool = f'if [ -f "$1" ]; then cp "$1" {self._local}/script$$; shift; set -- /tmp/script$$ "$@"; fi\n' if self._local else ""
        path.write_text(f'#!/bin/sh\n{spool}exec {" ".join(self.words(["/bin/sh"]))} "$@"\n')
        path.chmod(0o755)
        return path

    def counts(self) -> Counts:
        """What was asked so far. Raises `NotServed`."""
        assert self._daemon.stdin is not None
        try:
            self._daemon.stdin.write("counts\n")
            self._daemon.stdin.flush()
        except OSError as error:
            raise NotServed(f"the daemon of {self.name} has gone: {error.strerror}") from error
        return Counts(**self._hear())

    def close(self) -> None:
        """Unmount; what still runs on the node gets errors from the folders. May be called again."""
        for stream in (self._daemon.stdin, self._daemon.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            self._daemon.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()

    def _hear(self) -> dict[str, Any]:
        assert self._daemon.stdout is not None
        line = self._daemon.stdout.readline()
        if not line:
            raise NotServed(f"the daemon of {self.name} has gone, with status {self._daemon.wait()}")
        said: dict[str, Any] = json.loads(line)
        return said
