"""The near end of the process that talks to HTCondor: requests with a time limit each.

Theory of operation
-------------------
The process (`windlass.factory.condor_helper`) is started with the first request and lives until `close`, or until a request is not
answered in time: then it is killed, whatever it waits for, and the next request starts another.  Only the calling thread waits, without
the GIL.  What is not answered may or may not have happened, which is what `Unreachable` means."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

from windlass.errors import Unreachable
from windlass.factory.condor_helper import NO_BINDINGS
from windlass.factory.processes import tail_of

#: Seconds that the process may take to load the bindings (from a slow network filesystem), beside the time of its first request.
START_LIMIT: Final = 60.0
#: Seconds that it may take to end by itself when it is told to.
END_LIMIT: Final = 1.0

COMMAND: Final = (sys.executable, "-P", "-m", "windlass.factory.condor_helper")


class Refused(Exception):
    """The bindings raised; the text is theirs."""


class NoBindings(Exception):
    """HTCondor's bindings cannot be loaded; the text says why."""


class CondorClient:
    """Requests to one schedd; used by one thread, but for `hurry`. ``log``: where the process's own words go; None: to stderr."""

    def __init__(self, command: Sequence[str], collector: str, schedd: str, log: Path | None) -> None:
        self._command = (*command, collector, schedd)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        #: It is at a request that takes long; and none may any more.
        self._long: subprocess.Popen[bytes] | None = None
        self._hurries = False
        #: Warnings of the bindings in the last answer.
        self.warnings: tuple[str, ...] = ()

    def ask(self, do: str, seconds: float, more: float = 0.0, **arguments: object) -> Any:
        """One request and its answer. Raises `Refused`, `NoBindings`, and `Unreachable` when there is none after ``seconds``.

        ``more`` seconds, unless somebody is in a hurry by then or in the meantime.
        """
        process = self._running()
        self._long = process if more else None  # before it is asked whether to hurry: either this thread sees it, or `hurry` this
        if self._hurries:
            more = 0.0
        line = json.dumps({"do": do, **arguments}).encode() + b"\n"
        try:
            assert process.stdin is not None
            process.stdin.write(line)  # it has answered all earlier requests, so it reads
            process.stdin.flush()
        except BrokenPipeError:
            self._died(process, do)
        answer = self._read(process, do, seconds + more)
        self._long = None
        self.warnings = tuple(answer.get("warnings", ()))
        if "error" in answer:
            raise Refused(str(answer["error"]))
        return answer.get("value")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        with contextlib.ExitStack() as files:
            log = None if self._log is None else files.enter_context(self._log.open("wb"))
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        hello = self._read(self._process, "start", START_LIMIT)
        if "ready" not in hello:
            text = str(hello.get("error", hello))
            self._end()
            if text.startswith(NO_BINDINGS):
                raise NoBindings(text.removeprefix(NO_BINDINGS))
            raise Unreachable(text)
        return self._process

    def _read(self, process: subprocess.Popen[bytes], do: str, seconds: float) -> dict[str, Any]:
        assert process.stdout is not None
        descriptor, limit = process.stdout.fileno(), time.monotonic() + seconds
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while b"\n" not in self._unread:
            if not poll.poll(max(0.0, limit - time.monotonic()) * 1000):
                self._end(kill=True)
                raise Unreachable(f"the schedd gave no answer to {do} within {seconds:g} s")
            data = os.read(descriptor, 1 << 20)
            if not data:
                self._died(process, do)
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return cast("dict[str, Any]", json.loads(line))

    def hurry(self) -> None:
        """A request that takes long is broken off, and none may take long any more. Called by any thread."""
        self._hurries = True
        process = self._long
        if process is not None:
            process.kill()

    def _died(self, process: subprocess.Popen[bytes], do: str) -> None:
        self._end(kill=True)
        if self._long is process and self._hurries:
            raise Unreachable(f"the {do} was broken off, as it takes long and the factory ends")
        status, words = process.returncode, tail_of(self._log) if self._log else ""
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        raise Unreachable(f"the process that talks to HTCondor ended in {do} ({how})" + (f": {words}" if words else ""))

    def _end(self, *, kill: bool = False) -> None:
        process, self._process, self._unread = self._process, None, b""
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        if kill:
            process.kill()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(END_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def close(self) -> None:
        """The process ends. Idempotent."""
        self._end()
