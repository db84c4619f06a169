"""When things happened to a call."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timings:
    """When things happened to a call, in seconds since the epoch; 0.0: not (yet).

    ``submitted``, ``sent`` and ``returned`` are on the program's side; ``started``, ``ready`` and ``ended`` on the worker's
    clock, which may differ: the worker reads it once, at the start, and measures from there, so that a clock that is set meanwhile, or a
    machine that sleeps, is no part of how long a call ran. The derived figures subtract only times of one clock.

    A call whose result was remembered (docs/journal.md) was not sent: ``sent`` is 0.0, and ``started``, ``ready`` and ``ended`` are of the
    run that made the result, which may be days ago.
    """

    #: `submit` was called.
    submitted: float = 0.0
    #: Sent to the worker that answered; 0.0 also of one that ended as an equal one had.
    sent: float = 0.0
    #: The slot took it.
    started: float = 0.0
    #: Its function and arguments were loaded.
    ready: float = 0.0
    #: The function ended.
    ended: float = 0.0
    #: The answer reached the manager.
    returned: float = 0.0

    @property
    def running(self) -> float:
        """Seconds it occupied a slot in its last attempt, loading included."""
        return max(0.0, self.ended - self.started)

    @property
    def setup(self) -> float:
        """Seconds of `running` that went into loading function and arguments."""
        return max(0.0, self.ready - self.started)

    @property
    def total(self) -> float:
        """Seconds from `submit` to its answer."""
        return max(0.0, self.returned - self.submitted)

    @property
    def waiting(self) -> float:
        """Seconds of `total` in which its last attempt was not running: queues, transfers, earlier attempts."""
        return max(0.0, self.total - self.running) if self.sent else self.total
