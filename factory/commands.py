"""Runs one command of a batch system: in an environment that says nothing of ours, within a time limit, with bounded output.

Theory of operation
-------------------
Whatever the user's shell says to the batch system's commands (formats, filters, defaults, the variables of a job that this program itself
runs in) would change their answers, so those variables are taken out.  A command that has not ended in time is killed, with all that it
has started; its caller then knows nothing, except what was written until then.  ``stop_at`` ends a command as soon as its stderr holds a
text: some commands say why they cannot go on and then wait for minutes.  One that has ended has answered, also where something that it
has started still holds its output: a site's wrapper that logs in the background, or the connection that ``ssh`` keeps for the next one.

The caller's thread waits; it is the factory's, never the program's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from windlass import descriptors
from windlass.memory_files import memory_file
from windlass.passing import NOT_EXECUTED

#: Bytes of stdout and of stderr that are kept: a line per pilot, for a hundred thousand pilots.
OUTPUT_LIMIT: Final = 32 << 20
_CHUNK: Final = 1 << 16
#: Seconds between two looks whether a command has ended that says nothing; and so many looks in a row may find nothing on stdout after its
#: end while its output is still held, as that may be by a ``tee``. Looks and no seconds: this thread may have had no turn meanwhile.
_LOOK: Final = 0.2
_QUIET: Final = 10


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended."""

    #: As `subprocess` says it; None: it was killed for its time limit, or for ``stop_at``.
    status: int | None
    stdout: str
    stderr: str
    #: stderr held the text that it was to be stopped at.
    stopped: bool = False
    #: There was more output than is kept; or there may have been, as it was still coming when the time limit was over, after its end.
    cut: bool = False

    @property
    def timed_out(self) -> bool:
        return self.status is None and not self.stopped


def clean_environment(environ: Mapping[str, str], without: Sequence[str], keep: Sequence[str] = (), **extra: str) -> dict[str, str]:
    """The environment of a command: ``environ`` without what begins with one of ``without``, unless it is in ``keep``."""
    kept = {name: value for name, value in environ.items() if name in keep or not name.startswith(tuple(without))}
    return {**kept, **extra}


def run_command(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    timeout: float,
    text: str = "",
    stop_at: str = "",
    limit: int = OUTPUT_LIMIT,
    unraised: bool = False,
) -> Ran:
    """Run ``command`` with ``text`` on its stdin, for ``timeout`` seconds at most. Raises OSError when it cannot be started.

    ``unraised``: with the limit on descriptors that this process had at first, as the command hands its limits on.
    """
    started = descriptors.unraised(command) if unraised else command
    # A pipe would have to be fed beside the reading, and a folder for temporary files may go with the login that it was made for.
    with open(memory_file("windlass-stdin") if text else os.devnull, "r+b") as stdin:
        if text:
            stdin.write(text.encode())
            stdin.seek(0)
        process = subprocess.Popen(
            started,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            cwd=None if _is_somewhere() else "/",
            start_new_session=True,
        )
    with process:
        try:
            ran = _watch(process, timeout, stop_at.encode(), limit)
            if started is not command and ran.status in NOT_EXECUTED and re.match(r"sh: .*\bexec\b", ran.stderr):
                refused = errno.EACCES if "denied" in ran.stderr else NOT_EXECUTED[ran.status]
                raise OSError(refused, os.strerror(refused), command[0])
            return ran
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _is_somewhere() -> bool:
    """The folder that this process works in is there; some commands refuse to work in one that is not."""
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _watch(process: subprocess.Popen[bytes], timeout: float, stop_at: bytes, limit: int) -> Ran:
    assert process.stdout is not None
    assert process.stderr is not None
    end = time.monotonic() + timeout
    quiet, enough = 0, max(1, min(_QUIET, int(timeout / 2 / _LOOK)))
    kept = {"stdout": bytearray(), "stderr": bytearray()}
    cut = False

    def ran(status: int | None, *, stopped: bool = False) -> Ran:
        texts = {name: bytes(data).decode(errors="replace") for name, data in kept.items()}
        return Ran(status, texts["stdout"], texts["stderr"], stopped, cut)

    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, "stdout")
        selector.register(process.stderr, selectors.EVENT_READ, "stderr")
        while selector.get_map():
            now, ended = time.monotonic(), process.poll() is not None  # before the look for what it wrote until then
            if now >= end:
                cut = cut or ended
                return ran(process.returncode)
            ready = selector.select(min(_LOOK, end - now))
            if not ended or any(key.data == "stdout" for key, _ in ready):
                quiet = 0
            elif not ready:
                quiet += 1
            if quiet >= enough:
                break
            for key, _ in ready:
                data = os.read(key.fd, _CHUNK)
                if not data:
                    selector.unregister(key.fileobj)
                    continue
                into = kept[key.data]
                room = limit - len(into)
                into += data[:room]
                cut = cut or len(data) > room
            if stop_at and stop_at in kept["stderr"]:
                return ran(None, stopped=True)
    try:
        return ran(process.wait(max(0.0, end - time.monotonic())))
    except subprocess.TimeoutExpired:
        return ran(None)
