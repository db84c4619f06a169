"""Which calls wait for which, and which objects of results they need: the book, and the client with it, without a manager."""

from __future__ import annotations

import gc
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.strategies import data, integers, lists

from windlass.errors import Closed, InputFailed, NotPicklable
from windlass.manager.call import Target
from windlass.manager.calls import CLOSED
from windlass.manager.client import Client
from windlass.manager.future import CallFuture
from windlass.manager.inbox import Inbox
from windlass.manager.inputs import Holds, Inputs
from windlass.messages import (
    CANCELLED,
    RAISED,
    RETURNED,
    CallDone,
    CallEnd,
    CallId,
    CallSpec,
    CancelSubmitted,
    DefineFunctions,
    EndDetail,
    FunctionDef,
    FunctionId,
    InstallLibrary,
    LibraryId,
    LibrarySpec,
    ObjectName,
    Part,
    RemoveLibrary,
)
from windlass.objects import write_results
from windlass.pickling import SPANS_MOST, pack_exception, pack_result, unpack_call
from windlass.spooling import SpoolingStore

TARGET = Target(LibraryId("lib@1"), FunctionId(b"f" * 16), ("lib", "f"))


def spec(call: int, library: str = "lib@1") -> CallSpec:
    return CallSpec(CallId(call), LibraryId(library), FunctionId(b"f" * 16), b"call %d" % call)


def ids(*calls: int) -> list[CallId]:
    return [CallId(call) for call in calls]


# ---------------------------------------------------------------- the book


def test_a_call_is_ready_when_it_has_all_its_inputs() -> None:
    """In whatever order they come; its own part stands first, then the inputs' in the order in which they were named."""
    book = Inputs()
    waiting = book.add(spec(9), ids(1, 2, 3))
    assert book.ready(CallId(9)) is None
    assert book.give(CallId(3), Part(b"3")) == ([waiting], [])
    assert book.give(CallId(1), Part(b"1")) == ([waiting], [])
    book.check()
    assert book.give(CallId(2), Part(b"2")) == ([waiting], [waiting])
    assert [part.payload for part in waiting.whole()] == [b"call 9", b"1", b"2", b"3"]
    assert book.take(CallId(9)) is waiting
    assert not book.waiting
    assert not book.consumers
    book.check()


def test_a_call_is_not_ready_before_whoever_adds_it_has_looked_at_its_producers() -> None:
    """Producers may end while it is added, or have ended before; it is ready once."""
    book = Inputs()
    waiting = book.add(spec(9), ids(1, 2))
    assert book.give(CallId(1), Part(b"1")) == ([waiting], [])
    assert book.give_one(CallId(2), CallId(9), Part(b"2"))
    assert not book.give_one(CallId(2), CallId(9), Part(b"2")), "it has that one"
    book.check()
    assert book.ready(CallId(9)) is waiting


def test_the_consumers_of_a_failed_producer_are_dropped() -> None:
    """Those of other producers stay, and nobody looks for the dropped ones any more."""
    book = Inputs()
    first, second = book.add(spec(8), ids(1, 2)), book.add(spec(9), ids(1))
    other = book.add(spec(10), ids(2))
    assert book.failed(CallId(1)) == [first, second]
    assert book.failed(CallId(1)) == []
    assert book.give(CallId(2), Part(b"2"))[0] == [other]
    assert book.drop(CallId(8)) is None
    book.check()


def test_a_library_goes_when_no_call_of_it_waits_any_more() -> None:
    """A removal is put off while calls wait, done once, and undone by installing the version again."""
    book = Inputs()
    assert not book.remove_later(LibraryId("lib@1")), "nothing waits: do it now"
    for call in (8, 9):
        book.add(spec(call), ids(1))
    assert book.remove_later(LibraryId("lib@1"))
    book.drop(CallId(8))
    assert book.remove == []
    book.drop(CallId(9))
    assert book.remove == ["lib@1"]
    book.add(spec(10), ids(1))
    assert book.remove_later(LibraryId("lib@1"))
    assert not book.remove_later(LibraryId("lib@1"), undo=True)
    book.drop(CallId(10))
    assert book.remove == ["lib@1"]


