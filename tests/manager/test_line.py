"""What comes over a program's line, given to one that was never opened: what it says stays in its port's outbox."""

# pyright: reportPrivateUsage=false
# The manager's part is the test's.

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from windlass.errors import Closed, ConnectionRefused, StoreFull, Unreachable
from windlass.identity import ConnectionFile
from windlass.manager import line as module
from windlass.manager.call import TAG_MOST
from windlass.manager.keeping import KeptResults, Needed
from windlass.manager.line import Line
from windlass.messages import (
    MAX_FRAME_BYTES,
    CallId,
    CallOptions,
    CallSent,
    CallsFound,
    CallSpec,
    FileName,
    FindCalls,
    FunctionId,
    Leave,
    LibraryId,
    Message,
    ObjectName,
    ObjectRef,
    Sandbox,
    SubmitCalls,
)
from windlass.session import encode_one

NOWHERE = ConnectionFile("m", "client", "", "", "", ())


def nothing(*_: object) -> None:
    """What of a line these tests do not need."""


def take_over(found: CallsFound, tag: str) -> list[str]:
    return [f"{tag} {call}" for call, _ in found.calls]


def make_line() -> Line:
    """A line to a manager that is nowhere, and that tells nobody."""
    return Line(NOWHERE, "p", nothing, nothing, nothing, nothing, nothing, take_over)


