"""Nothing that a worker started outlives it, also when it is killed with SIGKILL.

Theory of operation
-------------------
The guardian is a child of the worker, forked as its very first act: no thread exists yet and little memory is in use. It is a
session of its own, ignores the signals that batch systems send to every process of a job, and waits for a pipe of which the
worker alone holds the other end. Over the pipe the worker tells it the folders and links that it is about to make (``folder PATH``) and
which sessions its zygotes and slots lead now (``sessions ID ID ...``). If the pipe ends with ``done``, all was put in order and the
guardian exits. If it just ends, the worker was killed: the guardian ends what it started and removes the folders. Each entry ends
with a NUL, which no path has: the first piece of one in two would be a folder of somebody's. Nor is anything removed that has no
name such as Windlass gives.

What the worker started is found by a mark: an unguessable token in the variable `VARIABLE`, set before the first library
starts, which every process below inherits and which /proc shows as it was at the process's exec, whatever becomes of its
parents, groups and sessions. A worker inside a call of another worker adds its token to the one it inherited, so that the outer
guardian finds everything of the inner one too. A process that clears its environment is still found in its slot's session; only
one that does both, clear its environment and leave the session, is not.

What serves the image that the worker runs in is no child of the worker: `windlass.worker.image` finds it, and the guardian ends it last,
as it lives off it itself.

Processes are looked for again and again until two looks in a row find none, since one may fork while it is being looked at.

Resource trackers, of multiprocessing and of joblib's loky, come last: they take away the semaphores and the shared memory of those that
used them once all of these have ended, and then end by themselves. A call that has used joblib would leave them on the node for ever.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import time
from collections.abc import Collection
from typing import Final, NoReturn

from windlass.worker.image import Servers

#: Names, in the environment of everything below a worker, the workers above it.
VARIABLE: Final = "WINDLASS_WORKER_ID"
#: A process in the kernel's hands (disk sleep) may not end: after so many seconds the guardian gives up on it.
PATIENCE_SECONDS: Final = 10.0
#: Seconds that resource trackers have for their work.
TRACKER_SECONDS: Final = 1.0
#: What Python and loky have a tracker run, as the argument behind ``-c``.
_TRACKERS_CODE: Final = re.compile(rb"\0-c\0from [\w.]*resource_tracker import main;")

_IGNORED: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGQUIT,
    signal.SIGTSTP,
    signal.SIGPIPE,
)


class Guardian:
    """The worker's end of the pipe."""

    def __init__(self) -> None:
        """Fork the guardian. Call this before any thread exists."""
        self.token = os.urandom(12).hex()
        self._sessions: frozenset[int] = frozenset()
        read_end, self._pipe = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _guard(read_end, self.token)
        os.close(read_end)
        os.set_blocking(self._pipe, False)  # a guardian that somebody has stopped must not stop the worker
        outer = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = f"{outer}/{self.token}" if outer else self.token

    def folder(self, path: str | os.PathLike[str]) -> None:
        """This folder or link (``windlass-...``) is the worker's own and goes with it. To be told before it is made: a SIGKILL in
        between would leave it."""
        self._tell("folder", os.fspath(path))

    def sessions(self, leaders: Collection[int]) -> None:
        """The sessions that the worker's processes lead now. A leader that is gone is not told again: its number may be another's soon."""
        current = frozenset(leaders)
        if current != self._sessions:
            self._sessions = current
            # More than 4,096 bytes might be written in part. What is left out is still found by its mark.
            self._tell("sessions", " ".join(map(str, sorted(current)[:400])))

    def release(self) -> None:
        """All is in order: the guardian leaves. Waits for that, which takes a millisecond."""
        if self._pipe < 0:
            return
        try:
            os.set_blocking(self._pipe, True)
            os.kill(self.pid, signal.SIGCONT)
            self._tell("done", "")
            os.close(self._pipe)
            self._pipe = -1
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass

    def sweep(self) -> int:
        """End everything marked as this worker's that is still there; returns how many processes that were."""
        return end_marked(self.token, self._sessions, {os.getpid(), self.pid})

    def _tell(self, word: str, value: str) -> None:
        try:
            os.write(self._pipe, os.fsencode(f"{word} {value}\0"))
        except OSError:  # the guardian was killed: the worker works on, and its own end stays orderly
            pass


