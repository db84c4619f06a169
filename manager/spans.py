"""Spans of calls, for OpenTelemetry: one for each call of a program that has asked for it.

Theory of operation
-------------------
`CallSpans.begin` is called where a call is submitted, so that the span is a child of the one that is current there; its id travels with
the call. `CallSpans.ended` gets the record of the call's end on the manager's thread, which must not run an exporter's code: the span is
finished on the thread that runs callbacks. The stages of the call are events of the span, at the times of `future.timings`; those of the
worker are by its clock.

Without a provider (the program has set up no SDK) spans record nothing and nothing travels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from windlass import __version__
from windlass.errors import UsageError
from windlass.manager.call import Target
from windlass.manager.callbacks import hand_over
from windlass.manager.calls import outcome_words
from windlass.messages import RETURNED, CallDone, CallId

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class CallSpans:
    """The spans of one program's calls that have not ended. Raises UsageError where OpenTelemetry is not installed."""

    def __init__(self) -> None:
        try:
            from opentelemetry import trace
        except ImportError:
            raise UsageError("traces need a package that is not installed here: pip install opentelemetry-api") from None
        self._trace = trace
        self._tracer = trace.get_tracer("windlass", __version__)
        self._spans: dict[CallId, Span] = {}

    def begin(self, call: CallId, target: Target, tag: str | None, submitted_at: float) -> str:
        """A call is being submitted in this thread: its trace context; "" where nobody records it."""
        library, function = target.names
        attributes: dict[str, Any] = {"windlass.library": library, "windlass.function": function, "windlass.call": int(call)}
        if tag:
            attributes["windlass.tag"] = tag
        span = self._tracer.start_span(function, kind=self._trace.SpanKind.CLIENT, attributes=attributes, start_time=_ns(submitted_at))
        context = span.get_span_context()
        if not context.is_valid:
            return ""
        if span.is_recording():
            self._spans[call] = span
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def forget(self, call: CallId) -> None:
        """It was not submitted after all."""
        self._spans.pop(call, None)

    def ended(self, done: CallDone) -> None:
        """A call has ended."""
        span = self._spans.pop(done.end.call, None)
        if span is not None:
            end = done.end
            # What is needed of the record, now: whoever asks for the result takes the rest.
            times: tuple[tuple[str, float], ...] = ()
            if done.sent_at:  # else it was remembered, and ran before its span began
                times = (("sent", done.sent_at), ("started", end.started_at), ("ready", end.ready_at), ("ended", end.ended_at))
            detail = end.detail
            types, text = (detail.types, detail.text) if detail is not None else ((), "")
            before = [one.outcome for one in done.attempts]
            turns, returned_at = done.turns, done.returned_at
            hand_over(lambda: self._finish(span, end.outcome, times, types, text, before, turns, returned_at))

    def _finish(
        self,
        span: Span,
        outcome: int,
        times: tuple[tuple[str, float], ...],
        types: tuple[str, ...],
        text: str,
        before: list[str],
        turns: int,
        returned_at: float,
    ) -> None:
        for stage, at in times:
            if at:
                span.add_event(f"windlass.{stage}", timestamp=_ns(at))
        words = outcome_words(outcome)
        span.set_attribute("windlass.outcome", words)
        span.set_attribute("windlass.attempts", turns)
        if before:
            span.set_attribute("windlass.earlier_attempts", before)
        if outcome != RETURNED:
            if types:
                span.set_attribute("error.type", types[0].removeprefix("builtins."))
            status, described = self._trace.StatusCode.ERROR, text or (types[0] if types else words)
            span.set_status(self._trace.Status(status, described[:1000]))
        span.end(_ns(returned_at) if returned_at else None)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
