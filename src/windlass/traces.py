"""In a call: the trace that it belongs to, as its program's OpenTelemetry knows it.

Theory of operation
-------------------
A program with ``Manager(traces=True)`` makes a span for each call (`windlass.manager.spans`) and sends its id along, as the text of the
W3C's header ``traceparent``. In the slot `entered` makes that the current context of OpenTelemetry while the function runs, where its API
is installed, so that spans made in the function are children of the call's. A call without a trace never comes here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from windlass.worker.slot_api import here


def traceparent() -> str:
    """The trace context of the running call, as in the header ``traceparent`` of the W3C: to be passed on to other services.

    Empty outside of a call, and in calls of a program that does not trace.
    """
    run = here().run
    return run.trace if run is not None else ""


def entered(function: Callable[..., Any], trace: str) -> Callable[..., Any]:
    """The same function, within the trace."""

    def traced(*args: Any, **kwargs: Any) -> Any:
        token = attach(trace)
        try:
            return function(*args, **kwargs)
        finally:
            if token is not None:
                detach(token)

    return traced


def attach(trace: str) -> Any:
    """Make the trace the current context of OpenTelemetry; what `detach` needs. None where that is not installed."""
    with suppress(Exception):  # whatever is wrong with it: the call is to run
        from opentelemetry import context
        from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

        _, trace_id, span_id, flags = trace.split("-")
        parent = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
        return context.attach(set_span_in_context(NonRecordingSpan(parent)))
    return None


def detach(token: Any) -> None:
    """The call is over."""
    with suppress(Exception):
        from opentelemetry import context

        context.detach(token)
