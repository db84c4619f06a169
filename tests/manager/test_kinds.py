"""Kinds of calls: thousands that each say what they need are few to placement, and each is placed by what it asked for."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.manager.core import Core
from windlass.manager.kinds import KINDS_MOST, STEPS_MOST, Steps, round_up
from windlass.manager.placement import fits
from windlass.messages import (
    CallId,
    CallOptions,
    CallSpec,
    FunctionDef,
    FunctionId,
    LibraryId,
    LibrarySpec,
    PilotId,
    PoolName,
    PoolOffer,
    PoolReport,
    Resources,
    WorkerId,
    WorkerInfo,
)

GB = 10**9
FUNCTION = FunctionId(b"f" * 16)


NOTHING = Resources()


def library(per_slot: Resources = NOTHING, slots: int = 0) -> LibrarySpec:
    return LibrarySpec(LibraryId("sim@1"), "sim", (3, 11), functions=(FunctionDef(FUNCTION, "f", b""),), per_slot=per_slot, slots=slots)


def steps_for(spec: LibrarySpec, shapes: list[Resources]) -> Steps:
    steps = Steps()
    for of in shapes:
        steps.learn(spec, of)
    return steps


SHAPES = st.builds(Resources, st.sampled_from([0.5, 1.0, 3.0, 8.0, 64.0, 300.0]), st.integers(0, 2 * 10**12))
SLOTS = st.builds(Resources, st.sampled_from([0.0, 1.0, 2.5]), st.sampled_from([0, 1, 4 * GB, 7 * GB + 3]))


@given(st.lists(SHAPES, min_size=1, max_size=4), SLOTS, st.sampled_from([0, 3]), st.just(0.0) | st.floats(0.01, 99), st.integers(0, 10**12))
def test_no_worker_tells_a_call_from_its_kind(shapes: list[Resources], per_slot: Resources, slots: int, cores: float, memory: int) -> None:
    """Both occupy the same number of slots on each, or none; and the kind asks for no less, so a pilot that is made for it will do."""
    spec = library(per_slot, slots)
    asked = Resources(cores, memory)
    kind = steps_for(spec, shapes).kind_of(asked)
    assert kind.memory >= memory
    assert kind.cores >= cores
    for of in shapes:
        assert fits(spec, kind, of) == fits(spec, asked, of)


@given(st.integers(1, 10**12), st.lists(SHAPES, max_size=4))
def test_a_kind_is_its_own_kind(memory: int, shapes: list[Resources]) -> None:
    """So what was rounded once is not rounded further."""
    steps = steps_for(library(), shapes)
    kind = steps.kind_of(Resources(memory=memory))
    assert steps.kind_of(kind) == kind


def test_thousands_of_needs_are_as_many_kinds_as_a_worker_has_slots() -> None:
    """Of eight slots with 8 GB each, calls take one to eight; and where nobody is known there are few kinds as well."""
    steps = steps_for(library(), [Resources(8.0, 64 * GB)])
    asked = [Resources(memory=number * GB // 100) for number in range(1, 6401)]
    kinds = Counter(steps.kind_of(one).memory for one in asked)
    assert len(kinds) == 8
    assert set(kinds.values()) == {800}
    assert len({Steps().kind_of(one) for one in asked}) < 20


def test_beyond_many_slots_nothing_is_rounded() -> None:
    """Steps of a worker with a million slots would fill memory."""
    steps = steps_for(library(Resources(0.001)), [Resources(1000.0, 10**12)])
    assert len(steps.cores) == len(steps.memory) == STEPS_MOST
    asked = Resources(steps.cores[-1] * 2.3, int(steps.memory[-1]) + 5)
    assert steps.kind_of(asked) == asked


@given(st.floats(1e-3, 1e9))
def test_seconds_are_rounded_up_a_little(seconds: float) -> None:
    """And what is rounded is not rounded again."""
    up = round_up(seconds)
    assert seconds <= up <= seconds * 1.032
    assert round_up(up) == up


def core_with(calls: list[CallOptions]) -> Core:
    core = Core()
    spec = library()
    core.install(spec, 0.0)
    core.submit([CallSpec(CallId(number), spec.id, FUNCTION, b"", options=options) for number, options in enumerate(calls)], 0.0)
    return core


def join(core: Core, name: str, of: Resources, now: float = 0.0) -> None:
    core.worker_joined(WorkerId(name), WorkerInfo("host", 1, of, (), PoolName("p"), PilotId(name)), now)
    core.pump(now)
    core.check()


def test_factories_are_told_of_kinds_and_of_the_largest_call_of_each() -> None:
    """A pilot that is made for the shape has room for all of its calls."""
    core = core_with([CallOptions(needs=Resources(memory=GB + 1000 * number)) for number in range(3000)])
    join(core, "w", Resources(1.0, GB // 2))
    [shape] = core.demand(0.0).shapes
    assert (shape.waiting, shape.needs) == (3000, Resources(1.0, GB + 1000 * 2999))


def test_factories_are_told_of_the_slots_that_a_call_takes() -> None:
    """A call of 5 GB takes three slots of a core and 2 GB: a pilot with one core would never run it, however much memory it has."""
    core = Core()
    spec = library(Resources(memory=2 * GB))
    core.install(spec, 0.0)
    options = CallOptions(needs=Resources(memory=5 * GB))
    core.submit([CallSpec(CallId(1), spec.id, FUNCTION, b"", options=options)], 0.0)
    [shape] = core.demand(0.0).shapes
    assert shape.needs == Resources(3.0, 6 * GB)


def test_a_pool_that_comes_is_told_of_the_calls_that_it_can_run() -> None:
    """Before any pool was known they were one kind with a call that it cannot run, and it would never have begun a pilot for them."""
    core = core_with([CallOptions(needs=Resources(memory=number * GB)) for number in (36, 39, 60)])
    assert [shape.needs.memory for shape in core.demand(0.0).shapes] == [60 * GB]
    for pool, has, expected in (("large", 80, {60: 3}), ("small", 40, {39: 2, 60: 1})):
        core.pools_reported(pool, PoolReport((PoolOffer(PoolName(pool), Resources(1.0, has * GB)),)), 1.0)
        assert core.demand_changed
        assert {shape.needs.memory // GB: shape.waiting for shape in core.demand(1.0).shapes} == expected


def test_a_worker_of_another_shape_tells_apart_what_was_alike() -> None:
    """Calls of 6 and 7 GB are alike where a slot has 8 GB, and not where one has 6.5."""
    core = core_with([CallOptions(needs=Resources(memory=number * GB)) for number in (6, 7)])
    state = core.libraries[LibraryId("sim@1")]
    join(core, "large", Resources(1.0, 8 * GB))
    assert len({queue.needs for queue in state.queues}) == 1
    join(core, "small", Resources(2.0, 13 * GB))
    assert len({queue.needs for queue in state.queues}) == 2


def test_workers_that_are_all_different_cost_a_library_whose_calls_ask_for_nothing_no_steps() -> None:
    """No two nodes need have the same memory. Once a call asks for some, the library has the steps of all of them."""
    core = core_with([CallOptions()])
    state = core.libraries[LibraryId("sim@1")]
    for number in range(5):
        join(core, f"w{number}", Resources(2.0, 8 * GB + number))
    assert (state.steps.cores, state.steps.memory, len(state.steps.known)) == ([], [], 0)
    core.submit([CallSpec(CallId(100), state.spec.id, FUNCTION, b"", options=CallOptions(needs=Resources(memory=GB)))], 0.0)
    assert len(state.steps.known) == 5
    join(core, "w5", Resources(4.0, 8 * GB))
    assert len(state.steps.known) == 6
    assert state.steps.memory == sorted(set(state.steps.memory))


@pytest.mark.parametrize("expected", [False, True])
def test_a_call_of_its_own_kind_each_costs_no_look_at_all_workers_for_each(expected: bool) -> None:
    """Three thousand of them and a tick: kinds that are thought about are few, whether memory or the time that is expected differs."""
    some = [
        CallOptions(expected_time=100.0 + number) if expected else CallOptions(needs=Resources(memory=GB + number))
        for number in range(3000)
    ]
    core = core_with(some)
    for number in range(20):
        join(core, f"w{number}", Resources(8.0, 64 * GB))
    core.tick(10.0)
    core.pump(10.0)
    core.check()
    state = core.libraries[LibraryId("sim@1")]
    assert len(state.queues) == 3000
    assert len(state.kinds) == len({(queue.needs, queue.least_seconds) for queue in state.queues})
    assert len(state.kinds) <= (300 if expected else 1)


def test_calls_with_equal_options_wait_together_however_many_kinds_there_are() -> None:
    """Else, when a pool comes whose pilots live a little longer than such calls take, only one of two queues of them could ask for less
    time, and the other's calls would wait for ever."""
    long = CallOptions(expected_time=99.0)
    core = core_with([long, *(CallOptions(expected_time=200.0 + number) for number in range(KINDS_MOST + 1)), long])
    state = core.libraries[LibraryId("sim@1")]
    assert [queue.waiting for queue in state.queues if queue.options == long] == [2]
    core.pools_reported("f", PoolReport((PoolOffer(PoolName("p"), Resources(1.0), 100.0),)), 1.0)
    assert [queue.least_seconds for queue in state.queues if queue.options == long] == [90.0]