def end_marked(token: str, sessions: Collection[int], spare: Collection[int]) -> int:
    """SIGKILL every process marked with `token` or in one of `sessions`, but not `spare`; returns how many."""
    killed: set[int] = set()
    until, trackers_until = time.monotonic() + PATIENCE_SECONDS, time.monotonic() + TRACKER_SECONDS
    since = _own_start()
    quiet = 0
    while quiet < 2 and time.monotonic() < until:
        found = [pid for pid in marked(token, sessions, since) if pid not in spare]
        quiet = 0 if found else quiet + 1
        for pid in found:
            if time.monotonic() < trackers_until and is_tracker(pid):
                continue
            killed.add(pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        if found:
            time.sleep(0.005)
    return len(killed)


def marked(token: str, sessions: Collection[int] = (), since: int = 0) -> list[int]:
    """The living processes that have `token` in `VARIABLE`, or belong to one of `sessions`.

    Of sessions only what began at `since` (ticks since the boot) or later: an older process with the number of a session that is
    gone is not the worker's.
    """
    key, value = f"{VARIABLE}=".encode(), token.encode()
    found: list[int] = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb", buffering=0) as file:
                block = _read_all(file.fileno())
            if value in block and any(entry.startswith(key) and value in entry for entry in block.split(b"\0")):
                found.append(int(name))
            elif sessions:
                with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
                    fields = _read_all(file.fileno()).rpartition(b") ")[2].split()
                if int(fields[3]) in sessions and fields[0] not in b"ZX" and int(fields[19]) >= since:
                    found.append(int(name))
        except (OSError, IndexError, ValueError):
            continue  # gone, or another user's
    return found


def is_tracker(pid: int) -> bool:
    """Whether a process is a resource tracker (see above), by its command line."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
            return _TRACKERS_CODE.search(_read_all(file.fileno())) is not None
    except OSError:
        return False


def _own_start() -> int:
    """When this process began: a guardian or a worker, before anything that they end."""
    with open("/proc/self/stat", "rb", buffering=0) as file:
        return int(_read_all(file.fileno()).rpartition(b") ")[2].split()[19])


def remove_tree(path: str) -> None:
    """Remove a folder and all in it, as far as that is possible; links are not followed."""
    folders = [path]
    for folder in folders:  # which grows: no recursion, trees may be deep
        try:
            mode = os.stat(folder, follow_symlinks=False).st_mode
            if not stat.S_ISDIR(mode):
                os.unlink(folder)  # a link, or a file, that somebody has put in its place
                continue
            if mode & 0o700 != 0o700:
                os.chmod(folder, 0o700)  # a call has taken its rights away
            with os.scandir(folder) as entries:
                children = list(entries)
        except OSError:
            continue
        for entry in children:
            try:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    os.unlink(entry.path)
            except OSError:
                continue
    for folder in reversed(folders):
        try:
            os.rmdir(folder)
        except OSError:
            continue


def _guard(read_end: int, token: str) -> NoReturn:
    """The guardian's life."""
    status = 1
    try:
        servers = Servers(os.getppid()) if os.environ.get("WINDLASS_CONTAINER") else None
        os.setsid()
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        _keep_only(read_end)
        os.chdir("/")
        orderly, folders, sessions = _listen(read_end)
        if not orderly:
            end_marked(token, sessions, {os.getpid()})
            for folder in folders:
                remove_tree(folder)
            if servers is not None:
                servers.end()
        status = 0
    finally:
        os._exit(status)


def _listen(read_end: int) -> tuple[bool, list[str], set[int]]:
    """Read until the pipe ends: whether that was orderly, the folders and the newest sessions."""
    folders: list[str] = []
    sessions: set[int] = set()
    orderly = False
    rest = b""
    while chunk := os.read(read_end, 65536):
        *entries, rest = (rest + chunk).split(b"\0")
        for entry in entries:
            word, _, value = os.fsdecode(entry).partition(" ")
            if word == "folder" and os.path.isabs(value) and os.path.basename(value).startswith("windlass-"):
                folders.append(value)
            elif word == "sessions":
                sessions = {int(number) for number in value.split() if number.isdigit()}
            elif word == "done":
                orderly = True
    return orderly, folders, sessions


def _keep_only(descriptor: int) -> None:
    """Close everything else, so that no pipe or socket of the worker's stays open because of the guardian."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, max(1024, null + 1))


def _read_all(descriptor: int) -> bytes:
    """All of a file of /proc, whose size is not known before."""
    pieces: list[bytes] = []
    while piece := os.read(descriptor, 1 << 16):
        pieces.append(piece)
    return b"".join(pieces)
