"""Spans of calls, with OpenTelemetry's real SDK on both sides: its exporter in memory here, and another one in each slot."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import windlass
from windlass import FunctionCall, Manager
from windlass.errors import UsageError

Until = Callable[[str, Callable[[], object]], None]
STAGES = ["windlass.sent", "windlass.started", "windlass.ready", "windlass.ended"]


@pytest.fixture(scope="module")
def provider() -> Iterator[InMemorySpanExporter]:
    """The program's SDK, as its author would set it up."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    yield exporter
    provider.shutdown()


@pytest.fixture
def spans(provider: InMemorySpanExporter, until: Until) -> Callable[[int], list[ReadableSpan]]:
    """``spans(n)``: the spans of calls that have been exported, when there are n."""
    provider.clear()

    def calls() -> list[ReadableSpan]:
        return [span for span in provider.get_finished_spans() if span.attributes and "windlass.call" in span.attributes]

    def found(count: int) -> list[ReadableSpan]:
        until(f"{count} spans are exported", lambda: len(calls()) == count)
        return calls()

    return found


def inner(name: str) -> tuple[str, list[tuple[int, int]]]:
    """Makes a span in the slot; what it is told, and (trace, parent) of what its exporter got."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, own = InMemorySpanExporter(), TracerProvider()
    own.add_span_processor(SimpleSpanProcessor(exporter))
    with own.get_tracer("inner").start_as_current_span(name):
        pass
    made = [(span.context.trace_id, span.parent.span_id if span.parent else 0) for span in exporter.get_finished_spans() if span.context]
    return windlass.traceparent(), made


async def inner_later(name: str) -> tuple[str, list[tuple[int, int]]]:
    await asyncio.sleep(0.01)
    return inner(name)


def fail() -> None:
    raise LookupError("not there")


def what_is_loaded() -> tuple[str, list[str]]:
    return windlass.traceparent(), [name for name in sys.modules if name.startswith("opentelemetry") or name == "windlass.traces"]


def ids(span: ReadableSpan) -> tuple[int, int]:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id


def test_each_call_is_a_span_with_its_stages_below_the_programs(spans: Any, start_pilot: Any) -> None:
    """And what it makes in its slot is below its own: one trace from the program into the processes of its pilots."""
    with Manager(traces=True) as manager, start_pilot(manager):
        manager.install_library("lib", inner)
        with trace.get_tracer("program").start_as_current_span("analysis") as analysis:
            futures = [manager.submit(FunctionCall("lib", "inner", f"part {number}")) for number in range(3)]
        results = [future.result() for future in futures]
        for future, span, (told, made) in zip(
            futures, sorted(spans(3), key=lambda one: one.attributes["windlass.call"]), results, strict=True
        ):
            trace_id, span_id = ids(span)
            assert span.name == "inner"
            assert span.kind is trace.SpanKind.CLIENT
            assert span.parent.span_id == analysis.get_span_context().span_id
            assert trace_id == analysis.get_span_context().trace_id
            assert told == f"00-{trace_id:032x}-{span_id:016x}-{span.get_span_context().trace_flags:02x}"
            assert made == [(trace_id, span_id)]
            assert [event.name for event in span.events] == STAGES
            timings = future.timings
            assert span.start_time == int(timings.submitted * 1e9)
            assert [event.timestamp for event in span.events] == [
                int(at * 1e9) for at in (timings.sent, timings.started, timings.ready, timings.ended)
            ]
            assert span.end_time == int(timings.returned * 1e9)
            assert span.attributes["windlass.library"] == "lib"
            assert span.attributes["windlass.outcome"] == "returned"
            assert span.attributes["windlass.attempts"] == 1
            assert span.status.status_code is trace.StatusCode.UNSET


def test_failures_and_cancellations_are_told(spans: Any, start_pilot: Any, gate: Any) -> None:
    """By the type that was raised, without reading the exception here."""
    with Manager(traces=True) as manager, start_pilot(manager):
        manager.install_library("lib", fail)
        call = FunctionCall("lib", "fail")
        call.set_tag("first")
        with pytest.raises(LookupError):
            manager.submit(call).result()
        [span] = spans(1)
        assert span.parent is None
        assert span.status.status_code is trace.StatusCode.ERROR
        assert span.attributes["error.type"] == "LookupError"
        assert span.attributes["windlass.outcome"] == "raised"
        assert span.attributes["windlass.attempts"] == 1
        assert span.attributes["windlass.tag"] == "first"
        waits = manager.submit_function(gate.pass_through)
        waits.cancel()
        assert spans(2)[1].attributes["windlass.outcome"] == "cancelled"


def test_calls_that_run_at_once_have_each_its_own(spans: Any, start_pilot: Any) -> None:
    """In one slot, on one loop; and an attached program's calls, too."""
    with Manager(name="traced-one") as owner, start_pilot(owner), windlass.attach("traced-one", traces=True) as manager:
        manager.install_library("lib", inner_later, concurrency=10)
        futures = [manager.submit(FunctionCall("lib", "inner_later", str(number))) for number in range(20)]
        results = [future.result() for future in futures]
        found = sorted((ids(span) for span in spans(20)), key=str)
        assert sorted((made[0] for _, made in results), key=str) == found
        assert len({told for told, _ in results}) == 20


def test_who_does_not_ask_pays_nothing(provider: Any, start_pilot: Any) -> None:
    """No span, no context, nothing loaded in the slot."""
    provider.clear()
    with Manager() as manager, start_pilot(manager):
        assert manager.submit_function(what_is_loaded).result() == ("", ["windlass.traces"])
        assert provider.get_finished_spans() == ()


def test_outside_of_a_call_there_is_no_trace() -> None:
    """So functions can be tested anywhere."""
    assert windlass.traceparent() == ""
    with pytest.raises(UsageError, match="traces"):
        Manager(traces="yes")  # type: ignore[arg-type]


@pytest.fixture
def start_pilot() -> Callable[[Manager], windlass.Factory]:
    """A factory with one local pilot of one core."""
    return lambda manager: windlass.Factory(manager, "local", cores=1, max_pilots=1)
