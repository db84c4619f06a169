"""One collector of what fails: what its readers are told agrees, in numbers and in names, and is bounded."""

from __future__ import annotations

import json

import pytest

from windlass.manager.calls import CLOSED
from windlass.manager.causes import TEXT_MOST as CAUSE_TEXT_MOST
from windlass.manager.core import Core
from windlass.manager.failures import FAILURES_KEPT, first_line
from windlass.manager.listing import list_calls
from windlass.manager.names import NAME_MOST, UNKNOWN, Names
from windlass.manager.status import status
from windlass.messages import (
    RAISED,
    CallEnd,
    CallId,
    CallOptions,
    CallsEnded,
    CallSpec,
    CallsReturned,
    EndDetail,
    FunctionDef,
    FunctionId,
    HeldCall,
    LibraryId,
    LibraryReady,
    LibrarySpec,
    ListCalls,
    Message,
    Resources,
    RunCalls,
    StartLibrary,
    WorkerId,
    WorkerInfo,
)

F, GONE = FunctionId(b"f" * 16), FunctionId(b"g" * 16)
LIB = LibraryId("lib@1")
W = WorkerId("w1")
NOW = 1000.0
ONE_RETRY = CallOptions(retries=1, retry_on=("builtins.OSError",))


class Bench:
    """A core with one worker, which does what the test says."""

    def __init__(self, name: str = "f") -> None:
        self.core = Core()
        self.core.install(LibrarySpec(LIB, "lib", (3, 11), functions=(FunctionDef(F, name, b"x"),)), NOW)
        self.join()

    def join(self) -> None:
        self.core.worker_joined(W, WorkerInfo("node1", 1, Resources(64.0)), NOW)

    def submit(self, *calls: int, options: CallOptions | None = None, function: FunctionId = F) -> dict[int, int]:
        """Calls, and which attempt of each the worker has got now."""
        self.core.submit([CallSpec(CallId(one), LIB, function, b"", (), options or CallOptions()) for one in calls], NOW)
        return self.turn()

    def turn(self) -> dict[int, int]:
        got: dict[int, int] = {}
        self.core.pump(NOW)
        while out := self.core.take_outbox():
            for message in (one for messages in out.values() for one in messages):
                if isinstance(message, StartLibrary):
                    self.say(LibraryReady(message.instance, 1))
                elif isinstance(message, RunCalls):
                    got.update((run.call, run.attempt) for run in message.calls)
        return got

    def say(self, *messages: Message) -> None:
        self.core.worker_said(W, list(messages), NOW)
        self.core.pump(NOW)

    def raises(self, error: str, attempts: dict[int, int]) -> None:
        detail = EndDetail(types=(f"builtins.{error}",), text=f'  File "/m.py", line 3, in f\n{error}: no\n')
        self.say(CallsEnded([CallEnd(CallId(call), attempt, RAISED, detail=detail) for call, attempt in attempts.items()]))

    def listed(self) -> list[dict[str, object]]:
        answer = json.loads(list_calls(self.core, ListCalls(states=("failed",), most=1000), NOW, lambda call: ("", call)))
        assert answer["counts"]["failed"] == self.told("failed")
        return list(answer["calls"])

    def told(self, word: str) -> int:
        return int(status(self.core, "m", [], NOW)["calls"][word])


def test_status_lists_and_causes_agree() -> None:
    """Each call that failed is in all three, once; each attempt that was tried again is in status and causes, whatever took it away."""
    bench = Bench()
    got = bench.submit(1, 2, 3, 4, options=ONE_RETRY)
    bench.raises("OSError", got)  # all have one more try
    bench.raises("OSError", {1: 2, 2: 2})
    bench.say(CallsReturned((HeldCall(CallId(3), 2),), "warned"))
    bench.core.worker_lost(W, "preempted", NOW)
    bench.core.submit([CallSpec(CallId(5), LibraryId("gone@1"), F, b"", (), CallOptions())], NOW)
    causes = bench.core.failures.causes.rows()
    assert bench.told("failed") == len(bench.listed()) == sum(row["calls"] for row in causes) == 3
    assert (bench.told("retried"), bench.told("lost_attempts")) == (4, 3), "one of them twice"
    assert sum(row["retried"] for row in causes) == 7
    assert {(row["kind"], row["message"]) for row in causes} == {
        ("raised", "OSError: no"),
        ("lost with its worker", "preempted"),
        ("no pool can run it", "library version 'gone@1' is not installed"),
    }


