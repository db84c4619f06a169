"""What the fault matrix does to processes and disks: signals, cut socket pairs, the kernel's lack of memory, full disks; and whom it hits.

Theory of operation
-------------------
Processes are found by the mark in their environment (`recording.MARK`) and told apart by their command lines: a worker's guardian has
the worker's words and is the worker's child; a slot has its zygote's and is the zygote's child.

*A connection inside of a node* is cut from outside, by taking the process's own descriptor (``pidfd_getfd``) and shutting it down: both
ends see what they would see if the other one had gone.

*Lack of memory* is the kernel's: the victim moves into a memory cgroup of its own with a hog, and is the one that the kernel
prefers to kill; the hog takes more than the group may have.

*A full disk* is a small file system (tmpfs) that a file fills to its last byte; it is mended by removing the file.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Final

from recording import marked_processes, parent_of, words_of

WORKER: Final = "windlass.worker"
ZYGOTE: Final = "windlass.worker.zygote"
_PIDFD_GETFD: Final = 438  # the same number on every architecture
HOG: Final = """
import os, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
print(flush=True)
input()
taken = os.memfd_create("hog")
while True:
    os.write(taken, bytes(1 << 20))
"""
#: What a group of victim and hog may have.
GROUP_BYTES: Final = 48 << 20
#: How long the kernel may take.
KILL_SECONDS: Final = 10.0


# ---------------------------------------------------------------- whom


def _of(mark: str, module: str) -> list[int]:
    return [pid for pid in marked_processes(mark) if module in words_of(pid)]


def workers(mark: str) -> list[int]:
    """Workers, without their guardians."""
    return sorted(pid for pid in _of(mark, WORKER) if WORKER not in words_of(parent_of(pid)))


def zygotes(mark: str) -> list[int]:
    return sorted(pid for pid in _of(mark, ZYGOTE) if ZYGOTE not in words_of(parent_of(pid)))


def slots(mark: str) -> list[int]:
    return sorted(pid for pid in _of(mark, ZYGOTE) if ZYGOTE in words_of(parent_of(pid)))


# ---------------------------------------------------------------- signals


def send(number: int, pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def stopped(*pids: int) -> Generator[None]:
    """SIGSTOP, and SIGCONT at the end."""
    send(signal.SIGSTOP, pids)
    try:
        yield
    finally:
        send(signal.SIGCONT, pids)


# ---------------------------------------------------------------- connections


def sockets_of(pid: int) -> list[int]:
    """Descriptors of a process that are sockets."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                    found.append(int(name))
    return sorted(found)


@contextlib.contextmanager
def taken(pid: int, descriptor: int) -> Generator[socket.socket]:
    """The same socket as the process's, for a moment. Raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        number = libc.syscall(_PIDFD_GETFD, pidfd, descriptor, 0)
        if number < 0:
            raise OSError(
                ctypes.get_errno(), f"descriptor {descriptor} of process {pid} cannot be taken: {os.strerror(ctypes.get_errno())}"
            )
    finally:
        os.close(pidfd)
    with socket.socket(fileno=number) as one:
        yield one


def cut(pid: int, family: int, kind: int) -> int:
    """Shut down all connected sockets of this family and kind that a process has; how many there were."""
    count = 0
    for descriptor in sockets_of(pid):
        with contextlib.suppress(OSError), taken(pid, descriptor) as one:
            if one.family == family and one.type == kind:
                one.getpeername()  # not what listens: that would be no cut
                one.shutdown(socket.SHUT_RDWR)
                count += 1
    return count


def cut_tcp(pid: int) -> int:
    return cut(pid, socket.AF_INET, socket.SOCK_STREAM)


def cut_slot(pid: int) -> int:
    """The connection by which a slot hands over results. Not the call queue, which all slots of an instance share."""
    return cut(pid, socket.AF_UNIX, socket.SOCK_STREAM)


def cut_zygote(pid: int) -> int:
    """The connection between a zygote and its worker: the first of the descriptors in its words."""
    words = words_of(pid)
    with taken(pid, int(words[words.index(ZYGOTE) + 1])) as one:
        one.shutdown(socket.SHUT_RDWR)
    return 1


# ---------------------------------------------------------------- memory


def _memory_groups() -> tuple[Path, str] | None:
    """Where memory cgroups are made, and the file of their limit."""
    old, new = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    if (old / "memory.limit_in_bytes").exists() or (old / "cgroup.procs").exists():
        return old, "memory.limit_in_bytes"
    with contextlib.suppress(OSError):
        if "memory" in (new / "cgroup.subtree_control").read_text().split():
            return new, "memory.max"
    return None


def may_limit_memory() -> str:
    """Why the kernel cannot be short of memory here; "": it can."""
    where = _memory_groups()
    if os.getuid() != 0 or where is None:
        return "memory cgroups need root, and a hierarchy that one may write to"
    try:
        group = where[0] / f"windlass-faults-{uuid.uuid4().hex[:8]}"
        group.mkdir()
        (group / where[1]).write_text(str(GROUP_BYTES))
        group.rmdir()
    except OSError as error:
        return f"no memory cgroups here: {error}"
    return ""


def starve(pid: int) -> None:
    """Have the kernel kill this process for want of memory. Raises `TimeoutError` when it does not."""
    where = _memory_groups()
    assert where is not None
    group = where[0] / f"windlass-faults-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    hog: subprocess.Popen[bytes] | None = None
    try:
        (group / where[1]).write_text(str(GROUP_BYTES))
        words = [sys.executable, "-I", "-S", "-c", HOG, str(group)]
        hog = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert hog.stdin is not None
        assert hog.stdout is not None
        hog.stdout.readline()
        # The hog cannot be spared without a privilege of its own; the victim can always be preferred. (What the hog takes counts for the
        # group and not for the hog, as it is not mapped; or it would be the largest.)
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
        (group / "cgroup.procs").write_text(str(pid))
        hog.stdin.write(b"\n")
        hog.stdin.flush()
        end = time.monotonic() + KILL_SECONDS
        while words_of(pid):
            if time.monotonic() > end:
                raise TimeoutError(f"the kernel has not ended process {pid} within {KILL_SECONDS:g} s")
            time.sleep(0.001)
    finally:
        if hog is not None:
            hog.kill()
            hog.communicate()
        _move_out(group, where[0])


def _move_out(group: Path, parent: Path) -> None:
    end = time.monotonic() + KILL_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            for word in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    (parent / "cgroup.procs").write_text(word)
            group.rmdir()
            return
        time.sleep(0.02)


# ---------------------------------------------------------------- disks


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Generator[Path]:
    """A file system of this size at ``folder``. Needs root; the matrix has a mount namespace of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "faults", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def full(*folders: Path) -> Generator[None]:
    """No byte is free on these disks: what becomes free meanwhile is taken as well."""
    fillers = [folder / "filler" for folder in folders]
    try:
        for filler in fillers:
            _fill(filler)
        yield
    finally:
        for filler in fillers:
            filler.unlink(missing_ok=True)


def _fill(filler: Path) -> None:
    with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size) == size:
                    pass


def refill(*folders: Path) -> None:
    """Take what has become free."""
    for folder in folders:
        _fill(folder / "filler")
