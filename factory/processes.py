"""Pilots as processes of this machine: started, watched, ended, none left behind.

Theory of operation
-------------------
Each process is the leader of a session of its own, so that signals of the terminal do not reach it and its group can be ended whole.
One thread, the *reaper*, waits on the pidfds of all of them: it learns an end at once, sees to walltimes, and turns the grace after a
SIGTERM into a SIGKILL.  Where there are no pidfds (kernels before 5.3, Pythons that were built for such, as conda's are) it looks every
`LOOK`.  What is left of the group and the session of an ended leader is given `STRAGGLE` seconds to end by itself
(a worker's guardian cleans up there), then killed: what serves a pilot's image has a group of its own, and is not told when Apptainer
is killed while it puts things in order.  The number of a session cannot be taken by another process while a member lives.

Output goes to one file per process, opened for appending, so that `trim_log` can cut it while it is written.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from windlass.passing import PASSING

log = logging.getLogger("windlass.factory")

STRAGGLE: Final = 2.0
STRAGGLE_STEP: Final = 0.05
#: Seconds between looks at a process that has no pidfd.
LOOK: Final = 0.05
#: How long `Processes.close` waits for what was killed: one that hangs in the kernel is not there to be killed.
GIVE_UP: Final = STRAGGLE + 10.0
#: A log is cut when it is larger than this, to so much of its end. Bytes.
LOG_LIMIT: Final = 1 << 20
LOG_KEPT: Final = 128 << 10
TAIL_BYTES: Final = 4096
TAIL_LINES: Final = 12
#: What stands at the beginning of one that was cut.
CUT: Final = re.compile(rb"\[windlass: (\d+) bytes were cut here\]\n")
#: How much is looked through for them.
LOOKED_THROUGH: Final = 16 << 10
#: Some programs colour what they write to files, too.
COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
#: What Apptainer says of an option that it does not know, before ten kilobytes about those that it knows.
UNKNOWN_OPTION: Final = re.compile(r"^(Error for command .*)\n+Options for ", re.MULTILINE)
#: What it says of things that it can do without.
REMARK: Final = re.compile(r"(INFO|WARNING): ")


@dataclass(slots=True)
class Process:
    """One process. Times are of the monotonic clock."""

    key: str
    popen: subprocess.Popen[bytes]
    #: -1: there are none here.
    pidfd: int
    log: Path
    grace: float
    #: When it is told to end for its walltime, and when it is killed; None: never.
    term_at: float | None
    kill_at: float | None = None
    #: Popen's: negative for a signal; None while it runs.
    status: int | None = None
    #: It was told to end because of its walltime.
    timed_out: bool = False
    #: Until when its group may straggle.
    straggles_until: float | None = None


class Processes:
    """The processes of one backend. Methods may be called by any thread; ``wake`` is called by the reaper when one has ended."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._processes: dict[str, Process] = {}
        self._ended: dict[str, Process] = {}
        self._poll = select.poll()
        self._bell, self._ring = os.pipe()
        os.set_blocking(self._bell, False)
        os.set_blocking(self._ring, False)
        self._poll.register(self._bell, select.POLLIN)
        self._closing = False
        # Not with the first process: a program may be ending by then, and Python 3.12.0 and 3.12.1 start no thread any more.
        self._thread: threading.Thread | None = threading.Thread(target=self._reap, name="windlass-reaper", daemon=True)
        self._thread.start()

    def start(self, key: str, command: Sequence[str], env: Mapping[str, str], log: Path, *, grace: float, walltime: float = 0.0) -> int:
        """Start one; its pid. Raises OSError."""
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor, env=dict(env), start_new_session=True
            )
        finally:
            os.close(descriptor)
        term_at = time.monotonic() + walltime if walltime else None
        try:
            pidfd = _pidfd(popen.pid)
        except OSError:  # nobody would look after it
            popen.kill()
            popen.wait()
            raise
        process = Process(key, popen, pidfd, log, grace, term_at)
        with self._lock:
            self._processes[key] = process
            if pidfd >= 0:
                self._poll.register(pidfd, select.POLLIN)
        self._bell_rings()
        return popen.pid

    def end(self, keys: Sequence[str] | None = None, *, grace: float | None = None) -> None:
        """SIGTERM to these (None: all), SIGKILL after their grace. Ended and unknown ones are no error."""
        now = time.monotonic()
        with self._lock:
            for key in list(self._processes) if keys is None else keys:
                process = self._processes.get(key)
                if process is not None and process.status is None:
                    self._tell(process, now, process.grace if grace is None else grace)
        self._bell_rings()

    def _tell(self, process: Process, now: float, grace: float) -> None:
        if process.kill_at is None:
            self._signal(process, signal.SIGTERM)
        kill_at = now + grace
        process.kill_at = kill_at if process.kill_at is None else min(process.kill_at, kill_at)
        process.term_at = None

    @staticmethod
    def _signal(process: Process, number: signal.Signals) -> None:
        try:
            if process.pidfd >= 0:
                signal.pidfd_send_signal(process.pidfd, number)
            else:
                process.popen.send_signal(number)
        except ProcessLookupError:
            pass  # it ended this moment; the reaper is about to see it

    def kill(self, keys: Sequence[str]) -> None:
        """SIGKILL to these now, without a SIGTERM, to which a quick one would answer."""
        with self._lock:
            for key in keys:
                process = self._processes.get(key)
                if process is not None and process.status is None:
                    self._signal(process, signal.SIGKILL)
                    process.term_at, process.kill_at = None, time.monotonic() + 1.0
        self._bell_rings()

    def running(self) -> list[str]:
        """Those that run."""
        with self._lock:
            return [key for key, process in self._processes.items() if process.status is None]

    def take_ended(self) -> list[Process]:
        """Those that have ended since the last time."""
        with self._lock:
            ended, self._ended = list(self._ended.values()), {}
        return ended

    def close(self) -> None:
        """Wait for the end of all (they have been told), killing those whose grace is over; the reaper ends. Idempotent."""
        self.end()
        with self._lock:
            self._closing = True
            thread = self._thread
            killed = max((process.kill_at for process in self._processes.values() if process.kill_at is not None), default=0.0)
        self._bell_rings()
        if thread is not None:
            thread.join(max(0.0, killed - time.monotonic()) + GIVE_UP)
            if thread.is_alive():
                with self._lock:
                    left = ", ".join(str(process.popen.pid) for process in self._processes.values())
                log.warning(
                    "processes %s were killed and have not ended: they may hang in the kernel; nobody looks after them any more", left
                )
                return
            self._thread = None
        with self._lock:
            if self._bell >= 0:
                os.close(self._bell)
                os.close(self._ring)
                self._bell = self._ring = -1

    # ---------------------------------------------------------------- the reaper

    def _bell_rings(self) -> None:
        try:
            os.write(self._ring, b"!")
        except (BlockingIOError, OSError):
            pass  # it rings already, or nobody listens any more

    def _reap(self) -> None:
        while True:
            with self._lock:
                if self._closing and not self._processes:
                    return
                timeout = self._timeout(time.monotonic())
            events = self._poll.poll(timeout)
            if any(descriptor == self._bell for descriptor, _ in events):
                os.read(self._bell, 4096)
            with self._lock:
                ended = self._look(time.monotonic())
            if ended:
                self._wake()

    def _timeout(self, now: float) -> float | None:
        """Milliseconds until the next thing to do."""
        times: list[float] = []
        for process in self._processes.values():
            if process.straggles_until is not None:
                times.append(now + STRAGGLE_STEP)
            else:
                times += [at for at in (process.term_at, process.kill_at) if at is not None]
                if process.pidfd < 0:
                    times.append(now + LOOK)
        return max(0.0, min(times) - now) * 1000 + 1 if times else None

    def _look(self, now: float) -> bool:
        ended = False
        for key, process in list(self._processes.items()):
            if process.status is None:
                process.status = process.popen.poll()
                if process.status is not None:
                    if process.pidfd >= 0:
                        self._poll.unregister(process.pidfd)
                        os.close(process.pidfd)
                    process.straggles_until = now + STRAGGLE
                    self._ended[key] = process
                    ended = True
                elif process.kill_at is not None and process.kill_at <= now:
                    self._signal(process, signal.SIGKILL)
                    process.kill_at = now + 1.0
                elif process.term_at is not None and process.term_at <= now:
                    process.timed_out = True
                    self._tell(process, now, process.grace)
            if process.straggles_until is not None and not self._straggling(process, now):
                del self._processes[key]
        return ended

    def _straggling(self, process: Process, now: float) -> bool:
        """Members of the ended leader's group and session are still there, or may be."""
        assert process.straggles_until is not None
        try:
            left = left_of(process.popen.pid)
        except OSError:  # the program is out of descriptors, maybe for a moment: who closes does not wait for that
            return not self._closing or process.straggles_until > now
        if left and process.straggles_until <= now:
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            return False
        return bool(left)