class BookMachine(RuleBasedStateMachine):
    """Any order of events: each call gets ready once, with all its inputs, or is dropped; never both."""

    def __init__(self) -> None:
        super().__init__()
        self.book = Inputs()
        self.number = 0
        self.alive: set[int] = set()
        self.needs: dict[int, set[int]] = {}
        self.fed: set[int] = set()

    def new(self) -> int:
        self.number += 1
        self.alive.add(self.number)
        return self.number

    @rule()
    def submit(self) -> None:
        self.new()

    @precondition(lambda self: self.alive)
    @rule(data=data(), picks=lists(integers(0, 10**6), min_size=1, max_size=4))
    def submit_with_inputs(self, data: Any, picks: list[int]) -> None:
        producers = sorted({sorted(self.alive)[pick % len(self.alive)] for pick in picks})
        call = self.new()
        self.book.add(spec(call), ids(*producers))
        assert self.book.ready(CallId(call)) is None
        self.needs[call] = set(producers)

    @precondition(lambda self: self.alive - set(self.needs))
    @rule(pick=integers(0, 10**6))
    def returns(self, pick: int) -> None:
        running = sorted(self.alive - set(self.needs))
        call = running[pick % len(running)]
        self.alive.discard(call)
        consumers, ready = self.book.give(CallId(call), Part(b"%d" % call))
        assert {one.call for one in consumers} == {one for one, producers in self.needs.items() if call in producers}
        for producers in self.needs.values():
            producers.discard(call)
        assert {one.call for one in ready} == {one for one, producers in self.needs.items() if not producers}
        for one in ready:
            assert [part.payload for part in one.whole()[1:]] == [b"%d" % producer for producer in one.producers]
            assert self.book.take(one.call) is one
            del self.needs[one.call]

    @precondition(lambda self: self.alive)
    @rule(pick=integers(0, 10**6))
    def fails(self, pick: int) -> None:
        row = [sorted(self.alive)[pick % len(self.alive)]]
        while row:
            call = row.pop()
            self.alive.discard(call)
            self.needs.pop(call, None)
            self.book.drop(CallId(call))
            failed = {int(one.call) for one in self.book.failed(CallId(call))}
            assert failed == {one for one, producers in self.needs.items() if call in producers}
            for one in failed:
                del self.needs[one]
            row += failed

    @invariant()
    def holds(self) -> None:
        self.book.check()
        assert set(map(int, self.book.waiting)) == set(self.needs)


TestBook = BookMachine.TestCase
TestBook.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_objects_go_when_nobody_needs_them_and_their_future_let_them_go() -> None:
    """Either may come first, and letting go may be said twice."""
    holds, name = Holds(), ObjectName("r-1")
    assert holds.let_go([name]) == [name], "nobody needs it"
    holds.hold([name])
    holds.hold([name])
    assert holds.release([name]) == []
    assert holds.let_go([name]) == []
    assert holds.let_go([name]) == []
    assert holds.release([name]) == [name]
    holds.hold([name])
    assert holds.release([name]) == [], "its future still has it"
    assert not len(holds)


# ---------------------------------------------------------------- a client


