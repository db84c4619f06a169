"""One call waits behind each that runs where its data is fetched meanwhile, and nowhere else; simulated workers (`conftest.Cluster`)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from windlass.manager.prefetch import WORTH_SECONDS, Prefetch
from windlass.messages import CallOptions, ObjectName, ObjectRef, Resources, WorkerId

DATA = (ObjectRef(ObjectName("o" * 32), 1 << 26),)


def outstanding(cluster: Any, name: str = "w1") -> int:
    return sum(one.outstanding for one in cluster.core.workers[WorkerId(name)].instances.values())


def fetching(cluster: Any, seconds: float = 1.0, fetch: float = 0.5, cores: int = 2, depth: int = 40) -> Any:
    """A stream of calls that fetch their data, from when calls wait behind others; its library's state."""
    library = cluster.library("lib")
    cluster.worker("w1", cores=cores)
    cluster.data, cluster.fetch = DATA, fetch
    cluster.stream("stream", library, (seconds,), depth=depth)
    cluster.run(6 * (seconds + fetch))
    state = cluster.core.libraries[library]
    assert state.prefetch.on
    return state


def test_what_calls_need_is_fetched_while_others_run(cluster: Any) -> None:
    """Calls of 1 s that fetch for half a second: 2 slots end 2 a second instead of 1.33."""
    fetching(cluster)
    before = len(cluster.ended["stream"])
    cluster.run(60.0)
    assert 114 <= len(cluster.ended["stream"]) - before <= 120
    assert outstanding(cluster) == 4
    assert cluster.recalls <= 1, "once, what was sent before it was known how long calls take"


def test_large_results_are_handed_over_while_others_run(cluster: Any) -> None:
    """Nothing more is sent before a call's end is told, and that is when its result is there."""
    library = cluster.library("lib")
    cluster.worker("w1", cores=2)
    cluster.results, cluster.hand_over = DATA, 0.5
    cluster.stream("stream", library, (1.0,), depth=40)
    cluster.run(10.0)
    before, recalls = len(cluster.ended["stream"]), cluster.recalls
    cluster.run(60.0)
    assert 114 <= len(cluster.ended["stream"]) - before <= 120
    assert cluster.recalls == recalls, "and they are not taken for calls that do not end"


def test_calls_that_take_long_are_not_taken_back_as_long_as_they_take_what_is_known(cluster: Any) -> None:
    """It is 20 s here, four times as long as nothing may move at a worker with data otherwise."""
    fetching(cluster, seconds=20.0, fetch=1.0)
    before = cluster.recalls
    cluster.run(200.0)
    assert cluster.recalls == before


@pytest.mark.parametrize(("data", "fetch"), [((), 0.5), (DATA, 0.0), (DATA, WORTH_SECONDS / 2)])
def test_calls_that_fetch_nothing_have_none_behind_them(cluster: Any, data: Any, fetch: float) -> None:
    library = cluster.library("lib")
    cluster.worker("w1", cores=2)
    cluster.data, cluster.fetch = data, fetch
    cluster.stream("stream", library, (1.0,))
    cluster.run(3.0)
    for _ in range(50):
        cluster.run(0.2)
        assert outstanding(cluster) <= 2


def test_what_the_first_calls_fetch_for_all_that_follow_does_not_count(cluster: Any) -> None:
    library = cluster.library("lib")
    cluster.worker("w1", cores=2)
    cluster.data, cluster.fetch = DATA, 5.0
    cluster.stream("stream", library, (1.0,))
    cluster.run(1.0)
    cluster.fetch = 0.0
    cluster.run(20.0)
    assert cluster.core.libraries[library].prefetch.seconds < WORTH_SECONDS


def test_it_ends_when_calls_without_data_come(cluster: Any) -> None:
    state = fetching(cluster)
    cluster.data = ()
    cluster.run(60.0)
    assert not state.prefetch.on
    assert outstanding(cluster) == 2


def test_it_is_learned_anew_after_a_while(cluster: Any) -> None:
    """What has fallen is so found out; and what has not goes on after one call in each slot."""
    state = fetching(cluster, fetch=0.1)
    offs = 0
    for _ in range(300):
        was = state.prefetch.on
        cluster.run(1.0)
        offs += was and not state.prefetch.on
    assert 1 <= offs <= 3
    assert len(cluster.ended["stream"]) > 1.95 * 300
    cluster.fetch = 0.0
    cluster.run(300.0)
    assert not state.prefetch.on
    assert state.prefetch.seconds < WORTH_SECONDS


def test_a_slot_that_is_free_elsewhere_gets_what_waits_behind_others(cluster: Any) -> None:
    state = fetching(cluster, seconds=10.0, fetch=1.0, cores=1, depth=12)
    cluster.once = True
    while state.waiting:
        cluster.run(0.1)
    cluster.run(cluster.step)
    assert outstanding(cluster) == 2
    cluster.worker("w2", cores=1)
    cluster.run(0.5)
    assert (outstanding(cluster), outstanding(cluster, "w2")) == (1, 1)


def test_what_is_fetched_already_stays_where_it_will_be_begun_sooner(cluster: Any) -> None:
    """Its turn comes within a second, and to fetch it elsewhere takes four; unless what runs before it takes longer than that."""
    state = fetching(cluster, seconds=1.0, fetch=4.0, cores=1, depth=30)
    cluster.once = True
    while state.waiting:
        cluster.run(0.1)
    [last] = [call.spec.call for call in cluster.core.calls.values()][-1:]
    cluster.worker("w2", cores=1)
    cluster.run(0.5)
    assert last in cluster.core.workers[WorkerId("w1")].calls


