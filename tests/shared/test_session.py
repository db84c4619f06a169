"""Sessions: each message once and in order, whatever the link does."""

from __future__ import annotations

import itertools
import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.errors import InternalError
from windlass.framing import Piece, ProtocolError
from windlass.messages import (
    MAX_FRAME_BYTES,
    CallId,
    CallRun,
    CertificateIssued,
    CertificateRequest,
    Drain,
    FetchFile,
    FileName,
    FileRef,
    FileSource,
    FunctionId,
    GetStatus,
    Goodbye,
    InstanceId,
    Message,
    Refused,
    RunCalls,
    Sandbox,
    Welcome,
)
from windlass.session import (
    ACK_BYTES,
    ACK_FRAMES,
    ACK_SECONDS,
    FULL_BYTES,
    NEXT,
    Event,
    Handshake,
    Phase,
    Session,
    decode_answer,
    decode_hello,
    encode_one,
    heard_by,
    said_by,
)


def pair() -> tuple[Session, Session]:
    """The manager's side and the worker's."""
    return Session(said_by("worker")), Session(heard_by("worker"))


def test_what_one_side_encodes_the_other_takes() -> None:
    manager, worker = pair()
    (body,) = manager.encode([Drain("a"), Drain("b")])
    assert worker.take(memoryview(body), 0.0) == [Drain("a"), Drain("b")]
    assert (manager.sent, worker.received) == (1, 1)


def test_what_is_no_text_in_a_message_does_not_end_a_session() -> None:
    """As in names of files: who hears of them sees a '?' there; the messages around are as they were."""
    bad = os.fsdecode(b"caf\xe9.csv")
    fetch = FetchFile(FileRef(FileName("x3-1"), 1, bad), FileSource(path=bad, addresses=(bad,), archive=FileRef(FileName("x3-2"), 1, bad)))
    run = CallRun(CallId(1), 1, InstanceId(1), FunctionId(b"1"), b"\xe9", sandbox=Sandbox(((bad, FileName(""), "x"),)))
    manager, worker = pair()
    told = [
        message
        for body in manager.encode([Drain("a"), fetch, RunCalls([run]), Drain(bad), Drain("b")])
        for message in worker.take(body, 0.0)
    ]
    shown = "caf?.csv"
    seen = FetchFile(
        FileRef(FileName("x3-1"), 1, shown), FileSource(path=shown, addresses=(shown,), archive=FileRef(FileName("x3-2"), 1, shown))
    )
    kept = msgspec.structs.replace(run, sandbox=Sandbox(((shown, FileName(""), "x"),)))
    assert told == [Drain("a"), seen, RunCalls([kept]), Drain(shown), Drain("b")]
    assert msgspec.msgpack.decode(encode_one(Drain(bad)), type=Drain) == Drain(shown)
    manager.check()


def test_no_messages_make_no_frame() -> None:
    manager, _ = pair()
    assert manager.encode([]) == []
    assert manager.sent == 0


def test_a_frame_sent_twice_is_taken_once_and_acknowledged_at_once() -> None:
    manager, worker = pair()
    (body,) = manager.encode([Drain("a")])
    worker.take(body, 0.0)
    worker.bare()
    assert worker.take(body, 5.0) == []
    assert worker.ack_at == 5.0


def test_a_gap_ends_the_session_and_changes_nothing() -> None:
    manager, worker = pair()
    manager.encode([Drain("lost")])
    (second,) = manager.encode([Drain("b")])
    with pytest.raises(ProtocolError, match="frame 2 came after frame 0: what is between was lost"):
        worker.take(second, 0.0)
    assert worker.received == 0
    worker.check()


def test_an_acknowledgement_of_what_was_never_sent_is_refused() -> None:
    manager, _ = pair()
    with pytest.raises(ProtocolError, match="acknowledges frame 7, and 0 is the newest"):
        manager.take(msgspec.msgpack.encode((0, 7, [])), 0.0)