class Bench:
    """A client whose manager is the test."""

    def __init__(self, store: SpoolingStore) -> None:
        self.store = store
        self.inbox: Inbox[Any] = Inbox(lambda: None)
        self.client = Client(store, self.inbox, lambda: 0.0)

    def submit(self, *args: Any, tag: str | None = None, target: Target = TARGET, **kwargs: Any) -> CallFuture[Any]:
        return self.client.submit(target, args, kwargs, tag=tag)

    def returns(self, future: CallFuture[Any], value: Any = None) -> None:
        payload, spans = pack_result(value, partial(write_results, self.store.folder))
        self.client.deliver([CallDone(CallEnd(CallId(future.call_id), 1, RETURNED, payload, spans))])

    def raises(self, future: CallFuture[Any], error: Exception) -> None:
        payload, detail = pack_exception(error)
        self.client.deliver([CallDone(CallEnd(CallId(future.call_id), 1, RAISED, payload, detail=detail))])

    def ends(self, future: CallFuture[Any], outcome: int, text: str = "") -> None:
        self.client.deliver([CallDone(CallEnd(CallId(future.call_id), 1, outcome, detail=EndDetail(text=text)))])

    def said(self) -> list[Any]:
        """What the manager got: messages, and calls as (number, args, kwargs)."""
        return [self.read(item) if isinstance(item, CallSpec) else item[1] for item in self.inbox.drain()]

    def calls(self) -> list[Any]:
        return [item for item in self.said() if isinstance(item, tuple)]

    def read(self, item: CallSpec) -> tuple[int, tuple[Any, ...], dict[str, Any]]:
        return (int(item.call), *unpack_call(item.payload, item.spans, self.store.open))

    def next_call(self) -> Any:
        """The next call, though it may take a thread to join it."""
        end = time.monotonic() + 20
        while not (calls := self.calls()):
            assert time.monotonic() < end, "no call came"
            time.sleep(0.002)
        (call,) = calls
        return call

    def nothing_left(self) -> None:
        """All calls have ended: nothing is held, and no object is pinned."""
        self.client.tidy()
        self.client.feeder.inputs.check()
        assert self.client.feeder.count.waiting == 0
        assert not self.client.feeder.held
        for name in self.store.names():
            assert not name.startswith("r-"), "a result's object stayed"
            self.store.discard(name)
        assert self.store.names() == [], "an object has a pin that nobody will take away"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    store = SpoolingStore(tmp_path / "store", 0, None)
    bench = Bench(store)
    yield bench
    bench.client.close("the test is over")
    store.close()


def test_a_call_goes_to_the_manager_when_its_input_exists(bench: Bench) -> None:
    """Not before; it gets the value, wherever in its arguments the future is."""
    first = bench.submit(1)
    second = bench.submit(first, [first, {"k": (first,)}], word=first)
    assert bench.calls() == [(first.call_id, (1,), {})]
    bench.returns(first, "value")
    assert bench.calls() == [(second.call_id, ("value", ["value", {"k": ("value",)}]), {"word": "value"})]
    bench.returns(second, 2)
    assert second.result(0) == 2
    bench.nothing_left()


def test_a_producer_that_has_ended_is_given_at_once(bench: Bench) -> None:
    """Its payload as it is, if nobody has asked for it."""
    first = bench.submit(1)
    bench.returns(first, {"a": 1})
    second = bench.submit(first)
    assert bench.calls()[1] == (second.call_id, ({"a": 1},), {})
    assert first.result(0) == {"a": 1}


def test_a_future_that_was_read_stands_for_what_the_program_has(bench: Bench) -> None:
    """As if `result()` had been given: with what the program has changed in it."""
    first = bench.submit(1)
    bench.returns(first, ["a"])
    first.result().append("b")
    second = bench.submit([first], first)
    assert bench.calls()[1] == (second.call_id, ([["a", "b"]], ["a", "b"]), {})


