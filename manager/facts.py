"""Facts of a call: what its future tells of it beside the result, and the states that it goes through."""

from __future__ import annotations

from typing import Any, Final

from windlass.manager.call import Target
from windlass.manager.timings import Timings
from windlass.messages import RETURNED, CallAttempt, CallDone, CallId

#: As `concurrent.futures` has them.
PENDING: Final = "PENDING"
RUNNING: Final = "RUNNING"
CANCELLED: Final = "CANCELLED"
CANCELLED_AND_NOTIFIED: Final = "CANCELLED_AND_NOTIFIED"
FINISHED: Final = "FINISHED"
ENDED: Final = frozenset((CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED))


class CallFacts:
    """A part of `windlass.manager.future.CallFuture`, which only reads."""

    __slots__ = ()

    call_id: CallId
    tag: str | None
    target: Target | None
    submitted_at: float
    _state: str
    _record: CallDone | None
    _settled: bool
    _result: Any
    _exception: BaseException | None

    def running(self) -> bool:
        """Whether it runs."""
        raise NotImplementedError

    @property
    def state(self) -> str:
        """``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``."""
        if self._state in (PENDING, RUNNING):
            return "running" if self.running() else "waiting"
        if self._state != FINISHED:
            return "cancelled"
        if self._exception is not None:
            return "failed"
        record = self._record
        return "done" if record is None or record.end.outcome == RETURNED else "failed"

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

    def _to_be_read(self) -> bool:
        """Nobody has unpickled it; or it could not be unpickled, as something is missing here, and its bytes wait for another try."""
        if not self._settled:
            return True
        record = self._record
        if self._exception is None or record is None or record.end.outcome != RETURNED:
            return False
        return bool(record.end.payload or record.end.spans)

    # TaskVine's names.

    @property
    def id(self) -> CallId:
        """TaskVine's name of `call_id`."""
        return self.call_id

    @property
    def std_output(self) -> str:
        """TaskVine's name of `stdout`."""
        return self.stdout

    def completed(self) -> bool:
        """TaskVine's name of `done`."""
        return self._state in ENDED

    def successful(self) -> bool:
        """It has ended with a result."""
        return self.state == "done"

    def __repr__(self) -> str:
        if self.call_id:
            words = [f"call={self.call_id}"]
            if self.target is not None:
                words.append(self.target.shown)
            if self.tag is not None:
                words.append(f"tag={self.tag!r}")
            words.append(f"state={self.state}")
        else:  # a plain future shows itself as the stock one does
            words = [f"at {id(self):#x}", f"state={self._state.partition('_')[0].lower()}"]
        if self._state == FINISHED and self._settled:
            if self._exception is not None:
                words.append(f"raised {type(self._exception).__name__}")
            else:
                words.append(f"returned {type(self._result).__name__}")
        record = self._record
        if record is not None:
            if record.end.ended_at and record.end.started_at:
                words.append(f"ran {self.timings.running:.3g} s")
            if (turns := record.turns) > 1:
                words.append(f"in attempt {turns}")
        return f"<{type(self).__name__} {' '.join(words)}>"

    def _repr_html_(self) -> str:
        from windlass.notebook import call_card

        name = f"{self.target.shown} " if self.target is not None else ""
        return call_card(f"{name}call {self.call_id}", self.state, self.tag or "", self._record, self.timings)
