"""Arbitrary bytes against all that reads what a peer says: the targets of benchmarks/fuzz.py, a little, and all that was found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings

from windlass import session
from windlass.framing import ProtocolError
from windlass.messages import FromWorker, Goodbye, Hello, Resources, WorkerInfo
from windlass.session import Session

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = ("fuzz_targets",)

if TYPE_CHECKING:
    import fuzz_targets

some = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
data = st.binary(max_size=200)


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Imports as the benchmarks have them, forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    global fuzz_targets
    import fuzz_targets

    yield
    for name in PARTS:
        sys.modules.pop(name, None)


@some
@given(decoder=st.integers(0, 12), body=st.binary(max_size=300))
@example(decoder=0, body=b"\x91\x92\xa7Goodbye\xa2\xff\xff")
@example(decoder=10, body=b"\x93\x01\x00" + b"\x91" * 100_000 + b"\xc0")
def test_a_decoder_gives_a_value_or_says_that_the_other_side_is_wrong(decoder: int, body: bytes) -> None:
    fuzz_targets.decode(bytes([decoder]) + body)


@some
@given(choices=data, decoder=st.integers(0, 12), at=st.integers(0, 300), byte=st.integers(0, 255))
def test_so_does_one_that_reads_a_message_with_one_byte_changed(choices: bytes, decoder: int, at: int, byte: int) -> None:
    body = bytearray(msgspec.msgpack.encode([fuzz_targets.Choices(choices).value(FromWorker)]))
    body[at % len(body)] = byte
    fuzz_targets.decode(bytes([decoder]) + bytes(body))


@some
@given(data)
def test_frames_are_the_same_however_a_stream_is_cut(choices: bytes) -> None:
    fuzz_targets.framing(choices)


@some
@given(data)
def test_a_session_takes_in_what_was_said_once_and_in_order_or_ends(choices: bytes) -> None:
    """Frames are lost, repeated, reordered, damaged, forged."""
    fuzz_targets.sessions(choices)


@some
@given(data)
def test_no_connection_confuses_a_session_and_nothing_said_is_a_defect(choices: bytes) -> None:
    """Hellos, resumes, frames and cuts of several peers in any order."""
    fuzz_targets.connections(choices)


#: A worker said that an instance had stopped which nobody had asked to, and its calls waited for ever.
STOPPED = bytes.fromhex("0a0b00f81976adf1fc1d13408d09aa8a011f602c5e75db03f52b91b9b1d93891a1de56c88749f646b2d11e0815b8828cdc2e6815d83e01")

#: It said that 1e300 of its cores were busy, and the memory that they would have was no number.
BUSY = b"\x03\x00(\x00\x00\x00\x00\x00\x00\x04\x00"


@some
@given(data)
@example(STOPPED)
@example(BUSY)
def test_a_worker_that_says_anything_leaves_the_books_consistent(choices: bytes) -> None:
    fuzz_targets.core(choices)


@pytest.mark.parametrize(
    "messages",
    [b"\x91" * 900_000 + b"\xc0", b"\x91\x92\xa7Goodbye\xa2\xff\xff", b"\x91\x93\xa7Goodbye\xa1x" + b"\x91" * 900_000 + b"\xc0"],
    ids=["nested", "no text", "nested in a field"],
)
def test_what_no_decoder_can_read_is_a_breach_and_changes_nothing(messages: bytes) -> None:
    """`msgspec` raises `RecursionError` and `UnicodeDecodeError` for these, which are none of its own errors."""
    one = Session(session.said_by("worker"))
    with pytest.raises(ProtocolError):
        one.take(b"\x93\x01\x00" + messages, 0.0)
    one.check()
    assert one.received == 0
    assert one.take(msgspec.msgpack.encode((1, 0, [Goodbye("x")])), 0.0) == [Goodbye("x")]


def test_a_hello_with_nested_or_damaged_fields_is_a_breach() -> None:
    info = WorkerInfo("host", 1, Resources())
    body = msgspec.msgpack.encode(Hello("worker", 1, "0", (3, 11), "w1", worker=info))
    for bad in (body.replace(b"\xa4host", b"\xa4\xff\xff\xff\xff"), body[:-1] + b"\x91" * 60_000):
        with pytest.raises(ProtocolError, match="not a Hello of this protocol"):
            session.decode_hello(bad)