def test_a_result_that_is_read_while_it_is_given(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks between the pickling of the arguments and the taking of the result takes it away: the arguments are pickled again."""
    first = bench.submit(1)
    bench.returns(first, numpy.ones(50_000))
    real = CallFuture[Any].packed

    def read_first(future: CallFuture[Any]) -> Any:
        assert future.result(0).sum() == 50_000
        return real(future)

    monkeypatch.setattr(CallFuture, "packed", read_first)
    second = bench.submit(first)
    ((_, (array,), _),) = bench.calls()[1:]
    assert array.sum() == 50_000
    bench.returns(second)
    bench.nothing_left()


def test_objects_of_a_result_stay_until_its_consumers_have_ended(bench: Bench) -> None:
    """They go on by name, and stay though the program reads or drops the result; then they go."""
    first = bench.submit(1)
    consumers = [bench.submit(first), bench.submit([first])]
    bench.returns(first, numpy.ones(50_000))
    assert first.result(0).sum() == 50_000
    del first
    gc.collect()
    specs = [item for item in bench.inbox.drain() if isinstance(item, CallSpec)][1:]
    assert specs[0].spans == specs[1].spans
    bench.returns(consumers[0])
    assert bench.read(specs[1])[1][0][0].sum() == 50_000
    bench.returns(consumers[1])
    bench.nothing_left()


def test_objects_of_a_result_stay_for_the_program_when_its_consumers_have_ended(bench: Bench) -> None:
    """Being an input takes nothing from who holds the future."""
    first = bench.submit(1)
    second = bench.submit(first)
    bench.returns(first, numpy.ones(50_000))
    bench.returns(second)
    assert first.result(0).sum() == 50_000
    bench.nothing_left()


def test_what_is_too_long_for_a_message_becomes_an_object(bench: Bench) -> None:
    """Many inputs whose payloads are long together are joined on a thread; their object goes with the call."""
    producers = [bench.submit(number) for number in range(300)]
    wide = bench.submit(producers)
    bench.said()
    for number, future in enumerate(producers):
        bench.returns(future, f"{number}-" * 1000)
    _, ((*values,),), _ = bench.next_call()
    assert values == [f"{number}-" * 1000 for number in range(300)]
    bench.returns(wide)
    bench.nothing_left()


def test_more_objects_than_a_message_can_name(bench: Bench) -> None:
    """Of ten thousand results with an object each the smallest are copied, and all arrive."""
    producers = [bench.submit(number) for number in range(10_000)]
    wide = bench.submit(producers)
    bench.said()
    small, large = (pack_result(numpy.ones(size, numpy.uint8), partial(write_results, bench.store.folder)) for size in (66_000, 70_000))
    ends = [CallEnd(future.call_id, 1, RETURNED, *(large if future.call_id % 4 else small)) for future in producers]
    bench.client.deliver([CallDone(end) for end in ends])
    (item,) = next_specs(bench)
    assert len(item.spans) == SPANS_MOST + 1, "and the payload"
    _, ((*values,),), _ = bench.read(item)
    assert sum(int(value.sum()) for value in values) == 2_500 * 66_000 + 7_500 * 70_000
    bench.returns(wide)
    producers.clear()
    gc.collect()
    bench.nothing_left()


def next_specs(bench: Bench) -> list[CallSpec]:
    end = time.monotonic() + 60
    while not (found := [item for item in bench.inbox.drain() if isinstance(item, CallSpec)]):
        assert time.monotonic() < end, "no call came"
        time.sleep(0.002)
    return found


# ---------------------------------------------------------------- what goes wrong


def test_consumers_of_an_input_that_failed_with_much_to_say_do_not_each_repeat_it(bench: Bench) -> None:
    """As where the message is what a program wrote. All of it is in the cause, which they share."""
    first = bench.submit(1)
    consumers = [bench.submit(first) for _ in range(2)]
    bench.raises(first, ValueError("begin" + 100_000 * "x" + "end"))
    errors = [consumer.exception(0) for consumer in consumers]
    assert errors[0] is not None
    text = str(errors[0])
    assert text.startswith("call 2 (lib.f) was not run, because its input failed: call 1 (lib.f) raised ValueError: beginx")
    assert "characters left out" in text
    assert text.endswith("xend")
    assert len(text) < 10_000
    assert errors[1] is not None
    assert len(str(errors[0].__cause__)) > 100_000
    assert errors[0].__cause__ is errors[1].__cause__


def test_a_failed_input_ends_its_consumer_with_the_name_of_the_producer(bench: Bench) -> None:
    """At once, with the producer's exception as the cause; `wait` hands out both."""
    first = bench.submit(1, tag="night")
    second = bench.submit(first)
    bench.raises(first, ValueError("boom"))
    assert second.done()
    with pytest.raises(InputFailed) as caught:
        second.result(0)
    assert str(caught.value) == (
        "call 2 (lib.f) was not run, because its input failed: call 1 (lib.f, tag 'night') raised ValueError: boom"
    )
    assert isinstance(caught.value.__cause__, ValueError)
    assert (caught.value.call, caught.value.library, caught.value.function, caught.value.tag) == (1, "lib", "f", "night")
    assert second.state == "failed"
    assert bench.client.wait(0) is first
    assert bench.client.wait(0) is None
    assert bench.client.empty()


def test_a_failed_producer_may_be_given(bench: Bench) -> None:
    """The call ends at once; giving it raises nothing."""
    first = bench.submit(1)
    bench.raises(first, ValueError("boom"))
    with pytest.raises(ValueError, match="boom"):
        first.result(0)
    assert isinstance(bench.submit(first).exception(0), InputFailed)
    assert bench.client.empty()


def test_what_depends_on_a_failed_call_names_that_one(bench: Bench) -> None:
    """Ten thousand calls down the chain: no recursion, and the text and the cause are of the call that failed first."""
    first = future = bench.submit(1)
    for _ in range(10_000):
        future = bench.submit(future)
    bench.raises(first, ValueError("boom"))
    error = future.exception(0)
    assert isinstance(error, InputFailed)
    assert str(error) == (
        "call 10001 (lib.f) was not run, because what its input depends on failed: call 1 (lib.f) raised ValueError: boom"
    )
    assert isinstance(error.__cause__, ValueError)
    assert bench.client.feeder.count == (0, 10_000, 0)
    bench.nothing_left()


def test_a_chain_of_ten_thousand_calls(bench: Bench) -> None:
    """Each goes when the one before has returned, and gets its value."""
    futures = [bench.submit(0)]
    for _ in range(10_000):
        futures.append(bench.submit(futures[-1]))
    assert bench.client.feeder.count.waiting == 10_000
    for number, future in enumerate(futures):
        ((call, (value,), _),) = bench.calls()
        assert (call, value) == (future.call_id, number)
        bench.returns(future, number + 1)
    assert futures[-1].result(0) == 10_001
    bench.nothing_left()


def test_a_cancelled_producer_ends_its_consumers_at_once(bench: Bench) -> None:
    """Before the manager has confirmed it."""
    first = bench.submit(1)
    second = bench.submit(first)
    assert first.cancel()
    error = second.exception(0)
    assert str(error) == "call 2 (lib.f) was not run, because its input failed: call 1 (lib.f) was cancelled"
    assert isinstance(error.__cause__ if error else None, CancelledError)
    assert bench.said()[-1] == CancelSubmitted((first.call_id,))
    bench.ends(first, CANCELLED)
    assert bench.client.empty()


def test_a_waiting_call_can_be_cancelled(bench: Bench) -> None:
    """The manager hears nothing of it; its inputs' objects are let go; others that wait for the same stay."""
    first, other = bench.submit(1), bench.submit(2)
    second, third = bench.submit([first, other]), bench.submit(first)
    bench.said()
    bench.returns(first, numpy.ones(50_000))
    del first
    assert second.cancel()
    assert second.cancelled()
    bench.returns(other, 2)
    assert [call for call, _, _ in bench.calls()] == [third.call_id]
    bench.returns(third)
    bench.nothing_left()
    assert bench.client.feeder.count == (0, 0, 1)


def test_cancelling_all_cancels_what_waits_too(bench: Bench) -> None:
    """None of it fails for want of what was cancelled a moment before."""
    futures = [bench.submit(0)]
    for _ in range(10):
        futures.append(bench.submit(futures[-1]))
    assert bench.client.cancel_all(bench.client.pending()) == 11
    assert all(future.cancelled() for future in futures)


def test_the_end_of_the_manager_ends_waiting_calls(bench: Bench) -> None:
    """With `Closed`, as all others: none is said to have failed for want of an input."""
    first = bench.submit(1)
    second = bench.submit(first)
    third = bench.submit(second)
    bench.ends(first, CLOSED, "the manager was closed")
    assert isinstance(second.exception(0), Closed)
    assert isinstance(third.exception(0), Closed)
    last = bench.submit(bench.submit(1))
    bench.client.close("gone")
    assert str(last.exception(0)) == "gone"
    with pytest.raises(Closed, match="gone"):
        bench.submit(last)
    bench.nothing_left()


def test_no_room_for_joined_inputs_ends_the_call(tmp_path: Path) -> None:
    """When nothing that runs could make room, waiting would be for ever."""
    store = SpoolingStore(tmp_path / "store", 300_000, None)
    bench = Bench(store)
    producers = [bench.submit(number) for number in range(10)]
    wide = bench.submit(producers, bytes(100_000))
    for future in producers:
        bench.returns(future, "x" * 40_000)
    error = wide.exception(20)
    assert isinstance(error, InputFailed)
    assert str(error).startswith("call 11 (lib.f) was not run, because its inputs could not be kept for it: ")
    assert "run this with more memory or disk" in str(error)
    bench.nothing_left()
    store.close()


def test_futures_of_others_are_refused_where_they_are_given(bench: Bench, tmp_path: Path) -> None:
    """Of another manager, of `concurrent.futures`, wherever they are in the arguments; nothing was submitted."""
    other = Bench(SpoolingStore(tmp_path / "other", 0, None))
    theirs = other.submit(1)
    target = TARGET._replace(parameters=("x", "y"))
    with pytest.raises(NotPicklable) as caught:
        bench.submit(1, theirs, target=target)
    assert str(caught.value) == (
        "argument 2 ('y', windlass.manager.future.CallFuture) is the future of a call of another manager: submit both calls to one,"
        " or give what it has: future.result()"
    )
    plain: Future[int] = Future()
    with pytest.raises(NotPicklable) as caught:
        bench.submit({"a": [plain]}, target=target)
    assert str(caught.value) == (
        "argument 1 ('x', dict) has a part, its ['a'][0], that is a concurrent.futures.Future that is no call of this manager: wait for it,"
        " and give what it has: future.result()"
    )
    with pytest.raises(NotPicklable, match=r"keyword argument 'k' \(windlass.manager.future.CallFuture\) is the future of a call of ano"):
        bench.submit(k=theirs)
    with pytest.raises(NotPicklable, match=r"CallFuture\) is a concurrent.futures.Future that is no call of this manager: wait"):
        bench.submit(CallFuture())
    assert bench.client.empty()
    other.store.close()


def test_a_future_cannot_be_pickled_elsewhere(bench: Bench) -> None:
    """The text says where it can be given."""
    with pytest.raises(NotPicklable, match=r"write submit\(f, future\), which gives the function what the call returns"):
        pickle.dumps(bench.submit(1))


# ---------------------------------------------------------------- what is counted


def test_an_input_is_collected_by_the_call_that_got_it(bench: Bench) -> None:
    """`wait` does not hand out a result that another call has taken, and it does not stay in memory; a waiting call is not empty."""
    first = bench.submit(1)
    second = bench.submit(first)
    bench.returns(first, 1)
    assert first.collected
    assert bench.client.wait(0) is None
    assert not bench.client.empty()
    assert bench.client.outstanding() == 1
    bench.returns(second, 2)
    assert bench.client.wait(0) is second
    assert bench.client.empty()


def test_an_input_of_a_cancelled_call_is_handed_out(bench: Bench) -> None:
    """Nobody has taken it."""
    first = bench.submit(1)
    bench.submit(first).cancel()
    bench.returns(first, 1)
    assert bench.client.wait(0) is first


def test_a_late_call_finds_its_library_and_its_function(bench: Bench) -> None:
    """A version that is removed stays until its waiting calls are handed over, and a function that the manager may have forgotten meanwhile
    is defined again before its call."""
    definition = FunctionDef(TARGET.function, "f", b"blob")
    first = bench.submit(1)
    bench.submit(first, target=TARGET._replace(definition=definition))
    bench.said()
    bench.client.say(InstallLibrary(LibrarySpec(LibraryId("lib@2"), "lib", (3, 11))))
    bench.client.say(RemoveLibrary(LibraryId("lib@1")))
    for number in range(500):
        bench.client.say(DefineFunctions((FunctionDef(FunctionId(b"%16d" % number), "g", b"blob"),)))
    assert RemoveLibrary(LibraryId("lib@1")) not in bench.said()
    bench.returns(first, 1)
    define, call, remove = bench.said()
    assert define == DefineFunctions((definition,))
    assert call == (2, (1,), {})
    assert remove == RemoveLibrary(LibraryId("lib@1"))


def test_a_library_that_was_removed_while_the_arguments_were_pickled(bench: Bench) -> None:
    """By another thread: a call that has to wait has the version installed again, and removed when it has been handed over."""
    library = LibrarySpec(TARGET.library, "lib", (3, 11))
    first = bench.submit(1)
    bench.client.say(RemoveLibrary(library.id))
    bench.submit(first, target=TARGET._replace(spec=library))
    assert bench.said()[1:] == [RemoveLibrary(library.id), InstallLibrary(library)]
    bench.returns(first, 1)
    assert bench.said() == [(2, (1,), {}), RemoveLibrary(library.id)]


def test_a_future_in_a_closure_among_the_arguments(bench: Bench) -> None:
    """What goes by value has holes too."""
    first = bench.submit(1)
    bench.submit(lambda: first)
    bench.said()
    bench.returns(first, 5)
    ((_, (function,), _),) = bench.calls()
    assert function() == 5


def test_producers_that_end_while_they_are_given(bench: Bench) -> None:
    """One thread submits, another ends the producers as fast as it can: every call goes to the manager once, with all its inputs."""
    rounds, width = 300, 5
    given: list[list[CallFuture[Any]]] = []
    done = threading.Event()

    def end_them() -> None:
        while True:
            last = done.is_set()
            for item in [item for item in bench.inbox.drain() if isinstance(item, CallSpec)]:
                number, args, _ = bench.read(item)
                if len(args) == 1:
                    future = bench.client.find(CallId(number))
                    assert future is not None
                    bench.returns(future, (args[0], numpy.ones(9_000)) if args[0] % 3 == 0 else (args[0], None))
                else:
                    seen[number] = [value for value, _ in args]
            if last:
                return

    seen: dict[int, list[int]] = {}
    ender = threading.Thread(target=end_them)
    ender.start()
    wide: list[CallFuture[Any]] = []
    for number in range(rounds):
        producers = [bench.submit(number * width + one) for one in range(width)]
        given.append(producers)
        if number % 2:
            producers[0].result(10)
        wide.append(bench.submit(*producers))
    for producers in given:
        for future in producers:
            future.wait(10)
    done.set()
    ender.join()
    expected = {future.call_id: list(range(number * width, (number + 1) * width)) for number, future in enumerate(wide)}
    assert {CallId(number): values for number, values in seen.items()} == expected
    for future in wide:
        bench.returns(future)
    given.clear()
    producers = []
    future = wide[0]
    gc.collect()
    bench.nothing_left()
