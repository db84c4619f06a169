"""Processes of slots, as /proc shows them: are they stopped, gone, whose children are they, and how to end all of them.

Only processes of this user's own instances are asked about, by ids that their zygote or this worker has not yet reaped.

Resource trackers (`windlass.worker.guardian.is_tracker`) are spared, as they are about to end when what uses them has been killed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from windlass.messages import EndDetail
from windlass.worker.guardian import is_tracker

#: How often it is looked whether a process has stopped, and the seconds between: a fork of a large process takes some milliseconds.
STOP_LOOKS: Final = 20
STOP_PAUSE: Final = 0.001

#: The number of futex(2), by which threads wait for locks, in the words of /proc; where it is not known here, nobody is in it.
_FUTEX: Final = {"x86_64": b"202", "aarch64": b"98", "riscv64": b"98", "ppc64le": b"221", "s390x": b"238"}.get(os.uname().machine, b"?")


def process_state(pid: int) -> str:
    """The state letter of a process (``R S D T t Z X``), or nothing when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return chr(file.read().rpartition(b") ")[2][0])
    except (OSError, IndexError):
        return ""


def waits_for_others(pid: int) -> bool:
    """Whether the main thread sleeps, and not for a lock such as the interpreter's, as far as the kernel tells that."""
    if process_state(pid) != "S":
        return False
    try:
        with open(f"/proc/{pid}/syscall", "rb") as file:
            return file.read().split()[0] not in (b"running", _FUTEX)
    except (OSError, IndexError):
        return True


def is_gone(pid: int) -> bool:
    """True when the process has ended; it is reaped here if it happens to be a child of this process."""
    with suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return True
    return process_state(pid) in ("", "Z", "X")


def descendants(pid: int) -> list[int]:
    """All living processes below `pid`, parents before children; processes whose parent has died are not among them."""
    found: list[int] = []
    level = [pid]
    while level:
        level = [child for parent in level for child in _children(parent)]
        found += level
    return found


def has_others(pid: int, child: int) -> bool:
    """Whether a process has living children beside this one."""
    return any(process_state(other) not in ("Z", "X", "") for other in _children(pid) if other != child)


def kill_below(pid: int) -> set[int]:
    """Kill all descendants of a process, also those that start while this happens; returns which, and trackers, which are about to end."""
    return _kill_all(lambda: descendants(pid))


def _kill_all(look: Callable[[], Iterable[int]]) -> set[int]:
    """Kill what is found, until nothing is found that was not before; returns all that was found."""
    found: set[int] = set()
    for _ in range(8):
        fresh = [pid for pid in look() if pid not in found]
        if not fresh:
            break
        for pid in fresh:
            if not is_tracker(pid):
                kill(pid, signal.SIGKILL)
        found.update(fresh)
    return found


def kill_group(leader: int) -> list[int]:
    """Kill what is left of the process group of one that has just been reaped: its number is not given away while the group has others.

    Returns trackers, which are about to end.
    """
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, 0)
        trackers = [pid for pid in _group(leader) if is_tracker(pid)]
        if trackers:
            _kill_all(lambda: _group(leader))
        else:
            os.killpg(leader, signal.SIGKILL)
        return trackers
    return []


def kill_tree(pid: int) -> set[int]:
    """Kill a process that leads its own process group, its group, and all its descendants; returns these, and trackers, which are about
    to end."""
    if pid <= 0:
        return set()  # not known yet: 0 would be this process's own group
    # Stopped first, so that it starts no more of them. One that is in the middle of a fork stops after it, a little later.
    kill(pid, signal.SIGSTOP)
    for _ in range(STOP_LOOKS):
        if process_state(pid) in ("T", "t", "Z", "X", ""):
            break
        time.sleep(STOP_PAUSE)
    found = kill_below(pid)
    if not any(map(is_tracker, found)):  # else who reaps it looks who is left of its group: here that would be a scan for each slot
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    kill(pid, signal.SIGKILL)
    return found


def kill(pid: int, number: int) -> bool:
    """Send a signal; False when there is no such process."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return "a real-time signal"


def ended_how(status: int) -> str:
    """A status of wait(2) in words."""
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)} ({signal_name(os.WTERMSIG(status))})"
    return f"exit status {os.waitstatus_to_exitcode(status)}"


def death(pid: int, status: int, peak_memory: int, seconds: float, calls: int = 1) -> EndDetail:
    """How a process that ran ``calls`` calls has ended; `status` is that of wait(2), `seconds` since the call began."""
    after = f"{seconds:.3g} s after the call began"
    ran = "that ran it" if calls <= 1 else f"that ran it and {calls - 1} more at the same time"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        hint = "; often the kernel does that when memory runs out" if number == signal.SIGKILL else ""
        text = f"the process {ran} (pid {pid}) was killed by signal {number} ({signal_name(number)}) {after}{hint}"
        return EndDetail(text=text, signal=number, peak_memory=peak_memory)
    code = os.waitstatus_to_exitcode(status)
    text = f"the process {ran} (pid {pid}) exited with status {code} {after}; os._exit and exec in a function end its slot"
    return EndDetail(text=text, exit_status=code, peak_memory=peak_memory)


def outlast(pids: Iterable[int], limit: float) -> None:
    """Wait until these have ended, or so many seconds."""
    until = time.monotonic() + limit
    for pid in pids:
        while process_state(pid) not in ("", "Z", "X") and time.monotonic() < until:
            time.sleep(STOP_PAUSE)


async def all_gone(pids: Iterable[int], limit: float = 10.0) -> list[int]:
    """Wait until these have ended; returns those that had not after `limit` seconds (stuck in the kernel)."""
    import asyncio  # slots use this module too, and need none

    left = list(pids)
    loop = asyncio.get_running_loop()
    until, pause = loop.time() + limit, 0.001
    while True:
        left = [pid for pid in left if not is_gone(pid)]
        if not left or loop.time() > until:
            return left
        # Only asking tells: most of them are not children of this process.
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            children = [int(word) for word in file.read().split()]
        threads = os.listdir(f"/proc/{pid}/task")
        for thread in threads:
            if thread != str(pid):
                with suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                    children += [int(word) for word in file.read().split()]
    except OSError:
        return _children_by_scan(pid) if os.path.exists(f"/proc/{pid}") else []
    return children


def _group(leader: int) -> list[int]:
    """The living members of a process group."""
    return _scan(lambda fields: int(fields[2]) == leader and fields[0] not in b"ZX")


def _children_by_scan(pid: int) -> list[int]:
    """For kernels without CONFIG_PROC_CHILDREN."""
    return _scan(lambda fields: int(fields[1]) == pid)


def _scan(wanted: Callable[[list[bytes]], bool]) -> list[int]:
    """The processes of which this is so, by the words of /proc/PID/stat from the state on."""
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                if wanted(file.read().rpartition(b") ")[2].split()):
                    found.append(int(name))
    return found