def _pidfd(pid: int) -> int:
    """A descriptor that tells of this process's end and takes signals for it; -1 where there is no such thing. Raises `OSError`."""
    if not (hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal")):
        return -1
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):  # an old kernel, or a container that lets nobody
            return -1
        raise


def left_of(leader: int) -> list[int]:
    """The living processes of the group and of the session that this one led.

    Not zombies: whoever inherits those may be slow to collect them. Raises OSError where nobody can look now.
    """
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
                    state, _, group, session = file.read().rpartition(b")")[2].split()[:4]
            except (OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno in PASSING:
                    raise
                continue  # it has ended meanwhile
            if leader in (int(group), int(session)) and state not in (b"Z", b"X"):
                found.append(int(name))
    return found


def trim_log(log: Path, limit: int = LOG_LIMIT, kept: int = LOG_KEPT) -> None:
    """Cut a log that others append to, when it is larger than ``limit`` bytes, to about the last ``kept``."""
    try:
        with log.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size <= limit:
                return
            file.seek(size - kept)
            end = file.read()
            file.truncate(0)
        with log.open("ab") as file:
            file.write(b"[windlass: %d bytes were cut here]\n" % (size - len(end)) + end)
    except FileNotFoundError:
        pass


class GrowingLog:
    """What is added to a log that is open at its end, also while `trim_log` cuts it."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._cut = self._last_cut()

    def more(self) -> str:
        """What was written since the last look, each line once: a cut writes the end again."""
        place, cut = self._file.buffer.tell(), self._last_cut()
        size = os.fstat(self._file.fileno()).st_size
        if cut != self._cut or size < place:
            if not size:
                return ""  # it is being cut
            self._cut = cut
            words, gone = cut
            # What was shown up to `place` ends here now. Where more was cut than was shown, the words say so.
            self._file.seek(words + place - gone if 0 < gone <= place else 0)
        return self._file.read()

    def _last_cut(self) -> tuple[int, int]:
        """Bytes of the words that tell of it, and how many were cut; zeros: nothing was, or somebody else has emptied it."""
        found = CUT.match(os.pread(self._file.fileno(), 80, 0))
        return (found.end(), int(found[1])) if found else (0, 0)


def tail_of(log: Path) -> str:
    """The last lines of a log, bounded; "" when there is none. Of what Apptainer says, why it has ended."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOOKED_THROUGH))
            text = COLOURS.sub("", file.read().decode(errors="replace"))
    except OSError:
        return ""
    unknown = UNKNOWN_OPTION.findall(text)
    if unknown:
        return str(unknown[-1])
    lines = text[-TAIL_BYTES:].strip().splitlines()[-TAIL_LINES:]
    return "\n".join([line for line in lines if not REMARK.match(line)] or lines)
