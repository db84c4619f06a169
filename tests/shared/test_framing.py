"""Frames: whole, byte by byte, many at once, and hostile."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.framing import FRAME_SLACK, FrameReader, ProtocolError, batches, body_length, frame
from windlass.messages import MAX_FRAME_BYTES


def test_what_goes_into_messages_is_cut_in_order_and_what_is_too_large_goes_alone() -> None:
    """Also behind small ones, with which it would not fit."""
    sizes = [1, 1, 9, 3, 3, 4, 1, 20, 2]
    assert list(batches(sizes, int, 10)) == [[1, 1], [9], [3, 3, 4], [1], [20], [2]]
    assert list(batches(sizes, int, 100)) == [sizes]
    assert list(batches([], int, 10)) == []


def stream_of(*bodies: bytes) -> bytes:
    return b"".join(map(frame, bodies))


def test_a_frame_is_its_length_and_its_body() -> None:
    assert frame(b"abc") == b"\0\0\0\3abc"
    assert stream_of(b"abc", b"", b"d") == b"\0\0\0\3abc\0\0\0\0\0\0\0\1d"


@given(bodies=st.lists(st.binary(max_size=50), max_size=20), cuts=st.lists(st.integers(0, 1200), max_size=20))
def test_bodies_come_out_as_they_went_in_wherever_the_stream_is_cut(bodies: list[bytes], cuts: list[int]) -> None:
    stream = stream_of(*bodies)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    reader = FrameReader()
    got = [bytes(body) for begin, end in pairwise(edges) for body in reader.feed(stream[begin:end])]
    assert got == bodies
    assert reader.waiting == 0


def test_a_stream_can_come_byte_by_byte() -> None:
    reader = FrameReader()
    stream = stream_of(b"one", b"", b"three")
    assert [bytes(body) for byte in stream for body in reader.feed(bytes([byte]))] == [b"one", b"", b"three"]


def test_trailing_bytes_wait_for_the_rest() -> None:
    reader = FrameReader()
    assert [bytes(body) for body in reader.feed(frame(b"one") + b"\0\0")] == [b"one"]
    assert reader.waiting == 2
    assert [bytes(body) for body in reader.feed(b"\0\2hi")] == [b"hi"]


def test_bodies_given_out_stay_as_they_are_when_more_is_fed() -> None:
    reader = FrameReader()
    assert reader.feed(frame(b"first")[:6]) == []
    (first,) = reader.feed(frame(b"first")[6:] + frame(b"second")[:5])
    (second,) = reader.feed(frame(b"second")[5:])
    assert (bytes(first), bytes(second)) == (b"first", b"second")


def test_whole_frames_are_slices_of_the_piece_they_came_in() -> None:
    piece = stream_of(b"one", b"two")
    assert all(body.obj is piece for body in FrameReader().feed(piece))


def test_the_largest_frame_passes_and_one_byte_more_is_refused_by_its_length_alone() -> None:
    largest = MAX_FRAME_BYTES + FRAME_SLACK
    reader = FrameReader()
    assert reader.feed(struct.pack(">I", largest)) == []
    assert [len(body) for body in reader.feed(bytes(largest))] == [largest]
    with pytest.raises(ProtocolError, match=r"a frame of 1,049,601 bytes was announced, and 1,049,600 is the most"):
        reader.feed(struct.pack(">I", largest + 1))


def test_hostile_bytes_are_refused_and_not_waited_for() -> None:
    with pytest.raises(ProtocolError, match="not a Windlass of this protocol"):
        FrameReader().feed(b"GET / HTTP/1.1\r\n\r\n")


def test_the_limit_can_be_raised_after_the_handshake() -> None:
    reader = FrameReader(limit=4)
    assert [bytes(body) for body in reader.feed(frame(b"four"))] == [b"four"]
    with pytest.raises(ProtocolError):
        reader.feed(frame(b"fives"))
    assert body_length(b"\0\0\0\5", 5) == 5
