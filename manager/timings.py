"""When things happened to a call, and what else its last record says of it."""

from __future__ import annotations

from dataclasses import dataclass

from windlass.messages import CallAttempt, CallDone


@dataclass(frozen=True, slots=True)
class Timings:
    """When things happened to a call, in seconds since the epoch; 0.0: not (yet).

    ``submitted``, ``sent`` and ``returned`` are on the program's side; ``started``, ``ready`` and ``ended`` on the worker's
    clock, which may differ. The derived figures subtract only times of one clock.
    """

    #: `submit` was called.
    submitted: float = 0.0
    #: Sent to the worker that answered.
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
        return max(0.0, self.total - self.running)


class Story:
    """What a future tells of its call beside the result; a part of `windlass.manager.future.CallFuture`."""

    __slots__ = ()

    _record: CallDone | None
    submitted_at: float

    @property
    def stdout(self) -> str:
        """What the call wrote to its standard output (bounded); empty until it has ended."""
        return "" if self._record is None else self._record.end.stdout.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """What the call wrote to its standard error (bounded); empty until it has ended."""
        return "" if self._record is None else self._record.end.stderr.decode("utf-8", "replace")

    @property
    def timings(self) -> Timings:
        """When things happened to it."""
        record = self._record
        if record is None:
            return Timings(submitted=self.submitted_at)
        end = record.end
        return Timings(
            submitted=self.submitted_at or record.queued_at,
            sent=record.sent_at,
            started=end.started_at,
            ready=end.ready_at,
            ended=end.ended_at,
            returned=record.returned_at,
        )

    @property
    def attempts(self) -> tuple[CallAttempt, ...]:
        """Its tries so far known, oldest first."""
        return () if self._record is None else self._record.attempts