def test_who_attaches_is_told_of_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As what it is, and not that its manager was not reached. What was made goes when that was not reached."""

    def full(kind: str) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"/dev/shm/windlass-{kind}")

    monkeypatch.setattr(module, "default_store_folder", full)
    with pytest.raises(OSError, match="No space left on device: '/dev/shm/windlass-program'"):
        make_line().open(False, 10.0)
    monkeypatch.setattr(module, "default_store_folder", tmp_path.joinpath)
    with pytest.raises(ConnectionRefused, match="manager m was not reached at no address"):
        make_line().open(False, 0.0)
    assert not any(tmp_path.iterdir())


def test_who_gives_up_to_attach_leaves_no_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would go on connecting, and its manager show a program that nobody has."""
    monkeypatch.setattr(module, "default_store_folder", tmp_path.joinpath)
    line = make_line()

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(line._port._opened, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        line.open(False, 10.0)
    assert not line._port._thread.is_alive()
    assert not any(tmp_path.iterdir())


class Finder:
    """A program that asks in a thread of its own, and a manager that answers when the test says so."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self.line = make_line()
        self._threads = threads

    def ask(self, tag: str) -> Future[list[str]]:
        said = len(self.line._port._outbox)
        asked = self._threads.submit(self.line.find, tag, 30.0)
        end = time.monotonic() + 30
        while self.line._port._outbox[said:] != [FindCalls(tag)]:
            assert time.monotonic() < end, "it never asked"
            time.sleep(0.001)
        return asked

    def give_up(self, tag: str) -> None:
        with pytest.raises(Unreachable, match="manager m did not answer within 0 s; ask again"):
            self.line.find(tag, 0.0)

    def answer(self, *calls: int, more: bool = False) -> None:
        self.line._hear(CallsFound([(CallId(call), 0.0) for call in calls], more))


@pytest.fixture
def finder() -> Iterator[Finder]:
    with ThreadPoolExecutor(2) as threads:
        yield Finder(threads)


def test_an_answer_that_comes_too_late_is_not_taken_for_that_of_another_tag(finder: Finder) -> None:
    """A cut may be longer than one waits; the manager answers afterwards, and gives no call twice."""
    finder.give_up("a")
    asked = finder.ask("b")
    finder.answer(1, 2)
    finder.answer(3, more=True)
    finder.answer(4)
    assert asked.result(30) == ["b 3", "b 4"]
    asked = finder.ask("a")
    finder.answer()
    assert asked.result(30) == ["a 1", "a 2"]


def test_who_asks_again_gets_what_the_first_answer_found(finder: Finder) -> None:
    """And the second one, which has nothing, is not that to the next question."""
    finder.give_up("a")
    asked = finder.ask("a")
    finder.answer(1)
    finder.answer()
    assert asked.result(30) == ["a 1"]
    asked = finder.ask("b")
    finder.answer(2)
    assert asked.result(30) == ["b 2"]


def test_nobody_waits_for_what_a_manager_that_has_ended_would_find(finder: Finder) -> None:
    """Whether asked before its end or after it."""
    asked = finder.ask("a")
    finder.line._hear(Leave("it was closed"))
    for each in (asked, finder.ask("b")):
        with pytest.raises(Closed, match="manager m is gone"):
            each.result(30)


class Taking:
    """A port, and its connection, that takes all."""

    congested = False

    def __init__(self) -> None:
        self.link = self
        self.messages: list[Message] = []

    def call(self, work: object) -> None:
        """The test does it."""

    def send_now(self, message: Message) -> None:
        self.messages.append(message)


def test_calls_with_long_tags_and_many_files_fit_into_frames(finder: Finder) -> None:
    """All that waits while a connection is congested goes at once when it is not."""
    said = Taking()
    finder.line._port = cast("Any", said)
    options, tag = CallOptions(), "\N{WIND BLOWING FACE}" * TAG_MOST
    sandbox = Sandbox(outputs=tuple((f"out{number}", FileName("r-" + "0" * 32)) for number in range(20)))
    calls = [
        CallSpec(CallId(number), LibraryId("lib@1"), FunctionId(b"f" * 16), b"", (), options, sandbox=sandbox, tag=tag)
        for number in range(1000)
    ]
    for call in calls:
        finder.line.inbox.put(call)
    finder.line._drain()
    assert sum(len(message.calls) for message in said.messages if isinstance(message, SubmitCalls)) == 1000
    assert max(len(encode_one(message)) for message in said.messages) < MAX_FRAME_BYTES


def test_calls_that_each_fill_a_frame_go_one_by_one(finder: Finder) -> None:
    """Behind small ones, and before such."""
    said = Taking()
    finder.line._port = cast("Any", said)
    large = Sandbox(inputs=tuple((f"{number:0120}", FileName("b3-" + "0" * 32), "f") for number in range(5000)))
    for number in range(30):
        room = large if number % 10 == 5 else None
        call = CallSpec(CallId(number), LibraryId("lib@1"), FunctionId(b"f" * 16), b"x" * 20_000, sandbox=room)
        assert (
            room is None or MAX_FRAME_BYTES * 0.7 < len(encode_one(SubmitCalls(call.library, call.options, [sent(call)]))) < MAX_FRAME_BYTES
        )
        finder.line.inbox.put(call)
    finder.line._drain()
    assert [call.call for message in said.messages if isinstance(message, SubmitCalls) for call in message.calls] == list(range(30))
    assert max(len(encode_one(message)) for message in said.messages) < MAX_FRAME_BYTES


def sent(call: CallSpec) -> CallSent:
    return CallSent(call.call, call.function, call.payload, sandbox=call.sandbox)


def full_disk() -> ConnectionError:
    error = ConnectionError("no room for an object")
    error.__cause__ = StoreFull("no room for an object")
    return error


@pytest.mark.parametrize(("error", "leaves"), [(full_disk(), False), (ConnectionError("refused"), True)], ids=["disk", "leaving"])
def test_a_result_is_not_waited_for_where_no_connection_would_bring_it(
    finder: Finder, monkeypatch: pytest.MonkeyPatch, error: ConnectionError, leaves: bool
) -> None:
    """It is the program's own disk that is full, or the program leaves; the line stands in both cases. Who leaves tries it once: each
    try takes as long as it takes to dial, and there may be a thousand results."""
    tried: list[str] = []

    def get(ref: ObjectRef, store: object) -> None:
        tried.append(ref.name)
        raise error

    monkeypatch.setattr(finder.line, "get", get)
    store = finder.line.store
    store._results["r-" + "0" * 32] = 100_000
    if leaves:
        store.patience_until = time.monotonic() - 1
    with pytest.raises(Closed, match=f"100,000 bytes .* cannot be had from there any more: {error}"):
        store.open("r-" + "0" * 32)
    with pytest.raises(Closed, match=r"100,000 bytes .* cannot be had from there any more"):
        store.open("r-" + "0" * 32)
    assert len(tried) == (1 if leaves else 2)
    assert not finder.line.lost
    store.close()


def test_who_leaves_has_nothing_brought_from_workers() -> None:
    """It was kept there for not being moved, and there may be much of it."""

    def absent(name: str) -> memoryview:
        raise KeyError(name)

    said: list[Message] = []
    left = ""
    kept = KeptResults(absent, said.append, lambda: left)
    name = "r-" + "0" * 32
    kept.note([ObjectRef(ObjectName(name), 100_000)], Needed((), {}, []))
    left = "this program has left the manager"
    with pytest.raises(Closed, match=left):
        kept.open(name)
    assert said == []


def test_an_argument_that_could_not_be_sent_is_put_again_for_the_same_use(finder: Finder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manager may have had it all the same: it is to be released there as often as here."""
    said: list[tuple[str, int]] = []

    def put_bytes(name: str, view: memoryview, use: int) -> None:
        said.append((bytes(view[:1]).decode(), use))
        if len(said) == 1:
            raise Unreachable("cut")

    monkeypatch.setattr(finder.line, "put_bytes", put_bytes)
    store = finder.line.store
    with pytest.raises(Unreachable):
        store.put(b"a" * 1000)
    for data in (b"a" * 1000, b"b" * 1000):
        store.unpin(store.put(data).name)
    store.put(b"a" * 1000)
    (first, one), (_, again), (_, other), (_, last) = said
    assert [first, one] == ["a", again]
    assert len({one, other, last}) == 3
