"""What a manager shows of itself to those who look on for longer, and what it leaves of its run. A part of the manager's shell.

Theory of operation
-------------------
The first `GetView`, or ``Manager(record=True)``, puts a `Recorder` into the core, which stays there; before that nothing is noted but the
causes of failures.  Each answer says what composing the last one took of this thread, by which readers choose their pace.

A run that was recorded is written into the state folder when the manager ends (`windlass.runs`): as it stood before its end, as the last
thing that the thread does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec

from windlass.manager.core import Core
from windlass.manager.recorder import Recorder
from windlass.manager.views import view, whole_view
from windlass.messages import GetView, View

log = logging.getLogger("windlass.manager")


class Viewing:
    """Composes views; everything runs on the manager's loop. ``found(now, brief)`` is the status object."""

    def __init__(self, core: Core, found: Callable[[float, bool], dict[str, Any]]) -> None:
        self._core, self._found = core, found
        #: Name of the run, and what writes it down at its end: set by the manager before it starts.
        self.run = "run"
        self.write: Callable[[str, bytes], object] | None = None
        self._took = 0.0
        self._end: dict[str, Any] = {}

    def begin(self, now: float) -> Recorder:
        """Record from now on, if that is not done yet."""
        if self._core.recorder is None:
            self._core.recorder = Recorder(self.run, now)
        return self._core.recorder

    def answer(self, ask: GetView, now: float) -> list[View]:
        """What a `GetView` is answered by."""
        recorder = self.begin(now)
        begun = time.thread_time()
        pieces = view(self._found(now, ask.brief), self._core, recorder, ask, now, self._took)
        self._took = time.thread_time() - begun
        return pieces

    def look(self, now: float) -> None:
        """At each turn of the timer."""
        if self._core.recorder is not None:
            self._core.recorder.sample(self._core, now)

    def keep_end(self, now: float, reason: str) -> None:
        """The manager is about to end: how things stand."""
        recorder = self._core.recorder
        if recorder is not None:
            self._end = whole_view(self._found(now, False), self._core, recorder, GetView(), now, self._took)
            self._end["record"]["ended"] = reason

    def write_end(self) -> None:
        """The last thing."""
        if self._end and self.write is not None:
            try:
                self.write(self.run, msgspec.json.encode(self._end))
            except OSError as error:
                log.warning("the end of run %s could not be written down: %s", self.run, error)
