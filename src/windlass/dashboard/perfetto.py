"""A run's time line for Perfetto (ui.perfetto.dev) and chrome://tracing, in the format that these call a trace.

(``trace`` is a call's OpenTelemetry trace everywhere else: `windlass.traces`.)

Theory of operation: a worker is a process, a lane of it a thread, a block a complete event (``X``); the numbers over time are counters
(``C``) of a process of their own.  Times are microseconds since the beginning of the run, as the format wants them.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

_Block = tuple[float, float, int, int, float, int, int, int]


def perfetto_json(whole: dict[str, Any]) -> bytes:
    """The time line of a view with all that was noted (`Feed.whole`, `windlass.runs`)."""
    record: dict[str, Any] = whole["record"]
    names: list[str] = record["names"]
    run = f"windlass {record['run']}"
    events: list[dict[str, Any]] = [_called("process_name", 0, 0, run)]
    # Calls that ran when the recording began did so before its zero, and the format knows no times below that.
    zero = min([0.0, *(blocks[0][0] for *_, blocks in whole["lanes"] if blocks)])
    processes: dict[str, int] = {}
    for worker, host, lane, blocks in whole["lanes"]:
        process = processes.get(worker)
        if process is None:
            process = processes[worker] = len(processes) + 1
            events.append(_called("process_name", process, 0, f"{host} ({worker})"))
        events.append(_called("thread_name", process, lane + 1, f"slot {lane + 1}"))
        for start, end, what, calls, busy, failed, call, _ in cast("list[_Block]", blocks):
            name = names[what] if what < len(names) else "?"
            told: dict[str, Any] = {"calls": calls, "busy_seconds": busy}
            if call:
                told["call"] = call
            event = _event("X", process, lane + 1, start - zero, name if calls == 1 else f"{calls} calls of {name}", told)
            event["dur"] = round(max(0.0, end - start) * 1e6, 1)
            event["cat"] = "failed" if failed else "call"
            if failed:
                told["failed"], event["cname"] = failed, "terrible"
            events.append(event)
    for row in whole["samples"]:
        told = dict(zip(record["sampled"], row, strict=False))
        at = told.pop("at")
        for group in (("waiting", "running"), ("done", "failed", "cancelled"), ("workers", "slots")):
            events.append(_event("C", 0, 0, at - zero, ", ".join(group), {name: told[name] for name in group if name in told}))
    return msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"run": record["run"]}})


def _called(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}


def _event(phase: str, process: int, thread: int, at: float, name: str, told: dict[str, Any]) -> dict[str, Any]:
    return {"ph": phase, "name": name, "pid": process, "tid": thread, "ts": round(at * 1e6, 1), "args": told}