def test_what_a_list_says_of_a_failure_its_cause_says_too() -> None:
    """The function's name, the host and the line of the error."""
    bench = Bench()
    bench.raises("ValueError", bench.submit(1))
    ((row,), (cause,)) = bench.listed(), bench.core.failures.causes.rows()
    assert f"{row['library']}.{row['function']}" == cause["function"] == "lib.f"
    assert {str(row["host"]): 1} == cause["hosts"] == {"node1": 1}
    assert row["error"] == cause["message"] == "ValueError: no"
    assert row["outcome"] == cause["kind"] == "raised"


def test_an_unknown_function_has_one_name_everywhere() -> None:
    """A library that is not installed is known by its version's id still."""
    bench = Bench()
    assert bench.submit(1, function=GONE) == {}, "its definition is not here"
    bench.core.submit([CallSpec(CallId(2), LibraryId("gone@2"), F, b"", (), CallOptions())], NOW)
    assert [(row["library"], row["function"]) for row in bench.listed()] == [("gone", "f"), ("lib", UNKNOWN)]
    assert [row["function"] for row in bench.core.failures.causes.rows()] == ["lib.?", "gone.f"]
    assert Names({}, {}).whole(LibraryId("a@b@1"), F) == "a@b.?"
    assert Names({}, {}).library(LibraryId("bare")) == "bare"


def test_what_ends_with_its_manager_counts_and_no_more() -> None:
    """Nobody can ask for it then, and there may be a million."""
    bench = Bench()
    bench.submit(1, 2)
    bench.core.close("the manager was closed", NOW)
    assert [done.end.outcome for done in bench.core.take_done()] == [CLOSED] * 2
    assert bench.told("failed") == 2
    assert bench.listed() == bench.core.failures.causes.rows() == []


def test_memory_is_bounded_whatever_its_names_are() -> None:
    """A program may make functions and classes of any name, and a row has to fit into a message."""
    bench = Bench("x" * 1_000_000)
    for first in range(1, FAILURES_KEPT + 100, 100):
        bench.raises("y" * 100_000, bench.submit(*range(first, first + 100)))
    assert len(bench.listed()) == FAILURES_KEPT
    assert max(len(str(row)) for row in bench.listed()) < 1500
    (cause,) = bench.core.failures.causes.rows()
    assert len(str(cause)) < CAUSE_TEXT_MOST + 3000
    assert len(cause["function"]) == len("lib.") + NAME_MOST


@pytest.mark.parametrize(
    ("types", "text", "line"),
    [
        (("builtins.KeyError",), "Traceback\nKeyError: 'a'\n", "KeyError: 'a'"),
        (("m.Own", "builtins.KeyError"), "Traceback\nm.Own: first\nsecond\n", "m.Own: first"),
        (("builtins.ValueError",), "ValueError: cause\n\nDuring handling\n\nTraceback\nValueError: last\n", "ValueError: last"),
        (("builtins.ValueError",), "... cut ...", "ValueError"),
        ((), "\n one\ntwo", "one"),
        (
            (),
            "library 'lib' cannot start: Traceback (most recent call last):\n  File ...\nImportError: x\n",
            "library 'lib' cannot start: ImportError: x",
        ),
        ((), "", ""),
    ],
)
def test_the_first_line_of_an_error_is_its_type_and_message(types: tuple[str, ...], text: str, line: str) -> None:
    """Of a chain the exception that the future raises."""
    assert first_line(CallEnd(CallId(1), 1, RAISED, detail=EndDetail(types=types, text=text))) == line
    assert first_line(CallEnd(CallId(1), 1, RAISED)) == ""