def test_what_waits_behind_a_call_that_does_not_end_comes_back(cluster: Any) -> None:
    state = fetching(cluster, seconds=4.0, fetch=1.0, cores=1)
    name, (library, options, _) = "stream", cluster.streams["stream"]
    cluster.streams[name] = library, options, iter([1000.0] * 1000)
    for call in cluster.core.calls.values():
        if call.spec.call not in cluster.core.workers[WorkerId("w1")].calls:
            cluster.seconds[call.spec.call] = 1000.0
    cluster.run(8.0)
    assert outstanding(cluster) == 2
    cluster.run(3 * 4.0 + 1.0)
    assert outstanding(cluster) == 1, "nothing is to wait behind it"
    assert state.prefetch.on


def test_what_waits_behind_others_gives_way_to_a_call_of_a_higher_priority(cluster: Any) -> None:
    """It begins when the next call ends, not behind those that wait for slots already; and this takes one recall."""
    state = fetching(cluster, seconds=10.0, fetch=1.0, cores=2)
    cluster.run(20.0)
    before = cluster.recalls
    cluster.once = True
    cluster.submit_once(state.spec.id, 10.0, 2, CallOptions(priority=1))
    cluster.run(0.3)
    assert cluster.recalls == before + 1
    cluster.run(20.2)
    assert len(cluster.ended["once"]) == 2
    assert cluster.recalls == before + 1


def test_calls_that_wait_behind_others_are_wanted_pilots_for_as_before(cluster: Any) -> None:
    """A factory adds up what waits and what runs, and no worker without calls counts as busy."""
    state = fetching(cluster)
    cluster.once = True
    left = len(cluster.core.calls)
    [shape] = cluster.core.demand(cluster.now).shapes
    assert shape.waiting + shape.running == left
    assert shape.seconds == pytest.approx(left * state.durations.mean)
    cluster.run(left + 5.0)
    assert not cluster.core.demand(cluster.now).shapes
    [pilot] = cluster.core.demand(cluster.now).pilots
    assert pilot.running == 0
    assert pilot.idle_seconds > 0


def test_what_a_call_that_waited_behind_another_has_run_is_not_thought_longer_than_it_was(cluster: Any) -> None:
    """Its pilot ends at its walltime: nobody has seen it run for longer than since the call before it has ended."""
    state = fetching(cluster, seconds=10.0, fetch=5.0, cores=1)
    worker = cluster.core.workers[WorkerId("w1")]
    ended = len(cluster.ended["stream"])
    while len(cluster.ended["stream"]) == ended:
        cluster.run(cluster.step)
    cluster.run(8.0)
    call = next(iter(worker.calls.values()))
    assert call.behind
    assert cluster.now - call.sent_at > 15.0
    worker.info = msgspec.structs.replace(worker.info, seconds_left=cluster.now - worker.joined_at)
    cluster.core.worker_lost(WorkerId("w1"), "gone", cluster.now)
    assert call.ran == pytest.approx(8.0, abs=0.1)
    assert state.waiting == 40


def test_it_is_on_from_what_it_is_worth_to_half_of_that() -> None:
    known = Prefetch()
    for _ in range(100):
        known.took(1.0)
        known.ended(1, 1, 100.0, 1)
    assert not known.on, "a hundredth of a run"
    assert known.ended(1, 1, 10.0, 1)
    assert known.on
    turns = 0
    while known.on:
        known.ended(1, 0, 10.0, 1000)
        turns += 1
    assert turns < 30, "calls without data"
    for _ in range(3):
        known.ended(1, 1, 10.0, 1000)
    assert known.on


@pytest.mark.parametrize(
    "options", [CallOptions(expected_time=4.0), CallOptions(priority=1, needs=Resources(1.0)), CallOptions(priority=1)]
)
def test_calls_that_need_a_free_slot_get_one(cluster: Any, options: CallOptions) -> None:
    """Such as ask for anything wait behind none: where one waits behind each no slot would ever be free for them."""
    state = fetching(cluster, seconds=4.0, fetch=1.0, depth=8)
    cluster.stream("special", state.spec.id, (4.0,), options, depth=1)
    cluster.run(60.0)
    assert len(cluster.ended["special"]) >= 3
    assert len(cluster.ended["stream"]) >= 12


def test_no_more_gives_way_than_calls_of_a_higher_priority_need(cluster: Any) -> None:
    state = fetching(cluster, seconds=10.0, fetch=1.0, cores=2)
    for name in ("w2", "w3", "w4"):
        cluster.worker(name, cores=2)
    cluster.run(30.0)
    before = cluster.recalls
    cluster.once = True
    cluster.submit_once(state.spec.id, 10.0, 1, CallOptions(priority=1))
    cluster.run(20.0)
    assert len(cluster.ended["once"]) == 1
    assert cluster.recalls == before + 1


@pytest.mark.parametrize("data", [DATA, ()])
def test_a_long_call_among_shorter_ones_teaches_how_long_it_has_run(cluster: Any, data: Any) -> None:
    """Others end beside it all the time. It would be sent to pilots that are too short for it, until it has been lost too often."""
    library = cluster.library("lib")
    cluster.worker("w1", cores=4)
    cluster.data, cluster.fetch = data, 0.5
    cluster.stream("stream", library, (2.0 if data else 0.03,), depth=60)
    cluster.run(12.0)
    worker, first = cluster.core.workers[WorkerId("w1")], cluster.core.libraries[library].queues[0].first()
    cluster.seconds[first.spec.call] = 1000.0
    cluster.run(40.0)
    assert first.behind
    worker.info = msgspec.structs.replace(worker.info, seconds_left=cluster.now - worker.joined_at)
    cluster.core.worker_lost(WorkerId("w1"), "gone", cluster.now)
    assert first.ran == pytest.approx(38.0, abs=3.0)
