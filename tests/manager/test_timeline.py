"""The time line of slots: right lanes, bounded size, and what has changed since."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.manager.timeline import BLOCKS_MOST, GRAIN_SECONDS, LANES_MOST, Block, Samples, Timeline, thinned
from windlass.messages import WorkerId

W = WorkerId("w")


def block(start: float, end: float, what: int = 0, *, calls: int = 1, failed: int = 0, call: int = 0) -> Block:
    return Block(start, end, what, calls, end - start, failed, call)


def lanes(timeline: Timeline, worker: WorkerId = W) -> list[list[Block]]:
    return timeline.workers[worker].lanes


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(0, 2**32))
def test_calls_of_so_many_slots_need_no_more_lanes(slots: int, seed: int) -> None:
    """Whatever the calls take: ends come by time, and no two blocks of a lane overlap."""
    chance = random.Random(seed)
    calls: list[Block] = []
    for _ in range(slots):
        now = chance.uniform(0.0, 1.0)
        for _ in range(20):
            took = chance.choice([0.3, 1.0, chance.uniform(0.26, 5.0)])
            calls.append(block(now, now + took, len(calls)))
            now += took + chance.choice([0.0, 0.01, 1.0])
    timeline = Timeline()
    for one in sorted(calls, key=lambda one: one.end):
        timeline.add(W, "node", one, most=slots)
    assert len(lanes(timeline)) <= slots
    assert sum(one.calls for lane in lanes(timeline) for one in lane) == len(calls)
    for lane in lanes(timeline):
        assert all(first.end <= second.start + 0.001 for first, second in pairwise(lane))


def test_short_calls_of_one_function_become_one_block_and_failed_ones_do_not() -> None:
    """Within the grain; what failed is to be seen."""
    timeline = Timeline()
    for number in range(100):
        timeline.add(W, "node", block(number * 0.01, number * 0.01 + 0.008, call=number), most=1)
    (lane,) = lanes(timeline)
    assert len(lane) <= 2 + 1.0 / GRAIN_SECONDS
    assert sum(one.calls for one in lane) == 100
    assert abs(sum(one.busy for one in lane) - 0.8) < 1e-6
    before = len(lane)
    timeline.add(W, "node", block(1.0, 1.001, failed=1), most=1)
    assert len(lane) == before + 1


def test_a_worker_with_more_slots_than_lanes_has_blocks_that_overlap_joined() -> None:
    """No call is forgotten."""
    timeline = Timeline()
    for number in range(10):
        timeline.add(W, "node", block(0.0, 10.0 + number), most=2)
    assert len(lanes(timeline)) == 2
    assert sum(one.calls for lane in lanes(timeline) for one in lane) == 10


def test_size_is_bounded_and_every_call_is_in_it() -> None:
    """A lane's older half gets coarser; the newest blocks stay as they came."""
    timeline = Timeline()
    workers = [WorkerId(f"w{n}") for n in range(300)]
    total = 60 * BLOCKS_MOST // len(workers) // 10
    for number in range(total):
        for worker in workers:
            timeline.add(worker, "node", block(number, number + 0.9, number % 7, call=number), most=4)
    assert timeline.blocks <= BLOCKS_MOST + len(workers)
    newest = lanes(timeline, workers[0])[0][-1]
    assert (newest.start, newest.calls, newest.call) == (total - 1, 1, total - 1)
    assert sum(one.calls for one in lanes(timeline, workers[0])[0]) == total


def test_lanes_of_workers_that_have_gone_make_room() -> None:
    """The first ones first, and none of those that are here."""
    timeline = Timeline()
    timeline.add(WorkerId("here"), "node", block(0.0, 1.0), most=1)
    for number in range(3 * LANES_MOST):
        worker = WorkerId(f"w{number}")
        timeline.add(worker, "node", block(0.0, 1.0), most=1)
        timeline.worker_gone(worker)
    assert len(timeline.workers) <= LANES_MOST
    assert WorkerId("here") in timeline.workers
    assert WorkerId(f"w{3 * LANES_MOST - 1}") in timeline.workers
    timeline.worker_gone(WorkerId("nobody"))


def test_thinning_keeps_what_is_new_and_all_that_was_busy() -> None:
    lane = [block(n, n + 1.0, n % 2) for n in range(9)]
    busy = sum(one.busy for one in lane)
    newest = [(one.start, one.end) for one in lane[4:]]
    found = thinned(lane)
    assert len(found) == 7
    assert [(one.start, one.end) for one in found[2:]] == newest
    assert sum(one.busy for one in found) == busy
    assert [one.calls for one in found[:2]] == [2, 2]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 3.0), st.floats(-2.0, 0.5), st.integers(0, 2), st.booleans()), max_size=60))
def test_who_takes_what_has_changed_has_the_same_time_line(steps: list[tuple[float, float, int, bool]]) -> None:
    """Blocks that grew are told again, and take the place of what they were; calls that ended before those known already are told, too."""
    timeline, now, version = Timeline(), 10.0, 0
    seen: dict[tuple[WorkerId, int], list[list[float]]] = {}
    for number, (took, pause, what, look) in enumerate(steps):
        timeline.add(W, "node", block(round(now, 4), round(now + took, 4), what), most=2)
        now = max(0.0, now + took + pause)
        if look or number == len(steps) - 1:
            for worker, _, lane, blocks in timeline.since(version):
                known = seen.setdefault((worker, lane), [])
                while known and known[-1][0] >= blocks[0].start:
                    known.pop()
                known += [[one.start, one.end, one.calls] for one in blocks]
            version = timeline.version
    if steps:
        assert seen == {(W, number): [[one.start, one.end, one.calls] for one in lane] for number, lane in enumerate(lanes(timeline))}


def test_samples_cover_the_whole_time_whatever_its_length() -> None:
    """Every second one goes when there are too many, and they come half as often."""
    samples = Samples()
    for second in range(20_000):
        samples.add(float(second), (second,))
    assert len(samples.rows) <= Samples.ROWS
    assert samples.rows[0][0] == 0.0
    assert samples.rows[-1][0] > 20_000 - 2 * samples.interval
    assert samples.interval == 32.0
    assert [row[0] for row in samples.since(19_990.0)] == [row[0] for row in samples.rows if row[0] > 19_990.0]
    assert samples.since(0.0) == samples.rows