def test_a_role_can_say_only_what_is_its_own() -> None:
    manager, worker = pair()
    (body,) = worker.encode([GetStatus()])
    with pytest.raises(ProtocolError, match="frame 1 has a message that is not allowed here"):
        manager.take(body, 0.0)
    assert manager.received == 0


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x93", b"\x90", b"hello", msgspec.msgpack.encode((1, 0, 5)), msgspec.msgpack.encode((-1, 0, []))]
)
def test_hostile_frames_are_refused(body: bytes) -> None:
    manager, _ = pair()
    with pytest.raises(ProtocolError):
        manager.take(body, 0.0)
    manager.check()


def test_an_acknowledgement_is_due_a_little_after_the_first_frame() -> None:
    manager, worker = pair()
    for number in range(3):
        worker.take(manager.encode([Drain("x")])[0], 10.0 + number / 100)
    assert worker.ack_at == 10.0 + ACK_SECONDS
    manager.take(worker.bare(), 0.0)
    assert worker.ack_at is None
    assert manager.unacked == 0


def test_an_acknowledgement_rides_on_what_is_said_anyway() -> None:
    manager, worker = pair()
    worker.take(manager.encode([Drain("x")])[0], 0.0)
    manager.take(worker.encode([Goodbye("y")])[0], 0.0)
    assert worker.ack_at is None
    assert (manager.unacked, worker.unacked) == (0, 1)


def test_an_acknowledgement_is_due_at_once_after_many_frames_or_bytes() -> None:
    manager, worker = pair()
    for _ in range(ACK_FRAMES - 1):
        worker.take(manager.encode([Drain("x")])[0], 1.0)
    assert worker.ack_at == 1.0 + ACK_SECONDS
    worker.take(manager.encode([Drain("x")])[0], 1.1)
    assert worker.ack_at == 1.1
    manager, worker = pair()
    worker.take(manager.encode([CertificateIssued(bytes(ACK_BYTES - 100))])[0], 1.0)
    worker.take(manager.encode([CertificateIssued(bytes(200))])[0], 1.1)
    assert worker.ack_at == 1.1


def test_a_bare_frame_is_not_acknowledged() -> None:
    manager, worker = pair()
    assert manager.take(worker.bare(), 0.0) == []
    assert manager.ack_at is None
    assert worker.unacked == 0


def test_many_messages_are_split_into_frames_within_the_limit() -> None:
    manager, worker = pair()
    batch: list[Message] = [CertificateIssued(bytes([number]) * 300_000) for number in range(10)]
    bodies = manager.encode(batch)
    assert len(bodies) == 10, "each is long enough for a frame of its own"
    assert [message for body in bodies for message in worker.take(body, 0.0)] == batch


@given(sizes=st.lists(st.sampled_from([0, 1, 100, 20_000, FULL_BYTES - 30, FULL_BYTES, 300_000]), min_size=1, max_size=12))
def test_a_batch_is_cut_into_frames_of_small_messages_together_and_of_large_ones_alone(sizes: list[int]) -> None:
    manager, worker = pair()
    batch: list[Message] = [CertificateIssued(bytes([number]) * size) for number, size in enumerate(sizes)]
    bodies = manager.encode(batch)
    taken = [worker.take(body, 0.0) for body in bodies]
    assert [message for messages in taken for message in messages] == batch
    assert all(len(body) <= FULL_BYTES or len(messages) == 1 for body, messages in zip(bodies, taken, strict=True))
    together = [len(body) + len(following) for body, following in itertools.pairwise(bodies)]
    assert all(size > FULL_BYTES for size in together), "two that follow each other would have fitted into one"
    manager.check()


def test_a_message_over_the_limit_is_our_defect_and_changes_nothing() -> None:
    manager, _ = pair()
    with pytest.raises(InternalError, match=r"a CertificateIssued of 1,048,\d+ bytes cannot be sent: a frame holds 1,048,576"):
        manager.encode([Drain("x"), CertificateIssued(bytes(MAX_FRAME_BYTES))])
    assert (manager.sent, manager.unacked) == (0, 0)
    manager.check()


def test_resuming_gives_again_what_the_other_side_lacks() -> None:
    manager, worker = pair()
    bodies = [manager.encode([Drain(str(number))])[0] for number in range(5)]
    for body in bodies[:2]:
        worker.take(body, 0.0)
    assert manager.resume(worker.received) == bodies[2:]
    manager.check()


