"""A call's arguments and the results that they wait for, joined into one payload.

Theory of operation
-------------------
A future among a call's arguments is pickled as a *hole*: `given` with the number of the input.  When its inputs exist, `join` puts the
call's own stream and the inputs' streams, as they are, behind a header that says where each begins and which spans are whose.  Nothing is
unpickled here; objects go on as spans.  On the worker `unpack` reads the call's own stream, and each hole reads its input when
it is met: after the snapshots that the stream begins with have been installed. ::

    pickle of ((size, marks), ...),  zeros up to a multiple of 64,  buffers, each up to a multiple of 64,  streams

The first pair is the call's own.  ``size`` is of its stream, -1 if that is the first of its spans.  ``marks`` is the number of its
spans, or for each of them -1 or the size of the buffer that stands here instead: a message cannot name more than `SPANS_MOST`, so of more
the smallest are copied.  What follows a pickle's end does not disturb who reads it, so the header needs no length.

Imported on the worker by the first call that has inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pickle import dumps, loads
from typing import Any, Final

from windlass.messages import ObjectName, ObjectRef, Part
from windlass.pickling import SPANS_MOST

#: Buffers begin at multiples of this, as arrays like it.
_ALIGNED: Final = 64
#: What the header takes at most, for each part and each span of it.
_PART_BYTES: Final = 32
_SPAN_BYTES: Final = 8

Layout = tuple[tuple[int, "int | tuple[int, ...]"], ...]


def given(index: int) -> Any:
    """Stands in a stream for the value of an input."""
    return _reading[-1].value(index)


def same(value: Any) -> Any:
    """Stands in a stream for a future whose value the program has."""
    return value


# ---------------------------------------------------------------- in the program


def join_most(parts: Sequence[Part]) -> int:
    """Bytes that `join` makes of these at most; -1: it must copy spans."""
    spans = sum(len(part.spans) for part in parts)
    if spans > SPANS_MOST:
        return -1
    return sum(len(part.payload) for part in parts) + _PART_BYTES * len(parts) + _SPAN_BYTES * spans + _ALIGNED


def join(parts: Sequence[Part], read: Callable[[ObjectName], memoryview], most: int = SPANS_MOST) -> Part:
    """The call's own part, which comes first, and its inputs', in one; at most so many spans, or as many as its own part has.

    ``read`` gives the bytes of an object that has to be copied. The payload may be long. Raises what ``read`` raises.
    """
    spans: list[ObjectRef] = []
    buffers: list[bytes | memoryview] = []
    layout: list[tuple[int, int | tuple[int, ...]]] = []
    copied = _too_many(parts, most)
    position = 0
    for part in parts:
        size = len(part.payload) if part.payload else -1
        marks: list[int] = []
        for ref in part.spans:
            if position in copied:
                buffers += [read(ref.name), bytes(-ref.size % _ALIGNED)]
                marks.append(ref.size)
            else:
                spans.append(ref)
                marks.append(-1)
            position += 1
        layout.append((size, tuple(marks) if any(mark >= 0 for mark in marks) else len(marks)))
    header = dumps((tuple(layout),), 5)
    payload = b"".join([header, bytes(-len(header) % _ALIGNED), *buffers, *(part.payload for part in parts)])
    return Part(payload, tuple(spans))


def _too_many(parts: Sequence[Part], most: int) -> set[int]:
    """Positions, in the row of all spans, of those to copy: the smallest of the inputs'."""
    own = len(parts[0].spans)
    theirs = [ref.size for part in parts[1:] for ref in part.spans]
    surplus = own + len(theirs) - max(most, own)
    if surplus <= 0:
        return set()
    return set(sorted(range(own, own + len(theirs)), key=lambda position: theirs[position - own])[:surplus])


# ---------------------------------------------------------------- on the worker


def unpack(layout: Layout, whole: bytes | memoryview, views: Sequence[memoryview]) -> Any:
    """What the call's own stream holds, its holes filled; ``views``: the spans. Raises what unpickling raises."""
    parts = _split(layout, memoryview(whole), iter(views))
    _reading.append(_Inputs(parts[1:]))
    try:
        stream, buffers = parts[0]
        return loads(stream, buffers=buffers)
    finally:
        _reading.pop()


def _split(layout: Layout, whole: memoryview, views: Iterator[memoryview]) -> list[tuple[memoryview, list[memoryview]]]:
    """Each part's stream and buffers."""
    rows = [(size, marks if isinstance(marks, tuple) else (-1,) * marks) for size, marks in layout]
    body = sum(max(size, 0) + sum(mark + -mark % _ALIGNED for mark in marks if mark >= 0) for size, marks in rows)
    at = len(whole) - body
    found: list[list[memoryview]] = []
    for _, marks in rows:
        buffers: list[memoryview] = []
        for mark in marks:
            if mark < 0:
                buffers.append(next(views))
            else:
                buffers.append(whole[at : at + mark])
                at += mark + -mark % _ALIGNED
        found.append(buffers)
    parts: list[tuple[memoryview, list[memoryview]]] = []
    for (size, _), buffers in zip(rows, found, strict=True):
        if size < 0:
            parts.append((buffers[0], buffers[1:]))
        else:
            parts.append((whole[at : at + size], buffers))
            at += size
    return parts


class _Inputs:
    """The inputs of the call that is being read; each is unpickled once, when it is first asked for."""

    def __init__(self, parts: list[tuple[memoryview, list[memoryview]]]) -> None:
        self._parts = parts
        self._values: dict[int, Any] = {}

    def value(self, index: int) -> Any:
        if index not in self._values:
            stream, buffers = self._parts[index]
            self._values[index] = loads(stream, buffers=buffers)
        return self._values[index]


#: A slot reads one call at a time; reading may run the user's code, hence the row.
_reading: list[_Inputs] = []
