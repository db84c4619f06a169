"""Calls that wait for what others make: how they end when it will not be made, however many there are and however long the chain is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from windlass.manager.calls import CLOSED
from windlass.manager.core import Core
from windlass.messages import (
    CANCELLED,
    NO_FILE,
    RAISED,
    RETURNED,
    CallDone,
    CallEnd,
    CallId,
    CallsEnded,
    CallSpec,
    EndDetail,
    FileName,
    FileOrigin,
    FileRef,
    FunctionDef,
    FunctionId,
    LibraryId,
    LibraryReady,
    LibrarySpec,
    Resources,
    Sandbox,
    StartLibrary,
    WorkerId,
    WorkerInfo,
)

F = FunctionId(b"f" * 16)
LIB = LibraryId("lib@1")
W = WorkerId("w1")
#: More than twice as many as Python nests calls of functions.
LONG = 3000


def temp(number: int) -> FileRef:
    """A file that a call makes."""
    return FileRef(FileName(f"r3-{number:032x}"), -1, "made", "workflow")


class Pipeline:
    """A core with one worker of one core, and calls that make files for others."""

    def __init__(self) -> None:
        self.core, self.now = Core(), 1000.0
        self.done: dict[int, CallDone] = {}
        self.core.install(LibrarySpec(LIB, "lib", (3, 11), functions=(FunctionDef(F, "f", b"blob"),)), self.now)
        self.core.worker_joined(W, WorkerInfo("host", 1, Resources(1.0)), self.now)

    def declare(self, *refs: FileRef) -> None:
        for ref in refs:
            self.core.declare_file(ref, FileOrigin())

    def submit(self, *specs: CallSpec) -> None:
        self.core.submit(specs, self.now)
        self.step()

    def step(self) -> None:
        """What is to be done is done, and the library starts at once."""
        self.core.pump(self.now)
        self.core.check()
        for message in self.core.take_outbox().get(W, []):
            if isinstance(message, StartLibrary):
                self.core.worker_said(W, [LibraryReady(message.instance, 7)], self.now)
                self.step()
        self.take_done()

    def take_done(self) -> None:
        for done in self.core.take_done():
            assert done.end.call not in self.done, "a call ended twice"
            self.done[done.end.call] = done

    def end(self, call: int, outcome: int, detail: EndDetail | None = None, outputs: tuple[FileRef, ...] = ()) -> None:
        """The worker says that a call, which it holds, has ended."""
        attempt = self.core.calls[CallId(call)].attempt
        end = CallEnd(CallId(call), attempt, outcome, b"", detail=detail, outputs=outputs)
        self.core.worker_said(W, [CallsEnded([end])], self.now)
        self.step()

    def chain(self, count: int) -> None:
        """Each makes the file that the next one needs; the first runs."""
        self.declare(*map(temp, range(1, count + 1)))
        self.submit(*(link(number) for number in range(1, count + 1)))
        assert [held.spec.call for held in self.core.workers[W].calls.values()] == [1]

    def outcomes(self) -> list[int]:
        """Of all calls in order."""
        return [self.done[call].end.outcome for call in sorted(self.done)]

    def texts(self) -> set[str]:
        """Of all calls but the first."""
        return {done.end.detail.text for call, done in self.done.items() if call > 1 and done.end.detail is not None}


def link(number: int) -> CallSpec:
    """A call of a chain."""
    inputs = (temp(number - 1),) if number > 1 else ()
    return CallSpec(CallId(number), LIB, F, b"", inputs=inputs, sandbox=Sandbox(outputs=(("made", temp(number).name),)))


def user(number: int) -> CallSpec:
    """A call that needs what the first of a chain makes."""
    return CallSpec(CallId(number), LIB, F, b"", inputs=(temp(1),))


def _raise(pipeline: Pipeline) -> None:
    pipeline.end(1, RAISED, EndDetail(("builtins.ValueError",), "ValueError: no such luck"))


def _cancel(pipeline: Pipeline) -> None:
    pipeline.core.cancel([CallId(1)], pipeline.now)
    pipeline.end(1, CANCELLED)


@pytest.mark.parametrize(
    ("fail", "outcome", "why"), [(_raise, RAISED, "ValueError: no such luck"), (_cancel, CANCELLED, "not run to its end")]
)
def test_a_chain_of_any_length_ends_when_its_first_call_fails(fail: Callable[[Pipeline], None], outcome: int, why: str) -> None:
    """Each is told which file is missing in the first place, and why: not the story of all that came between."""
    pipeline = Pipeline()
    pipeline.chain(LONG)
    fail(pipeline)
    assert pipeline.outcomes() == [outcome] + [NO_FILE] * (LONG - 1)
    [text] = pipeline.texts()
    assert text.startswith(f"file made ({temp(1).name}) could not be made: ")
    assert text.endswith(why)


def test_calls_that_come_when_the_first_of_their_chain_has_failed_are_told_the_same() -> None:
    """None of them has ever waited for its file."""
    pipeline = Pipeline()
    pipeline.declare(*map(temp, range(1, LONG + 1)))
    pipeline.submit(link(1))
    _raise(pipeline)
    pipeline.submit(*map(link, range(2, LONG + 1)))
    assert pipeline.outcomes() == [RAISED] + [NO_FILE] * (LONG - 1)
    assert pipeline.texts() == {f"file made ({temp(1).name}) could not be made: ValueError: no such luck"}


def test_a_file_that_could_not_be_made_is_waited_for_when_a_call_that_makes_it_comes() -> None:
    """It had been asked for before the manager heard of that call."""
    pipeline = Pipeline()
    pipeline.declare(temp(1))
    pipeline.core.bring_files([temp(1).name])
    pipeline.step()
    assert pipeline.core.replicas.files[temp(1).name].lost
    pipeline.submit(link(1), user(2))
    assert not pipeline.done
    pipeline.end(1, RETURNED, outputs=(temp(1),))
    assert list(pipeline.core.workers[W].calls) == [2]


def test_calls_that_wait_for_files_end_once_with_their_manager() -> None:
    """By its end, and not for want of a file, which would be no news to anybody."""
    pipeline = Pipeline()
    pipeline.chain(LONG)
    pipeline.submit(*map(user, range(LONG + 1, LONG + 3)))
    pipeline.core.close("the manager was closed", pipeline.now)
    pipeline.take_done()
    assert pipeline.outcomes() == [CLOSED] * (LONG + 2)
    text = "the call ended with its manager (the manager was closed) before it had a result; submit it to another one"
    assert pipeline.texts() == {text}
    assert pipeline.core.failures.calls == LONG + 2
    assert not pipeline.core.parked
    state = pipeline.core.libraries[LIB]
    assert (state.waiting, state.running, [queue.waiting for queue in state.queues]) == (0, 0, [0] * len(state.queues))


def test_calls_that_wait_for_one_file_are_cancelled_in_any_order() -> None:
    """Each is found at once: nothing compares it to the others that wait, of which there may be very many."""
    pipeline = Pipeline()
    pipeline.declare(temp(1))
    pipeline.submit(link(1), *map(user, range(2, 20_002)))
    assert [len(calls) for calls in pipeline.core.parked.values()] == [20_000]
    pipeline.core.cancel([CallId(number) for number in (5, 3, *range(20_001, 10, -1))], pipeline.now)
    pipeline.step()
    assert len(pipeline.done) == 19_993
    assert set(pipeline.outcomes()) == {CANCELLED}
    assert list(pipeline.core.parked[temp(1).name]) == [2, 4, 6, 7, 8, 9, 10]


def test_calls_that_waited_for_a_file_run_in_the_order_in_which_they_came() -> None:
    """First come, first served."""
    pipeline = Pipeline()
    pipeline.declare(temp(1))
    pipeline.submit(link(1), *map(user, range(2, 6)))
    pipeline.end(1, RETURNED, outputs=(temp(1),))
    held = [call.spec.call for call in pipeline.core.workers[W].calls.values()]
    assert held == [2, 3, 4, 5][: len(held)]
    assert held