@pytest.mark.parametrize("received", [-1, 0, 4])
def test_a_side_that_lost_its_memory_is_not_resumed(received: int) -> None:
    manager, worker = pair()
    for _ in range(3):
        worker.take(manager.encode([Drain("x")])[0], 0.0)
    manager.take(worker.bare(), 0.0)
    with pytest.raises(ProtocolError, match="lost its memory"):
        manager.resume(received)


#: What may happen on a link between two sides: say something, deliver some frames, deliver one twice, or cut and resume.
_steps = st.lists(
    st.tuples(st.sampled_from(["say", "say", "deliver", "deliver", "again", "ack", "cut"]), st.booleans(), st.integers(1, 4)), max_size=80
)


@given(steps=_steps)
def test_every_message_arrives_once_and_in_order_over_a_link_that_cuts_and_repeats(steps: list[tuple[str, bool, int]]) -> None:
    """The rule of the whole module, for both directions at once."""
    sides = pair()
    wires: tuple[list[Piece], list[Piece]] = ([], [])  # towards side 0 and side 1
    said: tuple[list[Message], list[Message]] = ([], [])
    heard: tuple[list[Message], list[Message]] = ([], [])

    def deliver(to: int, count: int) -> None:
        for _ in range(min(count, len(wires[to]))):
            heard[to].extend(sides[to].take(wires[to].pop(0), 0.0))

    def cut() -> None:
        """All that is under way is lost; both say what they have, and go on."""
        received = [side.received for side in sides]
        for to in (0, 1):
            wires[to][:] = sides[1 - to].resume(received[to])

    for step, flag, count in steps:
        to = int(flag)
        if step == "say":
            batch: list[Message] = [Drain(f"{len(said[1])}.{n}") if to else Goodbye(f"{len(said[0])}.{n}") for n in range(count)]
            said[to].extend(batch)
            wires[to].extend(sides[1 - to].encode(batch))
        elif step == "deliver":
            deliver(to, count)
        elif step == "again" and wires[to]:
            wires[to].insert(0, wires[to][0])
        elif step == "ack":
            wires[to].append(sides[1 - to].bare())
        elif step == "cut":
            cut()
        for side in sides:
            side.check()
    cut()
    for to in (0, 1):
        deliver(to, len(wires[to]))
        assert heard[to] == said[to]
        wires[1 - to].append(sides[to].bare())
    for to in (0, 1):
        deliver(to, len(wires[to]))
        assert sides[to].unacked == 0


def test_a_handshake_goes_its_way_on_both_sides() -> None:
    accepting, dialling = Handshake(), Handshake()
    for event in (Event.HEARD_HELLO, Event.SAID_WELCOME, Event.FRAME, Event.LOST, Event.LOST):
        accepting.note(event)
    for event in (Event.SAID_HELLO, Event.HEARD_WELCOME, Event.FRAME, Event.LOST):
        dialling.note(event)
    assert accepting.phase is dialling.phase is Phase.CLOSED


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", Event)
def test_a_handshake_refuses_what_its_table_lacks_and_nothing_changes(phase: Phase, event: Event) -> None:
    handshake = Handshake()
    handshake.phase = phase
    if (phase, event) in NEXT:
        assert handshake.note(event) is NEXT[phase, event]
    else:
        with pytest.raises(ProtocolError, match="has no place on a connection that is"):
            handshake.note(event)
        assert handshake.phase is phase


def test_every_phase_can_end() -> None:
    assert all((phase, Event.LOST) in NEXT for phase in Phase)


def test_handshake_frames_are_read_or_refused() -> None:
    assert decode_answer(encode_one(Refused("no"))) == Refused("no")
    welcome = Welcome("s", 0, "m", "0")
    assert decode_answer(encode_one(welcome)) == welcome
    with pytest.raises(ProtocolError, match="neither Welcome nor Refused"):
        decode_answer(encode_one(CertificateRequest(b"")))
    with pytest.raises(ProtocolError, match="not a Hello of this protocol"):
        decode_hello(encode_one(welcome))
