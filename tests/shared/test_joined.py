"""Arguments and the results that they wait for, joined into one payload and read again."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given as generated
from hypothesis import strategies

from windlass import joined
from windlass.joined import join, join_most
from windlass.messages import OUT_OF_BAND_BYTES, ObjectName, Part
from windlass.object_store import ObjectStore
from windlass.objects import write_results
from windlass.pickling import pack_call, pack_result, unpack_call

VALUES = strategies.recursive(
    strategies.none() | strategies.integers() | strategies.text() | strategies.binary(max_size=40),
    lambda inner: strategies.lists(inner, max_size=4) | strategies.dictionaries(strategies.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)


class Hole:
    """What a future is to the pickler: number ``index`` of the inputs."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return joined.given, (self.index,)


class Bench:
    def __init__(self, folder: Path) -> None:
        self.store = ObjectStore(folder)

    def args(self, *args: Any, **kwargs: Any) -> Part:
        return Part(*pack_call(args, kwargs, self.store.put))

    def result(self, value: Any) -> Part:
        return Part(*pack_result(value, partial(write_results, self.store.folder)))

    def read(self, part: Part) -> Any:
        payload, spans = part
        if len(payload) >= OUT_OF_BAND_BYTES:
            payload, spans = b"", (self.store.put(payload), *spans)
        return unpack_call(payload, spans, self.store.open)

    def open(self, name: ObjectName) -> memoryview:
        return self.store.open(name)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "store")


def no_read(name: ObjectName) -> memoryview:
    raise AssertionError(f"{name} was read to be copied")


@generated(values=strategies.lists(VALUES, min_size=1, max_size=5))
def test_holes_get_the_values_of_their_inputs(tmp_path_factory: pytest.TempPathFactory, values: list[Any]) -> None:
    """Whatever the values, each hole is filled with its own, and the length said beforehand is enough."""
    bench = Bench(tmp_path_factory.mktemp("joined"))
    holes = [Hole(index) for index in range(len(values))]
    parts = [bench.args(holes, last=holes[-1]), *map(bench.result, values)]
    whole = join(parts, no_read)
    assert len(whole.payload) <= join_most(parts)
    assert bench.read(whole) == ((values,), {"last": values[-1]})


def test_one_input_in_several_places_is_one_object(bench: Bench) -> None:
    """As with any object that is among the arguments twice, though the stream may name the input twice."""
    (args, _) = bench.read(join([bench.args(Hole(0), [Hole(0)]), bench.result(["x"])], no_read))
    assert args[0] is args[1][0]


def test_objects_go_on_by_name(bench: Bench) -> None:
    """Arrays of arguments and of results are spans of the joined call, and none is read."""
    own, first, second = numpy.arange(20_000), numpy.ones(30_000), numpy.zeros(40_000)
    parts = [bench.args(own, Hole(1), Hole(0)), bench.result(first), bench.result({"b": second, "n": 1})]
    whole = join(parts, no_read)
    assert whole.spans == tuple(ref for part in parts for ref in part.spans)
    ((a, b, c), _) = bench.read(whole)
    assert (a == own).all()
    assert (b["b"] == second).all()
    assert (c == first).all()
    c[0] = 7  # as those of arguments, they are the call's own to write to


def test_a_stream_that_is_an_object_stays_one(bench: Bench) -> None:
    """Arguments or results whose stream itself is long have it as their first span."""
    own, result = ["a" * 200_000], ["b" * 300_000]
    parts = [bench.args(own, Hole(0)), bench.result(result)]
    assert not parts[0].payload
    assert not parts[1].payload
    whole = join(parts, no_read)
    assert len(whole.payload) < 1000
    assert bench.read(whole) == ((own, result), {})


def test_of_too_many_spans_the_smallest_are_copied(bench: Bench) -> None:
    """A message can name so many objects only: of the inputs' the smallest stand in the payload, aligned; the call's own stay."""
    own = numpy.zeros(8_200)
    sizes = [9_000, 20_001, 8_500, 30_000]
    values = [[numpy.full(size, size), numpy.full(10_000, -size)] for size in sizes]
    parts = [bench.args(own, *map(Hole, range(4))), *map(bench.result, values)]
    whole = join(parts, bench.open, most=4)
    assert [ref.size for ref in whole.spans] == [8 * 8_200, 8 * 20_001, 8 * 30_000, 8 * 10_000]
    ((mine, *found), _) = bench.read(whole)
    assert (mine == own).all()
    for value, arrays in zip(values, found, strict=True):
        for array, copy in zip(value, arrays, strict=True):
            assert (array == copy).all()
            assert copy.flags.aligned
            assert copy.flags.writeable


def test_inputs_are_copied_whole_when_the_call_has_all_the_spans(bench: Bench) -> None:
    """The call's own spans are never copied, even if they are more than the limit."""
    own = [numpy.zeros(8_200), numpy.ones(8_300)]
    parts = [bench.args(own, Hole(0)), bench.result(numpy.ones(9_000))]
    whole = join(parts, bench.open, most=1)
    assert whole.spans == parts[0].spans
    (args, _) = bench.read(whole)
    assert args[1].sum() == 9_000


def test_ten_thousand_inputs(bench: Bench) -> None:
    """Wide calls are joined and read in one go."""
    parts = [bench.args(list(map(Hole, range(10_000)))), *(bench.result(number) for number in range(10_000))]
    assert bench.read(join(parts, no_read)) == ((list(range(10_000)),), {})
